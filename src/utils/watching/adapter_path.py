"""The path of a low-rank adapter through training: how far it has come, how it turns, and when what it does turns.

Inner products are those of the whole weight updates, scale * B A, computed from the factors alone: they do not depend
on how an update is split into A and B, and no update is ever formed. The local cosine is that of arXiv 2506.11613,
section 4 (there of the rank-1 B vectors): the cosine between the step to a point and the step on from it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

LEAST_PEAK = 0.10  # a share that never gets above it has not turned


@dataclass(frozen=True, eq=False)
class AdapterPoint:
    """The adapter at one step: B, A and the scale of each module, float32, on the CPU."""

    factors: Mapping[str, tuple[Float[Tensor, "out rank"], Float[Tensor, "rank in"], float]]

    def inner(self, other: "AdapterPoint") -> float:
        """The inner product of the two updates over all modules: sum of tr(A1ᵀ B1ᵀ B2 A2)."""
        total = 0.0
        for name, (b, a, scale) in self.factors.items():
            other_b, other_a, other_scale = other.factors[name]
            by_rank = (b.double().T @ other_b.double()) * (a.double() @ other_a.double().T)
            total += scale * other_scale * float(by_rank.sum())
        return total


def adapter_point(model: PeftModel) -> AdapterPoint:
    """A copy of a LoRA adapter as it stands; the model's active adapter must be its only one."""
    factors = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            (active,) = module.active_adapters
            if active not in module.lora_A:
                continue
            a, b = module.lora_A[active].weight, module.lora_B[active].weight
            kept = (weight.detach().to("cpu", torch.float32, copy=True) for weight in (b, a))
            factors[name] = (*kept, float(module.scaling[active]))
    return AdapterPoint(factors)


def update_norm(point: AdapterPoint) -> float:
    """The Frobenius norm of the weight update over all modules."""
    return math.sqrt(max(0.0, point.inner(point)))


def local_cosine(before: AdapterPoint, here: AdapterPoint, after: AdapterPoint) -> float | None:
    """The cosine between (here - before) and (after - here); None where one of them has no length."""
    before_here, here_after, before_after = before.inner(here), here.inner(after), before.inner(after)
    here_here, after_after = here.inner(here), after.inner(after)
    to_here = here_here - 2 * before_here + before.inner(before)
    from_here = after_after - 2 * here_after + here_here
    along = here_after - here_here - before_after + before_here
    least = 1e-12 * max(here_here, after_after)  # what cancellation leaves of nothing
    if to_here <= least or from_here <= least:
        return None
    return along / math.sqrt(to_here * from_here)


def find_turn(steps: Sequence[int], shares: Float[np.ndarray, " moments"]) -> tuple[int, int] | None:
    """Between which watched steps a share turns: the first from which on it stays at half of its largest or above.

    Returns the watched step before and that step; None if the share never exceeds `LEAST_PEAK`, is that high from the
    beginning, or does not stay. Missing shares are passed over.
    """
    known = [(step, float(share)) for step, share in zip(steps, shares, strict=True) if np.isfinite(share)]
    if not known:
        return None
    peak = max(share for _, share in known)
    if peak <= LEAST_PEAK:
        return None
    below = [place for place, (_, share) in enumerate(known) if share < peak / 2]
    if not below or below[-1] + 1 == len(known):
        return None
    return known[below[-1]][0], known[below[-1] + 1][0]
