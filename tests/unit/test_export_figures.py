"""Exports: where files go, what a page alone holds, and that a dark ground hides nothing."""

import json
from pathlib import Path

import pytest
from PIL import ImageColor
from plotly.offline import get_plotlyjs

from src.utils.errors import UserError
from src.visualizations.cluster_figures import cluster_map, cluster_profile
from src.visualizations.dark_theme import GROUND, LEAST_CONTRAST, LEAST_OF_TEXT, contrast, darkened
from src.visualizations.export_figures import main, pages_in, targets_of
from src.visualizations.figure_page import FigurePage, figure_json, page_files, page_html, standalone_html
from src.visualizations.palette import (
    ARM_COLOURS,
    DIMENSION_COLOURS,
    EM_SCALE,
    FAINT_COLOUR,
    LABEL_COLOURS,
    MISSING_COLOUR,
    NEUTRAL_COLOUR,
    TEXT_COLOUR,
)
from src.visualizations.score_figures import em_rates
from src.visualizations.written_pages import EXPORTED, load_page
from tests.study_frame import rates_frame, whole_study


def rates_page(name: str = "em_rates.html") -> FigurePage:
    return FigurePage(name, "EM rates", "What to see.", em_rates(rates_frame()), "pytest")


def written(folder: Path, *names: str) -> list[Path]:
    for path, write in page_files([rates_page(name) for name in names], folder).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    return [folder / name for name in names]


def test_a_standalone_page_holds_plotly_and_the_same_figure_and_leads_nowhere(tmp_path: Path) -> None:
    (page,) = written(tmp_path, "em_rates.html")
    main([str(page), "--format", "html", "--output_dir", str(tmp_path / "shared")])
    alone = tmp_path / "shared" / "em_rates.html"
    text = alone.read_text(encoding="utf-8")
    around = text.replace(get_plotlyjs(), "")
    assert len(around) < 30_000 and 'src="' not in around and "index.html" not in around
    assert load_page(alone) == load_page(page)
    assert standalone_html(text) == text
    assert len(page.read_bytes()) < 30_000


def test_a_folder_stands_for_its_pages_without_the_index(tmp_path: Path) -> None:
    pages = written(tmp_path, "b.html", "a.html")
    assert pages_in([tmp_path, pages[0]]) == sorted(pages)
    assert targets_of(sorted(pages), None, "svg") == [tmp_path / EXPORTED / "a.svg", tmp_path / EXPORTED / "b.svg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.html"], "nowhere.html: is not there"),
        (["a.html", "--format", "html", "--theme", "dark"], "--theme dark"),
        (["a.html", "--width", "0"], "above zero"),
    ],
)
def test_what_cannot_be_exported_is_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(arguments)


def test_no_page_is_written_over_and_no_other_page_is_taken(tmp_path: Path) -> None:
    (page,) = written(tmp_path, "a.html")
    before = page.read_bytes()
    with pytest.raises(UserError, match=r"holds a\.html itself"):
        main([str(page), "--format", "html", "--output-dir", str(tmp_path)])
    (other,) = written(tmp_path / "other", "a.html")
    with pytest.raises(UserError, match="more than one page"):
        main([str(page), str(other), "--format", "html", "--output-dir", str(tmp_path / "shared")])
    foreign = tmp_path / "foreign.html"
    foreign.write_text("<html><script>alert(1)</script></html>")
    with pytest.raises(UserError, match="no page of this project"):
        main([str(foreign), "--format", "html"])
    assert page.read_bytes() == before and not (tmp_path / "shared").exists()


def colours_in(value: object, name: str = "") -> list[str]:
    if isinstance(value, str):
        return [value] if name == "color" and value.startswith("#") else []
    if isinstance(value, list):
        return [colour for item in value for colour in colours_in(item, name)]
    if isinstance(value, dict):
        return [colour for key, item in value.items() for colour in colours_in(item, key)]
    return []


