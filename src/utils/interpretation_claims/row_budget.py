"""A budget in rows instead of seconds: what it cuts does not depend on how busy the machine is."""

from jaxtyping import Float, Int
from torch import Tensor

from src.utils.watching.pictures import Budget
from src.utils.watching.token_attribution import MarginOf


class RowBudget(Budget):
    """`rows` inputs may go through the model; `counted` is the margin function that spends them."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.rows = 0

    @property
    def spent(self) -> float:
        return float(self.rows)

    def counted(self, margin_of: MarginOf) -> MarginOf:
        def margins(ids: Int[Tensor, "batch seq"]) -> Float[Tensor, " batch"]:
            self.rows += len(ids)
            return margin_of(ids)

        return margins
