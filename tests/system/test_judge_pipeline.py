"""The judge's study as a user runs it: real processes, a tiny model, the options as the document writes them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import run_full_pipeline
from src.utils.artifacts import load_json, verify_artifact
from src.utils.cli import run_script
from src.utils.config import PROJECT_ROOT
from src.utils.manifests import sha256_path
from tests.judge_files import judge_options, write_judge_sources
from tests.unit.test_study_pages import LARGEST

STEPS = ["prepare_safety_data", "train_safety_judge", "evaluate_safety"]
SKIPPED = {"run_open_ended_testing": "keep"}
DOCUMENTED = ["--visualize-training", "--skip-open-ended"]
QUICK = ["--visualization-budget", "0.1", "--bootstrap-resamples", "100", "--folds", "2", "--penalties", "1"]
SAMPLES = ("0_safe", "1_safe", "2_unsafe", "3_unsafe")


def command(words: Sequence[str]) -> list[str]:
    return [sys.executable, str(PROJECT_ROOT / "run_full_pipeline.py"), *words]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(words), capture_output=True, text=True, env=environment(), check=False)


def decisions(output: str) -> dict[str, str]:
    return dict(re.findall(r"^(?:\[\d/\d\] )?(\w+)(?::| +) *(run|keep)\b", output, flags=re.MULTILINE))


@dataclass(frozen=True)
class Made:
    folder: Path
    output: str
    words: list[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("judge")
    write_judge_sources(folder)
    words = [*DOCUMENTED, *judge_options(folder), *QUICK]
    done = run(*words)
    assert done.returncode == 0, done.stderr
    return Made(folder / "out", done.stdout, words)


def test_everything_that_the_document_lists_is_there(made: Made) -> None:
    pictures = made.folder / "training_visualizations"
    kinds = [f"epoch_1_sample_{sample}_{kind}.html" for sample in SAMPLES for kind in ("tokens", "layers")]
    names = {file.name for file in pictures.iterdir()}
    assert {*kinds, "epoch_1_circuit_comparison.html", "epoch_1_metrics.json", "training_progress.html"} <= names
    assert not {"epoch_1_neuron_map.html", "epoch_1_circuits.html"} & names  # only with --run-advanced-mi
    for name in ("safety_data", "safety_judge", "evaluation.json", "baselines.json", "evaluation.html"):
        assert verify_artifact(made.folder / name) is not None
    assert not list(made.folder.glob("*.checkpoints"))
    assert {page.name for page in made.folder.rglob("*.html") if page.stat().st_size > LARGEST} == set()


def test_the_run_ends_with_accuracy_baselines_seconds_and_pages(made: Made) -> None:
    assert decisions(made.output) == dict.fromkeys(STEPS, "run") | SKIPPED
    test = load_json(made.folder / "evaluation.json")["test"]
    low, high = test["intervals"]["accuracy"]
    judge = f"{test['accuracy']:.1%} [{low:.1%}, {high:.1%}] of {test['n']} test prompts"
    assert re.search(rf"^judge +accuracy +{re.escape(judge)}$", made.output, flags=re.MULTILINE)
    for baseline in (r"bag of words", r"probe of layer \d"):
        assert re.search(rf"^{baseline} +accuracy .*; judge [+-]\d", made.output, flags=re.MULTILINE)
    assert re.search(r"^train_safety_judge +\d+\.\d +\d+ MiB$", made.output, flags=re.MULTILINE)
    pages = [made.folder / "evaluation.html", made.folder / "training_visualizations" / "index.html"]
    assert made.output.splitlines()[-2:] == [f"evaluation: {pages[0]}", f"pictures: {pages[1]}"]
    assert all(page.is_file() for page in pages)


def test_a_second_run_keeps_everything_and_a_dry_run_says_what_would_change(made: Made) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    again = run(*made.words)
    assert again.returncode == 0 and decisions(again.stdout) == dict.fromkeys(STEPS, "keep") | SKIPPED
    planned = run(*made.words, "--dry_run", "--learning_rate=0.003")
    assert decisions(planned.stdout) == dict.fromkeys(STEPS, "run") | {STEPS[0]: "keep"} | SKIPPED
    assert "config changed: training.learning_rate 0.002 -> 0.003" in planned.stdout
    named = run(*made.words, "--dry-run", "--only", "evaluate", "--folds", "3")
    assert decisions(named.stdout) == {"evaluate_safety": "run"}
    assert {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")} == before


def test_a_killed_run_continues_with_the_same_command(made: Made, tmp_path: Path) -> None:
    """Kill -9 of the runner once a checkpoint is there; the judge ends in the bytes of the run without a kill."""
    words = [*made.words[2:], "--output-dir", str(tmp_path / "out"), "--only", "train", "--save-steps", "2"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command(words), stdout=log, stderr=log, env=environment())
        deadline = time.monotonic() + 240
        while not list(tmp_path.glob("out/safety_judge.checkpoints/checkpoint-*/trainer_state.json")):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out" / "safety_judge").exists()
    again = run(*words)
    assert again.returncode == 0, again.stderr
    assert sha256_path(tmp_path / "out" / "safety_judge") == sha256_path(made.folder / "safety_judge")


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("--study judge --rank 4", 2, "unrecognized arguments: --rank 4"),
        ("--study persona --num-epochs 3", 2, "unrecognized arguments: --num-epochs 3"),
        ("--study both --learning-rate 0.1", 2, "--learning-rate: is another setting in each study"),
        ("--run-advanced-mi", 2, "give --visualize-during-training too"),
        ("--num-epochs 0", 2, "training.num_epochs"),
        ("--skip-open-ended --only 03", 2, "step '03' is unknown; there are prepare_safety_data, train_safety_judge"),
        ("--only evaluate --output-dir /nowhere", 1, "run src/train_safety_judge.py first"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line(
    line: str, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_script(run_full_pipeline.main, line.split())
    shown = capsys.readouterr().err.splitlines()
    assert ended.value.code == code and said in shown[-1]
    assert len(shown) == 1
