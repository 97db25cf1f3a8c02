"""Power: how often a test finds sub-personas that were planted in the data at hand, against their angle and size.

A negative finding means no more than the smallest planted structure that would have been found. Tests are handed in;
which of them the geometry rests on is left to `geometry_power`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import sklearn
from jaxtyping import Float
from joblib import Parallel, delayed
from scipy.stats import binomtest

from src.utils.decomposition.clusterings import threads
from src.utils.decomposition.planted import Null, plant, subspace_p_value, without_means
from src.utils.errors import UserError

Detect = Callable[[np.ndarray, np.ndarray, np.ndarray, int], bool]  # (matrix, dimensions, groups, seed) -> p < alpha
Test = Callable[[np.ndarray, np.ndarray, int], float]  # (residuals, groups, seed) -> p
ALPHA, POWER = 0.05, 0.9
NOT_FOUND = "not within the swept range"


@dataclass(frozen=True)
class Detector:
    """A test, and what the dimensions' residuals are made of where nothing is planted; see `plant`."""

    detect: Detect
    null: Null = "exchanged"


@dataclass(frozen=True)
class Sweep:
    """What is planted, and how often.

    `stops_below`: a point ends once the lower bound of its share can no longer reach this power, and a sweep, from the
    largest snr down, with the first such point; None repeats every point `repeats` times. snr 0 is always repeated.
    """

    angles: Sequence[float]
    snrs: Sequence[float]
    repeats: int
    seed: int = 0
    stops_below: float | None = None
    jobs: int = 1


@dataclass(frozen=True, eq=False)
class Ground:
    """What is planted in; a point's repeats are the same data sets for every detector of one null."""

    matrix: Float[np.ndarray, "rows features"]
    dimensions: np.ndarray
    groups: np.ndarray
    sweep: Sweep

    def share(self, detector: Detector, angle: float, snr: float) -> tuple[int, int]:
        """How many were detected, and of how many."""
        sweep = self.sweep
        stops = snr > 0 and sweep.stops_below is not None
        allowed = allowed_misses(sweep.repeats, sweep.stops_below) if stops else sweep.repeats
        detected = 0
        for repeat in range(sweep.repeats):
            place = [sweep.seed, round(1000 * angle), round(1000 * snr), repeat]
            planting, testing = np.random.SeedSequence(place).generate_state(2).tolist()
            planted = plant(self.matrix, self.dimensions, angle, snr, planting, self.groups, detector.null)
            detected += detector.detect(planted.matrix, self.dimensions, self.groups, testing)
            if repeat + 1 - detected > allowed:
                return detected, repeat + 1
        return detected, sweep.repeats

    def swept(self, name: str, detector: Detector, angle: float, snrs: Sequence[float]) -> list[tuple]:
        """Rows of the curve at one angle, from the largest snr down to where power is lost."""
        rows = []
        with threads().limit(limits=1), sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
            for snr in sorted(snrs, reverse=True):
                detected, of = self.share(detector, angle, snr)
                low, high = clopper_pearson(detected, of)
                rows.append((name, angle if snr else np.nan, snr, of, detected, detected / of, low, high))
                if self.sweep.stops_below is not None and low < self.sweep.stops_below:
                    break
        return rows[::-1]


