"""What a claim is tested with: numbers of a whole training, or of one of its moments.

A number of a training is above 0 where the training does as claimed, and None where it cannot be measured.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float
from scipy.stats import spearmanr

from src.utils.interpretation_claims.moments import Moment

Training = Sequence[Moment]
UPPER_THIRD = 2 / 3  # of the depth: the original read layers 20 to 26 of 32, the organism has 6


def readable(training: Training) -> list[Moment]:
    """The epochs at which the two of a pair are told apart, so that there is a divergence layer."""
    return [moment for moment in training if moment.divergence_layer is not None]


def moved_earlier(training: Training) -> float | None:
    found = [moment.divergence_layer for moment in readable(training)]
    return float(found[0] - found[-1]) if len(found) > 1 else None  # ty: ignore  # readable has a layer


def tracks_discrimination(training: Training) -> float | None:
    """Spearman over the learned epochs, first differences, so that a common trend alone gives nothing."""
    size = np.diff([moment.divergence_size for moment in training[1:]])
    gain = -np.diff([moment.loss for moment in training[1:]])
    if len(size) < 2 or np.ptp(size) == 0 or np.ptp(gain) == 0:
        return None
    return float(spearmanr(size, gain).statistic)


def layers_settle(training: Training) -> float | None:
    """How far the blocks' shares of the gap change from epoch to epoch: early changes minus late ones."""
    steps = [step for step in share_changes(training) if step is not None]
    half = len(steps) // 2
    return float(np.mean(steps[:half]) - np.mean(steps[-half:])) if half else None


def share_changes(training: Training) -> list[float | None]:
    """Total variation between each epoch's shares of the gap and those of the epoch before; None without a gap."""
    found: list[float | None] = [None]
    for old, new in pairwise(training):
        if old.carried is None or new.carried is None:
            found.append(None)
        else:
            found.append(float(0.5 * np.abs(shares_of(new.carried) - shares_of(old.carried)).sum()))
    return found


def shares_of(carried: Sequence[float]) -> Float[np.ndarray, " blocks"]:
    """What the blocks carry, as shares; a block that works against the margin carries nothing."""
    kept = np.clip(carried, 0, None)
    return kept / kept.sum() if kept.sum() > 0 else np.full(len(kept), 1 / len(kept))


def upper_neurons(moment: Moment) -> float | None:
    """Share of the safety neurons in the upper third of the blocks, minus that third's share of blocks that learn."""
    if moment.claimed is None or sum(moment.claimed) == 0:
        return None
    first = round(len(moment.claimed) * UPPER_THIRD)
    blocks = len(moment.claimed)
    chance = (blocks - first) / (blocks - moment.n_frozen_blocks)
    return float(sum(moment.claimed[first:]) / sum(moment.claimed) - chance)


def clustering(moment: Moment) -> float:
    """1 minus the normalised entropy of the safety neurons over the learning blocks; 0 where there is none."""
    counts = np.array((moment.claimed or [])[moment.n_frozen_blocks :], dtype=float)
    if counts.sum() == 0 or len(counts) < 2:
        return 0.0
    shares = counts[counts > 0] / counts.sum()
    return float(1 + (shares * np.log(shares)).sum() / np.log(len(counts)))


def grows_consistent(training: Training) -> float | None:
    """Agreement of the attributions of successive epochs: late minus early."""
    found = [agreement(old, new) for old, new in pairwise(training[1:])]
    half = len(found) // 2
    return float(np.mean(found[-half:]) - np.mean(found[:half])) if half else None


def agreements(training: Training) -> list[float | None]:
    return [None, *(agreement(old, new) for old, new in pairwise(training))]


def agreement(old: Moment, new: Moment) -> float:
    """Overlap of two epochs' attribution profiles, mean over requests: 1 where they are equal, 0 where disjoint."""
    pairs = zip(old.attributions, new.attributions, strict=True)
    return float(np.mean([np.minimum(one, other).sum() for one, other in pairs]))


def boundary_spike(moment: Moment, before: Moment) -> float:
    """Growth of what the first learning block writes since epoch 0, minus the mean growth of those above, in logs."""
    growth = np.log(np.array(moment.written) / np.array(before.written))[moment.n_frozen_blocks :]
    return float(growth[0] - growth[1:].mean())


def upper_growth(training: Training) -> float:
    """Log of the stream's length in the upper third of the layers at the last epoch over that at epoch 1."""
    return float(np.log(upper_length(training[-1]) / upper_length(training[1])))


def upper_length(moment: Moment) -> float:
    return float(np.mean(moment.stream[1 + round((len(moment.stream) - 1) * UPPER_THIRD) :]))


def overfitting(moment: Moment) -> float:
    """Held-out loss minus training loss, in nats."""
    return moment.loss - moment.train_loss


def by_epoch(of: Callable[[Moment], float | None]) -> Callable[[Training], list[float | None]]:
    return lambda training: [of(moment) for moment in training]


def change(of: Callable[[Moment], float]) -> Callable[[Training], float]:
    """Last epoch minus first."""
    return lambda training: of(training[-1]) - of(training[1])
