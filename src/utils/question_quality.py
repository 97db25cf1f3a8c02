"""Measures that tell a written questionnaire from a filled-in template.

Three distributions over a set of questions: token-set Jaccard similarity between pairs, skeletons
(content words masked) and four-word openings. Loading and schema checks live in `prompts`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean
from typing import Any

from src.utils.prompts import Question

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
    common = len(left & right)
    union = len(left) + len(right) - common
    return common / union if union else 0.0


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


def report(questions: Sequence[Question]) -> dict[str, Any]:
    """Counts and distributions of a set of questions, as plain data."""
    texts = [question.question for question in questions]
    measured = measure(texts)
    lengths = [len(words(text)) for text in texts]
    facets = Counter((question.subset, question.facet) for question in questions)
    closest = [questions[i].prompt_id for i in measured.closest_pair]
    return {
        "questions": len(questions),
        "words": {"shortest": min(lengths), "mean": round(mean(lengths), 2), "longest": max(lengths)},
        "facets": [
            {
                "subset": subset,
                "facet": facet,
                "questions": count,
                "reverse_keyed": sum(q.keyed == -1 for q in questions if (q.subset, q.facet) == (subset, facet)),
            }
            for (subset, facet), count in facets.items()
        ],
        "nearest_jaccard": {
            "histogram": histogram(measured.nearest_jaccard),
            "max": round(measured.max_jaccard, 4),
            "closest_pair": closest,
        },
        "skeletons": {
            "times_used": {str(n): c for n, c in sorted(Counter(measured.skeletons.values()).items())},
            "max": measured.max_skeleton_count,
        },
        "openings": {
            "most_common": dict(measured.openings.most_common(5)),
            "max_share": round(measured.max_opening_share, 4),
        },
    }


def histogram(values: Sequence[float]) -> dict[str, int]:
    """Counts by tenths: "0.2-0.3" holds 0.2 <= value < 0.3."""
    counts = Counter(min(int(value * 10), 9) for value in values)
    return {f"{tenth / 10:.1f}-{(tenth + 1) / 10:.1f}": counts[tenth] for tenth in sorted(counts)}


def format_report(measured: dict[str, Any]) -> str:
    """The report as lines for a terminal."""
    lines = [f"{measured['questions']} questions, {measured['words']['mean']} words on average"]
    for row in measured["facets"]:
        share = row["reverse_keyed"] / row["questions"]
        lines.append(f"  {row['subset']:<18} {row['facet']:<22} {row['questions']:>4}  reverse-keyed {share:.0%}")
    nearest, skeletons, openings = measured["nearest_jaccard"], measured["skeletons"], measured["openings"]
    lines += [
        f"nearest other question, Jaccard: max {nearest['max']:.2f} ({' / '.join(nearest['closest_pair'])}), "
        + ", ".join(f"{edges}: {count}" for edges, count in nearest["histogram"].items()),
        "skeletons used "
        + ", ".join(f"{times} x: {count}" for times, count in skeletons["times_used"].items())
        + f"; most common four-word opening: {openings['max_share']:.1%}",
    ]
    return "\n".join(lines)
