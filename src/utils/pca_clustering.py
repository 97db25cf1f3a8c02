"""PCA and k-means over one representation of the answers, with what is needed to distrust them.

A cluster that is the topic is no sub-persona: agreement with dimension, facet and misalignment stands beside every
clustering. Whether there are clusters at all is left to `decomposition.geometry`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32
from sklearn.metrics import adjusted_mutual_info_score, silhouette_samples

from src.utils.cluster_labels import EXCLUDED
from src.utils.decomposition.clusterings import ClusterSettings, cluster_rows, principal_axes, within_squares
from src.utils.errors import UserError


@dataclass(frozen=True)
class Representation:
    """Activations: `matrix[i]` belongs to frame row i, NaN where the row is not `usable`; `layer` is the first."""

    name: str
    layer: int
    matrix: Float32[np.ndarray, "rows d_model"]
    usable: Bool[np.ndarray, " rows"]


def check_counts(chosen: Representation, cluster_counts: Sequence[int], path: Path) -> None:
    """Raise `UserError` (exit code 2) for a count that the usable rows of the frame at `path` cannot be cut into."""
    rows = int(chosen.usable.sum())
    impossible = [k for k in cluster_counts if not 2 <= k < rows]
    if impossible:
        raise UserError(
            f"{path}: {rows} usable rows cannot be cut into {impossible[0]} clusters; "
            f"choose --cluster-counts from 2 to {rows - 1}",
            2,
        )


def cluster_all(
    frame: pd.DataFrame,
    chosen: Representation,
    components: int,
    settings: ClusterSettings,
    targets: Mapping[str, np.ndarray],
    on_count: Callable[[int], object] = lambda k: None,
    centre: bool = True,
) -> dict[int, dict[str, Any]]:
    """One result a cluster count: the PCA, the scores of each row in it, and k-means with its diagnostics.

    The k-means are those that `geometry` tests: of the same scores, by the same settings. `targets` have a value for
    every row of the frame; `ami_<target>` is the agreement with them. Rows that are no number get label -1 and NaN
    scores. Without `centre` no mean is taken off before the PCA. More clusters than usable rows raise `UserError`.
    """
    usable = chosen.usable
    pca = principal_axes(chosen.matrix[usable], components, centre)
    scores = pca.scores
    results = {}
    for k in settings.counts:
        labels = cluster_rows(scores, replace(settings, counts=(k,), algorithms=("kmeans",)))["kmeans", k].labels
        silhouettes = silhouette_samples(scores, labels)
        results[k] = {
            "k": k,
            "layer": chosen.layer,
            "representation": chosen.name,
            "prompt_ids": frame["prompt_id"].tolist(),
            "samples": frame["sample"].tolist(),
            "pca_mean": pca.mean.astype(np.float32),
            "pca_components": pca.components.astype(np.float32),
            "explained_variance_ratio": pca.explained.astype(np.float32),
            "pca_scores": on_all_rows(scores.astype(np.float32), usable, np.nan),
            "labels": on_all_rows(labels, usable, EXCLUDED),
            "centroids": np.stack([scores[labels == label].mean(axis=0) for label in np.unique(labels)]).astype(
                np.float32
            ),
            "silhouette": float(silhouettes.mean()),
            "silhouette_samples": on_all_rows(silhouettes.astype(np.float32), usable, np.nan),
            "inertia": within_squares(scores, labels),
            **{
                f"ami_{name}": float(adjusted_mutual_info_score(values[usable], labels))
                for name, values in targets.items()
            },
        }
        on_count(k)
    return results


def on_all_rows(values: np.ndarray, usable: Bool[np.ndarray, " rows"], filler: float) -> np.ndarray:
    """Values of the usable rows in their places among all rows."""
    spread = np.full((len(usable), *values.shape[1:]), filler, dtype=values.dtype)
    spread[usable] = values
    return spread
