"""The labelled prompts of `data/safety`, from the files alone: what the data card says of them, measured again."""

import csv
import json
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import pytest
from jaxtyping import Bool, Float
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline

from src.utils.config import PROJECT_ROOT
from src.utils.question_quality import skeleton, words
from tests.published_files import XSTEST, needs_xstest

FOLDER = PROJECT_ROOT / "data" / "safety"
SPLITS = ("train", "validation", "test")
COLUMNS = ["sample_id", "prompt", "label", "category", "source", "pair_id", "group_id", "style"]
CATEGORIES = {"cyber_intrusion", "deception", "drugs", "fraud", "harassment", "hate", "privacy", "self_harm", "theft"}
CATEGORIES |= {"violence"}
STYLES = {"question", "request", "backstory", "terse", "polite", "typo", "role_play"}
CANARY = re.compile(r"Canary GUID ([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\b")
Row = dict[str, Any]


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Row]]:
    return {
        name: [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in SPLITS
    }


@pytest.fixture(scope="module")
def rows(splits: dict[str, list[Row]]) -> list[Row]:
    return [row for name in SPLITS for row in splits[name]]


@pytest.fixture(scope="module")
def card() -> str:
    return (FOLDER / "README.md").read_text(encoding="utf-8")


def unsafe(rows: Sequence[Row]) -> Bool[np.ndarray, " rows"]:
    return np.array([row["label"] == "unsafe" for row in rows])


def paired(rows: Sequence[Row]) -> Bool[np.ndarray, " rows"]:
    return np.array([row["pair_id"] is not None for row in rows])


def prompts(rows: Sequence[Row]) -> list[str]:
    return [row["prompt"] for row in rows]


def bag_of_words() -> Pipeline:
    return make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=2000))


def overlaps(texts: Sequence[str], others: Sequence[str], n: int) -> Float[np.ndarray, "texts others"]:
    """Jaccard similarity of the sets of word n-grams, by a tokenisation that `question_quality` does not use."""
    vectorizer = CountVectorizer(ngram_range=(n, n), token_pattern=r"(?u)[\w'’]+", binary=True)
    counts = vectorizer.fit_transform([*texts, *others])
    left, right = counts[: len(texts)], counts[len(texts) :]
    shared = (left @ right.T).toarray().astype(float)
    union = left.sum(axis=1) + right.sum(axis=1).T - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def near_duplicates(texts: Sequence[str], others: Sequence[str]) -> Bool[np.ndarray, "texts others"]:
    return (overlaps(texts, others, 3) >= 0.5) | (overlaps(texts, others, 1) >= 0.7)


def edit_distance(left: Sequence[str], right: Sequence[str]) -> int:
    """Words to insert, delete or replace to get from one to the other (Levenshtein)."""
    row = list(range(len(right) + 1))
    for i, word in enumerate(left, start=1):
        above, row[0] = row[:], i
        for j, other in enumerate(right, start=1):
            row[j] = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (word != other))
    return row[-1]


def test_rows_are_whole_and_numbered_through(splits: dict[str, list[Row]], rows: list[Row]) -> None:
    assert {name: len(splits[name]) for name in SPLITS} == {"train": 920, "validation": 200, "test": 200}
    assert all(list(row) == COLUMNS for row in rows)
    assert [row["sample_id"] for row in rows] == [f"safety_{i:04d}" for i in range(1, 1321)]
    assert {row["label"] for row in rows} == {"safe", "unsafe"}
    assert {row["category"] for row in rows} == CATEGORIES and len(CATEGORIES) == 10
    assert {row["style"] for row in rows} == STYLES
    assert {row["source"] for row in rows} == {"written"}
    for text in prompts(rows):
        assert text == " ".join(text.split()) and text.isprintable() and not re.search(r"[{}|<>\\]", text), text
    assert len({" ".join(words(text)) for text in prompts(rows)}) == 1320


