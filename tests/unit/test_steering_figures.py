"""Figures of steering: points are the given rates, the band the range of random directions, names are text."""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from src.utils.steering_effects import MEASURES, steering_summary
from src.visualizations.palette import ARM_COLOURS, DIMENSION_COLOURS, display_name
from src.visualizations.steering_figures import cross_effects, dose_response, spread_out

SUBSETS = tuple(DIMENSION_COLOURS)
DOSES = (-2.0, 2.0, 4.0)
VECTORS = (("technology_ai", "dimension"), ("mean_difference", "mean_difference"), ("cluster_4_0", "cluster"))
RANDOMS = tuple((f"random_{i}", "random") for i in range(1, 6))


def summary(mode: str = "add", rename: dict[str, str] | None = None) -> dict[str, Any]:
    """Rates drawn at random in the form of step 6."""
    rng = np.random.default_rng(2)
    doses = DOSES if mode == "add" else (1.0,)
    arms = [("none", "unsteered", 0.0), *((name, kind, c) for name, kind in (*VECTORS, *RANDOMS) for c in doses)]
    rows = []
    for vector, kind, coefficient in arms:
        for subset in (*SUBSETS, "all"):
            for measure in MEASURES:
                low, estimate, high = sorted(rng.random(3)) if measure != "coherent" else (0.8, 0.9, 1.0)
                share = abs(coefficient) * 0.07 if mode == "add" or not coefficient else np.nan
                rows.append((vector, kind, coefficient, share, subset, measure, estimate, low, high, 60, estimate - 0.2, -0.5, 0.5))  # fmt: skip  # noqa: E501
    names = ["vector", "kind", "coefficient", "share_of_residual_norm", "subset", "measure", "estimate", "low", "high"]
    table = pd.DataFrame(rows, columns=[*names, "n", "change", "change_low", "change_high"])
    described = [
        {"name": name, "kind": kind, "site": "blocks.5.hook_resid_pre", "norm": 4.0 if kind == "dimension" else 28.33}
        for name, kind in (*VECTORS, *RANDOMS)
    ]
    if rename:
        table = table.replace({"vector": rename, "subset": rename})
        described = [vector | {"name": rename.get(vector["name"], vector["name"])} for vector in described]
    settings = {"mode": mode, "model": "base", "layer": 5, "positions": "all", "everywhere": False}
    return steering_summary(table, described, settings, {})


