"""Whether a drawn circuit does what the model does: everything outside it replaced, beside random circuits of its size.

In the unsafe run every edge outside the circuit carries what it carried in the safe run; the faithfulness is the share
of the margin's gap that is left (1: the whole model's, 0: the safe run's; it may be outside 0 to 1). As
`transformer_lens.tools.analysis.attribution_patching.faithfulness`, but for grouped-query attention and many pairs.
The pairs must not be those by which the circuit was chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from src.utils.circuits.attribution import only
from src.utils.circuits.graph import Graph
from src.utils.circuits.runs import BatchedRuns, PairRuns, run_with_replaced


@dataclass(frozen=True, eq=False)
class CircuitFaithfulness:
    """Circuits of the strongest edges in several sizes; `random` has a row of random circuits for each size.

    NaN in `random` are random circuits that were not measured. `p` is the share of those measured that are at least as
    faithful, the circuit counted in.
    """

    sizes: tuple[int, ...]
    found: Float[np.ndarray, " sizes"]
    random: Float[np.ndarray, "sizes draws"]

    @property
    def p(self) -> Float[np.ndarray, " sizes"]:
        return (1 + (self.random >= self.found[:, None]).sum(axis=1)) / (1 + self.drawn)

    @property
    def drawn(self) -> Int[np.ndarray, " sizes"]:
        """How many random circuits of each size were measured."""
        return np.isfinite(self.random).sum(axis=1)

    def with_random(self, other: "CircuitFaithfulness") -> "CircuitFaithfulness":
        """With the random circuits of another measurement of some of these sizes."""
        random = np.full((len(self.sizes), max(self.random.shape[1], other.random.shape[1])), np.nan)
        random[:, : self.random.shape[1]] = self.random
        for size, drawn in zip(other.sizes, other.random, strict=True):
            random[self.sizes.index(size), : len(drawn)] = drawn
        return CircuitFaithfulness(self.sizes, self.found, random)


def circuit_faithfulness(
    runs: BatchedRuns, ranked: Sequence[tuple[int, int]], sizes: Sequence[int], draws: int, seed: int = 0
) -> CircuitFaithfulness:
    """Measure the first so many of `ranked` edges, and `draws` random circuits of each size.

    Sizes beyond the number of ranked edges are left out; every circuit is a forward pass. A random circuit has as many
    edges into each kind of reader as the circuit that it is compared with: most edges are read by queries and keys, and
    edges drawn from all would lose for that alone.
    """
    graph, rng = runs.graph, np.random.default_rng(seed)
    kept_sizes = tuple(size for size in sizes if size <= len(ranked))
    chosen = [only(graph, ranked[:size]) for size in kept_sizes]
    circuits = [[one, *(random_circuit(graph, one, rng) for _ in range(draws))] for one in chosen]

    def gains(batch: PairRuns) -> Float[np.ndarray, " gains"]:
        """What the margins of a batch gain over the safe run's: of the whole model, then of every circuit."""
        others = (graph.edges & ~one for row in circuits for one in row)
        kept = [run_with_replaced(batch, batch.unsafe, one, batch.safe.written) for one in others]
        gained = torch.stack([batch.unsafe.margins, *kept]) - batch.safe.margins
        return gained.double().sum(dim=1).cpu().numpy()

    gap, *kept = np.sum(runs.each(gains), axis=0)
    shares = (np.array(kept) / gap).reshape(len(circuits), 1 + draws)
    return CircuitFaithfulness(kept_sizes, shares[:, 0], shares[:, 1:])


def random_circuit(
    graph: Graph, like: Bool[np.ndarray, "readers writers"], rng: np.random.Generator
) -> Bool[np.ndarray, "readers writers"]:
    """As many random edges into each kind of reader as another circuit has."""
    kinds = np.array([reader.kind for reader in graph.readers])
    found = np.zeros_like(like)
    for kind in dict.fromkeys(kinds.tolist()):
        own = graph.edges & (kinds == kind)[:, None]
        places = np.flatnonzero(own.ravel())
        chosen = rng.choice(places, size=int((like & own).sum()), replace=False)
        found.ravel()[chosen] = True
    return found


@dataclass(frozen=True)
class CircuitChange:
    """How far the pattern of edge effects moved between two moments, as a share of its length where it is longer.

    `total` is the distance between extractions on different pairs, `noise` that between two halves of the pairs at one
    moment, `beyond_noise` the share of the squared distance that repeated extraction does not explain, from 0 to 1.
    """

    total: float
    noise: float
    beyond_noise: float


def mean_patterns(effects: Float[np.ndarray, "pairs readers writers"]) -> Float[np.ndarray, "2 readers writers"]:
    """Mean effects in two halves of the pairs, each pair's as a vector of length one (zeros stay zeros).

    Of a trained judge one pair near its boundary may have effects a thousand times as large as any other; it would
    decide a mean of the effects themselves alone.
    """
    lengths = np.linalg.norm(effects, axis=(1, 2), keepdims=True)
    patterns = np.divide(effects, lengths, out=np.zeros_like(effects), where=lengths > 0)
    return np.stack([patterns[0::2].mean(axis=0), patterns[1::2].mean(axis=0)])


def circuit_change(
    now: Float[np.ndarray, "2 readers writers"], before: Float[np.ndarray, "2 readers writers"]
) -> CircuitChange | None:
    """Compare mean patterns in two halves of the pairs with those of the same halves before; None if all are 0.

    Distances now to before are taken across halves, so that they hold both halves' noise; the noise of each moment, its
    two halves' distance, is then taken off: E|a - b'|^2 = |difference|^2 + noise.
    """
    length = max(float(np.linalg.norm(one.mean(axis=0))) for one in (now, before))
    if length == 0:
        return None
    across = (np.sum((now[0] - before[1]) ** 2) + np.sum((now[1] - before[0]) ** 2)) / 2
    noise = (np.sum((now[0] - now[1]) ** 2) + np.sum((before[0] - before[1]) ** 2)) / 2
    share = float(np.clip(1 - noise / across, 0, 1)) if across > 0 else 0.0
    return CircuitChange(float(np.sqrt(across)) / length, float(np.sqrt(noise)) / length, share)
