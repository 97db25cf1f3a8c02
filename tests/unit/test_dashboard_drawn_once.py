"""What the dashboard hands to plotly looks as the page did, and holds nothing that makes plotly draw it twice."""

from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from src.dashboard.drawn_once import drawn_once, filled
from src.visualizations.figure_page import figure_json
from src.visualizations.palette import GRID_COLOUR, TEMPLATE, TEXT_COLOUR


@pytest.fixture
def figure() -> dict[str, Any]:
    values = np.array([1.5, np.nan, -2.0], dtype=np.float32)
    made = go.Figure(go.Scatter(x=values, y=values, marker_color="red"), {"template": TEMPLATE, "height": 320.6})
    made.update_layout(xaxis_title_text="x", yaxis_gridcolor="black", legend_font_size=9)
    made.add_annotation(text="note", font_size=20)
    return figure_json(made)


def test_what_the_template_says_is_written_out_and_gives_way_to_the_figure(figure: dict[str, Any]) -> None:
    layout = drawn_once(figure, 552).to_dict()["layout"]
    assert "template" not in layout
    assert layout["font"]["color"] == TEXT_COLOUR
    assert layout["xaxis"]["gridcolor"] == GRID_COLOUR and layout["xaxis"]["title"]["text"] == "x"
    assert layout["xaxis"]["title"]["standoff"] == 10 and layout["yaxis"]["gridcolor"] == "black"
    assert layout["legend"]["font"]["size"] == 9 and layout["legend"]["itemsizing"] == "trace"
    assert layout["annotations"][0]["font"]["size"] == 20 and layout["annotations"][0]["showarrow"] is False


def test_no_grid_appears_along_bars() -> None:
    bars = go.Figure([go.Bar(x=[1], y=[2]), go.Bar(y=[1], x=[2], orientation="h", xaxis="x2", yaxis="y2")])
    bars.update_layout(template=TEMPLATE, xaxis2={}, yaxis2={})
    layout = drawn_once(figure_json(bars), 552).to_dict()["layout"]
    assert (layout["xaxis"]["showgrid"], layout["yaxis2"]["showgrid"]) == (False, False)
    assert "showgrid" not in layout["yaxis"] and "showgrid" not in layout["xaxis2"]


def test_arrays_are_lists_of_the_same_values_and_sizes_whole_pixels(figure: dict[str, Any]) -> None:
    assert "bdata" in figure["data"][0]["x"]
    drawn = drawn_once(figure, 552).to_dict()
    assert list(drawn["data"][0]["x"]) == [1.5, None, -2.0]
    assert (drawn["layout"]["width"], drawn["layout"]["height"]) == (552, 321)


def test_the_mark_follows_the_data(figure: dict[str, Any]) -> None:
    marks = [drawn_once(figure, 552).layout.datarevision for _ in range(2)]
    figure["data"][0]["name"] = "another"
    assert marks[0] == marks[1] != drawn_once(figure, 552).layout.datarevision


def test_defaults_fill_at_any_depth() -> None:
    assert filled({"a": {"b": 1}, "c": [1]}, {"a": {"b": 2, "d": 3}, "c": [2, 3], "e": 4}) == {
        "a": {"b": 1, "d": 3}, "c": [1], "e": 4,
    }  # fmt: skip
