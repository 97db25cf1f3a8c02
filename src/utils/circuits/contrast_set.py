"""What the causal pictures are measured on: the same labelled inputs and the same contrast pairs at every moment."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from src.utils.circuits.contrast import (
    SAFETY,
    ContrastPairs,
    ContrastWords,
    Margin,
    ReadMargin,
    contrast_pairs,
    judgement_margin,
)
from src.utils.safety_judge.samples import labels
from src.utils.safety_judge.scoring import EncodedPrompt, JudgeTemplate, pad_right
from src.utils.sites import AnyModel
from src.utils.watching.probe_set import Probe, ProbeSet

ROWS_AT_ONCE = 32


@dataclass(frozen=True, eq=False)
class ContrastSet:
    """`rows` with their labels and groups (pairs, which stay whole), `pairs`, and what of the logits is the margin.

    `words` are those of the pages.
    """

    rows: tuple[EncodedPrompt, ...]
    unsafe: Bool[np.ndarray, " rows"]
    groups: np.ndarray
    pairs: ContrastPairs
    pad_id: int
    read: ReadMargin
    words: ContrastWords = SAFETY

    @classmethod
    def of_judge(cls, probes: ProbeSet, template: JudgeTemplate) -> "ContrastSet":
        """A judge's probe samples; pairs are those of which both halves are among them."""
        every: dict[str, Probe] = {one.sample.sample_id: one for one in (*probes.shown, *probes.statistics)}
        samples = [one.sample for one in every.values()]
        rows = tuple(one.encoded for one in every.values())

        return cls(
            rows,
            labels(samples),
            np.array([sample.group for sample in samples]),
            contrast_pairs(samples, rows, template.pad_id),
            template.pad_id,
            judgement_margin(template),
        )

    def margin(self, model: AnyModel) -> Margin:
        return Margin(model, self.read)

    def batches(self) -> Iterator[tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]]:
        """Ids and masks of all rows, in order; the same batches each time, so that frozen layers repeat to the bit."""
        for start in range(0, len(self.rows), ROWS_AT_ONCE):
            yield pad_right(self.rows[start : start + ROWS_AT_ONCE], self.pad_id)
