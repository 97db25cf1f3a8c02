"""The folder of a watched training: which pictures of which epoch, the best epoch, and what cannot be read."""

import os
from pathlib import Path
from typing import Any

import pytest

from src.dashboard.run_tables import metrics_table, picture_times
from src.dashboard.watched_runs import (
    best_number,
    current_run,
    find_runs,
    folder_state,
    read_run,
)
from src.utils.watching.epoch_metrics import Convergence, EpochMetrics, PictureRecord, save_metrics


def record(number: int, loss: float | None = None, auroc: float | None = None, **changes: Any) -> EpochMetrics:
    found: dict[str, Any] = {
        "unit": "epoch", "number": number, "step": 4 * number, "is_visualised": True, "training_seconds": 1.5,
        "watching_seconds": 0.25, "metrics": {"auroc": auroc},
        "trainer_metrics": {} if loss is None else {"eval_loss": loss},
    }  # fmt: skip
    return EpochMetrics.model_validate(found | changes)


def picture(**changes: Any) -> PictureRecord:
    found: dict[str, Any] = {
        "name": "token_attribution", "pages": [], "seconds": 0.5, "budget_seconds": 2.0, "peak_memory_bytes": 5 * 2**20,
        "memory_raised_bytes": 3 * 2**20,
    }  # fmt: skip
    return PictureRecord.model_validate(found | changes)


def test_files_are_found_by_kind_epoch_and_sample(tmp_path: Path) -> None:
    names = [
        f"epoch_10_sample_{i}_{label}_{kind}.html"
        for i, label in ((2, "unsafe"), (0, "safe"), (11, "safe"))
        for kind in ("tokens", "layers")
    ]
    names += ["epoch_2_circuit_comparison.html", "epoch_10_neuron_map.html", "epoch_10_circuits.html"]
    names += ["training_progress.html", "training_progress.html.manifest.json", "index.html", "plotly.min.js"]
    names += ["epoch_10_values.safetensors", "notes.txt", "epoch_x_circuits.html", ".epoch_11_circuits.html.1-0.tmp"]
    for name in names:
        (tmp_path / name).touch()
    run = read_run(tmp_path)
    assert run.unit == "epoch"
    assert run.numbers == [2, 10]
    assert [(one.sample, one.label) for one in run.of("tokens", 10)] == [(0, "safe"), (2, "unsafe"), (11, "safe")]
    assert [one.path.name for one in run.of("neuron_map", 10)] == ["epoch_10_neuron_map.html"]
    assert [one.caption for one in run.of("circuits", 10)] == [""]
    assert run.of("circuits", 2) == ()
    assert run.has_progress
    assert run.foreign == ["epoch_x_circuits.html", "notes.txt"]


def test_a_damaged_record_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    for number in (0, 1, 2, 3):
        save_metrics(record(number, loss=1 / (number + 1)), tmp_path)
    whole = (tmp_path / "epoch_2_metrics.json").read_bytes()
    (tmp_path / "epoch_2_metrics.json").write_bytes(whole[:50])
    (tmp_path / "epoch_4_metrics.json").write_text('{"accuracy": 1}')
    run = read_run(tmp_path)
    assert [one.number for one in run.records] == [0, 1, 3]
    assert len(run.problems) == 2
    assert "epoch_2_metrics.json" in run.problems[0]
    assert "epoch_4_metrics.json" in run.problems[1]
    (tmp_path / "epoch_2_metrics.json").write_bytes(whole)
    assert [one.number for one in read_run(tmp_path).records] == [0, 1, 2, 3]


