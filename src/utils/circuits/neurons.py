"""Neurons that tell the classes apart: a test for each neuron of every MLP, corrected, replicated, above the untrained.

A neuron is what enters the MLP's last projection (TransformerLens's `mlp.hook_post`), at the token where the margin is
read. Whether such neurons sit in any particular layers is counted, not assumed. What a neuron *does* is left to
`neuron_ablation`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from scipy.stats import false_discovery_control, mannwhitneyu, norm, rankdata
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from src.utils.circuits.contrast import MarginOf
from src.utils.decomposition.prompt_resampling import halve_prompts
from src.utils.errors import UserError
from src.utils.safety_judge.scoring import last_real_positions
from src.utils.sites import AnyModel, blocks_of, decoder_of

ALPHA = 0.05
LEAST_A_CLASS = 8  # in each half; with fewer the Mann-Whitney test cannot replicate anything


@dataclass(frozen=True, eq=False)
class NeuronTable:
    """One value a neuron; AUROC over 0.5 means that it is larger on unsafe inputs, under 0.5 on safe ones.

    `q` is Benjamini-Hochberg over all neurons of all layers. `halves` are the AUROCs in two halves of the groups,
    `replicates` is said by `replication`.
    `excess` is |AUROC - 0.5| minus the same before training, `excess_q` its one-sided q (DeLong et al. 1988); both NaN
    without a reference. `distance` is the absolute difference of the classes' means in their pooled standard deviation.
    """

    auroc: Float[np.ndarray, "layers neurons"]
    q: Float[np.ndarray, "layers neurons"]
    halves: Float[np.ndarray, "2 layers neurons"]
    replicates: Bool[np.ndarray, "layers neurons"]
    excess: Float[np.ndarray, "layers neurons"]
    excess_q: Float[np.ndarray, "layers neurons"]
    distance: Float[np.ndarray, "layers neurons"]

    @property
    def separates(self) -> Bool[np.ndarray, "layers neurons"]:
        """Corrected over all neurons, and replicated."""
        return (self.q <= ALPHA) & self.replicates

    @property
    def is_claimed(self) -> Bool[np.ndarray, "layers neurons"]:
        """Separates, and more so than before training where that is known."""
        return self.separates & (np.isnan(self.excess) | ((self.excess > 0) & (self.excess_q <= ALPHA)))

    def top(self, count: int) -> list[tuple[int, int]]:
        """(layer, neuron) of the claimed ones that separate best, at most `count`; of equal AUROC the most distant."""
        strength = np.where(self.is_claimed, np.abs(self.auroc - 0.5), -1.0).ravel()
        order = np.lexsort((-self.distance.ravel(), -strength))[:count]
        width = self.auroc.shape[1]
        return [(int(at // width), int(at % width)) for at in order if strength[at] >= 0]


def neuron_table(
    activations: Float[np.ndarray, "layers rows neurons"],
    unsafe: Bool[np.ndarray, " rows"],
    groups: np.ndarray,
    reference: Float[np.ndarray, "layers rows neurons"] | None = None,
    seed: int = 0,
) -> NeuronTable | None:
    """Test every neuron; None where a half of the groups has fewer than `LEAST_A_CLASS` rows of a class.

    `reference` are the same neurons on the same rows before training. Rows of one group and class count as one, their
    mean. In contrast pairs the test is conservative: it takes rows for independent that vary together.
    """
    same = repeated(unsafe, groups)
    if same is not None:
        first = np.unique(same, return_index=True)[1]
        activations = means_of(activations, same)
        reference = None if reference is None else means_of(reference, same)
        unsafe, groups = unsafe[first], groups[first]
    first = halve_prompts(groups, np.random.default_rng(seed))
    parts = (first, ~first)
    if min(np.sum(part & label) for part in parts for label in (unsafe, ~unsafe)) < LEAST_A_CLASS:
        return None
    layers, rows, width = activations.shape
    flat = activations.transpose(1, 0, 2).reshape(rows, -1).astype(np.float64)
    auroc, p = separation(flat, unsafe)
    halves = [separation(flat[part], unsafe[part]) for part in parts]
    replicates = replication(*halves)
    excess, excess_q = np.full(flat.shape[1], np.nan), np.full(flat.shape[1], np.nan)
    if reference is not None:
        old = reference.transpose(1, 0, 2).reshape(rows, -1).astype(np.float64)
        excess, excess_p = excess_separation(flat, old, unsafe)
        excess_q = false_discovery_control(excess_p)
    shape = (layers, width)
    return NeuronTable(
        auroc.reshape(shape),
        false_discovery_control(p).reshape(shape),
        np.stack([half[0].reshape(shape) for half in halves]),
        replicates.reshape(shape),
        excess.reshape(shape),
        excess_q.reshape(shape),
        class_distance(flat, unsafe).reshape(shape),
    )


def repeated(unsafe: Bool[np.ndarray, " rows"], groups: np.ndarray) -> Int[np.ndarray, " rows"] | None:
    """A number for each group and class, of every row; None where no two rows share one."""
    _, index = np.unique(groups, return_inverse=True)
    _, same = np.unique(2 * index + unsafe, return_inverse=True)
    return same if same.max() + 1 < len(same) else None


def means_of(
    activations: Float[np.ndarray, "layers rows neurons"], same: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, "layers kinds neurons"]:
    """Means over the rows that share a number."""
    return np.stack([activations[:, same == one].mean(axis=1) for one in range(same.max() + 1)], axis=1)


Test = tuple[Float[np.ndarray, " neurons"], Float[np.ndarray, " neurons"]]  # AUROC, p


def replication(one: Test, other: Test) -> Bool[np.ndarray, " neurons"]:
    """Found in one half, corrected over all neurons, and confirmed in the other at `ALPHA`, on the same side of 0.5."""
    same_side = np.sign(one[0] - 0.5) == np.sign(other[0] - 0.5)
    found = np.zeros(len(same_side), dtype=bool)
    for (_, first), (_, second) in ((one, other), (other, one)):
        found |= (false_discovery_control(first) <= ALPHA) & (second <= ALPHA)
    return found & same_side


def separation(values: Float[np.ndarray, "rows neurons"], unsafe: Bool[np.ndarray, " rows"]) -> Test:
    """AUROC and two-sided Mann-Whitney p (normal approximation, ties corrected); a constant neuron has 0.5 and 1."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = mannwhitneyu(values[unsafe], values[~unsafe], axis=0, method="asymptotic")
    auroc = found.statistic / (unsafe.sum() * (~unsafe).sum())
    return auroc, np.nan_to_num(found.pvalue, nan=1.0)


