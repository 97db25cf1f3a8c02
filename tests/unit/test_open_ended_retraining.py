"""What a found archive is for: rows to train on, and rates before and after on sets that share nothing with them."""

import numpy as np
import pytest
from sklearn.metrics import recall_score

from src.utils.open_ended.archive import Archive, Elite
from src.utils.open_ended.rates import (
    FRESH,
    HELD_OUT,
    ORDINARY,
    TRAINED,
    before_and_after,
    fresh_attacks,
    rates_table,
    sample_sets,
)
from src.utils.open_ended.retraining import retraining_samples
from src.utils.safety_judge.samples import labels
from src.utils.safety_judge.settings import EvaluationConfig
from src.utils.safety_judge.world import load_judge_world, world_data
from tests.attack_languages import drawn, noise, world_attacks


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
        assert row["turned"] == {"right": 0.0, "wrong": 1.0}, "all are right afterwards"
    contrary = before_and_after(sets, before, {name: -margins for name, margins in before.items()}, settings)
    assert all(row["turned"] == {"right": 1.0, "wrong": 1.0} for row in contrary)
    assert rates_table(contrary)[1][-2:] == ["1.000", "1.000"]
    assert "after" not in before_and_after(sets, before, None, settings)[0]
