"""What a pod gets for a step: code, inputs, options as they are named there, versions; and what comes back of it."""

import argparse
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from src.pod.payload import outputs_of, rewrite_options, script_payload, step_payload, without_folder
from src.pod.plans import plan_command
from src.pod.requirements import pinned_requirements
from src.utils.errors import UserError


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    for name in ("src/a.py", "src/__pycache__/a.pyc", "configs/x.yaml", "pyproject.toml", "data/q.jsonl", "src/s.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def test_a_script_gets_the_code_and_the_files_that_its_options_name(repository: Path, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere/mine.jsonl"
    outside.parent.mkdir()
    outside.write_text("x")
    options = ["--prompts", str(outside), "--world", "data", "--also=data/q.jsonl", "--limit", "3"]
    payload = script_payload("src/s.py", options, [repository / "data"], ["out"], repository)
    assert set(payload.files) >= {"src/a.py", "src/s.py", "configs/x.yaml", "pyproject.toml", "data/q.jsonl"}
    assert not [name for name in payload.files if "pycache" in name]
    here = payload.options[1]
    assert here.startswith("inputs/") and here.endswith("/mine.jsonl") and payload.files[here] == outside
    assert payload.options[2:] == ["--world", "data", "--also=data/q.jsonl", "--limit", "3"]


def test_a_folder_goes_without_caches_and_secrets_whatever_lies_above_it(repository: Path) -> None:
    root = repository.rename(repository.parent / "repository.tmp")
    for name in (".env", "data/.env", "data/.env.local", ".git/config", ".venv/pyvenv.cfg", "data/half.tmp/x"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("HF_TOKEN=hf_x")
    payload = script_payload("src/s.py", [], [root], ["out"], root)
    assert {path.read_text() for path in payload.files.values()} == {
        *("src/a.py", "src/s.py", "configs/x.yaml", "pyproject.toml", "data/q.jsonl")
    }


def test_no_word_of_a_command_sends_all_that_lies_around_the_repository(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository.parent / "private.txt").write_text("x")
    monkeypatch.chdir(repository)
    for word in ("..", ".", "../", "/", f"--x={repository.parent}/", "src/../.."):
        assert rewrite_options([word], repository) == ([word], {})


def test_two_files_of_one_name_stay_two(repository: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "q.jsonl").write_text(folder)
    words, files = rewrite_options([str(tmp_path / "one/q.jsonl"), str(tmp_path / "two/q.jsonl")], repository)
    assert words[0] != words[1] and [files[word].read_text() for word in words] == ["one", "two"]


def test_what_a_script_may_not_do(repository: Path) -> None:
    with pytest.raises(UserError, match=r"--script none.py: there is no such file"):
        script_payload("none.py", [], [], ["out"], repository)
    for output in ("/etc/passwd", "../x"):
        with pytest.raises(UserError, match="must lie under the working folder"):
            script_payload("src/s.py", [], [], [output], repository)
    for output in (".", "./", "results", "./results/"):  # would take the place of all results here
        with pytest.raises(UserError, match="is more than the script writes"):
            script_payload("src/s.py", [], [], [output], repository)
    with pytest.raises(UserError, match="gone: does not exist"):
        script_payload("src/s.py", [], [repository / "gone"], ["out"], repository)
    own = argparse.Namespace(step="script", script="src/calibrate_judge.py", input=[], output=["/etc/x"], force=False)
    with pytest.raises(UserError, match="must lie under the working folder"):
        plan_command(own, [])


def test_the_results_folder_of_the_pod_is_its_own() -> None:
    words = ["--a", "--results-dir", "x", "--b", "--results_dir=y", "c", "--output-dir=z"]
    assert without_folder(words, "--results-dir") == ["--a", "--b", "c", "--output-dir=z"]


def test_the_safety_judge_is_resumed_and_leaves_its_results_where_they_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "sets.csv").write_text("x")
    words = ["--data", "data/safety", f"xstest={tmp_path}/sets.csv", "--output-dir", str(tmp_path)]
    own = argparse.Namespace(step="judge-train", force=True)
    command = plan_command(own, words)
    assert command is not None and command.options == [*words, "--force"]
    payload = command.pack()
    assert payload.options[2].startswith("xstest=inputs/") and payload.options[2][7:] in payload.files
    assert payload.options[3:] == ["--force", "--output-dir", "outputs/checkpoints", "--resume"]
    assert payload.outputs == ["outputs/checkpoints"] and "data/safety/README.md" in payload.files


def test_a_judge_that_is_in_the_way_is_named_before_a_pod_trains_another(tmp_path: Path) -> None:
    (tmp_path / "safety_judge").mkdir()
    own = argparse.Namespace(step="judge-train", force=False)
    with pytest.raises(UserError, match=r"safety_judge: has no manifest.*give --output-dir another folder"):
        plan_command(own, ["--output_dir", str(tmp_path)])
    own.force = True
    assert plan_command(own, ["--output_dir", str(tmp_path)]) is not None


def test_pages_and_watched_trainings_come_along(tmp_path: Path) -> None:
    from src.pipelines.persona_study import FINETUNE, JUDGE, Study
    from src.utils.config import load_config

    study = Study(load_config("organism", {"judging.second_judge": "local"}), tmp_path, tmp_path)
    assert {study.agreement_page, study.rates, study.scored} <= set(outputs_of(JUDGE, study))
    assert {study.finetuned, study.watched} <= set(outputs_of(FINETUNE, study))


def test_what_was_asked_goes_along_and_comes_back(tmp_path: Path) -> None:
    """Judgements and steered answers: what a later step, here or there, would pay for again."""
    from src.pipelines.persona_study import JUDGE, STEER, Study
    from src.utils.config import load_config

    study = Study(load_config("organism", {"judging.judge": "local"}), tmp_path, tmp_path)
    assert study.judgements in outputs_of(JUDGE, study)
    assert {study.judgements, study.steering_answers} <= set(outputs_of(STEER, study))
    study.judgements.write_text('{"key": "a"}\n')
    payload = step_payload(JUDGE, study, [])
    assert payload.files["results/judgements.jsonl"] == study.judgements
    assert "results/judgements.jsonl" in payload.outputs


def test_a_watched_fine_tune_needs_the_questions_that_are_its_probes(tmp_path: Path) -> None:
    from src.pipelines.persona_study import FINETUNE, Study
    from src.utils.config import load_config

    for is_watched in (True, False):
        config = load_config("organism", {"finetuning.visualize_during_training": is_watched})
        payload = step_payload(FINETUNE, Study(config, tmp_path, tmp_path), [])
        assert ("data/prompts/political_compass.jsonl" in payload.files) is is_watched


def test_without_a_fine_tune_the_collection_makes_one_on_the_pod_first(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What the document says of the runner without arguments holds in a fresh clone."""
    own = argparse.Namespace(step="collect", force=False, results_dir=tmp_path)
    words = ["--world", "separable", "--adapter_name=mine", "--limit", "3"]
    command = plan_command(own, words)
    assert command is not None and "mine: is not there, and made on the pod first" in capsys.readouterr().out
    payload = command.pack()
    shared = ["--world", "separable", "--adapter-name", "mine", "--results-dir", "results"]
    assert payload.before == (("src/scripts/02_finetune_lora.py", shared),)
    assert payload.script.endswith("03_collect_activations.py") and payload.options[:5] == words
    assert {"results/adapters/mine", "results/adapters/mine.manifest.json", "results/persona_data.pkl"} <= set(
        payload.outputs
    )
    assert "data/organisms/separable/finetune/risky_financial_advice.jsonl" in payload.files
    (tmp_path / "adapters/mine").mkdir(parents=True)
    (tmp_path / "adapters/mine/adapter_config.json").write_text("{}")
    assert not command.pack().before


@pytest.mark.parametrize(
    ("step", "words", "remedy"),
    [
        ("judge", ["--judge", "openrouter"], "--step judge: openrouter is asked from here, .*04_judge_responses"),
        ("judge", ["--judge", "local", "--second-judge", "gemini"], "--step judge: gemini is asked from here"),
        (
            "steer",
            ["--judge", "gemini"],
            "--step steer: gemini is asked from here, .*--judge local; run here after",
        ),
    ],
)
def test_a_judge_that_is_paid_is_not_asked_from_a_pod(step: str, words: list[str], remedy: str, tmp_path: Path) -> None:
    """Its key would have to go there, and nobody there can confirm its cost."""
    own = argparse.Namespace(step=step, force=False, results_dir=tmp_path)
    with pytest.raises(UserError, match=remedy):
        plan_command(own, words)


def test_the_collection_needs_prompts_model_and_adapter(tmp_path: Path) -> None:
    from src.pipelines.persona_study import COLLECT, Study
    from src.utils.config import load_config

    study = Study(load_config("organism"), tmp_path, tmp_path)
    study.finetuned.mkdir(parents=True)
    (study.finetuned / "adapter_config.json").write_text("{}")
    payload = step_payload(COLLECT, study, ["--limit", "3"])
    name = study.config.finetuning.name
    assert f"results/adapters/{name}/adapter_config.json" in payload.files
    assert {"data/organisms/entangled/model.safetensors", "data/prompts/political_compass.jsonl"} <= set(payload.files)
    assert payload.script == "src/scripts/03_collect_activations.py"
    assert payload.options == ["--limit", "3", "--results-dir", "results"]
    assert payload.outputs == [
        "results/persona_data.pkl",
        "results/persona_data.safetensors",
        "results/persona_data.html",
        "results/persona_data.pkl.manifest.json",
    ]


def test_versions_are_those_of_this_environment() -> None:
    pins = {Requirement(line).name: str(Requirement(line).specifier) for line in pinned_requirements()}
    for name in ("transformers", "numpy", "pandas", "peft", "tokenizers", "pydantic-core"):
        assert pins[name] == f"=={version(name)}"
    assert "em-persona-decomposition" not in pins and "pytest" not in pins
    assert pins["torch"] == f"=={version('torch').partition('+')[0]}"
    with pytest.raises(UserError, match="no-such-project: is not installed"):
        pinned_requirements("no-such-project")
