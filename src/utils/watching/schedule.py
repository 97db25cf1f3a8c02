"""At which epochs or steps of a training pictures are drawn."""

from dataclasses import dataclass

from src.utils.errors import UserError
from src.utils.watching.epoch_metrics import Unit


@dataclass(frozen=True)
class Schedule:
    """When pictures are drawn: at number 1, at multiples of `interval`, at the last."""

    unit: Unit
    interval: int

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise UserError(f"visualization_interval {self.interval}: must be at least 1", 2)

    def is_due(self, number: int, is_last: bool) -> bool:
        return number == 1 or number % self.interval == 0 or is_last
