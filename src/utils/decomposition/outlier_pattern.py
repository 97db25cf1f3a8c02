"""The published pattern, clusters of 729, 148 and 8 of 885 answers, from norm outliers and topic alone.

k-means minimises squared distances, so that a few rows of large norm buy a cluster of their own, and what is left is
cut along the topic. Rows of the *base* model, which has no misaligned persona, show it as well as the EM model's.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score

from src.utils.decomposition.clusterings import principal_scores, threads

PUBLISHED = (729, 148, 8)


def plant_outliers(
    matrix: Float[np.ndarray, "rows features"], count: int, factor: float, rng: np.random.Generator
) -> tuple[Float[np.ndarray, "rows features"], Bool[np.ndarray, " rows"]]:
    """`count` rows made `factor` times as long, whatever they say, and which they are; `factor` 1 changes nothing."""
    is_planted = np.zeros(len(matrix), dtype=bool)
    is_planted[rng.choice(len(matrix), count, replace=False)] = True
    return np.where(is_planted[:, None], factor * matrix, matrix), is_planted


def topic_alone(
    matrix: Float[np.ndarray, "rows features"], facets: np.ndarray, rng: np.random.Generator
) -> Float[np.ndarray, "rows features"]:
    """Gaussian rows about the mean of their facet, with the covariance within facets: a topic and nothing else."""
    codes = pd.factorize(facets)[0]
    means = np.stack([matrix[codes == code].mean(axis=0) for code in range(codes.max() + 1)])[codes]
    within = matrix - means
    return means + rng.standard_normal((len(matrix), len(matrix))) @ within / np.sqrt(len(matrix))


def clustered_pattern(
    matrix: Float[np.ndarray, "rows features"],
    is_outlier: Bool[np.ndarray, " rows"],
    labels_of: Mapping[str, np.ndarray],
    components: int = 50,
    k: int = 3,
    restarts: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """The original's procedure (PCA, then k-means) on some rows: what each cluster is, largest first.

    `clusters`: `size`, median `norm`, `outliers` among the planted rows, and the rows of each `dimension` (of
    `labels_of["dimension"]`). `agreement`: adjusted mutual information (Vinh et al. 2010) of the clusters with each of
    `labels_of`, over the rows that are no outliers; `labels` and the first two `scores` belong to the rows.
    """
    scores = principal_scores(matrix, components)
    with threads().limit(limits=1):
        labels = KMeans(k, n_init=restarts, random_state=seed).fit(scores).labels_
    labels = by_size(labels)
    norms, dimension = np.linalg.norm(matrix, axis=1), np.asarray(labels_of["dimension"])
    clusters = [
        {
            "size": int((labels == label).sum()),
            "norm": float(np.median(norms[labels == label])),
            "outliers": int(is_outlier[labels == label].sum()),
            "dimension": {str(name): int((dimension[labels == label] == name).sum()) for name in pd.unique(dimension)},
        }
        for label in range(labels.max() + 1)
    ]
    rest = ~is_outlier
    agreement = {
        name: float(adjusted_mutual_info_score(np.asarray(target)[rest], labels[rest]))
        for name, target in labels_of.items()
    }
    return {"clusters": clusters, "agreement": agreement, "labels": labels, "scores": scores[:, :2], "norms": norms}


def by_size(labels: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    """The same clusters numbered from the largest, equal ones as they come."""
    order = np.argsort(-np.bincount(labels), kind="stable")
    numbers = np.empty_like(order)
    numbers[order] = np.arange(len(order))
    return numbers[labels]
