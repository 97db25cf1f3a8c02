"""How much memory one picture takes beside what the training had taken before it."""

import torch

from src.utils.manifests import peak_memory_bytes


class MemoryPeak:
    """The most memory in use since construction: on a GPU what PyTorch allocated, else the process's peak so far.

    `training_peak` is `so_far()` before the first picture, when the peak was that of the training.
    """

    def __init__(self, training_peak: int) -> None:
        self.before = training_peak if torch.cuda.is_available() else self.so_far()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    @staticmethod
    def so_far() -> int:
        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_memory_bytes()

    @property
    def raised(self) -> int:
        return max(0, self.so_far() - self.before)
