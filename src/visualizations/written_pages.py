"""A figure page that was written to disk, taken apart again: its title, sentence, command and figure.

What is drawn from it, in the dashboard or as an image, is its JSON: no script of a file runs, whoever wrote the file.
"""

import html
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.utils.errors import UserError

MAX_BYTES = 30_000_000  # ten times the largest page of this project
INDEX = "index.html"
PLOTLY_JS = "plotly.min.js"  # the name that `include_plotlyjs="directory"` asks for
EXPORTED = "exported"  # the folder beside pages into which they are exported
CALL = re.compile(r"Plotly\.newPlot\(\s*(?=\")")  # with an element's id, as pages call it
BETWEEN = re.compile(r"\s*,\s*")
TITLE = re.compile(r"<h1>(.*?)</h1>", re.DOTALL)
SENTENCE = re.compile(r'<p class="sentence">(.*?)</p>', re.DOTALL)
COMMAND = re.compile(r"<footer>\s*<p>Remake: <code>(.*?)</code>", re.DOTALL)


@dataclass(frozen=True)
class WrittenPage:
    """What stands on a page; the texts are plain, `figure` is plotly's JSON with `data` and `layout`."""

    title: str
    sentence: str
    command: str
    figure: dict[str, Any]


def load_page(path: Path) -> WrittenPage:
    """Read a page that `figure_page.page_html` wrote; anything else raises `UserError`."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{path}: {size:,} bytes, more than any page of this project; open it in a browser")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); make it again") from error
    return WrittenPage(plain(TITLE, text), plain(SENTENCE, text), plain(COMMAND, text), figure_in(text, path))


def figure_in(text: str, path: Path) -> dict[str, Any]:
    """The arguments of the page's one call that draws: element id, data, layout, all of them JSON."""
    call = CALL.search(text)
    if call is None:
        raise UserError(f"{path}: no page of this project (it draws no figure); remove it, or open it in a browser")
    decoder, place, found = json.JSONDecoder(), call.end(), []
    try:
        for _ in range(3):
            value, place = decoder.raw_decode(text, place)
            found.append(value)
            gap = BETWEEN.match(text, place)
            place = gap.end() if gap else place
    except ValueError as error:
        raise UserError(f"{path}: half-written ({error}); wait for its training, or run it again") from error
    _, data, layout = found
    if not isinstance(data, list) or not isinstance(layout, dict):
        raise UserError(f"{path}: no page of this project (its figure is no plotly figure); remove it")
    return {"data": data, "layout": layout}


def plain(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return html.unescape(found[1]).strip() if found else ""
