"""Is a clustering more than the covariance of its rows? Monte Carlo tests against Gaussian data of the same covariance.

k-means cuts any elongated cloud into tight, stable pieces: silhouettes, gaps and stability mean something only beside
what the same procedure finds in data that have the covariance and nothing else. The usual gap statistic, against a
uniform box, stands in `gap_statistic`; what a cluster is about is left to `cluster_agreement`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
import sklearn
from jaxtyping import Float, Int
from joblib import Parallel, delayed
from sklearn.metrics import euclidean_distances

from src.utils.decomposition.clusterings import (
    BY_COUNT,
    Clustering,
    ClusterKey,
    ClusterSettings,
    check_settings,
    cluster_rows,
    mean_silhouette,
    threads,
    within_squares,
)
from src.utils.decomposition.gaussian_null import GaussianNull, gaussian_null, prompt_numbers
from src.utils.decomposition.multiplicity import holm, max_statistic_p, monte_carlo_p
from src.utils.errors import UserError

RESEEDED = ("kmeans", "gaussian_mixture")  # the others do not depend on a seed
DRAWN_MORE = ("kmeans",)  # cheap enough for all draws
SEEDS = 2**31

StatisticKey = tuple[str, int, str]  # algorithm, k, statistic
TestKey = tuple[str, str, int, str]  # the same of a layer


@dataclass(frozen=True)
class NullSettings:
    """How often the null is drawn: `draws` for k-means' silhouette and gap, `draws_others` (no more) for all else.

    Stability is a mean over `bootstraps` resamples, and over the pairs among `reseedings` + 1 seeds. `jobs` processes
    share the draws; results do not depend on how many they are.
    """

    draws: int = 1000
    draws_others: int = 100
    bootstraps: int = 3
    reseedings: int = 2
    seed: int = 0
    jobs: int = 1


@dataclass(frozen=True, eq=False)
class NullTests:
    """`table`: see `cluster_tests`. `null[draw, i]` is row i's statistic in a draw, NaN where it was not drawn."""

    table: pd.DataFrame
    null: Float[np.ndarray, "draws tests"]

    @property
    def shared_draws(self) -> int:
        """How many draws all tests share, on which `p_all` rests."""
        return int((~np.isnan(self.null).any(axis=1)).sum())

    def smallest_p(self, layer: str) -> dict[ClusterKey, float]:
        """The smallest `p_all` among the statistics of each (algorithm, k); family-wise over all of them."""
        table = self.table[self.table["layer"] == layer]
        found: dict[ClusterKey, float] = {}
        for row in table.to_dict("records"):
            key = (row["algorithm"], row["k"])
            found[key] = min(row["p_all"], found.get(key, 1.0))
        return found


def cluster_tests(
    layers: Mapping[str, Float[np.ndarray, "rows features"]],
    settings: ClusterSettings,
    nulls: NullSettings,
    prompt_ids: np.ndarray | None = None,
    on_draw: Callable[[int], object] = lambda done: None,
) -> NullTests:
    """Every clustering of every layer against Gaussian data of the same covariance (`gaussian_null`).

    `layers` are principal scores of the same rows; they are drawn jointly, so that the covariance between layers stays
    as well. A draw goes through the procedure of the data: same algorithms, counts, restarts and rules.

    The table has a row for each `layer, algorithm, k, statistic`: `observed`, `null_mean`, `null_sd`, `excess` (what is
    observed less the null mean), `draws`, and one-sided p-values: `p` is (1 + draws as large) / (1 + draws); `p_counts`
    is corrected by the max-statistic over k and layer within algorithm and statistic, with all draws of that algorithm;
    `p_max`, over k, algorithm and layer within the statistic, and `p_all`, over the statistics too, with the draws that
    all share; `p_holm`, Holm's over the family of `p_max` (never under its number of tests / (1 + draws)).

    Statistics: `silhouette` (`mean_silhouette`; -1 for fewer than two clusters); `gap`, here -log W (W:
    `within_squares`), so that its `excess` is Gap(k) with this null for reference (Tibshirani et al. 2001, section 3);
    `bootstrap_ari` and `seed_ari`, see `stability`.
    """
    matrices = [np.asarray(matrix, dtype=np.float64) for matrix in layers.values()]
    prompts = prompt_numbers(len(matrices[0]), prompt_ids)
    check_draws(settings, nulls, prompts)
    procedure = Procedure(list(layers), matrices, prompts, gaussian_null(np.hstack(matrices), prompts), settings, nulls)
    observed = procedure(0)
    count = nulls.draws if set(settings.algorithms) & set(DRAWN_MORE) else nulls.draws_others
    drawn = np.full((count, len(observed)), np.nan)
    tasks = (delayed(procedure)(draw) for draw in range(1, count + 1))
    for row, values in enumerate(Parallel(n_jobs=nulls.jobs, return_as="generator")(tasks)):
        drawn[row] = [values.get(key, np.nan) for key in observed]
        on_draw(row + 1)
    return NullTests(as_table([*observed], np.array([*observed.values()]), drawn), drawn)


