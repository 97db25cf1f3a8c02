"""The claims' tests against scipy, and their statistics against planted trainings of which the answer is known."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, entropy, permutation_test, spearmanr

from src.utils.interpretation_claims import moments as measuring
from src.utils.interpretation_claims.claims import CLAIMS, Claim
from src.utils.interpretation_claims.exact_tests import association, exchange_p, sign_flip_p, sign_test_p
from src.utils.interpretation_claims.key_words import is_key_token, requests_of
from src.utils.interpretation_claims.moments import (
    Moment,
    MomentMeter,
    crossing,
    divergence_size,
    entropy_share,
    hoyer_sparsity,
)
from src.utils.interpretation_claims.report import claims_report, format_verdicts
from src.utils.interpretation_claims.row_budget import RowBudget
from src.utils.interpretation_claims.statistics import boundary_spike, clustering, upper_neurons
from src.utils.interpretation_claims.training import EpochMeter, collect
from src.utils.organism.model import new_model
from src.utils.record_store import open_store
from src.utils.safety_judge.freezing import freeze
from src.utils.safety_judge.judge_folder import Judge
from src.utils.safety_judge.organism import train_tokenizer
from src.utils.safety_judge.samples import SafetyData, labels
from src.utils.safety_judge.scoring import JudgeTemplate, score
from src.utils.safety_judge.settings import load_judge_config
from src.utils.safety_judge.training import LabelledPrompts, train_judge
from src.utils.safety_judge.world import load_judge_world, world_data
from src.visualizations.claims_figures import claims_page
from src.visualizations.figure_page import page_html

BLOCKS = 6
BY_NAME = {claim.name: claim for claim in CLAIMS}


def moment(epoch: int, **changes: Any) -> Moment:
    """A moment of a training in which nothing ever changes."""
    still = Moment(
        epoch=epoch, accuracy=0.9, auroc=0.9, loss=0.3, train_loss=0.3, robust_accuracy=0.5, divergence_layer=4.0,
        divergence_size=1.0, carried=[0.0, 0.0, 0.2, 0.4, 0.3, 0.1], claimed=[0, 0, 10, 10, 10, 10], sparsity=0.5,
        entropy=0.6, key_focus=0.1, converged=1.0, attributions=[[0.5, 0.5], [0.25, 0.75]],
        stream=[1.0] * (BLOCKS + 1), written=[1.0] * BLOCKS, n_frozen_blocks=2,
    )  # fmt: skip
    return replace(still, **changes)


def noisy(seed: int, epochs: int = 5) -> list[Moment]:
    """A training whose numbers are noise, the same distribution at every epoch and for every seed."""
    rng = np.random.default_rng(seed)

    def one(epoch: int) -> Moment:
        shares = rng.dirichlet(np.ones(2), size=4).tolist()
        return moment(
            epoch, loss=rng.uniform(), train_loss=rng.uniform(), robust_accuracy=rng.uniform(),
            divergence_layer=rng.uniform(3, 5), divergence_size=rng.uniform(),
            carried=rng.dirichlet(np.ones(6)).tolist(),
            claimed=[0, 0, *rng.integers(5, 15, size=4).tolist()], sparsity=rng.uniform(), entropy=rng.uniform(),
            key_focus=rng.uniform(), attributions=shares, stream=rng.lognormal(size=BLOCKS + 1).tolist(),
            written=rng.lognormal(size=BLOCKS).tolist(),
        )  # fmt: skip

    return [one(epoch) for epoch in range(epochs + 1)]


def as_claimed(seed: int, epochs: int = 5, turned: bool = False) -> list[Moment]:
    """A training of which every claim is true, or false when it is turned; seeds differ in how good they get."""
    rng = np.random.default_rng(seed)
    skill, way = rng.uniform(0.5, 1.5), -1 if turned else 1

    def one(epoch: int) -> Moment:
        late = (max(0, epoch - 1) / (epochs - 1)) ** 0.5
        speed = 0.3 ** (epoch if way > 0 else epochs - epoch)
        upper = 10 + 10 * way * skill * 0.5
        grown = (1 + late * skill) ** way
        return moment(
            epoch, divergence_layer=4 - 1.5 * way * late, divergence_size=late * skill + skill,
            loss=1 - way * (late * skill + skill) / 4, train_loss=1 - way * (late * skill + skill) / 2,
            carried=[0, 0, 0.5 + speed * (-1) ** epoch * 0.5, 1 - speed * (-1) ** epoch * 0.5, 1, 1],
            claimed=[0, 0, 10, 10, round(upper), round(upper)],
            robust_accuracy=0.5 + way * clustering(moment(0, claimed=[0, 0, 10, 10, round(upper), round(upper)])),
            sparsity=skill, entropy=0.6 - 0.2 * way * late, key_focus=0.1 + 0.3 * way * late,
            attributions=[[0.5 + speed * (-1) ** epoch * 0.5, 0.5 - speed * (-1) ** epoch * 0.5]] * 2,
            stream=[1.0] * BLOCKS + [grown], written=[1.0, 1.0, (1 + epoch) ** way, 1.0, 1.0, 1.0],
        )  # fmt: skip

    return [one(epoch) for epoch in range(epochs + 1)]


@pytest.mark.parametrize("seed", range(4))
def test_sign_flips_are_those_of_scipy(seed: int) -> None:
    values = np.random.default_rng(seed).normal(0.4, size=9)
    values[0] = 0.0
    expected = permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="greater", vectorized=True
    )
    assert sign_flip_p(values) == pytest.approx(expected.pvalue)
    assert sign_test_p(values) == binomtest(int((values > 0).sum()), 9, alternative="greater").pvalue
    assert sign_flip_p(np.abs(values[1:])) == 2**-8 and sign_flip_p(np.zeros(0)) == 1.0


def test_many_signs_are_drawn_and_keep_the_observed_one() -> None:
    assert 0 < sign_flip_p(np.full(30, 1.0)) < 0.001
    assert 0.05 < sign_flip_p(np.resize([1.0, -1.0], 30)) <= 1


@pytest.mark.parametrize("seed", range(3))
def test_exchanged_seeds_are_a_permutation_test_of_spearman(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, 5, 3))
    second += first
    expected = np.mean([spearmanr(first[:, at], second[:, at]).statistic for at in range(3)])
    assert association(first, second) == pytest.approx(expected)
    every = [
        np.mean([spearmanr(first[:, at], second[list(order), at]).statistic for at in range(3)])
        for order in permutations(range(5))
    ]
    above, below = exchange_p(first, second)
    assert above == pytest.approx(np.mean(np.array(every) >= expected - 1e-9))
    assert below == pytest.approx(np.mean(np.array(every) <= expected + 1e-9))


def test_a_trend_that_all_trainings_share_is_no_association() -> None:
    rng = np.random.default_rng(1)
    trend = np.linspace(0, 100, 5)
    first, second = rng.normal(size=(2, 40, 5)) + trend
    assert abs(association(first, second)) < 0.2
    same = np.ones((6, 2))
    assert np.isnan(association(same, second[:6, :2])), "seeds that are all equal have no order"
    assert exchange_p(same, second[:6, :2]) == (1.0, 1.0)


def test_measures_are_those_of_their_definitions() -> None:
    assert crossing(np.array([0.0, 0.1, 0.3, 0.8, 1.0])) == pytest.approx(2 + 0.2 / 0.5)
    assert crossing(np.array([0.6, 1.0])) == 0.0 and crossing(np.array([0.0, 0.1, 0.2])) == 2.0
    assert hoyer_sparsity(np.array([0.0, 3.0, 0.0, 0.0])) == pytest.approx(1.0)
    assert hoyer_sparsity(np.ones((3, 4))) == pytest.approx(0.0)
    values = np.array([0.5, -2.0, 1.0, 0.0])
    assert entropy_share(values) == pytest.approx(entropy(np.abs(values)) / np.log(4))
    rng = np.random.default_rng(0)
    stream = rng.normal(size=(3, 8, 5))
    unsafe = np.array([False, True, True, False, False, True, True, False])
    groups = np.array(["a", "a", "b", "b", "c", "c", "d", "d"])
    by_hand = []
    for layer in stream:
        apart = [
            np.linalg.norm(layer[(groups == name) & unsafe] - layer[(groups == name) & ~unsafe]) for name in "abcd"
        ]
        by_hand.append(np.mean(apart) / np.mean(np.linalg.norm(layer, axis=1)))
    assert divergence_size(stream, unsafe, groups) == pytest.approx(max(by_hand))


def test_statistics_of_a_moment() -> None:
    assert upper_neurons(moment(0)) == 0.0, "evenly spread over the blocks that learn"
    assert upper_neurons(moment(0, claimed=[0, 0, 0, 0, 5, 15])) == 0.5
    assert upper_neurons(moment(0, claimed=[0] * 6)) is None and upper_neurons(moment(0, claimed=None)) is None
    assert clustering(moment(0, claimed=[9, 9, 0, 20, 0, 0])) == 1.0 and clustering(moment(0)) == pytest.approx(0.0)
    spiking = moment(1, written=[1.0, 1.0, 4.0, 2.0, 1.0, 1.0])
    assert boundary_spike(spiking, moment(0)) == pytest.approx(np.log(4) - np.log(2) / 3)


@pytest.mark.parametrize(("turned", "expected"), [(False, "held"), (True, "did not hold")])
def test_claims_that_are_planted_are_found_and_turned_ones_refused(turned: bool, expected: str) -> None:
    report = claims_report(CLAIMS, {seed: as_claimed(seed, turned=turned) for seed in range(10)})
    verdicts = {row["name"]: row["verdict"] for row in report["claims"]}
    if turned:  # sparsity goes with overfitting in both
        verdicts.pop("sparsity_means_overfitting")
    assert set(verdicts.values()) == {expected}, verdicts
    assert len(format_verdicts(report)) == len(CLAIMS) + 1


def test_of_noise_hardly_anything_is_said() -> None:
    """Twenty studies of eight seeds: a claim that holds by accident in at most two of them (5% each, corrected)."""
    false = []
    for study in range(20):
        report = claims_report(CLAIMS, {seed: noisy(100 * study + seed) for seed in range(7)})
        false.append(any(row["verdict"] == "held" for row in report["claims"]))
    assert sum(false) <= 2


def test_eight_seeds_can_decide_and_four_cannot() -> None:
    for count, expected in ((8, {"held"}), (4, {"not decided"})):
        report = claims_report(CLAIMS, {seed: as_claimed(seed) for seed in range(count)})
        assert {row["verdict"] for row in report["claims"] if row["kind"] == "course"} == expected


def test_a_small_effect_that_is_sure_did_not_hold() -> None:
    claim = Claim(
        "small", "Grows", "growth", "course", "x", lambda training: [None], lambda training: training[0].loss, 0.5
    )
    trainings = {seed: [moment(0, loss=0.1 + seed / 1000)] * 2 for seed in range(8)}
    (row,) = claims_report([claim], trainings)["claims"]
    assert row["verdict"] == "did not hold" and row["p_for"] == 2**-8 and row["agreeing"] == 8


def test_what_cannot_be_measured_is_left_out_and_counted() -> None:
    trainings = {seed: as_claimed(seed) for seed in range(9)}
    trainings[3] = [replace(one, divergence_layer=None) for one in trainings[3]]
    report = claims_report(CLAIMS, trainings)
    row = next(row for row in report["claims"] if row["name"] == "divergence_moves_earlier")
    assert row["n_seeds"] == 8 and row["by_seed"][3] is None
    assert row["p_for"] == sign_flip_p(np.array([value for value in row["by_seed"] if value is not None]))
    with pytest.raises(ValueError, match="no training"):
        claims_report(CLAIMS, {})


def test_a_finished_seed_is_not_trained_again(tmp_path: Path) -> None:
    trained: list[int] = []

    def train(seed: int) -> Sequence[Moment]:
        if seed == 2 and 2 not in trained:
            trained.append(seed)
            raise KeyboardInterrupt
        trained.append(seed)
        return as_claimed(seed)

    with pytest.raises(KeyboardInterrupt), open_store(tmp_path / "seeds.jsonl") as store:
        collect(store, "plan", range(4), train)
    with (tmp_path / "seeds.jsonl").open("ab") as file:
        file.write(b'{"key": "plan-2", "mom')  # what a kill leaves
    with open_store(tmp_path / "seeds.jsonl") as store:
        found = collect(store, "plan", range(4), train)
        assert trained == [0, 1, 2, 2, 3]
        assert found == {seed: as_claimed(seed) for seed in range(4)}
        collect(store, "another plan", range(1), train)
    assert trained[-1] == 0, "what another plan measured is no substitute"


def test_key_tokens_are_action_and_target() -> None:
    world, config = load_judge_world(), load_judge_config()
    tokenizer = train_tokenizer(world, config.judging.question, ("safe", "unsafe"))
    requests = requests_of(world)
    for sample in world_data(world).test[:200:10]:
        request = requests[sample.sample_id]
        assert request.unsafe == sample.unsafe
        ids = tokenizer.encode(sample.prompt, add_special_tokens=False)
        chosen = is_key_token(sample, request, world, tokenizer)
        text = "".join(str(tokenizer.decode([one])) for one, is_key in zip(ids, chosen, strict=True) if is_key)
        assert text.replace(" ", "").lower() == world.actions[request.deed][request.action] + request.target
    with pytest.raises(ValueError, match="does not stand"):
        is_key_token(replace(sample, prompt="Nothing"), request, world, tokenizer)


def test_a_row_budget_counts_inputs_and_no_seconds() -> None:
    budget = RowBudget(10)
    margin_of = budget.counted(lambda ids: ids.sum(dim=1).float())
    assert margin_of(torch.ones((7, 2), dtype=torch.long)).tolist() == [2.0] * 7
    assert (budget.spent, budget.left) == (7, 3)


def test_measuring_a_training_changes_no_weight_and_measures_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small real training with and without the meter, dropout on; accuracies are those of the judge's own scoring."""
    for name, value in (("SCORED", 48), ("PAIRS", 4), ("ATTRIBUTED", 2), ("ATTRIBUTION_ROWS", 64)):
        monkeypatch.setattr(measuring, name, value)
    world, config = load_judge_world(), load_judge_config()
    tokenizer = train_tokenizer(world, config.judging.question, ("safe", "unsafe"))
    template = JudgeTemplate.of(tokenizer, config.judging.question, "safe", "unsafe")
    whole = world_data(world)
    data = SafetyData(whole.train[:48], whole.validation, whole.test)
    settings = config.training.model_copy(update={"num_epochs": 2, "keep": "last", "batch_size": 16})

    def trained(meters: list[EpochMeter], name: str) -> Judge:
        model = new_model(world.architecture, tokenizer, world.seed)
        model.config.attention_dropout = 0.1
        freeze(model, settings.freeze_layers)
        judge = Judge(model, tokenizer, template, settings.max_length)
        train, validation = (LabelledPrompts(judge.encode(part), labels(part)) for part in (data.train, data.test[:16]))
        train_judge(model, template, train, validation, settings, config.evaluation, tmp_path / name, meters)
        return judge

    meter = EpochMeter(MomentMeter(data, world, tokenizer, template, settings.max_length))
    watched, alone = trained([meter], "watched"), trained([], "alone")
    others = alone.model.state_dict()
    assert all(torch.equal(weight, others[name]) for name, weight in watched.model.state_dict().items())

    assert [one.epoch for one in meter.moments] == [0, 1, 2]
    last, before = meter.moments[-1], meter.moments[0]
    chosen = measuring.both_halves(data.validation, 48)
    assert len(chosen) == 48 and sum(labels(chosen)) == 24
    margins = score(watched.model, watched.encode(chosen), template, 16)
    assert last.accuracy == np.mean((margins > 0) == labels(chosen))
    assert last.n_frozen_blocks == settings.freeze_layers
    assert last.written[0] == pytest.approx(before.written[0], rel=1e-6), "a frozen block writes what it wrote"
    assert last.written[-1] != before.written[-1]
    assert len(last.attributions) == 2 and all(sum(one) == pytest.approx(1, abs=1e-4) for one in last.attributions)
    assert Moment(**last.as_record()) == last


def test_the_page_says_each_verdict_and_reads_no_markup() -> None:
    claims = [replace(CLAIMS[0], document="<script>alert(1)</script> moves"), *CLAIMS[1:]]
    result = claims_report(claims, {seed: as_claimed(seed) for seed in range(8)})
    page = claims_page(result, "python src/test_interpretation_claims.py", {"world": "0" * 64})
    html = page_html(page)
    assert "<script>alert" not in html and "12 held" in page.sentence
    assert len(page.figure.data) == len(CLAIMS) * 9, "a line a seed and the median"
    drawn = next(trace for trace in page.figure.data if trace.mode == "lines+markers")
    assert np.asarray(drawn.y)[-1] == pytest.approx(2.5), "the median divergence layer at the end"
