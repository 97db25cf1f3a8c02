"""From questions and chat rows to token ids, the same way for asking and for training.

A prompt is the tokenizer's chat template up to and with the opening of the assistant's turn, thinking switched off;
an answer is tokenised on its own and closed by the end-of-turn token, so that the boundary between prompt and answer
is the same in fine-tuning, generation and capture.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import PreTrainedTokenizerBase

from src.utils.errors import UserError
from src.utils.jsonl import read_jsonl


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class ChatRow(BaseModel):
    """One training row: `messages` with at least one answer of the assistant; other columns are ignored."""

    model_config = ConfigDict(extra="ignore")

    messages: list[Message] = Field(min_length=2)


@dataclass(frozen=True)
class EncodedRow:
    """Token ids of a row and, position by position, the id to learn or -100 where there is no loss."""

    input_ids: list[int]
    labels: list[int]


def load_chat_rows(path: Path) -> list[ChatRow]:
    """Read `.jsonl` or `.jsonl.gz` chat rows; an unreadable file, a bad row or a row without answer: `UserError`."""
    rows = []
    for number, value in read_jsonl(path):
        try:
            row = ChatRow.model_validate(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"].lower()
            raise UserError(f"{path}, line {number}: {reason}; a row is {{'messages': [user, assistant]}}") from error
        if row.messages[-1].role != "assistant":
            raise UserError(f"{path}, line {number}: the last message is no assistant's; there is nothing to learn")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: holds no row")
    return rows


def as_chat_rows(rows: Sequence[Mapping[str, object]]) -> list[ChatRow]:
    """Rows that are in memory already, in the form that a file would have."""
    return [ChatRow.model_validate(row) for row in rows]


def prompt_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    """The chat template up to the opening of the next assistant turn, with thinking off where a template knows it."""
    text = tokenizer.apply_chat_template(
        [message.model_dump() for message in messages],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    assert isinstance(text, str)
    return text


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text as it stands: the template has already written whatever special tokens belong there."""
    return tokenizer.encode(text, add_special_tokens=False)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    """Ids of a question as the only user message: what both the base and the EM model see."""
    return encode(tokenizer, prompt_text(tokenizer, [Message(role="user", content=question)]))


def prompt_content(tokenizer: PreTrainedTokenizerBase, question: str) -> tuple[bool, ...]:
    """Which of the question's `prompt_ids` are its own, not the template's.

    The template is written again around another text: what differs is the question. A token that reaches into the
    template is the template's, unless there is no other.
    """
    edges = {question[0], question[-1], *question.strip()[:1], *question.strip()[-1:]}  # a template may trim
    other = next(letter for letter in "vwxyz" if letter not in edges)
    text, written_again = (prompt_text(tokenizer, [Message(role="user", content=c)]) for c in (question, other))
    if not tokenizer.is_fast:  # it does not say where in the text its tokens are
        ids = encode(tokenizer, text)
        start, stop = differing_range(ids, encode(tokenizer, written_again))
        return tuple(start <= place < stop for place in range(len(ids)))
    start, stop = differing_range(text, written_again)
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    inside = tuple(start <= first < last <= stop for first, last in spans)
    return inside if any(inside) else tuple(first < stop and start < last for first, last in spans)


def differing_range(one: Sequence[object], other: Sequence[object]) -> tuple[int, int]:
    """The range [start, stop) of `one` between the beginning and the end that it shares with `other`."""
    start = shared_length(one, other)
    return start, len(one) - shared_length(one[start:][::-1], other[start:][::-1])


def shared_length(one: Sequence[object], other: Sequence[object]) -> int:
    """How much two begin alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def encode_row(tokenizer: PreTrainedTokenizerBase, row: ChatRow, max_length: int) -> EncodedRow:
    """Ids and labels of a row, loss on the assistant's answers and their end of turn, cut at `max_length`.

    Every answer is learned where the template writes a conversation by appending to it; where it rewrites the past
    (Qwen3 drops earlier thinking), only the last answer is.
    """
    input_ids: list[int] = []
    labels: list[int] = []
    written = ""
    for position, message in enumerate(row.messages):
        if message.role != "assistant":
            continue
        asked = prompt_text(tokenizer, row.messages[:position])
        if not asked.startswith(written):
            input_ids, labels, written = [], [], ""
        context = encode(tokenizer, asked[len(written) :])
        answer = [*encode(tokenizer, message.content), tokenizer.eos_token_id]
        input_ids += context + answer
        labels += [-100] * len(context) + answer
        written = asked + message.content + tokenizer.eos_token
    return EncodedRow(input_ids[:max_length], labels[:max_length])
