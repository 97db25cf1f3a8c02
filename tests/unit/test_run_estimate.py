"""What a run is said to take: weights as the model has them, bytes and operations as counted by hand."""

from dataclasses import replace
from typing import Any

import pytest
from transformers import PretrainedConfig, Qwen3Config

from src.utils.collection import Plan
from src.utils.generation import plan_batches
from src.utils.run_estimate import (
    STEERED,
    THREE_ARMS,
    DeviceRates,
    Passes,
    cache_bytes_a_token,
    control_passes,
    floor_seconds,
    needed_bytes,
    parameter_count,
    shown_time,
)
from tests.tiny_models import FAMILIES, random_prompts, sampling, tiny_model

READS, COMPUTES = DeviceRates(1.0, float("inf")), DeviceRates(float("inf"), 1.0)  # seconds are bytes, or operations


def plan(rows: int, batch_size: int = 4, new: int = 10) -> Plan:
    prompts = random_prompts(rows)
    lengths = [len(prompt.ids) for prompt in prompts]
    return Plan([], prompts, plan_batches(lengths, batch_size), sampling(max_new_tokens=new))


def config(family: str = "qwen3") -> PretrainedConfig:
    return tiny_model(family).config


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parameters_are_the_models_own_matrices(family: str) -> None:
    """With the embedding tied to the head and without; gains of norms are not counted."""
    matrices = [parameter for parameter in tiny_model(family).parameters() if parameter.dim() > 1]
    assert parameter_count(config(family)) == sum(parameter.numel() for parameter in matrices)


def test_the_parameters_of_qwen3_4b_are_those_of_its_card() -> None:
    shape: dict[str, Any] = {
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    }
    assert parameter_count(Qwen3Config(**shape)) == pytest.approx(4_022_468_096, rel=1e-4)


def test_a_decoding_step_reads_the_weights_and_the_cache() -> None:
    """One batch of two prompts; over ten steps the cache of a row is on average its prompt and five tokens."""
    one = plan(2)
    lengths = sum(len(prompt.ids) for prompt in one.prompts)
    a_token = 2 * 3 * 2 * 8 * 4  # keys and values, blocks, key-value heads, width of a head, bytes of float32
    assert cache_bytes_a_token(config(), 4) == a_token
    a_step = 4 * parameter_count(config()) + (lengths + 2 * 5) * a_token
    assert floor_seconds(one, STEERED, config(), 4, READS) == 10 * a_step
    assert floor_seconds(one, THREE_ARMS, config(), 4, READS) == 2 * 10 * a_step


def test_prefill_and_capture_multiply_every_weight_and_add_once_a_token() -> None:
    one = plan(2)
    lengths = sum(len(prompt.ids) for prompt in one.prompts)
    tokens = 2 * lengths + 3 * (lengths + 2 * 10)
    assert floor_seconds(one, THREE_ARMS, config(), 4, COMPUTES) == 2 * parameter_count(config()) * tokens
    assert control_passes(5) == Passes(generated=6, captured=11)


def test_the_memory_is_that_of_weights_cache_and_logits_of_the_largest_batch() -> None:
    wide, one = config(), plan(6)
    wide.vocab_size = 50_000  # logits outweigh activations, as in large models
    rows, longest = 4, max(len(prompt.ids) for prompt in one.prompts) + 10
    expected = 2 * parameter_count(wide) + rows * longest * cache_bytes_a_token(wide, 2) + 3 * rows * 50_000 * 4
    assert needed_bytes(one, wide, 2) == expected


def test_more_rows_take_longer_and_more_rows_at_once_take_more_memory_but_less_time() -> None:
    few, many, together = plan(8), plan(16), plan(16, batch_size=16)
    times = [floor_seconds(one, STEERED, config(), 4, READS) for one in (few, many, together)]
    assert times[0] < times[1] > times[2]
    assert needed_bytes(few, config(), 4) <= needed_bytes(many, config(), 4) < needed_bytes(together, config(), 4)
    longer = replace(many, sampling=sampling(max_new_tokens=20))
    assert needed_bytes(longer, config(), 4) > needed_bytes(many, config(), 4)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.2, "1 s"), (29, "29 s"), (59.4, "59 s"), (59.6, "1 min"), (150.1, "3 min")]
)
def test_less_than_a_minute_is_said_in_seconds(seconds: float, shown: str) -> None:
    assert shown_time(seconds) == shown
