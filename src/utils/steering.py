"""Steering: along a vector, the residual stream of chosen rows is pushed, freed or capped while `generate` runs.

Each row of a batch has a vector and a coefficient of its own, so that prompts, vectors and coefficients share batches.
A row without a vector, or with coefficient 0, is passed on bit for bit. Hooks are there as long as `steered` is open.

Modes, for the unit direction u of a vector v, coefficient c and residual stream x, in float32:

    add      x + c v            c counts in the vector as it was measured
    ablate   x - (x.u) u        the direction is projected out; any coefficient but 0 is on
    cap      x - max(0, x.u - p) u   p is the base model's mean projection; any coefficient but 0 is on

Positions:

    all       every token of prompt and answer
    response  every position from which an answer token is drawn: the last prompt token and each answer token
    last      the last prompt token alone, from which the first answer token is drawn
"""

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from src.utils.sites import AnyModel, Site, blocks_of, decoder_of, edit_sites
from src.utils.steering_vectors import SteeringVector

Mode = Literal["add", "ablate", "cap"]
Positions = Literal["all", "response", "last"]


@dataclass(frozen=True)
class Dose:
    """What one row gets."""

    vector: SteeringVector | None = None
    coefficient: float = 0.0

    @property
    def is_on(self) -> bool:
        return self.vector is not None and self.coefficient != 0


UNSTEERED = Dose()


@contextmanager
def steered(
    model: AnyModel,
    doses: Sequence[Dose],
    mode: Mode = "add",
    positions: Positions = "all",
    everywhere: bool = False,
) -> Generator[None]:
    """While open, one call of `generate` on a batch of `len(doses)` rows is steered, row i by dose i.

    A vector acts at its own site; with `everywhere`, which is for ablation, at every site that writes to the residual
    stream, so that no block finds the direction. Prompts must be padded on the left, as `generate` wants them.
    """
    if everywhere and mode != "ablate":
        raise ValueError(f"mode {mode}: only ablation works everywhere; a vector's length belongs to its own site")
    decoder = decoder_of(model)
    sites = list(dict.fromkeys(dose.vector.site for dose in doses if dose.vector is not None and dose.is_on))
    if everywhere and sites:
        edits = {site: RowEdit(doses, mode, positions) for site in writing_sites(len(blocks_of(decoder)))}
    else:
        edits = {site: RowEdit(only_at(site, doses), mode, positions) for site in sites}
    with edit_sites(decoder, edits):
        yield


def writing_sites(n_layers: int) -> list[Site]:
    """The input of the first block and all that the blocks add: what the residual stream is the sum of."""
    return [Site("resid_pre", 0), *(Site(kind, block) for block in range(n_layers) for kind in ("attn_out", "mlp_out"))]


def only_at(site: Site, doses: Iterable[Dose]) -> list[Dose]:
    """The doses of one site; the rows of others are left alone there."""
    return [dose if dose.vector is not None and dose.vector.site == site else UNSTEERED for dose in doses]


class RowEdit:
    """The edit of one site for one call of `generate`: it counts passes, so a second call needs another."""

    def __init__(self, doses: Sequence[Dose], mode: Mode, positions: Positions) -> None:
        self.mode, self.positions = mode, positions
        self.is_on = torch.tensor([dose.is_on for dose in doses])
        self.all_on = bool(self.is_on.all())
        on = [dose if dose.is_on else None for dose in doses]
        width = next(len(dose.vector.direction) for dose in doses if dose.vector is not None)
        nothing = np.zeros(width, np.float32)

        def stacked(value: str) -> Float[Tensor, "rows 1 d_model"]:
            rows = [nothing if dose is None else getattr(dose.vector, value) for dose in on]
            return torch.from_numpy(np.stack(rows))[:, None, :]

        coefficients = torch.tensor([0.0 if dose is None else dose.coefficient for dose in on])
        ceilings = [0.0 if dose is None or dose.vector is None else dose.vector.base_projection for dose in on]
        self.shift = stacked("direction") * coefficients[:, None, None]
        self.unit = stacked("unit")
        self.ceiling = torch.tensor(ceilings)[:, None, None]
        self.is_first_pass = True

    def __call__(self, hidden: Float[Tensor, "rows seq d_model"]) -> Float[Tensor, "rows seq d_model"] | None:
        is_first, self.is_first_pass = self.is_first_pass, False
        if self.positions == "last" and not is_first:
            return None
        if len(hidden) != len(self.is_on):
            raise ValueError(f"{len(hidden)} rows are run and {len(self.is_on)} have a dose")
        if is_first:
            self.move_to(hidden.device)
        if self.positions == "all" or hidden.shape[1] == 1:
            return self.changed(hidden)
        return torch.cat([hidden[:, :-1], self.changed(hidden[:, -1:])], dim=1)

    def move_to(self, device: torch.device) -> None:
        """The site's device is known once something arrives there."""
        self.is_on, self.shift = self.is_on.to(device)[:, None, None], self.shift.to(device)
        self.unit, self.ceiling = self.unit.to(device), self.ceiling.to(device)

    def changed(self, hidden: Float[Tensor, "rows seq d_model"]) -> Float[Tensor, "rows seq d_model"]:
        """All of `hidden` as the mode has it; rows that are off keep their very bits."""
        exact = hidden.float()
        if self.mode == "add":
            new = exact + self.shift
        else:
            excess = (exact * self.unit).sum(dim=-1, keepdim=True)
            if self.mode == "cap":
                excess = (excess - self.ceiling).clamp_min(0)
            new = exact - excess * self.unit
        new = new.to(hidden.dtype)
        return new if self.all_on else torch.where(self.is_on, new, hidden)
