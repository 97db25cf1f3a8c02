"""Reading for the dashboard: a value or the reason why not, once for each state of a file."""

import json
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from src.dashboard.paired_scales import numbers, with_same_scales
from src.dashboard.reading import Readings, read
from src.dashboard.shrunken_figures import shrunken
from src.utils.artifacts import load_frame, load_json, save_json
from src.utils.errors import UserError
from src.utils.manifests import Provenance
from src.visualizations.figure_page import FigurePage, page_html
from src.visualizations.written_pages import load_page
from tests.study_frame import ATTACK

COMMAND = "uv run python src/scripts/04_judge_responses.py"


def test_what_is_missing_names_the_command_that_makes_it(tmp_path: Path) -> None:
    reading = read(load_json, tmp_path / "em_rates.json", made_by=COMMAND)
    assert reading.value is None
    assert reading.is_missing
    assert reading.problem == f"{tmp_path}/em_rates.json: not there yet; made by: {COMMAND}"


def test_half_written_corrupt_and_foreign_files_are_named_with_the_reason(tmp_path: Path) -> None:
    whole = tmp_path / "whole.json"
    save_json({"rates": [1, 2, 3]}, whole, Provenance("step", "organism"))
    whole.write_bytes(whole.read_bytes()[:10])
    corrupt = tmp_path / "corrupt.json"
    corrupt.write_text('{"rates": [')
    foreign = tmp_path / "frame.pkl"
    foreign.write_bytes(pickle.dumps(print))
    folder = tmp_path / "folder.json"
    folder.mkdir()
    said = {}
    for path, load in ((whole, load_json), (corrupt, load_json), (foreign, load_frame), (folder, load_json)):
        reading = read(load, path, made_by=COMMAND)
        assert reading.value is None
        assert not reading.is_missing
        said[path] = str(reading.problem)
        assert str(path) in said[path]
        assert "\n" not in said[path]
    assert "half-written" in said[whole]
    assert "no JSON" in said[corrupt]
    assert "builtins" in said[foreign]


def draw_lines(path: Path) -> list[str]:
    """As a figure function would: fails on another program's JSON."""
    return [line["reading"] for line in load_json(path)["lines"]]


def test_json_of_another_program_is_a_problem_and_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "decomposition_verdict.json"
    path.write_text('{"lines": [{"other": 1}]}')
    reading = read(draw_lines, path, made_by=COMMAND)
    assert reading.value is None
    assert "KeyError: 'reading'" in str(reading.problem)
    assert COMMAND in str(reading.problem)


def test_a_file_is_read_once_for_each_state_it_is_in(tmp_path: Path) -> None:
    path, seen, readings = tmp_path / "a.json", [], Readings()

    def load(file: Path) -> Any:
        seen.append(file.read_text())
        return json.loads(seen[-1])

    path.write_text("[1]")
    assert [readings.read(load, path, made_by="").value for _ in range(3)] == [[1]] * 3
    assert seen == ["[1]"]
    path.write_text("[1, ")
    assert readings.read(load, path, made_by="").value is None
    assert readings.read(load, path, made_by="").value is None
    path.write_text("[1, 2]")
    assert readings.read(load, path, made_by="").value == [1, 2]
    assert seen == ["[1]", "[1, ", "[1, 2]"]
    path.unlink()
    assert readings.read(load, path, made_by="").is_missing
    assert len(readings.known) == 1  # no older state is kept beside it


def test_what_was_not_read_for_longest_is_dropped(tmp_path: Path) -> None:
    readings, seen = Readings(kept=2), []
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text(path.name)

    def load(path: Path) -> str:
        seen.append(path.name)
        return path.read_text()

    for number in (0, 1, 0, 2, 0, 1):
        assert readings.read(load, paths[number], made_by="").value == "abc"[number]
    assert seen == ["a", "b", "c", "b"]


def page(figure: go.Figure, title: str = "Title <b>&amp;") -> FigurePage:
    return FigurePage(
        "epoch_1_circuits.html", title, "What to see <i>", figure, "python x.py --data 'a <b'", {"a": "0" * 64}
    )


def test_a_written_page_is_taken_apart_to_what_it_was_made_of(tmp_path: Path) -> None:
    values = np.arange(40, dtype=np.float32)
    figure = go.Figure(go.Scatter(x=values, y=list(range(40)), hovertext=[ATTACK] * 40))
    figure.update_layout(title_text="</script>); Plotly.newPlot(")
    path = tmp_path / "page.html"
    path.write_text(page_html(page(figure)), encoding="utf-8")
    found = load_page(path)
    assert (found.title, found.sentence) == ("Title <b>&amp;", "What to see <i>")
    assert found.command == "python x.py --data 'a <b'"
    trace = found.figure["data"][0]
    x = numbers(trace["x"])
    assert x is not None and np.array_equal(x, values)
    assert trace["y"] == list(range(40))
    assert "<script" not in json.dumps(found.figure)
    assert found.figure["layout"]["title"]["text"] == "&lt;/script>); Plotly.newPlot("


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.98])
def test_a_page_cut_at_any_place_is_refused_in_one_line(tmp_path: Path, kept: float) -> None:
    text = page_html(page(go.Figure(go.Scatter(x=list(range(4000)), y=list(range(4000))))))
    start = text.index("Plotly.newPlot")
    end = start + int(kept * (text.index('"responsive"') - start - 20))  # inside the data or the layout
    path = tmp_path / "cut.html"
    path.write_text(text[:end], encoding="utf-8")
    with pytest.raises(UserError, match=r"cut\.html: (half-written|no page)"):
        load_page(path)


