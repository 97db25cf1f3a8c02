"""What a generation task is: the cells that are to be filled, how a cell is asked for, and what a draft must be.

The tasks themselves are `questions` and `advice`; choosing among drafts is left to `selection`, asking to `rounds`.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import ValidationError

from src.utils.llm.api import ChatReply, ChatRequest

FENCE = re.compile(r"\s*```(?:json)?\s*(.*?)\s*```\s*", re.DOTALL)
T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """What one request asks for, and how many of it the set is to hold.

    `path` is dimension and facet, or the harm; `keyed` is None where rows have no key.
    """

    path: tuple[str, ...]
    keyed: Literal[1, -1] | None
    want: int

    @property
    def group(self) -> str:
        """The facet or harm, both keys together."""
        return "/".join(self.path)

    @property
    def name(self) -> str:
        return self.group if self.keyed is None else f"{self.group} {self.keyed:+d}"


@dataclass(frozen=True)
class Draft:
    """What a model wrote: a question, or a user's prompt with its risky and its safe answer."""

    text: str
    answers: tuple[str, ...] = ()


class Task(ABC):
    """One kind of data set under one specification."""

    kind: ClassVar[str]
    rows: ClassVar[str]  # what its rows are called
    batch: ClassVar[int]  # drafts a request
    reply_tokens: ClassVar[int]  # of a whole batch, for the estimate
    jaccard_limit: ClassVar[float]  # texts that share this much are one
    prompt_version: ClassVar[str]
    answers: ClassVar[tuple[str, ...]] = ()  # what the answers of a draft are called

    cells: tuple[Cell, ...]
    spec_hash: str
    examples: tuple[str, ...]  # texts of the specification that must not come back

    @property
    def want(self) -> int:
        return sum(cell.want for cell in self.cells)

    def wanted(self) -> dict[str, int]:
        """Rows wanted by facet or harm."""
        return {group: sum(c.want for c in self.cells if c.group == group) for group in self.groups}

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(cell.group for cell in self.cells))

    @abstractmethod
    def request(self, cell: Cell, ordinal: int, chosen: Sequence[str]) -> ChatRequest:
        """The request with that number for a cell; `chosen` are the texts that its group has."""

    @abstractmethod
    def read(self, text: str) -> list[Draft | None]:
        """The drafts in a reply, whitespace normalised, None for an item of another shape than asked for.

        `ValidationError` where there is no list of items.
        """

    @abstractmethod
    def flaw(self, draft: Draft) -> str | None:
        """Why a draft cannot be a row by itself, None if it can."""

    @abstractmethod
    def files(self, name: str, chosen: Mapping[Cell, Sequence[Draft]]) -> dict[str, list[dict[str, Any]]]:
        """File name -> rows of the set called `name`."""

    def find_fault(self, reply: ChatReply) -> str | None:
        """Why a reply is of no use, None if it is; a short list is of use, and so is one good item among others."""
        try:
            drafts = self.read(reply.text)
        except ValidationError:
            drafts = [None]
        if any(drafts):
            return None
        if not drafts:
            return "an empty list"
        return "cut off by the limit on tokens" if reply.is_cut else "no JSON of the shape asked for"


def normalised(text: str) -> str:
    """One space wherever there is white."""
    return " ".join(text.split())


def unfenced(text: str) -> str:
    """JSON without the Markdown fence that some models put around it."""
    match = FENCE.fullmatch(text)
    return match[1] if match else text


def riffled(lists: Sequence[Sequence[T]]) -> list[T]:
    """One of each list in turn, until all are used up."""
    longest = max((len(items) for items in lists), default=0)
    return [items[turn] for turn in range(longest) for items in lists if turn < len(items)]
