"""What a linear probe reads off each layer, beside shuffled labels and the same model before training.

A model that has never seen a label separates classes a little (held-out AUROC 0.67 was seen on random weights): a
layer says something only where it beats chance, corrected over layers, and what it said before training.

The probe is ridge regression on labels of +1 and -1: its held-out scores are linear in the labels, so that hundreds of
shuffled labelings cost one product of matrices.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from sklearn.model_selection import StratifiedGroupKFold

from src.utils.decomposition.multiplicity import max_statistic_p
from src.utils.decomposition.probe_scores import Predictions, auroc
from src.utils.decomposition.prompt_resampling import prompt_weights

FOLDS, SHUFFLES, RESAMPLES = 5, 999, 500
ALPHA = 0.001  # as strict as `GAP_ALPHA`: of a hundred shuffled labelings none is to be called learned


@dataclass(frozen=True, eq=False)
class LayerProbes:
    """AUROC of held-out rows by layer, with 95% intervals over groups.

    `null` are the AUROCs of shuffled labels, `p` those of the layer corrected over layers against them (maxT).
    `before` and `excess` (AUROC minus the one before training, on the same resamples) are NaN without a reference; the
    interval of `excess` is a band for all layers at once. It is somewhat too narrow: resamples do not fit probes again.
    `scores` are what a later `probe_layers` takes as its reference.
    """

    auroc: Float[np.ndarray, "layers 3"]  # estimate, low, high
    null: Float[np.ndarray, "shuffles layers"]
    p: Float[np.ndarray, " layers"]
    before: Float[np.ndarray, " layers"]
    excess: Float[np.ndarray, "layers 3"]
    scores: Float[np.ndarray, "layers rows"]

    @property
    def is_learned(self) -> Bool[np.ndarray, " layers"]:
        """Layers that beat chance and, where there is a reference, what they said before training."""
        beats = np.isnan(self.excess[:, 0]) | (self.excess[:, 1] > 0)
        return (self.p <= ALPHA) & beats

    @property
    def is_decidable(self) -> Bool[np.ndarray, " layers"]:
        """Layers that could beat chance: of few groups, shuffled labels come so far that an AUROC of 1 does not."""
        return max_statistic_p(np.ones(len(self.p)), self.null) <= ALPHA


def probe_layers(
    activations: Float[np.ndarray, "layers rows d_model"],
    unsafe: Bool[np.ndarray, " rows"],
    groups: np.ndarray,
    reference: Float[np.ndarray, "layers rows"] | None = None,
    seed: int = 0,
    shuffles: int = SHUFFLES,
    resamples: int = RESAMPLES,
) -> LayerProbes | None:
    """Probe every layer; None where a class is in fewer groups than there are folds.

    Groups (contrast pairs) stay whole in folds and resamples. `reference` are the `scores` of the model before
    training on the same rows.
    """
    if min(len(np.unique(groups[unsafe])), len(np.unique(groups[~unsafe]))) < FOLDS:
        return None
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    fold = np.zeros(len(unsafe), dtype=int)
    for number, (_, test) in enumerate(splitter.split(np.zeros(len(unsafe)), unsafe, groups)):
        fold[test] = number
    rng = np.random.default_rng(seed)
    labelings = np.vstack([unsafe, exchanged(unsafe, groups, rng, shuffles)])
    signs = np.where(labelings, 1.0, -1.0)
    scores = np.stack([held_out_scores(layer, signs, fold) for layer in activations])
    every = np.stack([fold_auroc(layer, labelings, fold) for layer in scores], axis=1)
    weights = prompt_weights(groups, resamples, rng)
    own = np.stack([auroc(predictions(layer[0], unsafe, fold), weights) for layer in scores], axis=1)
    estimate = with_quantiles(every[0], own)
    before, excess = np.full(len(scores), np.nan), np.full((len(scores), 3), np.nan)
    if reference is not None:
        old = np.stack([auroc(predictions(layer, unsafe, fold), weights) for layer in reference], axis=1)
        before = np.array([fold_auroc(layer[None], labelings[:1], fold)[0] for layer in reference])
        excess = with_band(every[0] - before, own - old)
    return LayerProbes(estimate, every[1:], max_statistic_p(every[0], every[1:]), before, excess, scores[:, 0])


def held_out_scores(
    rows: Float[np.ndarray, "rows d_model"], signs: Float[np.ndarray, "labelings rows"], fold: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, "labelings rows"]:
    """Ridge scores of each row by a probe that has not seen its fold.

    Features are centred and scaled on the training rows so that a row's mean squared length is 1; the penalty is 1 on
    that scale.
    """
    rows = rows.astype(np.float64)
    scores = np.zeros_like(signs)
    for number in np.unique(fold):
        train, test = fold != number, fold == number
        known = rows[train] - rows[train].mean(axis=0)
        asked = rows[test] - rows[train].mean(axis=0)
        scale = max((known**2).sum(axis=1).mean(), 1e-300)
        kernel = known @ known.T / scale
        targets = signs[:, train] - signs[:, train].mean(axis=1, keepdims=True)
        dual = np.linalg.solve(kernel + np.eye(len(kernel)), targets.T)
        scores[:, test] = (asked @ known.T / scale @ dual).T
    return scores


def fold_auroc(
    scores: Float[np.ndarray, "labelings rows"], labelings: Bool[np.ndarray, "labelings rows"], fold: np.ndarray
) -> Float[np.ndarray, " labelings"]:
    """AUROC of pairs within folds, each labeling with its own scores; 0.5 where no fold has both classes."""
    ordered, count = np.zeros(len(scores)), np.zeros(len(scores))
    for number in np.unique(fold):
        inside = fold == number
        hit = labelings[:, inside]
        positive = hit.sum(axis=1)
        ranks = rankdata(scores[:, inside], axis=1)
        ordered += (ranks * hit).sum(axis=1) - positive * (positive + 1) / 2
        count += positive * (inside.sum() - positive)
    return np.divide(ordered, count, out=np.full(len(scores), 0.5), where=count > 0)


def predictions(scores: np.ndarray, unsafe: Bool[np.ndarray, " rows"], fold: np.ndarray) -> Predictions:
    return Predictions(unsafe.astype(int), np.column_stack([-scores, scores]), fold)


def exchanged(
    unsafe: Bool[np.ndarray, " rows"], groups: np.ndarray, rng: np.random.Generator, count: int
) -> Bool[np.ndarray, "count rows"]:
    """Labels shuffled within each group of both classes, other groups exchanged whole for ones of as many rows.

    In pairs this is the flip of a coin for each pair: exact where, without an effect, nothing tells the two apart. Rows
    that stand alone are shuffled among each other; a group of one class whose size no other has keeps its labels.
    """
    names, first, index, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    share = np.bincount(index, unsafe, len(names)) / sizes
    is_mixed = (share > 0) & (share < 1)

    def shuffled(
        values: Bool[np.ndarray, " items"], strata: Int[np.ndarray, " items"]
    ) -> Bool[np.ndarray, "count items"]:
        found = np.empty((count, len(values)), dtype=bool)
        found[:, np.argsort(strata, kind="stable")] = values[np.argsort(strata + rng.random(found.shape), axis=1)]
        return found

    wholes = shuffled(unsafe[first], np.where(is_mixed, -1, sizes))[:, index]
    return np.where(is_mixed[index], shuffled(unsafe, index), wholes)


def with_quantiles(
    estimate: Float[np.ndarray, " layers"], resampled: Float[np.ndarray, "resamples layers"]
) -> Float[np.ndarray, "layers 3"]:
    """The estimate with the central 95% of its resamples."""
    low, high = np.nanquantile(resampled, [0.025, 0.975], axis=0)
    return np.column_stack([estimate, low, high])


def with_band(
    estimate: Float[np.ndarray, " layers"], resampled: Float[np.ndarray, "resamples layers"]
) -> Float[np.ndarray, "layers 3"]:
    """The estimate with a 95% band for all layers at once: the largest standardised deviation of a resample sets it.

    Layers are many: with an interval for each, some of those that learned nothing would lie above it.
    """
    spread = np.nanstd(resampled, axis=0)
    away = np.divide(np.abs(resampled - estimate), spread, out=np.zeros_like(resampled), where=spread > 0)
    reach = np.nanquantile(away.max(axis=1), 0.95) * spread
    return np.column_stack([estimate, estimate - reach, estimate + reach])
