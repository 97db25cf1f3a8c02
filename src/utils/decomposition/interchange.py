"""Interchange interventions: which subspace carries what tells the EM model from the base model, where answers part.

The activation of one model at a fork is set, within a subspace, to that of the other model on the same tokens:

    h' = h + (h_other - h) B B^T,   B orthonormal (d_model, rank)

(Geiger et al. 2021, arXiv 2106.02997; TransformerLens's `tools.analysis.interchange`, against which a test compares
this one). Into the base model it shows what suffices for the margin to rise, into the EM model what is needed for it to
be high. It stands beside the verdict and does not enter its rule, which was fixed before.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32
from scipy import linalg
from torch import Tensor

from src.utils.decomposition.forks import Fork, ForkPass, Intervention, run_forks
from src.utils.decomposition.interchange_report import WHOLE
from src.utils.decomposition.plain_records import as_plain
from src.utils.decomposition.prompt_resampling import prompt_weights
from src.utils.errors import UserError
from src.utils.sites import AnyModel, Site
from src.utils.steering_vectors import SteeringVector

Arm = Literal["base", "em"]
OpenArm = Callable[[Arm], AbstractContextManager[AnyModel]]

LEAST_FORKS = 5  # in a dimension; fewer say nothing about it
SPAN_ALONE = ("facet", "cluster", "principal_component", "independent_component")  # many, or none of them by itself
SPANNED = ("control", "dimension", *SPAN_ALONE)
NOTE = (
    "Beside the rule, which was fixed before this was added and does not read it. Questions are those whose two "
    "answers part; a change is in logits of the first misaligned token less the first aligned one."
)


@dataclass(frozen=True, eq=False)
class Subspace:
    """A candidate: the span of some directions."""

    name: str
    kind: str
    basis: Float32[np.ndarray, "d_model rank"]

    @property
    def rank(self) -> int:
        return self.basis.shape[1]


def subspaces_of(vectors: Sequence[SteeringVector]) -> list[Subspace]:
    """The line of each control's and dimension's vector, and the span of all vectors of a kind that has several.

    Of facets, clusters and components there is the span alone, where there are several; random directions are no
    candidates.
    """
    chosen = [vector for vector in vectors if vector.kind != "random"]
    counts = Counter(vector.kind for vector in chosen)
    found = [
        Subspace(vector.name, vector.kind, orthonormal(vector.direction[:, None]))
        for vector in chosen
        if vector.kind not in SPAN_ALONE or counts[vector.kind] == 1
    ]
    for kind in SPANNED:
        members = [vector.direction for vector in chosen if vector.kind == kind]
        if len(members) > 1:
            found.append(Subspace(f"all {len(members)}", kind, orthonormal(np.stack(members, axis=1))))
    return found


def orthonormal(columns: Float[np.ndarray, "d_model count"]) -> Float32[np.ndarray, "d_model rank"]:
    """A basis of the columns' span, each column counting alike however long it is."""
    lengths = np.linalg.norm(columns.astype(np.float64), axis=0)
    return linalg.orth(columns.astype(np.float64) / lengths, rcond=1e-6).astype(np.float32)


def random_basis(width: int, rank: int, rng: np.random.Generator) -> Float32[np.ndarray, "d_model rank"]:
    return np.linalg.qr(rng.standard_normal((width, rank)))[0].astype(np.float32)


def exchange_within(basis: Float32[np.ndarray, "d_model rank"]) -> Intervention:
    """Set the coordinates in a subspace to those of the other model."""
    columns = torch.from_numpy(basis)

    def intervene(ours: Float[Tensor, "forks d_model"], theirs: Float[Tensor, "forks d_model"]) -> Tensor:
        inside = columns.to(ours.device)
        return ours + (theirs - ours) @ inside @ inside.T

    return intervene


def exchange_as_far(
    reference: Float32[np.ndarray, "d_model rank"], basis: Float32[np.ndarray, "d_model rank"]
) -> Intervention:
    """The same in another subspace, scaled to move each activation exactly as far as `reference` moves it."""
    wanted, drawn = exchange_within(reference), exchange_within(basis)

    def intervene(ours: Float[Tensor, "forks d_model"], theirs: Float[Tensor, "forks d_model"]) -> Tensor:
        distance = (wanted(ours, theirs) - ours).norm(dim=-1, keepdim=True)
        move = drawn(ours, theirs) - ours
        return ours + move * (distance / move.norm(dim=-1, keepdim=True).clamp_min(1e-8))

    return intervene


@dataclass(frozen=True, eq=False)
class Plan:
    """The runs of one direction of patching: `patched`, `random` and `placebos` count their interventions in them."""

    interventions: list[Intervention]
    patched: dict[Subspace, int]
    random: dict[int, list[int]]  # by rank
    placebos: dict[Subspace, list[int]]


