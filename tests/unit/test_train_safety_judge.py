"""Training the judge: what the loss is, what is kept, and that a stopped run ends in the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from scipy.special import log_expit
from transformers import PreTrainedModel, TrainerCallback

from src.train_safety_judge import main
from src.utils.config import PROJECT_ROOT, read_yaml
from src.utils.errors import UserError
from src.utils.manifests import sha256_folder
from src.utils.safety_judge.freezing import freeze
from src.utils.safety_judge.judge_folder import load_record
from src.utils.safety_judge.samples import SafetySample, labels
from src.utils.safety_judge.scoring import JudgeTemplate, encode, score
from src.utils.safety_judge.settings import CONFIG_FILE, EvaluationConfig, JudgeTraining, load_judge_config
from src.utils.safety_judge.training import LabelledPrompts, train_judge
from tests.tiny_models import N_LAYERS, questions, save_model, tiny_model, tokenizer, write_jsonl

EVALUATION = EvaluationConfig(penalties=[1.0])
TEMPLATE = JudgeTemplate.of(tokenizer(), "{prompt}\nIs that safe?", "No", "Yes")


def settings(**changes: object) -> JudgeTraining:
    values = {"num_epochs": 3, "batch_size": 4, "learning_rate": 0.01, "freeze_layers": 1, "max_length": 128}
    return JudgeTraining.model_validate(values | {"keep": "last"} | changes)


def samples(count: int, start: int = 0) -> list[SafetySample]:
    """Prompts that begin with one of two words, by which the label is known."""
    texts = [question.question for question in questions(120)][start : start + count]
    return [
        SafetySample(f"s{start + i}", f"{('Good', 'Bad')[i % 2]}. {text}", i % 2 == 1, "x", "planted", None)
        for i, text in enumerate(texts)
    ]


def prompts(chosen: list[SafetySample]) -> LabelledPrompts:
    return LabelledPrompts(encode(tokenizer(), TEMPLATE, [one.prompt for one in chosen], 128), labels(chosen))


def trained(
    work_dir: Path, used: JudgeTraining, callbacks: tuple[TrainerCallback, ...] = (), count: int = 18
) -> tuple[PreTrainedModel, list[dict[str, Any]], float]:
    model = tiny_model()
    model.config.attention_dropout = 0.1
    freeze(model, used.freeze_layers)
    train, validation = prompts(samples(count)), prompts(samples(10, start=count))
    log, epoch = train_judge(model, TEMPLATE, train, validation, used, EVALUATION, work_dir, callbacks)
    return model, log, epoch


@pytest.mark.parametrize(("batch_size", "accumulation"), [(6, 1), (4, 2), (1, 6)])
def test_first_loss_is_the_mean_over_prompts_of_the_step(batch_size: int, accumulation: int, tmp_path: Path) -> None:
    """However a step is cut: batches of 4 and 2 weigh each prompt the same, and labels stand where they belong."""
    used = settings(batch_size=batch_size, gradient_accumulation_steps=accumulation, num_epochs=1)
    model = tiny_model()
    freeze(model, 1)
    chosen = samples(6)
    data = prompts(chosen)
    margins = score(tiny_model(), [row.encoded for row in data.rows], TEMPLATE, 6)
    expected = -np.mean(np.where(labels(chosen), log_expit(margins), log_expit(-margins)))
    log, _ = train_judge(model, TEMPLATE, data, data, used, EVALUATION, tmp_path)
    assert log[0]["loss"] == pytest.approx(expected, rel=1e-4)
    swapped = -np.mean(np.where(labels(chosen), log_expit(-margins), log_expit(margins)))
    assert abs(swapped / expected - 1) > 1e-3, "labels turned round would be seen"


def test_a_planted_word_is_learned_and_frozen_weights_stay(tmp_path: Path) -> None:
    model, log, epoch = trained(tmp_path, settings(num_epochs=4, learning_rate=0.006, batch_size=8), count=100)
    epochs = [row for row in log if row["kind"] == "epoch"]
    steps = [row for row in log if row["kind"] == "step"]
    assert [row["epoch"] for row in epochs] == [1, 2, 3, 4] and epoch == 4
    assert [row["step"] for row in steps] == list(range(1, 53))
    assert epochs[-1]["accuracy"] == epochs[-1]["auroc"] == 1.0
    assert epochs[-1]["loss"] < 0.5 * epochs[0]["loss"]
    before, after = tiny_model().state_dict(), model.state_dict()
    still = {name for name in after if torch.equal(after[name], before[name])}
    assert still == {name for name in after if name.startswith(("model.layers.0.", "model.embed", "lm_head"))}


def test_validation_in_the_log_is_what_the_model_scores(tmp_path: Path) -> None:
    model, log, _ = trained(tmp_path, settings(num_epochs=1))
    chosen = samples(10, start=18)
    margins = score(model, [row.encoded for row in prompts(chosen).rows], TEMPLATE, 4)
    last = log[-1]
    assert last["kind"] == "epoch"
    assert last["accuracy"] == pytest.approx(np.mean((margins > 0) == labels(chosen)))
    expected = -np.mean(np.where(labels(chosen), log_expit(margins), log_expit(-margins)))
    assert last["loss"] == pytest.approx(expected, rel=1e-4)


class Stop(TrainerCallback):
    """Leave the training after a step, as Ctrl-C does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("save_steps", [None, 2])
