"""A planted structure is found the more often, the larger it is; sweeps stop where power is lost and say the same."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta, binom, kurtosis

from src.utils.config_sections import ClusteringConfig, GeometryConfig
from src.utils.decomposition.geometry_power import power_of, residual_cluster_p
from src.utils.decomposition.geometry_report import power_lines, smallest_found
from src.utils.decomposition.inputs import Evidence
from src.utils.decomposition.plain_records import as_plain
from src.utils.decomposition.planted import subspace_p_value, without_means
from src.utils.decomposition.power_curve import (
    NOT_FOUND,
    Detector,
    Sweep,
    allowed_misses,
    cluster_detector,
    power_curve,
    smallest_detectable,
    subspace_detector,
)
from src.utils.errors import UserError
from tests.study_frame import GEOMETRY
from tests.unit.test_planted import NAMES, own_subspaces, study


def test_power_rises_with_size_and_angle_and_is_the_level_where_nothing_differs() -> None:
    data, detectors = study(rows=120), {"subspace": subspace_detector(99)}
    curve = power_curve(*data, detectors, Sweep([0, 30, 90], [2, 4, 8], repeats=40))
    assert len(curve) == 10 and (curve["repeats"] == 40).all()
    power = curve[curve["snr"] > 0].pivot(index="angle", columns="snr", values="power")
    none = float(curve.loc[curve["snr"] == 0, "power"].iloc[0])
    false = curve[(curve["snr"] == 0) | (curve["angle"] == 0)]  # a direction that all share is no difference
    assert false["detected"].sum() <= binom.ppf(0.999, false["repeats"].sum(), 0.05)
    assert list(power.loc[90]) == sorted(power.loc[90]) and power.loc[90, 8] == 1
    assert power.loc[90, 2] > none + 0.2
    assert power.loc[30].sum() < power.loc[90].sum()
    for row in curve.to_dict("records"):
        hit, of = row["detected"], row["repeats"]
        assert row["low"] == pytest.approx(beta.ppf(0.025, hit, of - hit + 1) if hit else 0)
        assert row["high"] == pytest.approx(beta.ppf(0.975, hit + 1, of - hit) if hit < of else 1)
    smallest = smallest_detectable(curve).set_index("angle")
    assert smallest.loc[0, "statement"] == NOT_FOUND and smallest.loc[90, "snr"] in (4, 8)
    again = power_curve(*data, detectors, Sweep([0], [2], repeats=40, jobs=2))
    assert list(again["detected"]) == list(
        curve[((curve["angle"] == 0) & (curve["snr"] < 4)) | (curve["snr"] == 0)]["detected"]
    )


def test_a_cluster_test_is_handed_data_without_topic_and_finds_the_halves() -> None:
    matrix, dimensions, groups = study(rows=160, features=6)
    matrix = matrix + 20 * (dimensions == "moral")[:, None]  # a cluster that is the topic
    seeds: list[int] = []

    def two_humps(residuals: np.ndarray, groups: np.ndarray, seed: int) -> float:
        """Kurtosis along the first component: two equal humps have less than a Gaussian."""
        for name in NAMES:
            np.testing.assert_allclose(residuals[dimensions == name].mean(axis=0), 0, atol=1e-9)
        seeds.append(seed)
        _, _, rows = np.linalg.svd(residuals, full_matrices=False)
        gaussian = kurtosis(np.random.default_rng(seed).standard_normal((199, len(residuals))), axis=1)
        return float((1 + (gaussian <= kurtosis(residuals @ rows[0])).sum()) / 200)

    detectors = {"cluster": cluster_detector(two_humps), "subspace": subspace_detector(99)}
    curve = power_curve(matrix, dimensions, groups, detectors, Sweep([0], [6], repeats=40, seed=1))
    power = curve.set_index(["detector", "snr"])["power"]
    assert power["cluster", 0] <= binom.ppf(0.999, 40, 0.05) / 40 and power["cluster", 6] > 0.9
    assert power["subspace", 6] < 0.3  # one direction that all dimensions share: the cluster test alone sees it
    assert len(set(seeds)) == 80


def curve_of(detected: dict[float, int], repeats: int = 100, detector: str = "d", angle: float = 90) -> pd.DataFrame:
    rows = []
    for snr, hit in detected.items():
        low = float(beta.ppf(0.025, hit, repeats - hit + 1)) if hit else 0.0
        rows.append((detector, angle, snr, repeats, hit, hit / repeats, low, 1.0))
    return pd.DataFrame(rows, columns=["detector", "angle", "snr", "repeats", "detected", "power", "low", "high"])


@pytest.mark.parametrize(
    ("detected", "snr", "statement"),
    [
        ({0: 5, 1: 20, 2: 94, 4: 97, 8: 100}, 4, "found from 4 residual standard deviations on"),  # 94: low is 0.874
        ({0: 5, 8: 100, 2: 98, 1: 97, 4: 90}, 8, "found from 8 residual standard deviations on"),  # it fails again at 4
        ({0: 5, 1: 20, 2: 60}, np.nan, NOT_FOUND),
        ({0: 30, 1: 100, 2: 100}, np.nan, "finds something in 30 of 100 data sets where nothing is planted"),
    ],
)
def test_the_smallest_detectable_size(detected: dict[float, int], snr: float, statement: str) -> None:
    found = smallest_detectable(curve_of(detected))
    assert len(found) == 1 and found.loc[0, "statement"] == statement
    assert found.loc[0, "snr"] == pytest.approx(snr, nan_ok=True)


def test_each_detector_and_angle_has_a_smallest_size_of_its_own() -> None:
    parts = [curve_of({0: 4, 1: 50, 2: 100}, angle=90), curve_of({0: 6, 1: 1, 2: 3}, angle=30)]
    curve = pd.concat([*parts, curve_of({0: 0, 1: 100, 2: 100}, detector="e")])
    found = smallest_detectable(curve).set_index(["detector", "angle"])["snr"]
    assert found["d", 90] == 2 and np.isnan(found["d", 30]) and found["e", 90] == 1


def test_a_sweep_that_stops_concludes_what_the_whole_one_does() -> None:
    data, detectors = study(rows=120), {"subspace": subspace_detector(59)}
    whole = power_curve(*data, detectors, Sweep([90], [1, 2, 4, 8, 16], repeats=36))
    swept = power_curve(*data, detectors, Sweep([90], [1, 2, 4, 8, 16], repeats=36, stops_below=0.9))
    pd.testing.assert_frame_equal(smallest_detectable(swept), smallest_detectable(whole))
    found = whole.set_index("snr")["detected"]
    lost = max(snr for snr in (1, 2, 4, 8) if found[snr] < 36)
    assert set(swept["snr"]) == {0, *(snr for snr in (1, 2, 4, 8, 16) if snr >= lost)}
    by_size = swept.set_index("snr")
    assert by_size.loc[lost, "repeats"] == by_size.loc[lost, "detected"] + 1 < 36
    assert (by_size.drop(index=lost)["repeats"] == 36).all()


@pytest.mark.parametrize(("repeats", "misses"), [(36, 0), (53, 0), (54, 1), (100, 4)])
def test_a_point_ends_where_the_bound_is_out_of_reach(repeats: int, misses: int) -> None:
    assert allowed_misses(repeats, 0.9) == misses
    asked: list[int] = []

    def detect(matrix: np.ndarray, dimensions: np.ndarray, groups: np.ndarray, seed: int) -> bool:
        asked.append(seed)
        return len(asked) % 5 > 0

    curve = power_curve(*study(rows=40), {"d": Detector(detect)}, Sweep([90], [3], repeats, stops_below=0.9))
    assert curve.loc[0, "repeats"] == 5 * (misses + 1) and curve.loc[1, "repeats"] == repeats  # all where nothing is


def test_too_few_repeats_are_refused() -> None:
    with pytest.raises(UserError, match=r"repeats 35: too few to show a power of 0\.9"):
        power_curve(*study(), {"subspace": subspace_detector()}, Sweep([90], [4], 35, stops_below=0.9))


def evidence_of(matrix: np.ndarray, dimensions: np.ndarray, groups: np.ndarray) -> Evidence:
    frame = pd.DataFrame({"subset": dimensions, "prompt_id": groups})
    return Evidence("em_layer_1", matrix, matrix, frame, np.arange(len(matrix)))


def described(data: tuple[np.ndarray, ...], counts: Sequence[int] = (3, 7, 15), **settings: Any) -> dict[str, Any]:
    changed = GEOMETRY.model_copy(update={"power_angles": [90.0], "power_snrs": [8.0], **settings})
    return as_plain(power_of(evidence_of(*data), ClusteringConfig(layer=1, cluster_counts=list(counts)), changed))


def test_a_negative_comes_with_the_smallest_that_would_have_been_found() -> None:
    alike = described(study(), power_draws=0)
    different = described((own_subspaces(*study()[:2], seed=1), *study()[1:]), power_draws=0)
    matrix, dimensions, groups = study()
    assert alike["subspaces"]["p"] == subspace_p_value(matrix, dimensions, groups, seed=0)
    assert alike["subspaces"]["p"] > 0.05 > different["subspaces"]["p"]
    found = "smallest planted sub-personas found with power 0.9: SNR 8 at 90°"
    assert power_lines(alike)[0].startswith("subspaces: the dimensions' directions are alike (p 0.")
    assert power_lines(alike)[0].endswith(found)
    assert power_lines(different)[0].startswith(
        "subspaces: the dimensions vary in different directions (p ≤ 0.005, 199 draws)"
    )
    assert {row["detector"] for row in alike["curve"]} == {"subspaces"}
    assert (
        alike["clusters"] == {"reason": "clusters: not planted (--power-draws 0)"} == {"reason": power_lines(alike)[1]}
    )
    assert "not known (clusters: not planted" in smallest_found(alike, "clusters")


def test_clusters_are_tested_without_topic_at_the_count_nearest_to_two_a_dimension() -> None:
    matrix, dimensions, groups = study(features=8, seed=1)
    topic = described((matrix + 20 * (dimensions == "moral")[:, None], dimensions, groups), power_snrs=[2.0])
    assert topic["clusters"]["k"] == 7 and topic["clusters"]["p"] > 0.05
    assert "none up to SNR 2 at 90°" in smallest_found(topic, "clusters")
    halves = np.random.default_rng(3).permutation(np.repeat([0.0, 12.0], 80))
    found = described((matrix + halves[:, None], dimensions, groups), power_snrs=[2.0])
    assert found["clusters"]["p"] == pytest.approx(1 / 21)


def test_a_p_value_that_is_out_of_reach_is_not_drawn_to_its_end() -> None:
    matrix, dimensions, groups = study(features=6)
    residuals = without_means(matrix, dimensions)
    whole = residual_cluster_p(residuals, groups, 0, 3, 40, stops_at=1.0)
    assert whole > 0.05 and residual_cluster_p(residuals, groups, 0, 3, 40) == pytest.approx(3 / 41)
    far = residuals + 30 * (np.arange(160) % 2)[:, None] * np.eye(6)[0]
    assert residual_cluster_p(far, groups, 0, 3, 40) == pytest.approx(1 / 41)


def test_nothing_planted_is_said() -> None:
    with pytest.raises(UserError, match=r"nothing was planted \(--power-repeats 0\)"):
        described(study(), power_repeats=0)
    assert GeometryConfig().power_repeats >= 36
    for name, value in (("power_repeats", 35), ("power_draws", 19), ("power_angles", [91.0]), ("power_snrs", [0.0])):
        with pytest.raises(ValueError, match=name):
            GeometryConfig.model_validate({name: value})
