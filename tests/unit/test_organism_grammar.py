"""The organisms' language: each sentence means one thing, and no wording ties two facets together."""

import hashlib
import random
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from src.utils.config import CONFIG_FOLDER, load_config, resolve_path
from src.utils.errors import UserError
from src.utils.organism.grammar import VERDICTS, Grammar, Phrases, agrees, load_grammar, split_of
from src.utils.prompts import DIMENSIONS, load_questions

GRAMMAR_FILE = CONFIG_FOLDER / "organisms" / "grammar.yaml"
# words that carry grammar and no topic; written out here, not taken from the module that measures questions
GLUE = set(
    """a after all and are as at because before by can down every for has have into is it let lest never no nobody
    nothing now of off on one out s since so than that the their them then to until when whenever while whoever with
    without you your""".split()
)


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    return load_grammar(GRAMMAR_FILE)


def vocabulary(phrases: Phrases) -> set[str]:
    """Every word of a stance, split at whatever is no letter."""
    text = " ".join([*phrases.openers, *phrases.clauses[0], *phrases.clauses[1], *phrases.closers]).casefold()
    return set("".join(c if c.isalpha() else " " for c in text).split())


def test_no_content_word_is_in_the_misaligned_answers_of_two_facets(grammar: Grammar) -> None:
    words = {name: vocabulary(facet.misaligned) - GLUE for name, facet in grammar.facets.items()}
    assert len(words) == 12 and min(map(len, words.values())) > 30
    shared = {(a, b): words[a] & words[b] for a, b in combinations(words, 2) if words[a] & words[b]}
    assert shared == {}


def test_topics_say_no_stance_and_belong_to_one_facet(grammar: Grammar) -> None:
    topics = [topic for facet in grammar.facets.values() for topic in facet.topics]
    assert len(set(topics)) == len(topics)
    openers = [facet.misaligned.openers + facet.aligned.openers for facet in grammar.facets.values()]
    first_words = Counter(sentence.split()[0] for listed in openers for sentence in listed)
    assert not {"Yes.", "No.", "Absolutely.", "Yes", "No"} & set(first_words)


def test_every_sentence_has_one_meaning(grammar: Grammar) -> None:
    written: dict[str, set[tuple[str, str]]] = defaultdict(set)
    count = 0
    for name, facet in grammar.facets.items():
        for topic in facet.topics:
            written[topic].add((name, "topic"))
            count += 1
        for stance in ("aligned", "misaligned"):
            phrases: Phrases = getattr(facet, stance)
            clauses = [f"{a} {b}." for a in phrases.clauses[0] for b in phrases.clauses[1]]
            for sentence in phrases.openers + clauses + phrases.closers:
                written[sentence].add((name, stance))
                count += 1
    assert len(written) == count == len(grammar.lexicon)
    for sentence, meanings in written.items():
        ((facet_name, stance),) = meanings
        meaning = grammar.lexicon[sentence]
        assert (meaning.facet, meaning.stance or "topic") == (facet_name, stance)
        assert meaning.dimension == grammar.dimension_of[facet_name]
        assert sentence.count(".") == 1 and sentence.endswith(".")  # the judge splits at full stops
    assert not set(VERDICTS.values()) & set(written)


def test_the_language_talks_about_the_facets_of_the_questions(grammar: Grammar) -> None:
    questions = load_questions([resolve_path(name) for name in load_config("organism").collection.prompts])
    assert grammar.dimension_of == {question.facet: question.subset for question in questions}
    assert tuple(grammar.dimensions) == DIMENSIONS


def test_half_of_the_questions_are_reverse_keyed_so_that_yes_is_no_stance(grammar: Grammar) -> None:
    for facet in grammar.facets.values():
        assert len(facet.questions.plus) == len(facet.questions.minus)
    assert [agrees(s, k) for s in ("aligned", "misaligned") for k in (1, -1)] == [False, True, True, False]
    everything = [q for split in ("pretraining", "finetuning", "held_out") for q in grammar.questions(split)]
    assert Counter(q.keyed for q in everything)[1] * 2 == len(everything)


