"""BaseModel: the frozen transformer, its tokenizer, and what can be asked of it with prefixes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
)

from foreword.base.attention import IMPLEMENTATIONS, Kernel
from foreword.base.batch import Batch, Layout, decoder_batch, encoder_decoder_batch
from foreword.base.compatibility import check_prefix_effect, enable_window_shift, probe, sliding_windows
from foreword.base.loading import (
    Quantization,
    check,
    choose_device,
    choose_dtype,
    choose_kernel,
    existing_quantization,
    loading_options,
    model_class,
    prepare_quantized,
    tensors_of,
    use_kernel,
)
from foreword.base.loss import detect_linear_head, target_losses
from foreword.base.prefix_batch import WITHIN_WINDOW, PrefixBatch
from foreword.base.prepacked_linear import enable_prepacking
from foreword.encoding import EncodedExample, encode_example
from foreword.errors import UnsupportedArchitecture, UsageError, WindowExceeded
from foreword.examples import Example
from foreword.models.fingerprint import fingerprint, fingerprint_of_tensors
from foreword.prefix import BaseIdentity, Positions, Prefix
from foreword.template import Template, default_template
from foreword.validation import deprecated

PrefixesArgument = Prefix | Sequence[Prefix | None] | None


class BaseModel:
    """A language model of which no code path ever changes a weight.

    Attributes:
        model: the transformers model, in eval mode, no parameter with a gradient.
        geometry: sizes a prefix must have, as the attention calls of the model show them.
        name: alias, hub id or folder name.
        revision: commit on the hub, where known.
        template: what training uses when nothing else is said.
        positions: of the prefixes that are trained for it; see `Prefix.positions`.
        quantization: how its linear layers are kept, such as "nf4"; None: in `dtype`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        name: str,
        revision: str | None = None,
        folder: Path | None = None,
    ) -> None:
        """Freeze a loaded transformers model; `load` is the usual way in.

        Args:
            folder: where its weight files are, so that the fingerprint can be read from them.

        Raises:
            UnsupportedArchitecture: its attention does not take a prefix.
        """
        self.model = model.eval().requires_grad_(False)
        self.quantization = existing_quantization(model.config)
        self.tokenizer = tokenizer
        self.name = name
        self.revision = revision
        self._folder = folder
        if model.config._attn_implementation not in IMPLEMENTATIONS.values():
            use_kernel(model, choose_kernel(model.config, type(model)))
        has_weights = not any(parameter.is_meta for parameter in model.parameters())
        if has_weights:
            prepare_quantized(self.model)
            enable_prepacking(self.model)
        self.geometry = probe(model)
        if has_weights:  # else there is nothing to try, and whoever has them does
            detect_linear_head(model)
            check_prefix_effect(model, positions=self.takes_positions)
        windowed = enable_window_shift(model) if has_weights else bool(sliding_windows(model))
        self.positions: Positions = WITHIN_WINDOW if windowed else "text-after-prefix"
        self.template = default_template(tokenizer)
        if self.is_encoder_decoder:
            self.template = Template(style="raw", end=tokenizer.eos_token)

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        attention: Kernel | Literal["auto"] = "auto",
        quantization: Quantization | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> BaseModel:
        """Load a base model by alias, local folder or Hugging Face id, pulling it when missing.

        Args:
            device: "auto" takes CUDA or MPS where there is one; "balanced" spreads a large model over
                several GPUs (accelerate).
            dtype: "auto" takes bfloat16 on GPUs that compute it, else float32; "bfloat16" asks for it on
                CPUs that have it in hardware (AVX-512 BF16, AMX), too.
            attention: "auto" takes SDPA unless the architecture needs eager (soft caps, sinks).
            quantization: keep the linear layers in 8 bits ("int8") or 4 ("nf4"), computing in `dtype`; the
                fingerprint stays that of the files, so prefixes fit with and without (docs/quantization.md).
            notify: called with a line of text when something slow begins.

        Raises:
            UsageError: quantization that can't be had: see `foreword.base.loading`.
            UnknownModel, DownloadFailed: see `foreword.models.resolve`.
            UnsupportedArchitecture: its attention does not take a prefix.
        """
        from foreword.models import resolve  # not needed for models that are loaded already

        place = choose_device(device)
        if quantization is not None:
            check(quantization, place)
        resolved = resolve(str(name), notify=notify or (lambda line: None))
        config = AutoConfig.from_pretrained(resolved.path)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        numbers = choose_dtype(dtype, place)
        options = {"device_map": "balanced"} if place == "balanced" else {}
        options |= loading_options(quantization, config, place, numbers)
        kernel = choose_kernel(config, model_class(auto, config)) if attention == "auto" else attention
        try:
            model = auto.from_pretrained(
                resolved.path,
                attn_implementation=IMPLEMENTATIONS[kernel],
                dtype=numbers,
                use_safetensors=True,
                **options,
            )
        except (ValueError, KeyError) as error:  # a KeyError from models that choose classes by that name
            ours = IMPLEMENTATIONS[kernel] in str(error) or "attn" in str(error)
            if not ours and "Unrecognized configuration" not in str(error):
                raise
            raise UnsupportedArchitecture(
                f"{name} (model type {config.model_type}) does not take Foreword's attention: {error}"
            ) from error
        if "device_map" not in options:
            model = model.to(place)
        tokenizer = AutoTokenizer.from_pretrained(resolved.path)
        return cls(model, tokenizer, name=resolved.name, revision=resolved.revision, folder=resolved.path)

    @classmethod
    def without_weights(cls, name: str | Path, *, notify: Callable[[str], None] | None = None) -> BaseModel:
        """A base model's tokenizer, sizes and fingerprint, for a process whose engine holds the weights.

        The model stands on the meta device, where nothing is computed: no memory is taken, and its files are
        read for the fingerprint alone. That prefixes have the right effect is not tried.

        Args:
            notify: as for `load`.

        Raises:
            As `load`.
        """
        from foreword.models import resolve

        resolved = resolve(str(name), notify=notify or (lambda line: None))
        config = AutoConfig.from_pretrained(resolved.path)
        auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        kernel = choose_kernel(config, model_class(auto, config))
        with torch.device("meta"):
            # bfloat16 is what products of experts are known for there; nothing else depends on it.
            model = auto.from_config(
                config, attn_implementation=IMPLEMENTATIONS[kernel], dtype=torch.bfloat16
            )
        if (Path(resolved.path) / "generation_config.json").is_file():  # tokens that end a text
            model.generation_config = GenerationConfig.from_pretrained(resolved.path)
        tokenizer = AutoTokenizer.from_pretrained(resolved.path)
        return cls(model, tokenizer, name=resolved.name, revision=resolved.revision, folder=resolved.path)

    # -- what it is ----------------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the weights; of a model loaded from files it is read once and remembered."""
        if self._folder is not None:
            return fingerprint(self._folder)
        return self.weights_checksum()

    def weights_checksum(self) -> str:
        """Digest of the weights as they are in memory now: the same before and after any work."""
        return fingerprint_of_tensors(tensors_of(self.model))

    @property
    def identity(self) -> BaseIdentity:
        """What a prefix file says about its base."""
        return BaseIdentity(self.name, self.revision, self.fingerprint)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether sources go to an encoder of their own."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights."""
        return self.model.dtype  # type: ignore[no-any-return]

    @property
    def max_positions(self) -> int | None:
        """Positions that prefix and text share; None where the architecture sets no limit."""
        config = self.model.config.get_text_config(decoder=True)
        if hasattr(config, "relative_attention_num_buckets"):  # T5's kind counts distances, not positions
            return None
        for field in ("max_position_embeddings", "n_positions"):
            if isinstance(getattr(config, field, None), int):
                return int(getattr(config, field))
        return None

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a text, by the model's own generation settings and its tokenizer."""
        declared = self.model.generation_config.eos_token_id if self.model.can_generate() else None
        listed = declared if isinstance(declared, list) else [declared]
        return frozenset(i for i in (*listed, self.tokenizer.eos_token_id) if i is not None)

    @cached_property
    def start_id(self) -> int:
        """The token that an encoder-decoder's decoder begins with."""
        settings = self.model.generation_config
        for token in (self.model.config.decoder_start_token_id, settings.decoder_start_token_id):
            if token is not None:
                return int(token)
        raise UsageError(
            f"{self.name} does not say which token its decoder begins with; set decoder_start_token_id in "
            "its config.json (for models of several languages, the token of the language to write)"
        )

    @cached_property
    def takes_positions(self) -> bool:
        """Whether the forward pass accepts `position_ids`: then the text starts at P.

        An encoder-decoder's texts start at 0 whatever it accepts: there a prefix moves no text.
        """
        accepted = "position_ids" in inspect.signature(self.model.forward).parameters
        return accepted and not self.is_encoder_decoder

    @cached_property
    def cache_takes_prefixes(self) -> bool:
        """Whether prefixes can be in the cache while generating; it is a question of speed only."""
        from foreword.base.kv_cache import takes_prefixes  # needed by generation alone

        return takes_prefixes(self.model, self.geometry)

    def max_text_tokens(self, length: int) -> int | None:
        """Tokens of text that fit behind a prefix of `length`.

        Raises:
            WindowExceeded: the prefix leaves no room for a source and a target.
        """
        positions = self.max_positions
        if positions is None:
            return None
        # The positions of BART's kind are not moved by a prefix, so there it costs none.
        used = length if self.takes_positions else 0
        if positions - used < 2:
            raise WindowExceeded(
                f"a prefix of length {length} leaves no room for text in the {positions} positions of "
                f"{self.name}; take a length below {positions - 1}"
            )
        return positions - used

    @property
    def window(self) -> int | None:
        """The old name of `max_positions`."""
        deprecated("BaseModel.window is now called max_positions; the old name goes with the next release")
        return self.max_positions

    def text_limit(self, length: int) -> int | None:
        """The old name of `max_text_tokens`."""
        deprecated(
            "BaseModel.text_limit is now called max_text_tokens; the old name goes with the next release"
        )
        return self.max_text_tokens(length)

    def __repr__(self) -> str:
        kept = "" if self.quantization is None else f"{self.quantization} in "
        dtype = kept + str(self.dtype).removeprefix("torch.")
        parameters = self.model.num_parameters()
        size = f"{parameters / 1e6:.0f}M parameters"
        return f"BaseModel({self.name!r}, {size}, {self.geometry}, {dtype}, {self.device})"

    # -- what it computes ----------------------------------------------------------------------

    def per_row(self, prefixes: PrefixesArgument, rows: int) -> list[Prefix | None]:
        """`prefixes=` of the public functions as one prefix or None per row, checked.

        Raises:
            UsageError: another number of prefixes than rows.
            GeometryMismatch, WrongBaseModel: a prefix of another base.
        """
        if prefixes is None or isinstance(prefixes, Prefix):
            listed: list[Prefix | None] = [prefixes] * rows
        else:
            listed = list(prefixes)
        if len(listed) != rows:
            raise UsageError(f"{len(listed)} prefixes for {rows} rows; give one for all, or one per row")
        for prefix in {id(p): p for p in listed if p is not None}.values():
            prefix.check_fits(self.identity, self.geometry)
            self.check_placement(prefix.template)
            if prefix.positions == WITHIN_WINDOW != self.positions:
                raise UsageError(
                    f"the prefix has positions {WITHIN_WINDOW}, but {self.name} has no layers with a sliding "
                    "window whose positions can be moved; train a prefix for it, or take the base it is for"
                )
        return listed

    def check_placement(self, template: Template) -> None:
        """Refuse an infix for a model that reads the source apart from the target.

        Raises:
            UsageError: an encoder-decoder.
        """
        if template.placement == "infix" and self.is_encoder_decoder:
            raise UsageError(
                f"placement is infix, but {self.name} is an encoder-decoder: its source and target are no "
                "one text to stand in. Take the prefix; streams=('decoder', 'cross') leaves the source alone"
            )

    def batch(self, rows: Sequence[EncodedExample], prefixes: PrefixBatch | None, layout: Layout) -> Batch:
        """The tensors of one forward pass for `rows` under `prefixes`."""
        pad_id = self.tokenizer.pad_token_id or 0
        if self.is_encoder_decoder:
            return encoder_decoder_batch(rows, start_id=self.start_id, device=self.device, pad_id=pad_id)
        offsets = prefixes.lengths("decoder") if prefixes is not None else (0,) * len(rows)
        groups = prefixes.sharing_groups() if prefixes is not None else (0,) * len(rows)
        if not self.takes_positions and layout == "flat":
            layout = "right"  # such a model counts positions by place in the row, so rows stay apart
        return decoder_batch(
            rows,
            offsets,
            groups,
            layout=layout,
            device=self.device,
            positions=self.takes_positions,
            pad_id=pad_id,
        )

    def token_losses(
        self,
        examples: Sequence[Example],
        prefixes: PrefixesArgument = None,
        *,
        template: Template | None = None,
        layout: Layout = "flat",
        batch_tokens: int = 2048,
    ) -> list[torch.Tensor]:
        """The loss of each target token, one 1-D float32 tensor per example, in nats.

        Args:
            examples: B rows.
            prefixes: one for all, or one (or None) per row.
            template: of rows without a prefix (default: the base's own) ; rows with one use the
                prefix's.
            layout: how rows share a forward pass; the losses are the same for all three.
            batch_tokens: at most this many tokens at once; only memory depends on it.

        Raises:
            UsageError, GeometryMismatch, WrongBaseModel: see `per_row`.
            WindowExceeded: an example that does not fit: nothing is cut here.
        """
        listed = self.per_row(prefixes, len(examples))
        encoded = []
        for number, (example, prefix) in enumerate(zip(examples, listed, strict=True)):
            chosen = prefix.template if prefix is not None else (template or self.template)
            row, _ = encode_example(example, self.tokenizer, chosen)
            self.check_window(row, 0 if prefix is None else prefix.length, number)
            encoded.append(row)
        losses: list[torch.Tensor | None] = [None] * len(encoded)
        with torch.no_grad():
            for indices in batches_by_length(encoded, batch_tokens):
                row_prefixes = PrefixBatch.stack([listed[i] for i in indices], self.device)
                batch = self.batch([encoded[i] for i in indices], row_prefixes, layout)
                losses_M = target_losses(self.model, batch, row_prefixes).cpu()
                for index, row_losses in zip(indices, losses_M.split(batch.targets), strict=True):
                    losses[index] = row_losses
        return [row for row in losses if row is not None]

    def check_window(self, row: EncodedExample, length: int, number: int) -> None:
        """Refuse an example, named by its number, that does not fit behind a prefix of `length`.

        Raises:
            WindowExceeded: says how many tokens it has, and how many fit.
        """
        limit = self.max_text_tokens(length)
        longest = max(len(row.source_ids), len(row.target_ids)) if self.is_encoder_decoder else row.tokens
        if limit is not None and longest > limit:
            raise WindowExceeded(
                f"example {number} has {longest} tokens; {limit} fit behind a prefix of length {length} in "
                f"{self.name}. Shorten it"
            )


def batches_by_length(encoded: Sequence[EncodedExample], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of rows of like length, each of at most `batch_tokens` (or one row)."""
    order = sorted(range(len(encoded)), key=lambda i: encoded[i].tokens)
    batch: list[int] = []
    for index in order:
        # Padded layouts cost the longest row times the rows; in this order that is the last one.
        if batch and encoded[index].tokens * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
