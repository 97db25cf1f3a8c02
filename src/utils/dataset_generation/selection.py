"""Choosing rows among drafts: flaws, duplicates across the whole set, and no more of a cell than it wants.

Drafts are taken in the order given, so that equal replies give an equal set.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from src.utils.dataset_generation.tasks import Cell, Draft, Task
from src.utils.question_quality import jaccard, words


@dataclass
class Selection:
    """Drafts chosen by cell, how many were rejected for each reason, and how many more were good but not wanted."""

    chosen: dict[Cell, list[Draft]]
    rejected: Counter[str] = field(default_factory=Counter)
    surplus: int = 0

    @property
    def have(self) -> int:
        return sum(len(drafts) for drafts in self.chosen.values())

    def missing(self, cell: Cell) -> int:
        return cell.want - len(self.chosen[cell])

    def by_group(self) -> dict[str, int]:
        """Rows chosen by facet or harm."""
        counts: Counter[str] = Counter()
        for cell, drafts in self.chosen.items():
            counts[cell.group] += len(drafts)
        return dict(counts)

    def texts(self, group: str) -> list[str]:
        """What a facet or harm has."""
        return [draft.text for cell, drafts in self.chosen.items() if cell.group == group for draft in drafts]


class NearDuplicates:
    """Texts seen so far, and whether another shares too many words with one of them."""

    def __init__(self, texts: Sequence[str], limit: float) -> None:
        """`limit` is the token-set Jaccard similarity from which on two texts are one."""
        self.limit = limit
        self.token_sets = [frozenset(words(text)) for text in texts]

    def has_near(self, text: str) -> bool:
        tokens = frozenset(words(text))
        return any(jaccard(tokens, other) >= self.limit for other in self.token_sets)

    def add(self, text: str) -> None:
        self.token_sets.append(frozenset(words(text)))


def select(task: Task, drafts: Iterable[tuple[Cell, Draft]]) -> Selection:
    """The set that these drafts make, in this order."""
    selection = Selection({cell: [] for cell in task.cells})
    examples = NearDuplicates(task.examples, task.jaccard_limit)
    seen = NearDuplicates([], task.jaccard_limit)
    spelled: set[tuple[str, ...]] = set()
    for cell, draft in drafts:
        spelling = tuple(words(draft.text))
        if reason := task.flaw(draft):
            selection.rejected[reason] += 1
        elif spelling in spelled:
            selection.rejected["exact duplicate"] += 1
        elif not selection.missing(cell):
            selection.surplus += 1
        elif examples.has_near(draft.text):
            selection.rejected["copy of an example"] += 1
        elif seen.has_near(draft.text):
            selection.rejected["near duplicate"] += 1
        else:
            selection.chosen[cell].append(draft)
            seen.add(draft.text)
            spelled.add(spelling)
    return selection
