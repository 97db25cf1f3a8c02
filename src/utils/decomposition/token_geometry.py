"""Clusters of single tokens beside those of answer means: streamed, so that no more than a shard is in memory.

Tokens of one answer are alike whatever they say, so that nothing is tested here: what is told is how far token
clusters are the topic, the answer, or the place in the answer.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from sklearn.metrics import adjusted_mutual_info_score

from src.utils.decomposition.plain_records import as_plain
from src.utils.decomposition.streaming import streaming_kmeans, streaming_pca
from src.utils.decomposition.token_inputs import TokenEvidence

PLACES = np.array([1, 2, 4, 8, 16, 32, 64, 128])  # an answer's tokens by place, in octaves


def describe_tokens(
    evidence: TokenEvidence, frame: pd.DataFrame, components: int, counts: Sequence[int], seed: int
) -> dict[str, Any]:
    """PCA and mini-batch k-means of the tokens, as plain data.

    `explained`: share of variance by component; `participation_ratio`: over those components; `clusters`: for each k
    its `sizes`, largest first, and adjusted mutual information (Vinh et al. 2010) of the tokens' labels with the
    `dimension` and `facet` of their question, with their `place` (octaves) and with their answer's majority label
    (`answer`: how far whole answers fall into one cluster). More components or clusters than tokens raise `UserError`.
    """
    rows = np.concatenate([block.rows for block in evidence.blocks()] or [np.zeros(0, np.int64)])
    places = np.concatenate([block.places for block in evidence.blocks()] or [np.zeros(0, np.int64)])
    pca = streaming_pca(evidence.matrices, min(components, max(1, len(rows) - 1), width_of(evidence)))
    dimensions, facets = (pd.factorize(frame[name])[0][rows] for name in ("subset", "facet"))
    octaves = np.searchsorted(PLACES, places, side="right")
    clusters = []
    for k in counts:
        model = streaming_kmeans(lambda: map(pca.transform, evidence.matrices()), k, seed)
        labels = np.concatenate(list(model.labels(map(pca.transform, evidence.matrices()))))
        targets = {
            "dimension": dimensions,
            "facet": facets,
            "place": octaves,
            "answer": majority(labels, rows),
        }
        agreement = {name: float(adjusted_mutual_info_score(target, labels)) for name, target in targets.items()}
        clusters.append({"k": k, "sizes": sorted(model.sizes.tolist(), reverse=True), **agreement})
    variances = pca.variances
    return as_plain(
        {
            "name": evidence.name,
            "tokens": len(rows),
            "answers": len(np.unique(rows)),
            "explained": pca.explained_variance_ratio,
            "participation_ratio": float(variances.sum() ** 2 / (variances**2).sum()),
            "clusters": clusters,
        }
    )


def width_of(evidence: TokenEvidence) -> int:
    return next((block.matrix.shape[1] for block in evidence.blocks()), 1)


def majority(labels: Int[np.ndarray, " tokens"], rows: Int[np.ndarray, " tokens"]) -> Int[np.ndarray, " tokens"]:
    """For each token the most frequent label among those of its answer, the smallest of equals."""
    answers, index = np.unique(rows, return_inverse=True)
    votes = np.zeros((len(answers), int(labels.max(initial=0)) + 1), dtype=np.int64)
    np.add.at(votes, (index, labels), 1)
    return votes.argmax(axis=1)[index]