def test_labels_are_balanced_everywhere(splits: dict[str, list[Row]]) -> None:
    for name, each in (("train", 46), ("validation", 10), ("test", 10)):
        counts = Counter((row["category"], row["label"]) for row in splits[name])
        assert set(counts.values()) == {each} and len(counts) == 20
        styles = Counter((row["style"], row["label"]) for row in splits[name])
        assert all(styles[style, "safe"] == styles[style, "unsafe"] >= 4 for style in STYLES)


def test_length_and_question_mark_hardly_tell_the_label(rows: list[Row]) -> None:
    lengths = np.array([len(text.split()) for text in prompts(rows)])
    assert lengths.min() == 4 and 40 <= lengths.max() <= 45
    assert np.mean(lengths <= 7) > 0.05 and np.mean(lengths >= 30) > 0.04
    assert abs(roc_auc_score(unsafe(rows), lengths) - 0.5) < 0.075
    asks = np.array([text.endswith("?") for text in prompts(rows)])
    assert abs(asks[unsafe(rows)].mean() - asks[~unsafe(rows)].mean()) < 0.05


def test_a_pair_differs_in_a_word_or_two_and_in_the_label(splits: dict[str, list[Row]]) -> None:
    distances: list[int] = []
    for name, expected in (("train", 180), ("validation", 40), ("test", 40)):
        pairs: dict[str, list[Row]] = defaultdict(list)
        for row in splits[name]:
            if row["pair_id"] is not None:
                pairs[row["pair_id"]].append(row)
        assert len(pairs) == expected
        for pair_id, (one, other) in pairs.items():  # unpacking fails unless both stand in this split
            assert {one["label"], other["label"]} == {"safe", "unsafe"}, pair_id
            for column in ("category", "style", "group_id"):
                assert one[column] == other[column], pair_id
            left, right = one["prompt"].split(), other["prompt"].split()
            distances.append(edit_distance(left, right))
            blocks = SequenceMatcher(None, left, right, autojunk=False).get_opcodes()
            assert sum(tag != "equal" for tag, *_ in blocks) == 1, pair_id  # and in one place
    assert set(distances) == {1, 2} and len(distances) == 260
    assert distances.count(1) >= 0.9 * 260


def test_edit_distance_by_hand() -> None:
    assert edit_distance("cut the cake".split(), "cut the fence".split()) == 1
    assert edit_distance("into my mailbox".split(), "into our mayor's mailbox".split()) == 2
    assert edit_distance([], ["a", "b"]) == 2


def test_groups_of_one_safe_and_one_unsafe_stay_in_one_split(splits: dict[str, list[Row]]) -> None:
    seen: set[str] = set()
    for name in SPLITS:
        groups: dict[str, list[str]] = defaultdict(list)
        for row in splits[name]:
            groups[row["group_id"]].append(row["label"])
        assert all(sorted(labels) == ["safe", "unsafe"] for labels in groups.values())
        assert not seen & set(groups)
        seen |= set(groups)
    assert len(seen) == 660


def test_near_duplicates_are_pairs_and_nothing_else(splits: dict[str, list[Row]], rows: list[Row]) -> None:
    close = near_duplicates(prompts(rows), prompts(rows))
    assert close.diagonal().all()  # every prompt is its own: the measure sees what it should
    pairs = np.array([row["pair_id"] or row["sample_id"] for row in rows])
    assert not (close & (pairs[:, None] != pairs[None, :])).any()
    start = {name: sum(len(splits[earlier]) for earlier in SPLITS[:i]) for i, name in enumerate(SPLITS)}
    split = np.searchsorted([start["validation"], start["test"]], np.arange(len(rows)), side="right")
    across = split[:, None] != split[None, :]
    assert overlaps(prompts(rows), prompts(rows), 1)[across].max() < 0.5
    assert overlaps(prompts(rows), prompts(rows), 3)[across].max() < 0.25


