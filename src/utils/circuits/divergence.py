"""The layer at which the two of a pair part: where the token that is read begins to carry the decision.

It is the first layer whose residual stream at the last token carries at least half of the margin's gap, denoising and
noising together. Activations that merely differ earlier do not count, only those that change the margin.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from src.utils.circuits.patching import LAST, RESAMPLES, LayerPatching, Shares

HALF = 0.5


@dataclass(frozen=True)
class Divergence:
    """A layer (Hugging Face's `hidden_states` number) with the central 95% of bootstrap resamples of the pairs."""

    layer: int
    low: int
    high: int


def divergence_layer(patching: LayerPatching, resamples: int = RESAMPLES, seed: int = 0) -> Divergence | None:
    """The divergence layer; None where the margins of the two classes are not told apart (`has_gap`)."""
    if not patching.is_readable:
        return None
    denoised, noised = patching.resampled(LAST, resamples, seed)
    layers = first_layer((denoised + noised) / 2)
    low, high = np.quantile(layers[1:], [0.025, 0.975])
    return Divergence(int(layers[0]), int(np.floor(low)), int(np.ceil(high)))


def first_layer(shares: Shares, threshold: float = HALF) -> Int[np.ndarray, " resamples"]:
    """The first layer at or over the threshold; the last layer where none is (a resample without a gap)."""
    reached = shares >= threshold
    return np.where(reached.any(axis=1), reached.argmax(axis=1), shares.shape[1] - 1)
