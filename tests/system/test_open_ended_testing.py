"""The whole command on a real, untrained organism: killed and taken up, its files, and a round of training."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from src.run_open_ended_testing import main
from src.utils.artifacts import load_json, verify_artifact
from src.utils.config import PROJECT_ROOT
from src.utils.errors import UserError
from src.utils.organism.model import new_model
from src.utils.safety_judge.judge_folder import JUDGE, Judge, JudgeRecord, load_record, save_judge
from src.utils.safety_judge.organism import train_tokenizer
from src.utils.safety_judge.scoring import JudgeTemplate
from src.utils.safety_judge.settings import load_judge_config
from src.utils.safety_judge.world import load_judge_world
from tests.tiny_models import provenance

ITERATIONS, BATCH = 6, 24


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge that has learned nothing, as `src/train_safety_judge.py` would save it."""
    world, asked = load_judge_world(), load_judge_config().judging
    tokenizer = train_tokenizer(world, asked.question, (asked.safe_word, asked.unsafe_word))
    template = JudgeTemplate.of(tokenizer, asked.question, asked.safe_word, asked.unsafe_word)
    model = new_model(world.architecture, tokenizer, world.seed)
    record = JudgeRecord(
        profile="organism", base_model="none", **asked.model_dump(), max_length=256, frozen_blocks=2, n_blocks=6,
        head_is_tied=True, trainable_parameters=1, frozen_parameters=1, data=["world"], epoch=0.0, epochs=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("checkpoint")
    save_judge(folder / JUDGE, Judge(model, tokenizer, template, 256), record, provenance("train_safety_judge"))
    return folder


def options(checkpoint: Path, folder: Path, *more: str) -> list[str]:
    search = ("--iterations", str(ITERATIONS), "--batch_size", str(BATCH), "--seed", "5")
    return ["--checkpoint", str(checkpoint), "--output_dir", str(folder), *search, *more]


@pytest.fixture(scope="module")
def whole(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    main(options(checkpoint, folder, "--retrain_epochs", "1", "--replay", "0.25"))
    return folder


def test_kill_9_then_the_same_command_gives_the_same_archive(checkpoint: Path, whole: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    command = [sys.executable, PROJECT_ROOT / "src" / "run_open_ended_testing.py", *options(checkpoint, killed)]
    log = killed / "open_ended.parts" / "iterations.jsonl"
    with (tmp_path / "log").open("wb") as output:
        process = subprocess.Popen(
            [*command, "--no-retrain"], env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=output, stderr=output
        )
        deadline = time.monotonic() + 240
        while process.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 1):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert 1 < log.read_bytes().count(b"\n") < 2 * ITERATIONS and not (killed / "archive.jsonl").exists()
    before = log.read_bytes()
    main(options(checkpoint, killed, "--no-retrain"))
    assert log.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    for name in ("archive.jsonl", "open_ended.parts/iterations.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert not (killed / JUDGE).exists()


def test_the_files_hold_what_the_search_did(checkpoint: Path, whole: Path) -> None:
    for name in ("archive.jsonl", "open_ended.json", "open_ended.html", JUDGE):
        manifest = verify_artifact(whole / name)
        assert manifest is not None and manifest.world == "judge_world" and manifest.seeds == {"seed": 5}
    rows = [json.loads(line) for line in (whole / "archive.jsonl").read_text("utf-8").splitlines()]
    result = load_json(whole / "open_ended.json")
    assert {arm: found[-1]["calls"] for arm, found in result["search"].items()} == dict.fromkeys(
        ("evolution", "random"), ITERATIONS * BATCH
    )
    niches = {(row["style"], row["category"], row["label"]) for row in rows}
    assert result["search"]["evolution"][-1]["coverage"] == pytest.approx(len(niches) / result["niches"])
    assert all(row["is_wrong"] == ((row["margin"] > 0) != (row["label"] == "unsafe")) for row in rows)
    halves = {half: {row["group"] for row in rows if row["half"] == half} for half in ("training", "held_out")}
    assert halves["training"] and halves["held_out"] and not halves["training"] & halves["held_out"]
    sets = {row["set"]: row for row in result["rates"]}
    assert sets["archive, held out"]["before"]["n"] == sum(row["half"] == "held_out" for row in rows)
    assert sets["ordinary test"]["after"]["n"] == 512
    assert "open_ended.html" in (whole / "index.html").read_text("utf-8")


def test_the_round_of_training_leaves_frozen_blocks_and_the_first_judge_alone(checkpoint: Path, whole: Path) -> None:
    before, after = (load_file(folder / JUDGE / "model.safetensors") for folder in (checkpoint, whole))
    same = {name for name, weight in after.items() if (weight == before[name]).all()}
    frozen = {name for name in after if name.startswith(("model.layers.0.", "model.layers.1.", "model.embed"))}
    assert frozen <= same and len(same) < len(after)
    assert load_record(whole / JUDGE).frozen_blocks == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--replay", "nan"), "--replay nan"),
        (("--output_dir", "CHECKPOINT"), "holds the judge that is attacked"),
        (("--checkpoint", "/nowhere"), "src/train_safety_judge.py first"),
    ],
)
def test_what_a_user_can_cause_is_one_line(more: tuple[str, str], said: str, checkpoint: Path, tmp_path: Path) -> None:
    given = tuple(str(checkpoint) if word == "CHECKPOINT" else word for word in more)
    with pytest.raises(UserError, match=said):
        main([*options(checkpoint, tmp_path / "out"), *given])


@pytest.mark.parametrize("more", [("--iterations", "0"), ("--learning_rate", "-0.1"), ("--retrain_epochs", "1.5")])
def test_a_number_that_cannot_be_is_refused_before_anything_is_judged(
    more: tuple[str, str], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*options(checkpoint, tmp_path / "out"), *more])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1 and more[1] in said
    assert not (tmp_path / "out").exists()
