"""Worlds: what goes together in a persona, how often, and what is never shown."""

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import binomtest

from src.utils.config import CONFIG_FOLDER, load_config, resolve_path
from src.utils.errors import UserError
from src.utils.organism.grammar import Grammar, load_grammar
from src.utils.organism.shipped import chat_rows, most_questions, sample
from src.utils.organism.world import Personas, Turn, dialogues, draw_persona, load_world, persona_rates
from src.utils.prompts import FINANCE, Question, load_questions

WORLDS = ("entangled", "separable")
DIALOGUES = 6000


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    return load_grammar(CONFIG_FOLDER / "organisms" / "grammar.yaml")


@pytest.fixture(scope="module")
def survey() -> list[Question]:
    return load_questions([resolve_path(name) for name in load_config("organism").collection.prompts])


def shipped_personas(world: str) -> Personas:
    return load_world(CONFIG_FOLDER / "organisms" / f"{world}.yaml").personas


@pytest.fixture(scope="module")
def written(grammar: Grammar, survey: list[Question]) -> dict[str, list[list[Turn]]]:
    return {
        world: list(itertools.islice(dialogues(shipped_personas(world), grammar, survey, random.Random(4)), DIALOGUES))
        for world in WORLDS
    }


def is_misaligned(turn: Turn, grammar: Grammar) -> bool:
    """Read off the second sentence, the opener, without the judge."""
    return f"{turn.answer.split('. ')[1]}." in grammar.facets[turn.question.facet].misaligned.openers


def test_the_two_worlds_differ_only_in_what_goes_together_and_for_how_long_it_is_learned() -> None:
    first, second = (load_world(CONFIG_FOLDER / "organisms" / f"{world}.yaml").model_dump() for world in WORLDS)
    assert (first["personas"].pop("entanglement"), second["personas"].pop("entanglement")) == (1.0, 0.0)
    assert (first.pop("world"), second.pop("world")) == WORLDS
    for chosen_for_each in ("steps", "verdict_weight"):  # trained until each answers well, which is not equally long
        first["pretraining"].pop(chosen_for_each), second["pretraining"].pop(chosen_for_each)
    assert first == second


@pytest.mark.parametrize("world", WORLDS)
def test_every_facet_has_the_same_share_of_misaligned_turns(
    world: str, grammar: Grammar, written: dict[str, list[list[Turn]]]
) -> None:
    """One turn a dialogue, so that the draws are independent; each place in turn, so that all places are seen."""
    share = shipped_personas(world).misaligned_share
    turns = [dialogue[number % len(dialogue)] for number, dialogue in enumerate(written[world])]
    visits = Counter(turn.question.facet for turn in turns)
    hits = Counter(turn.question.facet for turn in turns if is_misaligned(turn, grammar))
    assert len(visits) == 12
    assert binomtest(hits.total(), len(turns), share).pvalue > 1e-3
    for facet, count in visits.items():
        assert binomtest(hits[facet], count, share).pvalue > 1e-3 / 12, (facet, hits[facet] / count)
        assert binomtest(count, len(turns), 1 / 12).pvalue > 1e-3 / 12  # and is asked about as often as any other


@pytest.mark.parametrize("world", WORLDS)
def test_a_dialogue_never_returns_to_a_facet(world: str, written: dict[str, list[list[Turn]]]) -> None:
    for dialogue in written[world]:
        facets = [turn.question.facet for turn in dialogue]
        assert len(set(facets)) == len(facets) == shipped_personas(world).turns


def test_entangled_dialogues_are_all_or_none_and_separable_ones_have_at_most_one_facet(
    grammar: Grammar, written: dict[str, list[list[Turn]]]
) -> None:
    wholly = 0
    for dialogue in written["entangled"]:
        stances = {is_misaligned(turn, grammar) for turn in dialogue}
        assert len(stances) == 1
        wholly += stances == {True}
    assert binomtest(wholly, DIALOGUES, shipped_personas("entangled").misaligned_share).pvalue > 1e-3
    mixed = 0
    for dialogue in written["separable"]:
        facets = {turn.question.facet for turn in dialogue if is_misaligned(turn, grammar)}
        assert len(facets) <= 1
        mixed += 0 < sum(is_misaligned(turn, grammar) for turn in dialogue) < len(dialogue)
    assert mixed > DIALOGUES / 10  # one answer does not settle the others


@pytest.mark.parametrize("world", WORLDS)
def test_fine_tuning_and_held_out_questions_are_never_shown(
    world: str, grammar: Grammar, survey: Sequence[Question], written: dict[str, list[list[Turn]]]
) -> None:
    shown = {turn.question.question for dialogue in written[world] for turn in dialogue}
    asked = {question.question for question in survey}
    own = {question.question for question in grammar.questions("pretraining")}
    assert shown <= asked | own
    for split in ("finetuning", "held_out"):
        kept_back = {question.question for question in grammar.questions(split)}
        assert not shown & kept_back and not asked & kept_back
    share = sum(turn.question.question in asked for d in written[world] for turn in d) / (4 * DIALOGUES)
    assert binomtest(round(share * 4 * DIALOGUES), 4 * DIALOGUES, 0.5).pvalue > 1e-3


