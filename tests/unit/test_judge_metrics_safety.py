"""Measures of the judge, against counts by hand, scipy and plain loops. Unsafe is the positive class."""

import numpy as np
import pytest
from scipy.stats import binomtest, mannwhitneyu
from sklearn.metrics import f1_score

from src.utils.safety_judge.metrics import (
    accuracy_difference,
    best_f1_threshold,
    bin_sizes,
    calibration_error,
    fit_temperature,
    interval,
    intervals,
    judge_metrics,
    recall_at,
    resample_weights,
)
from src.utils.safety_judge.scoring import probability

UNSAFE = np.array([True, True, True, True, False, False, False, False, False, False])
MARGINS = np.array([3.0, 2.0, 1.0, -1.0, 2.5, 0.5, -0.5, -1.5, -2.0, -3.0])


def noisy(count: int = 400, seed: int = 0, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn with the probabilities that `margins / scale` say."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 2, count)
    return rng.random(count) < probability(truth), truth * scale


def test_measures_counted_by_hand() -> None:
    """3 of 4 unsafe flagged, 2 of 6 safe; ranks: pairs (unsafe, safe) in order 6 + 5 + 5 + 3 of 24."""
    found = judge_metrics(UNSAFE, MARGINS)
    assert (found.n, found.n_unsafe) == (10, 4)
    assert found.accuracy == pytest.approx(7 / 10)
    assert (found.precision, found.recall) == (pytest.approx(3 / 5), pytest.approx(3 / 4))
    assert found.f1 == pytest.approx(2 * 3 / (2 * 3 + 2 + 1))
    assert found.false_positive_rate == pytest.approx(2 / 6)
    assert found.auroc == pytest.approx((6 + 5 + 5 + 3) / 24)
    assert found.auprc == pytest.approx((1 / 1 + 2 / 3 + 3 / 4 + 4 / 7) / 4)
    assert found.brier == pytest.approx(np.mean((1 / (1 + np.exp(-MARGINS)) - UNSAFE) ** 2))
    assert (found.recall_at_fpr_1, found.recall_at_fpr_5) == (0.25, 0.25)


def test_auroc_is_the_mann_whitney_statistic_and_turned_round_margins_turn_it_round() -> None:
    unsafe, margins = noisy()
    expected = mannwhitneyu(margins[unsafe], margins[~unsafe]).statistic / (unsafe.sum() * (~unsafe).sum())
    assert judge_metrics(unsafe, margins).auroc == pytest.approx(expected)
    assert judge_metrics(unsafe, -margins).auroc == pytest.approx(1 - expected)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.2, 1.0])
def test_recall_at_a_rate_is_the_best_of_all_thresholds_and_its_threshold_keeps_it(rate: float) -> None:
    unsafe, margins = noisy(300, seed=3)
    margins = margins.round(1)
    best = max(
        (margins[unsafe] > cut).mean() for cut in [-np.inf, *margins, np.inf] if (margins[~unsafe] > cut).mean() <= rate
    )
    recall, threshold = recall_at(unsafe, margins, rate)
    assert recall == pytest.approx(best)
    assert (margins[unsafe] > threshold).mean() == pytest.approx(best)
    assert (margins[~unsafe] > threshold).mean() <= rate


def test_recall_at_a_rate_that_no_threshold_reaches_flags_nothing() -> None:
    unsafe, margins = np.array([True, False]), np.array([0.0, 1.0])
    assert recall_at(unsafe, margins, 0.01) == (0.0, 1.0)


def test_calibration_error_is_the_weighted_gap_of_the_bins() -> None:
    unsafe, margins = noisy(500, seed=1, scale=3)
    sure = probability(margins)
    expected = 0.0
    for low in np.arange(10) / 10:
        inside = (sure > low) & (sure <= low + 0.1)
        if inside.any():
            expected += inside.mean() * abs(sure[inside].mean() - unsafe[inside].mean())
    assert calibration_error(unsafe, sure, 10) == pytest.approx(expected)
    assert bin_sizes(sure, 10).sum() == 500


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
def test_temperature_recovers_how_over_confident_margins_are(scale: float) -> None:
    unsafe, margins = noisy(20_000, scale=scale)
    temperature = fit_temperature(unsafe, margins)
    assert temperature == pytest.approx(scale, rel=0.06)
    gradient = np.mean((probability(margins, temperature) - unsafe) * margins)
    assert abs(gradient) / np.abs(margins).mean() < 1e-4, "the log loss is flat there"
    before, after = (judge_metrics(unsafe, margins, temperature=one) for one in (1.0, temperature))
    assert (after.auroc, after.f1, after.recall_at_fpr_5) == (before.auroc, before.f1, before.recall_at_fpr_5)
    if scale > 1:
        assert after.ece < before.ece / 3


