"""The watcher: it changes nothing, it draws what and when it should, and it says what it measured."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, TrainerCallback

from src.utils.artifacts import verify_artifact
from src.utils.errors import UserError
from src.utils.safety_judge.freezing import freeze
from src.utils.watching import callback
from src.utils.watching.callback import VISUALIZATIONS
from src.utils.watching.epoch_metrics import EpochMetrics, load_metrics
from src.utils.watching.probe_set import choose_probes
from src.utils.watching.safety_watcher import SafetyWatcher
from src.utils.watching.schedule import Schedule
from tests.tiny_models import tokenizer
from tests.watched_training import (
    MAX_LENGTH,
    N_FROZEN,
    judge_model,
    judge_template,
    planted_samples,
    planted_words,
    same_weights,
    trained_judge,
    watcher,
)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, SafetyWatcher, Path]:
    folder = tmp_path_factory.mktemp("watched")
    chosen = watcher(folder, interval=2, run_advanced=True)
    model = trained_judge(judge_model(), folder / "work", [chosen])
    return model, chosen, folder / VISUALIZATIONS


def test_watching_leaves_the_final_weights_bit_identical(watched: Any, tmp_path: Path) -> None:
    model, chosen, _ = watched
    assert same_weights(model, trained_judge(judge_model(), tmp_path))
    assert not same_weights(model, judge_model()), "the training did something"
    assert all(picture.failure is None for record in chosen.records.values() for picture in record.pictures)


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
        (2.0, 8.0, [2, 2, 3.5, 2.5, 8]),
        (20.0, 100.0, [20, 20, *(0.95 * 50 * part / 7 for part in (1.75, 1.25, 4))]),  # half an epoch between them
        (20.0, 1.0, [20, 20, *(0.95 * 15 * part / 7 for part in (1.75, 1.25, 4))]),
        (1.0, 0.0, [1, 1, 1.75, 1.25, 4]),
        (0.0, 0.0, [0, 0, 0, 0, 0]),
    ],
)
def test_costly_pictures_together_get_half_an_epoch_or_fifteen_seconds(
    budget_seconds: float, epoch_seconds: float, expected: list[float], tmp_path: Path
) -> None:
    chosen = watcher(tmp_path, run_advanced=True, budget_seconds=budget_seconds)
    found = [chosen.seconds_for(picture, epoch_seconds) for picture in chosen.pictures]
    assert found == pytest.approx(expected)


def test_what_a_costly_picture_leaves_goes_to_the_next(watched: Any) -> None:
    _, chosen, _ = watched
    for record in chosen.records.values():
        spared = 0.0
        for picture, taken in zip(chosen.pictures, record.pictures, strict=False):
            own = chosen.seconds_for(picture, record.training_seconds)
            is_costly = picture.relative_budget > 1
            assert taken.budget_seconds == pytest.approx(own + is_costly * spared)
            spared = max(0.0, taken.budget_seconds - taken.seconds) if is_costly else spared


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

    small_watcher = partial(watcher, interval=1, validation=16, n_statistics=8)
    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        trained_judge(judge_model(), folder / "work", [small_watcher(folder), StopAfterFirst()], count=16)
    again = small_watcher(folder)
    trained_judge(judge_model(), folder / "work", [again], count=16)
    whole = small_watcher(tmp_path / "whole")
    trained_judge(judge_model(), tmp_path / "whole" / "work", [whole], count=16)

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


def test_the_planted_word_is_what_the_learned_judge_rests_on(tmp_path: Path) -> None:
    chosen = watcher(tmp_path, interval=8, n_statistics=32)
    chosen.pictures = chosen.pictures[:1]
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
