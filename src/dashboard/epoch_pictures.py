"""The pictures of one kind at one epoch, sample beside sample, or at two epochs with the same scales."""

from collections.abc import Sequence

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from src.dashboard.charts import COLUMN_WIDTH, Spec, plain_text, say, show_figure
from src.dashboard.paired_scales import with_same_scales
from src.dashboard.reading import Reading, read
from src.dashboard.shrunken_figures import shrunken
from src.dashboard.watched_runs import ADVANCED, TRAINING, PageFile, WatchedRun
from src.visualizations.written_pages import WrittenPage, load_page

LAYOUTS = ("Side by side", "Full width")
BESIDE = 0.66  # how much smaller two figures beside each other are drawn: 820 pixels in half of 1,100
BESIDE_FROM = 1000  # pixels; in a narrower window they are drawn one below the other
STACKED = f"@media (max-width: {BESIDE_FROM}px) {{ .st-key-beside .stColumn {{ min-width: 100%; }} }}"


def show_pictures(run: WatchedRun, kind: str, number: int | None, other: int | None) -> None:
    """One kind of picture at one moment, its samples side by side, or at two moments with the same scales."""
    if number is None:
        st.info("No pictures yet: they are drawn at the end of an epoch.")
        return
    files = run.of(kind, number)
    if not files:
        option = " --run_advanced_mi" if kind in ADVANCED else ""
        st.info(f"{run.unit.capitalize()} {number} has no picture of this kind. It is drawn by")
        st.code(f"{TRAINING}{option}", language="bash")
        return
    if other is not None and other != number:
        show_pairs(run, kind, files, other)
        return
    is_beside = (
        len(files) > 1
        and st.segmented_control(
            "Samples", LAYOUTS, default=LAYOUTS[0], required=True, key=f"layout_{kind}", label_visibility="collapsed"
        )
        == LAYOUTS[0]
    )
    wide = 2 if is_beside else 1
    with beside():
        for first in range(0, len(files), wide):  # row by row, so that a keyboard and a narrow window keep the order
            for column, file in zip(st.columns(wide), files[first : first + wide], strict=False):
                with column:
                    show_page(file, run.unit, page_of(file), factor=BESIDE if is_beside else 1.0)


def beside() -> DeltaGenerator:
    """A container whose columns stand one below the other in a narrow window."""
    st.html(f"<style>{STACKED}</style>")
    return st.container(key="beside")


def show_pairs(run: WatchedRun, kind: str, files: Sequence[PageFile], other: int) -> None:
    """Each picture at the two moments, left and right."""
    partners = {one.sample: one for one in run.of(kind, other)}
    rows = beside()
    for file in files:
        partner = partners.get(file.sample)
        pair = [file] if partner is None else [file, partner]
        pages = [page_of(one) for one in pair]
        figures = [page.value.figure for page in pages if page.value is not None]
        joined: list[Spec] = with_same_scales(figures) if len(figures) == 2 else figures
        remaining = iter(joined)
        columns = rows.columns(2)
        for column, one, page in zip(columns, pair, pages, strict=False):
            with column:
                figure = next(remaining) if page.value is not None else None
                show_page(one, run.unit, page, figure, BESIDE)
        if partner is None:
            columns[1].info(f"{run.unit.capitalize()} {other} has no such picture.")


def page_of(file: PageFile) -> Reading[WrittenPage]:
    return read(load_page, file.path, made_by=TRAINING)


def show_page(
    file: PageFile, unit: str, page: Reading[WrittenPage], figure: Spec | None = None, factor: float = 1.0
) -> None:
    """The title and the figure of a written page; what to see in it under the question mark."""
    if not say(page) or page.value is None:
        return
    name = " · ".join(filter(None, [f"{unit} {file.number}", file.caption]))
    st.markdown(f"**{plain_text(name)}**", help=plain_text(page.value.sentence) or None)
    drawn = figure or page.value.figure
    title = page.value.title or name
    if factor != 1:
        show_figure(shrunken(drawn, factor), title, f"figure_{file.name}", COLUMN_WIDTH)
    else:
        show_figure(drawn, title, f"figure_{file.name}")