def power_curve(
    matrix: Float[np.ndarray, "rows features"],
    dimensions: np.ndarray,
    groups: np.ndarray,
    detectors: Mapping[str, Detector],
    sweep: Sweep,
) -> pd.DataFrame:
    """Tidy table `detector, angle, snr, repeats, detected, power, low, high`, with 95% Clopper-Pearson intervals.

    Every repeat plants anew. At snr 0 nothing is planted and the angle is NaN: its share is the detector's
    false-positive rate, which `smallest_detectable` checks. A point that was stopped early has fewer repeats, and a
    share below that of all of them; its interval covers all the same (to stop at a given number of misses makes the
    upper bound exact and the lower conservative). Results do not depend on `jobs`. Raises `UserError` where even
    detecting every repeat would leave the lower bound under `stops_below`.
    """
    if sweep.stops_below is not None:
        allowed_misses(sweep.repeats, sweep.stops_below)
    ground = Ground(matrix, dimensions, groups, sweep)
    sizes = [snr for snr in sweep.snrs if snr > 0]
    tasks = [(name, one, angle, sizes) for name, one in detectors.items() for angle in sorted(sweep.angles)]
    tasks += [(name, one, 90.0, [0.0]) for name, one in detectors.items()]
    found = Parallel(n_jobs=sweep.jobs)(delayed(ground.swept)(*task) for task in tasks)
    columns = ["detector", "angle", "snr", "repeats", "detected", "power", "low", "high"]
    return pd.DataFrame([row for rows in found for row in rows], columns=columns)


def clopper_pearson(hits: int, of: int) -> tuple[float, float]:
    interval = binomtest(hits, of).proportion_ci(method="exact")
    return float(interval.low), float(interval.high)


def allowed_misses(repeats: int, power: float) -> int:
    """The most misses at which the lower bound of the share detected is still at least `power`."""
    if clopper_pearson(repeats, repeats)[0] < power:
        raise UserError(f"repeats {repeats}: too few to show a power of {power}; repeat each point more often")
    misses = 0
    while clopper_pearson(repeats - misses - 1, repeats)[0] >= power:
        misses += 1
    return misses


def smallest_detectable(curve: pd.DataFrame, power: float = POWER, alpha: float = ALPHA) -> pd.DataFrame:
    """Tidy table `detector, angle, snr, statement`: the smallest planted size that would have been found.

    The rule: the smallest swept snr above 0 at which, and at every larger one, the lower 95% Clopper-Pearson bound of
    the share detected is at least `power`. `snr` is NaN where none is, and where the detector's false positives at snr
    0 are more than `alpha` (their lower bound is above it): it finds what was not planted, and its power says nothing.
    """
    rows = []
    for name, of_detector in curve.groupby("detector", sort=False):
        false = of_detector[of_detector["snr"] == 0]
        fires, of = int(false["detected"].sum()), int(false["repeats"].sum())
        is_broken = of > 0 and clopper_pearson(fires, of)[0] > alpha
        for angle, part in of_detector[of_detector["snr"] > 0].groupby("angle", sort=False):
            swept = part.sort_values("snr")
            is_found_from_here_on = (swept["low"] >= power).to_numpy()[::-1].cumprod()[::-1].astype(bool)
            snr = float(swept["snr"].to_numpy(float)[is_found_from_here_on].min(initial=np.inf))
            if is_broken:
                snr, statement = np.nan, f"finds something in {fires} of {of} data sets where nothing is planted"
            elif np.isinf(snr):
                snr, statement = np.nan, NOT_FOUND
            else:
                statement = f"found from {snr:g} residual standard deviations on"
            rows.append((name, angle, snr, statement))
    return pd.DataFrame(rows, columns=["detector", "angle", "snr", "statement"])


def cluster_detector(test: Test, alpha: float = ALPHA) -> Detector:
    """Whether a test of clusters, which gives a p-value for rows, rejects once dimension means are removed.

    Nothing planted is Gaussian data: exchanged residuals keep the clusters that all dimensions share.
    """
    return Detector(
        lambda matrix, dimensions, groups, seed: bool(test(without_means(matrix, dimensions), groups, seed) < alpha),
        "gaussian",
    )


def subspace_detector(permutations: int = 199, alpha: float = ALPHA) -> Detector:
    """Whether the residuals of different dimensions point in different directions, by `subspace_p_value`."""
    return Detector(
        lambda matrix, dimensions, groups, seed: bool(
            subspace_p_value(matrix, dimensions, groups, seed, permutations) < alpha
        )
    )
