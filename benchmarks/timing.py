"""Seconds and peak memory, on a GPU as on a processor, and the seconds that a GPU needs at the least."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel

from src.pipelines.memory_watch import memory_watched
from src.utils.collection import Plan
from src.utils.run_estimate import THREE_ARMS, DeviceRates, floor_seconds, measure_rates


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(runs: dict[str, Callable[[], object]], repeats: int = 9) -> dict[str, float]:
    """Median seconds of each, taken in turn so that what else the machine does falls on both."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            synchronise()
            started = time.perf_counter()
            run()
            synchronise()
            times[name].append(time.perf_counter() - started)
    return {name: sorted(values[1:])[repeats // 2] for name, values in times.items()}


@dataclass
class Peak:
    gib: float = 0.0


@contextmanager
def peak_watched() -> Generator[Peak]:
    """The most memory in use within the block: on a GPU what was allocated there, else what the process held."""
    peak = Peak()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.gib = torch.cuda.max_memory_allocated() / 2**30
    else:
        with memory_watched() as memory:
            yield peak
        peak.gib = memory.value / 2**30


def floors(plan: Plan, model: PeftModel) -> dict[str, float]:
    """Measured rates of the device and the seconds below which decoding and prefill cannot go."""
    dtype = next(model.parameters()).dtype
    rates = measure_rates(torch.device("cuda"), dtype)
    unlimited = DeviceRates(float("inf"), rates.flops), DeviceRates(rates.bandwidth, float("inf"))
    config: Any = model.get_base_model().config
    arithmetic, bandwidth = (floor_seconds(plan, THREE_ARMS, config, dtype.itemsize, one) for one in unlimited)
    return {
        "bandwidth_gb_a_second": rates.bandwidth / 1e9,
        "tflops": rates.flops / 1e12,
        "decode_bandwidth_seconds": bandwidth,
        "prefill_and_capture_arithmetic_seconds": arithmetic,
    }