def test_a_foreign_page_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "epoch_1_circuits.html"
    path.write_text("<html><script>alert(1)</script></html>")
    with pytest.raises(UserError, match="no page of this project"):
        load_page(path)
    path.write_text('Plotly.newPlot("a", {"x": 1}, {}, {})')
    with pytest.raises(UserError, match="no plotly figure"):
        load_page(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        load_page(path)


def spec(figure: go.Figure) -> dict[str, Any]:
    return json.loads(figure.to_json())


def test_two_figures_get_the_union_of_their_axes_and_colours() -> None:
    left = go.Figure(
        [
            go.Scatter(x=np.array([0.0, 10.0]), y=np.array([1.0, 2.0])),
            go.Heatmap(z=np.array([[1.0, 5.0]]), xaxis="x2", yaxis="y2"),
        ]
    )
    right = go.Figure(
        [
            go.Scatter(x=np.array([5.0, 20.0]), y=np.array([-3.0, np.nan])),
            go.Heatmap(z=np.array([[-2.0, 3.0]]), xaxis="x2", yaxis="y2"),
        ]
    )
    one, two = with_same_scales([spec(left), spec(right)])
    for name in ("xaxis", "yaxis"):
        assert one["layout"][name]["range"] == two["layout"][name]["range"]
    assert one["layout"]["xaxis"]["range"] == pytest.approx([-0.4, 20.6])  # 4% of each own span: 10 and 15
    low, high = one["layout"]["yaxis"]["range"]
    assert low <= -3
    assert high >= 2
    for figure in (one, two):
        assert (figure["data"][1]["zmin"], figure["data"][1]["zmax"]) == (-2.0, 5.0)
    assert "range" not in spec(left)["layout"].get("xaxis", {})  # what was given is not changed


def test_scales_that_agree_or_cannot_be_joined_stay() -> None:
    names = go.Figure(go.Bar(x=["a", "b"], y=[1.0, 4.0]))
    names.update_yaxes(range=[0, 10])
    names.update_xaxes(type="category")
    other = go.Figure(go.Bar(x=["a", "c"], y=[9.0, 4.0]))
    other.update_yaxes(range=[0, 10])
    one, two = with_same_scales([spec(names), spec(other)])
    assert "range" not in one["layout"]["xaxis"]
    assert one["layout"]["yaxis"]["range"] == two["layout"]["yaxis"]["range"] == [0.0, 10.0]
    down = go.Figure(go.Scatter(x=[1, 2], y=[1, 2])).update_yaxes(autorange="reversed")
    top, below = with_same_scales([spec(down), spec(down)])
    assert top["layout"]["yaxis"]["range"][0] > top["layout"]["yaxis"]["range"][1]
    assert below["layout"]["yaxis"] == top["layout"]["yaxis"]


def test_bars_keep_their_foot_on_the_axis() -> None:
    high = spec(go.Figure(go.Bar(x=[3, 4], y=[50.0, 60.0])))
    layout = with_same_scales([high, high])[0]["layout"]
    assert layout["yaxis"]["range"] == pytest.approx([0, 62.4])
    assert layout["xaxis"]["range"] == pytest.approx([2.42, 4.58]), "no bar is cut, and 0 is far"


def test_bars_on_bars_are_seen_to_their_ends() -> None:
    places = np.array([0, 1])
    stacked = [go.Bar(x=places, y=np.array([30.0, -5.0])), go.Bar(x=places, y=np.array([40.0, -2.0]))]
    figure = go.Figure([*stacked, go.Bar(x=["a"], y=[500.0], xaxis="x2", yaxis="y2")], {"barmode": "stack"})
    low, high = with_same_scales([spec(figure), spec(figure)])[0]["layout"]["yaxis"]["range"]
    assert (low, high) == pytest.approx((-7 - 0.04 * 77, 70 + 0.04 * 77))
    lying = go.Figure([go.Bar(y=["a"], x=[value], orientation="h") for value in (2.0, 3.0)], {"barmode": "stack"})
    assert with_same_scales([spec(lying), spec(lying)])[0]["layout"]["xaxis"]["range"] == pytest.approx([0, 5.2])


def test_shrinking_changes_pixels_and_no_value() -> None:
    figure = go.Figure(go.Scatter(x=[1, 2], y=[3, 400], marker={"size": [10, 20]}, text=["size", "height"]))
    figure.update_layout(
        height=500, margin={"l": 100, "t": 50}, font_size=10, hoverlabel_font_size=12, yaxis_range=[0, 400]
    )
    before = spec(figure)
    after = shrunken(before, 0.5)
    assert after["layout"]["height"] == 250
    assert after["layout"]["margin"] == {"l": 50, "t": 25}
    assert after["layout"]["font"]["size"] == 7.0  # the smallest that can be read
    assert after["layout"]["hoverlabel"]["font"]["size"] == 12
    assert after["layout"]["yaxis"]["range"] == [0, 400]
    assert after["data"][0]["y"] == [3, 400]
    assert after["data"][0]["text"] == ["size", "height"]
    assert after["data"][0]["marker"]["size"] == [7.0, 10.0]
    assert before == spec(figure)


def test_what_is_read_ahead_is_read_once(tmp_path: Path) -> None:
    readings, path = Readings(), tmp_path / "slow.txt"
    path.write_text("there")
    counted: list[Path] = []

    def load(path: Path) -> str:
        counted.append(path)
        time.sleep(0.2)
        return path.read_text()

    readings.read_ahead(load, path, made_by=COMMAND)
    readings.read_ahead(load, path, made_by=COMMAND)
    assert readings.read(load, path, made_by=COMMAND).value == "there"
    readings.read_ahead(load, path, made_by=COMMAND)
    time.sleep(0.3)
    assert counted == [path]
