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


class Seen:
    """Texts of one place in the rows: whether another is one of them, or shares too many words with one of them."""

    def __init__(self, limit: float, of: str = "", texts: Sequence[str] = ()) -> None:
        """`limit` is the token-set Jaccard similarity from which on two texts are one; `of` ends a reason."""
        self.limit, self.of = limit, of
        self.spellings: set[tuple[str, ...]] = set()
        self.token_sets: list[frozenset[str]] = []
        for text in texts:
            self.add(text)

    def has_same(self, text: str) -> bool:
        return tuple(words(text)) in self.spellings

    def has_near(self, text: str) -> bool:
        tokens = frozenset(words(text))
        return any(jaccard(tokens, other) >= self.limit for other in self.token_sets)

    def add(self, text: str) -> None:
        spelling = tuple(words(text))
        self.spellings.add(spelling)
        self.token_sets.append(frozenset(spelling))


def select(task: Task, drafts: Iterable[tuple[Cell, Draft | None]]) -> Selection:
    """The set that these drafts make, in this order; None is an item of a reply that was no draft.

    Prompts are compared with prompts, and the answers of each kind with those of the same kind.
    """
    selection = Selection({cell: [] for cell in task.cells})
    limit = task.jaccard_limit
    examples = Seen(limit, texts=task.examples)
    seen = [Seen(limit), *(Seen(limit, f" of a {name} answer") for name in task.answers)]
    for cell, draft in drafts:
        if draft is None:
            selection.rejected["malformed"] += 1
            continue
        texts = list(zip(seen, (draft.text, *draft.answers), strict=True))
        same = (f"exact duplicate{known.of}" for known, text in texts if known.has_same(text))
        copied = ("copy of an example" for _, text in texts if examples.has_near(text))
        near = (f"near duplicate{known.of}" for known, text in texts if known.has_near(text))
        if reason := task.flaw(draft) or next(same, None):
            selection.rejected[reason] += 1
        elif not selection.missing(cell):
            selection.surplus += 1
        elif reason := next(copied, None) or next(near, None):
            selection.rejected[reason] += 1
        else:
            selection.chosen[cell].append(draft)
            for known, text in texts:
                known.add(text)
    return selection
