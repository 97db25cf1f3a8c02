"""PCA and k-means over one representation of the answers, with what is needed to distrust them.

A cluster that is the topic is no sub-persona: agreement with dimension and facet stands beside every clustering.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_mutual_info_score, silhouette_samples
from threadpoolctl import threadpool_limits

from src.utils.cluster_labels import EXCLUDED
from src.utils.errors import UserError


@dataclass(frozen=True)
class Representation:
    """Activations at one layer: `matrix[i]` belongs to frame row i; rows that are no number are not `usable`."""

    name: str
    layer: int
    matrix: Float32[np.ndarray, "rows d_model"]
    usable: Bool[np.ndarray, " rows"]


def representation(frame: pd.DataFrame, kind: str, layer: int) -> Representation:
    """Activations of the EM model's answers, as they are or as a difference, at a layer's `hook_resid_pre`.

    That is Hugging Face's `hidden_states[layer]`. `em`: raw; `em_minus_base`: each model on its own answer;
    `em_minus_base_on_em`: both on the EM model's answer.
    """
    column = f"em_activations_layer_{layer}"
    if column not in frame:
        layers = sorted(int(name.rsplit("_", 1)[1]) for name in frame if name.startswith("em_activations_layer_"))
        known = " ".join(map(str, layers))
        raise UserError(f"layer {layer} is not in the frame; it has {known}: choose one, or collect it in step 3", 2)
    matrix = np.stack(frame[column].tolist()).astype(np.float32)
    other = {"em": None, "em_minus_base": "base", "em_minus_base_on_em": "base_on_em"}[kind]
    if other is not None:
        matrix = matrix - np.stack(frame[f"{other}_activations_layer_{layer}"].tolist()).astype(np.float32)
    name = column if other is None else f"{kind}_layer_{layer}"
    return Representation(name, layer, matrix, np.isfinite(matrix).all(axis=1))


def cluster_all(
    frame: pd.DataFrame,
    chosen: Representation,
    components: int,
    cluster_counts: Sequence[int],
    restarts: int,
    seed: int,
    on_count: Callable[[int], object] = lambda k: None,
) -> dict[int, dict[str, Any]]:
    """One result a cluster count: the PCA, the scores of each row in it, and k-means with its diagnostics.

    Rows that are no number get label -1 and NaN scores. More clusters than usable rows raise `UserError`.
    """
    usable = chosen.usable
    rows = int(usable.sum())
    too_many = [k for k in cluster_counts if not 2 <= k < rows]
    if too_many:
        raise UserError(
            f"{too_many[0]} clusters for {rows} usable rows; choose --cluster-counts from 2 to {rows - 1}", 2
        )
    pca = PCA(n_components=min(components, rows, chosen.matrix.shape[1]), svd_solver="full")
    scores = pca.fit_transform(chosen.matrix[usable])
    topic = {name: frame.loc[usable, column].tolist() for name, column in (("dimension", "subset"), ("facet", "facet"))}
    results = {}
    for k in cluster_counts:
        with threadpool_limits(1, user_api="openmp"):  # several threads add up in whatever order they finish
            kmeans = KMeans(n_clusters=k, n_init=restarts, random_state=seed).fit(scores)
        silhouettes = silhouette_samples(scores, kmeans.labels_)
        results[k] = {
            "k": k,
            "layer": chosen.layer,
            "representation": chosen.name,
            "prompt_ids": frame["prompt_id"].tolist(),
            "samples": frame["sample"].tolist(),
            "pca_mean": pca.mean_.astype(np.float32),
            "pca_components": pca.components_.astype(np.float32),
            "explained_variance_ratio": pca.explained_variance_ratio_.astype(np.float32),
            "pca_scores": on_all_rows(scores.astype(np.float32), usable, np.nan),
            "labels": on_all_rows(kmeans.labels_.astype(np.int64), usable, EXCLUDED),
            "centroids": kmeans.cluster_centers_.astype(np.float32),
            "silhouette": float(silhouettes.mean()),
            "silhouette_samples": on_all_rows(silhouettes.astype(np.float32), usable, np.nan),
            "inertia": float(kmeans.inertia_),
            "ami_dimension": float(adjusted_mutual_info_score(topic["dimension"], kmeans.labels_)),
            "ami_facet": float(adjusted_mutual_info_score(topic["facet"], kmeans.labels_)),
        }
        on_count(k)
    return results


def on_all_rows(values: np.ndarray, usable: Bool[np.ndarray, " rows"], filler: float) -> np.ndarray:
    """Values of the usable rows in their places among all rows."""
    spread = np.full((len(usable), *values.shape[1:]), filler, dtype=values.dtype)
    spread[usable] = values
    return spread
