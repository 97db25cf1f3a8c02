"""Features that probes are fitted on: means, scales and words are estimated on training rows alone."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import linalg, sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

Rows = Int[np.ndarray, " rows"]
Transform = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (matrix, dimensions) -> matrix
Prepare = Callable[[np.ndarray, np.ndarray], Transform]  # fitted on the training rows' matrix and dimensions
Encoder = Callable[[Rows], Callable[[Rows], Any]]  # fitted on training rows; gives the features of any rows


def dense(matrix: Float[np.ndarray, "rows features"], dimensions: np.ndarray, prepare: Prepare | None) -> Encoder:
    """Prepared and standardised features, in the coordinates that the training rows span.

    The penalised optimum lies in that span, so that the rotation changes the cost and nothing else.
    """

    def fit(train: Rows) -> Callable[[Rows], Float[np.ndarray, "rows kept"]]:
        transform = prepare(matrix[train], dimensions[train]) if prepare else lambda part, _: part
        prepared = np.asarray(transform(matrix[train], dimensions[train]), np.float64)
        scaler = StandardScaler().fit(prepared)
        known = scaler.transform(prepared) / np.sqrt(prepared.shape[1])
        basis = np.eye(known.shape[1])
        if known.shape[1] > len(known):
            values, vectors = linalg.eigh(known @ known.T, check_finite=False)
            kept = values > 1e-10 * values[-1]
            basis = known.T @ (vectors[:, kept] / np.sqrt(values[kept]))
        basis = basis / np.sqrt(prepared.shape[1])

        def encode(rows: Rows) -> Float[np.ndarray, "rows kept"]:
            return scaler.transform(np.asarray(transform(matrix[rows], dimensions[rows]), np.float64)) @ basis

        return encode

    return fit


def one_hot(columns: np.ndarray) -> Encoder:
    """Indicators of the values in each column; one that training did not have is no value."""

    def fit(train: Rows) -> Callable[[Rows], Any]:
        encoder = OneHotEncoder(handle_unknown="ignore").fit(columns[train])
        return lambda rows: encoder.transform(columns[rows])

    return fit


def tf_idf(texts: Sequence[str]) -> Encoder:
    """TF-IDF of words and word pairs, vocabulary and frequencies from the training rows."""
    # Empty text is a word of its own: answers that are all empty are a poor predictor and no error.
    analyse = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b|^$").build_analyzer()
    terms = np.empty(len(texts), dtype=object)
    terms[:] = [analyse(text or "") for text in texts]  # once, not for every fold

    def fit(train: Rows) -> Callable[[Rows], Any]:
        vectors = TfidfVectorizer(analyzer=list, sublinear_tf=True)
        vectors.fit(terms[train])
        return lambda rows: vectors.transform(terms[rows])

    return fit


def both(one: Encoder, other: Encoder) -> Encoder:
    """The sparse features of two encoders side by side, rows as long as before."""

    def fit(train: Rows) -> Callable[[Rows], Any]:
        first, second = one(train), other(train)
        return lambda rows: sparse.hstack([first(rows), second(rows)], format="csr") / np.sqrt(2)

    return fit


def encode_within(encode: Encoder, chosen: Rows) -> Encoder:
    """The same encoder, for rows counted within `chosen`."""

    def fit(train: Rows) -> Callable[[Rows], Any]:
        features = encode(chosen[train])
        return lambda rows: features(chosen[rows])

    return fit
