"""What each token of a request adds to the judge's margin: integrated gradients, and whether removing tokens agrees.

Captum's LayerIntegratedGradients (Sundararajan et al. 2017, arXiv 1703.01365) of the margin in logits on the token
embeddings. The baseline is the same input with every token of the request replaced by an empty one (`empty_token`); the
template stays, so that its attribution is exactly zero and the request's tokens share out the margin's whole change.
A judge that has learned jumps from one margin to the other within a thousandth of the path, so that evenly spread
points miss it: the path is cut into parts, and those that are not complete by themselves are cut again.
Comprehensiveness and sufficiency follow ERASER (DeYoung et al. 2020, arXiv 1911.03429), in logits; tokens are replaced
by the empty one, not deleted.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from captum.attr import LayerIntegratedGradients
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from src.utils.watching.epoch_metrics import Convergence
from src.utils.watching.pictures import Budget

MarginOf = Callable[[Int[Tensor, "batch seq"]], Float[Tensor, " batch"]]

POINTS_A_PART, FIRST_PARTS, PARTS_A_ROUND = 4, 8, 8  # Gauss-Legendre points; parts to begin with, parts cut at once
MOST_POINTS = 2048
LEAST_WIDTH = 1e-6  # of a part; float32 tells no more points apart
SHARE_OF_CHANGE, LEAST_TOLERANCE = 0.05, 0.05  # a delta below 5% of the margin's change, or below 0.05 logits, passes
LEAST_NORM = 0.1  # of the median token's embedding; below that padding is no baseline
ERASER_BINS = (0.01, 0.05, 0.10, 0.20, 0.50)
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
RANDOM_ORDERS = 10
TOKENS_AT_ONCE = 2048


@dataclass(frozen=True, eq=False)
class TokenAttribution:
    """One input's attribution, a value a token, in logits; positive pushes towards "unsafe".

    `delta` is the sum of `values` minus (`margin` - `baseline_margin`); `error` adds up how far each part of the path
    is off, whatever its sign, so that faults which cancel do not pass. `points` counts where gradients were taken.
    """

    values: Float[np.ndarray, " seq"]
    margin: float
    baseline_margin: float
    delta: float
    error: float
    points: int

    @property
    def tolerance(self) -> float:
        return tolerance_of(self.margin, self.baseline_margin)

    @property
    def has_converged(self) -> bool:
        return self.error <= self.tolerance

    def convergence(self, sample: str) -> Convergence:
        return Convergence(
            sample=sample,
            delta=self.delta,
            error=self.error,
            tolerance=self.tolerance,
            has_passed=self.has_converged,
            points=self.points,
        )


@dataclass(frozen=True, eq=False)
class RemovalCurves:
    """Margins towards the predicted class after removing, or keeping only, the k tokens that come first in an order.

    `counts` are the k; `random_removed` and `random_kept` have a row for each random order. Comprehensiveness and
    sufficiency are ERASER's averages over `ERASER_BINS` (AOPC), random ones the mean over orders.
    """

    counts: Int[np.ndarray, " k"]
    full: float
    removed: Float[np.ndarray, " k"]
    kept: Float[np.ndarray, " k"]
    random_removed: Float[np.ndarray, "orders k"]
    random_kept: Float[np.ndarray, "orders k"]
    n_tokens: int

    @property
    def comprehensiveness(self) -> float:
        """How far the margin falls without the first tokens; large where they are what it rests on."""
        return float(self.full - self.removed[self.bins].mean())

    @property
    def sufficiency(self) -> float:
        """How far the margin falls with nothing but the first tokens; small where they carry it."""
        return float(self.full - self.kept[self.bins].mean())

    @property
    def random_comprehensiveness(self) -> float:
        return float(self.full - self.random_removed[:, self.bins].mean())

    @property
    def random_sufficiency(self) -> float:
        return float(self.full - self.random_kept[:, self.bins].mean())

    @property
    def bins(self) -> Int[np.ndarray, " bins"]:
        """Where in `counts` the bins of ERASER are."""
        return np.searchsorted(self.counts, [count_of(share, self.n_tokens) for share in ERASER_BINS])


class StraightPath(nn.Module):
    """The embeddings at a share of the way from the baseline to the input: the layer that is attributed."""

    def __init__(self, start: Float[Tensor, "seq d_model"], end: Float[Tensor, "seq d_model"]) -> None:
        super().__init__()
        self.start, self.moved = start, end - start

    def forward(self, shares: Float[Tensor, "rows 1"]) -> Float[Tensor, "rows seq d_model"]:
        return self.start + shares[..., None].to(self.start.dtype) * self.moved


@dataclass(frozen=True, eq=False)
class Parts:
    """Parts of the path from share `left` to `right`, what each adds to the tokens, and how far that is off."""

    left: Float[np.ndarray, " parts"]
    right: Float[np.ndarray, " parts"]
    values: Float[np.ndarray, "parts seq"]
    deltas: Float[np.ndarray, " parts"]

    def joined(self, other: "Parts", kept: Bool[np.ndarray, " parts"]) -> "Parts":
        """Other parts in the place of those that are not kept."""
        pairs = ((getattr(self, name)[kept], getattr(other, name)) for name in ("left", "right", "values", "deltas"))
        return Parts(*(np.concatenate(pair) for pair in pairs))


def attribute_tokens(
    margin_of: MarginOf,
    embedding: nn.Module,
    ids: Int[Tensor, " seq"],
    baseline_ids: Int[Tensor, " seq"],
    budget: Budget,
) -> tuple[TokenAttribution, bool]:
    """Integrated gradients of one input without padding; also whether the budget ended them before they converged.

    By completeness, the attributions of any part of the path sum to the margin's change over it: that is each part's
    own test, and the parts that fail it most are halved until all of them together pass.
    """
    with torch.no_grad():
        path = StraightPath(*(embedding(one[None])[0].detach() for one in (baseline_ids, ids)))
        margin, baseline_margin = margin_of(torch.stack([ids, baseline_ids])).tolist()
    tolerance = tolerance_of(margin, baseline_margin)

    def measured(left: Float[np.ndarray, " parts"], right: Float[np.ndarray, " parts"]) -> Parts:
        return integrated(margin_of, embedding, path, ids, left, right)

    edges = np.linspace(0, 1, FIRST_PARTS + 1)
    parts, points, was_cut = measured(edges[:-1], edges[1:]), FIRST_PARTS * POINTS_A_PART, False
    while (errors := np.abs(parts.deltas)).sum() > tolerance and points < MOST_POINTS:
        is_halved = errors > np.sort(errors)[::-1][min(PARTS_A_ROUND, len(errors) - 1)]
        is_halved &= (errors > tolerance / 4 / len(errors)) & (parts.right - parts.left > LEAST_WIDTH)
        if not is_halved.any():
            break
        seconds_a_part = budget.spent / (points / POINTS_A_PART)
        if 2 * is_halved.sum() * seconds_a_part > budget.left:
            was_cut = True
            break
        left, right = parts.left[is_halved], parts.right[is_halved]
        middle = (left + right) / 2
        halves = measured(np.concatenate([left, middle]), np.concatenate([middle, right]))
        parts = parts.joined(halves, ~is_halved)
        points += len(halves.left) * POINTS_A_PART
    values = parts.values.sum(axis=0)
    delta = float(values.sum() - (margin - baseline_margin))
    error = max(abs(delta), float(np.abs(parts.deltas).sum()))
    return TokenAttribution(values, margin, baseline_margin, delta, error, points), was_cut


def integrated(
    margin_of: MarginOf,
    embedding: nn.Module,
    path: StraightPath,
    ids: Int[Tensor, " seq"],
    left: Float[np.ndarray, " parts"],
    right: Float[np.ndarray, " parts"],
) -> Parts:
    """Captum's integrated gradients of the layer `path` over each part."""

    def margins(shares: Float[Tensor, "rows 1"]) -> Float[Tensor, " rows"]:
        points = path(shares)
        handle = embedding.register_forward_hook(lambda module, args, output: points)
        try:
            return margin_of(ids.expand(len(points), -1))
        finally:
            handle.remove()

    explained = LayerIntegratedGradients(margins, path)
    at_once = max(1, rows_at_once(ids) // POINTS_A_PART)
    values, deltas = [], []
    for start in range(0, len(left), at_once):
        ends = (torch.tensor(edge[start : start + at_once, None], device=ids.device) for edge in (right, left))
        found, delta = explained.attribute(*ends, n_steps=POINTS_A_PART, return_convergence_delta=True)
        values.append(found.detach().double().sum(dim=-1).cpu().numpy())
        deltas.append(delta.detach().double().cpu().numpy())
    return Parts(left, right, np.concatenate(values), np.concatenate(deltas))


def tolerance_of(margin: float, baseline_margin: float) -> float:
    return max(LEAST_TOLERANCE, SHARE_OF_CHANGE * abs(margin - baseline_margin))


@torch.no_grad()
def removal_curves(
    margin_of: MarginOf,
    ids: Int[Tensor, " seq"],
    baseline_ids: Int[Tensor, " seq"],
    span: tuple[int, int],
    values: Float[np.ndarray, " seq"],
    budget: Budget,
    seed: int = 0,
) -> RemovalCurves:
    """Margins as the request's tokens go, or stay alone, in the order of their attribution and in random orders.

    First comes what pushes most towards the class that is predicted. Of `RANDOM_ORDERS` random orders there are as many
    as the budget holds, at least one.
    """
    start, end = span
    n_tokens = end - start
    counts = np.unique([count_of(share, n_tokens) for share in (*FRACTIONS, *ERASER_BINS)])
    full = float(margin_of(ids[None]))
    towards = 1.0 if full >= 0 else -1.0
    rng = np.random.default_rng(seed)
    first = np.argsort(-towards * values[start:end], kind="stable")
    orders = [rng.permutation(n_tokens) for _ in range(RANDOM_ORDERS)]

    def margins(chosen: Sequence[Int[np.ndarray, " tokens"]]) -> Float[np.ndarray, "2 orders k"]:
        """Margins of removing the first k tokens of each order, and of keeping them alone."""
        is_first = np.stack([first_of(order, count) for order in chosen for count in counts])
        # orders share inputs: all of them where everything goes, many where a token or two do
        different, place = np.unique(np.concatenate([is_first, ~is_first]), axis=0, return_inverse=True)
        removes = torch.from_numpy(different).to(ids.device)
        rows = ids.repeat(len(removes), 1)
        rows[:, start:end] = torch.where(removes, baseline_ids[start:end], ids[start:end])
        found = torch.cat([margin_of(part).float() for part in rows.split(rows_at_once(ids))])
        margins_by_row = towards * found.cpu().numpy().astype(np.float64)[place]
        return margins_by_row.reshape(2, len(chosen), len(counts))

    began = time.perf_counter()
    by_order = margins([first, orders[0]])
    fitting = int(2 * budget.left / max(time.perf_counter() - began, 1e-9))
    if more := orders[1 : 1 + fitting]:
        by_order = np.concatenate([by_order, margins(more)], axis=1)
    removed, kept = by_order
    return RemovalCurves(counts, towards * full, removed[0], kept[0], removed[1:], kept[1:], n_tokens)


def rows_at_once(ids: Int[Tensor, " seq"]) -> int:
    """How many inputs of this length share a forward pass."""
    return max(1, TOKENS_AT_ONCE // len(ids))


def count_of(share: float, n_tokens: int) -> int:
    """So large a share of the tokens, at least one."""
    return max(1, math.ceil(share * n_tokens - 1e-9))


def first_of(order: Int[np.ndarray, " tokens"], count: int) -> Bool[np.ndarray, " tokens"]:
    chosen = np.zeros(len(order), dtype=bool)
    chosen[order[:count]] = True
    return chosen


def without_request(ids: Sequence[int], span: tuple[int, int], empty_id: int) -> list[int]:
    """The baseline: an empty token in place of each of the request's, the template as it is."""
    start, end = span
    return [*ids[:start], *[empty_id] * (end - start), *ids[end:]]


def empty_token(embeddings: Float[Tensor, "vocab d_model"], pad_id: int, neutral_id: int) -> int:
    """What stands for no token: padding, or `neutral_id` (a newline) where the embedding of padding is all but zero.

    A model with RMS norms reads an embedding's direction alone. A path that begins at zero has its whole change in the
    first instant, and no number of points integrates it.
    """
    lengths = embeddings.detach().float().norm(dim=1)
    return neutral_id if lengths[pad_id] < LEAST_NORM * lengths.median() else pad_id
