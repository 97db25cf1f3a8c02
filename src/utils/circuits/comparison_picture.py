"""`epoch_{N}_circuit_comparison.html`: where safe and unsafe part, by probes and by patching; see `circuit_figures`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from src.utils.circuits.contrast import LIKE_LENGTH, rows_at_once
from src.utils.circuits.contrast_set import ROWS_AT_ONCE, ContrastSet
from src.utils.circuits.divergence import divergence_layer
from src.utils.circuits.layer_probes import LayerProbes, probe_layers
from src.utils.circuits.patching import KINDS, LayerPatching, numbers_kept, patch_layers
from src.utils.safety_judge.scoring import JudgeTemplate
from src.utils.sites import AnyModel
from src.utils.watching.epoch_metrics import Unit
from src.utils.watching.layer_activation import count_frozen, last_token_stream
from src.utils.watching.pictures import Budget, Measurement, Moment
from src.utils.watching.probe_set import ProbeSet
from src.visualizations.circuit_figures import comparison_page
from src.visualizations.figure_page import FigurePage

LEAST_PAIRS = 4
PROBES = ("auroc", "null", "p", "before", "excess", "scores")


@dataclass(frozen=True)
class CircuitComparisonPicture:
    """Probes by layer on all rows, patching by layer on as many pairs as the budget holds."""

    contrast: ContrastSet
    unit: Unit = "epoch"
    name: str = "circuit_comparison"
    is_advanced: bool = False
    relative_budget: float = 1.75

    def file_names(self, number: int) -> list[str]:
        return [f"{self.unit}_{number}_circuit_comparison.html"]

    def measure(self, moment: Moment, budget: Budget, baseline: Measurement | None) -> Measurement:
        contrast = self.contrast
        ids = [row.ids for row in contrast.rows]
        parts = [
            last_token_stream(moment.model, ids[start : start + ROWS_AT_ONCE], contrast.pad_id)
            for start in range(0, len(ids), ROWS_AT_ONCE)
        ]
        reference = None if baseline is None else baseline.values.get("probe/scores")
        probes = probe_layers(np.concatenate(parts, axis=1), contrast.unsafe, contrast.groups, reference)
        values = {} if probes is None else {f"probe/{name}": getattr(probes, name) for name in PROBES}
        patching, note = patch_within(moment.model, contrast, budget)
        facts: dict[str, Any] = {"n_frozen": count_frozen(moment.model), "rows": len(ids), "pairs": 0}
        if probes is not None:
            facts["learned_layers"] = np.flatnonzero(probes.is_learned).tolist()
            facts["probe_auroc"] = probes.auroc[:, 0].tolist()
        if patching is not None:
            values |= arrays_of(patching)
            facts |= {"pairs": len(patching.safe), "gap": float(np.mean(patching.unsafe - patching.safe))}
            found = divergence_layer(patching)
            facts["divergence"] = None if found is None else [found.layer, found.low, found.high]
        return Measurement(values, facts, sub_sampled=note)

    def shared(self, history: Mapping[int, Measurement]) -> Mapping[str, float]:
        return {}

    def draw(self, number: int, history: Mapping[int, Measurement]) -> list[FigurePage]:
        found = history[number]
        probes = {name: found.values[f"probe/{name}"] for name in PROBES if f"probe/{name}" in found.values}
        n_frozen: Any = found.facts["n_frozen"]
        patching, start = patching_of(found.values), history.get(0)
        before = None if patching is None or start is None else mean_margins(start.values, len(patching.safe))
        return [
            comparison_page(
                self.file_names(number)[0],
                f"{self.unit.capitalize()} {number}",
                LayerProbes(**probes) if probes else None,
                patching,
                n_frozen,
                found.sub_sampled,
                self.contrast.words,
                before,
            )
        ]


def patch_within(model: AnyModel, contrast: ContrastSet, budget: Budget) -> tuple[LayerPatching | None, str | None]:
    """Patch batch after batch of pairs as the budget holds them, at least `LEAST_PAIRS`. None without pairs."""
    total, done = len(contrast.pairs), 0
    most = rows_at_once(numbers_kept(model, contrast.pairs), LIKE_LENGTH)
    parts = []
    for batch in budget.slices(total, LEAST_PAIRS, most):
        parts.append(patch_layers(contrast.margin(model), contrast.pairs.part(batch)))
        done = batch.stop
    if not parts:
        return None, None
    return joined(parts), budget.note([f"{done} of {total} pairs" if done < total else ""])


def joined(parts: list[LayerPatching]) -> LayerPatching:
    return LayerPatching(
        np.concatenate([part.safe for part in parts]),
        np.concatenate([part.unsafe for part in parts]),
        {kind: np.concatenate([part.denoised[kind] for part in parts], axis=1) for kind in KINDS},
        {kind: np.concatenate([part.noised[kind] for part in parts], axis=1) for kind in KINDS},
    )


def arrays_of(patching: LayerPatching) -> dict[str, np.ndarray]:
    values = {"patch/safe": patching.safe, "patch/unsafe": patching.unsafe}
    values |= {f"patch/denoised/{kind}": array for kind, array in patching.denoised.items()}
    return values | {f"patch/noised/{kind}": array for kind, array in patching.noised.items()}


def patching_of(values: Mapping[str, np.ndarray]) -> LayerPatching | None:
    if "patch/safe" not in values:
        return None
    directions = ({kind: values[f"patch/{way}/{kind}"] for kind in KINDS} for way in ("denoised", "noised"))
    return LayerPatching(values["patch/safe"], values["patch/unsafe"], *directions)


def mean_margins(values: Mapping[str, np.ndarray], pairs: int) -> tuple[float, float] | None:
    """Of the safe and the unsafe of the first so many pairs, or of as many as were measured; None where none was."""
    if not len(values.get("patch/safe", ())):
        return None
    return float(values["patch/safe"][:pairs].mean()), float(values["patch/unsafe"][:pairs].mean())


def comparison_picture(probes: ProbeSet, template: JudgeTemplate) -> CircuitComparisonPicture:
    """For the judge's list of pictures."""
    return CircuitComparisonPicture(ContrastSet.of_judge(probes, template))
