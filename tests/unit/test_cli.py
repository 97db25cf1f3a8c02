"""What scripts make of their command line: spelling, help, paths typed by a user, and exit codes."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from src.pipelines.persona_study import CLUSTER, COLLECT, FINETUNE, STEPS
from src.utils.cli import (
    COMMON_OPTIONS,
    Arguments,
    common_parser,
    local_paths,
    option_name,
    options_of,
    parse_arguments,
    run_script,
    with_hyphens,
)
from src.utils.config import PROJECT_ROOT, load_config
from src.utils.errors import UserError


def parsed(*words: str, keys: Sequence[str] = COLLECT.keys) -> Arguments:
    return parse_arguments("A step.", keys, words)


def exit_code(main, *words: str) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        run_script(main, words)
    return caught.value.code


def test_hyphens_and_underscores_are_one() -> None:
    hyphens = parsed("--max-new-tokens", "5", "--base-model=some_model", "--results-dir=my_results")
    underscores = parsed("--max_new_tokens", "5", "--base_model=some_model", "--results_dir=my_results")
    assert hyphens.config == underscores.config
    assert hyphens.config.collection.max_new_tokens == 5
    assert hyphens.config.model.base == "some_model"  # the underscore of a value stays
    assert hyphens.results_dir == underscores.results_dir == Path("my_results")
    assert [with_hyphens(word) for word in ("--a_b=c_d", "--a_b", "a_b", "-a_b")] == [
        "--a-b=c_d",
        "--a-b",
        "a_b",
        "-a_b",
    ]


def test_the_command_line_has_the_last_word_and_says_so() -> None:
    arguments = parsed("--memory", "16gb", "--batch-size", "3", "--world", "separable")
    assert arguments.config.collection.batch_size == 3
    assert arguments.config.sources["collection.batch_size"] == "the command line"
    assert arguments.config.sources["model.world"] == "the command line"
    assert arguments.config.finetuning.name == "separable_risky_finance"
    assert parsed("--memory", "16gb").config.collection.batch_size == 256


def test_options_have_the_types_of_their_settings() -> None:
    words = ["--layers", "1", "2", "--target-modules", "q_proj", "--use-rslora", "--learning-rate", "1e-4"]
    settings = parsed(*words, "--method", "full", keys=FINETUNE.keys).config.finetuning
    assert (settings.layers, settings.target_modules, settings.use_rslora) == ([1, 2], ["q_proj"], True)
    assert (settings.learning_rate, settings.method) == (1e-4, "full")
    assert parsed("--no-use-rslora", keys=FINETUNE.keys).config.finetuning.use_rslora is False
    assert parsed("--full_finetuning", keys=FINETUNE.keys).config.finetuning.method == "full"


def test_nothing_given_is_the_configuration_as_it_stands() -> None:
    arguments = parsed()
    assert arguments.config == load_config()
    assert arguments.results_dir == PROJECT_ROOT / "results"
    assert arguments.plots_dir == PROJECT_ROOT / "cluster_plots"
    assert not arguments.force


def test_pictures_follow_the_results_unless_told_otherwise() -> None:
    assert parsed("--results-dir", "r").plots_dir == Path("r/cluster_plots")
    assert parsed("--results-dir", "r", "--plots-dir", "p").plots_dir == Path("p")


def test_help_shows_every_default_and_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed("--help", "--memory", "16gb")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "default 0.7, from configs/project_config.yaml" in text  # temperature
    assert "default 64, from configs/profiles/organism.yaml" in text  # max_new_tokens
    assert "default 256, from configs/profiles/organism.yaml (memory 16gb)" in text  # batch_size
    assert "default data/organisms/entangled, from configs/profiles/organism.yaml" in text
    assert "default 2 3 4, from" in text
    assert "evenly spread over the set; default none, from" in text  # limit, which no file sets
    for option in (*COMMON_OPTIONS, *(option_name(key) for key in COLLECT.keys)):
        assert option in text


def test_help_of_every_step_has_all_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    for step in STEPS:
        with pytest.raises(SystemExit):
            parsed("--help", keys=step.keys)
        text = capsys.readouterr().out
        assert all(option in text for option in options_of(step.keys)), step.name


def test_the_common_options_are_those_of_the_parser() -> None:
    actions = common_parser(add_help=False)._actions
    assert {name for action in actions for name in action.option_strings} == set(COMMON_OPTIONS)


def test_paths_from_where_the_user_stands_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "mine.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    config = parsed("--base-model", "model", "--prompts", "mine.jsonl", "data/prompts/not_here.jsonl").config
    assert config.model.base == str(tmp_path / "model")
    assert config.collection.prompts == [str(tmp_path / "mine.jsonl"), "data/prompts/not_here.jsonl"]
    assert parsed("--em-model", "Qwen/Qwen3-4B").config.model.em == "Qwen/Qwen3-4B"  # a hub name stays
    assert parsed("--adapter-name", "model").config.finetuning.name == "model"  # no path, though one is here
    assert local_paths("x" * 5000) == "x" * 5000


@pytest.mark.parametrize(
    "words", [["--unknown", "3"], ["--max-new-tokens"], ["--dtype", "int3"], ["--batch", "3"], ["stray"]]
)
def test_a_usage_error_is_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda arguments: parsed(*arguments) and None, *words) == 2
    assert "error: " in capsys.readouterr().err


def test_a_user_error_is_one_line_and_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(code: int):
        def main(arguments: Sequence[str]) -> None:
            raise UserError("results/x.pkl: cannot be\nwritten;  mend that", code)

        return main

    for code in (1, 2):
        assert exit_code(fail(code)) == code
        assert capsys.readouterr().err == "error: results/x.pkl: cannot be written; mend that\n"
    assert exit_code(lambda arguments: parsed("--profile", "qwen9") and None) == 2
    assert capsys.readouterr().err.startswith("error: profile 'qwen9' is unknown")
    assert exit_code(lambda arguments: parsed("--layer", "-1", keys=CLUSTER.keys) and None) == 2
    assert exit_code(lambda arguments: None) == 0
    assert exit_code(lambda arguments: 3) == 3


def test_ctrl_c_is_130_and_a_bug_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(arguments: Sequence[str]) -> None:
        raise KeyboardInterrupt

    def buggy(arguments: Sequence[str]) -> None:
        raise ZeroDivisionError

    assert exit_code(stopped) == 130
    assert "continues where it was" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        run_script(buggy, [])


def test_exit_codes_reach_the_shell() -> None:
    code = (
        "from src.utils.cli import run_script\nfrom src.utils.errors import UserError\n"
        "def main(arguments):\n    raise UserError(arguments[0], 2)\nrun_script(main)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, "no such thing"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", "error: no such thing\n")


def test_a_script_adds_options_of_its_own() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--dry-run", action="store_true")

    assert parse_arguments("", [], ["--dry_run"], add).own.dry_run