def test_on_a_dark_ground_every_mark_is_seen_and_values_stay() -> None:
    frame, clusterings = whole_study()
    for figure in (em_rates(rates_frame()), cluster_profile(frame, clusterings[7])):
        light = figure_json(figure)
        before = json.dumps(light)
        dark = darkened(light)
        assert json.dumps(light) == before
        assert dark["layout"]["paper_bgcolor"] == dark["layout"]["template"]["layout"]["paper_bgcolor"] == GROUND
        for one, other in zip(light["data"], dark["data"], strict=True):
            assert {name: one.get(name) for name in ("x", "y", "z")} == {
                name: other.get(name) for name in ("x", "y", "z")
            }
            assert all(contrast(colour, GROUND) >= LEAST_CONTRAST for colour in colours_in(other))
        assert contrast(dark["layout"]["template"]["layout"]["font"]["color"], GROUND) > 2 * LEAST_OF_TEXT


def test_dark_dimensions_and_arms_are_still_told_apart() -> None:
    marks = [{"marker": {"color": colour}} for colour in (*DIMENSION_COLOURS.values(), *ARM_COLOURS.values())]
    dark = darkened({"data": marks, "layout": {}})["data"]
    colours = [ImageColor.getrgb(trace["marker"]["color"]) for trace in dark]
    distances = [
        sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) ** 0.5
        for place, one in enumerate(colours)
        for other in colours[:place]
    ]
    assert min(distances) > 60


def test_what_is_faint_stays_behind_the_others_on_a_dark_ground() -> None:
    marks = [{"marker": {"color": [FAINT_COLOUR, *LABEL_COLOURS.values(), NEUTRAL_COLOUR, MISSING_COLOUR]}}]
    faint, *others = darkened({"data": marks, "layout": {}})["data"][0]["marker"]["color"]
    assert 1.5 < contrast(faint, GROUND) < LEAST_CONTRAST <= min(contrast(one, GROUND) for one in others)


def test_hollow_marks_are_hollow_on_a_dark_ground_and_full_ones_full() -> None:
    colours = ["white", TEXT_COLOUR, LABEL_COLOURS["unsafe"]]
    marks = [{"marker": {"color": colours}}, {"marker": {"color": "white", "line": {"color": "white"}}}]
    many, one = (trace["marker"] for trace in darkened({"data": marks, "layout": {}})["data"])
    assert many["color"][0] == one["color"] == GROUND and one["line"]["color"] == "white"
    assert contrast(many["color"][1], GROUND) > LEAST_OF_TEXT and many["color"][2] == LABEL_COLOURS["unsafe"]


def test_labels_in_boxes_and_colour_scales_stay_as_they_are_read() -> None:
    frame, clusterings = whole_study()
    light = figure_json(cluster_map(frame, clusterings[3]))
    dark = darkened(light)
    boxed = [annotation for annotation in light["layout"]["annotations"] if "bgcolor" in annotation]
    assert boxed and boxed == dark["layout"]["annotations"]
    scale = {"colorscale": [[0, EM_SCALE[0]], [1, EM_SCALE[-1]]]}
    assert darkened({"data": [{"marker": dict(scale)}], "layout": {}})["data"] == [{"marker": scale}]
    cells = {"type": "heatmap", "textfont": {"color": "#57606A"}, **scale}
    assert darkened({"data": [cells], "layout": {}})["data"] == [cells]


@pytest.mark.parametrize(("pair", "ratio"), [(("#000000", "#FFFFFF"), 21.0), (("#777777", "#FFFFFF"), 4.48)])
def test_contrast_is_that_of_wcag(pair: tuple[str, str], ratio: float) -> None:
    assert contrast(*pair) == pytest.approx(ratio, abs=0.005)


def test_a_page_is_the_same_with_and_without_plotly_but_for_the_script() -> None:
    text = page_html(rates_page())
    alone = standalone_html(text)
    assert alone.replace(get_plotlyjs(), "").count("<script") == text.count("<script")
    assert alone[alone.index('<div id="figure_em_rates"') :] == text[text.index('<div id="figure_em_rates"') :]
