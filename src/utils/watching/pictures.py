"""What a picture of a training is: a name, the files that it fills, what it measures and how that is drawn.

Measuring looks at the model and is kept; drawing sees only what was kept, so that earlier pages can be drawn again
where all share one range of colours. When this happens, and what becomes of a failure, is left to `callback`.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from pydantic import JsonValue

from src.utils.sites import AnyModel
from src.utils.watching.epoch_metrics import Convergence, Unit
from src.visualizations.figure_page import FigurePage

BUDGET_SECONDS = 2.0  # for one that asks for a pass or two


class Budget:
    """Seconds that one picture may take. Its clock starts at construction."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.started = time.perf_counter()

    @property
    def spent(self) -> float:
        return time.perf_counter() - self.started

    @property
    def left(self) -> float:
        return max(0.0, self.seconds - self.spent)

    def share(self, parts: int) -> "Budget":
        """One of so many equal parts of what is left, its clock started now."""
        return Budget(self.left / parts)

    def note(self, cuts: Iterable[str]) -> str | None:
        """What a page says of the parts that were cut to keep within it; None if none was. Empty ones say nothing."""
        told = ", ".join(filter(None, cuts))
        return f"Over its budget of {self.seconds:.3g} s, sub-sampled ({told})" if told else None

    def slices(self, total: int, least: int, most: int) -> Iterator[slice]:
        """Batches of `total` things: at least `least` of them, then as many at once as what is left would hold.

        No batch has more than `most`, nor goes across a multiple of it: groups of so many stay whole. What is done
        between two of them is what a batch takes.
        """
        start, size = 0, min(least, most)
        while start < total and size > 0:
            began, stop = time.perf_counter(), min(total, start + size, (start // most + 1) * most)
            yield slice(start, stop)
            each = (time.perf_counter() - began) / (stop - start)
            start = stop
            size = max(min(most, int(self.left / max(each, 1e-9))), min(most, least - start))


@dataclass(frozen=True)
class Moment:
    """Where the training stands. `number` counts `unit`s (0: before training), `step` optimiser steps."""

    unit: Unit
    number: int
    step: int
    model: AnyModel


@dataclass(frozen=True)
class Measurement:
    """What a picture measured at one moment: arrays and plain facts, enough to draw it again.

    `sub_sampled` says what the budget cut, None if nothing.
    """

    values: Mapping[str, np.ndarray]
    facts: Mapping[str, JsonValue] = field(default_factory=dict)
    convergence: Sequence[Convergence] = ()
    sub_sampled: str | None = None


class Picture(Protocol):
    """One kind of picture; `is_advanced` if it is drawn only where advanced analysis was asked for."""

    @property
    def name(self) -> str: ...

    @property
    def is_advanced(self) -> bool: ...

    @property
    def relative_budget(self) -> float:
        """Its seconds, as a multiple of those of a picture that asks for a pass or two; over 1 it is a costly one."""
        ...

    def file_names(self, number: int) -> list[str]:
        """The pages of one moment; where drawing fails, a page with the reason stands under each of these names."""
        ...

    def measure(self, moment: Moment, budget: Budget, baseline: Measurement | None) -> Measurement:
        """Look at the model. `baseline` is what was measured before training; None then, and if it was lost."""
        ...

    def shared(self, history: Mapping[int, Measurement]) -> Mapping[str, float]:
        """What all pages have in common, such as a range of colours; where it changes, all are drawn again."""
        ...

    def draw(self, number: int, history: Mapping[int, Measurement]) -> list[FigurePage]:
        """The pages of one moment, in the order of `file_names`."""
        ...
