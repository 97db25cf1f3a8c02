"""What makes each step of the judge's study stale, and that its scripts and its runner mean the same."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from src.evaluate_safety import main as evaluate_main
from src.pipelines.judge_run import KEYS, OPTIONS, open_judge_run
from src.pipelines.judge_study import DATA, EVALUATE, JUDGE_STEPS, OPEN_ENDED, TRAIN, JudgeStudy, attacked_with
from src.pipelines.judge_summary import judge_pages, summarise_judge
from src.pipelines.runner import accepted, decide, plan
from src.pipelines.step import Step
from src.prepare_safety_data import main as prepare_main
from src.train_safety_judge import main as train_main
from src.utils.artifacts import save_artifact, save_folder, save_json
from src.utils.config import PROJECT_ROOT
from src.utils.errors import UserError
from src.utils.manifests import read_manifest
from src.utils.open_ended.options import DATA as ATTACK_DATA
from src.utils.open_ended.options import options_parser
from src.utils.safety_judge.data_report import report
from src.utils.safety_judge.samples import load_splits
from src.utils.safety_judge.settings import load_judge_config
from src.utils.watching.epoch_metrics import EpochMetrics, save_metrics
from tests.judge_files import judge_options, write_judge_sources

EPOCHS = 4


def small_study(folder: Path, **changes: object) -> JudgeStudy:
    """The study of a data folder and a base model; changes are config keys with two underscores for the dot."""
    given = {"model.base": str(folder / "base"), "data.data": [str(folder / "data")], "training.num_epochs": EPOCHS}
    overrides = given | {key.replace("__", "."): value for key, value in changes.items()}
    return JudgeStudy(load_judge_config("organism", overrides), folder / "out", folder / "open_ended")


def make(step: Step, study: JudgeStudy) -> None:
    """Write what a step writes, with its provenance as of now; other settings or inputs give other content."""
    provenance = step.provenance(study)
    mark = json.dumps([provenance.config, provenance.seeds, provenance.inputs], sort_keys=True)

    def fill(target: Path) -> None:
        (target / "mark.json").write_text(mark)

    if step is DATA:
        save_folder(study.data, fill, provenance)
    elif step is TRAIN:
        save_folder(study.judge, fill, provenance)
        watching = study.config.watching
        if watching.visualize_during_training:
            draw(study, watching.visualization_interval)
    elif step is EVALUATE:
        if study.has_baselines:
            save_json({"mark": mark}, study.baselines, provenance)
        save_json({"mark": mark}, study.evaluation, provenance)
        save_artifact(
            study.evaluation_page, {study.evaluation_page: lambda file: file.write_text(mark)}, provenance, {}
        )
    else:
        make_open_ended(study)


def make_open_ended(study: JudgeStudy) -> None:
    """What the script writes: its own settings beside those that it was given."""
    declared = OPEN_ENDED.provenance(study)
    provenance = replace(declared, config={**declared.config, "retrain": True})
    for path in (*OPEN_ENDED.companions(study), OPEN_ENDED.artefact(study)):
        save_artifact(path, {path: lambda file: file.write_text(repr(declared.config))}, provenance, {})


def draw(study: JudgeStudy, interval: int) -> None:
    """The records of a watched training and its page with the training's provenance."""
    for number in range(EPOCHS + 1):
        is_due = number in (1, EPOCHS) or bool(number and number % interval == 0)
        record = EpochMetrics(
            unit="epoch", number=number, step=number, is_visualised=is_due, training_seconds=1, watching_seconds=1
        )
        study.pictures.mkdir(parents=True, exist_ok=True)
        save_metrics(record, study.pictures)
        if is_due and study.config.watching.run_advanced_mi:
            (study.pictures / f"epoch_{number}_neuron_map.html").write_text("")
    page = study.pictures / "training_progress.html"
    save_artifact(page, {page: lambda file: file.write_text("")}, TRAIN.provenance(study), {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole study, all steps made."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("{}\n")
    for step in JUDGE_STEPS:
        make(step, small_study(tmp_path))
    return tmp_path


def remade(study: JudgeStudy) -> list[str]:
    """The steps that a run makes, deciding each after those before it have run."""
    done = []
    for step in JUDGE_STEPS:
        if decide(step, study, forced=False).runs:
            make(step, study)
            done.append(step.name)
    return done


def stale(study: JudgeStudy) -> list[str]:
    return [decision.step.name for decision in plan(JUDGE_STEPS, study, forced=False) if decision.runs]


BEHIND_TRAINING, LAST = [TRAIN, EVALUATE, OPEN_ENDED], [EVALUATE]


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        ({}, []),
        ({"training__learning_rate": 2e-3}, BEHIND_TRAINING),
        ({"training__num_epochs": 9}, BEHIND_TRAINING),
        ({"training__seed": 3}, BEHIND_TRAINING),
        ({"judging__unsafe_word": "harmful"}, BEHIND_TRAINING),
        ({"evaluation__folds": 3}, LAST),
        ({"evaluation__eval_seed": 3}, LAST),
        ({"training__save_steps": 5, "evaluation__eval_batch_size": 3}, []),  # operational
        ({"watching__visualization_interval": 1}, []),  # nothing is watched
    ],
)
def test_a_changed_setting_makes_its_step_and_those_behind_it_stale(
    change: dict[str, object], steps: Sequence[Step], folder: Path
) -> None:
    study = small_study(folder, **change)
    assert stale(study) == [step.name for step in steps] == remade(study)
    assert stale(study) == remade(study) == []


