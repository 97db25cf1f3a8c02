"""What the margin loses without some neurons, beside matched random ones.

Ablated at the token where the margin is read: by the neuron's mean over all rows, or by what it was on another row
(resample ablation, Chan et al. 2022), which stays within what the model has seen. Random neurons are of the same
layers and vary as much; a set of neurons says something only if it does more than they do.
"""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from src.utils.circuits.contrast import margins
from src.utils.circuits.neurons import inner_projections, neurons_by_layer
from src.utils.circuits.partial_passes import Columns
from src.utils.safety_judge.scoring import last_real_positions
from src.utils.sites import AnyModel

Mode = Literal["mean", "resample"]
MODES: tuple[Mode, ...] = ("mean", "resample")
NEAREST = 24  # neurons of like spread from which a match is drawn
Neurons = Sequence[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Ablation:
    """Separation is the mean margin of unsafe rows minus that of safe rows, in logits; `drop` is what ablation takes.

    `p` is the share of random sets that take at least as much, the observed one counted in.
    """

    mode: Mode
    separation: float
    drop: float
    random_drops: Float[np.ndarray, " sets"]

    @property
    def p(self) -> float:
        return float((1 + np.sum(self.random_drops >= self.drop)) / (1 + len(self.random_drops)))


def ablate_neurons(
    rows: Columns,
    unsafe: Bool[np.ndarray, " rows"],
    activations: Float[np.ndarray, "layers rows neurons"],
    neurons: Neurons,
    random_sets: Sequence[Neurons],
    mode: Mode,
    seed: int = 0,
) -> Ablation:
    """Ablate a set of neurons and each random set; every drop is a pass over the rows' last tokens (`last_tokens`).

    `activations` are those of `neuron_activations` on the same rows. Resampling exchanges rows by one permutation, the
    same for all sets.
    """
    if mode == "mean":
        values = np.broadcast_to(activations.mean(axis=1, keepdims=True), activations.shape)
    else:
        values = activations[:, other_rows(len(unsafe), seed)]
    whole = separation_of(margins(rows, rows.ids, rows.mask), unsafe)

    def drop(chosen: Neurons) -> float:
        with ablated(rows.margin.model, rows.mask, values, chosen):
            return whole - separation_of(margins(rows, rows.ids, rows.mask), unsafe)

    return Ablation(mode, whole, drop(neurons), np.array([drop(chosen) for chosen in random_sets]))


def separation_of(margin: Float[np.ndarray, " rows"], unsafe: Bool[np.ndarray, " rows"]) -> float:
    return float(margin[unsafe].mean() - margin[~unsafe].mean())


@contextmanager
def ablated(
    model: AnyModel, mask: Int[Tensor, "rows seq"], values: Float[np.ndarray, "layers rows neurons"], neurons: Neurons
):
    """While open, the neurons have these values at each row's last real token."""
    last, rows = last_real_positions(mask), torch.arange(len(mask), device=mask.device)
    handles: list[RemovableHandle] = []

    def install(module: nn.Module, layer: int, own: list[int]) -> RemovableHandle:
        columns = torch.tensor(own, device=mask.device)
        value = torch.from_numpy(np.ascontiguousarray(values[layer][:, own])).to(mask.device)

        def edit(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden = args[0].clone()
            hidden[rows[:, None], last[:, None], columns[None]] = value.to(hidden.dtype)
            return (hidden, *args[1:])

        return module.register_forward_pre_hook(edit)

    try:
        projections = inner_projections(model)
        for layer, own in neurons_by_layer(neurons).items():
            handles.append(install(projections[layer], layer, own))
        yield
    finally:
        for handle in handles:
            handle.remove()


def matched_neurons(
    activations: Float[np.ndarray, "layers rows neurons"], neurons: Neurons, sets: int, seed: int = 0
) -> list[list[tuple[int, int]]]:
    """Random sets: for each neuron another of its layer from the `NEAREST` in standard deviation over rows.

    None of them is in `neurons`, and none stands twice in a set; where a layer has too few others a set is smaller.
    """
    rng = np.random.default_rng(seed)
    spread = activations.std(axis=1)
    taken = neurons_by_layer(neurons)
    found = []
    for _ in range(sets):
        chosen: list[tuple[int, int]] = []
        for layer, neuron in neurons:
            used = {*taken[layer], *(other for at, other in chosen if at == layer)}
            order = np.argsort(np.abs(spread[layer] - spread[layer, neuron]), kind="stable")
            nearest = [int(other) for other in order if int(other) not in used][:NEAREST]
            if nearest:
                chosen.append((layer, int(rng.choice(nearest))))
        found.append(chosen)
    return found


def other_rows(count: int, seed: int) -> Int[np.ndarray, " rows"]:
    """A permutation that leaves no row in its place: one cycle through all rows in random order."""
    order = np.random.default_rng(seed).permutation(count)
    partner = np.empty(count, dtype=int)
    partner[order] = np.roll(order, 1)
    return partner
