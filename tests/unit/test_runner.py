"""Which steps run, with which options, and whose results are left alone."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from src.pipelines.persona_run import open_persona_run
from src.pipelines.persona_study import CLUSTER, COLLECT, FINETUNE, JUDGE, PICTURES, REPORT, STEER, STEPS, VERDICT
from src.pipelines.runner import Measured, accepted, choose_steps, decide, find_step, format_measured, plan
from src.pipelines.step_run import begin_step
from src.utils.artifacts import load_frame
from src.utils.cli import options_of
from src.utils.config import PROJECT_ROOT
from src.utils.errors import UserError
from src.utils.manifests import read_manifest
from tests.study_files import make, small_study, write_sources

NAMES = [step.name for step in STEPS]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_sources(tmp_path)
    return tmp_path


def words_for(folder: Path) -> list[str]:
    """The command line of `small_study`."""
    words = ["--base-model", str(folder / "organism"), "--data", str(folder / "rows.jsonl")]
    words += ["--prompts", str(folder / "questions.jsonl"), "--cluster-counts", "2", "3"]
    return [*words, "--results-dir", str(folder / "results")]


@pytest.mark.parametrize(
    "name",
    [
        "05_pca_and_clustering",
        "pca_and_clustering",
        "05",
        "05_pca_and_clustering.py",
        "src/scripts/05_pca_and_clustering.py",
    ],
)
def test_a_step_has_several_names(name: str) -> None:
    assert find_step(name) is CLUSTER


def test_pictures_are_named_by_their_script() -> None:
    assert find_step("clusters_visualizations") is find_step("clusters_visualizations.py") is PICTURES


@pytest.mark.parametrize("name", ["08", "", "judge", "04_judge", "/", ".py", "4"])
def test_an_unknown_step_names_those_that_are_known(name: str) -> None:
    with pytest.raises(UserError, match="is unknown; there are 01_generate_dataset, 02_finetune_lora, 02_") as caught:
        find_step(name)
    assert caught.value.exit_code == 2


def test_only_and_from() -> None:
    assert choose_steps([], None) == list(STEPS)
    assert choose_steps(["05", "02", "02"], None) == [FINETUNE, CLUSTER]  # their own order, once each
    assert choose_steps([], "04_judge_responses") == [JUDGE, CLUSTER, STEER, VERDICT, PICTURES]
    with pytest.raises(UserError, match="exclude each other"):
        choose_steps(["05"], "04")


def test_a_step_gets_the_options_that_it_knows_with_their_values() -> None:
    options = ["--rank", "4", "--layer", "3", "--cluster-counts", "3", "4", "--results-dir", "r", "--limit=40"]
    options += ["--no-use-rslora", "--em-model", "e", "--base-model=b", "--em-threshold", "60"]
    assert accepted(REPORT, options) == ["--results-dir", "r"]
    assert accepted(FINETUNE, options) == ["--rank", "4", "--results-dir", "r", "--no-use-rslora", "--base-model=b"]
    assert accepted(COLLECT, options) == ["--results-dir", "r", "--limit=40", "--em-model", "e", "--base-model=b"]
    assert accepted(JUDGE, options) == ["--results-dir", "r", "--limit=40", "--base-model=b", "--em-threshold", "60"]
    clustered = ["--layer", "3", "--cluster-counts", "3", "4", "--results-dir", "r", "--em-threshold", "60"]
    assert accepted(CLUSTER, options) == clustered
    steered = ["--results-dir", "r", "--em-model", "e", "--base-model=b", "--em-threshold", "60"]
    assert accepted(STEER, options) == steered  # neither --layer nor --limit: those are of other steps
    assert accepted(STEER, ["--coefficients", "-2", "1", "--steering-layer", "4", "--layers", "3"]) == [
        *("--coefficients", "-2", "1", "--steering-layer", "4")
    ]
    shared = ["--cluster-counts", "3", "4", "--results-dir", "r", "--em-model", "e", "--base-model=b"]
    shared += ["--em-threshold", "60"]
    assert accepted(PICTURES, options) == shared  # they show or leave out the training curve, and name both models
    assert accepted(REPORT, ["stray", "--rank", "1"]) == []
    assert accepted(FINETUNE, ["--full-finetuning", "--limit", "3"]) == ["--full-finetuning"]


def test_what_a_step_depends_on_reaches_its_script(folder: Path) -> None:
    """A step in its own process must come to the provenance that the runner decided with."""
    changes = {
        "model__em": str(folder / "organism"),
        "model__dtype": "float32",
        "finetuning__rank": 2,
        "collection__limit": 9,
        "judging__em_threshold": 60.0,
        "clustering__layer": 2,
    }
    words = [*words_for(folder), "--em-model", str(folder / "organism"), "--dtype", "float32", "--rank", "2"]
    words += ["--limit", "9", "--em-threshold", "60", "--layer", "2"]
    study = small_study(folder, **changes)
    for step in (REPORT, COLLECT, JUDGE, CLUSTER, PICTURES):
        run = begin_step(step, "", accepted(step, words))
        assert run is not None
        wanted = step.provenance(study)
        assert (run.provenance.config, run.provenance.inputs) == (wanted.config, wanted.inputs), step.name
        assert (run.provenance.seeds, run.provenance.world) == (wanted.seeds, wanted.world)
        make(step, study)
        assert begin_step(step, "", accepted(step, words)) is None  # now there is nothing to do
        assert begin_step(step, "", [*accepted(step, words), "--force"]) is not None


def test_every_setting_that_a_step_declares_is_an_option_of_its_script() -> None:
    for step in STEPS:
        names = {key.split(".")[1] for key in step.keys}
        for section, values in step.settings(small_study(Path("x")).config).items():
            missing = {name for name in values if name not in names}
            assert not missing, (step.name, section)


def test_upstream_is_what_the_inputs_say(folder: Path) -> None:
    """Changing what a step makes changes the inputs of exactly the steps that are said to read it."""
    study = small_study(folder)
    for step in STEPS:
        make(step, study)
    before = {step.name: dict(step.provenance(study).inputs) for step in STEPS}
    readers: dict[str, set[str]] = {name: set() for name in NAMES}
    for maker in STEPS:
        for path in [maker.artefact(study), *maker.companions(study)]:
            file = path / "training_log.jsonl" if path.is_dir() else path
            content = file.read_bytes()
            file.write_bytes(content + b" ")
            for step in STEPS:
                try:
                    is_read = step.provenance(study).inputs != before[step.name]
                except UserError as error:
                    assert "half-written or changed since" in error.message
                    is_read = True
                if is_read:
                    readers[step.name].add(maker.name)
            file.write_bytes(content)
    assert {step.name: {*step.reads, *step.also_reads(study)} for step in STEPS} == readers


def test_what_another_world_made_is_not_taken_for_input(folder: Path) -> None:
    study = small_study(folder)
    for step in STEPS:
        make(step, study)
    other = replace(study, config=study.config.model_copy(update={"profile": "qwen3_4b"}))
    for step in (COLLECT, JUDGE, CLUSTER, PICTURES):
        with pytest.raises(UserError, match="was made under profile organism"):
            step.provenance(other)


def test_a_dry_run_before_anything_is_made(folder: Path) -> None:
    study = small_study(folder)
    decisions = plan(STEPS, study, forced=False)
    assert all(decision.runs for decision in decisions)
    assert [decision.reason for decision in decisions] == [
        "not made yet",
        "not made yet",
        "not made yet",
        "reads what 02_finetune_lora makes",
        "reads what 03_collect_activations makes",
        "reads what 04_judge_responses makes",
        "reads what 03_collect_activations makes",
        "reads what 06_steer_personas makes",
        "reads what 07_decide_verdict makes",
    ]
    assert not (folder / "results").exists()
    with pytest.raises(UserError, match="run 03_collect_activations first"):
        plan([JUDGE], study, forced=False)


def test_force_runs_what_is_fresh(folder: Path) -> None:
    study = small_study(folder)
    make(REPORT, study)
    assert not decide(REPORT, study, forced=False).runs
    assert decide(REPORT, study, forced=True).reason == "forced"


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_results_of_another_profile_or_world_are_left_alone(step, folder: Path) -> None:
    study = small_study(folder)
    for earlier in STEPS:
        make(earlier, study)
    artefact = step.artefact(study)
    kept = read_manifest(artefact)
    # the same names, so that only the world tells them apart
    words = [*words_for(folder), "--adapter-name", "entangled_risky_finance", "--world", "separable"]
    with pytest.raises(UserError) as caught:
        begin_step(step, "", accepted(step, words))
    message = caught.value.message
    assert message.startswith(f"{artefact}: belongs to profile organism, world entangled, and this run is")
    assert "world separable" in message and "--results-dir" in message and "--force" in message
    assert read_manifest(artefact) == kept
    if not step.reads:
        assert begin_step(step, "", [*accepted(step, words), "--force"]) is not None
        return
    with pytest.raises(UserError, match="was made under profile organism, world entangled"):
        begin_step(step, "", [*accepted(step, words), "--force"])  # an input is never relabelled


def test_the_runner_refuses_before_it_runs_anything(folder: Path) -> None:
    study = small_study(folder)
    for step in STEPS[:4]:
        make(step, study)
    data = study.persona_data.read_bytes()
    ended = subprocess.run(
        [
            *(sys.executable, str(PROJECT_ROOT / "run_full_pipeline.py"), *words_for(folder)),
            *("--world", "separable", "--samples", "4"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1 and ended.stdout == ""
    assert ended.stderr.count("\n") == 1 and "belongs to profile organism, world entangled" in ended.stderr
    assert study.persona_data.read_bytes() == data
    assert load_frame(study.persona_data)["made_by"].tolist() == [COLLECT.name]


def test_more_clusters_than_answers_are_refused_before_any_is_collected(folder: Path) -> None:
    run = open_persona_run("", [*words_for(folder), "--samples", "3"])  # one question
    with pytest.raises(UserError, match="--cluster-counts 3: too many for 3 answers; choose counts below 3") as caught:
        run.check(STEPS)
    assert caught.value.exit_code == 2
    run.check([step for step in STEPS if step is not COLLECT])  # step 5 counts what there is
    open_persona_run("", [*words_for(folder), "--samples", "4"]).check(STEPS)


def test_pictures_are_named_where_there_are_some(folder: Path) -> None:
    run = open_persona_run("", words_for(folder))
    assert run.pages() == ""
    study = small_study(folder)
    for step in STEPS:
        make(step, study)
    assert run.pages() == f"pictures: {study.index}"


def test_measured_is_a_table_with_a_sum() -> None:
    lines = format_measured([Measured(REPORT, 1.5, 2**20 * 100), Measured(JUDGE, 2.0, 2**20 * 300)]).splitlines()
    assert lines[1].split() == ["01_generate_dataset", "1.5", "100", "MiB"]
    assert lines[-1].split() == ["all", "3.5", "300", "MiB"]
    assert format_measured([]).splitlines()[-1].split() == ["all", "0.0", "0", "MiB"]


def test_every_option_of_a_step_is_one_of_the_runner_or_ambiguous_there() -> None:
    """Options of the whole run reach the steps; those that mean several things are given to the step's own script."""
    from src.pipelines.persona_run import KEYS, SHARED_NAMES

    known = options_of(KEYS)
    for step in STEPS:
        ambiguous = {f"--{name.replace('_', '-')}" for name in SHARED_NAMES}
        assert options_of(step.keys) - known <= ambiguous, step.name