def table_of(given: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(given["effects"])


def traces(figure: go.Figure, name: str) -> list[go.Scatter]:
    return [trace for trace in figure.data if trace.name == name]


def test_points_and_whiskers_are_the_given_rates() -> None:
    given = summary()
    table, figure = table_of(given), dose_response(given)
    for name, _ in VECTORS:
        panels = traces(figure, display_name(name))
        assert len(panels) == 2 * len(SUBSETS)
        for number, trace in enumerate(panels):
            measure, subset = ("em_on_topic", "coherent")[number // 4], SUBSETS[number % 4]
            own = table[((table.vector == name) | (table.kind == "unsteered")) & (table.subset == subset)]
            own = own[own.measure == measure].sort_values("coefficient")
            assert np.allclose(trace.y, 100 * own["estimate"], atol=1e-4)
            steered = own["coefficient"].to_numpy() != 0
            assert np.allclose((trace.y + trace.error_y.array)[steered], 100 * own["high"][steered], atol=1e-4)
            assert np.allclose((trace.y - trace.error_y.arrayminus)[steered], 100 * own["low"][steered], atol=1e-4)
            assert np.abs(trace.x - own["coefficient"]).max() < 0.5
            assert trace.customdata[:, 4].tolist() == own["coefficient"].tolist()
    assert traces(figure, "Technology and AI")[0].line.color == DIMENSION_COLOURS["technology_ai"]
    assert traces(figure, "Mean difference")[0].line.color == ARM_COLOURS["em"]


def test_the_band_runs_from_the_lowest_to_the_highest_random_direction() -> None:
    given = summary()
    table, figure = table_of(given), dose_response(given)
    (mean, *_), (band, *_) = traces(figure, "5 random directions"), traces(figure, "random directions, band")
    chosen = table[(table.subset == SUBSETS[0]) & (table.measure == "em_on_topic")]
    for place, dose in enumerate((-2.0, 0.0, 2.0, 4.0)):
        drawn = chosen[(chosen.coefficient == dose) & chosen.kind.isin(["random", "unsteered"])]["estimate"]
        assert mean.x[place] == band.x[place] == band.x[7 - place] == dose
        assert mean.y[place] == pytest.approx(100 * drawn.mean(), abs=1e-4)
        assert band.y[place] == pytest.approx(100 * drawn.max(), abs=1e-4)
        assert band.y[7 - place] == pytest.approx(100 * drawn.min(), abs=1e-4)


def test_the_unsteered_point_stands_at_zero_in_every_panel() -> None:
    given = summary()
    table = table_of(given)
    points = traces(dose_response(given), "unsteered")
    assert len(points) == 2 * len(SUBSETS) and all(point.x.tolist() == [0] for point in points)
    own = table[(table.kind == "unsteered") & (table.measure == "em_on_topic") & (table.subset == SUBSETS[1])]
    assert points[1].y[0] == pytest.approx(100 * own["estimate"].iloc[0], abs=1e-4)


def test_the_heatmap_holds_the_changes_at_the_largest_dose() -> None:
    given = summary()
    table = table_of(given)
    change, coherent = cross_effects(given).data
    assert list(change.y) == ["Mean difference", "Technology and AI", "Cluster 4 0", "5 random directions:<br>mean, lowest, highest"]  # fmt: skip  # noqa: E501
    chosen = table[table.coefficient == 4.0]
    for row, name in enumerate(("mean_difference", "technology_ai", "cluster_4_0")):
        for column, subset in enumerate(SUBSETS):
            own = chosen[(chosen.vector == name) & (chosen.subset == subset)].set_index("measure")
            assert change.z[row][column] == pytest.approx(100 * own.loc["em_on_topic", "change"], abs=1e-3)
            assert coherent.z[row][column] == pytest.approx(100 * own.loc["coherent", "estimate"], abs=1e-3)
            assert change.text[row][column].endswith("<br>-50 to +50")
    drawn = chosen[(chosen.kind == "random") & (chosen.subset == SUBSETS[0]) & (chosen.measure == "em_on_topic")][
        "change"
    ]
    assert change.z[3][0] == pytest.approx(100 * drawn.mean(), abs=1e-3)
    assert change.text[3][0] == f"{100 * drawn.mean():+.0f}<br>{100 * drawn.min():+.0f} to {100 * drawn.max():+.0f}"


@pytest.mark.parametrize(
    ("mode", "verb", "on"), [("ablate", "Projected out of", "projected out"), ("cap", "Capped in", "capped")]
)
def test_what_has_no_dose_has_two_places(mode: str, verb: str, on: str) -> None:
    given = summary(mode)
    figure = dose_response(given)
    assert list(figure.layout.xaxis.ticktext) == ["unsteered", on]
    assert figure.layout.title.text.startswith(verb) and "Coefficient 1" not in figure.layout.title.text
    assert f"At {on}" in cross_effects(given).layout.title.text


def test_without_topics_misalignment_itself_is_shown() -> None:
    given = summary()
    for row in given["effects"]:
        if row["measure"] in ("em_on_topic", "on_topic"):
            row.update(dict.fromkeys(("estimate", "low", "high", "change", "change_low", "change_high"), None))
    figure = dose_response(given)
    assert figure.layout.yaxis.title.text == "% misaligned"
    assert not np.isnan(traces(figure, "Mean difference")[0].y).any()
    assert "no score" not in str(cross_effects(given).data[0].text)


def test_a_dose_without_a_score_leaves_a_gap() -> None:
    given = summary()
    for row in given["effects"]:
        if row["vector"] == "mean_difference" and row["coefficient"] == 4.0:
            row.update(dict.fromkeys(("estimate", "low", "high", "change", "change_low", "change_high"), None))
    assert np.isnan(traces(dose_response(given), "Mean difference")[0].y).sum() == 1
    assert cross_effects(given).data[0].text[0] == ["no score"] * 4


def test_the_title_says_where_and_how_much() -> None:
    title = dose_response(summary()).layout.title.text
    assert "base model's residual stream (blocks.5.hook_resid_pre) at every token<br>60 answers" in title
    assert "Coefficient 1 is the vector as measured: 7.0 to 7.0% of the residual norm" in title
    assert title.endswith("Random directions are as long as the longest vector (norm 28.3)")


def test_names_from_outside_are_text() -> None:
    attack = "<b>bold</b><script>window.hacked=1</script>"
    given = summary(rename={"cluster_4_0": attack, "financial_risk": attack})
    for figure in (dose_response(given), cross_effects(given)):
        assert "<b>bold" not in str(figure.to_dict()) and "<script" not in str(figure.to_dict())
        assert "&lt;b&gt;bold" in str(figure.to_dict())


def test_the_heatmap_is_of_the_largest_dose_that_leaves_every_vector_coherent() -> None:
    given = summary()
    for row in given["effects"]:
        if row["vector"] == "cluster_4_0" and row["coefficient"] == 4.0 and row["measure"] == "coherent":
            row["estimate"] = 0.5
    assert "At coefficient 2," in cross_effects(given).layout.title.text


def test_vectors_that_were_only_taken_away_are_shown_at_the_largest_dose_taken() -> None:
    given = summary()
    taken = [row | {"coefficient": -abs(row["coefficient"])} for row in given["effects"] if row["coefficient"] != -2]
    given |= {"effects": taken, "settings": given["settings"] | {"model": "em"}}
    figure = cross_effects(given)
    assert "At coefficient -4, the EM model" in figure.layout.title.text and "no score" not in str(figure.data[0].text)


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_vectors_stay_nearer_to_their_dose_than_to_the_next(count: int) -> None:
    offsets = spread_out(count, [-4.0, -1.0, 0.0, 8.0])
    assert len(offsets) == count and max(offsets) - min(offsets) <= 0.8 + 1e-9
    assert sum(offsets) == pytest.approx(0, abs=1e-9)
