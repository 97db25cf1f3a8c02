"""Answers in batches, with sampling noise that belongs to the prompt.

Sampling is the Gumbel-max trick inside `generate`: a row's noise comes from a generator keyed by (seed, prompt_id,
sample), so an answer does not depend on which other prompts share its batch. Activations are recorded afterwards, in
`capture`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn; temperature 0 is greedy. `top_k` 0 and `top_p` 1 switch the cuts off."""

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Prompt:
    """One thing to answer: a question in one of its samples, as token ids."""

    prompt_id: str
    sample: int
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Response:
    """The generated ids with the end of turn, if it came; `is_truncated` if `max_new_tokens` ran out first."""

    ids: tuple[int, ...]
    is_truncated: bool


class GumbelNoise(LogitsProcessor):
    """Adds Gumbel(0, 1) noise to each row's logits, so that the argmax is a sample of the softmax.

    Row i draws from a generator of its own, one vector a step (Gumbel-max: Maddison et al. 2014, arXiv 1411.0030).
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int, device: torch.device) -> None:
        self.generators = [
            torch.Generator(device).manual_seed(noise_seed(seed, prompt.prompt_id, prompt.sample)) for prompt in prompts
        ]

    def __call__(
        self, input_ids: Int[Tensor, "batch seq"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        vocabulary = scores.shape[-1]
        uniform = torch.stack(
            [torch.rand(vocabulary, generator=generator, device=scores.device) for generator in self.generators]
        )
        smallest = torch.finfo(uniform.dtype).tiny
        return scores.float() - torch.log(-torch.log(uniform.clamp_min(smallest)))


def noise_seed(seed: int, prompt_id: str, sample: int) -> int:
    """63 bits that depend on nothing but the three arguments."""
    digest = hashlib.sha256(f"{seed}\n{prompt_id}\n{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Row numbers in batches, longest prompts first (ties by row), planned once over the whole list."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def logits_processors(prompts: Sequence[Prompt], sampling: Sampling, device: torch.device) -> LogitsProcessorList:
    """Temperature, top-k and top-p as `generate` applies them, then the noise; nothing at temperature 0."""
    if sampling.temperature == 0:
        return LogitsProcessorList()
    processors: list[LogitsProcessor] = [TemperatureLogitsWarper(sampling.temperature)]
    if sampling.top_k > 0:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    return LogitsProcessorList([*processors, GumbelNoise(prompts, sampling.seed, device)])


@torch.inference_mode()
def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: Sampling,
) -> list[Response]:
    """Answer one batch of prompts, in their order."""
    width = max(len(prompt.ids) for prompt in prompts)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ids = torch.tensor([[pad] * (width - len(prompt.ids)) + list(prompt.ids) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt.ids)) + [1] * len(prompt.ids) for prompt in prompts])
    ends = end_of_turn_ids(model, tokenizer)
    output = model.generate(  # ty: ignore[not-callable]  # declared by the model classes, not by PreTrainedModel
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        logits_processor=logits_processors(prompts, sampling, model.device),
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=sampling.max_new_tokens,
            pad_token_id=pad,
            eos_token_id=ends,
            repetition_penalty=1.0,  # what stays unset is taken from the model's own generation config
            no_repeat_ngram_size=0,
        ),
    )
    return [cut(row, set(ends)) for row in output[:, width:].tolist()]


def end_of_turn_ids(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that ends an answer: the tokenizer's and those of the model's generation config."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return sorted({*listed, tokenizer.eos_token_id})


def cut(generated: list[int], ends: set[int]) -> Response:
    """What was generated, up to and with the first end of turn."""
    for position, token in enumerate(generated):
        if token in ends:
            return Response(tuple(generated[: position + 1]), is_truncated=False)
    return Response(tuple(generated), is_truncated=True)
