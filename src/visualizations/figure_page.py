"""Figure pages: HTML that opens from disk, offline, with an index and one plotly.js beside all pages.

A page says what to see, which command remakes it and from which inputs. Equal figures give equal bytes. What is in a
figure is left to the figure modules; no text in it is read as markup. `page_files` gives all files of a set of pages;
that they are saved together or not at all is left to `artifacts`.
"""

import html
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from plotly.offline import get_plotlyjs

from src.utils.artifacts import Writer
from src.visualizations.palette import PLOTLY_CONFIG
from src.visualizations.written_pages import INDEX, PLOTLY_JS

SHARED_PLOTLY_JS = f'<script charset="utf-8" src="{PLOTLY_JS}"></script>'  # as plotly writes it
BACK = f'<p class="back"><a href="{INDEX}">All pictures</a></p>'
FILE_NAME = re.compile(r"[a-z0-9_]+\.html")
MARKUP = re.compile(r"<(?!br>|extra></extra>|/extra>)")  # what plotly may read as a tag, apart from our own


@dataclass(frozen=True)
class FigurePage:
    """One figure and what stands around it.

    `sentence` says what to see, `command` remakes the page, `inputs` maps names to the SHA-256 of what it was made
    from, `section` is the heading under which the index lists it. What the figure rests on can stand around it:
    `statement` in large letters and `table`, its first row the header, above, `notes` in a list below.
    """

    file_name: str
    title: str
    sentence: str
    figure: go.Figure
    command: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    section: str = ""
    statement: str = ""
    table: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not FILE_NAME.fullmatch(self.file_name) or self.file_name == INDEX:
            raise ValueError(f"file_name {self.file_name!r}: lower-case letters, digits and _ before .html, not index")


def page_files(
    pages: Sequence[FigurePage], folder: Path, summary: Sequence[Sequence[str]] = (), sentence: str = ""
) -> dict[Path, Writer]:
    """All files of a set of pages, index and plotly.js included, with what writes each: for `save_artifact`.

    The index has a card for each page, in the order given, under the heading of its section. `summary` is a small
    table above them, its first row the header; cells are plain text.
    """

    def writer(text: str) -> Writer:
        return lambda path: path.write_text(text, encoding="utf-8")

    texts = {folder / page.file_name: page_html(page) for page in pages}
    texts[folder / PLOTLY_JS] = get_plotlyjs()
    texts[folder / INDEX] = index_html(pages, summary, "Pictures of the study", sentence)
    return {path: writer(text) for path, text in texts.items()}


def escape_text(text: str, width: int = 0, limit: int = 0) -> str:
    """Text as plotly and HTML show it, not as they would interpret it.

    With `width`, lines are wrapped at that many characters and joined by <br>; with `limit`, the text is cut there and
    ends in an ellipsis. Neither splits an escaped character. Quotes stay, since plotly would show `&quot;` as it is:
    an HTML attribute needs `html.escape`.
    """
    if limit and len(text) > limit:
        text = text[: limit - 1].rstrip() + "…"
    if not width:
        return html.escape(text, quote=False)
    lines = [
        line
        for paragraph in text.splitlines()
        for line in textwrap.wrap(paragraph, width, replace_whitespace=True, break_on_hyphens=False) or [""]
    ]
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def as_floats(values: pd.Series | np.ndarray) -> np.ndarray:
    """Numbers as a page holds them: 32 bits draw the same and take half the bytes."""
    return np.asarray(values, dtype=np.float32)


def as_percent(shares: pd.Series | np.ndarray) -> np.ndarray:
    return as_floats(100 * shares)


def figure_json(figure: go.Figure) -> dict[str, Any]:
    """A figure as plotly's plain JSON, with every `<` that plotly might take for a tag of its own turned into text."""
    return neutralised(json.loads(figure.to_json(engine="json")))


def neutralised(value: Any) -> Any:
    """Plain JSON with every `<` in its texts escaped, but those of our own `<br>` and `<extra></extra>`."""
    if isinstance(value, str):
        return MARKUP.sub("&lt;", value)
    if isinstance(value, list):
        return [neutralised(item) for item in value]
    if isinstance(value, dict):
        return {key: neutralised(item) for key, item in value.items()}
    return value


def page_html(page: FigurePage) -> str:
    """The whole page. Its element ids follow from the file name, so that it is the same every time."""
    stem = page.file_name.removesuffix(".html")
    figure = pio.to_html(
        figure_json(page.figure),
        full_html=False,
        include_plotlyjs="directory",
        div_id=f"figure_{stem}",
        config={**PLOTLY_CONFIG, "toImageButtonOptions": {"filename": stem, "scale": 2}},
        validate=False,
    )
    statement = f'<p class="statement">{escape_text(page.statement)}</p>\n' if page.statement else ""
    table = f"{_table_html(page.table)}\n" if page.table else ""
    notes = "".join(f"<li>{escape_text(note)}</li>" for note in page.notes)
    body = f"""{BACK}
<h1>{escape_text(page.title)}</h1>
{statement}<p class="sentence">{escape_text(page.sentence)}</p>
{table}<div class="figure"><div class="canvas">{figure}</div></div>
{f'<ul class="notes">{notes}</ul>' if notes else ""}<footer>
<p>Remake: <code>{escape_text(page.command)}</code></p>
{_inputs_html(page.inputs)}
</footer>"""
    return _document(page.title, body, "page")


