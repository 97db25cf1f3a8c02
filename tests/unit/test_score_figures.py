"""Figures of scores: bars are the given shares, bins are counted by hand, missing is never a value."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from src.visualizations.palette import ARM_COLOURS, DIMENSION_COLOURS, display_name
from src.visualizations.score_figures import em_rates, em_score_distribution, training_curve
from tests.study_frame import FACETS, MISSING, SIZES, rates_frame, study_frame, training_log

MEASURES = ("em", "em_on_topic", "on_topic", "flip", "coherent")


def bars(figure: go.Figure, name: str) -> list[go.Bar]:
    return [trace for trace in figure.data if trace.type == "bar" and trace.name == name]


def test_bars_and_whiskers_are_the_given_shares() -> None:
    rates = rates_frame()
    figure = em_rates(rates)
    for arm in ARM_COLOURS:
        panels = bars(figure, display_name(arm))
        assert len(panels) == len(MEASURES)
        for measure, trace in zip(MEASURES, panels, strict=True):
            own = rates[(rates["arm"] == arm) & (rates["measure"] == measure)].set_index("subset")
            own = 100 * own.reindex(list(SIZES)[::-1])[["low", "estimate", "high"]]
            assert np.allclose(trace.x, own["estimate"], equal_nan=True)
            assert np.allclose(trace.x + trace.error_x.array, own["high"], atol=1e-4, equal_nan=True)
            assert np.allclose(trace.x - trace.error_x.arrayminus, own["low"], atol=1e-4, equal_nan=True)
            assert trace.marker.color == ARM_COLOURS[arm]
    assert list(bars(figure, "Base")[0].y)[-1] == "Political compass (230)"


def test_a_rate_that_is_missing_and_one_that_is_not_defined_are_told_apart() -> None:
    rates = rates_frame()
    chosen = (rates["arm"] == "base") & (rates["measure"] == "on_topic") & (rates["subset"] == "technology_ai")
    rates.loc[chosen, ["estimate", "low", "high"]] = np.nan
    figure = em_rates(rates)
    labels = [label for trace in figure.data if trace.type == "scatter" for label in trace.text]
    assert np.isnan(bars(figure, "Base")[MEASURES.index("on_topic")].x).sum() == 1
    assert np.isnan(bars(figure, "Base")[MEASURES.index("flip")].x).sum() == 1
    assert (labels.count("no score"), labels.count("n/a")) == (1, 2)


def test_score_bins_equal_a_count_by_hand() -> None:
    frame, _ = study_frame()
    figure = em_score_distribution(frame, 70)
    facets = [facet for dimension in SIZES for facet in FACETS[dimension]][::-1]
    for position, facet in enumerate(facets):
        scores = frame.loc[frame["facet"] == facet, "em_score"]
        for low in range(0, 100, 10):
            by_hand = sum(low < score <= low + 10 or (score == 0 and low == 0) for score in scores)
            trace = bars(figure, f"{low}-{low + 10}")[0]
            assert np.isclose(trace.x[position], 100 * by_hand / len(scores), atol=1e-4)
        missing = bars(figure, "no score")[0]
        assert np.isclose(missing.x[position], 100 * scores.isna().mean(), atol=1e-4)
    drawn = sum(np.asarray(trace.x, dtype=float) for trace in figure.data if trace.type == "bar")
    assert np.allclose(drawn, 100, atol=1e-3)
    assert len(MISSING) == frame["em_score"].isna().sum()


def test_the_border_of_the_em_rate_is_a_border_of_bins() -> None:
    frame = pd.DataFrame({"subset": "political_compass", "facet": "social_axis", "em_score": [70.0, 70.5, 0.0, 100.0]})
    figure = em_score_distribution(frame, 70)
    shares = {name: float(bars(figure, name)[0].x[0]) for name in ("0-10", "60-70", "70-80", "90-100")}
    assert shares == dict.fromkeys(shares, 25.0)


def test_the_title_names_the_threshold_of_the_study() -> None:
    frame, _ = study_frame()
    for threshold, shown in ((70.0, "EM above 70"), (62.5, "EM above 62.5")):
        assert em_score_distribution(frame, threshold).layout.title.text.endswith(shown)


def test_facet_means_have_the_colour_of_their_dimension_and_ignore_missing_scores() -> None:
    frame, _ = study_frame()
    frame.loc[frame["facet"] == "purity", "em_score"] = np.nan
    means = em_score_distribution(frame, 70).data[-1]
    order = [(dimension, facet) for dimension in SIZES for facet in FACETS[dimension]][::-1]
    assert list(means.marker.color) == [DIMENSION_COLOURS[dimension] for dimension, _ in order]
    by_hand = [frame.loc[frame["facet"] == facet, "em_score"].mean() for _, facet in order]
    assert np.allclose(means.x, by_hand, equal_nan=True)
    assert np.isnan(means.x).sum() == 1


def test_the_training_curve_keeps_gaps_and_orders_steps() -> None:
    rows = training_log(40)
    loss, rate, norm = training_curve(rows[::-1]).data
    assert list(loss.x) == list(range(1, 41))
    assert np.allclose(loss.y, [row["loss"] for row in rows])
    assert np.allclose(rate.y, [row["learning_rate"] for row in rows])
    assert np.flatnonzero(np.isnan(norm.y)).tolist() == [39]


def test_empty_and_partial_logs_do_not_crash() -> None:
    assert training_curve([]).layout.title.text == "0 logged steps"
    assert np.isnan(training_curve([{"step": 1, "loss": 2.0}]).data[1].y).all()


def test_a_name_from_outside_is_text() -> None:
    rates = rates_frame().replace({"subset": {"financial_risk": "<b>risk</b>"}})
    assert "<b>risk" not in str(em_rates(rates).to_dict())
    frame, _ = study_frame()
    frame.loc[0, "facet"] = "<a href='javascript:1'>x</a>"
    assert "<a href" not in str(em_score_distribution(frame, 70).to_dict())
