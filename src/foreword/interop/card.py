"""The page (model card) that goes with a shared prefix, and the names of base models that other files use.

Everything on the page comes from the prefix file; texts of the user are quoted, so that none of them ends up
as markup or as a field of the front matter.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import PurePath
from typing import Any

from foreword.base.base_model import BaseModel
from foreword.errors import ForewordWarning
from foreword.models.catalogue import CATALOGUE
from foreword.prefix import Prefix
from foreword.template import Template


def warn_if_other(named: Any, base: BaseModel) -> None:
    """Warn when a foreign file names another base than the one given, which counts.

    Other libraries keep no fingerprint: sizes can be checked, weights can't.
    """
    known = CATALOGUE.get(base.name)
    names = {_last_part(base.name)} | ({_last_part(known.hub_id)} if known else set())
    if isinstance(named, str) and named and _last_part(named) not in names:
        warnings.warn(
            f"the files say that this prefix belongs to {named}, and it was imported for {base.name}: the "
            "sizes agree, the weights can't be compared. Make sure that the base is the right one",
            ForewordWarning,
            stacklevel=3,
        )


def public_name(name: str, revision: str | None) -> str | None:
    """The id on the hub of a base model, where its name is one: a local folder's name stays local."""
    if known := CATALOGUE.get(name):
        return known.hub_id
    return name if revision is not None else None


def _last_part(name: str) -> str:
    return PurePath(name.replace("\\", "/")).name.lower()


# Identifiers that the hub knows; everything else has to be called "other" there.
_LICENCES = (
    "apache-2.0 mit bsd-2-clause bsd-3-clause mpl-2.0 gpl-3.0 lgpl-3.0 agpl-3.0 isc unlicense wtfpl "
    "cc0-1.0 cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 odc-by pddl "
    "openrail bigscience-openrail-m llama2 llama3 llama3.1 llama3.2 gemma"
)


def hub_card(prefix: Prefix, repository: str, file: str) -> str:
    """README.md of a repository that holds `file`."""
    use = f"""## Use it

```python
from foreword import BaseModel, generate
from foreword.interop import import_hub

base = BaseModel.load({json.dumps(_base(prefix))})
prefix = import_hub({json.dumps(repository)}).prefix
print(generate(base, ["your source text"], prefixes=prefix, max_new_tokens=64))
```

```
foreword import hub {repository} --out mine.prefix
foreword generate --prefix mine.prefix "your source text"
```

`{file}` is the prefix file as Foreword wrote it: safetensors, no pickle. Its SHA-256 is `{prefix.digest}`."""
    return _page(prefix, repository.split("/")[-1], "foreword", use)


def peft_card(prefix: Prefix) -> str:
    """README.md of a folder for PEFT."""
    use = f"""## Use it

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained({json.dumps(_base(prefix))})
model = PeftModel.from_pretrained(base, "path/of/this/folder")
```

PEFT does not apply the template below: build the text that way yourself. It also lets the prefix fall out of
view of layers with a sliding window, once the text is longer than the window."""
    return _page(prefix, "Prefix for PEFT", "peft", use)


def _page(prefix: Prefix, title: str, library: str, use: str) -> str:
    base = _quoted(_base(prefix))
    return f"""{_front_matter(prefix, library)}
# {title}

A prefix for {base}: keys and values of {prefix.length} virtual tokens in front of the text, in every layer
([prefix-tuning](https://arxiv.org/abs/2101.00190)). The base model itself is unchanged.

{use}

## Template

{_template(prefix.template)}

## Facts

{_facts(prefix)}
"""


def _front_matter(prefix: Prefix, library: str) -> str:
    fields = [f"library_name: {library}"]
    if base := public_name(prefix.base.name, prefix.base.revision):
        fields.append(f"base_model: {json.dumps(base)}")
    if prefix.licence is not None and prefix.licence.lower() in _LICENCES.split():
        fields.append(f"license: {prefix.licence.lower()}")
    elif prefix.licence is not None:
        name = re.sub(r"[^a-z0-9.]+", "-", prefix.licence.lower()).strip("-")[:60]
        fields += ["license: other", f"license_name: {json.dumps(name or 'other')}"]
    fields += ["tags:", "- prefix-tuning", "- foreword"]
    return "\n".join(["---", *fields, "---", ""])


def _template(template: Template) -> str:
    if template.style == "chat":
        system = "" if template.system is None else f", with the system message {_quoted(template.system)}"
        text = f"The source is a chat message, written with the tokenizer's chat template{system}."
    elif template.style == "separator":
        text = f"The source, then {_quoted(template.separator)}, then the target."
    else:
        text = "The source as it is, then the target."
    if template.placement == "infix":
        text += " The virtual tokens are an infix: the target sees them, the source does not."
    begin = " The tokenizer's beginning-of-text token comes first." if template.begin else ""
    if template.date is not None:
        begin += f" The day that it writes is always {template.date}."
    end = "Nothing" if template.end is None else _quoted(template.end)
    return f"{text}{begin} {end} ends the target."


def _facts(prefix: Prefix) -> str:
    origin = prefix.origin
    facts: dict[str, object] = {
        "base model": _base(prefix),
        "revision of the base": prefix.base.revision,
        "fingerprint of the base's weights": prefix.base.fingerprint,
        "sizes": f"{prefix.geometry}",
        "positions": prefix.positions,
        "numbers": f"{prefix.numel():,} ({str(prefix.dtype).removeprefix('torch.')})",
        "trained as": origin.parameterization,
        "started from": origin.initialization,
        "training examples": origin.examples,
        "steps": origin.steps,
        "seed": origin.seed,
        "loss on dev examples, nats per target token": origin.dev_loss,
        "created": prefix.created,
        "licence": prefix.licence or "not stated",
        **{f"label {name}": value for name, value in sorted(prefix.labels.items())},
    }
    rows = [f"| {_cell(name)} | {_quoted(value)} |" for name, value in facts.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *rows])


def _base(prefix: Prefix) -> str:
    """Alias or hub id; of a local folder the last part, because its path is nobody else's business."""
    name = prefix.base.name
    if public_name(name, prefix.base.revision):
        return name
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1] or name


def _quoted(value: object) -> str:
    """As code, on one line, whatever is in it: no markup, no table cell that ends early."""
    text = str(value)
    if isinstance(value, str) and text != text.strip():
        text = json.dumps(text, ensure_ascii=False)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    ticks = "`" * (max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    pad = " " if len(ticks) > 1 or not text else ""
    return f"{ticks}{pad}{text.replace('|', chr(92) + '|')}{pad}{ticks}"


def _cell(name: str) -> str:
    return _quoted(name) if not re.fullmatch(r"[\w ,'.-]+", name) else name