def test_nothing_there_is_a_run_without_anything(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        run = read_run(folder)
        assert (run.numbers, run.records, run.problems, run.foreign) == ([], [], [], [])


def test_the_best_epoch_is_of_the_lowest_loss_and_never_the_baseline() -> None:
    records = [record(0, 0.1, 0.99), record(1, 0.9, 0.8), record(2, 0.4, 0.7), record(3, 0.5, 0.9)]
    assert best_number(records) == (2, "lowest validation loss")
    without_loss = [one.model_copy(update={"trainer_metrics": {}}) for one in records]
    assert best_number(without_loss) == (3, "highest AUROC")
    assert best_number([record(0, 0.1)]) is None
    assert best_number([record(1)]) is None
    table = metrics_table(records, "epoch")
    assert table["best"].tolist() == ["", "", "lowest validation loss", ""]
    assert table["validation loss"].tolist() == [0.1, 0.9, 0.4, 0.5]
    assert table["auroc"].tolist() == [0.99, 0.8, 0.7, 0.9]
    assert table["step"].tolist() == [0, 4, 8, 12]


def test_times_say_what_was_cut_and_what_failed() -> None:
    passed = Convergence(sample="sample_0", delta=0.0, tolerance=0.1, has_passed=True, error=0.0, points=8)
    failed = passed.model_copy(update={"has_passed": False})
    pictures = [
        picture(convergence=[passed, failed]),
        picture(name="layer_activation", failure="out of memory", sub_sampled="half"),
    ]
    table = picture_times([record(1, pictures=pictures)], "epoch")
    assert table["seconds"].tolist() == [0.5, 0.5]
    assert table["memory raised (MiB)"].tolist() == [3.0, 3.0]
    assert table["converged"].tolist() == ["1 of 2", ""]
    assert table["failure"].tolist() == ["", "out of memory"]
    assert table["cut"].tolist() == ["", "half"]
    assert picture_times([], "epoch").empty


def test_runs_are_found_at_three_depths_the_last_changed_first(tmp_path: Path) -> None:
    folders = [tmp_path / "outputs" / "b", tmp_path / "outputs" / "a", tmp_path / "results" / "adapters" / "c"]
    for age, folder in enumerate(folders):
        path = folder / "training_visualizations"
        path.mkdir(parents=True)
        os.utime(path, (1000 - age, 1000 - age))
    (tmp_path / "outputs" / "training_visualizations").touch()  # a file of that name
    found = find_runs([tmp_path / "outputs", tmp_path / "results", tmp_path / "absent"])
    assert [path.parent for path in found] == folders


def test_a_new_file_changes_the_state_of_a_folder(tmp_path: Path) -> None:
    before = folder_state(tmp_path)
    assert folder_state(tmp_path) == before
    save_metrics(record(1), tmp_path)
    assert folder_state(tmp_path) != before
    assert folder_state(tmp_path / "absent") == (-1, -1)


@pytest.mark.parametrize("count", [1000])
def test_a_thousand_epochs_are_all_there_and_read_once(tmp_path: Path, count: int) -> None:
    text = record(1, loss=0.5).model_dump_json()
    for number in range(1, count + 1):
        own = text.replace('"number":1', f'"number":{number}').replace('"eval_loss":0.5', f'"eval_loss":{1 / number}')
        (tmp_path / f"epoch_{number}_metrics.json").write_text(own)
        (tmp_path / f"epoch_{number}_circuits.html").touch()
    run = read_run(tmp_path)
    assert list(run.numbers) == [one.number for one in run.records] == list(range(1, count + 1))
    assert best_number(run.records) == (count, "lowest validation loss")
    again = read_run(tmp_path)
    assert all(one is other for one, other in zip(run.records, again.records, strict=True))


def test_a_run_is_looked_through_again_only_where_its_folder_has_changed(tmp_path: Path) -> None:
    folder = tmp_path / "training_visualizations"
    assert current_run(folder).numbers == []
    folder.mkdir()
    (folder / "epoch_1_sample_0_safe_tokens.html").touch()
    first = current_run(folder)
    assert first.numbers == [1] and current_run(folder) is first
    (folder / "epoch_2_sample_0_safe_tokens.html").touch()
    assert current_run(folder).numbers == [1, 2]
    (folder / "exported").mkdir()
    assert current_run(folder).foreign == []
