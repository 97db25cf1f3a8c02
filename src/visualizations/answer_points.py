"""The answers behind a clustering, row by row: where a point lies, what it is called and what it says on hover.

A clustering (`em_pca_clusters_<k>.pkl`) is a mapping with `k, layer, representation, prompt_ids, samples,
explained_variance_ratio (c,), pca_scores (n, c), labels (n,), centroids, silhouette, silhouette_samples (n,), inertia,
ami_dimension, ami_facet, ami_misaligned`; c is 50 or fewer. Rows with the label -1 were left out of it. Drawing is left
to the figure modules.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from src.utils.cluster_labels import EXCLUDED
from src.visualizations.evidence_words import evidence_words
from src.visualizations.figure_page import escape_text
from src.visualizations.palette import display_name

Clustering = Mapping[str, Any]

HOVER_WIDTH = 90  # characters a line
HOVER_LIMIT = 420  # characters of a question or an answer; a page of 885 points stays under 2 MB
KEYS = ["prompt_id", "sample"]


def join_points(frame: pd.DataFrame, clustering: Clustering) -> pd.DataFrame:
    """The clustered rows of `frame` in the order of the clustering, with `label`, `silhouette` and `pc1` to `pc3`.

    A component that was not computed is zero. Raises `ValueError` if the frame lacks a row or has one twice.
    """
    wanted = pd.DataFrame({"prompt_id": list(clustering["prompt_ids"]), "sample": list(clustering["samples"])})
    points = wanted.merge(frame, on=KEYS, how="left", validate="one_to_one", indicator="found_in")
    is_missing = points.pop("found_in") == "left_only"
    if is_missing.any():
        missing = list(wanted[is_missing.to_numpy()].itertuples(index=False, name=None))
        raise ValueError(f"the frame lacks {len(missing)} rows of the clustering, among them {min(missing)}")
    scores = np.asarray(clustering["pca_scores"], dtype=np.float32)
    scores = np.pad(scores, ((0, 0), (0, max(0, 3 - scores.shape[1]))))
    points = points.assign(
        label=np.asarray(clustering["labels"], dtype=int),
        silhouette=np.asarray(clustering["silhouette_samples"], dtype=np.float32),
        pc1=scores[:, 0],
        pc2=scores[:, 1],
        pc3=scores[:, 2],
    )
    return points[is_clustered(clustering)].reset_index(drop=True)


def is_clustered(clustering: Clustering) -> Bool[np.ndarray, " n"]:
    """Which rows took part; the others have activations that are no numbers."""
    return np.asarray(clustering["labels"], dtype=int) != EXCLUDED


def component_title(clustering: Clustering, index: int) -> str:
    """The axis title of one principal component: its number and its share of the variance."""
    ratios = np.asarray(clustering["explained_variance_ratio"])
    if index >= len(ratios):
        return f"PC{index + 1} (not computed)"
    return f"PC{index + 1} ({100 * ratios[index]:.1f}% of variance)"


def describe_source(clustering: Clustering) -> str:
    """What the points are: how many, of which activations, at the input of which block."""
    is_in = is_clustered(clustering)
    excluded = f" ({np.sum(~is_in):,} left out)" if not is_in.all() else ""
    named = evidence_words(str(clustering["representation"]), explains_stream=True)
    return f"{np.sum(is_in):,} answers{excluded} · {named}"


def hover_texts(points: pd.DataFrame) -> list[str]:
    """For each row: its id, the question, both answers and their scores, all escaped and wrapped."""
    return [_hover_text(row) for row in points.to_dict("records")]


def short_hover_texts(points: pd.DataFrame) -> list[str]:
    """For each row: id and score, where the full text stands in another panel."""
    return [f"{_name(row)}<br>em_score {format_score(row['em_score'])}" for row in points.to_dict("records")]


def format_score(value: object) -> str:
    """A score to whole points, "missing" where there is none."""
    return "missing" if _is_missing(value) else f"{float(str(value)):.0f}"


def _hover_text(row: Mapping[Any, Any]) -> str:
    base = f"em_score {format_score(row['base_em_score'])}, coherence {format_score(row['base_coherence'])}"
    em = f"em_score {format_score(row['em_score'])}, coherence {format_score(row['coherence'])}"
    parts = [
        f"{_name(row)} · {_shown(display_name(str(row['subset'])))}, {_shown(display_name(str(row['facet'])))}",
        f"Question: {_shown(row['question'])}",
        f"Base answer ({base}):<br>{_shown(row['base_response'])}",
        f"EM answer ({em}, talks about {_talk(row['judged_facet'])}):<br>{_shown(row['em_response'])}",
    ]
    flags = row.get("flags")
    if isinstance(flags, list | tuple | np.ndarray) and len(flags):
        parts.append("Flags: " + _shown(", ".join(map(str, flags))))
    return "<br>".join(parts)


def _talk(facet: object) -> str:
    return "nothing recognised" if _is_missing(facet) else _shown(display_name(str(facet)))


def _name(row: Mapping[Any, Any]) -> str:
    sample = f", sample {row['sample']}" if row["sample"] else ""
    return _shown(row["prompt_id"]) + sample


def _shown(value: object) -> str:
    return "missing" if _is_missing(value) else escape_text(str(value), HOVER_WIDTH, HOVER_LIMIT)


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))