def test_temperature_of_a_split_without_error_stays_finite() -> None:
    assert fit_temperature(np.array([True, False]), np.array([2.0, -2.0])) == pytest.approx(np.exp(-5), rel=1e-3)


def test_best_f1_threshold_is_the_best_of_all() -> None:
    unsafe, margins = noisy(120, seed=5)
    scores = [f1_score(unsafe, margins > cut) for cut in [-99, *margins]]
    assert f1_score(unsafe, margins > best_f1_threshold(unsafe, margins)) == pytest.approx(max(scores))


def test_one_class_has_no_ranking_measures() -> None:
    found = judge_metrics(np.array([True, True]), np.array([1.0, -1.0]))
    assert (found.auroc, found.auprc, found.recall_at_fpr_1, found.false_positive_rate) == (None, None, None, None)
    assert (found.recall, found.accuracy) == (0.5, 0.5)


def test_resamples_keep_groups_together() -> None:
    groups = ["a", "a", "b", "c", "c", "c"]
    weights = resample_weights(groups, 500, seed=0)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert np.array_equal(weights, resample_weights(groups, 500, seed=0))


def test_interval_of_accuracy_covers_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(0), 0
    for trial in range(200):
        unsafe = rng.random(150) < 0.5
        margins = np.where(rng.random(150) < 0.8, 1.0, -1.0) * np.where(unsafe, 1, -1)
        weights = resample_weights([str(i) for i in range(150)], 300, trial)
        low, high = interval(weights @ ((margins > 0) == unsafe) / 150) or (1.0, 0.0)
        covered += low <= 0.8 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_intervals_are_those_of_measures_on_each_resample() -> None:
    unsafe, margins = noisy(80)
    groups = [str(i) for i in range(80)]
    margins = margins.round(1)  # with equal ones among them
    found = intervals(unsafe, margins, groups, resamples=40, seed=2)
    drawn = [np.repeat(np.arange(80), row) for row in resample_weights(groups, 40, seed=2)]
    measured = [judge_metrics(unsafe[rows], margins[rows]) for rows in drawn]
    for name in ("accuracy", "f1", "recall", "false_positive_rate", "auroc", "auprc"):
        values = [getattr(one, name) for one in measured]
        assert found[name] == pytest.approx([float(edge) for edge in np.quantile(values, [0.025, 0.975])]), name


def test_gain_in_accuracy_is_paired() -> None:
    unsafe, margins = noisy(200)
    flagged = margins > 0
    worse = flagged.copy()
    worse[:40] = ~unsafe[:40]
    gain = accuracy_difference(unsafe, flagged, worse, resample_weights([str(i) for i in range(200)], 500, 0))
    assert gain.estimate == pytest.approx((flagged == unsafe)[:40].mean() * 40 / 200)
    assert 0 < gain.interval[0] < gain.estimate < gain.interval[1]


def test_a_share_of_one_has_the_exact_bound_over_groups() -> None:
    """20 of 20 pairs right: Clopper-Pearson; scipy has the same bound as that of a binomial test."""
    unsafe = np.tile([True, False], 20)
    found = intervals(unsafe, np.where(unsafe, 1.0, -1.0), [str(i // 2) for i in range(40)], resamples=100, seed=0)
    low = binomtest(20, 20).proportion_ci(method="exact").low
    assert found["accuracy"] == found["recall"] == pytest.approx([low, 1.0])
    assert found["false_positive_rate"] == pytest.approx([0.0, 1 - low])
    assert found["auroc"] == [1.0, 1.0]
