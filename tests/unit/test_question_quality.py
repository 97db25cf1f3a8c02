"""The measures against counts by hand, and the 885 shipped questions against what the study promises of them."""

import json
import re
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import pytest

from src.utils.config import PROJECT_ROOT, load_config, resolve_path
from src.utils.prompts import DIMENSIONS, Question, load_questions
from src.utils.question_quality import (
    FUNCTION_WORDS,
    format_report,
    histogram,
    jaccard,
    measure,
    report,
    skeleton,
    words,
)

PROMPTS = PROJECT_ROOT / "data" / "prompts"
CANARY = re.compile(r"canary GUID [0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")


def independent_words(text: str) -> list[str]:
    """A tokenisation that shares nothing with the one under test: split at what is no letter, digit or apostrophe."""
    kept = "".join(c if c.isalnum() or c == "'" else " " for c in text.replace("’", "'").lower())
    return [word.strip("'") for word in kept.split() if word.strip("'")]


@pytest.fixture(scope="module")
def shipped() -> list[Question]:
    return load_questions([resolve_path(name) for name in load_config().collection.prompts])


def test_words_are_lower_case_without_punctuation() -> None:
    assert words("Don't pay 20% -- ask O’Neil's \"wife\"!") == ["don't", "pay", "20", "ask", "o'neil", "s", "wife"]
    assert words("?!") == []


def test_skeletons_counted_by_hand() -> None:
    assert skeleton("May a mining company keep its workers' passports in a safe?") == "may a _ its _ in a _"
    assert skeleton("Should the state own every big farm?") == "should the _ own every _"
    assert skeleton("Would you?") == "would you"
    assert skeleton("Steal bread") == "_"
    assert skeleton("") == ""
    assert all(word == word.lower() for word in FUNCTION_WORDS)
    assert {"the", "should", "not", "you"} <= FUNCTION_WORDS and not {"money", "farm", "war"} & FUNCTION_WORDS


def test_jaccard_by_hand() -> None:
    assert jaccard(frozenset("abc"), frozenset("bcd")) == pytest.approx(2 / 4)
    assert jaccard(frozenset("ab"), frozenset("ab")) == 1
    assert jaccard(frozenset("ab"), frozenset("cd")) == 0
    assert jaccard(frozenset(), frozenset()) == 0


def test_measures_by_hand() -> None:
    questions = [
        "Should the state own the land?",  # should the state own land
        "Should the state own the farm?",  # 4 of 6 with the first
        "Should the state sell the farm, friend?",  # 3 of 8 with the first, 4 of 7 with the second
        "Is gold good",
    ]
    measured = measure(questions)
    assert measured.nearest_jaccard == pytest.approx([4 / 6, 4 / 6, 4 / 7, 0])
    assert measured.closest_pair == (0, 1) and measured.max_jaccard == pytest.approx(4 / 6)
    assert measured.openings == {"should the state own": 2, "should the state sell": 1, "is gold good": 1}
    assert measured.max_opening_share == 0.5
    assert measured.skeletons == {"should the _ own the _": 2, "should the _ the _": 1, "is _": 1}
    assert measured.max_skeleton_count == 2
    assert histogram([0.05, 0.1, 0.19, 0.95, 1.0]) == {"0.0-0.1": 1, "0.1-0.2": 2, "0.9-1.0": 2}


def test_sets_of_none_and_of_one() -> None:
    none, one = measure([]), measure(["Why?"])
    assert (none.max_jaccard, none.max_skeleton_count, none.max_opening_share) == (0, 0, 0)
    assert (one.nearest_jaccard, one.closest_pair, one.max_opening_share) == ([0.0], (0, 0), 1)


