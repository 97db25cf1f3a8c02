"""The answers behind a clustering, row by row: where a point lies, what it is called and what it says on hover.

A clustering (`em_pca_clusters_<k>.pkl`) is a mapping with `k, layer, representation, prompt_ids, samples,
explained_variance_ratio (c,), pca_scores (n, c), labels (n,), centroids, silhouette, silhouette_samples (n,), inertia,
ami_dimension, ami_facet`; c is 50 or fewer. Drawing is left to the figure modules.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from src.visualizations.figure_page import escape_text
from src.visualizations.palette import display_name

Clustering = Mapping[str, Any]

HOVER_WIDTH = 90  # characters a line
HOVER_LIMIT = 420  # characters of a question or an answer; a page of 885 points stays under 2 MB
KEYS = ["prompt_id", "sample"]


def join_points(frame: pd.DataFrame, clustering: Clustering) -> pd.DataFrame:
    """The rows of `frame` in the order of the clustering, with its `label` and `silhouette`.

    Raises `ValueError` if the frame lacks a row of the clustering or has one twice.
    """
    wanted = pd.DataFrame({"prompt_id": list(clustering["prompt_ids"]), "sample": list(clustering["samples"])})
    missing = set(wanted.itertuples(index=False, name=None)) - set(frame[KEYS].itertuples(index=False, name=None))
    if missing:
        raise ValueError(f"the frame lacks {len(missing)} rows of the clustering, among them {min(missing)}")
    points = wanted.merge(frame, on=KEYS, how="left", validate="one_to_one")
    return points.assign(
        label=np.asarray(clustering["labels"], dtype=int),
        silhouette=np.asarray(clustering["silhouette_samples"], dtype=np.float32),
    )


def component(clustering: Clustering, index: int) -> Float[np.ndarray, "n"]:
    """Scores on one principal component, zeros if there are not so many."""
    scores = np.asarray(clustering["pca_scores"], dtype=np.float32)
    return scores[:, index] if index < scores.shape[1] else np.zeros(len(scores), dtype=np.float32)


def component_title(clustering: Clustering, index: int) -> str:
    """The axis title of one principal component: its number and its share of the variance."""
    ratios = np.asarray(clustering["explained_variance_ratio"])
    if index >= len(ratios):
        return f"PC{index + 1} (not computed)"
    return f"PC{index + 1} ({100 * ratios[index]:.1f}% of variance)"


def describe_source(clustering: Clustering) -> str:
    """What the points are: how many, of which activations, at the input of which block."""
    layer, n = clustering["layer"], len(clustering["prompt_ids"])
    representation = str(clustering["representation"]).removesuffix(f"_layer_{layer}")
    return (
        f"{n:,} answers · {escape_text(display_name(representation))}, layer {layer} "
        f"(resid_pre: the input of block {layer}, hidden_states[{layer}])"
    )


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
    parts = [
        f"{_name(row)} · {_shown(display_name(str(row['subset'])))}, {_shown(row['facet'])}",
        f"Question: {_shown(row['question'])}",
        f"Base answer (em_score {format_score(row['base_em_score'])}, "
        f"coherence {format_score(row['base_coherence'])}):<br>{_shown(row['base_response'])}",
        f"EM answer (em_score {format_score(row['em_score'])}, coherence {format_score(row['coherence'])}, "
        f"talks about {_shown(row['judged_facet'], 'nothing recognised')}):<br>{_shown(row['em_response'])}",
    ]
    flags = row.get("flags")
    if isinstance(flags, Sequence | np.ndarray) and len(flags):
        parts.append("Flags: " + _shown(", ".join(map(str, flags))))
    return "<br>".join(parts)


def _name(row: Mapping[Any, Any]) -> str:
    sample = f", sample {row['sample']}" if row["sample"] else ""
    return _shown(row["prompt_id"]) + sample


def _shown(value: object, missing: str = "missing") -> str:
    return missing if _is_missing(value) else escape_text(str(value), HOVER_WIDTH, HOVER_LIMIT)


def _is_missing(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value))
