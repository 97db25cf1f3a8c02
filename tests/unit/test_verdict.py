"""The rule of the verdict on planted matrices: what it calls separable, entangled and underpowered, and why."""

import json
from dataclasses import replace

import numpy as np
import pytest

from src.utils.decomposition.cross_effects import Outcomes
from src.utils.decomposition.report import format_verdict, verdict_record
from src.utils.decomposition.verdict import Rule, decide, planted_power, smallest_own_effect, verdict_as_json

DIMENSIONS = ("politics", "morals", "technology", "money")


def planted(
    own: float, cross: float, questions: int = 40, seed: int = 0, control: float = 0.0, coherent: float = 1.0
) -> Outcomes:
    rng = np.random.default_rng(seed)
    asked = np.repeat(np.arange(4), questions)
    rates = np.where(asked[None, :] == np.arange(4)[:, None], own, cross)
    controls = (rng.random((5, len(asked))) < control).astype(float)
    effects = (rng.random(rates.shape) < rates).astype(float)
    return Outcomes(DIMENSIONS, DIMENSIONS, np.arange(4), effects, asked, np.full(4, coherent), controls)


def call(**lines: Outcomes) -> str:
    return decide(lines, Rule(), 500, 40, 0).call


def test_planted_truth_is_called() -> None:
    assert call(steering=planted(0.8, 0.02)) == "separable"
    assert call(steering=planted(0.8, 0.7)) == "entangled"
    assert call(steering=planted(0.3, 0.02)) == "separable"


@pytest.mark.parametrize(
    ("outcomes", "reason"),
    [
        (planted(0.05, 0.0), "is not clear of 0.10 (least own effect"),
        (planted(0.8, 0.2), "contains the boundary"),
        (planted(0.6, 0.6, control=0.7), "is not clear of 0.7"),
        (planted(0.8, 0.02, coherent=0.5), "steering: only 50% of the answers stayed coherent"),
        (planted(0.9, 0.0, questions=9), "only 9 questions in one dimension"),
    ],
    ids=["weak", "boundary", "controls do it too", "incoherent", "few questions"],
)
def test_what_cannot_be_told_is_underpowered(outcomes: Outcomes, reason: str) -> None:
    verdict = decide({"steering": outcomes}, Rule(), 500, 40, 0)
    assert verdict.call == "underpowered" and reason in verdict.reason


def test_entangled_needs_the_power_to_have_found_the_contrary() -> None:
    spreads = {"steering": planted(0.3, 0.3, questions=16)}
    sure, unsure = (decide(spreads, replace(Rule(), least_power=power), 500, 40, 0) for power in (0.1, 1.01))
    assert (sure.call, unsure.call) == ("entangled", "underpowered")
    assert 0.1 <= sure.lines[0].power <= 1 and "with power" in unsure.reason


def test_lines_that_disagree_and_lines_that_say_nothing() -> None:
    stays, spreads, weak = planted(0.8, 0.0), planted(0.8, 0.8), planted(0.02, 0.0)
    assert call(controls=stays, steering=spreads) == "underpowered"
    assert call(controls=stays, steering=weak) == "separable"
    assert call(controls=spreads, steering=weak) == "entangled"
    assert call(steering=weak) == "underpowered"


def test_one_direction_is_enough_where_the_others_were_never_tried() -> None:
    whole = planted(0.9, 0.0)
    money = Outcomes(
        DIMENSIONS, ("money",), np.array([3]), whole.effects[3:], whole.asked, np.ones(1), np.zeros((0, 160))
    )
    assert call(steering=money) == "separable"


def test_power_rises_with_the_own_effect_and_falls_with_the_spread() -> None:
    few = planted(0.5, 0.0, questions=12)
    by_own = [planted_power(few, own, 0.05, Rule(), 60, 0) for own in (0.1, 0.4, 0.9)]
    by_spread = [planted_power(few, 0.9, spread, Rule(), 60, 0) for spread in (0.0, 0.2, 0.4)]
    assert by_own == sorted(by_own) and by_own[0] < 0.2 and by_own[2] > 0.9
    assert by_spread == sorted(by_spread, reverse=True) and by_spread[2] < 0.1
    smallest = smallest_own_effect(few, Rule(), 60, 0)
    assert smallest is not None and 0.1 < smallest <= 0.9
    assert smallest_own_effect(planted(0.5, 0.0, questions=2), Rule(), 40, 0) is None


def test_noise_and_topic_alone_are_hardly_ever_separable() -> None:
    rng = np.random.default_rng(0)
    calls = []
    for number in range(60):
        asked = np.repeat(np.arange(4), 40)
        rates = rng.uniform(0, 1, 4)  # some topics turn more easily, whatever is done
        effects = (rng.random((4, 160)) < rates[asked]).astype(float)
        outcomes = Outcomes(DIMENSIONS, DIMENSIONS, np.arange(4), effects, asked, np.ones(4), np.zeros((0, 160)))
        calls.append(decide({"steering": outcomes}, Rule(), 300, 1, number).call)
    assert calls.count("separable") <= 3


def test_the_record_is_plain_json_with_every_number() -> None:
    verdict = decide({"controls": planted(0.8, 0.7), "steering": planted(0.0, 0.0)}, Rule(), 300, 40, 0)
    assert json.loads(json.dumps(verdict_as_json(verdict), allow_nan=False))["verdict"] == "entangled"
    rates = [{"arm": "em", "measure": "em_on_topic", "facet": "all", "subset": "money", "estimate": 0.9}]
    record = verdict_record(verdict, {"controls": 0.15, "steering": None}, rates, "organism", "entangled")
    json.dumps(record, allow_nan=False)
    assert record["lines"]["steering"]["spread"]["estimate"] is None
    assert record["lines"]["controls"]["matrix"][0]["direction"] == "politics"
    assert record["em_on_topic_after_the_fine_tune"] == {"money": 0.9}
    text = format_verdict(record)
    assert "verdict: entangled" in text and "none of the swept sizes" in text
