"""Several processes on one run: which of the batches are mine, and waiting for the others.

`accelerate launch --num_processes N` starts them; each has a GPU of its own where there are several. They share the
file system and nothing else.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

LONGEST_WAIT = timedelta(days=7)  # for the slowest rank; gloo and nccl give up after 30 and 10 minutes


@dataclass(frozen=True)
class Ranks:
    """This process's number among `count`; `wait` returns when all have called it."""

    index: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def owns(self, batch: int) -> bool:
        """Whether a batch is this process's to run."""
        return batch % self.count == self.index


RUN_ALONE = Ranks()


def join_ranks() -> Ranks:
    """The ranks that `accelerate launch` (or torchrun) started; one alone without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    import torch
    from accelerate import PartialState
    from accelerate.utils import InitProcessGroupKwargs

    settings = InitProcessGroupKwargs(timeout=LONGEST_WAIT).to_kwargs()
    state = PartialState(cpu=not torch.cuda.is_available(), **settings)
    if torch.cuda.is_available():
        torch.cuda.set_device(state.device)
    return Ranks(state.process_index, state.num_processes, state.wait_for_everyone)
