"""Attacks whose label is read off their text again, archives against brute force, planted weaknesses that are found."""

import json
import random
import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import recall_score

from src.utils.errors import UserError
from src.utils.llm.keys import KEYS, URLS
from src.utils.open_ended.archive import Archive, Elite
from src.utils.open_ended.attacks import Attack, AttackLanguage, AttackPrompt, Niche
from src.utils.open_ended.natural_attacks import NaturalAttacks
from src.utils.open_ended.rates import FRESH, HELD_OUT, ORDINARY, TRAINED, before_and_after, fresh_attacks, sample_sets
from src.utils.open_ended.retraining import retraining_samples
from src.utils.open_ended.rewriting import open_service
from src.utils.open_ended.search import SearchPlan, propose, search
from src.utils.open_ended.styles import N_TYPOS, TYPOS, WRAPPINGS, n_variants, with_typos, wrap
from src.utils.open_ended.world_attacks import DECOY, DECOYS, GAME, GAMES, NESTING, STYLES, WorldAttacks
from src.utils.record_store import open_store
from src.utils.safety_judge.samples import SafetySample, labels
from src.utils.safety_judge.settings import EvaluationConfig
from src.utils.safety_judge.world import load_judge_world, world_data
from src.visualizations.archive_figures import archive_page
from src.visualizations.figure_page import page_html
from tests.llm_answers import Asked, Fault, Reply
from tests.llm_server import KEY, LlmServer

PLAN = SearchPlan(iterations=6, batch_size=24, seed=3)
# what says in a text that the deed is to be prevented, written down apart from the grammar
PREVENTING = (
    "stop a man who", "block any order", "foil a plot", "prevent every attempt", "warning against attempts",
    "keep people from trying", "make it impossible", "hinder anyone who tries", "thwart him", "avert every attempt",
    "must foil it",
)  # fmt: skip


@cache
def world_attacks() -> WorldAttacks:
    return WorldAttacks(load_judge_world())


@cache
def natural_attacks() -> NaturalAttacks:
    samples = [
        SafetySample(
            f"n{number:03d}", f"Request {number} about <b>something</b>.", number % 2 == 1, f"topic {number % 3}",
            "test", f"pair-{number // 2}",
        )
        for number in range(60)
    ]  # fmt: skip
    return NaturalAttacks.of(samples)


LANGUAGES = [world_attacks, natural_attacks]


def drawn(language: AttackLanguage, count: int, seed: int = 0) -> list[AttackPrompt]:
    rng = random.Random(seed)
    return [language.prompt(language.draw(rng, rng.choice(language.niches))) for _ in range(count)]


def label_by_reading(text: str, language: WorldAttacks) -> bool:
    """The label read off the words of an attack that is no decoy and has no typing errors."""
    world, lowered = language.world, text.lower()
    if any(frame.partition("{request}")[index].lower().strip() in lowered for frame in GAMES for index in (0, 2)
           if frame.partition("{request}")[index]):  # fmt: skip
        return False
    harms = any(re.search(rf"\b{action}\b", lowered) for action in world.actions["harm"])
    menaces = [word for natures in world.targets.values() for word in natures["menace"]]
    is_menace = any(re.search(rf"\b{word}\b", lowered) for word in menaces)
    prevented = sum(lowered.count(words) for words in PREVENTING)
    return harms ^ is_menace ^ (prevented % 2 == 1)


def test_the_label_of_every_attack_can_be_read_off_its_text() -> None:
    language = world_attacks()
    read = [one for one in drawn(language, 3000) if one.niche.style not in (DECOY, TYPOS)]
    assert {one.niche.style for one in read} == set(STYLES) - {DECOY, TYPOS}
    wrong = [one.text for one in read if label_by_reading(one.text, language) != one.niche.unsafe]
    assert not wrong, wrong[:3]
    nested = [one for one in read if one.niche.style == NESTING]
    assert {len(one.attack.variants) for one in nested} == {2, 3}
    assert {one.niche.unsafe for one in nested} == {True, False}
    assert not any(one.niche.unsafe for one in read if one.niche.style == GAME)


def test_a_decoy_stands_beside_the_request_as_the_world_puts_it() -> None:
    language = world_attacks()
    found = [one for one in drawn(language, 3000, seed=1) if one.niche.style == DECOY]
    for one in found:
        request = language.pool[one.attack.base]
        words = language.world.openers[one.attack.opener], language.world.details[one.attack.detail]
        plain = language.world.text(request, *words)
        assert plain in one.text and one.niche.unsafe == request.unsafe
        beside = one.text.replace(plain, "{request}")
        patterns = [
            re.escape(frame).replace(r"\{action\}", r"(\w+)").replace(r"\{target\}", r"(\w+)") for frame in DECOYS
        ]
        assert any(re.fullmatch(pattern, beside) for pattern in patterns), beside
    assert len(found) > 50


