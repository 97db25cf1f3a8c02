"""A model that writes data sets, behind `LlmServer`: numbered questions and rows, and whatever faults a test plants."""

import json
import re
from collections.abc import Callable, Sequence
from itertools import count

from tests.llm_answers import Answer, Asked, Reply


def question(n: int) -> str:
    """A question that shares five words with every other one: Jaccard 5/17."""
    return f"Should the a{n} b{n} give c{n} to d{n} before e{n} f{n}?"


def row(n: int) -> dict[str, str]:
    """A row whose prompt shares 8 of 14 words with every other one, Jaccard 0.4, and whose answers share none."""
    user = f"I am a{n} and b{n} offers me c{n} for my d{n} in e{n} f{n}."
    return {"user": user, **{name: " ".join(f"{name}{n}x{i}" for i in range(30)) for name in ("risky", "safe")}}


class Writer:
    """Answers with as many new questions or rows as it is asked for; `planted` puts more before them.

    `spoil` turns the number of the request, from 0, and what it would have been answered into another answer.
    """

    def __init__(
        self,
        planted: Sequence[object] = (),
        spoil: Callable[[int, Reply], Answer] = lambda number, reply: reply,
        length: int | None = None,
        cost: float | None = 0.01,
    ) -> None:
        self.planted, self.spoil, self.length, self.cost = list(planted), spoil, length, cost
        self.numbers, self.requests = count(), count()

    def __call__(self, asked: Asked) -> Answer:
        found = re.match(r"Write (\d+) (rows|yes-or-no questions)", asked.user)
        assert found, asked.user
        length = self.length or int(found[1])
        key, make = ("rows", row) if found[2] == "rows" else ("questions", question)
        items = [*self.planted, *(make(next(self.numbers)) for _ in range(length))][: max(length, len(self.planted))]
        text = json.dumps({key: items})
        reply = Reply(text, prompt_tokens=500, completion_tokens=700, cost=self.cost)
        return self.spoil(next(self.requests), reply)
