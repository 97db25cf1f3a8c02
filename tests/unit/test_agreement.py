"""Agreement of two judges, against a hand count and scipy."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from src.utils.judging.agreement import agreement_of, format_agreement
from src.visualizations.agreement_figures import bland_altman

# em_score of EM answers, of base answers; None is missing
FIRST = ([90, 80, 10, None, 60], [0, 5, 20, 75, 0])
SECOND = ([100, 60, 20, 50, 75], [0, 15, None, 90, 10])


def frame(name: str, scores: tuple[list, list]) -> pd.DataFrame:
    em, base = (pd.Series(values, dtype=float) for values in scores)
    columns = {"em_score": em, "base_em_score": base, "coherence": 100.0, "base_coherence": 100.0}
    errors = {"judge_error": em.isna().map({True: "no", False: None}), "base_judge_error": None}
    return pd.DataFrame({"judge": name} | columns | errors)


def agreement() -> dict:
    return agreement_of(frame("a", FIRST), frame("b", SECOND), em_threshold=70, coherence_threshold=50)


def test_every_measure_counted_by_hand() -> None:
    found, of_coherence = agreement()["measures"]
    one, other = [90, 80, 10, 60, 0, 5, 75, 0], [100, 60, 20, 75, 0, 15, 90, 10]  # the two with a gap are left out
    assert (found["answers"], found["pairs"]) == (10, 8) == (of_coherence["answers"], len(one))
    assert found["spearman"] == pytest.approx(spearmanr(one, other).statistic)
    # above 70: first yes yes no no no no yes no, second yes no no yes no no yes no; both yes 2, both no 4
    agree, chance = 6 / 8, (3 * 3 + 5 * 5) / 64
    assert found["kappa"] == pytest.approx((agree - chance) / (1 - chance))
    differences = np.array([10, -20, 10, 15, 0, 10, 15, 10])
    assert found["mean_difference"] == differences.mean() == 6.25
    assert found["upper_limit"] == pytest.approx(6.25 + 1.96 * differences.std(ddof=1))
    assert found["lower_limit"] == pytest.approx(6.25 - 1.96 * differences.std(ddof=1))


def test_what_each_judge_has_not_scored_is_counted_for_it() -> None:
    assert agreement()["missing"] == {"a": {"no": 1}, "b": {}}


def test_what_is_not_defined_is_not_made_up() -> None:
    of_coherence = agreement()["measures"][1]  # both judges always say 100
    assert of_coherence["spearman"] is None and of_coherence["kappa"] is None and of_coherence["mean_difference"] == 0
    nothing = agreement_of(frame("a", ([None], [None])), frame("b", ([1], [2])), 70, 50)["measures"][0]
    assert nothing["pairs"] == 0 and all(nothing[name] is None for name in ("spearman", "kappa", "mean_difference"))
    one = agreement_of(frame("a", ([5], [None])), frame("b", ([9], [2])), 70, 50)["measures"][0]
    assert one["mean_difference"] == 4 and one["upper_limit"] is None and one["spearman"] is None
    assert "not defined" in format_agreement(agreement())


def test_the_figure_shows_every_pair_and_the_limits() -> None:
    found = agreement()
    figure = bland_altman(found)
    panel = next(trace for trace in figure.data if trace.name == "em_score")
    assert sum(panel.customdata) == found["measures"][0]["pairs"]
    places = {(x, y): n for x, y, n in zip(panel.x, panel.y, panel.customdata, strict=True)}
    assert places[(95, 10)] == 1 and places[(0, 0)] == 1
    lines = {shape.y0 for shape in figure.layout.shapes}
    assert {found["measures"][0][name] for name in ("mean_difference", "lower_limit", "upper_limit")} <= lines
    empty = agreement_of(frame("a", ([None], [None])), frame("<b>", ([1], [2])), 70, 50)
    assert "<b>" not in str(bland_altman(empty).to_dict()).replace("<br>", "")