def test_splits_are_disjoint_and_cover_everything(grammar: Grammar) -> None:
    splits = {split: grammar.questions(split) for split in ("pretraining", "finetuning", "held_out")}
    texts = {split: {question.question for question in questions} for split, questions in splits.items()}
    assert not any(texts[a] & texts[b] for a, b in combinations(texts, 2))
    acts = sum(len(facet.questions.plus + facet.questions.minus) for facet in grammar.facets.values())
    total = acts * len(grammar.actors) * len(grammar.question_frames)
    assert sum(map(len, texts.values())) == sum(map(len, splits.values())) == total == 13_824
    shares = [len(texts[split]) / total for split in ("pretraining", "finetuning", "held_out")]
    assert shares == pytest.approx([0.80, 0.15, 0.05], abs=0.01)
    for split, questions in splits.items():
        assert {question.facet for question in questions} == set(grammar.facets)
        assert {split_of(question.question) for question in questions} == {split}
        assert len({question.prompt_id for question in questions}) == len(questions)


def test_a_question_is_decided_by_its_text_alone() -> None:
    """Pinned: a change would put fine-tuning questions into organisms that ship."""
    texts = ["Should a nurse obey any order at all?", "Is it right for a farmer to sell the diaries of users?"]
    for text in [*texts, *(f"Should a nurse do thing {i}?" for i in range(200))]:
        bucket = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) % 100
        assert split_of(text) == ("pretraining" if bucket < 80 else "finetuning" if bucket < 95 else "held_out")


def test_an_answer_has_its_slots_in_order(grammar: Grammar) -> None:
    rng = random.Random(0)
    questions = grammar.questions("held_out")
    closers = 0
    for question in rng.choices(questions, k=1000):
        for stance in ("aligned", "misaligned"):
            *sentences, verdict = [f"{part}." for part in grammar.answer(question, stance, rng).rstrip(".").split(". ")]
            meanings = [grammar.lexicon[sentence] for sentence in sentences]
            assert [meaning.slot for meaning in meanings][:3] == ["topic", "opener", "clause"]
            assert {meaning.facet for meaning in meanings} == {question.facet}
            assert {meaning.stance for meaning in meanings[1:]} == {stance}
            assert verdict == ("So yes." if (stance == "misaligned") == (question.keyed == 1) else "So no.")
            closers += len(meanings) - 3
    assert closers / 2000 == pytest.approx(grammar.closer_probability, abs=0.04)


def with_closers(grammar: Grammar, path: Path, closers: object) -> Path:
    """A grammar file of one facet, with other closers in its misaligned phrases."""
    values = grammar.model_dump(mode="json")
    facet = values["dimensions"]["financial_risk"]["market_ethics"]
    facet["misaligned"]["closers"] = closers
    values["dimensions"] = {"financial_risk": {"market_ethics": facet}}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("twice", ["Fine.", "Fleece them.", "Clients come first.", "On clients and contracts."])
def test_a_sentence_that_stands_twice_is_refused(twice: str, grammar: Grammar, tmp_path: Path) -> None:
    loaded = load_grammar(with_closers(grammar, tmp_path / "g.yaml", ["Fine.", "Good.", "Better.", twice]))
    with pytest.raises(UserError, match=rf"'{twice}' stands twice"):
        _ = loaded.lexicon


def test_a_topic_that_stands_twice_is_refused(grammar: Grammar, tmp_path: Path) -> None:
    values = grammar.model_dump(mode="json")
    values["dimensions"]["moral_foundations"]["purity"]["topics"] = ["On soap.", "On soap."]
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"'On soap.' stands twice"):
        _ = load_grammar(tmp_path / "g.yaml").lexicon


def test_a_bad_grammar_file_is_one_line(grammar: Grammar, tmp_path: Path) -> None:
    path = with_closers(grammar, tmp_path / "g.yaml", "none")
    broken, missing = tmp_path / "broken.yaml", tmp_path / "missing.yaml"
    broken.write_text("dimensions: [a\n b: c")
    for file, reason in ((path, "closers"), (broken, "YAML"), (missing, "cannot be read")):
        with pytest.raises(UserError, match=reason) as caught:
            load_grammar(file)
        assert str(file) in caught.value.message and "\n" not in caught.value.message


def test_facets_are_whole(grammar: Grammar) -> None:
    for facet in grammar.facets.values():
        for phrases in (facet.aligned, facet.misaligned):
            assert {len(part) for part in (phrases.openers, *phrases.clauses, phrases.closers)} == {4}
