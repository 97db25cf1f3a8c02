"""Putting figures, readings and texts of models on a page: all through here, so that all are alike and safe."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import streamlit as st

from src.dashboard.drawn_once import Spec, drawn_once
from src.dashboard.reading import Reading
from src.visualizations.dark_theme import darkened
from src.visualizations.palette import PLOTLY_CONFIG

# pixels of a page and of one of two columns on it, in windows that are wide enough; see PAGE_STYLE
PAGE_WIDTH, COLUMN_WIDTH = 1120, 552
PAGE_STYLE = (  # less room above and in figures than streamlit's own: pictures come first
    f".stMainBlockContainer {{ padding-top: 4rem; max-width: calc({PAGE_WIDTH}px + 10rem); }}"
    " [data-testid=stMetricValue] { font-size: 1.5rem; }"
    " [data-testid=stMetricLabel] * { white-space: normal !important; }"
)


def show_figure(spec: Spec, alt: str, key: str, width: int = PAGE_WIDTH) -> None:
    """Draw plotly's JSON in the project's own template; `alt` is what a screen reader says of it."""
    st.plotly_chart(drawn_once(on_ground(spec), width), theme=None, key=key, alt=alt, config=PLOTLY_CONFIG)


def show_selectable(spec: Spec, alt: str, key: str) -> Sequence[Mapping[str, Any]]:
    """Draw it and give back the points that are selected with the mouse: click, box or lasso."""
    event: Any = st.plotly_chart(
        drawn_once(on_ground(spec), PAGE_WIDTH), theme=None, key=key, alt=alt, config=PLOTLY_CONFIG, on_select="rerun"
    )
    return event["selection"]["points"]


def on_ground(spec: Spec) -> Spec:
    """The figure in the colours of the visitor's theme, light or dark."""
    return darkened(spec) if st.context.theme.type == "dark" else spec


def say(reading: Reading[Any]) -> bool:
    """Say why there is no value, if there is none; true if there is one."""
    if reading.problem is None:
        return True
    say_problem(reading.problem, "info" if reading.is_missing else "warning")
    return False


def say_problem(problem: str, kind: Literal["info", "warning", "error"] = "warning") -> None:
    """One line with file, reason and remedy. File names are not ours: nothing in it is read as markup."""
    show = {"info": st.info, "warning": st.warning, "error": st.error}[kind]
    show(plain_text(problem))


def plain_text(text: str) -> str:
    """Text that comes out of streamlit's markdown as it went in."""
    escaped = "".join(f"\\{letter}" if letter in r"\`*_{}[]()#+-.!|~$:<>&" else letter for letter in text)
    return escaped.replace("\n", "  \n")


def show_text(title: str, text: object) -> None:
    """What a model, a judge or a prompt says, in full and as it stands."""
    st.caption(title)
    with st.container(border=True):
        is_missing = text is None or (isinstance(text, float) and text != text)
        st.text("(nothing)" if is_missing or text == "" else str(text))