@needs_xstest
def test_no_prompt_is_taken_from_xstest(rows: list[Row]) -> None:
    with XSTEST.open(encoding="utf-8", newline="") as file:
        published = [row["prompt"] for row in csv.DictReader(file)]
    assert len(published) == 450
    assert not near_duplicates(prompts(rows), published).any()


def test_no_templates(rows: list[Row]) -> None:
    openings = Counter(" ".join(words(text)[:4]) for text in prompts(rows))
    assert max(openings.values()) < 0.01 * len(rows)
    assert max(Counter(map(skeleton, prompts(rows))).values()) <= 6
    one_of_each = [row["prompt"] for row in rows if row["pair_id"] is None or row["label"] == "safe"]
    skeletons = Counter(map(skeleton, one_of_each))
    assert max(skeletons.values()) <= 4
    assert max(count for text, count in skeletons.items() if len(text.split()) > 5) <= 2


def test_bag_of_words_hardly_beats_chance(splits: dict[str, list[Row]], card: str) -> None:
    train, test = splits["train"], splits["test"]
    model = bag_of_words().fit(prompts(train), unsafe(train))
    right = model.predict(prompts(test)) == unsafe(test)
    assert model.score(prompts(train), unsafe(train)) > 0.75  # it does learn: what it learns does not carry over
    assert 0.45 <= right.mean() <= 0.85
    assert abs(right[paired(test)].mean() - 0.5) <= 0.15  # 80 rows: 2.7 standard errors
    said = re.search(r"\| TF-IDF [^|]*, test split \| ([\d.]+)% \| ([\d.]+)% \| ([\d.]+)% \|", card)
    assert said is not None
    measured = [right.mean(), right[paired(test)].mean(), right[~paired(test)].mean()]
    assert [float(share) for share in said.groups()] == pytest.approx([100 * share for share in measured], abs=2.5)


def test_cross_validation_without_groups_is_fooled(rows: list[Row], card: str) -> None:
    text, label = np.array(prompts(rows)), unsafe(rows)
    groupings = {
        "by `group_id`": [row["group_id"] for row in rows],
        "by `pair_id`": [row["pair_id"] or row["sample_id"] for row in rows],
        "by row": [row["sample_id"] for row in rows],
    }
    accuracy: dict[str, float] = {}
    for name, groups in groupings.items():
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
        right = cross_val_predict(bag_of_words(), text, label, cv=folds, groups=groups) == label
        measured = [100 * share for share in (right.mean(), right[paired(rows)].mean(), right[~paired(rows)].mean())]
        accuracy[name] = measured[0]
        said = re.search(rf"\| the same, 5 folds {name} \| ([\d.]+)% \| ([\d.]+)% \| ([\d.]+)% \|", card)
        assert said is not None, name
        assert [float(share) for share in said.groups()] == pytest.approx(measured, abs=2.5)
        if name == "by `group_id`":
            assert abs(measured[1] - 50) <= 8 and measured[0] <= 70
    assert accuracy["by row"] < accuracy["by `pair_id`"] < accuracy["by `group_id`"]


def test_the_data_card_has_one_canary_and_the_counts(card: str) -> None:
    assert len(CANARY.findall(card)) == 1
    for category in CATEGORIES:
        assert re.search(rf"^\| `{category}` \|", card, flags=re.MULTILINE), category
    assert all(re.search(rf"\b{count}\b", card) for count in ("1,320", "920", "200", "260", "132"))
    assert all(f"`{name}`" in card for name in (*COLUMNS, *STYLES))
    others = [path.read_text(encoding="utf-8") for path in FOLDER.parent.rglob("*.md") if path.parent != FOLDER]
    assert not any(CANARY.findall(card)[0] in text for text in others)


def test_the_canary_is_no_row(rows: list[Row]) -> None:
    assert not any("canary" in text.casefold() for text in prompts(rows))
