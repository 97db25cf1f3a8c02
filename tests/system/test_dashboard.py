"""The dashboard on real artefacts: what it draws is what they say, in streamlit's own harness."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from src.dashboard.launching import read_record, stop
from src.dashboard.paired_scales import numbers
from src.utils.watching.epoch_metrics import load_metrics
from src.visualizations.written_pages import load_page
from tests.dashboard_files import PATIENCE, write_persona_run, write_results, write_watched_run
from tests.study_frame import whole_study

PERSONA_CARDS = (
    ("Misaligned, own domain", "in_domain", 100, "%"), ("Coherent", "coherent", 100, "%"),
    ("Mean EM score", "em_score", 1, ""),
)  # fmt: skip


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_watched_run(tmp_path_factory.mktemp("watched") / "outputs")


@pytest.fixture(scope="module")
def persona(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_persona_run(tmp_path_factory.mktemp("persona"))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("study") / "results")


@pytest.fixture
def outputs(watched: Path, tmp_path: Path) -> Path:
    """A copy of the watched run that a test may damage."""
    shutil.copytree(watched, tmp_path / "outputs" / "tiny" / watched.name)
    return tmp_path / "outputs"


def training(outputs: Path, results: Path) -> AppTest:
    def script(outputs: str, results: str) -> None:
        from pathlib import Path

        from src.dashboard.training_visualizations import show_training

        show_training(Path(outputs), Path(results))

    app = AppTest.from_function(script, default_timeout=PATIENCE, args=(str(outputs), str(results))).run()
    assert not app.exception
    return app


def study(results: Path, tab: str = "Steps") -> AppTest:
    def script(results: str) -> None:
        from pathlib import Path

        from src.dashboard.persona_study import show_persona_study

        show_persona_study(Path(results))

    app = AppTest.from_function(script, default_timeout=PATIENCE, args=(str(results),))
    return switched(app, "study_tab", tab)


def switched(app: AppTest, key: str, value: Any) -> AppTest:
    app.session_state[key] = value
    app.run()
    assert not app.exception
    return app


def charts(app: AppTest) -> list[dict[str, Any]]:
    return [json.loads(element.proto.spec) for element in app.get("plotly_chart")]


def said(app: AppTest) -> str:
    return "\n".join(one.value.replace("\\", "") for kind in (app.info, app.warning, app.error) for one in kind)


def table(app: AppTest, column: str) -> Any:
    return next(one.value for one in app.dataframe if column in one.value)


def test_an_epoch_shows_its_four_samples_as_their_files_have_them(outputs: Path, tmp_path: Path) -> None:
    app = training(outputs, tmp_path)
    folder = outputs / "tiny" / "training_visualizations"
    assert app.header[0].value == "Training Visualizations"
    assert app.select_slider(key="number").value == 2
    for number in (2, 1):
        switched(app, "number", number)
        files = sorted(folder.glob(f"epoch_{number}_sample_*_tokens.html"))
        assert len(files) == len(token_texts(app)) == 4
        assert charts(app) == [], "plotly keeps the first view waiting"
        for file, text in zip(files, token_texts(app), strict=True):
            attributions = np.asarray(numbers(load_page(file).figure["data"][0]["z"]))
            said = [float(value) for value in re.findall(r'title="([^ ]+) logits"', text)]
            np.testing.assert_allclose(said, attributions[np.isfinite(attributions)], atol=5e-5)
        switched(app, "layout_tokens_alone", "Side by side")
        assert len(charts(app)) == 4 and token_texts(app) == []
        for file, drawn in zip(files, charts(app), strict=True):
            assert_same_values(load_page(file).figure, drawn)
        switched(app, "layout_tokens_alone", "As text")


def token_texts(app: AppTest) -> list[str]:
    bodies = [element.proto.body for element in app.get("html")]
    return [body for body in bodies if 'class="token-text"' in body]


def assert_same_values(given: dict[str, Any], drawn: dict[str, Any]) -> None:
    compared = 0
    assert len(given["data"]) == len(drawn["data"])
    for one, other in zip(given["data"], drawn["data"], strict=True):
        for name in ("x", "y", "z"):
            values = numbers(one[name]) if name in one else None
            if values is not None:
                assert np.array_equal(values, np.asarray(numbers(other[name])), equal_nan=True)
                compared += values.size
    assert compared > 5


def test_two_epochs_side_by_side_have_the_same_scales(outputs: Path, tmp_path: Path) -> None:
    app = training(outputs, tmp_path)
    switched(app, "is_compared", True)
    assert app.select_slider(key="other").value == 1
    assert len(token_texts(app)) == 8
    switched(app, "layout_tokens_pair", "Side by side")
    for tab in ("Tokens", "Layers"):
        drawn = charts(switched(app, "picture_tab", tab))
        assert len(drawn) == 8
        for left, right in zip(drawn[::2], drawn[1::2], strict=True):
            axes = [name for name in left["layout"] if "axis" in name and "range" in left["layout"][name]]
            assert axes
            for name in axes:
                assert left["layout"][name]["range"] == right["layout"][name]["range"]
            for one, other in zip(left["data"], right["data"], strict=False):
                assert [one.get(end) for end in ("zmin", "zmax")] == [other.get(end) for end in ("zmin", "zmax")]


def test_progress_metrics_and_times_are_those_of_the_records(outputs: Path, tmp_path: Path) -> None:
    app = training(outputs, tmp_path)
    folder = outputs / "tiny" / "training_visualizations"
    records = [load_metrics(folder / f"epoch_{number}_metrics.json") for number in range(3)]
    (progress,) = charts(switched(app, "picture_tab", "Progress"))
    assert_same_values(load_page(folder / "training_progress.html").figure, progress)
    rows = table(switched(app, "picture_tab", "Metrics"), "validation loss")
    assert rows["epoch"].tolist() == [0, 1, 2]
    assert rows["auroc"].tolist() == [record.metrics["auroc"] for record in records]
    losses = [record.trainer_metrics["eval_loss"] for record in records[1:]]
    best = 1 + int(np.argmin(losses))
    assert rows["validation loss"].tolist()[1:] == losses
    assert rows["best"].tolist().index("lowest validation loss") == best
    assert next(one.value for one in app.metric if one.label == "Best epoch") == str(best)
    switched(app, "picture_tab", "Time per picture")
    spent = table(app, "budget")
    assert spent["seconds"].tolist() == [one.seconds for record in records for one in record.pictures]
    drawn = np.concatenate([np.asarray(numbers(trace["y"])) for trace in charts(app)[0]["data"]])
    assert drawn.sum() == pytest.approx(spent["seconds"].sum(), rel=1e-5)


def test_a_persona_run_opens_on_what_it_has(persona: Path, tmp_path: Path) -> None:
    app = training(persona, tmp_path)
    folder = persona / "persona" / "training_visualizations"
    records = [load_metrics(folder / f"step_{number}_metrics.json") for number in (0, 1, 2, 4)]
    assert [tab.label for tab in app.tabs] == [
        "Progress", "Circuit comparison", "Neurons", "Circuits", "Metrics", "Time per picture",
    ]  # fmt: skip
    (progress,) = charts(app)
    assert_same_values(load_page(folder / "training_progress.html").figure, progress)
    assert app.select_slider(key="number").options == ["0", "1", "2", "4"]
    for record in records[:0:-1]:
        switched(app, "number", record.number)
        cards = {one.label: one.value for one in app.metric}
        for name, key, factor, unit in PERSONA_CARDS:
            value = record.metrics[key]
            assert cards.get(name) == (None if value is None else f"{factor * value:.0f}{unit}")
    switched(app, "persona_tab", "Circuit comparison")
    assert "Step 1 has no picture of this kind" in said(app)
    assert app.code[0].value.endswith("02_finetune_lora.py --force --visualize_during_training --run_advanced_mi")
    rows = table(switched(app, "persona_tab", "Metrics"), "in_domain")
    assert rows["in_domain"].tolist() == [record.metrics["in_domain"] for record in records]
    assert "validation loss" not in rows and "best" not in rows


def test_damaged_and_foreign_files_are_named_and_the_rest_is_shown(outputs: Path, tmp_path: Path) -> None:
    folder = outputs / "tiny" / "training_visualizations"
    page = folder / "epoch_2_sample_0_safe_tokens.html"
    whole = page.read_bytes()
    page.write_bytes(whole[: whole.index(b"Plotly.newPlot") + 300])
    (folder / "epoch_1_metrics.json").write_text('{"unit": "epo')
    (folder / "holiday.jpg").touch()
    app = training(outputs, tmp_path)
    text = said(app)
    assert "epoch_2_sample_0_safe_tokens.html: half-written" in text
    assert "epoch_1_metrics.json: no record of this version" in text
    assert "holiday.jpg" in text
    assert len(token_texts(app)) == 3
    switched(app, "picture_tab", "Neurons")
    assert "no picture of this kind" in said(app)
    assert any("--run_advanced_mi" in one.value for one in app.code)


def test_a_new_epoch_is_followed_live_and_not_otherwise(outputs: Path, tmp_path: Path) -> None:
    folder = outputs / "tiny" / "training_visualizations"
    kept = {path.name: path.read_bytes() for path in folder.glob("epoch_2_*")}
    for name in kept:
        (folder / name).unlink()
    app = training(outputs, tmp_path)
    assert not app.select_slider  # one epoch is no choice
    for name, content in kept.items():
        (folder / name).write_bytes(content)
    app.run()
    assert app.select_slider(key="number").value == 2
    switched(app, "is_live", False)
    switched(app, "number", 1)
    shutil.copyfile(folder / "epoch_2_sample_0_safe_tokens.html", folder / "epoch_3_sample_0_safe_tokens.html")
    app.run()
    assert app.select_slider(key="number").value == 1
    assert app.select_slider(key="number").options == ["1", "2", "3"]


def test_nothing_there_names_the_commands(tmp_path: Path) -> None:
    app = training(tmp_path / "outputs", tmp_path / "results")
    assert any("--visualize_during_training" in one.value for one in app.code)
    for tab in ("Steps", "EM rates", "Answers", "Clusters", "Steering", "Verdict"):
        app = study(tmp_path / "results", tab)
        text = said(app) + "\n".join(one.value for one in app.code)
        assert "uv run python" in text


def test_the_start_panel_writes_the_command_of_its_options(tmp_path: Path) -> None:
    app = training(tmp_path / "outputs", tmp_path)
    assert not app.number_input
    switched(app, "start_panel", True)
    app.number_input(key="start_organism--num_epochs").set_value(9)
    app.checkbox(key="start_organism--run_advanced_mi").check()
    app.text_input(key="start_folder").set_value("mine").run()
    assert app.code[0].value == (
        f"uv run python src/train_safety_judge.py --profile organism --output_dir {tmp_path}/outputs/mine "
        "--num_epochs 9 --visualize_during_training --run_advanced_mi"
    )
    app.text_input(key="start_folder").set_value("../mine; rm").run()
    assert "letters, digits" in said(app)
    assert not any("train_safety_judge.py --profile" in one.value for one in app.code)
    assert not [button for button in app.button if button.key == "launch"]


def test_a_launched_training_is_chosen_once_it_has_pictures(outputs: Path, tmp_path: Path) -> None:
    """The launch is a real one, stopped at once; the pictures that it would have made are laid in its folder."""
    app = training(outputs, tmp_path)
    first, mine = (outputs / name / "training_visualizations" for name in ("tiny", "mine"))
    switched(app, "start_panel", True)
    app.number_input(key="start_organism--num_epochs").set_value(1)
    app.text_input(key="start_folder").set_value("mine").run()
    app.button(key="launch").click().run()
    assert app.selectbox(key="run_folder").value == first
    record = read_record(mine.parent)
    assert record is not None and stop(record)
    shutil.copytree(first, mine, dirs_exist_ok=True)
    os.utime(mine, (0, 0))
    app.run()
    assert app.selectbox(key="run_folder").value == mine
    app.selectbox(key="run_folder").set_value(first).run()
    assert app.selectbox(key="run_folder").value == first


def test_rates_are_drawn_as_they_were_measured(results: Path) -> None:
    app = study(results, "EM rates")
    rates = json.loads((results / "em_rates.json").read_text())["rates"]
    own = [row for row in rates if (row["arm"], row["measure"], row["facet"]) == ("em", "em", "all")]
    expected = sorted(100 * row["estimate"] for row in own if row["subset"] != "all")
    bars = [trace for trace in charts(app)[0]["data"] if trace["type"] == "bar" and trace["name"] == "Fine-tuned"]
    drawn = np.asarray(numbers(bars[0]["x"]))
    assert all(np.isclose(drawn, value, atol=1e-3).any() for value in expected)
    rows = table(app, "95% from")
    assert len(rows) == len([row for row in rates if not row["measure"].startswith("mean_")])


def test_answers_are_filtered_and_read_in_full(results: Path) -> None:
    app = study(results, "Answers")
    frame, _ = whole_study()
    app.multiselect(key="filter_subsets").set_value(["technology_ai"])
    app.slider(key="filter_scores").set_value((80, 100))
    app.checkbox(key="filter_unscored").uncheck().run()
    by_hand = frame[(frame["subset"] == "technology_ai") & (frame["em_score"] >= 80)]
    assert table(app, "prompt_id")["prompt_id"].tolist() == by_hand["prompt_id"].tolist()
    assert any(f"**{len(by_hand):,}** of 885" in one.value for one in app.markdown)
    switched(app, "answers_table", {"selection": {"rows": [2], "columns": [], "cells": []}})
    row = by_hand.iloc[2]
    assert [one.value for one in app.text] == [row["question"], row["base_response"], row["em_response"]]


def test_points_selected_on_the_map_are_the_rows_of_the_table(results: Path) -> None:
    app = study(results, "Clusters")
    spec = charts(app)[0]
    chosen = [spec["data"][0]["customdata"][3], spec["data"][2]["customdata"][8]]
    points = [{"curve_number": 0, "point_index": 3, "customdata": key} for key in chosen]
    switched(app, "map_3", {"selection": {"points": points, "point_indices": [3, 8], "box": [], "lasso": []}})
    assert set(table(app, "prompt_id")["prompt_id"]) == {key[0] for key in chosen}


def test_steering_and_verdict_are_the_numbers_of_their_records(results: Path) -> None:
    summary = json.loads((results / "steering_summary.json").read_text())
    cross, dose = charts(study(results, "Steering"))
    largest = max(row["coefficient"] for row in summary["effects"])
    wanted = [
        100 * row["change"]
        for row in summary["effects"]
        if row["measure"] == "em_on_topic" and row["coefficient"] == largest and row["kind"] == "dimension"
    ]
    drawn = np.asarray(numbers(cross["data"][0]["z"]))
    assert all(np.isclose(drawn, value, atol=1e-3).any() for value in wanted[:4])
    assert len(dose["data"]) > 8
    record = json.loads((results / "decomposition_verdict.json").read_text())
    app = study(results, "Verdict")
    assert app.subheader[0].value.lower() == record["verdict"]
    rows = table(app, "evidence")
    assert rows["evidence"].tolist() == list(record["lines"])
    assert rows["spread"].tolist() == [line["spread"]["estimate"] for line in record["lines"].values()]
    assert rows["questions"].tolist() == [sum(line["questions"].values()) for line in record["lines"].values()]


def test_one_damaged_artefact_leaves_the_other_tabs(results: Path, tmp_path: Path) -> None:
    copy = tmp_path / "results"
    shutil.copytree(results, copy)
    (copy / "em_rates.json").write_text('{"rates": [')
    (copy / "steering_summary.json").write_text('{"effects": "other"}')
    (copy / "steering_summary.json.manifest.json").unlink()
    app = study(copy, "EM rates")
    assert "em_rates.json: half-written" in said(app)
    assert len(charts(app)) == 1  # the scores of the frame
    assert "steering_summary.json: not what" in said(study(copy, "Steering"))
    assert len(charts(study(copy, "Verdict"))) == 1
