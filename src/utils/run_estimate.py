"""What asking and recording will take on this GPU, said before it begins: memory by arithmetic, time by a roofline.

Decoding reads the weights and the cached keys and values once a step; the capture pass is matrix products. Both rates
are measured on the device in a fraction of a second; real kernels reach a part of them, so that the time is a floor
times a factor.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from src.utils.collection import Plan
from src.utils.models import pick_device, pick_dtype
from src.utils.steering_grid import Grid

SLOWER_THAN_FLOOR = 3.0  # assumed, not measured: kernels start one by one, and answers end at different steps


@dataclass(frozen=True)
class Passes:
    """How often every prompt of a plan is answered, and how often an answer is run again to be recorded."""

    generated: int
    captured: int


THREE_ARMS = Passes(generated=2, captured=3)
STEERED = Passes(generated=1, captured=0)


def control_passes(controls: int) -> Passes:
    """Each control and the untouched model answer; a control's answers are recorded with and without it."""
    return Passes(generated=controls + 1, captured=2 * controls + 1)


@dataclass(frozen=True)
class DeviceRates:
    """Measured on the device: bytes read a second, and floating-point operations a second in the model's dtype."""

    bandwidth: float
    flops: float


def estimate_run(
    plan: Plan | Grid, passes: Passes, what: str, config: PretrainedConfig, dtype_name: str, ranks: int = 1
) -> str:
    """One line for a GPU; empty on a CPU, where a model of the size that fits takes minutes.

    `what` is asked, for the reader.
    """
    device = pick_device()
    if device.type != "cuda":
        return ""
    dtype = pick_dtype(dtype_name, device)
    memory = needed_bytes(plan, config, dtype.itemsize)
    free = torch.cuda.mem_get_info()[0]
    rates = measure_rates(device, dtype)
    seconds = SLOWER_THAN_FLOOR * floor_seconds(plan, passes, config, dtype.itemsize, rates) / ranks
    warning = "" if memory < free else "; that is more than is free: choose --memory 16gb or smaller batches"
    return (
        f"{len(plan.prompts):,} {what}: about {shown_time(seconds)} on {torch.cuda.get_device_name()}, "
        f"about {memory / 2**30:.0f} of {free / 2**30:.0f} GiB free{warning}"
    )


def shown_time(seconds: float) -> str:
    """Minutes, or seconds where it is less than one."""
    return f"{seconds / 60:.0f} min" if seconds >= 59.5 else f"{max(seconds, 1):.0f} s"


def parameter_count(config: PretrainedConfig) -> int:
    """Weights of a Qwen- or Llama-like decoder, with its embedding and, if it is not tied, its head."""
    d_model, d_head = config.hidden_size, head_size(config)
    attention = d_model * d_head * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    block = attention + 3 * d_model * config.intermediate_size
    embeddings = config.vocab_size * d_model * (1 if config.tie_word_embeddings else 2)
    return config.num_hidden_layers * block + embeddings


def head_size(config: PretrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def cache_bytes_a_token(config: PretrainedConfig, itemsize: int) -> int:
    """Keys and values of one token in all blocks."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head_size(config) * itemsize


def needed_bytes(plan: Plan | Grid, config: PretrainedConfig, itemsize: int) -> int:
    """Weights, the cache of the largest batch at its longest, and its logits in float32 (three copies of them)."""
    rows = max(len(batch) for batch in plan.batches)
    longest = max(len(prompt.ids) for prompt in plan.prompts) + plan.sampling.max_new_tokens
    logits = 3 * rows * config.vocab_size * 4
    width = max(config.intermediate_size, config.hidden_size)
    activations = 4 * rows * longest * width * itemsize
    return (
        parameter_count(config) * itemsize
        + rows * longest * cache_bytes_a_token(config, itemsize)
        + max(logits, activations)
    )


def floor_seconds(
    plan: Plan | Grid, passes: Passes, config: PretrainedConfig, itemsize: int, rates: DeviceRates
) -> float:
    """Decoding bounded by memory bandwidth, prefill and capture by arithmetic; every answer taken at full length."""
    weights = parameter_count(config)
    new = plan.sampling.max_new_tokens
    decode_bytes = prefill_tokens = capture_tokens = 0
    for batch in plan.batches:
        prompts = [len(plan.prompts[row].ids) for row in batch]
        cached = sum(length + new / 2 for length in prompts) * cache_bytes_a_token(config, itemsize)
        decode_bytes += passes.generated * new * (weights * itemsize + cached)
        prefill_tokens += passes.generated * sum(prompts)
        capture_tokens += passes.captured * sum(length + new for length in prompts)
    return decode_bytes / rates.bandwidth + 2 * weights * (prefill_tokens + capture_tokens) / rates.flops


def measure_rates(device: torch.device, dtype: torch.dtype) -> DeviceRates:
    """Reading 1 GiB, and the product of two 4,096-wide squares, best of five."""
    data = torch.zeros(2**28, device=device)
    square = torch.randn(4096, 4096, device=device, dtype=dtype)
    bandwidth = data.numel() * data.itemsize / best_of_five(data.sum)
    flops = 2 * 4096**3 / best_of_five(lambda: square @ square)
    return DeviceRates(bandwidth, flops)


def best_of_five(run: Callable[[], object]) -> float:
    """Seconds of the fastest of five, after one to warm up."""
    times = []
    for _ in range(6):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])
