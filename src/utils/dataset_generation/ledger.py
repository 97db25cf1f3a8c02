"""What a task has asked and been told: its replies in the store, by cell and number.

A request is known by kind, model, specification, prompt version, cell and number, never by its text, so that a run
that was stopped asks only for what it has not.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from src.utils.dataset_generation.tasks import Cell, Draft, Task
from src.utils.jsonl import read_jsonl
from src.utils.llm.api import ChatReply, first_line


@dataclass(frozen=True)
class Totals:
    """All that the store holds of a task, over all runs; cost in US dollars, None where some reply has none."""

    answered: int
    failures: Counter[str]
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    rounds: int


@dataclass(frozen=True)
class Ledger:
    """A task with one model, and the records of its store by key."""

    task: Task
    model: str
    records: Mapping[str, Mapping[str, Any]]

    @property
    def task_id(self) -> str:
        return f"{self.task.kind} {self.model} spec {self.task.spec_hash} prompt {self.task.prompt_version}"

    def key(self, cell: Cell, ordinal: int) -> str:
        return f"{self.task_id} {cell.name} #{ordinal}"

    def labels(self, cell: Cell, ordinal: int, round_number: int) -> dict[str, Any]:
        """What stands in a request's record beside its reply."""
        return {"task": self.task_id, "cell": cell.name, "ordinal": ordinal, "round": round_number}

    def open_ordinals(self, cell: Cell, number: int) -> list[int]:
        """The lowest numbers whose request has no reply yet, those that failed included."""
        return list(islice((i for i in count() if not is_answered(self.records.get(self.key(cell, i)))), number))

    def drafts(self) -> Iterator[tuple[Cell, Draft | None]]:
        """All drafts there are, by number of request, then by cell; None for an item of another shape."""
        cells = {cell.name: (place, cell) for place, cell in enumerate(self.task.cells)}
        answered = [
            (record["ordinal"], *cells[record["cell"]], record["reply"])
            for record in self.records.values()
            if record.get("task") == self.task_id and is_answered(record) and record["cell"] in cells
        ]
        for _, _, cell, reply in sorted(answered, key=lambda found: found[:2]):
            yield from ((cell, draft) for draft in self.task.read(ChatReply.model_validate(reply).text))

    def totals(self, file: Path) -> Totals:
        """Counted over all lines of the store's file: a failure that was asked again has been paid for as well."""
        records = [value for _, value in read_jsonl(file) if isinstance(value, dict)] if file.exists() else []
        mine = [record for record in records if record.get("task") == self.task_id]
        replies = [record["reply"] for record in mine if "reply" in record]
        is_priced = all(record.get("cost") is not None for record in mine if "reply" in record)
        return Totals(
            answered=sum(is_answered(record) for record in mine),
            failures=Counter(first_line(record["failure"], 80) for record in mine if "failure" in record),
            prompt_tokens=sum(reply["prompt_tokens"] for reply in replies),
            completion_tokens=sum(reply["completion_tokens"] for reply in replies),
            cost=round(sum(record.get("cost") or 0.0 for record in mine), 6) if is_priced else None,
            rounds=self.last_round(),
        )

    def last_round(self) -> int:
        """The number of the last round of any run."""
        rounds = (record["round"] for record in self.records.values() if record.get("task") == self.task_id)
        return max(rounds, default=0)


def is_answered(record: Mapping[str, Any] | None) -> bool:
    return record is not None and "failure" not in record