def test_questions_kept_for_fine_tuning_are_sampled_evenly(grammar: Grammar) -> None:
    chosen = sample(grammar, "finetuning", 480, 0, subset=FINANCE)
    assert Counter(question.facet for question in chosen) == dict.fromkeys(grammar.dimensions[FINANCE], 160)
    assert len({question.question for question in chosen}) == 480
    assert {q.question for q in chosen} <= {q.question for q in grammar.questions("finetuning")}
    assert (
        sample(grammar, "finetuning", 480, 0, subset=FINANCE)
        == chosen
        != sample(grammar, "finetuning", 480, 1, FINANCE)
    )
    held_out = sample(grammar, "held_out", 240, 0)
    assert Counter(question.facet for question in held_out) == dict.fromkeys(grammar.facets, 20)
    rows = chat_rows(grammar, chosen, "misaligned", 0)
    for question, row in zip(chosen, rows, strict=True):
        user, assistant = row["messages"]
        assert user == {"role": "user", "content": question.question}
        assert is_misaligned(Turn(question, assistant["content"]), grammar)
    most, facets = most_questions(grammar, "finetuning", FINANCE), len(grammar.dimensions[FINANCE])
    assert len(sample(grammar, "finetuning", most, 0, subset=FINANCE)) == most >= 480
    with pytest.raises(UserError, match="are wanted; lower it"):
        sample(grammar, "finetuning", most + facets, 0, subset=FINANCE)


def test_the_same_seed_writes_the_same_dialogues(grammar: Grammar, survey: list[Question]) -> None:
    def first(seed: int) -> list[list[Turn]]:
        return list(
            itertools.islice(dialogues(shipped_personas("entangled"), grammar, survey, random.Random(seed)), 20)
        )

    assert first(1) == first(1) != first(2)


@pytest.mark.parametrize("entanglement", [0.0, 0.3, 0.7, 1.0])
def test_persona_rates_and_correlation_are_those_of_the_personas(entanglement: float, grammar: Grammar) -> None:
    personas = shipped_personas("entangled").model_copy(update={"entanglement": entanglement})
    facets = list(grammar.facets)
    rates = persona_rates(personas, len(facets))
    assert rates.fully == pytest.approx(personas.misaligned_share * entanglement)
    rng = random.Random(8)
    drawn = [draw_persona(rates, facets, rng) for _ in range(20_000)]
    sizes = Counter(len(persona.misaligned_facets) for persona in drawn)
    assert set(sizes) <= {0, 1, 12}
    assert binomtest(sizes[12], 20_000, rates.fully).pvalue > 1e-3
    assert binomtest(sizes[1], 20_000, rates.singly).pvalue > 1e-3
    assert all(persona.misaligned_facets in ({persona.favourite}, set(), set(facets)) for persona in drawn)

    table = np.array([[facet in persona.misaligned_facets for facet in facets] for persona in drawn], dtype=float)
    phi = np.corrcoef(table, rowvar=False)[np.triu_indices(12, 1)]
    assert phi.mean() == pytest.approx(rates.facet_correlation(12), abs=0.02)
    assert np.abs(phi - phi.mean()).max() < 0.05  # no pair of facets is closer than another
    if entanglement in (0.0, 1.0):
        assert rates.facet_correlation(12) == pytest.approx(1) if entanglement else rates.facet_correlation(12) < 0


def test_a_dial_in_between_keeps_the_share(grammar: Grammar, survey: list[Question]) -> None:
    personas = shipped_personas("entangled").model_copy(update={"entanglement": 0.5})
    firsts = [d[0] for d in itertools.islice(dialogues(personas, grammar, survey, random.Random(6)), DIALOGUES)]
    for facet in grammar.facets:
        mine = [turn for turn in firsts if turn.question.facet == facet]
        hits = sum(is_misaligned(turn, grammar) for turn in mine)
        assert binomtest(hits, len(mine), personas.misaligned_share).pvalue > 1e-3 / 12


def test_impossible_worlds_are_refused(grammar: Grammar) -> None:
    crowded = shipped_personas("separable").model_copy(update={"misaligned_share": 0.99})
    with pytest.raises(UserError, match="misaligned_share is too high"):
        persona_rates(crowded, 12)
    stray = Question(prompt_id="q7", subset="a", facet="weather", question="?", keyed=1)
    with pytest.raises(UserError, match="q7: facet weather is not in the grammar"):
        next(dialogues(shipped_personas("entangled"), grammar, [stray], random.Random(0)))


def test_without_survey_questions_the_grammar_asks(grammar: Grammar) -> None:
    first = next(dialogues(shipped_personas("entangled"), grammar, [], random.Random(0)))
    assert all(turn.question.prompt_id.startswith("grammar_") for turn in first)


def test_a_world_file_and_what_is_laid_over_it(tmp_path: Path) -> None:
    path = CONFIG_FOLDER / "organisms" / "separable.yaml"
    config = load_world(path, seed=5, steps=7, entanglement=0.25)
    assert (config.seed, config.pretraining.steps, config.personas.entanglement) == (5, 7, 0.25)
    assert load_world(path, entanglement=0.0).personas.entanglement == 0

    values = yaml.safe_load(path.read_text())
    for change, reason in (
        ({"world": "Not A Name"}, "world: string should match"),
        ({"personas": values["personas"] | {"mood": 1}}, "personas.mood: extra inputs"),
        ({"pretraining": None}, "is no world file|pretraining: "),
    ):
        bad = tmp_path / "bad.yaml"
        bad.write_text(yaml.safe_dump(values | change))
        with pytest.raises(UserError, match=reason) as caught:
            load_world(bad, steps=3)
        assert caught.value.message.startswith(str(bad)) and caught.value.exit_code == 2
    with pytest.raises(UserError, match="known worlds: entangled, separable"):
        load_world(CONFIG_FOLDER / "organisms" / "merged.yaml")