def test_changed_data_make_everything_stale_and_a_changed_base_the_training(folder: Path) -> None:
    (folder / "base" / "config.json").write_text('{"other": 1}')
    assert remade(small_study(folder)) == [step.name for step in BEHIND_TRAINING]
    (folder / "data" / "train.jsonl").write_text("{}\n{}\n")
    assert stale(small_study(folder)) == [step.name for step in JUDGE_STEPS]


def test_baselines_that_are_missing_are_a_reason_only_where_they_are_wanted(folder: Path) -> None:
    study = small_study(folder)
    study.baselines.unlink()
    assert stale(study) == [EVALUATE.name]
    assert stale(replace(study, has_baselines=False)) == []


WATCH = {"watching__visualize_during_training": True}


def test_pictures_are_missing_where_a_training_was_not_watched_as_asked(folder: Path) -> None:
    """A watched run is kept while its pictures are those of this training, at the epochs and of the kinds wanted."""

    def reason(**changes: object) -> str:
        return decide(TRAIN, small_study(folder, **WATCH | changes), forced=False).reason

    assert reason() == "training_progress.html: not made yet"
    make(TRAIN, small_study(folder, **WATCH))
    assert reason() == reason(watching__visualization_interval=4) == "up to date"
    assert reason(watching__visualization_interval=1) == "no pictures of epoch 2"
    assert reason(watching__run_advanced_mi=True) == "no advanced pictures of epoch 1"
    make(TRAIN, small_study(folder, **WATCH, watching__run_advanced_mi=True))
    assert reason(watching__run_advanced_mi=True) == "up to date"
    make(TRAIN, small_study(folder, training__seed=5))  # trained again, unwatched: the pictures are of another
    assert reason(training__seed=5) == "training_progress.html: seeds changed: training 0 -> 5"


def test_a_stopped_training_is_resumed_unless_all_is_made_again(folder: Path) -> None:
    study = small_study(folder, **WATCH)
    assert TRAIN.given(study, False) == ("--visualize-during-training", "--resume")
    assert TRAIN.given(study, True) == ("--visualize-during-training", "--force")
    assert TRAIN.given(small_study(folder), False) == ("--resume",)
    assert EVALUATE.given(study, True) == ("--force",)


def test_open_ended_testing_follows_the_judge_and_its_own_options(folder: Path) -> None:
    """Settings of the script that the runner does not give, such as `retrain`, make nothing stale."""
    study = small_study(folder)
    assert stale(replace(study, iterations=3)) == [OPEN_ENDED.name]
    assert stale(replace(study, has_open_ended=False, iterations=3)) == []
    OPEN_ENDED.companions(study)[0].unlink()
    assert decide(OPEN_ENDED, study, forced=False).reason == "open_ended.json: not made yet"
    skipped = decide(OPEN_ENDED, replace(study, has_open_ended=False), forced=True)
    assert (skipped.runs, skipped.reason) == (False, "not needed: --skip-open-ended")
    words = OPEN_ENDED.given(replace(study, iterations=3), False)
    assert words == (
        *("--checkpoint", str(folder / "out"), "--output-dir", str(folder / "open_ended")),
        *("--data", "natural", "--iterations", "3", "--seed", "0"),
    )
    assert accepted(OPEN_ENDED, ["--batch-size", "8", "--num-epochs", "3"]) == []  # of the training
    assert attacked_with(load_judge_config("organism")) == "judge_world"
    parsed = options_parser("").parse_args(words)  # with the script's own parser
    assert (parsed.iterations, parsed.data, parsed.output_dir) == (3, "natural", folder / "open_ended")
    assert OPEN_ENDED.given(study, True)[0] == "--force"
    assert OPEN_ENDED.inputs(study).keys() == {"safety_judge", ATTACK_DATA["natural"]}