def test_a_stopped_training_resumes_to_the_same_weights(save_steps: int | None, keep: str, tmp_path: Path) -> None:
    used = settings(save_steps=save_steps, keep=keep, gradient_accumulation_steps=2, learning_rate=0.03)
    whole, expected_log, expected_epoch = trained(tmp_path / "whole", used)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "work", used, (Stop(5),))
    again, log, epoch = trained(tmp_path / "work", used)
    assert (log, epoch) == (expected_log, expected_epoch)
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_best_keeps_the_weights_of_the_lowest_validation_loss(tmp_path: Path) -> None:
    """At a rate so high that later epochs are worse; an epoch is made again with `last` to compare with."""
    used = settings(learning_rate=0.05, keep="best", num_epochs=4, scheduler="constant", warmup_share=0.0)
    model, log, epoch = trained(tmp_path / "best", used)
    losses = [row["loss"] for row in log if row["kind"] == "epoch"]
    assert epoch == 1 + int(np.argmin(losses))
    assert epoch < 4, "the last epoch is not the best, or this shows nothing"
    short = used.model_copy(update={"keep": "last", "num_epochs": int(epoch)})
    expected, _, _ = trained(tmp_path / "last", short)
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in model.state_dict().items())


def data_folder(folder: Path) -> Path:
    folder.mkdir()
    for name, chosen in {"train": samples(40), "validation": samples(8, 40), "test": samples(8, 48)}.items():
        write_jsonl(
            folder / f"{name}.jsonl",
            [{"sample_id": one.sample_id, "prompt": one.prompt, "label": one.label, "category": one.category,
              "source": one.source} for one in chosen],
        )  # fmt: skip
    return folder


def options(base: Path, data: Path, output_dir: Path, *more: str) -> list[str]:
    return [
        *("--base-model", str(base), "--data", str(data), "--output_dir", str(output_dir), "--num_epochs", "4"),
        *("--batch_size", "4", "--learning_rate", "0.01", "--freeze_layers", "1", "--max_length", "128"),
        *("--gradient-accumulation-steps", "2", "--save-steps", "3", "--seed", "7", *more),
    ]


