"""The command that a page or the dashboard shows: typed in again, it means the same run."""

import shlex
from pathlib import Path

import pytest

from src.pipelines.persona_folder import Study
from src.pipelines.persona_study import CLUSTER, FINETUNE, JUDGE, PersonaStep
from src.pipelines.step_command import command_of
from src.utils.cli import parse_arguments
from src.utils.config import PROJECT_ROOT


def study_of(step: PersonaStep, words: str) -> Study:
    parsed = parse_arguments("", step.keys, shlex.split(words))
    return Study(parsed.config, parsed.results_dir, parsed.plots_dir)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (JUDGE, "--judge openrouter --no-topic --second-judge gemini --max-cost 0.5 --reply-tokens 2000"),
        (JUDGE, "--world separable --results-dir results/other --judge local --judge-model 'a b/c'"),
        (FINETUNE, "--visualize-during-training --run-advanced-mi --no-use-rslora --layers 3 4"),
        (CLUSTER, "--cluster-counts 3 5 --profile qwen3_4b --memory 80gb --config configs/project_config.yaml"),
    ],
)
def test_the_command_means_the_same_run(step: PersonaStep, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT_ROOT)
    study = study_of(step, words)
    uv, run, python, script, *again = shlex.split(command_of(step, study))
    assert (uv, run, python, script) == ("uv", "run", "python", step.script)
    found = study_of(step, shlex.join(again))
    assert found.config.model_dump() == study.config.model_dump()
    assert found.config.memory == study.config.memory and found.results_dir.absolute() == study.results_dir.absolute()


def test_a_page_names_no_path_outside_the_repository(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("")
    study = study_of(FINETUNE, f"--results-dir {tmp_path} --data {tmp_path}/rows.jsonl --max-steps 2")
    assert str(tmp_path) in command_of(FINETUNE, study)
    shared = command_of(FINETUNE, study, names_paths=False)
    assert shared.endswith("--results-dir RESULTS_DIR --data DATA --max-steps 2") and str(tmp_path) not in shared