def check_draws(settings: ClusterSettings, nulls: NullSettings, prompts: Int[np.ndarray, " rows"]) -> None:
    """Raises `UserError` for settings that cannot be tested."""
    check_settings(settings, len(prompts))
    if not 1 <= nulls.draws_others <= nulls.draws:
        raise UserError(
            f"{nulls.draws} draws and {nulls.draws_others} of the others; at least 1, and others no more", 2
        )
    most = len(prompts) // 2  # a bootstrap keeps 63% of the prompts
    by_count = set(settings.algorithms) & set(BY_COUNT)
    if by_count and nulls.bootstraps and max(settings.counts, default=0) >= most:
        raise UserError(f"{max(settings.counts)} clusters are too many to resample; choose fewer than {most}", 2)


@dataclass(frozen=True, eq=False)
class Procedure:
    """What is done to the data (draw 0) and to each draw of the null; seeds depend on nothing but the draw's number."""

    names: list[str]
    matrices: list[Float[np.ndarray, "rows features"]]
    prompts: Int[np.ndarray, " rows"]
    null: GaussianNull
    settings: ClusterSettings
    nulls: NullSettings

    def __call__(self, draw: int) -> dict[TestKey, float]:
        rng = np.random.default_rng(np.random.SeedSequence(self.nulls.seed, spawn_key=(draw,)))
        settings, nulls, matrices = self.settings, self.nulls, self.matrices
        # checking parameters and looking for NaN takes as long as a small clustering; both were done before
        with threads().limit(limits=1), sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
            if draw > 0:
                edges = np.cumsum([matrix.shape[1] for matrix in matrices])[:-1]
                matrices = np.split(self.null.draw(rng), edges, axis=1)
                settings = replace(settings, seed=int(rng.integers(SEEDS)))
            if draw > nulls.draws_others:
                settings = replace(settings, algorithms=DRAWN_MORE)
                nulls = replace(nulls, bootstraps=0, reseedings=0)
            return {
                (name, *key): value
                for name, matrix in zip(self.names, matrices, strict=True)
                for key, value in statistics(matrix, self.prompts, settings, nulls, rng).items()
            }


def statistics(
    matrix: Float[np.ndarray, "rows features"],
    prompts: Int[np.ndarray, " rows"],
    settings: ClusterSettings,
    nulls: NullSettings,
    rng: np.random.Generator,
) -> dict[StatisticKey, float]:
    """Silhouette, -log W and stability of every clustering of one matrix; distances are computed once."""
    distances = euclidean_distances(matrix)
    found = cluster_rows(matrix, settings, distances)
    values: dict[StatisticKey, float] = {}
    for (algorithm, k), clustering in found.items():
        silhouette = mean_silhouette(distances, clustering.labels)
        values[algorithm, k, "silhouette"] = -1.0 if np.isnan(silhouette) else silhouette  # nothing told apart
        if algorithm in BY_COUNT:  # with noise left out, W would be smallest where all is noise
            values[algorithm, k, "gap"] = -float(np.log(within_squares(matrix, clustering.labels)))
    return values | stability(matrix, distances, prompts, found, settings, nulls, rng)


