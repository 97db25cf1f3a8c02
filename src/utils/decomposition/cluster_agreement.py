"""What a clustering is about: agreement with topic, length, misalignment and the base model's clusters.

It is tested by permuting prompts. A cluster that is the topic is no sub-persona, and neither is a handful of rows of
large norm. Whether there is more than a covariance at all is tested in `cluster_nulls`, whose p-values come in here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.special import xlogy
from scipy.stats import median_abs_deviation, rankdata
from sklearn.metrics.cluster import expected_mutual_information

from src.utils.decomposition.clusterings import ClusterKey
from src.utils.decomposition.multiplicity import max_statistic_p, monte_carlo_p, stated_p
from src.utils.decomposition.prompt_resampling import exchange_prompts
from src.utils.errors import UserError

DIMENSION, FACET, LENGTH, BASE, MISALIGNED = "dimension", "facet", "length", "base_clusters", "misaligned"
WITHIN = "facet_within_dimension"
AT_ONCE = 100  # permutations, to bound the memory
TIE = 1e-10  # what adding up the same cells in another order may change

Kind = Literal[
    "topic",
    "base model",
    "length",
    "misalignment",
    "outliers",
    "no structure beyond covariance",
    "unexplained structure",
]
ANSWERS: dict[str, tuple[Kind, str]] = {
    DIMENSION: ("topic", "the dimension asked about"),
    FACET: ("topic", "the facet asked about"),
    BASE: ("base model", "the base model's own clusters"),
    LENGTH: ("length", "how long answers are"),
    MISALIGNED: ("misalignment", "whether answers are misaligned"),
}


@dataclass(frozen=True)
class Agreement:
    """How far labels and a target say the same, chance removed: 0 by chance, 1 entirely.

    `ami`: adjusted mutual information, arithmetic mean (Vinh et al. 2010). `explained`: the same with the labels'
    entropy for the mean, so the share of the clustering that is known once the target is: 1 for clusters that are
    several whole topics each, where AMI stays low. `ari`: adjusted Rand index. The p-values are one-sided; that of
    `explained` is that of `ami`.
    """

    ami: float
    ari: float
    explained: float
    p_ami: float
    p_ari: float


@dataclass(frozen=True)
class Bars:
    """From where on a clustering is said to be something.

    `agreement`: the larger of AMI and `explained`; `alpha`: p-values; `largest_share`: of the rows in one cluster;
    `outlier_share`: of the other rows that are norm outliers, by more than `outlier_deviations` robust standard
    deviations (1.4826 MAD) from the median.
    """

    agreement: float = 0.5
    alpha: float = 0.05
    largest_share: float = 0.8
    outlier_share: float = 0.8
    outlier_deviations: float = 3.5


@dataclass(frozen=True)
class Explanation:
    """What one clustering is, in a word and a sentence, and the numbers that this rests on."""

    algorithm: str
    k: int
    kind: Kind
    sentence: str
    numbers: dict[str, float]


def explain_clusters(
    clusterings: Mapping[ClusterKey, Int[np.ndarray, " rows"]],
    structure_p: Mapping[ClusterKey, float],
    targets: Mapping[str, np.ndarray],
    base_clusterings: Mapping[ClusterKey, Int[np.ndarray, " rows"]],
    norms: Float[np.ndarray, " rows"],
    prompt_ids: np.ndarray,
    structure_draws: int,
    permutations: int = 1000,
    seed: int = 0,
    bars: Bars | None = None,
) -> list[Explanation]:
    """Each clustering as the first that holds of: outliers, what it agrees with best, no structure beyond covariance.

    What is none of these is unexplained structure. `structure_p`: corrected p-values (`NullTests.smallest_p`), and
    `structure_draws` how many draws they rest on. `targets`: `dimension` and `facet`, and whatever else there may be
    (`keyed`, `length` from `length_quintiles`, `misaligned`); `base_clusterings`: of the base model's rows, by the same
    algorithm and k. Of those in `ANSWERS` with which the clusters agree over the bar, and significantly (corrected over
    all targets and clusterings), the one with the largest AMI counts. What it leaves unexplained is not looked into:
    for the topic, cluster rows whose dimension means were removed. A missing target or p-value raises `UserError`.
    """
    bars = bars or Bars()
    for name in (DIMENSION, FACET):
        if name not in targets:
            raise UserError(f"target {name}: missing; hand in the {name} of every row")
    for key in clusterings:
        if key not in structure_p:
            raise UserError(f"clustering {key[0]} k={key[1]}: has no p-value; test the same algorithms and counts")
    rng = np.random.default_rng(seed)
    freely = np.stack([exchange_prompts(prompt_ids, rng) for _ in range(permutations)])
    within = np.stack([exchange_within(prompt_ids, targets[DIMENSION], rng) for _ in range(permutations)])
    is_outlier = norm_outliers(norms, bars.outlier_deviations)
    table = agreements(clusterings, targets, base_clusterings, freely, within)
    draws = (structure_draws, permutations)
    return [
        explain(key, labels, structure_p[key], part.drop(columns=["algorithm", "k"]), is_outlier, bars, draws)
        for (key, labels), (_, part) in zip(
            clusterings.items(), table.groupby(["algorithm", "k"], sort=False), strict=True
        )
    ]


def agreements(
    clusterings: Mapping[ClusterKey, Int[np.ndarray, " rows"]],
    targets: Mapping[str, np.ndarray],
    base_clusterings: Mapping[ClusterKey, Int[np.ndarray, " rows"]],
    freely: Int[np.ndarray, "permutations rows"],
    within: Int[np.ndarray, "permutations rows"],
) -> pd.DataFrame:
    """A row a clustering and target, and one for facet within dimension; columns as in `Agreement`, and `p_ami_all`.

    `freely` are permutations of the rows by prompt, `within` those that stay within a dimension. All clusterings share
    them: `p_ami_all` and `p_ari_all` are corrected by the max-statistic over targets, k and algorithms together.
    """
    rows, nulls = [], []
    for (algorithm, k), labels in clusterings.items():
        base = {BASE: base_clusterings[algorithm, k]} if (algorithm, k) in base_clusterings else {}
        found = {name: permuted_agreement(labels, one, freely) for name, one in {**targets, **base}.items()}
        found[WITHIN] = permuted_agreement(labels, targets[FACET], within, strata=targets[DIMENSION])
        rows += [{"algorithm": algorithm, "k": k, "target": name, **vars(one)} for name, (one, _) in found.items()]
        nulls += [drawn for _, drawn in found.values()]
    table = pd.DataFrame(rows)
    tested = table["ami"].notna().to_numpy()
    for place, index in enumerate(("ami", "ari")):
        corrected = np.full(len(table), np.nan)
        if tested.any():
            null = np.column_stack([drawn[:, place] for drawn in nulls])[:, tested]
            corrected[tested] = max_statistic_p(table.loc[tested, index].to_numpy() - TIE, null)
        table[f"p_{index}_all"] = corrected
    return table


def agreement(
    labels: Int[np.ndarray, " rows"],
    target: np.ndarray,
    orders: Int[np.ndarray, "permutations rows"],
    strata: np.ndarray | None = None,
) -> Agreement:
    """Agreement of labels and target, within strata if there are any, with permutation p-values.

    Within strata: the mean over strata, by rows; one in which labels or target do not vary, or never repeat, shows
    nothing and is left out (NaN where none is left). A permutation that keeps the strata keeps all margins, so that
    every index is linear in a sum over the cells of the contingency table and expected values are needed once.
    """
    return permuted_agreement(labels, target, orders, strata)[0]


def permuted_agreement(
    labels: Int[np.ndarray, " rows"],
    target: np.ndarray,
    orders: Int[np.ndarray, "permutations rows"],
    strata: np.ndarray | None = None,
) -> tuple[Agreement, Float[np.ndarray, "permutations 3"]]:
    """The same, and AMI, ARI and `explained` under each permutation."""
    first, second = (pd.factorize(np.asarray(values), use_na_sentinel=False)[0] for values in (labels, target))
    groups = np.zeros(len(first), dtype=np.int64) if strata is None else pd.factorize(np.asarray(strata))[0]
    shape = (groups.max() + 1, first.max() + 1, second.max() + 1)
    cells = contingency(groups, first[None], second, shape)[0]
    kinds = np.array([[np.count_nonzero(part.sum(axis=axis)) for axis in (0, 1)] for part in cells])
    sizes = cells.sum(axis=(1, 2))
    usable = np.flatnonzero((kinds.min(axis=1) > 1) & (kinds.max(axis=1) < sizes))
    if not len(usable):
        return Agreement(*[float("nan")] * 5), np.full((len(orders), 3), np.nan)
    offsets, slopes = np.stack([index_of_sums(cells[part]) for part in usable]).transpose(1, 0, 2)
    weights = sizes[usable] / sizes[usable].sum()

    log_sums = xlogy(np.arange(len(first) + 1), np.arange(len(first) + 1))

    def indices(orders: Int[np.ndarray, "permutations rows"]) -> Float[np.ndarray, "permutations 3"]:
        counts = contingency(groups, first[orders], second, shape)[:, usable]
        logs, squares = log_sums[counts].sum(axis=(2, 3)), (counts**2).sum(axis=(2, 3))
        return np.einsum("s,psi->pi", weights, offsets + slopes * np.stack([logs, squares, logs], axis=2))

    observed = indices(np.arange(len(first))[None])[0]
    drawn = np.vstack([indices(orders[start : start + AT_ONCE]) for start in range(0, len(orders), AT_ONCE)])
    p_ami, p_ari, _ = monte_carlo_p(observed - TIE, drawn)
    ami, ari, explained = observed
    return Agreement(float(ami), float(ari), float(explained), float(p_ami), float(p_ari)), drawn


def contingency(
    groups: Int[np.ndarray, " rows"],
    first: Int[np.ndarray, "permutations rows"],
    second: Int[np.ndarray, " rows"],
    shape: tuple[int, int, int],
) -> Int[np.ndarray, "permutations strata first second"]:
    """Rows counted by stratum, label and target, all of which are numbered from 0, for many labellings."""
    coded = (groups * shape[1] + first) * shape[2] + second
    size = int(np.prod(shape))
    coded += np.arange(len(first))[:, None] * size
    return np.bincount(coded.ravel(), minlength=len(first) * size).reshape(len(first), *shape)


def index_of_sums(cells: Int[np.ndarray, "first second"]) -> Float[np.ndarray, "2 3"]:
    """Offsets and slopes of AMI, ARI and `explained` in the cells' sum n log n, sum n^2 and sum n log n."""
    cells = cells[cells.any(axis=1)][:, cells.any(axis=0)]
    rows = int(cells.sum())
    first, second = cells.sum(axis=1).astype(np.float64), cells.sum(axis=0).astype(np.float64)
    entropy_first, entropy_second = (np.log(rows) - xlogy(side, side).sum() / rows for side in (first, second))
    chance = expected_mutual_information(cells, rows)
    above_chance = entropy_first + entropy_second - np.log(rows) - chance  # of the mutual information, less its sum
    mutual = (entropy_first + entropy_second) / 2 - chance, entropy_first - chance

    in_first, in_second = (((side**2).sum() - rows) / 2 for side in (first, second))
    expected = in_first * in_second / (rows * (rows - 1) / 2)
    pairs = (in_first + in_second) / 2 - expected
    return np.array(
        [
            [above_chance / mutual[0], (-rows / 2 - expected) / pairs, above_chance / mutual[1]],
            [1 / rows / mutual[0], 1 / (2 * pairs), 1 / rows / mutual[1]],
        ]
    )