def class_distance(
    values: Float[np.ndarray, "rows neurons"], unsafe: Bool[np.ndarray, " rows"]
) -> Float[np.ndarray, " neurons"]:
    """Cohen's d without its sign; infinite where a neuron varies between the classes only, 0 where it does not vary."""
    one, other = values[unsafe], values[~unsafe]
    apart = np.abs(one.mean(axis=0) - other.mean(axis=0))
    spread = np.sqrt((one.var(axis=0, ddof=1) + other.var(axis=0, ddof=1)) / 2)
    return np.divide(apart, spread, out=np.where(apart > 0, np.inf, 0.0), where=spread > 0)


def excess_separation(
    values: Float[np.ndarray, "rows neurons"],
    reference: Float[np.ndarray, "rows neurons"],
    unsafe: Bool[np.ndarray, " rows"],
) -> tuple[Float[np.ndarray, " neurons"], Float[np.ndarray, " neurons"]]:
    """|AUROC - 0.5| minus that of the reference, and its one-sided p by DeLong's variance of a paired difference.

    A neuron that has not changed has excess 0 and p 1. A positive excess without variance has p 0: such a neuron was
    constant in both classes and now tells them apart in every row; whether so few rows show that, `separation` tests.
    """
    placed = [towards_class(placements(one, unsafe)) for one in (values, reference)]
    excess = placed[0][0].mean(axis=0) - placed[1][0].mean(axis=0)
    variance = sum((new - old).var(axis=0, ddof=1) / len(new) for new, old in zip(placed[0], placed[1], strict=True))
    assert isinstance(variance, np.ndarray)
    z = np.divide(excess, np.sqrt(variance), out=np.where(excess > 0, np.inf, -np.inf), where=variance > 0)
    return excess, norm.sf(z)


def placements(
    values: Float[np.ndarray, "rows neurons"], unsafe: Bool[np.ndarray, " rows"]
) -> tuple[Float[np.ndarray, "unsafe neurons"], Float[np.ndarray, "safe neurons"]]:
    """Share of safe rows below each unsafe row and of unsafe rows above each safe row; both have the mean AUROC."""
    ranks = rankdata(values, axis=0)
    own = {label: rankdata(values[unsafe == label], axis=0) for label in (True, False)}
    n_unsafe, n_safe = int(unsafe.sum()), int((~unsafe).sum())
    return (ranks[unsafe] - own[True]) / n_safe, 1 - (ranks[~unsafe] - own[False]) / n_unsafe


def towards_class(
    placed: tuple[Float[np.ndarray, "unsafe neurons"], Float[np.ndarray, "safe neurons"]],
) -> tuple[Float[np.ndarray, "unsafe neurons"], Float[np.ndarray, "safe neurons"]]:
    """Placements turned so that their mean is never under 0.5."""
    turns = placed[0].mean(axis=0) < 0.5
    return np.where(turns, 1 - placed[0], placed[0]), np.where(turns, 1 - placed[1], placed[1])


def inner_projections(model: AnyModel) -> list[nn.Module]:
    """The last projection of each MLP, whose input are the neurons. Raises `UserError` for a mixture of experts."""
    blocks = blocks_of(decoder_of(model))
    if not all(hasattr(block.get_submodule("mlp"), "down_proj") for block in blocks):
        raise UserError(f"{type(decoder_of(model)).__name__}: its MLPs have no down_proj; no neurons can be mapped")
    return [block.get_submodule("mlp.down_proj") for block in blocks]


@torch.no_grad()
def neuron_activations(
    model: AnyModel, margin_of: MarginOf, ids: Int[Tensor, "rows seq"], mask: Int[Tensor, "rows seq"]
) -> tuple[Float[np.ndarray, " rows"], Float32[np.ndarray, "layers rows neurons"]]:
    """Margins, and every neuron at each row's last real token."""
    ids, mask = ids.to(decoder_of(model).device), mask.to(decoder_of(model).device)
    last, rows = last_real_positions(mask), torch.arange(len(ids), device=mask.device)
    found: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0][rows, last].float().cpu())

    handles: list[RemovableHandle] = []
    try:
        handles += [module.register_forward_pre_hook(keep) for module in inner_projections(model)]
        margin = margin_of(ids, mask).double().cpu().numpy()
    finally:
        for handle in handles:
            handle.remove()
    return margin, torch.stack(found).numpy()


def neurons_by_layer(neurons: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for layer, neuron in neurons:
        found.setdefault(layer, []).append(neuron)
    return found
