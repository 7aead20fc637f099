"""The report of a document's prefix as one HTML page, which takes nothing from anywhere else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse; margin: 1em 0 }}
th, td {{ padding: .3em .8em .3em 0; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top }}
td + td, th + th {{ text-align: right; font-variant-numeric: tabular-nums }}
td {{ overflow-wrap: anywhere }}
svg {{ max-width: 100%; height: auto }}
svg text {{ font: 13px system-ui, sans-serif; fill: #222 }}
.above {{ color: #b00020 }}
</style>
{body}
</html>
"""

ROW, LEFT, BAR, LETTERS = 24, 300, 300, 42
"""Of the picture, in pixels: height of a row, where bars begin, how long 1 is; letters of a row's name."""


def report_page(
    report: Mapping[str, Any],
    *,
    document: str,
    base: str,
    settings: Mapping[str, Any] | None = None,
    created: str | None = None,
) -> str:
    """The page.

    Args:
        report: as a document's prefix has it.
        document, base: names, for the title.
        settings: with which the prefix was made, by name.
        created: when.
    """
    title = f"{document} as a prefix of {base}"
    behind = "the whole document" if report["reference"] == "document" else "the chunk that it is about"
    parts = [f"<h1>{escape(title)}</h1>", _summary(report, behind)]
    parts += ["<h2>Answers</h2>", _answers(report, behind), "<h2>Where it forgets</h2>", _sections(report)]
    parts += ["<h2>Unrelated prompts</h2>", _harm(report), "<h2>Size</h2>", _size(report)]
    if (gate := report.get("gate")) is not None:
        parts += ["<h2>Beside the previous prefix</h2>", _gate(gate)]
    made = {"made": created, "base": base, **(settings or {})}
    rows = [(name.replace("_", " "), str(value)) for name, value in made.items() if value is not None]
    parts += ["<h2>How it was made</h2>", _table(("setting", "value"), rows)]
    return _PAGE.format(title=escape(title), body="\n".join(parts))


def figure(value: float | None, digits: int = 2) -> str:
    """A number for people; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def size_of(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _summary(report: Mapping[str, Any], behind: str) -> str:
    if report["recovered_share"] is None:
        return (
            f"<p>Answers are no likelier behind {behind} than without it, so that nothing is to recover.</p>"
        )
    return (
        f"<p>The prefix recovers <strong>{figure(report['recovered_share'])}</strong> of what {behind} does "
        f"for {report['answers']} answers that training did not have. 0 is the base without anything, 1 is "
        f"{behind} in its context.</p>"
    )


def _answers(report: Mapping[str, Any], behind: str) -> str:
    names = ("without", "with_prefix", "with_document")
    rows = [("loss of an answer, nats per token", *(figure(report[name], 3) for name in names))]
    if (short := report["answered"]) is not None:
        asked = f"right of {short['questions']} short answers"
        rows.append((asked, *(f"{100 * short[name]:.0f}%" for name in names)))
    return _table(("", "without", "with the prefix", f"with {behind}"), rows)


def _sections(report: Mapping[str, Any]) -> str:
    rows = [
        (each["section"], str(each["answers"]), *(figure(each[name]) for name in _LOSSES), _share(each))
        for each in report["sections"]
    ]
    columns = ("section", "answers", "loss without", "with the prefix", "with it in context", "recovered")
    more = report["sections_left_out"]
    note = f"<p>{more} sections with fewer questions are not shown.</p>" if more else ""
    return _picture(report["sections"]) + note + _table(columns, rows)


_LOSSES = ("without", "with_prefix", "with_document")


def _share(measures: Mapping[str, Any]) -> str:
    return figure(measures["recovered_share"])


def _harm(report: Mapping[str, Any]) -> str:
    above = report["max_harm"] is not None and report["harm"] > report["max_harm"]
    rows = [("the prefix", figure(report["harm"], 3))]
    if report["harm_of_document"] is not None:
        rows.append(("the whole document in context", figure(report["harm_of_document"], 3)))
    if report["max_harm"] is not None:
        rows.append(("limit", figure(report["max_harm"], 3)))
    verdict = '<p class="above">Above the limit: the prefix was not kept.</p>' if above else ""
    return verdict + _table(("changes the base's own answers by", "mean KL, nats per token"), rows)


def _gate(gate: Mapping[str, Any]) -> str:
    shown = f"recovered, {gate['answers']} answers about parts that both know"
    rows = [
        (shown, figure(gate["recovered_share"]), figure(gate["recovered_share_before"])),
        ("harm", figure(gate["harm"], 3), figure(gate["harm_before"], 3)),
    ]
    return _table(("", "this prefix", "the previous one"), rows)


def _size(report: Mapping[str, Any]) -> str:
    rows = [
        ("the prefix", str(report["length"]), size_of(report["cache_bytes"])),
        ("the document's text", str(report["tokens"]), size_of(report["document_cache_bytes"])),
    ]
    file = f"<p>Its keys and values have {size_of(report['bytes'])} in the file.</p>"
    if (loss := report.get("rounding_loss")) is not None:
        file += f"<p>Against float32 they change answers by a mean KL of {loss:.2g} nats per token.</p>"
    return _table(("in the cache of an engine", "tokens", "keys and values"), rows) + file


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _picture(sections: Sequence[Mapping[str, Any]]) -> str:
    """Bars of the recovered share by section, from 0 to 1; what is above or below ends there."""
    height = ROW * (len(sections) + 1)
    lines = []
    for place in (0.0, 0.5, 1.0):
        x = LEFT + BAR * place
        lines.append(f'<line x1="{x}" x2="{x}" y1="0" y2="{height - ROW}" stroke="#bbb"/>')
        lines.append(f'<text x="{x}" y="{height - 6}" text-anchor="middle">{place:g}</text>')
    for number, each in enumerate(sections):
        name, share = each["section"], each["recovered_share"]
        shown = name if len(name) <= LETTERS else f"{name[: LETTERS - 1]}…"
        width = BAR * min(1.0, max(0.0, share or 0.0))
        top = ROW * number
        label = f'<text x="{LEFT - 8}" y="{top + 16}" text-anchor="end">{escape(shown)}</text>'
        bar = f'<rect x="{LEFT}" y="{top + 4}" width="{width:.1f}" height="{ROW - 8}" fill="#1f5f99"/>'
        figures = f'<text x="{LEFT + BAR + 12}" y="{top + 16}">{_share(each)}</text>'
        lines.append(f"<g><title>{escape(name)}</title>{label}{bar}{figures}</g>")
    size = f"0 0 {LEFT + BAR + 60} {height}"
    return f'<svg viewBox="{size}" role="img" aria-label="Recovered share">{"".join(lines)}</svg>'
