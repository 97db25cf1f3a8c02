"""Answers in batches, with sampling noise that belongs to the prompt.

Sampling is the Gumbel-max trick inside `generate`: a row's noise is keyed by (seed, prompt_id, sample), so an answer
does not depend on which other prompts share its batch. Activations are recorded afterwards, in
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
    """One thing to answer: a question in one of its samples, as token ids.

    `content` marks those that are the question's own and not the chat template's; without it all count as such.
    """

    prompt_id: str
    sample: int
    ids: tuple[int, ...]
    content: tuple[bool, ...] | None = None


@dataclass(frozen=True)
class Response:
    """The generated ids with the end of turn, if it came; `is_truncated` if `max_new_tokens` ran out first."""

    ids: tuple[int, ...]
    is_truncated: bool


class PromptSampler(LogitsProcessor):
    """Leaves each row the one token that it draws: temperature, the k best, the fewest of them that hold `top_p`.

    Gumbel-max (Maddison et al. 2014, arXiv 1411.0030): the argmax of logits plus Gumbel(0, 1) noise is a sample of
    their softmax. A token's noise is a hash of the row's key, the step and the token, so that it depends on nothing
    else, is the same on every device, and need only be made for tokens that are still possible.
    """

    def __init__(self, prompts: Sequence[Prompt], sampling: Sampling, device: torch.device) -> None:
        keys = [noise_seed(sampling.seed, prompt.prompt_id, prompt.sample) for prompt in prompts]
        self.keys = torch.tensor(keys, dtype=torch.int64, device=device)
        self.sampling = sampling
        self.step = 0

    def __call__(
        self, input_ids: Int[Tensor, "batch seq"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        vocabulary = scores.shape[-1]
        k = min(self.sampling.top_k or vocabulary, vocabulary)
        best, tokens = (scores.float() / self.sampling.temperature).topk(k, dim=-1)
        if self.sampling.top_p < 1:
            share = best.softmax(dim=-1)
            best = best.masked_fill(share.cumsum(dim=-1) - share >= self.sampling.top_p, float("-inf"))
        place = (best + gumbel_noise(self.keys, self.step, tokens)).argmax(dim=-1, keepdim=True)
        self.step += 1
        return torch.full_like(scores, float("-inf")).scatter_(1, tokens.gather(1, place), 0.0)


def gumbel_noise(
    keys: Int[Tensor, " batch"], step: int, tokens: Int[Tensor, "batch candidates"]
) -> Float[Tensor, "batch candidates"]:
    """Gumbel(0, 1) noise from 23 bits of a hash of (key, step, token); float32."""
    stream = mixed(keys + wrapped(GOLDEN * (step + 1)))
    bits = mixed(stream[:, None] + (tokens + 1) * wrapped(GOLDEN))
    uniform = (shifted(bits, 41).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform))


GOLDEN = 0x9E3779B97F4A7C15
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def mixed(values: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014), in int64 arithmetic that wraps."""
    values = (values ^ shifted(values, 30)) * wrapped(MULTIPLIERS[0])
    values = (values ^ shifted(values, 27)) * wrapped(MULTIPLIERS[1])
    return values ^ shifted(values, 31)


def shifted(values: Int[Tensor, "..."], by: int) -> Int[Tensor, "..."]:
    """A logical shift to the right; that of int64 copies the sign."""
    return (values >> by) & ((1 << (64 - by)) - 1)


def wrapped(value: int) -> int:
    """An unsigned 64-bit number as int64 has it."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def noise_seed(seed: int, prompt_id: str, sample: int) -> int:
    """63 bits that depend on nothing but the three arguments."""
    digest = hashlib.sha256(f"{seed}\n{prompt_id}\n{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def plan_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Row numbers in batches, longest prompts first (ties by row), planned once over the whole list."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def logits_processors(prompts: Sequence[Prompt], sampling: Sampling, device: torch.device) -> LogitsProcessorList:
    """What `generate` applies before it takes the largest logit: nothing at temperature 0."""
    return LogitsProcessorList([PromptSampler(prompts, sampling, device)] if sampling.temperature > 0 else [])


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