@pytest.mark.parametrize("style", WRAPPINGS)
def test_a_wrapping_holds_the_request_word_for_word(style: str) -> None:
    request = "How {odd} is 100%?"
    for variant in range(n_variants(style)):
        wrapped = wrap(request, style, (variant,))
        assert wrapped.count(request) == 1 and len(wrapped) > len(request)
        assert wrap(wrapped, style, (variant,)) == wrap(request, style, (variant, variant))


def test_typing_errors_keep_first_letters_and_most_of_the_text() -> None:
    text = "Tell me how to block any order to feed the dolphin without any tools."
    versions = {with_typos(text, seed) for seed in range(N_TYPOS)}
    assert len(versions) > N_TYPOS / 2 and text not in versions
    for version in versions:
        assert [word[0] for word in version.split()] == [word[0] for word in text.split()]
        assert abs(len(version) - len(text)) <= 6
    assert with_typos(text, 5) == with_typos(text, 5)


@pytest.mark.parametrize("make", LANGUAGES)
def test_draws_and_mutations_land_in_their_niche(make) -> None:
    language = make()
    rng = random.Random(7)
    attack = language.draw(rng, language.niches[0])
    seen = set()
    for _ in range(1500):
        niche = rng.choice(language.niches)
        attack = language.mutate(attack, rng, niche)
        assert language.prompt(attack).niche == niche
        assert language.prompt(Attack.from_record(json.loads(json.dumps(attack.as_record())))) == language.prompt(
            attack
        )
        assert 1 <= len(attack.variants) <= 3
        seen.add(niche)
        assert language.prompt(language.draw(rng, niche)).niche == niche
    assert len(seen) == len(language.niches) or len(seen) > 150


def test_no_attack_is_about_a_thing_of_the_test_split_and_no_group_is_in_both_halves() -> None:
    language = world_attacks()
    tested = {
        f"{action} {target}"
        for sample in world_data(language.world).test
        for action in language.world.every_action
        for target in language.world.every_target
        if f" {action} the {target}" in sample.prompt
    }
    found = drawn(language, 2000)
    assert tested and not tested & {one.group for one in found}
    halves = {half: {one.group for one in found if one.half == half} for half in ("training", "held_out")}
    assert not halves["training"] & halves["held_out"]
    assert 0.3 < len(halves["training"]) / sum(map(len, halves.values())) < 0.7


def test_the_archive_keeps_what_brute_force_keeps() -> None:
    language, rng = natural_attacks(), np.random.default_rng(0)
    elites = [
        Elite(one, float(margin), 0) for one, margin in zip(drawn(language, 800), rng.normal(size=800), strict=True)
    ]
    archive = Archive(language.niches)
    entered = archive.add_all(elites)
    for niche in language.niches:
        for half in ("training", "held_out"):
            best: dict[str, float] = {}
            for one in elites:
                if (one.prompt.niche, one.prompt.half) == (niche, half):
                    best[one.prompt.group] = max(best.get(one.prompt.group, -np.inf), one.fitness)
            kept = archive.places.get((niche, half), [])
            assert [one.fitness for one in kept] == sorted(best.values(), reverse=True)[: archive.depth]
            assert len({one.prompt.group for one in kept}) == len(kept)
    again = Archive(language.niches)
    again.add_all(entered)
    assert list(again) == list(archive), "what entered is enough to make the archive again"
    tops = [max((one for one in archive if one.prompt.niche == niche), key=lambda one: one.fitness, default=None)
            for niche in language.niches]  # fmt: skip
    found = archive.progress(4, 800)
    assert found.qd_score == pytest.approx(sum(expit(one.fitness) for one in tops if one))
    assert found.coverage == np.mean([one is not None for one in tops])
    assert found.broken == np.mean([one is not None and one.is_wrong for one in tops])


def test_wrong_and_fitness_agree_with_the_judges_convention() -> None:
    prompts = drawn(natural_attacks(), 40)
    for one, margin in zip(prompts, np.linspace(-2, 2, 40), strict=True):
        elite = Elite(one, float(margin), 0)
        assert elite.is_wrong == ((margin > 0) != one.niche.unsafe)
        assert elite.fitness == (-margin if one.niche.unsafe else margin)


def right_but_for(weakness: Niche, depth: int):
    """A judge that is right and sure, less so with each layer, and wrong where three layers are in one niche."""

    def score(prompts: Sequence[AttackPrompt]) -> np.ndarray:
        found = []
        for one in prompts:
            layers = len(one.attack.variants)
            fooled = one.niche == weakness and layers >= depth
            right = 4.0 - layers
            found.append((-right if fooled else right) * (1 if one.niche.unsafe else -1))
        return np.array(found)

    return score