def standalone_html(text: str) -> str:
    """A page that `page_html` made, with plotly.js (4.8 MB) in it and without its link back: one file to send.

    A page that holds plotly.js already stays as it is.
    """
    script = f'<script charset="utf-8">{get_plotlyjs()}</script>'
    return text.replace(f"{BACK}\n", "").replace(SHARED_PLOTLY_JS, script)


def index_html(pages: Sequence[FigurePage], summary: Sequence[Sequence[str]], title: str, sentence: str) -> str:
    """The list of pages in reading order."""
    parts = [f"<h1>{escape_text(title)}</h1>"]
    if sentence:
        parts.append(f'<p class="sentence">{escape_text(sentence)}</p>')
    if summary:
        parts.append(_table_html(summary))
    for section, members in groupby(pages, key=lambda page: page.section):
        if section:
            parts.append(f"<h2>{escape_text(section)}</h2>")
        parts.append('<div class="cards">' + "\n".join(_card_html(page) for page in members) + "</div>")
    commands = dict.fromkeys(page.command for page in pages)
    remake = "".join(f"<p>Remake: <code>{escape_text(command)}</code></p>" for command in commands)
    return _document(title, "\n".join([*parts, f"<footer>{remake}</footer>"]), "index")


def _card_html(page: FigurePage) -> str:
    return (
        f'<a class="card" href="{html.escape(page.file_name)}"><strong>{escape_text(page.title)}</strong>'
        f"<span>{escape_text(page.sentence)}</span></a>"
    )


def _table_html(rows: Sequence[Sequence[str]]) -> str:
    header, *body = rows
    head = "".join(f'<th scope="col">{escape_text(cell)}</th>' for cell in header)
    lines = ["<tr>" + "".join(f"<td>{escape_text(cell)}</td>" for cell in row) + "</tr>" for row in body]
    return f'<div class="summary"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _inputs_html(inputs: Mapping[str, str]) -> str:
    if not inputs:
        return ""
    parts = (f"{escape_text(name)} <code>{escape_text(sha256[:12])}</code>" for name, sha256 in inputs.items())
    return f"<p>Made from (SHA-256): {', '.join(parts)}</p>"


def _document(title: str, body: str, kind: str) -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape_text(title)}</title>
<style>{STYLE}</style>
</head>
<body class="{kind}">
<main>
{body}
</main>
</body>
</html>
"""


STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f6f7f9; color: #22272e; line-height: 1.45;
  font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif; }
main { margin: 0 auto; padding: 14px 20px 28px; }
.page main { max-width: 1320px; }
.index main { max-width: 1240px; }
h1 { font-size: 1.35rem; margin: 0 0 4px; }
h2 { font-size: 1.05rem; margin: 28px 0 10px; }
a { color: #0b5cad; }
.back { float: right; margin: 4px 0 0 16px; font-size: .9rem; }
.sentence { margin: 0 0 10px; max-width: 75em; color: #424a53; }
.statement { margin: 2px 0 8px; font-size: 1.15rem; font-weight: 600; }
.notes { margin: 14px 0 0; padding-left: 1.2em; max-width: 75em; font-size: .92rem; color: #424a53; }
.notes li { margin: 4px 0; }
.figure { background: #fff; border: 1px solid #dde1e6; border-radius: 8px; overflow-x: auto; }
.canvas { min-width: 760px; padding: 6px; }
.cards { display: grid; gap: 12px; margin-top: 12px; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); }
.card { display: block; padding: 14px 16px; background: #fff; border: 1px solid #dde1e6; border-radius: 8px;
  color: inherit; text-decoration: none; }
.card:hover, .card:focus-visible { border-color: #0b5cad; outline: 2px solid #b9d6f2; }
.card strong { display: block; margin-bottom: 4px; color: #0b5cad; }
.card span { font-size: .92rem; color: #424a53; }
.summary { overflow-x: auto; background: #fff; border: 1px solid #dde1e6; border-radius: 8px; margin: 14px 0; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 9px; text-align: right; white-space: nowrap; border-bottom: 1px solid #eceef1; }
th { white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
tbody tr:last-child td { border-bottom: 0; }
.page th { white-space: normal; }
.page td:nth-child(-n+2), .page th:nth-child(-n+2) { white-space: normal; text-align: left; }
footer { margin-top: 14px; font-size: .82rem; color: #57606a; }
footer p { margin: 2px 0; overflow-wrap: anywhere; }
@media (max-width: 600px) { main { padding: 10px 12px 24px; } .cards { grid-template-columns: 1fr; } }
"""
