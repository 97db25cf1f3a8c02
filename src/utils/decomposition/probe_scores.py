"""How good out-of-fold predictions are, with intervals over prompts.

Making the predictions is left to `probes`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

Resamples = Float[np.ndarray, " resamples"]


@dataclass(frozen=True, eq=False)
class Predictions:
    """One score a row and class (the larger, the likelier), from models that have not seen the row's prompt.

    `truth` indexes the columns of `scores`; rows of one `fold` were scored by one model.
    """

    truth: Int[np.ndarray, " rows"]
    scores: Float[np.ndarray, "rows classes"]
    fold: Int[np.ndarray, " rows"]


def balanced_accuracy(predictions: Predictions, weights: Float[np.ndarray, "resamples rows"]) -> Resamples:
    """Mean recall over the classes that occur, for each weighting of the rows (all ones: the plain estimate)."""
    is_class = np.eye(predictions.scores.shape[1])[predictions.truth]
    is_hit = predictions.scores.argmax(axis=1) == predictions.truth
    return mean_where_defined(weights @ (is_class * is_hit[:, None]), weights @ is_class)


def auroc(predictions: Predictions, weights: Float[np.ndarray, "resamples rows"]) -> Resamples:
    """Share of (row of a class, other row) pairs that a class's score puts in order, mean over classes; ties are half.

    Only pairs within a fold count: models of different folds have different offsets, and comparing across them puts
    even noise off 0.5 [Airola et al. 2011]. For two classes it is the usual AUROC. NaN where no pair is left.
    """
    classes = predictions.scores.shape[1]
    columns = [1] if classes == 2 else range(classes)
    ordered, pairs = (np.zeros((len(weights), len(columns))) for _ in range(2))
    for place, column in enumerate(columns):
        for fold in np.unique(predictions.fold):
            inside = np.flatnonzero(predictions.fold == fold)
            hit, score = predictions.truth[inside] == column, predictions.scores[inside, column]
            one, other = score[hit][:, None], score[~hit][None, :]
            is_ordered = (one > other) + 0.5 * (one == other)
            of_class, of_rest = weights[:, inside[hit]], weights[:, inside[~hit]]
            ordered[:, place] += ((of_class @ is_ordered) * of_rest).sum(axis=1)
            pairs[:, place] += of_class.sum(axis=1) * of_rest.sum(axis=1)
    return mean_where_defined(ordered, pairs)


MEASURES: dict[str, Callable[[Predictions, np.ndarray], Resamples]] = {
    "auroc": auroc,
    "balanced_accuracy": balanced_accuracy,
}


def mean_where_defined(
    sums: Float[np.ndarray, "resamples classes"], counts: Float[np.ndarray, "resamples classes"]
) -> Resamples:
    """Mean over classes of sums / counts, classes without a count left out; NaN where none has one."""
    shares = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
    defined = (counts > 0).sum(axis=1)
    return np.divide(shares.sum(axis=1), defined, out=np.full(len(sums), np.nan), where=defined > 0)


def with_interval(values: Resamples) -> tuple[float, float, float]:
    """The estimate, which stands first, and the central 95% of the resamples behind it; NaN if there is no estimate."""
    if not np.isfinite(values[0]):
        return float("nan"), float("nan"), float("nan")
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return float(values[0]), float(low), float(high)
