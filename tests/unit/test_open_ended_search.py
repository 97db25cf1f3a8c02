"""Archives against brute force, planted weaknesses that are found, searches that are stopped and go on."""

import hashlib
import random
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from src.utils.errors import UserError
from src.utils.llm.keys import KEYS, URLS
from src.utils.open_ended.archive import Archive, Elite
from src.utils.open_ended.attacks import AttackPrompt, Niche
from src.utils.open_ended.rewriting import open_service
from src.utils.open_ended.search import SearchPlan, propose, search
from src.utils.open_ended.styles import WRAPPINGS
from src.utils.record_store import open_store
from src.visualizations.archive_figures import archive_page
from src.visualizations.figure_page import page_html
from src.visualizations.palette import display_name
from tests.attack_languages import LANGUAGES, drawn, natural_attacks, noise, world_attacks
from tests.llm_answers import Asked, Fault, Reply
from tests.llm_server import KEY, LlmServer

PLAN = SearchPlan(iterations=6, batch_size=24, seed=3)


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


def test_where_nothing_can_be_climbed_evolution_wins_by_where_it_looks(tmp_path: Path) -> None:
    """Wrong by accident of the text, in some niches seldom: those are tried more often than by random search."""
    language = world_attacks()

    def share(text: str) -> float:
        return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 16**8

    def score(prompts: Sequence[AttackPrompt]) -> np.ndarray:
        wrong = [share(one.text) - 0.25 - 0.7 * share(str(one.niche)) for one in prompts]
        return np.array([-value if one.niche.unsafe else value for one, value in zip(prompts, wrong, strict=True)])

    with open_store(tmp_path / "log.jsonl") as store:
        plan = SearchPlan(20, 64, 0)
        ends = {arm: search(arm, plan, language, score, store)[1][-1] for arm in ("evolution", "random")}
    assert ends["evolution"].broken > ends["random"].broken + 0.05


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
        answers = [reply(request) for request in server.requests]
        useless = sum(not (isinstance(answer, Reply) and answer.text) for answer in answers)
        said = f"{asked} rewordings asked, {useless} of no use, ${asked * 0.0001:.4f}"
        assert 0 < useless < asked and service.bill.endswith(said)
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
    without_key = r"OPENROUTER_API_KEY.*leave --llm out"
    with open_store(tmp_path / "none.jsonl") as replies, pytest.raises(UserError, match=without_key):
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


def test_a_niche_that_cannot_be_has_a_dash_on_the_page(tmp_path: Path) -> None:
    """No request about a game is unsafe."""
    language = world_attacks()
    with open_store(tmp_path / "log.jsonl") as store:
        archive, history = search("evolution", SearchPlan(12, 128, 0), language, noise, store)
    assert history[-1].coverage == 1
    figure = archive_page(archive, {"evolution": history}, [], "", {}).figure
    dashes = [trace for trace in figure.data if trace.type == "scatter" and trace.mode == "text"]
    topics = [display_name(category) for category in language.world.targets]
    assert [list(trace.x) for trace in dashes] == [topics, []] and set(dashes[0].y) == {"Game"}
