"""Write docs/server-settings.md: every setting of a server, from its own definition.

python docs/make_server_settings.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foreword.serving.config import ENVIRONMENT, Configuration, Limits
from foreword.validation import settings_of

OUTPUT = Path(__file__).with_name("server-settings.md")
INTRODUCTION = f"""# Settings of a server

Made from the settings' own definitions by `python docs/make_server_settings.py`; a test keeps it in step.

A TOML file (`foreword serve --config server.toml`), then the environment (`{ENVIRONMENT}PORT=8000`,
`{ENVIRONMENT}LIMITS__JOBS=2`), then flags (`--port 8000`, `--set limits.jobs=2`); the later wins. `none`
leaves open what has no default, and turns a limit off.

```toml
base = "smollm2-135m-instruct"
store = "postgresql://foreword@db/foreword"
blobs = "s3://prefixes/foreword"
checkpoints = "/var/lib/foreword/checkpoints"
host = "0.0.0.0"

[limits]
jobs = 2

[key_limits.3f9a1c0b77de]
tokens_per_minute = "none"
```
"""


def render(kind: Any = Configuration, limits: Any = Limits) -> str:
    """The content of docs/server-settings.md."""
    parts, section = [INTRODUCTION], None
    for each in settings_of(kind):
        if each.section != section:
            section = each.section
            parts.append(f"\n## {section}\n\n| setting | default | |\n|---|---|---|\n")
        if each.name != "limits":
            parts.append(_row(each.name, each))
            continue
        parts += [_row(f"limits.{inner.name}", inner) for inner in settings_of(limits)]
    return "".join(parts)


def _row(name: str, each: Any) -> str:
    values = ", ".join(map(str, each.choices)) or each.range
    text = f"{each.help} ({values})" if values not in (None, "a positive number") else each.help
    return f"| `{name}` | {each.shown_default or 'none'} | {text} |\n"


if __name__ == "__main__":
    OUTPUT.write_text(render())
