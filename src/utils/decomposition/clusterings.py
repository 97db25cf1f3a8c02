"""Clusterings of rows by five algorithms, and what internal indices say of each.

All of it is scikit-learn and scipy on one thread, so that the same settings give the same labels. Whether a clustering
means anything is left to `cluster_nulls` (is there more than a covariance?) and `cluster_agreement` (is it the topic?).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import DBSCAN, HDBSCAN, KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import calinski_harabasz_score, davies_bouldin_score, euclidean_distances
from sklearn.mixture import GaussianMixture
from sklearn.utils.extmath import svd_flip
from threadpoolctl import ThreadpoolController

from src.utils.errors import UserError

BY_COUNT = ("kmeans", "gaussian_mixture", "ward")
BY_DENSITY = ("dbscan", "hdbscan")
ALGORITHMS = (*BY_COUNT, *BY_DENSITY)
NOISE = -1
FOUND = 0  # the k of an algorithm that finds the number of clusters itself
LEAST_VARIANCE = 1e-2  # of a mixture's component, in units of the smallest column variance
MOST_STEPS = 300  # of k-means and of a mixture's EM

ClusterKey = tuple[str, int]  # algorithm and k


@dataclass(frozen=True)
class ClusterSettings:
    """What is clustered how.

    `counts` are the k of k-means, Gaussian mixtures and Ward's agglomeration; DBSCAN and HDBSCAN find theirs.
    `restarts` is `n_init` of k-means; mixtures, which cost ten times as much, start once. `covariance` is that of
    mixtures: the columns of principal scores are uncorrelated, so that one diagonal component is already the whole
    Gaussian. `eps` of DBSCAN: None takes the knee of the distances to the `min_samples`-th neighbour (see
    `neighbour_knee`).
    """

    counts: tuple[int, ...] = (3, 4, 5, 7, 15, 50)
    algorithms: tuple[str, ...] = ALGORITHMS
    restarts: int = 1
    seed: int = 0
    covariance: Literal["full", "tied", "diag", "spherical"] = "diag"
    eps: float | None = None
    min_samples: int = 10
    min_cluster_size: int = 20


@dataclass(frozen=True, eq=False)
class Clustering:
    """Labels of the rows, `NOISE` where a density algorithm leaves a row out; `bic` and `eps` NaN where undefined."""

    algorithm: str
    k: int
    labels: Int[np.ndarray, " rows"]
    bic: float = float("nan")
    eps: float = float("nan")


@dataclass(frozen=True, eq=False)
class PrincipalAxes:
    """What was taken off every row, unit directions, each one's share of the variance, and the rows' scores."""

    mean: Float[np.ndarray, " features"]
    components: Float[np.ndarray, "kept features"]
    explained: Float[np.ndarray, " kept"]
    scores: Float[np.ndarray, "rows kept"]


def principal_scores(
    matrix: Float[np.ndarray, "rows features"], components: int, centre: bool = True
) -> Float[np.ndarray, "rows kept"]:
    """The scores of `principal_axes`."""
    return principal_axes(matrix, components, centre).scores


def principal_axes(matrix: Float[np.ndarray, "rows features"], components: int, centre: bool = True) -> PrincipalAxes:
    """The leading principal components, float64; those that are rounding are left out.

    Without `centre` no mean is taken off: directions are those of the rows themselves (scikit-learn's `TruncatedSVD`),
    the first of which is about that of their mean.
    """
    rows = np.asarray(matrix, dtype=np.float64)
    count = min(components, *matrix.shape)
    with threads().limit(limits=1):
        if centre:
            pca = PCA(n_components=count, svd_solver="full")
            scores = pca.fit_transform(rows)
            mean, directions, sizes = pca.mean_, pca.components_, pca.singular_values_
            explained = pca.explained_variance_ratio_
        else:
            left, every, right = np.linalg.svd(rows, full_matrices=False)
            left, right = svd_flip(left, right, u_based_decision=False)
            mean, directions, sizes = np.zeros(rows.shape[1]), right[:count], every[:count]
            scores = left[:, :count] * sizes
            explained = scores.var(axis=0) / rows.var(axis=0).sum()
    kept = sizes > sizes[0] * max(matrix.shape) * np.finfo(np.float64).eps
    return PrincipalAxes(mean, directions[kept], explained[kept], scores[:, kept])


def cluster_rows(
    matrix: Float[np.ndarray, "rows features"],
    settings: ClusterSettings,
    distances: Float[np.ndarray, "rows rows"] | None = None,
) -> dict[ClusterKey, Clustering]:
    """A clustering for every algorithm and k (`FOUND` for the density algorithms), of euclidean distances.

    `distances` spares computing them where they are at hand. A k that is not between 2 and the number of rows - 1, or
    an unknown algorithm, raises `UserError`.
    """
    check_settings(settings, len(matrix))
    found: list[Clustering] = []
    with threads().limit(limits=1):  # several threads add up in whatever order they finish
        for algorithm in settings.algorithms:
            if algorithm == "kmeans":
                found += [Clustering(algorithm, k, kmeans(matrix, k, settings)) for k in settings.counts]
            elif algorithm == "gaussian_mixture":
                for k in settings.counts:
                    mixture = fit_mixture(matrix, k, settings)
                    found.append(Clustering(algorithm, k, mixture.predict(matrix), bic=mixture.bic(matrix)))
            elif algorithm == "ward":
                tree = ward_linkage(matrix)
                found += [Clustering(algorithm, k, cut(tree, k)) for k in settings.counts]
            else:
                distances = euclidean_distances(matrix) if distances is None else distances
                found.append(by_density(algorithm, distances, settings))
    return {(one.algorithm, one.k): one for one in found}


@cache
def threads() -> ThreadpoolController:
    """The loaded libraries' thread pools; to look for them takes longer than a small clustering."""
    return ThreadpoolController()


def check_settings(settings: ClusterSettings, rows: int) -> None:
    """Raises `UserError` for what cannot be clustered."""
    for k in settings.counts if set(settings.algorithms) & set(BY_COUNT) else ():
        if not 2 <= k < rows:
            raise UserError(f"{k} clusters for {rows} usable rows; choose --cluster-counts from 2 to {rows - 1}", 2)
    for algorithm in settings.algorithms:
        if algorithm not in ALGORITHMS:
            raise UserError(f"clustering algorithm {algorithm!r} is not known; choose from {' '.join(ALGORITHMS)}", 2)


def kmeans(matrix: Float[np.ndarray, "rows features"], k: int, settings: ClusterSettings) -> Int[np.ndarray, " rows"]:
    model = KMeans(n_clusters=k, n_init=settings.restarts, random_state=settings.seed, max_iter=MOST_STEPS)
    return model.fit(matrix).labels_.astype(np.int64)


def fit_mixture(matrix: Float[np.ndarray, "rows features"], k: int, settings: ClusterSettings) -> GaussianMixture:
    """A mixture whose components keep at least `LEAST_VARIANCE` of the smallest column variance.

    Without a bound a component of one row has an infinite likelihood; scikit-learn's (1e-6) depends on the data's unit.
    """
    return GaussianMixture(
        k,
        covariance_type=settings.covariance,
        reg_covar=LEAST_VARIANCE * float(matrix.var(axis=0).min()),
        max_iter=MOST_STEPS,
        random_state=settings.seed,
    ).fit(matrix)


def ward_linkage(matrix: Float[np.ndarray, "rows features"]) -> Float[np.ndarray, "merges 4"]:
    """The linkage matrix of Ward's agglomeration, as `scipy.cluster.hierarchy.dendrogram` takes it."""
    return linkage(matrix, "ward")


def cut(tree: Float[np.ndarray, "merges 4"], k: int) -> Int[np.ndarray, " rows"]:
    """Labels 0..k-1 of the tree cut into k clusters (fewer only where merges of equal height leave no such cut)."""
    return fcluster(tree, k, criterion="maxclust").astype(np.int64) - 1


def by_density(algorithm: str, distances: Float[np.ndarray, "rows rows"], settings: ClusterSettings) -> Clustering:
    if algorithm == "hdbscan":
        size = min(settings.min_cluster_size, len(distances))
        model = HDBSCAN(min_cluster_size=size, metric="precomputed", copy=True).fit(distances)
        return Clustering(algorithm, FOUND, model.labels_.astype(np.int64))
    eps = neighbour_knee(distances, settings.min_samples) if settings.eps is None else settings.eps
    model = DBSCAN(eps=eps, min_samples=settings.min_samples, metric="precomputed").fit(distances)
    return Clustering(algorithm, FOUND, model.labels_.astype(np.int64), eps=eps)


def neighbour_knee(distances: Float[np.ndarray, "rows rows"], min_samples: int) -> float:
    """The eps of DBSCAN: the knee of the sorted distances to the `min_samples`-th neighbour, oneself counted.

    Ester et al. 1996, section 4.2, read the knee off a plot; here it is `knee` of the curve.
    """
    nth = min(min_samples, len(distances)) - 1
    reach = np.sort(np.partition(distances, nth, axis=1)[:, nth])
    return max(float(reach[knee(np.arange(len(reach)), reach)]), np.finfo(np.float64).tiny)


def knee(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> int:
    """Where a curve lies farthest below the straight line between its two ends, after both axes are scaled to 0..1.

    The rule of Satopää et al. 2011 (Kneedle) without smoothing, for convex curves.
    """
    across, up = (np.asarray(values, dtype=np.float64) for values in (x, y))
    chord = up[0] + (up[-1] - up[0]) * (across - across[0]) / (across[-1] - across[0])
    return int(np.argmax(chord - up))


def mean_silhouette(distances: Float[np.ndarray, "rows rows"], labels: Int[np.ndarray, " rows"]) -> float:
    """Mean silhouette (Rousseeuw 1987) over all rows, noise and rows alone in their cluster counting 0.

    Noise is no cluster to be near to. Fewer than two clusters: NaN. The sums over clusters are one matrix product: it
    shares the distances between clusterings and is faster than scikit-learn's loop; the values are the same.
    """
    clustered = labels != NOISE
    clusters, coded = np.unique(labels[clustered], return_inverse=True)
    if len(clusters) < 2:
        return float("nan")
    members = np.zeros((len(labels), len(clusters)))
    members[np.flatnonzero(clustered), coded] = 1
    sizes, own = members.sum(axis=0), (np.arange(len(coded)), coded)
    sums = (distances @ members)[clustered]
    within = sums[own] / np.maximum(sizes[coded] - 1, 1)
    means = sums / sizes
    means[own] = np.inf
    nearest = means.min(axis=1)
    widths = (nearest - within) / np.maximum(np.maximum(nearest, within), np.finfo(np.float64).tiny)
    return float(widths[sizes[coded] > 1].sum() / len(labels))


def within_squares(matrix: Float[np.ndarray, "rows features"], labels: Int[np.ndarray, " rows"]) -> float:
    """Squared distances to the mean of one's cluster, summed over all that are in a cluster (k-means' inertia)."""
    rows, coded = matrix[labels != NOISE], np.unique(labels[labels != NOISE], return_inverse=True)[1]
    members = np.zeros((len(rows), coded.max(initial=-1) + 1))
    members[np.arange(len(rows)), coded] = 1
    means = (members.T @ rows) / members.sum(axis=0)[:, None]
    return float(((rows - means[coded]) ** 2).sum())


def validation(
    matrix: Float[np.ndarray, "rows features"], clusterings: Mapping[ClusterKey, Clustering]
) -> pd.DataFrame:
    """A row a clustering: `algorithm, k, clusters, noise_share, largest_share` and the internal indices.

    `silhouette` is `mean_silhouette`; `calinski_harabasz` and `davies_bouldin` (lower is better) are taken over the
    rows in a cluster and NaN for fewer than two clusters; `inertia` is `within_squares`; `bic` (lower is better) is of
    mixtures, `eps` of DBSCAN. Shares are of all rows.
    """
    distances = euclidean_distances(matrix)
    rows = []
    for (algorithm, k), clustering in clusterings.items():
        clustered = clustering.labels != NOISE
        _, sizes = np.unique(clustering.labels[clustered], return_counts=True)
        part = (matrix[clustered], clustering.labels[clustered])
        is_defined = 2 <= len(sizes) < clustered.sum()
        rows.append(
            {
                "algorithm": algorithm,
                "k": k,
                "clusters": len(sizes),
                "noise_share": 1 - float(clustered.mean()),
                "largest_share": float(sizes.max(initial=0) / len(matrix)),
                "silhouette": mean_silhouette(distances, clustering.labels),
                "calinski_harabasz": float(calinski_harabasz_score(*part)) if is_defined else float("nan"),
                "davies_bouldin": float(davies_bouldin_score(*part)) if is_defined else float("nan"),
                "inertia": within_squares(matrix, clustering.labels),
                "bic": clustering.bic,
                "eps": clustering.eps,
            }
        )
    return pd.DataFrame(rows)


def chosen_counts(
    matrix: Float[np.ndarray, "rows features"], table: pd.DataFrame, settings: ClusterSettings
) -> pd.DataFrame:
    """What each internal index would choose: `algorithm, index, k`, for the algorithms that are given k.

    Highest silhouette and Calinski-Harabasz, lowest Davies-Bouldin; for k-means the `elbow`: the `knee` of inertia over
    log k (cluster counts grow by factors); for mixtures the lowest BIC, one component (no clusters) among the choices.
    None of these, the BIC apart, can choose 1: they say which k, not whether.
    """
    rows = []
    for algorithm in (name for name in BY_COUNT if name in settings.algorithms):
        part = table[table["algorithm"] == algorithm].sort_values("k")
        counts = part["k"].to_numpy()
        for index, sign in (("silhouette", 1), ("calinski_harabasz", 1), ("davies_bouldin", -1)):
            rows.append((algorithm, index, counts[np.argmax(sign * part[index].to_numpy())]))
        if algorithm == "kmeans" and len(counts) > 2:
            rows.append((algorithm, "elbow", counts[knee(np.log(counts), part["inertia"].to_numpy())]))
        if algorithm == "gaussian_mixture":
            with threads().limit(limits=1):
                alone = fit_mixture(matrix, 1, settings).bic(matrix)
            rows.append((algorithm, "bic", [1, *counts][int(np.argmin([alone, *part["bic"]]))]))
    return pd.DataFrame(rows, columns=["algorithm", "index", "k"]).astype({"k": int})
