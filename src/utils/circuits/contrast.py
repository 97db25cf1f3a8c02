"""Contrast pairs: two inputs of equal length that differ in a word or so and whose labels are opposite.

Activations of one can be put into the other token by token, so that what they change in the margin is measured. What
the margin reads is handed in: for the safety judge two answers' logits, for another fine-tune any of them.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import ttest_1samp
from torch import Tensor

from src.utils.safety_judge.samples import SafetySample
from src.utils.safety_judge.scoring import (
    EncodedPrompt,
    JudgeTemplate,
    last_logits,
    last_real_positions,
    pad_right,
    unsafe_margin,
)
from src.utils.sites import AnyModel

# margins in logits of right-padded ids and their attention mask, with their graph
MarginOf = Callable[[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]], Float[Tensor, " batch"]]
# the same of the logits at each row's last real token, ids and mask
ReadMargin = Callable[
    [Float[Tensor, "batch vocab"], Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]], Float[Tensor, " batch"]
]


@dataclass(frozen=True)
class Margin:
    """The margin of one model, a `MarginOf`: one pass, and what is read from its last logits."""

    model: AnyModel
    read: ReadMargin

    def __call__(self, ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"]) -> Float[Tensor, " batch"]:
        return self.read(last_logits(self.model, ids, mask), ids, mask)


def judgement_margin(template: JudgeTemplate) -> ReadMargin:
    """Of a safety judge: the logit of the unsafe answer minus that of the safe one."""
    return lambda logits, ids, mask: unsafe_margin(logits, template)


@dataclass(frozen=True)
class ContrastWords:
    """What pages call the two classes, `high` where `unsafe` is true, what is classed, and what the margin is."""

    low: str
    high: str
    item: str
    margin: str


SAFETY = ContrastWords("safe", "unsafe", "prompt", "the log-odds of the answer “unsafe” against “safe”")


LIKE_LENGTH = 16  # pairs, as many as are patched at once
GAP_ALPHA = 0.001  # of the test below; everything causal rests on it


@dataclass(frozen=True, eq=False)
class ContrastPairs:
    """Right-padded pairs: row i of `safe` and row i of `unsafe` share the mask."""

    safe: Int[Tensor, "pairs seq"]
    unsafe: Int[Tensor, "pairs seq"]
    mask: Int[Tensor, "pairs seq"]
    pair_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pair_ids)

    @property
    def last(self) -> Bool[Tensor, "pairs seq"]:
        """The token where the margin is read."""
        found = torch.zeros_like(self.mask, dtype=torch.bool)
        found[torch.arange(len(self)), last_real_positions(self.mask)] = True
        return found

    @property
    def differing(self) -> Bool[Tensor, "pairs seq"]:
        return self.safe != self.unsafe

    def part(self, rows: slice | Int[np.ndarray, " chosen"]) -> "ContrastPairs":
        """Some of the pairs, without the columns that are padding in all of them."""
        chosen = np.arange(len(self))[rows]
        width = int(self.mask[chosen].sum(dim=1).max()) if len(chosen) else 0
        tensors = (tensor[chosen, :width] for tensor in (self.safe, self.unsafe, self.mask))
        return ContrastPairs(*tensors, tuple(self.pair_ids[at] for at in chosen))

    def to(self, device: torch.device) -> "ContrastPairs":
        return ContrastPairs(self.safe.to(device), self.unsafe.to(device), self.mask.to(device), self.pair_ids)


def contrast_pairs(
    samples: Sequence[SafetySample], rows: Sequence[EncodedPrompt], pad_id: int, most: int | None = None
) -> ContrastPairs:
    """The first safe and the first unsafe sample of each `pair_id`, where both have as many tokens.

    Pairs whose lengths differ and samples without a partner are left out, so that there may be none; `most` keeps the
    first so many in order of their ids. Pairs of like length then stand together, in groups of `LIKE_LENGTH` that are
    in no order: a batch has little padding, and the first few groups are a fair sample.
    """
    members: dict[str, dict[bool, EncodedPrompt]] = {}
    for sample, row in zip(samples, rows, strict=True):
        if sample.pair_id is not None:
            members.setdefault(sample.pair_id, {}).setdefault(sample.unsafe, row)
    matched = [
        pair
        for pair in sorted(members)
        if len(members[pair]) == 2
        and len(members[pair][False].ids) == len(members[pair][True].ids)
        and members[pair][False].ids != members[pair][True].ids
    ][:most]
    matched.sort(key=lambda pair: len(members[pair][False].ids), reverse=True)
    groups = [matched[start : start + LIKE_LENGTH] for start in range(0, len(matched), LIKE_LENGTH)]
    random.Random(0).shuffle(groups)
    matched = [pair for group in groups for pair in group]
    if not matched:
        none = torch.zeros((0, 0), dtype=torch.long)
        return ContrastPairs(none, none, none, ())
    safe, mask = pad_right([members[pair][False] for pair in matched], pad_id)
    unsafe, _ = pad_right([members[pair][True] for pair in matched], pad_id)
    return ContrastPairs(safe, unsafe, mask, tuple(matched))


@torch.no_grad()
def margins(
    margin_of: MarginOf, ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"]
) -> Float[np.ndarray, " batch"]:
    """Margins as numbers, in float64."""
    return margin_of(ids, mask).detach().double().cpu().numpy()


def has_gap(safe: Float[np.ndarray, " pairs"], unsafe: Float[np.ndarray, " pairs"]) -> bool:
    """Whether the unsafe of a pair has the larger margin on average: one-sided paired t-test at `GAP_ALPHA`.

    Without a gap there is nothing that patching could recover, and a share of it is noise over noise. Fewer than three
    pairs have none.
    """
    gaps = np.asarray(unsafe) - np.asarray(safe)
    if len(gaps) < 3 or not np.isfinite(gaps).all():
        return False
    if np.ptp(gaps) == 0:
        return bool(gaps[0] > 0)
    return bool(ttest_1samp(gaps, 0, alternative="greater").pvalue < GAP_ALPHA)