def stability(
    matrix: Float[np.ndarray, "rows features"],
    distances: Float[np.ndarray, "rows rows"],
    prompts: Int[np.ndarray, " rows"],
    found: Mapping[ClusterKey, Clustering],
    settings: ClusterSettings,
    nulls: NullSettings,
    rng: np.random.Generator,
) -> dict[StatisticKey, float]:
    """How alike a clustering is when it is made again: mean adjusted Rand index (Hubert & Arabie 1985).

    `bootstrap_ari`: prompts are drawn with replacement, the distinct ones clustered (a row that stands twice would be
    its own dense neighbourhood) and compared, on their rows, with the clustering of all rows; a density clustering
    with fewer than two clusters has nothing that could be stable and counts 0. `seed_ari`: all pairs of `reseedings`
    further seeds and the first, for k-means and mixtures.
    """
    values: dict[StatisticKey, float] = {}
    resampled: dict[ClusterKey, list[float]] = {key: [] for key in found}
    for _ in range(nulls.bootstraps):
        count = int(prompts.max()) + 1
        rows = np.flatnonzero(np.isin(prompts, rng.integers(count, size=count)))
        again = replace(settings, seed=int(rng.integers(SEEDS)))
        for key, clustering in cluster_rows(matrix[rows], again, distances[np.ix_(rows, rows)]).items():
            one, two = found[key].labels[rows], clustering.labels
            is_one_cluster = key[0] not in BY_COUNT and min(one.max(), two.max()) < 1
            resampled[key].append(0.0 if is_one_cluster else adjusted_rand(one, two))
    values |= {(*key, "bootstrap_ari"): float(np.mean(indices)) for key, indices in resampled.items() if indices}

    seeded = replace(settings, algorithms=tuple(name for name in settings.algorithms if name in RESEEDED))
    if nulls.reseedings and seeded.algorithms:
        fits = [
            found,
            *(cluster_rows(matrix, replace(seeded, seed=int(rng.integers(SEEDS)))) for _ in range(nulls.reseedings)),
        ]
        for key in fits[-1]:
            indices = [adjusted_rand(one[key].labels, two[key].labels) for one, two in combinations(fits, 2)]
            values[*key, "seed_ari"] = float(np.mean(indices))
    return values


def adjusted_rand(one: Int[np.ndarray, " rows"], two: Int[np.ndarray, " rows"]) -> float:
    """scikit-learn's `adjusted_rand_score` without its checks, which cost a hundred times the counting."""
    first, second = one - one.min(), two - two.min()
    width = int(second.max()) + 1
    cells = np.bincount(first * width + second).astype(np.float64)

    def pairs(counts: Float[np.ndarray, " cells"]) -> float:
        return float((counts * (counts - 1)).sum() / 2)

    in_first, in_second = pairs(np.bincount(first).astype(float)), pairs(np.bincount(second).astype(float))
    expected = in_first * in_second / (len(one) * (len(one) - 1) / 2)
    largest = (in_first + in_second) / 2
    return 1.0 if largest == expected else (pairs(cells) - expected) / (largest - expected)


def as_table(
    keys: list[TestKey], observed: Float[np.ndarray, " tests"], null: Float[np.ndarray, "draws tests"]
) -> pd.DataFrame:
    """The table of `cluster_tests` from the statistics; the draws that tests share are those without NaN."""
    table = pd.DataFrame(keys, columns=["layer", "algorithm", "k", "statistic"])
    table["observed"] = observed
    table["null_mean"], table["null_sd"] = np.nanmean(null, axis=0), np.nanstd(null, axis=0)
    table["excess"] = table["observed"] - table["null_mean"]
    table["draws"] = (~np.isnan(null)).sum(axis=0)

    def shared(tests: np.ndarray) -> Float[np.ndarray, "draws tests"]:
        part = null[:, tests]
        return part[~np.isnan(part).any(axis=1)]

    values = {column: np.full(len(keys), np.nan) for column in ("p", "p_counts", "p_max", "p_all", "p_holm")}
    for test in range(len(keys)):
        values["p"][[test]] = monte_carlo_p(observed[[test]], shared(np.array([test])))
    for column, family in (("p_counts", ["algorithm", "statistic"]), ("p_max", ["statistic"]), ("p_all", [])):
        groups = table.groupby(family, sort=False).indices.values() if family else [np.arange(len(keys))]
        for tests in groups:
            values[column][tests] = max_statistic_p(observed[tests], shared(tests))
    for tests in table.groupby("statistic", sort=False).indices.values():
        values["p_holm"][tests] = holm(values["p"][tests])
    return table.assign(**values)
