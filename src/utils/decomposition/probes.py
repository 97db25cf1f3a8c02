"""What a linear probe reads off activations, beside what topic, text, the base model and chance would score.

Logistic regression in nested cross-validation: outer folds hold out whole prompts, inner folds choose the penalty.
TransformerLens's `tools.analysis.sparse_probing` selects few coordinates on one train/test split of two classes and
returns no prediction a row: there is nothing to resample prompts over, to nest, or to compare in pairs, so
scikit-learn is used.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold

from src.utils.decomposition.probe_features import (
    Encoder,
    Prepare,
    Rows,
    both,
    dense,
    encode_within,
    one_hot,
    tf_idf,
)
from src.utils.decomposition.probe_scores import MEASURES, Predictions, auroc, with_interval
from src.utils.decomposition.prompt_resampling import exchange_prompts, prompt_weights
from src.utils.errors import UserError

ACTIVATIONS, SHUFFLED, PROMPT = "activations", "shuffled_labels", "prompt_identity"
LEAST_PROMPTS = 10  # of each class, below which a transfer between dimensions rests on a handful of answers


@dataclass(frozen=True)
class Nesting:
    """Folds, and scikit-learn's C to choose from, smallest first: of equals the strongest penalty is taken.

    Features are scaled to rows of length about 1, so that one grid does for activations and for text.
    """

    outer: int = 5
    inner: int = 4
    penalties: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0)
    seed: int = 0


@dataclass(frozen=True, eq=False)
class ProbeRows:
    """What is known of each row beside its activations; `topics` is finer than `dimensions` (the facet), say."""

    groups: np.ndarray  # prompt_id
    dimensions: np.ndarray
    topics: np.ndarray
    questions: Sequence[str]
    answers: Sequence[str]


def compare_probes(
    matrix: Float[np.ndarray, "rows features"],
    base: Float[np.ndarray, "rows features"],
    target: np.ndarray,
    rows: ProbeRows,
    nesting: Nesting = Nesting(),
    prepare: Prepare | None = None,
    resamples: int = 1000,
) -> pd.DataFrame:
    """Tidy table `predictor, measure, estimate, low, high, excess, excess_low, excess_high`.

    Predictors: `activations`; `topic`, which knows the row's dimension and topic only (what a probe scores that reads
    the topic and nothing else: the trap); `question_text`, `answer_text` and `question_and_answer_text` (TF-IDF of
    words and word pairs); `base_activations`; `shuffled_labels`, the activations with targets exchanged between
    prompts; `prompt_identity`, the ceiling of what the prompt alone says (see `other_answers`; NaN where every prompt
    has one answer). Measures: AUROC and balanced accuracy, over classes alike. `excess` is activations minus the
    predictor on the same folds and the same resamples of prompts: only an interval above 0 over `topic` is evidence of
    more than the topic. Intervals are 95% and hold the fitted models fixed.

    Raises `UserError` for a target with one class, for a class in fewer prompts than outer folds, and for a target that
    the dimension decides where `prepare` is given (it sees the dimensions of the rows to be predicted).
    """
    if prepare is not None and not decides_nothing(rows.dimensions, target):
        raise UserError("target: it is decided by the dimension, which the preparation sees; probe without preparation")
    check_classes(target, rows.groups, nesting.outer)
    topic = np.column_stack([rows.dimensions.astype(str), rows.topics.astype(str)])
    shuffled = target[exchange_prompts(rows.groups, np.random.default_rng([nesting.seed, 1]))]
    of_activations = dense(matrix, rows.dimensions, prepare)
    questions, answers = tf_idf(rows.questions), tf_idf(rows.answers)
    predictors: dict[str, tuple[Encoder, np.ndarray]] = {
        ACTIVATIONS: (of_activations, target),
        "topic": (one_hot(topic), target),
        "question_text": (questions, target),
        "answer_text": (answers, target),
        "question_and_answer_text": (both(questions, answers), target),
        "base_activations": (dense(base, rows.dimensions, prepare), target),
        SHUFFLED: (of_activations, shuffled),
    }
    weights = prompt_weights(rows.groups, resamples, np.random.default_rng([nesting.seed, 2]))
    weights = np.vstack([np.ones(len(target)), weights])
    found = {name: nested_predictions(*one, rows.groups, nesting) for name, one in predictors.items()}
    found[PROMPT] = other_answers(found[ACTIVATIONS], rows.groups)
    table, first = [], {}
    for name, predictions in found.items():
        for measure, score in MEASURES.items():
            values = score(predictions, weights)
            if name == PROMPT and len(np.unique(rows.groups)) == len(target):
                values = np.full(len(weights), np.nan)
            first.setdefault(measure, values)
            excess = with_interval(first[measure] - values) if name != ACTIVATIONS else (np.nan, np.nan, np.nan)
            table.append((name, measure, *with_interval(values), *excess))
    columns = ["predictor", "measure", "estimate", "low", "high", "excess", "excess_low", "excess_high"]
    return pd.DataFrame(table, columns=columns)


def other_answers(predictions: Predictions, groups: np.ndarray) -> Predictions:
    """What knowing the prompt predicts: the class shares among its other answers, in the folds of `predictions`.

    A row that is alone in its prompt has the shares among all rows: it knows nothing.
    """
    is_class = np.eye(predictions.scores.shape[1])[predictions.truth]
    _, of_prompt, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.zeros((len(sizes), is_class.shape[1]))
    np.add.at(sums, of_prompt, is_class)
    others = (sizes[of_prompt] - 1)[:, None]
    shares = np.where(others > 0, (sums[of_prompt] - is_class) / np.maximum(others, 1), is_class.mean(axis=0))
    return Predictions(predictions.truth, shares, predictions.fold)


def cross_dimension_transfer(
    matrix: Float[np.ndarray, "rows features"],
    misaligned: Bool[np.ndarray, " rows"],
    dimensions: np.ndarray,
    groups: np.ndarray,
    nesting: Nesting = Nesting(),
    resamples: int = 1000,
) -> pd.DataFrame:
    """Tidy table `train, test, auroc, low, high, misaligned, aligned, reason`: is the misaligned direction shared?

    The probe is fitted on all rows of one dimension and scores the rows of another; where both are the same, it is
    the nested cross-validated AUROC. Off the diagonal 0.5 is a direction of the dimension's own, a value near the
    diagonal's a shared one; below 0.5 it points the other way. Intervals resample the test prompts. A dimension in
    which fewer than `LEAST_PROMPTS` prompts (or outer folds, if those are more) are misaligned, or aligned, has NaN and
    the `reason`.
    """
    least = max(nesting.outer, LEAST_PROMPTS)
    names = list(dict.fromkeys(dimensions.tolist()))
    labels = misaligned.astype(bool)
    said = np.where(labels, "misaligned", "aligned")
    reasons = {name: too_few(said[dimensions == name], groups[dimensions == name], least) for name in names}
    weights = prompt_weights(groups, resamples, np.random.default_rng([nesting.seed, 2]))
    weights = np.vstack([np.ones(len(labels)), weights])
    encode, table = dense(matrix, dimensions, None), []
    for train in names:
        inside = np.flatnonzero(dimensions == train)
        scores = None if reasons[train] else fitted_scores(encode, labels, groups, inside, nesting)
        for test in names:
            rows = np.flatnonzero(dimensions == test)
            interval = (np.nan, np.nan, np.nan)
            reason = "; ".join(f"{name}: {reasons[name]}" for name in dict.fromkeys((train, test)) if reasons[name])
            if scores is not None and not reason:
                if train == test:
                    predictions = nested_predictions(encode_within(encode, rows), labels[rows], groups[rows], nesting)
                else:
                    predictions = Predictions(labels[rows].astype(int), scores(rows), np.zeros(len(rows), int))
                interval = with_interval(auroc(predictions, weights[:, rows]))
            count = int(labels[rows].sum())
            table.append((train, test, *interval, count, len(rows) - count, reason))
    columns = ["train", "test", "auroc", "low", "high", "misaligned", "aligned", "reason"]
    return pd.DataFrame(table, columns=columns)


def nested_predictions(encode: Encoder, target: np.ndarray, groups: np.ndarray, nesting: Nesting) -> Predictions:
    """Out-of-fold scores of every row; folds depend on target, groups and seed, not on the features."""
    classes, truth = np.unique(target, return_inverse=True)
    scores, fold = np.zeros((len(target), len(classes))), np.zeros(len(target), dtype=int)
    for number, (train, test) in enumerate(folds(truth, groups, nesting.outer, nesting.seed)):
        scores[test] = fitted_scores(encode, truth, groups, train, nesting)(test)
        fold[test] = number
    return Predictions(truth, scores, fold)


def fitted_scores(
    encode: Encoder, target: np.ndarray, groups: np.ndarray, train: Rows, nesting: Nesting
) -> Callable[[Rows], Float[np.ndarray, "rows classes"]]:
    """A probe fitted on the training rows, its penalty chosen by AUROC in folds within them."""
    classes, truth = np.unique(target, return_inverse=True)
    found = np.zeros((len(nesting.penalties), len(train), len(classes)))
    fold = np.zeros(len(train), dtype=int)
    for number, (inside, outside) in enumerate(folds(truth[train], groups[train], nesting.inner, nesting.seed)):
        features = encode(train[inside])
        known, asked = features(train[inside]), features(train[outside])
        for place, penalty in enumerate(nesting.penalties):
            found[place, outside] = fit_logistic(known, truth[train[inside]], len(classes), penalty)(asked)
        fold[outside] = number
    ones = np.ones((1, len(train)))
    quality = [np.nan_to_num(auroc(Predictions(truth[train], scores, fold), ones)[0], nan=0.5) for scores in found]
    features = encode(train)
    best = nesting.penalties[int(np.argmax(quality))]
    score = fit_logistic(features(train), truth[train], len(classes), best)
    return lambda rows: score(features(rows))


def folds(truth: np.ndarray, groups: np.ndarray, count: int, seed: int) -> Sequence[tuple[Rows, Rows]]:
    """Train and test rows, prompts kept whole and classes spread evenly."""
    classes, prompts = (np.unique(values, return_inverse=True)[1].astype(np.int64) for values in (truth, groups))
    return split_once(classes.tobytes(), prompts.tobytes(), count, seed)


@lru_cache(maxsize=64)
def split_once(classes: bytes, prompts: bytes, count: int, seed: int) -> Sequence[tuple[Rows, Rows]]:
    """The same folds serve every predictor of a target; scikit-learn deals prompts out one by one in Python."""
    truth, groups = (np.frombuffer(values, np.int64) for values in (classes, prompts))
    splitter = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(truth)), truth, groups))


def fit_logistic(
    features: Any, truth: np.ndarray, classes: int, penalty: float
) -> Callable[[Any], Float[np.ndarray, "rows classes"]]:
    """Multinomial logistic regression, classes weighted alike; scores are log-odds (two classes) or log-probabilities.

    A class that the rows do not hold has the lowest score; rows of one class give a probe that knows nothing.
    """
    present = np.unique(truth)
    if len(present) == 1:
        return lambda asked: np.zeros((asked.shape[0], classes))
    model = LogisticRegression(C=penalty, class_weight="balanced", max_iter=500)
    with warnings.catch_warnings():
        # A weak penalty on separable classes has its optimum far out; the fit on the way there is a probe as well.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, truth)

    def score(asked: Any) -> Float[np.ndarray, "rows classes"]:
        values = model.decision_function(asked)
        values = np.column_stack([-values, values]) if values.ndim == 1 else log_softmax(values, axis=1)
        scores = np.full((len(values), classes), values.min(initial=0.0) - 1)
        scores[:, present] = values
        return scores

    return score


def decides_nothing(dimensions: np.ndarray, target: np.ndarray) -> bool:
    """Whether some dimension holds two target values."""
    return any(len(np.unique(target[dimensions == dimension])) > 1 for dimension in np.unique(dimensions))


def check_classes(target: np.ndarray, groups: np.ndarray, least: int) -> None:
    reason = too_few(target, groups, least)
    if reason:
        raise UserError(f"target: {reason}; leave the class out, use fewer folds, or judge more answers")


def too_few(target: np.ndarray, groups: np.ndarray, least: int) -> str:
    """Why a target cannot be probed in so many folds; empty if it can."""
    values = np.unique(target)
    if len(values) < 2:
        return f"all rows are {values[0]}" if len(values) else "there are no rows"
    counts = {value: len(np.unique(groups[target == value])) for value in values}
    rarest = min(counts, key=lambda value: counts[value])
    return f"{rarest} in {counts[rarest]} prompts, {least} needed" if counts[rarest] < least else ""
