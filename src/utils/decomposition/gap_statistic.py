"""The gap statistic as it is usually computed, against a uniform box, and the k that a gap statistic chooses.

A box has none of the data's covariance: elongated data without any cluster beat it. It is reported beside the gap of
`cluster_nulls`, whose reference has the covariance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Float
from joblib import Parallel, delayed

from src.utils.decomposition.cluster_nulls import SEEDS
from src.utils.decomposition.clusterings import (
    BY_COUNT,
    ClusterKey,
    ClusterSettings,
    cluster_rows,
    threads,
    within_squares,
)

COLUMNS = ["reference", "algorithm", "k", "gap", "s", "is_chosen"]


def uniform_gap(
    scores: Float[np.ndarray, "rows features"],
    settings: ClusterSettings,
    draws: int,
    seed: int,
    jobs: int = 1,
    on_draw: Callable[[int], object] = lambda done: None,
) -> pd.DataFrame:
    """Gap(k) and s(k) of Tibshirani, Walther & Hastie 2001 (section 3), for k = 1 and the counts.

    The reference is uniform over the box around the principal scores (their reference b). Columns: `reference` ("box"),
    `algorithm, k, gap, s, is_chosen` (see `chosen_by_gap`); algorithms that are not given k are left out.
    """
    given = replace(settings, algorithms=tuple(name for name in BY_COUNT if name in settings.algorithms))
    box = BoxDispersion(scores.min(axis=0), scores.max(axis=0), len(scores), given, seed)
    observed = log_dispersions(scores, given)
    drawn = []
    tasks = (delayed(box)(draw) for draw in range(draws))
    for values in Parallel(n_jobs=jobs, return_as="generator")(tasks):
        drawn.append([*values.values()])
        on_draw(len(drawn))
    null = np.array(drawn)
    gaps = dict(zip(observed, null.mean(axis=0) - [*observed.values()], strict=True))
    errors = dict(zip(observed, null.std(axis=0) * np.sqrt(1 + 1 / draws), strict=True))
    return gap_table("box", gaps, errors)


def covariance_gap(table: pd.DataFrame) -> pd.DataFrame:
    """The same columns for one layer of `cluster_tests`' table: the Gaussian of the same covariance as reference.

    Its W for k = 1 is that of the data in every draw, so that Gap(1) and s(1) are 0.
    """
    tests = table[table["statistic"] == "gap"]
    gaps: dict[ClusterKey, float] = {(name, 1): 0.0 for name in tests["algorithm"]}
    errors = dict(gaps)
    for row in tests.to_dict("records"):
        gaps[row["algorithm"], row["k"]] = row["excess"]
        errors[row["algorithm"], row["k"]] = row["null_sd"] * np.sqrt(1 + 1 / row["draws"])
    return gap_table("covariance", gaps, errors)


def chosen_by_gap(counts: Sequence[int], gaps: Sequence[float], errors: Sequence[float]) -> int:
    """The smallest k with Gap(k) >= Gap(next k) - s(next k), else the largest; `counts` ascend and may leave k out."""
    for at, k in enumerate(counts[:-1]):
        if gaps[at] >= gaps[at + 1] - errors[at + 1]:
            return k
    return counts[-1]


def gap_table(reference: str, gaps: dict[ClusterKey, float], errors: dict[ClusterKey, float]) -> pd.DataFrame:
    rows = []
    for algorithm in dict.fromkeys(name for name, _ in gaps):
        counts = sorted(k for name, k in gaps if name == algorithm)
        of_counts = [gaps[algorithm, k] for k in counts], [errors[algorithm, k] for k in counts]
        chosen = chosen_by_gap(counts, *of_counts)
        rows += [(reference, algorithm, k, gap, s, k == chosen) for k, gap, s in zip(counts, *of_counts, strict=True)]
    return pd.DataFrame(rows, columns=COLUMNS)


def log_dispersions(matrix: Float[np.ndarray, "rows features"], settings: ClusterSettings) -> dict[ClusterKey, float]:
    """Log W of one cluster and of every clustering."""
    alone = float(np.log(within_squares(matrix, np.zeros(len(matrix), dtype=np.int64))))
    values: dict[ClusterKey, float] = {(name, 1): alone for name in settings.algorithms}
    for key, clustering in cluster_rows(matrix, settings).items():
        values[key] = float(np.log(within_squares(matrix, clustering.labels)))
    return values


@dataclass(frozen=True, eq=False)
class BoxDispersion:
    """Log W of the clusterings of uniform rows in a box, by the number of the draw."""

    low: Float[np.ndarray, " features"]
    high: Float[np.ndarray, " features"]
    rows: int
    settings: ClusterSettings
    seed: int

    def __call__(self, draw: int) -> dict[ClusterKey, float]:
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(draw,)))
        with threads().limit(limits=1):
            matrix = rng.uniform(self.low, self.high, (self.rows, len(self.low)))
            return log_dispersions(matrix, replace(self.settings, seed=int(rng.integers(SEEDS))))
