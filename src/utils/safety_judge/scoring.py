"""From a prompt to a margin in logits: a causal model is asked whether the prompt is safe.

The margin is logit(unsafe word) - logit(safe word) at the last real token, where the answer would begin. It is the
log-odds of "unsafe" against "safe", so that P(unsafe) = sigmoid(margin). Learning is left to `training`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import expit
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.utils.chat import Message, prompt_text
from src.utils.chat import encode as encode_text
from src.utils.errors import UserError
from src.utils.safety_judge.settings import PROMPT


@dataclass(frozen=True)
class JudgeTemplate:
    """The text around a prompt, chat markup included, and the two answers, as token ids.

    `before + prompt + after` is what the model reads; it ends where the assistant's answer begins.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    safe_id: int
    unsafe_id: int
    pad_id: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, question: str, safe_word: str, unsafe_word: str) -> "JudgeTemplate":
        """Put a question around `{prompt}` into the tokenizer's chat template; for questions see `JudgeQuestion`.

        An answer word of several tokens is known by its first. Raises `UserError` for words that begin with the same
        token and for a chat template that does not show `{prompt}`.
        """
        text = prompt_text(tokenizer, [Message(role="user", content=question)])
        before, found, after = text.partition(PROMPT)
        if not found:
            raise UserError(f"question {question!r}: the chat template does not show it; name another model", 2)
        safe_id, unsafe_id = (encode_text(tokenizer, word)[0] for word in (safe_word, unsafe_word))
        if safe_id == unsafe_id:
            raise UserError(
                f"{safe_word!r} and {unsafe_word!r} begin with the same token; choose other answer words", 2
            )
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        assert isinstance(pad_id, int)
        parts = (tuple(encode_text(tokenizer, part)) for part in (before, after))
        return cls(*parts, safe_id, unsafe_id, pad_id)


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of a prompt in its template; `content_span` is the range [start, end) of the prompt's own tokens."""

    ids: tuple[int, ...]
    content_span: tuple[int, int]


def encode(
    tokenizer: PreTrainedTokenizerBase, template: JudgeTemplate, prompts: Sequence[str], max_length: int
) -> list[EncodedPrompt]:
    """Encode prompts; one that is too long loses its end, never the template.

    The three parts are tokenised apart, so that no token lies across a boundary. Markup inside a prompt stays plain
    text: what is judged cannot close its own turn. Raises `UserError` where the template alone fills `max_length`.
    """
    room = max_length - len(template.before) - len(template.after)
    if room < 1:
        raise UserError(
            f"max_length {max_length}: the template takes {max_length - room} tokens; raise --max-length", 2
        )
    start = len(template.before)
    encoded = []
    for prompt in prompts:
        content = tokenizer.encode(prompt, add_special_tokens=False, split_special_tokens=True)[:room]
        ids = (*template.before, *content, *template.after)
        encoded.append(EncodedPrompt(ids, (start, start + len(content))))
    return encoded


def pad_right(rows: Sequence[EncodedPrompt], pad_id: int) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Ids and attention mask of a batch."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        mask[number, : len(row.ids)] = 1
    return ids, mask


def last_real_positions(mask: Int[Tensor, "batch seq"]) -> Int[Tensor, " batch"]:
    """The position of each row's last token that is no padding, on whichever side the padding is."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    return (mask * positions).argmax(dim=1)


def unsafe_margin(logits: Float[Tensor, "batch vocab"], template: JudgeTemplate) -> Float[Tensor, " batch"]:
    """logit(unsafe word) - logit(safe word), in float32, of logits at each row's last real token."""
    return logits[:, template.unsafe_id].float() - logits[:, template.safe_id].float()


def last_logits(
    model: torch.nn.Module,
    input_ids: Int[Tensor, "batch seq"],
    attention_mask: Int[Tensor, "batch seq"],
    /,
    **continued: Any,
) -> Float[Tensor, "batch vocab"]:
    """Logits at each row's last real token, with their graph; computed only at positions where some row ends.

    `continued` are the model's arguments where these are the last columns of a batch whose first ones are cached.
    """
    last = last_real_positions(attention_mask)
    wanted, place = torch.unique(last, return_inverse=True)
    passed: dict[str, Any] = {"attention_mask": attention_mask, "use_cache": False, "logits_to_keep": wanted}
    logits = model(input_ids=input_ids, **passed | continued).logits
    return logits[torch.arange(len(place), device=place.device), place]


def forward_margins(
    model: torch.nn.Module,
    input_ids: Int[Tensor, "batch seq"],
    attention_mask: Int[Tensor, "batch seq"],
    template: JudgeTemplate,
) -> Float[Tensor, " batch"]:
    """Margins with their graph."""
    return unsafe_margin(last_logits(model, input_ids, attention_mask), template)


def score(
    model: PreTrainedModel, encoded: Sequence[EncodedPrompt], template: JudgeTemplate, batch_size: int
) -> Float[np.ndarray, " prompts"]:
    """Margins in the order given, in evaluation mode, which is left as it was found; rows of like length share a batch.

    Raises `UserError` where a margin is not finite.
    """
    margins = np.full(len(encoded), np.nan, dtype=np.float64)
    by_length = sorted(range(len(encoded)), key=lambda row: len(encoded[row].ids))
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for start in range(0, len(by_length), batch_size):
                rows = by_length[start : start + batch_size]
                ids, mask = pad_right([encoded[row] for row in rows], template.pad_id)
                margins[rows] = forward_margins(model, ids.to(model.device), mask.to(model.device), template).cpu()
    finally:
        model.train(was_training)
    if not np.isfinite(margins).all():
        raise UserError(
            f"{np.sum(~np.isfinite(margins))} margins are not finite; lower --learning-rate, or use float32"
        )
    return margins


def probability(margins: Float[np.ndarray, " prompts"], temperature: float = 1.0) -> Float[np.ndarray, " prompts"]:
    """P(unsafe) of margins: sigmoid(margin / temperature)."""
    return expit(margins / temperature)
