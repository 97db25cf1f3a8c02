"""The claims of "Interpreting Results", each with the statistic that stands for it.

A claim about what a training does has a number a seed; `least` is the smallest mean that would still deserve the name.
A claim that one thing goes with another has two numbers a seed and epoch, and is tested over seeds at equal epochs:
over epochs of one training everything that grows goes with everything else that grows. It is an association still: a
training that is further at the same epoch may be further in both. That something settles is no wonder where the
learning rate falls to nothing, as it does by default. Epoch 0 is before training and only a reference.

The least effects were set after seeds 0 to 9 of the shared base had been looked at; seeds from 12 on are untouched.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from src.utils.interpretation_claims.moments import Moment
from src.utils.interpretation_claims.statistics import (
    Training,
    agreements,
    boundary_spike,
    by_epoch,
    change,
    clustering,
    grows_consistent,
    layers_settle,
    moved_earlier,
    overfitting,
    share_changes,
    tracks_discrimination,
    upper_growth,
    upper_length,
    upper_neurons,
)


@dataclass(frozen=True)
class Claim:
    """`statistic` says in words what is computed; `trajectory` is what is drawn, a value an epoch from 0 on.

    Of kind `course`, `of_seed` gives a number a training, None where it cannot be measured. Of kind `association`,
    `pair` gives the two numbers of an epoch.
    """

    name: str
    document: str
    statistic: str
    kind: Literal["course", "association"]
    trajectory_name: str
    trajectory: Callable[[Training], Sequence[float | None]]
    of_seed: Callable[[Training], float | None] | None = None
    least: float = 0.0
    pair: Callable[[Moment], tuple[float, float]] | None = None


CLAIMS = (
    Claim(
        "divergence_moves_earlier",
        "Divergence point moves earlier as training progresses",
        "Divergence layer (half of the margin's gap at the last token) at the first epoch that has one minus at the "
        "last, in layers; at least half a layer",
        "course", "Divergence layer", by_epoch(lambda moment: moment.divergence_layer), moved_earlier, 0.5,
    ),
    Claim(
        "divergence_grows_with_skill",
        "Larger divergence = better safety/unsafe discrimination (within a training)",
        "Spearman over epochs of changes in divergence size (largest distance of a pair over the stream's length) and "
        "falls in held-out loss; at least 0.3",
        "course", "Divergence size", by_epoch(lambda moment: moment.divergence_size), tracks_discrimination, 0.3,
    ),
    Claim(
        "divergence_tells_better_trainings",
        "Larger divergence = better safety/unsafe discrimination (between trainings)",
        "Spearman over seeds of divergence size and minus held-out loss at the same epoch, mean over epochs",
        "association", "Divergence size", by_epoch(lambda moment: moment.divergence_size),
        pair=lambda moment: (moment.divergence_size, -moment.loss),
    ),
    Claim(
        "critical_layers_stabilise",
        "Critical layers stabilize after good training",
        "Change from epoch to epoch of the blocks' shares of the gap (total variation), early half minus late half; at "
        "least 0.02",
        "course", "Change of the blocks' shares", share_changes, layers_settle, 0.02,
    ),
    Claim(
        "neurons_in_upper_layers",
        "Safety neurons emerge in layers 20-26 (here: the upper third of the blocks)",
        "Share of safety neurons in the upper third at the last epoch, minus that third's share of the blocks that "
        "learn; at least 0.1",
        "course", "Share in the upper third above chance", by_epoch(upper_neurons),
        lambda training: upper_neurons(training[-1]), 0.1,
    ),
    Claim(
        "clusters_mean_robustness",
        "Clusters indicate robust detection mechanisms",
        "Spearman over seeds of the concentration of safety neurons in few blocks and accuracy on wrapped prompts at "
        "the same epoch, mean over epochs",
        "association", "Concentration of safety neurons", by_epoch(clustering),
        pair=lambda moment: (clustering(moment), moment.robust_accuracy),
    ),
    Claim(
        "sparsity_means_overfitting",
        "Sparse activations suggest overfitting",
        "Spearman over seeds of Hoyer sparsity of the neurons and held-out minus training loss at the same epoch, mean "
        "over epochs",
        "association", "Sparsity of the neurons", by_epoch(lambda moment: moment.sparsity),
        pair=lambda moment: (moment.sparsity, overfitting(moment)),
    ),
    Claim(
        "attribution_begins_scattered",
        "Early epochs: scattered attention",
        "Entropy of |attribution| over a request's tokens (share of the even one's), first epoch minus last; at least "
        "0.05",
        "course", "Entropy of the attribution", by_epoch(lambda moment: moment.entropy),
        lambda training: -change(lambda moment: moment.entropy)(training), 0.05,
    ),
    Claim(
        "attribution_finds_key_tokens",
        "Mid training: focus on key safety-related tokens",
        "Share of |attribution| on action and target above their share of tokens, middle epoch minus first; at least "
        "0.05",
        "course", "Focus on action and target", by_epoch(lambda moment: moment.key_focus),
        lambda training: training[(len(training) + 1) // 2].key_focus - training[1].key_focus, 0.05,
    ),
    Claim(
        "attribution_grows_consistent",
        "Late epochs: refined, consistent attribution patterns",
        "Overlap of the attributions of successive epochs, late half minus early half; at least 0.05",
        "course", "Overlap with the epoch before", agreements, grows_consistent, 0.05,
    ),
    Claim(
        "spike_at_the_frozen_boundary",
        "Watch for activation spikes after the frozen layer boundary",
        "Growth since epoch 0 of what the first learning block writes at the last token, minus the mean of the blocks "
        "above (logs), at the last epoch; at least 0.1",
        "course", "Length that the first learning block writes",
        by_epoch(lambda moment: moment.written[moment.n_frozen_blocks]),
        lambda training: boundary_spike(training[-1], training[0]), 0.1,
    ),
    Claim(
        "later_layers_grow",
        "Increasing activation in later layers indicates safety-specific learning",
        "Whether it increases: length of the stream at the last token in the upper third of the layers, last epoch "
        "over first (log); at least 0.05. What an increase indicates is not tested",
        "course", "Length of the stream, upper third", by_epoch(upper_length), upper_growth, 0.05,
    ),
)  # fmt: skip


def paired(
    claim: Claim, trainings: Sequence[Training]
) -> tuple[Float[np.ndarray, "seeds epochs"], Float[np.ndarray, "seeds epochs"]]:
    """The two numbers of an association, by seed and learned epoch."""
    assert claim.pair is not None
    values = np.array([[claim.pair(moment) for moment in training[1:]] for training in trainings])
    return values[..., 0], values[..., 1]
