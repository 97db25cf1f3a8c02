"""The watcher: it changes nothing, it draws what and when it should, and nothing that fails in it ends a training."""

import json
import pickle
import random
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, TrainerCallback

from src.utils.artifacts import verify_artifact
from src.utils.errors import UserError
from src.utils.safety_judge.freezing import blocks_of, freeze
from src.utils.watching import callback
from src.utils.watching.callback import VISUALIZATIONS
from src.utils.watching.epoch_metrics import EpochMetrics, load_metrics
from src.utils.watching.pictures import Budget, Measurement, Moment
from src.utils.watching.probe_set import choose_probes
from src.utils.watching.safety_watcher import SafetyWatcher
from src.utils.watching.schedule import Schedule
from src.utils.watching.undisturbed import InterferenceError, undisturbed
from src.visualizations.figure_page import FigurePage
from tests.tiny_models import tokenizer
from tests.watched_training import (
    MAX_LENGTH,
    N_FROZEN,
    judge_model,
    judge_template,
    planted_samples,
    planted_words,
    trained_judge,
    watcher,
)


class HostilePicture:
    """Does everything that a picture must not do and get away with, then fails in the way that it is told to."""

    name = "hostile"
    is_advanced = False
    relative_budget = 1.0

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def file_names(self, number: int) -> list[str]:
        return [f"epoch_{number}_hostile.html"]

    def measure(self, moment: Moment, budget: Budget, baseline: Measurement | None) -> Measurement:
        random.random()
        np.random.rand(3)
        model = moment.model.train()
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        ids = torch.randint(3, 100, (2, 9))
        model(input_ids=ids, labels=ids).loss.backward()
        next(model.children()).register_forward_hook(lambda module, args, output: None)
        parameters[0].requires_grad_(False)
        if self.error:
            raise self.error
        return Measurement({"drawn": torch.rand(3).numpy()})

    def shared(self, history: Mapping[int, Measurement]) -> Mapping[str, float]:
        return {}

    def draw(self, number: int, history: Mapping[int, Measurement]) -> list[FigurePage]:
        raise AssertionError("never drawn")


def numpy_state() -> bytes:
    return pickle.dumps(np.random.get_state())


def same_weights(one: PreTrainedModel, two: PreTrainedModel) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return trained_judge(judge_model(), tmp_path_factory.mktemp("unwatched"))


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, SafetyWatcher, Path]:
    folder = tmp_path_factory.mktemp("watched")
    chosen = watcher(folder, interval=2, run_advanced=True)
    model = trained_judge(judge_model(), folder / "work", [chosen])
    return model, chosen, folder / VISUALIZATIONS


def test_watching_leaves_the_final_weights_bit_identical(unwatched: PreTrainedModel, watched: Any) -> None:
    model, chosen, _ = watched
    assert same_weights(model, unwatched)
    assert not same_weights(model, judge_model()), "the training did something"
    assert all(picture.failure is None for record in chosen.records.values() for picture in record.pictures)


@pytest.mark.parametrize("error", [None, RuntimeError("a bug"), torch.OutOfMemoryError("CUDA out of memory. Tried")])
def test_pictures_that_meddle_and_fail_change_nothing_and_say_why(
    error: Exception | None, unwatched: PreTrainedModel, tmp_path: Path
) -> None:
    chosen = watcher(tmp_path, interval=2)
    chosen.pictures = [HostilePicture(error)]
    chosen.measured = {"hostile": {}}
    model = trained_judge(judge_model(), tmp_path / "work", [chosen])
    assert same_weights(model, unwatched)
    page = (tmp_path / VISUALIZATIONS / "epoch_2_hostile.html").read_text(encoding="utf-8")
    reason = chosen.records[2].pictures[0].failure
    assert reason is not None and reason.split("(")[0] in page
    expected = {None: "AssertionError: never drawn", RuntimeError: "RuntimeError: a bug"}
    assert reason == expected.get(type(error) if error else None, reason)
    assert ("out of memory" in reason) is isinstance(error, torch.OutOfMemoryError)


