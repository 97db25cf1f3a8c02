"""The pictures of one kind at one epoch, sample beside sample, or at two epochs with the same scales."""

from collections.abc import Mapping, Sequence

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from src.dashboard.charts import COLUMN_WIDTH, Spec, plain_text, say, show_figure
from src.dashboard.paired_scales import with_same_scales
from src.dashboard.reading import Reading, read
from src.dashboard.shrunken_figures import shrunken
from src.dashboard.token_text import STYLE, colour_range_of, scale_html, token_text
from src.dashboard.watched_runs import PageFile, WatchedRun
from src.visualizations.written_pages import WrittenPage, load_page

AS_TEXT, BESIDE, FULL = "As text", "Side by side", "Full width"
SHRUNKEN = 0.66  # how much smaller two figures beside each other are drawn: 820 pixels in half of 1,100
BESIDE_FROM = 1000  # pixels; in a narrower window they are drawn one below the other
STACKED = f"@media (max-width: {BESIDE_FROM}px) {{ .st-key-beside .stColumn {{ min-width: 100%; }} }}"

Row = Sequence[PageFile | None]  # what stands beside each other; None where a moment lacks the other's picture
Pages = Mapping[PageFile, Reading[WrittenPage]]


def show_pictures(run: WatchedRun, kind: str, number: int | None, other: int | None) -> None:
    """One kind of picture at one moment, its samples side by side, or at two moments with the same scales."""
    if number is None:
        st.info("No pictures yet: they are drawn at the end of an epoch.")
        return
    files = run.of(kind, number)
    if not files:
        st.info(f"{run.unit.capitalize()} {number} has no picture of this kind. It is drawn by")
        st.code(run.command(kind), language="bash")
        return
    is_pair = other is not None and other != number
    layout = ask_layout(kind, len(files), is_pair)
    rows: Sequence[Row]
    if other is not None and is_pair:
        partners = {one.sample: one for one in run.of(kind, other)}
        rows = [[file, partners.get(file.sample)] for file in files]
        lacking = f"{run.unit.capitalize()} {other} has no such picture."
    else:  # row by row, so that a keyboard and a narrow window keep the order
        wide = 1 if layout == FULL else 2
        rows, lacking = [files[first : first + wide] for first in range(0, len(files), wide)], ""
    command = run.command(kind)
    pages = {file: read(load_page, file.path, made_by=command) for row in rows for file in row if file is not None}
    if layout == AS_TEXT:
        show_texts(rows, pages, run.unit, lacking)
    else:
        show_figures(rows, pages, run.unit, lacking, layout, is_pair)


def ask_layout(kind: str, count: int, is_pair: bool) -> str:
    """How the pictures of a kind are shown; tokens as text first, which is there at once."""
    options = [AS_TEXT] if kind == "tokens" else []
    options += [BESIDE] if is_pair else [BESIDE, FULL] if count > 1 else [FULL]
    if len(options) == 1:
        return options[0]
    key = f"layout_{kind}_{'pair' if is_pair else 'alone'}"
    chosen = st.segmented_control(
        "Layout", options, default=options[0], required=True, key=key, label_visibility="collapsed"
    )
    return chosen or options[0]


def show_texts(rows: Sequence[Row], pages: Pages, unit: str, lacking: str) -> None:
    """Token pages as coloured text, all of them in the same colours, whose legend stands above."""
    figures = [page.value.figure for page in pages.values() if page.value is not None]
    colour_range = colour_range_of(figures)
    legend = next(filter(None, (scale_html(figure, colour_range) for figure in figures)), "")
    st.html(f"<style>{STYLE}</style>{legend}")
    with beside():
        for row in rows:
            for column, file in zip(st.columns(2), row, strict=False):
                with column:
                    show_page(file, pages, unit, lacking, colour_range=colour_range)


def show_figures(rows: Sequence[Row], pages: Pages, unit: str, lacking: str, layout: str, is_pair: bool) -> None:
    """The pages' figures; those of two moments in one row with the same scales."""
    factor = 1.0 if layout == FULL else SHRUNKEN
    with beside():
        for row in rows:
            readings = {file: pages[file].value for file in row if file is not None}
            drawn: dict[PageFile, Spec] = {file: page.figure for file, page in readings.items() if page is not None}
            if is_pair and len(drawn) == 2:
                drawn = dict(zip(drawn, with_same_scales([*drawn.values()]), strict=True))
            for column, file in zip(st.columns(1 if layout == FULL else 2), row, strict=False):
                with column:
                    show_page(file, pages, unit, lacking, None if file is None else drawn.get(file), factor)


def beside() -> DeltaGenerator:
    """A container whose columns stand one below the other in a narrow window."""
    st.html(f"<style>{STACKED}</style>")
    return st.container(key="beside")


def show_page(
    file: PageFile | None,
    pages: Pages,
    unit: str,
    lacking: str,
    figure: Spec | None = None,
    factor: float = 1.0,
    colour_range: float | None = None,
) -> None:
    """The title of a written page, what to see in it under the question mark, and its text or figure.

    As text where there is a `colour_range`, unless there are no attributions to be shown so; `lacking` is said where
    there is no file.
    """
    if file is None:
        st.info(lacking)
        return
    page = pages[file]
    if not say(page) or page.value is None:
        return
    name = " · ".join(filter(None, [f"{unit} {file.number}", file.caption]))
    st.markdown(f"**{plain_text(name)}**", help=plain_text(page.value.sentence) or None)
    text = None if colour_range is None else token_text(page.value, colour_range)
    title = page.value.title or name
    if text is not None:
        st.html(text)
    elif factor != 1:
        show_figure(shrunken(figure or page.value.figure, factor), title, f"figure_{file.name}", COLUMN_WIDTH)
    else:
        show_figure(figure or page.value.figure, title, f"figure_{file.name}")
