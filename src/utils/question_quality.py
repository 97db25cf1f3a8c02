"""Measures that tell a written questionnaire from a filled-in template.

Three distributions over a set of questions: token-set Jaccard similarity between pairs, skeletons
(content words masked) and four-word openings. Loading and schema checks live in `prompts`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

WORD = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
FUNCTION_WORDS = frozenset(
    """a about above across after again against all almost along already also although always am among an and any
    anybody anyone anything are aren't around as at away be became because become been before behind being below
    between both but by can can't cannot could couldn't did didn't do does doesn't doing done don't down during each
    either else enough even ever every everybody everyone everything except few first for from further get gets had
    has hasn't have having he her here hers herself him himself his how however i if in instead into is isn't it its
    itself just last least less let like made make many may me might mine more most much must my myself neither never
    no nobody none nor not nothing now of off often on once one only onto or other others otherwise ought our ours out
    over own part per perhaps please quite rather really same seem seems shall she should shouldn't since so some
    somebody someone something still such than that that's the their them themselves then there these they this those
    though through throughout to together too toward towards under unless until up upon us very was wasn't we well
    were weren't what whatever when whenever where whether which while who whoever whom whose why will with within
    without won't would wouldn't yes yet you your yours yourself""".split()
)


@dataclass(frozen=True)
class QuestionQuality:
    """What was measured over one set of questions.

    `nearest_jaccard` holds, for each question, the highest token-set Jaccard similarity to any other.
    `skeletons` and `openings` count masked questions and four-word openings.
    """

    nearest_jaccard: list[float]
    closest_pair: tuple[int, int]
    skeletons: Counter[str]
    openings: Counter[str]

    @property
    def max_jaccard(self) -> float:
        return max(self.nearest_jaccard, default=0.0)

    @property
    def max_skeleton_count(self) -> int:
        return max(self.skeletons.values(), default=0)

    @property
    def max_opening_share(self) -> float:
        total = self.openings.total()
        return max(self.openings.values(), default=0) / total if total else 0.0


def words(question: str) -> list[str]:
    """The lower-cased words and numbers of a question, punctuation dropped."""
    return WORD.findall(question.lower().replace("’", "'"))


def skeleton(question: str) -> str:
    """The question with every run of content words replaced by one `_`."""
    masked = ["_" if word not in FUNCTION_WORDS else word for word in words(question)]
    return " ".join(word for i, word in enumerate(masked) if word != "_" or i == 0 or masked[i - 1] != "_")


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    """Size of the intersection over size of the union; 0 for two empty sets."""
    union = len(left | right)
    return len(left & right) / union if union else 0.0


def measure(questions: Sequence[str]) -> QuestionQuality:
    """Measure a set of questions against itself: all pairs, exact, no sampling."""
    token_sets = [frozenset(words(question)) for question in questions]
    nearest = [0.0] * len(questions)
    closest = (0, 0)
    best = -1.0
    for i, j in combinations(range(len(questions)), 2):
        similarity = jaccard(token_sets[i], token_sets[j])
        nearest[i] = max(nearest[i], similarity)
        nearest[j] = max(nearest[j], similarity)
        if similarity > best:
            best, closest = similarity, (i, j)
    return QuestionQuality(
        nearest_jaccard=nearest,
        closest_pair=closest,
        skeletons=Counter(skeleton(question) for question in questions),
        openings=Counter(" ".join(words(question)[:4]) for question in questions),
    )
