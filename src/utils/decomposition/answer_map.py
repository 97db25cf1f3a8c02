"""Two summaries of where answers lie that are drawn, not tested: the top of Ward's tree, and a t-SNE map.

Neither says whether there are clusters; `cluster_nulls` does.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.manifold import TSNE

from src.utils.decomposition.clusterings import threads, ward_linkage
from src.utils.errors import UserError

LEAVES = 40
PERPLEXITY = 30.0


def ward_tree(
    scores: Float[np.ndarray, "rows components"], dimensions: np.ndarray, leaves: int = LEAVES
) -> dict[str, Any]:
    """The last merges of Ward's agglomeration, and how many rows of each dimension each of its leaves holds.

    `merges`: rows of a scipy linkage matrix over the leaves (left, right, height, leaves). `leaves`: `rows` and
    `counts` by dimension. Raises `UserError` for fewer than three rows.
    """
    if len(scores) < 3:
        raise UserError(f"tree: {len(scores)} rows; three are needed")
    tree = ward_linkage(scores)
    count = min(leaves, len(scores))
    # the merges before the last count - 1 lie within a leaf; a tree's nodes are its rows, then its merges in order
    inner = len(scores) - count
    labels = members(tree, inner)
    number = {int(node): place for place, node in enumerate(dict.fromkeys(labels.tolist()))}
    merges, sizes = [], [1] * count
    for place, (left, right, height) in enumerate(tree[inner:, :3]):
        one, other = number[int(left)], number[int(right)]
        sizes.append(sizes[one] + sizes[other])
        merges.append([one, other, height, sizes[-1]])
        number[len(scores) + inner + place] = count + place
    held = [dimensions[labels == node] for node in dict.fromkeys(labels.tolist())]
    names = list(dict.fromkeys(dimensions.tolist()))
    return {
        "rows": len(scores),
        "merges": merges,
        "leaves": [{"rows": len(own), "counts": {name: int((own == name).sum()) for name in names}} for own in held],
    }


def members(tree: Float[np.ndarray, "merges 4"], inner: int) -> np.ndarray:
    """The node that each row is in after the first `inner` merges."""
    labels = np.arange(len(tree) + 1)
    for place, (left, right) in enumerate(tree[:inner, :2].astype(int)):
        labels[(labels == left) | (labels == right)] = len(tree) + 1 + place
    return labels


def tsne_map(scores: Float[np.ndarray, "rows components"], seed: int, perplexity: float = PERPLEXITY) -> dict[str, Any]:
    """t-SNE (van der Maaten & Hinton 2008) of principal scores, from their first two: `x`, `y` and `perplexity`.

    The perplexity is a third of the rows at most. Raises `UserError` for fewer than five rows or two components.
    """
    if len(scores) < 5 or scores.shape[1] < 2:
        raise UserError(f"t-SNE: {len(scores)} rows of {scores.shape[1]} components; five of two are needed")
    chosen = min(perplexity, (len(scores) - 1) / 3)
    with threads().limit(limits=1):  # several threads add up in whatever order they finish
        made = TSNE(perplexity=chosen, init="pca", random_state=seed, n_jobs=1).fit_transform(scores)
    x, y = np.round(made.astype(float), 3).T
    return {"perplexity": chosen, "x": x, "y": y}