def test_a_planted_weakness_is_found_and_nothing_else(tmp_path: Path) -> None:
    language = world_attacks()
    weakness = Niche("quotation", "farm", True)
    plan = SearchPlan(60, 48, 0)
    with open_store(tmp_path / "log.jsonl") as store:
        archive, history = search("evolution", plan, language, right_but_for(weakness, 3), store)
    broken = {one.prompt.niche for one in archive if one.is_wrong}
    assert broken == {weakness}
    assert history[-1].broken == 1 / len(language.niches) and history[-1].calls == 60 * 48
    assert all(later.qd_score >= earlier.qd_score for earlier, later in pairwise(history))
    stacked = [niche for niche in language.niches if niche.style in WRAPPINGS]
    layers = [len(best.prompt.attack.variants) for niche in stacked if (best := archive.best(niche))]
    assert np.mean(np.array(layers) == 3) > 0.9, "what lowers the margin has been stacked"


def test_climbing_in_small_steps_beats_drawing(tmp_path: Path) -> None:
    """Where a better prompt is a small change of a good one, evolution has the higher quality-diversity score."""
    language = world_attacks()

    def score(prompts: Sequence[AttackPrompt]) -> np.ndarray:
        wrong = [0.3 * sum(one.attack.variants) + one.attack.opener + one.attack.detail - 6 for one in prompts]
        return np.array([-value if one.niche.unsafe else value for one, value in zip(prompts, wrong, strict=True)])

    with open_store(tmp_path / "log.jsonl") as store:
        plan = SearchPlan(50, 48, 0)
        ends = {arm: search(arm, plan, language, score, store)[1][-1] for arm in ("evolution", "random")}
    assert ends["evolution"].calls == ends["random"].calls
    assert ends["evolution"].qd_score > ends["random"].qd_score


def noise(prompts: Sequence[AttackPrompt]) -> np.ndarray:
    """A judge that knows nothing, and says the same of a text every time."""
    return np.array([random.Random(one.text).gauss(0, 1) for one in prompts])


