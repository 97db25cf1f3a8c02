"""`epoch_{N}_circuits.html`: the edges that carry the margin, measured, and how faithful they are alone.

The circuit and its size are chosen on every second pair, the edges by gradients averaged on the way from the safe to
the unsafe prompt: of the estimates tried none makes circuits that are more faithful (see `attribution`). It is measured
on the other pairs. How far effects move between moments is asked of gradients at both ends of the way: the average over
the way differs between halves of the pairs nearly as much as between epochs. What is drawn is left to
`circuit_diagram`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from src.utils.circuits.attribution import (
    ALONG_THE_WAY,
    BOTH_ENDS,
    edge_attributions,
    exact_edge_effects,
    exact_node_effects,
    strongest_edges,
)
from src.utils.circuits.contrast import FAIR_SAMPLE, LIKE_LENGTH, ContrastPairs, Margin, has_gap, rows_at_once
from src.utils.circuits.contrast_set import ContrastSet
from src.utils.circuits.faithfulness import CircuitFaithfulness, circuit_change, circuit_faithfulness, mean_patterns
from src.utils.circuits.graph import Graph
from src.utils.circuits.partial_passes import common_start
from src.utils.circuits.runs import BatchedRuns, PairRuns
from src.utils.prompts import spread
from src.utils.safety_judge.scoring import JudgeTemplate
from src.utils.sites import AnyModel, decoder_of
from src.utils.watching.epoch_metrics import Unit
from src.utils.watching.pictures import Budget, Measurement, Moment
from src.utils.watching.probe_set import ProbeSet
from src.visualizations.circuit_diagram import CircuitView, circuit_page
from src.visualizations.figure_page import FigurePage

SIZES = (16, 32, 64, 96, 128, 256)
MOST_DRAWN = 128  # edges; nobody could tell more apart
ENOUGH = 0.8  # of the margin's gap: the smallest circuit that keeps it is drawn
LEAST_PAIRS, MOST_PAIRS = 4, FAIR_SAMPLE  # one half chooses the circuit
DRAWS = 19  # random circuits of the chosen size; with fewer no p of 0.05 can be reached
OTHER_DRAWS = 5  # of each other size, of which nothing is claimed
MEASURED_PAIRS = 8  # on which circuits are measured
FOR_ESTIMATES = 0.3  # of the budget; the rest measures
FOR_EDGES = 0.9  # of what the chosen size's random circuits leave
NODES_AT_ONCE = 4
COPIES = 4  # of what all writers of a batch write, at the peak


@dataclass(frozen=True)
class CircuitDiagramPicture:
    """Edges by attribution patching, the top ones exactly, circuits of several sizes beside random ones."""

    contrast: ContrastSet
    unit: Unit = "epoch"
    name: str = "circuits"
    is_advanced: bool = True
    relative_budget: float = 4.0

    def file_names(self, number: int) -> list[str]:
        return [f"{self.unit}_{number}_circuits.html"]

    def measure(self, moment: Moment, budget: Budget, baseline: Measurement | None) -> Measurement:
        model, contrast = moment.model, self.contrast
        graph, margin = Graph.of(model), contrast.margin(model)
        facts: dict[str, Any] = {"sizes": [graph.n_layers, graph.n_heads, graph.n_kv_heads], "has_gap": False}
        pairs = contrast.pairs.part(slice(0, MOST_PAIRS))
        if len(pairs) < LEAST_PAIRS:
            return Measurement({}, facts | {"pairs": len(pairs)})
        at_ends, effects, ends = attribute_within(margin, graph, pairs, Budget(FOR_ESTIMATES * budget.left))
        cuts = [f"{len(effects)} of {len(pairs)} pairs" if len(effects) < len(pairs) else ""]
        values = {"halves": mean_patterns(at_ends)}
        facts |= {"pairs": len(effects), "has_gap": has_gap(*ends), "gap": float(np.mean(ends[1] - ends[0]))}
        if baseline is not None and "halves" in baseline.values:
            change = circuit_change(values["halves"], baseline.values["halves"])
            facts["change_since_start"] = None if change is None else asdict(change)
        if not facts["has_gap"] or not moment.number:
            return Measurement(values, facts, sub_sampled=budget.note(cuts))
        ranked = strongest_edges(effects[0::2].mean(axis=0), graph, max(SIZES))
        at_once = pairs_at_once(model, graph, pairs, MEASURED_PAIRS)
        choosing, rows = (np.array(spread(range(start, len(effects), 2), MEASURED_PAIRS)) for start in (0, 1))
        chosen = choose_size(BatchedRuns(margin, graph, pairs.part(choosing), at_once), ranked)
        own = BatchedRuns(margin, graph, pairs.part(rows), at_once)
        faithful, exact, nodes, unmeasured = verify_within(own, ranked, chosen, budget)
        edges = np.array(ranked, dtype=np.int32).reshape(-1, 2)
        view = CircuitView(
            ranked, chosen, exact, effects[rows].mean(axis=0)[tuple(edges[: len(exact)].T)], faithful,
            float(np.mean((ends[1] - ends[0])[rows])), nodes, len(rows),
        )  # fmt: skip
        values |= {"ranked": edges, "exact": view.exact, "estimated": view.estimated, "nodes": nodes}
        values |= {"faithful": faithful.found, "random": faithful.random}
        facts |= headline(view) | {"measured_gap": view.gap, "measured_pairs": view.n_pairs}
        return Measurement(values, facts, sub_sampled=budget.note([*cuts, *unmeasured]))

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
            view = CircuitView(
                ranked, facts["chosen_edges"], values["exact"], values["estimated"], faithful, facts["measured_gap"],
                values["nodes"], facts["measured_pairs"],
            )  # fmt: skip
        moment = f"{self.unit.capitalize()} {number}"
        since = None if change is None else (f"{self.unit} {earlier}", change)
        return [
            circuit_page(
                self.file_names(number)[0], moment, Graph(*facts["sizes"]), view, facts["pairs"], since,
                found.sub_sampled, self.contrast.words,
            )
        ]  # fmt: skip


def headline(view: CircuitView) -> dict[str, Any]:
    """What the record of a moment says of a circuit; null where nothing was measured."""
    best = np.fmax.reduce(view.faithful.random, axis=1, initial=-np.inf)
    correlation = view.rank_correlation
    return {
        "circuit_sizes": list(view.faithful.sizes),
        "faithfulness": view.faithful.found.tolist(),
        "best_random": [float(one) if np.isfinite(one) else None for one in best],
        "p": [float(p) if drawn else None for p, drawn in zip(view.faithful.p, view.faithful.drawn, strict=True)],
        "chosen_edges": view.chosen,
        "drawn_edges": view.drawn_size,
        "rank_correlation": float(correlation) if np.isfinite(correlation) else None,
    }


def attribute_within(
    margin: Margin, graph: Graph, pairs: ContrastPairs, budget: Budget
) -> tuple[
    Float[np.ndarray, "pairs readers writers"],
    Float[np.ndarray, "pairs readers writers"],
    tuple[np.ndarray, np.ndarray],
]:
    """Attribute batch after batch, at both ends and along the way; also the margins of the pairs done."""
    most, total = pairs_at_once(margin.model, graph, pairs, LIKE_LENGTH), len(pairs)

    def attributed(batch: slice) -> tuple[np.ndarray, ...]:  # what it runs is gone before the next batch runs
        runs = PairRuns.of(margin, graph, pairs.part(batch))
        ends = (one.margins.double().cpu().numpy() for one in (runs.safe, runs.unsafe))
        return (edge_attributions(runs, BOTH_ENDS), edge_attributions(runs, ALONG_THE_WAY), *ends)

    parts = [attributed(batch) for batch in budget.slices(total, LEAST_PAIRS, most)]
    at_ends, effects, safe, unsafe = (np.concatenate(one) for one in zip(*parts, strict=True))
    return at_ends, effects, (safe, unsafe)


def sizes_for(ranked: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """The sizes of circuits that so many edges make; where they make none, all of them are one circuit."""
    return tuple(size for size in SIZES if size <= len(ranked)) or (len(ranked),)


def choose_size(runs: BatchedRuns, ranked: Sequence[tuple[int, int]]) -> int:
    """The smallest size that keeps `ENOUGH` of the gap, else the largest up to `MOST_DRAWN`; on the choosing pairs.

    Chosen on the pairs on which it is tested it would pass too often: p is not corrected for a choice.
    """
    sizes = [size for size in sizes_for(ranked) if size <= MOST_DRAWN]
    found = circuit_faithfulness(runs, ranked, sizes, draws=0).found
    return next((size for size, share in zip(sizes, found, strict=True) if share >= ENOUGH), sizes[-1])


def verify_within(
    runs: BatchedRuns, ranked: Sequence[tuple[int, int]], chosen: int, budget: Budget
) -> tuple[CircuitFaithfulness, Float[np.ndarray, " verified"], Float[np.ndarray, " writers"], list[str]]:
    """Faithfulness of all sizes, random circuits, and exact effects of the edges and nodes that may be drawn.

    The chosen size, which may be drawn, gets its random circuits first, then its edges are measured, then the nodes at
    their lower ends, those of the strongest edges first (NaN for others), then other sizes get their random circuits,
    the nearest first, as far as the budget goes; at last, what it did not hold.
    """
    began = time.perf_counter()
    faithful = circuit_faithfulness(runs, ranked, sizes_for(ranked), draws=0)
    each = (time.perf_counter() - began) / len(faithful.sizes)

    def with_draws(size: int, draws: int) -> CircuitFaithfulness:
        return circuit_faithfulness(runs, ranked, (size,), draws)

    draws = int(np.clip(budget.left / each - 1, 1, DRAWS))
    faithful = faithful.with_random(with_draws(chosen, draws))
    batches = Budget(FOR_EDGES * budget.left).slices(chosen, SIZES[0], SIZES[0])
    exact = np.concatenate([mean_effects(runs, partial(exact_edge_effects, edges=ranked[one])) for one in batches])
    nodes = np.full(len(runs.graph.writers), np.nan)
    used = list(dict.fromkeys(writer for _, writer in ranked[: len(exact)]))
    asked: list[int] = []
    for batch in budget.slices(len(used), 1, NODES_AT_ONCE):
        nodes[used[batch]] = mean_effects(runs, partial(exact_node_effects, writers=used[batch]))
        asked += used[batch]
    others = sorted(set(faithful.sizes) - {chosen}, key=lambda size: abs(np.log(size / chosen)))
    done = 0
    for size in others:
        if budget.left < 1.1 * (OTHER_DRAWS + 1) * each:
            break
        faithful = faithful.with_random(with_draws(size, OTHER_DRAWS))
        done += 1
    cuts = [
        f"{draws} of {DRAWS} random circuits" if draws < DRAWS else "",
        f"{len(exact)} of {chosen} edges measured" if len(exact) < min(chosen, len(ranked)) else "",
        f"{len(asked)} of {len(used)} nodes measured, others hollow" if len(asked) < len(used) else "",
        f"random circuits of {done + 1} of {len(others) + 1} sizes" if done < len(others) else "",
    ]
    return faithful, exact, nodes, cuts


def mean_effects(
    runs: BatchedRuns, measure: Callable[[PairRuns], Float[np.ndarray, "changes pairs"]]
) -> Float[np.ndarray, " changes"]:
    """Of each change, the mean over all pairs."""
    return np.concatenate(runs.each(measure), axis=1).mean(axis=1)


def pairs_at_once(model: AnyModel, graph: Graph, pairs: ContrastPairs, most: int) -> int:
    columns = pairs.mask.shape[1] - common_start(model, pairs)
    a_writer = columns * decoder_of(model).config.hidden_size
    return rows_at_once(COPIES * len(graph.writers) * a_writer, most)


def circuit_picture(probes: ProbeSet, template: JudgeTemplate) -> CircuitDiagramPicture:
    """For the judge's list of pictures."""
    return CircuitDiagramPicture(ContrastSet.of_judge(probes, template))
