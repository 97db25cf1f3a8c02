"""`epoch_{N}_neuron_map.html`: which neurons tell the classes apart, and what they do; see `circuit_neurons`."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from src.utils.circuits.contrast import rows_at_once
from src.utils.circuits.contrast_set import ContrastSet
from src.utils.circuits.neuron_ablation import MODES, Ablation, Neurons, ablate_neurons, matched_neurons
from src.utils.circuits.neurons import ALPHA, NeuronTable, neuron_activations, neuron_table
from src.utils.circuits.partial_passes import last_tokens, numbers_cached
from src.utils.safety_judge.scoring import JudgeTemplate, pad_right
from src.utils.sites import AnyModel, decoder_of
from src.utils.watching.epoch_metrics import Unit
from src.utils.watching.layer_activation import count_frozen
from src.utils.watching.pictures import Budget, Measurement, Moment
from src.utils.watching.probe_set import ProbeSet
from src.visualizations.circuit_neurons import neuron_page
from src.visualizations.figure_page import FigurePage

TOP = 8
RANDOM_SETS = 19  # with fewer no p of 0.05 can be reached
ABLATED_A_CLASS = 32  # rows on which ablation is measured
TABLE = ("auroc", "q", "halves", "replicates", "excess", "excess_q", "distance")


@dataclass(frozen=True)
class NeuronMapPicture:
    """Every neuron of every MLP at the last token; the best `TOP` ablated beside matched random ones."""

    contrast: ContrastSet
    unit: Unit = "epoch"
    name: str = "neuron_map"
    is_advanced: bool = True
    relative_budget: float = 1.25

    def file_names(self, number: int) -> list[str]:
        return [f"{self.unit}_{number}_neuron_map.html"]

    def measure(self, moment: Moment, budget: Budget, baseline: Measurement | None) -> Measurement:
        contrast = self.contrast
        activations = self.activations(moment.model)
        reference = None if baseline is None else baseline.values.get("activations")
        table = neuron_table(activations, contrast.unsafe, contrast.groups, reference)
        values: dict[str, np.ndarray] = {"activations": activations} if moment.number == 0 else {}
        facts: dict[str, Any] = {"n_frozen": count_frozen(moment.model), "rows": len(contrast.unsafe)}
        note = None
        if table is not None:
            values |= {f"table/{name}": np.asarray(getattr(table, name), dtype=np.float32) for name in TABLE}
            chosen = table.top(TOP)
            facts |= {
                "neurons": table.auroc.size,
                "corrected": int((table.q <= ALPHA).sum()),
                "replicated": int(table.separates.sum()),
                "claimed": int(table.is_claimed.sum()),
                "claimed_by_block": table.is_claimed.sum(axis=1).tolist(),
                "top": [list(one) for one in chosen],
            }
            if chosen and moment.number:
                found, note = ablate_within(moment.model, contrast, activations, chosen, budget)
                values |= {f"ablation/{one.mode}": one.random_drops for one in found}
                facts["ablation"] = {one.mode: [one.separation, one.drop] for one in found}
                facts["ablation_p"] = {one.mode: one.p for one in found}
        return Measurement(values, facts, sub_sampled=note)

    def activations(self, model: AnyModel) -> Float32[np.ndarray, "layers rows neurons"]:
        margin_of = self.contrast.margin(model)
        parts = [neuron_activations(model, margin_of, ids, mask)[1] for ids, mask in self.contrast.batches()]
        return np.concatenate(parts, axis=1)

    def shared(self, history: Mapping[int, Measurement]) -> Mapping[str, float]:
        return {}

    def draw(self, number: int, history: Mapping[int, Measurement]) -> list[FigurePage]:
        found = history[number]
        facts: Any = found.facts
        table = None
        if "table/auroc" in found.values:
            arrays = {name: found.values[f"table/{name}"] for name in TABLE}
            table = NeuronTable(**arrays | {"replicates": arrays["replicates"] > 0})
        ablations = [
            Ablation(mode, *facts["ablation"][mode], found.values[f"ablation/{mode}"])
            for mode in MODES
            if mode in facts.get("ablation", {})
        ]
        return [
            neuron_page(
                self.file_names(number)[0],
                f"{self.unit.capitalize()} {number}",
                table,
                [(int(layer), int(neuron)) for layer, neuron in facts.get("top", [])],
                ablations,
                facts["n_frozen"],
                found.sub_sampled,
                self.contrast.words,
            )
        ]


def ablate_within(
    model: AnyModel,
    contrast: ContrastSet,
    activations: Float[np.ndarray, "layers rows neurons"],
    chosen: Neurons,
    budget: Budget,
) -> tuple[list[Ablation], str | None]:
    """Both kinds of ablation on some of the rows, with as many random sets as the budget holds, at least one."""
    longest = max(len(row.ids) for row in contrast.rows)
    a_class = max(1, rows_at_once(longest * numbers_cached(model), 2 * ABLATED_A_CLASS) // 2)
    rows = np.sort(np.concatenate([np.flatnonzero(contrast.unsafe == one)[:a_class] for one in (True, False)]))
    ids, mask = pad_right([contrast.rows[row] for row in rows], contrast.pad_id)
    unsafe, activations = contrast.unsafe[rows], activations[:, rows]
    device = decoder_of(model).device
    own = last_tokens(contrast.margin(model), ids.to(device), mask.to(device))
    sets = matched_neurons(activations, chosen, RANDOM_SETS)

    def ablated(mode: Any, random_sets: list) -> Ablation:
        return ablate_neurons(own, unsafe, activations, chosen, random_sets, mode)

    began = time.perf_counter()
    first = ablated(MODES[0], sets[:1])
    each = (time.perf_counter() - began) / 3  # passes: nothing ablated, the chosen ones, one random set
    count = int(np.clip(budget.left / (2 * each) - 2, 1, RANDOM_SETS))
    found = [first if count == 1 and mode == MODES[0] else ablated(mode, sets[:count]) for mode in MODES]
    return found, budget.note([f"{count} of {RANDOM_SETS} random sets" if count < RANDOM_SETS else ""])


def neuron_picture(probes: ProbeSet, template: JudgeTemplate) -> NeuronMapPicture:
    """For the judge's list of pictures."""
    return NeuronMapPicture(ContrastSet.of_judge(probes, template))