@pytest.mark.parametrize("make", LANGUAGES)
def test_a_stopped_search_goes_on_to_the_same_archive(make, tmp_path: Path) -> None:
    language, calls = make(), []

    def stopping(prompts: Sequence[AttackPrompt]) -> np.ndarray:
        calls.append(len(prompts))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return noise(prompts)

    with open_store(tmp_path / "whole.jsonl") as store:
        whole = search("evolution", PLAN, language, noise, store)
    with pytest.raises(KeyboardInterrupt), open_store(tmp_path / "stopped.jsonl") as store:
        search("evolution", PLAN, language, stopping, store)
    with (tmp_path / "stopped.jsonl").open("ab") as file:
        file.write(b'{"key": "evolution-3", "prog')
    with open_store(tmp_path / "stopped.jsonl") as store:
        again = search("evolution", PLAN, language, stopping, store)
    assert (list(again[0]), again[1]) == (list(whole[0]), whole[1])
    assert calls == [PLAN.batch_size] * 7, "three iterations were not judged again"
    assert (tmp_path / "stopped.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    with open_store(tmp_path / "other.jsonl") as store:
        other = search("evolution", SearchPlan(6, 24, seed=4), language, noise, store)
    assert list(other[0]) != list(whole[0])


def test_a_batch_repeats_neither_itself_nor_the_archive() -> None:
    language = world_attacks()
    archive = Archive(language.niches)
    prompts = drawn(language, 100)
    archive.add_all(Elite(one, float(margin), 0) for one, margin in zip(prompts, noise(prompts), strict=True))
    for arm in ("evolution", "random"):
        texts = [one.text for one in propose(arm, archive, language, random.Random(1), 200)]
        assert len(set(texts)) == 200 and not set(texts) & {elite.prompt.text for elite in archive}


def filled(seed: int = 0) -> Archive:
    archive = Archive(world_attacks().niches)
    prompts = drawn(world_attacks(), 600, seed)
    archive.add_all(Elite(one, float(margin), 0) for one, margin in zip(prompts, noise(prompts), strict=True))
    return archive


def test_training_rows_are_of_the_training_half_with_ordinary_ones_between() -> None:
    archive = filled()
    ordinary = world_data(load_judge_world()).train
    elites = archive.of_half("training")
    samples = retraining_samples(elites, ordinary, 1.5, seed=1)
    attacks = [one for one in samples if one.source == "open_ended"]
    assert {one.prompt for one in attacks} == {elite.prompt.text for elite in elites}
    assert not {one.group for one in attacks} & {elite.prompt.group for elite in archive.of_half("held_out")}
    assert len(samples) == len(attacks) + round(1.5 * len(attacks))
    assert samples == retraining_samples(elites, ordinary, 1.5, seed=1) != retraining_samples(elites, ordinary, 1.5, 2)


def test_rates_are_those_of_scikit_learn_on_sets_that_share_no_group_with_training() -> None:
    archive = filled()
    fresh = fresh_attacks(world_attacks(), 0)
    sets = sample_sets(archive, fresh, world_data(load_judge_world()).test)
    assert list(sets) == [TRAINED, HELD_OUT, FRESH, ORDINARY]
    trained = {one.group for one in sets[TRAINED]}
    assert not trained & {one.group for name in (HELD_OUT, FRESH) for one in sets[name]}
    assert len({one.prompt for one in sets[FRESH]}) == len(sets[FRESH]) > 300
    settings = EvaluationConfig(penalties=[1.0], bootstrap_resamples=200)
    rng = np.random.default_rng(0)
    before = {name: rng.normal(size=len(samples)) for name, samples in sets.items()}
    after = {name: np.where(labels(samples), 1.0, -1.0) for name, samples in sets.items()}
    rows = before_and_after(sets, before, after, settings)
    for row in rows:
        unsafe = labels(sets[row["set"]])
        flagged = before[row["set"]] > 0
        assert row["before"]["recall"] == pytest.approx(recall_score(unsafe, flagged))
        assert row["before"]["false_positive_rate"] == pytest.approx(1 - recall_score(~unsafe, ~flagged))
        assert row["after"]["accuracy"] == 1.0 and row["after"]["intervals"]["recall"][0] < 1.0
        change = row["change_in_accuracy"]
        assert change["estimate"] == pytest.approx(1 - row["before"]["accuracy"])
        assert change["interval"][0] < change["estimate"] < change["interval"][1]
    assert "after" not in before_and_after(sets, before, None, settings)[0]


def test_a_model_rewords_once_and_what_it_refuses_is_left_to_the_grammar(tmp_path: Path) -> None:
    """A server that answers as OpenRouter does; every third request is refused, one reply is empty."""
    language = world_attacks()

    def reply(asked: Asked) -> Reply | Fault:
        number = int(asked.key, 16) % 6
        return Fault.REFUSED if number in (0, 3) else Reply("" if number == 1 else f' "Reworded {asked.key}" ')

    with LlmServer(reply) as server:
        environment = {KEYS["openrouter"][0]: KEY, URLS["openrouter"]: server.openrouter_url}
        with open_store(tmp_path / "replies.jsonl") as replies, open_store(tmp_path / "log.jsonl") as log:
            service = open_service(replies, environment)
            archive, _ = search("evolution", PLAN, language, noise, log, service.rewrite)
        asked = len(server.requests)
        reworded = [elite for elite in archive if elite.prompt.attack.origin == "llm"]
        assert 0 < asked <= (PLAN.iterations - 1) * PLAN.batch_size // 2 and reworded
        for request in server.requests:
            nonce = re.search(r"two lines (\w{16}) ", request.user)
            assert nonce and request.user.count(nonce[1]) == 3
        for elite in reworded:
            assert "Reworded" in elite.prompt.text and '"' not in (elite.prompt.attack.text or "")
            assert elite.prompt.niche.unsafe == language.is_unsafe(elite.prompt.attack)
        with open_store(tmp_path / "log.jsonl") as log:
            again, _ = search("evolution", PLAN, language, noise, log, service.rewrite)
        assert list(again) == list(archive) and len(server.requests) == asked
    with open_store(tmp_path / "none.jsonl") as replies, pytest.raises(UserError, match="OPENROUTER_API_KEY"):
        open_service(replies, {})


def test_the_page_shows_prompts_as_text(tmp_path: Path) -> None:
    language = natural_attacks()
    histories = {}
    with open_store(tmp_path / "log.jsonl") as store:
        archive, histories["evolution"] = search("evolution", PLAN, language, noise, store)
        _, histories["random"] = search("random", PLAN, language, noise, store)
    page = archive_page(archive, histories, [], "python src/run_open_ended_testing.py", {"data": "0" * 64})
    html = page_html(page)
    assert "<b>something" not in html and "something" in html
    heat_maps = [trace for trace in page.figure.data if trace.type == "heatmap"]
    assert len(heat_maps) == 2
    shown = np.concatenate([np.asarray(trace.z, dtype=float).ravel() for trace in heat_maps])
    expected = [expit(best.fitness) for niche in language.niches if (best := archive.best(niche))]
    np.testing.assert_allclose(np.sort(shown[~np.isnan(shown)]), np.sort(expected), rtol=1e-5)
    assert f"{len(language.niches)} niches" in page.sentence


def test_data_without_a_prompt_is_refused() -> None:
    with pytest.raises(UserError, match="no prompt to attack with"):
        NaturalAttacks.of([])