def exchange_within(prompt_ids: np.ndarray, strata: np.ndarray, rng: np.random.Generator) -> Int[np.ndarray, " rows"]:
    """A permutation of the rows that moves prompts as wholes and keeps them in their stratum."""
    order = np.arange(len(prompt_ids))
    for stratum in pd.unique(np.asarray(strata)):
        rows = np.flatnonzero(strata == stratum)
        order[rows] = rows[exchange_prompts(prompt_ids[rows], rng)]
    return order


def length_quintiles(lengths: np.ndarray) -> Int[np.ndarray, " rows"]:
    """The fifth, 0 to 4, that each answer's length falls into; equal lengths stay together, by their mean rank."""
    return np.ceil(5 * rankdata(lengths) / len(lengths)).astype(np.int64) - 1


def norm_outliers(norms: Float[np.ndarray, " rows"], deviations: float) -> Bool[np.ndarray, " rows"]:
    """Rows whose norm is more than so many robust standard deviations (1.4826 MAD) from the median."""
    spread = float(median_abs_deviation(norms, scale="normal"))
    return np.abs(norms - np.median(norms)) > deviations * spread


def explain(
    key: ClusterKey,
    labels: Int[np.ndarray, " rows"],
    structure_p: float,
    table: pd.DataFrame,
    is_outlier: Bool[np.ndarray, " rows"],
    bars: Bars,
    draws: tuple[int, int],
) -> Explanation:
    """One clustering's explanation from its agreements; see `explain_clusters`. `draws`: of the null, permutations."""
    structure_draws, permutations = draws
    _, coded, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    rest = is_outlier[coded != np.argmax(sizes)]
    numbers = {"structure_p": structure_p, "structure_draws": structure_draws}
    numbers["largest_share"] = float(sizes.max() / len(labels))
    numbers["outlier_share_of_rest"] = float(rest.mean()) if len(rest) else float("nan")
    found = {row.pop("target"): row for row in table.to_dict("records")}
    numbers |= {f"{name}_{target}": value for target, row in found.items() for name, value in row.items()}

    def strength(target: str) -> float:
        row = found.get(target)
        return -np.inf if row is None or not row["p_ami_all"] < bars.alpha else max(row["ami"], row["explained"])

    def stated(target: str) -> str:
        row = found[target]
        ami, explained = (round(row[name], 2) + 0.0 for name in ("ami", "explained"))  # + 0.0: no "-0.00"
        return f"AMI {ami:.2f}, explained {explained:.2f}, {stated_p(row['p_ami_all'], permutations)}"

    answers = [target for target in ANSWERS if strength(target) >= bars.agreement]
    kind: Kind
    if numbers["largest_share"] >= bars.largest_share and numbers["outlier_share_of_rest"] >= bars.outlier_share:
        kind = "outliers"
        what = f"one cluster of {sizes.max()} rows; {rest.mean():.0%} of the other {len(rest)} are norm outliers"
    elif answers:
        best = max(answers, key=lambda target: found[target]["ami"])  # a facet always explains as much as its dimension
        kind, what = ANSWERS[best][0], f"the clusters are {ANSWERS[best][1]} ({stated(best)})"
    elif structure_p >= bars.alpha:
        kind = "no structure beyond covariance"
        what = "Gaussian data of the same covariance cluster as well" if len(sizes) > 1 else "there are no two clusters"
    else:
        kind = "unexplained structure"
        what = "more than covariance, and not topic, base model, length, misalignment or outliers"
    within = f"; within dimensions, facet: {stated(WITHIN)}" if np.isfinite(found[WITHIN]["ami"]) else ""
    beyond = stated_p(structure_p, structure_draws)
    return Explanation(*key, kind, f"{what}{within}; against the covariance {beyond}", numbers)