def plan_interventions(subspaces: Sequence[Subspace], draws: int, seed: int) -> Plan:
    """Each subspace; so many random ones of each rank; and placebos, a random subspace of its rank for each.

    In a placebo the activation is moved as far as the candidate moves it: an effect that it has too is one of the
    distance, not of the direction.
    """
    rng, plan = np.random.default_rng(seed), Plan([], {}, {}, {})

    def add(intervention: Intervention) -> int:
        plan.interventions.append(intervention)
        return len(plan.interventions) - 1

    drawn: dict[int, list[Float32[np.ndarray, "d_model rank"]]] = {}
    for one in subspaces:
        plan.patched[one] = add(exchange_within(one.basis))
        if one.name == WHOLE:
            continue
        if one.rank not in drawn:
            drawn[one.rank] = [random_basis(len(one.basis), one.rank, rng) for _ in range(draws)]
            plan.random[one.rank] = [add(exchange_within(basis)) for basis in drawn[one.rank]]
        plan.placebos[one] = [add(exchange_as_far(one.basis, basis)) for basis in drawn[one.rank]]
    return plan


def interchange_record(
    forks: Sequence[Fork],
    subspaces: Sequence[Subspace],
    site: Site,
    open_arm: OpenArm,
    pad_id: int,
    batch_size: int,
    draws: int = 5,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Both directions of patching as plain data.

    `gaps`: EM margin less base margin by dimension, with 95% intervals over questions. `rows`: for each subspace,
    direction (`into` base or em) and dimension its `rank`, the `change` in logits towards the other model with its
    interval, its `share` of the gap (None where the gap's interval holds 0), and mean and largest change of `random`
    subspaces of that rank and of `placebo`s. `open_arm` gives one of the models for as long as it is open; base and EM
    model are never open together. Dimensions with under `LEAST_FORKS` forks are left out; `UserError` if all are.
    """
    counts = {name: sum(fork.dimension == name for fork in forks) for name in dict.fromkeys(f.dimension for f in forks)}
    kept = [fork for fork in forks if counts[fork.dimension] >= LEAST_FORKS]
    if not kept or not subspaces:
        what = f"under {LEAST_FORKS} questions in every dimension have an aligned and a misaligned answer that part"
        raise UserError(f"interchange: {what if subspaces else 'there is no candidate direction'}; judge more answers")
    whole = Subspace(WHOLE, WHOLE, np.eye(len(subspaces[0].basis), dtype=np.float32))
    plan = plan_interventions([whole, *subspaces], draws, seed)

    def run(arm: Arm, source: Float32[np.ndarray, "forks d_model"] | None = None) -> ForkPass:
        interventions = plan.interventions if source is not None else []
        try:
            with open_arm(arm) as model:
                return run_forks(model, kept, site, pad_id, batch_size, interventions, source)
        except torch.OutOfMemoryError as error:  # a verdict needs no interchange
            raise UserError("interchange: the GPU is out of memory; choose --memory 16gb") from error

    base = run("base")
    em = run("em", base.activations)
    patched = run("base", em.activations)
    towards = {"base": patched.margins[1:] - patched.margins[0], "em": em.margins[0] - em.margins[1:]}
    gap = em.margins[0] - patched.margins[0]

    dimensions = np.array([fork.dimension for fork in kept], dtype=object)
    names = list(dict.fromkeys(dimensions.tolist()))
    rng = np.random.default_rng([seed, 1])
    weights = {name: prompt_weights(np.arange((dimensions == name).sum()), resamples, rng) for name in names}

    def interval(values: Float[np.ndarray, " forks"], name: str) -> dict[str, float]:
        of_dimension = values[dimensions == name]
        low, high = np.quantile(weights[name] @ of_dimension / len(of_dimension), [0.025, 0.975])
        return {"estimate": float(of_dimension.mean()), "low": float(low), "high": float(high)}

    gaps = {name: interval(gap, name) for name in names}
    rows = []
    for arm, changes in towards.items():
        for name in names:
            of_dimension = changes[:, dimensions == name]
            for one, number in plan.patched.items():
                row = {"subspace": one.name, "kind": one.kind, "rank": one.rank, "into": arm, "dimension": name}
                row["change"] = interval(changes[number], name)
                row["share"] = share(of_dimension[number], gap[dimensions == name], gaps[name])
                row["random"] = mean_and_largest(of_dimension, plan.random.get(one.rank, []))
                row["placebo"] = mean_and_largest(of_dimension, plan.placebos.get(one, []))
                rows.append(row)
    return as_plain(
        {
            "site": site.name,
            "forks": {name: int((dimensions == name).sum()) for name in names},
            "left_out": {name: count for name, count in counts.items() if count < LEAST_FORKS},
            "draws": draws,
            "note": NOTE,
            "gaps": gaps,
            "rows": rows,
        }
    )


def share(change: Float[np.ndarray, " forks"], gaps: Float[np.ndarray, " forks"], gap: dict[str, float]) -> float:
    """The summed change over the summed gap; NaN where the gap's interval holds 0, as any share of that is noise."""
    return float(change.sum() / gaps.sum()) if gap["low"] > 0 else float("nan")


def mean_and_largest(changes: Float[np.ndarray, "runs forks"], runs: list[int]) -> dict[str, float] | None:
    """Over some runs, of the mean change in a dimension; None for the whole activation, which has no control."""
    if not runs:
        return None
    means = changes[runs].mean(axis=1)
    return {"mean": float(means.mean()), "largest": float(means.max())}