def test_kill_9_then_resume_gives_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The real script, killed by SIGKILL once a checkpoint is there, then resumed; beside it one without a kill."""
    base, data = save_model(tiny_model(), tmp_path / "base"), data_folder(tmp_path / "data")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    script = PROJECT_ROOT / "src" / "train_safety_judge.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, script, *options(base, data, killed)], env=environment, stdout=log, stderr=log
        )
        deadline = time.monotonic() + 240
        state = killed / "safety_judge.checkpoints" / "checkpoint-3" / "trainer_state.json"
        while not state.exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert not (killed / "safety_judge").exists()

    with pytest.raises(UserError, match="--resume continues it"):
        main(options(base, data, killed))
    with pytest.raises(UserError, match=r"another config\.training\.learning_rate"):
        main(options(base, data, killed, "--resume", "--learning-rate", "0.02"))
    main(options(base, data, killed, "--resume"))
    main(options(base, data, whole))
    assert sha256_folder(killed / "safety_judge") == sha256_folder(whole / "safety_judge")
    assert (killed / "training_log.jsonl").read_bytes() == (whole / "training_log.jsonl").read_bytes()
    assert not (killed / "safety_judge.checkpoints").exists()

    record = load_record(whole / "safety_judge")
    assert (record.frozen_blocks, record.n_blocks, record.epochs, record.head_is_tied) == (1, N_LAYERS, 4, True)
    weights, before = load_file(whole / "safety_judge" / "model.safetensors"), tiny_model().state_dict()
    frozen = [name for name in weights if name.startswith("model.layers.0.")]
    assert frozen and all(torch.equal(weights[name], before[name]) for name in frozen)
    log_rows = [json.loads(line) for line in (whole / "training_log.jsonl").read_text().splitlines()]
    assert sum(row["kind"] == "step" for row in log_rows) == 20
    capsys.readouterr()
    main(options(base, data, whole))
    assert "up to date" in capsys.readouterr().out


def test_watching_changes_no_byte_of_the_judge(tmp_path: Path) -> None:
    base, data = save_model(tiny_model(), tmp_path / "base"), data_folder(tmp_path / "data")
    watch = ("--visualize_during_training", "--visualization_interval", "2")
    for name, more in (("watched", watch), ("alone", ())):
        main(options(base, data, tmp_path / name, "--num-epochs", "2", *more))
    assert sha256_folder(tmp_path / "watched" / "safety_judge") == sha256_folder(tmp_path / "alone" / "safety_judge")
    pictures = tmp_path / "watched" / "training_visualizations"
    assert {"training_progress.html", "epoch_1_metrics.json", "epoch_2_metrics.json"} <= {
        file.name for file in pictures.iterdir()
    }
    assert not (tmp_path / "alone" / "training_visualizations").exists()


def test_an_output_folder_that_cannot_be_written_is_found_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    absent = tmp_path / "no-model"
    with pytest.raises(UserError, match="cannot be written") as caught:
        main(options(absent, tmp_path, tmp_path / "file" / "out"))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--profile", "gpt"), "the judge has llama3_8b, organism, qwen3_4b"),
        (("--num-epochs", "0"), "training.num_epochs"),
        (("--visualization_interval", "0"), "watching.visualization_interval"),
        (("--question", "Is that safe?"), "must name {prompt} exactly once"),
        (("--run_advanced_mi",), "give --visualize-during-training too"),
    ],
)
def test_wrong_settings_are_a_usage_error(more: tuple[str, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said) as caught:
        main(["--output-dir", str(tmp_path / "out"), *more])
    assert caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_every_profile_holds_together_and_an_unknown_key_is_named(tmp_path: Path) -> None:
    for profile, depth in (("organism", 6), ("qwen3_4b", 36), ("llama3_8b", 32)):
        assert 0 < load_judge_config(profile).training.freeze_layers < depth
    file = tmp_path / "judge.yaml"
    values = read_yaml(CONFIG_FILE)
    values["profiles"]["mine"] = values["profiles"]["organism"] | {"evaluation": {"epochs": 3}}
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"profile mine\): unknown key evaluation\.epochs; known keys there: bins"):
        load_judge_config("mine", file=file)


def test_the_organism_is_not_built_where_another_model_is_named() -> None:
    assert load_judge_config("organism").model.world == "judge_world"
    assert load_judge_config("organism", {"model.base": "somewhere"}).model.world is None
