"""`epoch_{N}_circuits.html`: the edges that carry the margin, measured, and how faithful they are alone.

The circuit is chosen on every second pair and measured on the others. What is drawn is left to `circuit_diagram`.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from src.utils.circuits.attribution import ALONG_THE_WAY, edge_attributions, exact_edge_effects, strongest_edges
from src.utils.circuits.contrast import ContrastPairs, MarginOf, has_gap, margins
from src.utils.circuits.contrast_set import ContrastSet
from src.utils.circuits.faithfulness import CircuitFaithfulness, circuit_change, circuit_faithfulness
from src.utils.circuits.graph import Graph
from src.utils.safety_judge.scoring import JudgeTemplate
from src.utils.sites import AnyModel, decoder_of
from src.utils.watching.epoch_metrics import Unit
from src.utils.watching.pictures import Budget, Measurement, Moment
from src.utils.watching.probe_set import ProbeSet
from src.visualizations.circuit_diagram import CircuitView, circuit_page
from src.visualizations.figure_page import FigurePage

SIZES = (16, 32, 64, 128, 256)
MOST_PAIRS = 32  # one half chooses the circuit
DRAWS = 19  # random circuits of a size; with fewer no p of 0.05 can be reached
VERIFIED = 64  # edges measured exactly: those of the largest circuit that may be drawn
MEASURED_PAIRS = 8  # on which circuits are measured
NUMBERS_AT_ONCE = 2**27  # of what all writers of a batch write, half a gigabyte in float32


@dataclass(frozen=True)
class CircuitDiagramPicture:
    """Edges by attribution patching, the top ones exactly, circuits of several sizes beside random ones."""

    contrast: ContrastSet
    unit: Unit = "epoch"
    name: str = "circuits"
    is_advanced: bool = True

    def file_names(self, number: int) -> list[str]:
        return [f"{self.unit}_{number}_circuits.html"]

    def measure(self, moment: Moment, budget: Budget, baseline: Measurement | None) -> Measurement:
        model, contrast = moment.model, self.contrast
        graph, margin_of = Graph.of(model), contrast.margin(model)
        sizes: dict[str, Any] = {"sizes": [graph.n_layers, graph.n_heads, graph.n_kv_heads]}
        found: dict[str, np.ndarray] = {}
        pairs = contrast.pairs.part(slice(0, MOST_PAIRS))
        if len(pairs) < 4:
            return Measurement(found, sizes | {"has_gap": False, "pairs": len(pairs)})
        effects, margin, note = attribute_within(model, margin_of, graph, pairs, Budget(budget.left / 2))
        found["halves"] = np.stack([effects[0::2].mean(axis=0), effects[1::2].mean(axis=0)])
        facts: dict[str, Any] = sizes | {"pairs": len(effects), "has_gap": has_gap(*margin)}
        if not facts["has_gap"] or not moment.number:
            return Measurement(found, facts, sub_sampled=note)
        ranked = strongest_edges(found["halves"][0], graph, max(SIZES))
        rows = np.arange(1, len(effects), 2)[: pairs_at_once(model, graph, pairs, MEASURED_PAIRS)]
        others = pairs_of(pairs, rows)
        count, draws, cut = affordable(model, margin_of, graph, others, ranked, budget)
        exact = exact_edge_effects(model, margin_of, graph, others, ranked[:count])
        faithful = circuit_faithfulness(model, margin_of, graph, others, ranked, sizes_for(ranked), draws)
        found |= {
            "ranked": np.array(ranked, dtype=np.int32).reshape(-1, 2),
            "exact": exact.mean(axis=1),
            "estimated": effects[rows].mean(axis=0)[tuple(np.array(ranked[:count], dtype=int).reshape(-1, 2).T)],
            "faithful": faithful.found,
            "random": faithful.random,
        }
        facts["circuit_sizes"] = list(faithful.sizes)
        facts["gap"] = float(np.mean((margin[1] - margin[0])[rows]))
        return Measurement(found, facts, sub_sampled="; ".join(filter(None, (note, cut))) or None)

    def shared(self, history: Mapping[int, Measurement]) -> Mapping[str, float]:
        return {}

    def draw(self, number: int, history: Mapping[int, Measurement]) -> list[FigurePage]:
        found = history[number]
        facts: Any = found.facts
        earlier = max((other for other in history if other < number), default=None)
        change = None
        if earlier is not None and "halves" in found.values and "halves" in history[earlier].values:
            change = circuit_change(found.values["halves"], history[earlier].values["halves"])
        view = None
        if "faithful" in found.values:
            values = found.values
            ranked = [(int(reader), int(writer)) for reader, writer in values["ranked"]]
            faithful = CircuitFaithfulness(tuple(facts["circuit_sizes"]), values["faithful"], values["random"])
            view = CircuitView(ranked, values["exact"], values["estimated"], faithful, facts["gap"])
        moment = f"{self.unit.capitalize()} {number}"
        since = None if change is None else (f"{self.unit} {earlier}", change)
        name = self.file_names(number)[0]
        return [circuit_page(name, moment, Graph(*facts["sizes"]), view, facts["pairs"], since, found.sub_sampled)]


def attribute_within(
    model: AnyModel, margin_of: MarginOf, graph: Graph, pairs: ContrastPairs, budget: Budget
) -> tuple[Float[np.ndarray, "pairs readers writers"], tuple[np.ndarray, np.ndarray], str | None]:
    """Attribute batch after batch, at least one; also the margins of the safe and the unsafe of the pairs done."""
    size = pairs_at_once(model, graph, pairs, 16)
    parts, total, device = [], len(pairs), decoder_of(model).device
    for start in range(0, total, size):
        began = time.perf_counter()
        parts.append(edge_attributions(model, margin_of, graph, pairs.part(slice(start, start + size)), ALONG_THE_WAY))
        done = start + size
        if done >= 4 and time.perf_counter() - began > budget.left:
            break
    effects = np.concatenate(parts)
    own = pairs.part(slice(0, len(effects))).to(device)
    found = margins(margin_of, own.safe, own.mask), margins(margin_of, own.unsafe, own.mask)
    note = f"Over its budget, sub-sampled ({len(effects)} of {total} pairs)" if len(effects) < total else None
    return effects, found, note


def sizes_for(ranked: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """The sizes of circuits that so many edges make; where they make none, all of them are one circuit."""
    return tuple(size for size in SIZES if size <= len(ranked)) or (len(ranked),)


def affordable(
    model: AnyModel,
    margin_of: MarginOf,
    graph: Graph,
    pairs: ContrastPairs,
    ranked: Sequence[tuple[int, int]],
    budget: Budget,
) -> tuple[int, int, str | None]:
    """How many edges can be measured, and how many random circuits of each size, in what is left of the budget."""
    began = time.perf_counter()
    circuit_faithfulness(model, margin_of, graph, pairs, ranked, sizes_for(ranked)[:1], draws=1)
    each = (time.perf_counter() - began) / 4
    passes = budget.left / each - VERIFIED / 3  # one edge is measured in a third of the time of a circuit
    draws = int(np.clip(passes / len(SIZES) - 1, 1, DRAWS))
    count = VERIFIED if draws > 1 else SIZES[0]
    cut = f"Over its budget of {budget.seconds:g} s ({draws} of {DRAWS} random circuits)" if draws < DRAWS else None
    return min(count, len(ranked)), draws, cut


def pairs_at_once(model: AnyModel, graph: Graph, pairs: ContrastPairs, most: int) -> int:
    """As many pairs as `NUMBERS_AT_ONCE` allows, at least one."""
    a_pair = len(graph.writers) * pairs.mask.shape[1] * decoder_of(model).config.hidden_size
    return int(np.clip(NUMBERS_AT_ONCE // a_pair, 1, most))


def pairs_of(pairs: ContrastPairs, rows: np.ndarray) -> ContrastPairs:
    names = tuple(pairs.pair_ids[row] for row in rows)
    return ContrastPairs(pairs.safe[rows], pairs.unsafe[rows], pairs.mask[rows], names)


def circuit_picture(probes: ProbeSet, template: JudgeTemplate) -> CircuitDiagramPicture:
    """For the judge's list of pictures."""
    return CircuitDiagramPicture(ContrastSet.of_judge(probes, template))