def test_the_same_meddling_unguarded_would_be_seen(unwatched: PreTrainedModel, tmp_path: Path) -> None:
    """The control of the two tests above: without the guard a hostile picture does change the weights."""

    class Unguarded(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            HostilePicture().measure(Moment("epoch", 1, state.global_step, kwargs["model"]), Budget(1), None)

    assert not same_weights(trained_judge(judge_model(), tmp_path, [Unguarded()]), unwatched)


def test_everything_is_put_back_by_the_guard() -> None:
    model = judge_model().train()
    blocks = list(blocks_of(model))
    blocks[0].eval()
    parameter = next(p for p in model.parameters() if p.requires_grad)
    gradient = torch.ones_like(parameter)
    parameter.grad = gradient
    seen: list[int] = []
    kept = model.register_forward_hook(lambda module, args, output: seen.append(1))
    states = torch.get_rng_state(), numpy_state(), random.getstate()
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(KeyError), undisturbed(model):
        assert not model.training and parameter.grad is None
        HostilePicture(KeyError("x")).measure(Moment("epoch", 1, 1, model), Budget(1), None)
    assert model.training and not blocks[0].training and blocks[1].training
    assert parameter.grad is gradient and bool((gradient == 1).all())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert numpy_state() == states[1]
    assert not any(module._forward_hooks for module in model.children())
    seen.clear()
    model(torch.tensor([[5, 6]]))
    assert seen == [1]
    kept.remove()


def test_a_picture_that_writes_to_the_weights_ends_the_training(tmp_path: Path) -> None:
    class Writing(HostilePicture):
        def measure(self, moment: Moment, budget: Budget, baseline: Measurement | None) -> Measurement:
            with torch.no_grad():
                moment.model.get_parameter("model.norm.weight").mul_(1.001)
            return Measurement({})

    chosen = watcher(tmp_path)
    chosen.pictures = [Writing()]
    chosen.measured = {"hostile": {}}
    with pytest.raises(InterferenceError, match=r"model\.norm\.weight"):
        trained_judge(judge_model(), tmp_path / "work", [chosen])


def test_the_folder_holds_the_documents_names_and_nothing_else(watched: Any) -> None:
    _, _, folder = watched
    pages = {
        f"epoch_{epoch}_sample_{index}_{label}_{kind}.html"
        for epoch in (1, 2)
        for index, label in enumerate(("safe", "safe", "unsafe", "unsafe"))
        for kind in ("tokens", "layers")
    }
    pages |= {
        f"epoch_{epoch}_{kind}.html" for epoch in (1, 2) for kind in ("circuit_comparison", "neuron_map", "circuits")
    }
    records = {f"epoch_{epoch}_{what}" for epoch in (0, 1, 2) for what in ("metrics.json", "values.safetensors")}
    shared = {"training_progress.html", "training_progress.html.manifest.json", "index.html", "plotly.min.js"}
    assert {path.name for path in folder.iterdir()} == pages | records | shared
    manifest = verify_artifact(folder / "training_progress.html")
    assert manifest is not None and pages <= set(manifest.files)
    index = (folder / "index.html").read_text(encoding="utf-8")
    assert all(name in index for name in pages)


def test_records_say_what_was_measured_and_what_it_cost(watched: Any) -> None:
    _, chosen, folder = watched
    for number in (0, 1, 2):
        record = load_metrics(folder / f"epoch_{number}_metrics.json")
        assert record == chosen.records[number]
        assert (record.number, record.step) == (number, 4 * number) and record.is_visualised is (number > 0)
        assert record.metrics["n"] == 16 and 0 <= (record.metrics["auroc"] or 0) <= 1
        assert [picture.name for picture in record.pictures] == [
            *("token_attribution", "layer_activation"),
            *("circuit_comparison", "neuron_map", "circuits"),
        ]
        assert all(picture.seconds > 0 and picture.peak_memory_bytes > 1e6 for picture in record.pictures)
        assert len(record.pictures[0].convergence) == 4
        assert ("eval_auroc" in record.trainer_metrics) is (number > 0)
        assert (record.training_loss is None) is (number == 0)
    assert chosen.records[2].pictures[1].facts["moved_frozen_layers"] == []
    assert chosen.records[2].pictures[1].facts["n_frozen"] == N_FROZEN + 1


def test_the_comparison_is_drawn_always_and_the_advanced_pictures_where_they_are_asked_for(tmp_path: Path) -> None:
    names = [picture.name for picture in watcher(tmp_path).pictures]
    assert names == ["token_attribution", "layer_activation", "circuit_comparison"]
    advanced = watcher(tmp_path, run_advanced=True)
    assert [picture.name for picture in advanced.pictures] == [*names, "neuron_map", "circuits"]


@pytest.mark.parametrize(
    ("budget_seconds", "epoch_seconds", "expected"),
    [
        (2.0, 8.0, [2, 2, 3, 5, 7]),  # together 15 s
        (20.0, 100.0, [20, 20, 10, 50 / 3, 70 / 3]),  # half an epoch between them
        (20.0, 1.0, [20, 20, 3, 5, 7]),
        (1.0, 0.0, [1, 1, 1.5, 2.5, 3.5]),
        (0.0, 0.0, [0, 0, 0, 0, 0]),
    ],
)
def test_costly_pictures_together_get_half_an_epoch_or_fifteen_seconds(
    budget_seconds: float, epoch_seconds: float, expected: list[float], tmp_path: Path
) -> None:
    chosen = watcher(tmp_path, run_advanced=True, budget_seconds=budget_seconds)
    found = [chosen.seconds_for(picture, epoch_seconds) for picture in chosen.pictures]
    assert found == pytest.approx(expected)


def test_records_hold_the_headline_numbers_of_the_causal_pictures(watched: Any) -> None:
    _, chosen, _ = watched
    comparison, neurons, circuits = (picture.facts for picture in chosen.records[2].pictures[2:])
    assert neurons["rows"] == comparison["rows"] and "claimed" not in neurons, "too few rows to test any neuron"
    assert {"learned_layers", "probe_auroc", "pairs", "gap", "divergence"} <= comparison.keys()
    assert {"pairs", "has_gap", "gap", "change_since_start"} <= circuits.keys()
    assert set(circuits["change_since_start"]) == {"total", "noise", "beyond_noise"}


def test_statistics_are_whole_pairs_of_equal_length_and_then_single_samples() -> None:
    pairs = planted_samples(24, seed=5)
    alone = [replace(one, sample_id=f"x{one.sample_id}", pair_id=None) for one in planted_samples(24, seed=6)]
    longer = [
        replace(one, sample_id=f"l{one.sample_id}", pair_id=f"l{one.pair_id}", prompt=one.prompt + " so" * one.unsafe)
        for one in planted_samples(8, seed=7)
    ]
    chosen = choose_probes([*alone, *longer, *pairs], tokenizer(), judge_template(), MAX_LENGTH, 32).statistics
    samples = [probe.sample for probe in chosen]
    assert len({sample.sample_id for sample in samples}) == len(samples) == 32
    assert sum(sample.unsafe for sample in samples) == 16
    whole = {pair for pair in {one.pair_id for one in pairs} if sum(one.pair_id == pair for one in samples) == 2}
    assert whole == {one.pair_id for one in pairs}, "all 12 pairs that can be patched"
    few = choose_probes([*alone, *longer, *pairs], tokenizer(), judge_template(), MAX_LENGTH, 8).statistics
    assert len(few) == 8 and len({probe.sample.pair_id for probe in few}) == 4


def test_frozen_layers_stay_at_exactly_zero_and_what_learns_does_not(watched: Any) -> None:
    _, chosen, _ = watched
    for number in (1, 2):
        values = chosen.measured["layer_activation"][number].values
        for index in range(4):
            relative = values[f"sample_{index}/relative"]
            assert (relative[: N_FROZEN + 1] == 0).all() and (relative[N_FROZEN + 1 :] > 0).all()


def test_a_frozen_layer_that_moves_is_reported(tmp_path: Path) -> None:
    class Fault(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            with torch.no_grad():
                kwargs["model"].get_parameter("model.layers.0.mlp.down_proj.weight").add_(1e-4)

    chosen = watcher(tmp_path, budget_seconds=0.0)
    trained_judge(judge_model(), tmp_path / "work", [Fault(), chosen], num_epochs=1)
    assert chosen.records[1].pictures[1].facts["moved_frozen_layers"] == [1]
    page = (tmp_path / VISUALIZATIONS / "epoch_1_sample_0_safe_layers.html").read_text(encoding="utf-8")
    assert "SOMETHING IS WRONG" in page


def test_a_stopped_training_goes_on_with_its_baseline_and_earlier_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs in one go and in two runs give the same records but for the seconds."""
    monkeypatch.setattr(callback, "COSTLY_SECONDS", 600.0)  # nothing is cut, however busy the machine

    class StopAfterFirst(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        trained_judge(judge_model(), folder / "work", [watcher(folder, interval=1), StopAfterFirst()])
    again = watcher(folder, interval=1)
    trained_judge(judge_model(), folder / "work", [again])
    whole = watcher(tmp_path / "whole", interval=1)
    trained_judge(judge_model(), tmp_path / "whole" / "work", [whole])

    def told(record: EpochMetrics) -> dict[str, Any]:
        kept = record.model_dump(exclude={"training_seconds", "watching_seconds", "pictures", "trainer_metrics"})
        pictures = [
            picture.model_dump(include={"name", "facts", "convergence", "failure"}) for picture in record.pictures
        ]
        return json.loads(json.dumps(kept | {"pictures": pictures}))

    assert list(again.records) == list(whole.records) == [0, 1, 2]
    assert [told(record) for record in again.records.values()] == [told(record) for record in whole.records.values()]
    one, two = (chosen.measured["layer_activation"] for chosen in (again, whole))
    for number in (0, 1, 2):
        assert one[number].values.keys() == two[number].values.keys()
        for key, array in one[number].values.items():
            np.testing.assert_array_equal(array, two[number].values[key])


def test_a_new_training_clears_the_pages_of_the_last_one_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / VISUALIZATIONS
    folder.mkdir()
    for name in ("epoch_7_metrics.json", "epoch_9_sample_0_safe_tokens.html", "notes.txt", "epoch_x.html"):
        (folder / name).write_text("old", encoding="utf-8")
    trained_judge(judge_model(), tmp_path / "work", [watcher(tmp_path, budget_seconds=0.0)], num_epochs=1)
    names = {path.name for path in folder.iterdir()}
    assert {"notes.txt", "epoch_x.html"} <= names
    assert not {"epoch_7_metrics.json", "epoch_9_sample_0_safe_tokens.html"} & names


def test_a_folder_that_cannot_be_written_to_is_found_at_once(tmp_path: Path) -> None:
    (tmp_path / VISUALIZATIONS).write_text("a file", encoding="utf-8")
    with pytest.raises(UserError, match=f"{VISUALIZATIONS}.*cannot be written"):
        watcher(tmp_path)


def test_a_folder_that_is_lost_on_the_way_does_not_end_the_training(
    unwatched: PreTrainedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Lose(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                shutil.rmtree(tmp_path / VISUALIZATIONS)
                (tmp_path / VISUALIZATIONS).write_text("in the way", encoding="utf-8")

    model = trained_judge(judge_model(), tmp_path / "work", [Lose(), watcher(tmp_path, budget_seconds=0.0)])
    assert same_weights(model, unwatched)
    assert "the training goes on" in caplog.text


def test_the_planted_word_is_what_the_learned_judge_rests_on(tmp_path: Path) -> None:
    chosen = watcher(tmp_path, interval=8, n_statistics=32)
    model = judge_model(n_frozen=0, dropout=0.0)
    trained_judge(model, tmp_path / "work", [chosen], count=64, num_epochs=8, freeze_layers=0, learning_rate=2e-3)
    freeze(model, 0)
    last = chosen.measured["token_attribution"][8]
    shares = []
    for index, probe in enumerate(chosen.probes.shown):
        values = last.values[f"sample_{index}/attribution"]
        place = [token.strip() for token in probe.tokens].index(planted_words()[int(probe.sample.unsafe)])
        towards = 1 if probe.sample.unsafe else -1
        shares.append(towards * values[place] / np.abs(values).sum())
    before = chosen.records[0].metrics["auroc"], chosen.records[8].metrics["auroc"]
    assert before[1] == 1.0 and (before[0] or 1.0) < 0.9
    assert np.mean(shares) > 0.3, shares


def test_the_schedule_is_one_the_multiples_and_the_last() -> None:
    schedule = Schedule("epoch", 3)
    assert [n for n in range(1, 12) if schedule.is_due(n, is_last=n == 11)] == [1, 3, 6, 9, 11]
    with pytest.raises(UserError, match="visualization_interval 0"):
        Schedule("epoch", 0)