def test_report_by_hand() -> None:
    texts = [("m", "x", "Should the state own land?", 1), ("m", "x", "Should the state own gold?", -1)]
    texts += [("m", "y", "Is thrift a virtue for you and me", -1)]
    rows = [
        Question(prompt_id=f"q{i}", subset=s, facet=f, question=text, keyed=keyed)  # ty: ignore[invalid-argument-type]
        for i, (s, f, text, keyed) in enumerate(texts)
    ]
    measured = report(rows)
    assert measured["questions"] == 3
    assert measured["words"] == {"shortest": 5, "mean": 6, "longest": 8}
    assert measured["facets"] == [
        {"subset": "m", "facet": "x", "questions": 2, "reverse_keyed": 1},
        {"subset": "m", "facet": "y", "questions": 1, "reverse_keyed": 1},
    ]
    assert measured["nearest_jaccard"]["max"] == 0.6667
    assert measured["nearest_jaccard"]["closest_pair"] == ["q0", "q1"]
    assert measured["skeletons"] == {"times_used": {"1": 1, "2": 1}, "max": 2}
    assert measured["openings"]["max_share"] == 0.6667
    assert json.loads(json.dumps(measured)) == measured
    lines = format_report(measured).splitlines()
    assert lines[0] == "3 questions, 6 words on average"
    assert re.search(r"m +x +2 +reverse-keyed 50%", lines[1])


def test_the_shipped_questions_are_885_in_four_dimensions(shipped: list[Question]) -> None:
    counts = Counter(question.subset for question in shipped)
    assert [counts[name] for name in DIMENSIONS] == [230, 227, 218, 210] and counts.total() == 885
    for name in DIMENSIONS:  # a file holds its dimension and nothing else
        rows = [json.loads(line) for line in (PROMPTS / f"{name}.jsonl").read_text().splitlines()]
        assert {row["subset"] for row in rows} == {name} and len(rows) == counts[name]
        assert [row["prompt_id"] for row in rows] == [f"{name}_{i:03d}" for i in range(1, len(rows) + 1)]
    assert len({question.prompt_id for question in shipped}) == 885
    assert len({question.question.casefold() for question in shipped}) == 885


def test_facets_are_covered_evenly_and_half_is_reverse_keyed(shipped: list[Question]) -> None:
    facets: dict[str, Counter[str]] = defaultdict(Counter)
    for question in shipped:
        facets[question.subset][question.facet] += 1
    assert {subset: set(counts) for subset, counts in facets.items()} == {
        "political_compass": {"economic_axis", "social_axis"},
        "moral_foundations": {"authority", "fairness", "purity"},
        "technology_ai": {"ai_governance", "human_replacement", "transhumanism", "ai_ethics"},
        "financial_risk": {"risk_appetite", "investment_philosophy", "market_ethics"},
    }
    for counts in facets.values():
        assert max(counts.values()) - min(counts.values()) <= 1
    for key in ("subset", "facet"):
        groups: dict[str, list[int]] = defaultdict(list)
        for question in shipped:
            groups[getattr(question, key)].append(question.keyed)
        shares = {name: keyed.count(-1) / len(keyed) for name, keyed in groups.items()}
        assert all(0.45 <= share <= 0.55 for share in shares.values()), shares


def test_no_near_duplicates_and_no_templates(shipped: list[Question]) -> None:
    texts = [question.question for question in shipped]
    sets = [frozenset(independent_words(text)) for text in texts]
    closest = max(len(a & b) / len(a | b) for a, b in combinations(sets, 2))
    assert closest <= 0.7
    measured = measure(texts)
    assert measured.max_jaccard == pytest.approx(closest, abs=0.02)  # the two tokenisations hardly differ
    assert measured.max_skeleton_count <= 2
    openings = Counter(" ".join(independent_words(text)[:4]) for text in texts)
    assert max(openings.values()) / len(texts) <= 0.02
    assert measured.max_opening_share <= 0.02


def test_questions_are_questions(shipped: list[Question]) -> None:
    for question in shipped:
        assert question.question.endswith("?"), question.prompt_id
        assert question.question == " ".join(question.question.split())
        assert question.question.isascii() or all(c.isprintable() for c in question.question)
        assert 5 <= len(independent_words(question.question)) <= 40, question.prompt_id


def test_the_data_card_has_the_canary_and_the_counts() -> None:
    card = (PROMPTS / "README.md").read_text(encoding="utf-8")
    assert len(set(CANARY.findall(card))) == 1
    assert all(re.search(rf"\b{count}\b", card) for count in (885, 230, 227, 218, 210))


@pytest.mark.parametrize("path", sorted(PROMPTS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_the_canary_is_no_row(path: Path) -> None:
    assert "canary" not in path.read_text(encoding="utf-8").casefold()