def test_a_dry_run_before_anything_is_made(folder: Path) -> None:
    study = replace(small_study(folder), output_dir=folder / "new")
    assert [decision.reason for decision in plan(JUDGE_STEPS, study, forced=False)] == [
        "not made yet",
        "not made yet",
        "reads what train_safety_judge makes",
        "reads what train_safety_judge makes",
    ]
    with pytest.raises(UserError, match=r"run src/train_safety_judge\.py first"):
        plan([EVALUATE], study, forced=False)
    assert not study.output_dir.exists()


def test_every_option_of_a_step_is_one_of_the_runner() -> None:
    for step in JUDGE_STEPS:
        assert step.options - {"--resume"} <= OPTIONS, step.name
        assert (PROJECT_ROOT / step.script).is_file() and Path(step.script).stem == step.name
    assert accepted(EVALUATE, ["--num-epochs", "3", "--folds=3", "--no-baselines", "--output-dir", "x"]) == [
        *("--folds=3", "--no-baselines", "--output-dir", "x")
    ]
    assert accepted(TRAIN, ["--visualize-training", "--no-gradient-checkpointing"]) == ["--no-gradient-checkpointing"]


def test_what_the_runner_decides_with_is_what_the_scripts_write(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The three scripts, really run on a tiny model: afterwards nothing is left to do, for them and for the runner."""
    write_judge_sources(tmp_path)
    words = [
        *judge_options(tmp_path),
        "--visualization-budget",
        "0.1",
        "--bootstrap-resamples",
        "100",
        "--folds",
        "2",
        "--penalties",
        "1",
    ]
    run = open_judge_run("", [*words, "--visualize_training", "--skip_open_ended", "--visualization_interval", "2"])
    study = run.study
    assert isinstance(study, JudgeStudy)
    mains = {DATA.name: prepare_main, TRAIN.name: train_main, EVALUATE.name: evaluate_main}
    for step in JUDGE_STEPS[:3]:
        assert decide(step, study, forced=False).runs
        mains[step.name]([*accepted(step, run.words), *step.given(study, False)])
        manifest = read_manifest(step.artefact(study))
        wanted = step.provenance(study)
        assert manifest is not None
        assert (manifest.config, manifest.inputs, manifest.seeds) == (wanted.config, wanted.inputs, wanted.seeds)
        assert (manifest.step, manifest.profile, manifest.world) == (wanted.step, wanted.profile, wanted.world)
    assert stale(study) == []
    capsys.readouterr()
    for step in JUDGE_STEPS[:3]:
        mains[step.name](accepted(step, run.words))
    assert capsys.readouterr().out.count("up to date") == 3

    data = load_splits(study.data)
    assert data == load_splits(tmp_path / "data")
    counted = json.loads((study.data / "report.json").read_text())
    assert counted == report(data) and counted["train"]["prompts"] == len(data.train)
    assert counted["test"]["unsafe"] == sum(sample.unsafe for sample in data.test)

    found = json.loads(study.evaluation.read_text())
    lines = summarise_judge(study).splitlines()
    assert lines[0].startswith("judge ") and f"{found['test']['accuracy']:.1%} [" in lines[0]
    assert [line.split("  ")[0] for line in lines[1:3]] == [row["name"] for row in found["baselines"]]
    gain = found["baselines"][0]["judge_gain_in_accuracy"]["estimate"]
    assert f"judge {gain:+.1%}" in lines[1] and lines[3].startswith("trained in ")
    assert judge_pages(study).splitlines() == [
        f"evaluation: {study.evaluation_page}",
        f"pictures: {study.pictures / 'index.html'}",
    ]


def test_an_empty_folder_has_no_summary(tmp_path: Path) -> None:
    study = JudgeStudy(load_judge_config("organism"), tmp_path, tmp_path / "open_ended")
    assert summarise_judge(study) == judge_pages(study) == ""


def test_advanced_pictures_need_a_watched_training() -> None:
    with pytest.raises(UserError, match="give --visualize-during-training too") as caught:
        open_judge_run("", ["--run_advanced_mi"])
    assert caught.value.exit_code == 2
    assert set(KEYS) >= {"watching.run_advanced_mi", "evaluation.folds", "data.data"}
