"""A written token page as running text: every token on the colour of its attribution, with its value below it.

A browser sets it at once, where plotly takes a second to load and a fifth of one to draw each figure. All numbers and
words are those of the page's figure; what the figure has beyond them, the curves of the removal test, is left to it.
"""

import html
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from plotly.colors import hex_to_rgb

from src.dashboard.paired_scales import numbers
from src.visualizations.dark_theme import contrast
from src.visualizations.written_pages import WrittenPage

Spec = dict[str, Any]
VERDICT = re.compile(r"The judge says (?:safe|unsafe) .+?: (right|wrong)\.")
LITTLE = re.compile(r"It says much the same without any request: [^.]+\.")
ALARM = re.compile(r"NOT CONVERGED: [^.]+\.")
INKS = ("#000000", "#FFFFFF")  # on any ground one of them has a contrast of at least 4.58
STYLE = """
.token-text p { margin: 0 0 .4rem; font-size: .84rem; line-height: 1.4; }
.token-text .alarm { color: #B00020; background: #FFF; border-radius: 3px; padding: 1px 6px; font-weight: 600; }
.token-text .request { display: flex; flex-wrap: wrap; gap: 3px; margin: 0 0 .5rem; padding: 0; list-style: none; }
.token-text .request li { margin: 0; padding: 1px 5px; border: 1px solid #D0D7DE; border-radius: 3px;
  text-align: center; font-size: .84rem; line-height: 1.25; white-space: pre;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.token-text .request span { display: block; font-size: .7rem; font-variant-numeric: tabular-nums; }
.token-text .small, .token-text summary { font-size: .78rem; opacity: .85; }
.token-scale { display: flex; flex-wrap: wrap; align-items: center; gap: .5rem; font-size: .84rem; }
.token-scale i { display: inline-block; width: 11rem; height: .8rem; border: 1px solid #9AA0A6; border-radius: 2px;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
"""


def attribution_of(figure: Spec) -> Spec | None:
    """The trace of the request's tokens; None on a page that stands for a picture that failed."""
    return next((trace for trace in figure["data"] if trace.get("name") == "attribution"), None)


def colour_range_of(figures: Sequence[Spec]) -> float:
    """The attribution in logits that gets the full colour on every one of these pages; 0 without any."""
    found = [attribution_of(figure) for figure in figures]
    return max((float(trace["zmax"]) for trace in found if trace is not None), default=0.0)


def scale_html(figure: Spec, colour_range: float) -> str:
    """The legend of what `token_text` colours within `colour_range`; empty for a page without attributions."""
    trace = attribution_of(figure)
    if trace is None:
        return ""
    stops = ", ".join(f"{colour} {100 * place:g}%" for place, colour in trace["colorscale"])
    return (
        f'<div class="token-scale"><span>pushes towards “safe” {-colour_range:.2f}</span>'
        f'<i style="background: linear-gradient(to right, {stops})"></i>'
        f"<span>{colour_range:+.2f} towards “unsafe” (logits that a token adds to the margin)</span></div>"
    )


def token_text(page: WrittenPage, colour_range: float) -> str | None:
    """Verdict, coloured tokens with their values, template and what the tests said; None without attributions.

    The first trace of a token page holds `z` and `text` as a grid in reading order, NaN and "" after the last token.
    """
    trace = attribution_of(page.figure)
    values = None if trace is None else numbers(trace["z"])
    if trace is None or values is None:
        return None
    texts = [text for row in trace["text"] for text in row]
    cells = zip(texts, values.ravel().tolist(), strict=True)
    tokens = [token_html(text, value, trace, colour_range) for text, value in cells if text]
    margin, convergence, _, *notes = title_lines(page.figure)
    verdict, little, alarm = (one.search(page.sentence) for one in (VERDICT, LITTLE, ALARM))
    return "".join(
        [
            '<div class="token-text">',
            f'<p class="alarm">{html.escape(alarm[0])}</p>' if alarm else "",
            f"<p>{'✓' if verdict[1] == 'right' else '✗'} {html.escape(verdict[0])}</p>" if verdict else "",
            f"<p>{html.escape(little[0])}</p>" if little else "",
            f'<ol class="request">{"".join(tokens)}</ol>',
            *(f'<p class="small">{escaped(line)}</p>' for line in (*removal_lines(page.figure), *notes)),
            f"<details><summary>{escaped(convergence.split(':')[0])}, template</summary>",
            *(f'<p class="small">{escaped(line)}</p>' for line in (margin, convergence, template_line(page.figure))),
            "</details></div>",
        ]
    )


def token_html(text: str, value: float, trace: Spec, colour_range: float) -> str:
    token, _, shown = text.partition("<br>")
    ground = scale_colour(trace["colorscale"], value, colour_range)
    ink = max(INKS, key=lambda colour: contrast(colour, ground))
    return (
        f'<li style="background: {ground}; color: {ink}" title="{value:+.4f} logits">'
        f"{escaped(token)}<span>{escaped(shown)}</span></li>"
    )


def scale_colour(scale: Sequence[Sequence[Any]], value: float, colour_range: float) -> str:
    """The colour that plotly gives a value between ± `colour_range`, as `#RRGGBB`."""
    place = 0.5 if colour_range == 0 else (value / colour_range + 1) / 2
    channels: Float[np.ndarray, "stops 3"] = np.array([hex_to_rgb(colour) for _, colour in scale], dtype=float)
    stops = [float(stop) for stop, _ in scale]
    return "#" + "".join(f"{round(float(np.interp(place, stops, channel))):02X}" for channel in channels.T)


def title_lines(figure: Spec) -> list[str]:
    """What stands above the panels: margin, convergence, full colour, then what the budget cut."""
    return figure["layout"]["title"]["text"].split("<br>")


def removal_lines(figure: Spec) -> list[str]:
    """What the removal test found, from the titles of its two panels."""
    titles = [note["text"].replace("<br>", " ") for note in figure["layout"]["annotations"]]
    return [title for title in titles if title.startswith(("Comprehensiveness", "Sufficiency"))]


def template_line(figure: Spec) -> str:
    trace = next(trace for trace in figure["data"] if trace.get("name") == "template")
    tokens = [text for row in trace["customdata"] for text in row if text]
    return f"{len(tokens)} template and special tokens, each exactly 0: {' '.join(tokens)}"


def escaped(text: str) -> str:
    """Text of a figure, whose `<` is escaped already, as HTML."""
    return html.escape(html.unescape(text))
