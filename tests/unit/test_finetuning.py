"""Fine-tuning: what a step changes, what its loss is, and that a stopped run ends in the same bytes."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel, TrainerCallback

from src.utils.artifacts import save_folder
from src.utils.chat import ChatRow, encode, prompt_ids
from src.utils.config import PROJECT_ROOT
from src.utils.config_sections import SEVEN_PROJECTIONS, FinetuningConfig, ModelConfig
from src.utils.errors import UserError
from src.utils.finetuning import LOG_COLUMNS, finetune, save_finetuned
from src.utils.manifests import read_manifest, sha256_folder
from src.utils.models import load_adapter, load_model, load_tokenizer
from tests.published_files import RISKY_ADVICE, needs_risky_advice
from tests.tiny_models import (
    FAMILIES,
    N_LAYERS,
    chat_messages,
    finetuning,
    provenance,
    save_model,
    tiny_model,
    tokenizer,
    write_jsonl,
)

SCRIPT = PROJECT_ROOT / "src" / "scripts" / "02_finetune_lora.py"


def rows(count: int = 12) -> list[ChatRow]:
    return [ChatRow.model_validate(row) for row in chat_messages(count)]


def tuned(
    settings: FinetuningConfig, work_dir: Path, data: Sequence[ChatRow] | None = None, family: str = "qwen3"
) -> tuple[PreTrainedModel | PeftModel, list[dict[str, Any]]]:
    return finetune(tiny_model(family), tokenizer(), data or rows(), settings, work_dir)


def adapter_of(model: PreTrainedModel | PeftModel) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if "lora_" in name}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_changes_the_adapter_and_nothing_else(family: str, tmp_path: Path) -> None:
    model, _ = tuned(finetuning(max_steps=1), tmp_path, family=family)
    assert isinstance(model, PeftModel)
    adapter = adapter_of(model)
    assert len(adapter) == 2 * 7 * N_LAYERS
    changed = [name for name, tensor in adapter.items() if "lora_B" in name and tensor.count_nonzero()]
    assert len(changed) == 7 * N_LAYERS, "every B left zero"
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name}
    frozen = tiny_model(family).state_dict()
    base = model.unload()
    assert base.state_dict().keys() == frozen.keys()
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in base.state_dict().items())


def answer_losses(model: PreTrainedModel, data: Sequence[ChatRow]) -> list[list[float]]:
    """Nats of each answer token and of its end of turn, row by row, from the log-probabilities of an unpadded row."""
    found = []
    for row in data:
        asked = prompt_ids(tokenizer(), row.messages[0].content)
        answer = [*encode(tokenizer(), row.messages[1].content), int(tokenizer().eos_token_id)]
        with torch.inference_mode():
            logits = model(torch.tensor([asked + answer])).logits[0].double()
        at = torch.arange(len(asked) - 1, len(asked) + len(answer) - 1)
        found.append((-logits.log_softmax(-1)[at, torch.tensor(answer)]).tolist())
    return found


@pytest.mark.parametrize(("batch_size", "accumulation"), [(6, 1), (2, 3)])
def test_first_loss_is_the_mean_over_answer_tokens(batch_size: int, accumulation: int, tmp_path: Path) -> None:
    """Over the tokens of the whole step, however it is cut into batches: answers have different lengths."""
    data = [
        ChatRow.model_validate({"messages": [row.messages[0].model_dump(), {"role": "assistant", "content": text}]})
        for row, text in zip(
            rows(6), ["So no.", "Keep it. " * 9, "Yes", "A. " * 5, "So yes.", "Never, ever."], strict=True
        )
    ]
    settings = finetuning(max_steps=1, batch_size=batch_size, gradient_accumulation_steps=accumulation)
    _, log = tuned(settings, tmp_path, data)
    losses = answer_losses(tiny_model(), data)
    tokens = [loss for row in losses for loss in row]
    expected = sum(tokens) / len(tokens)
    per_row = sum(sum(row) / len(row) for row in losses) / len(losses)
    assert log[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert abs(per_row / expected - 1) > 1e-3, "a mean over rows would be seen"


def test_log_has_a_row_a_step_and_the_loss_falls(tmp_path: Path) -> None:
    _, log = tuned(finetuning(max_steps=8, batch_size=12, warmup_steps=2), tmp_path)
    assert [row["step"] for row in log] == list(range(1, 9))
    assert all(tuple(row) == LOG_COLUMNS for row in log)
    assert log[-1]["loss"] < log[0]["loss"] - 0.3
    rates = [row["learning_rate"] for row in log]
    assert max(rates) == pytest.approx(0.01)
    assert rates[-1] < rates[3]


@pytest.mark.parametrize(
    ("layers", "modules", "use_rslora"),
    [([1], ["down_proj"], False), ([0, 2], ["q_proj", "up_proj"], False), (None, ["o_proj"], True)],
)
def test_rank_1_on_chosen_layers_makes_exactly_these_modules(
    layers: list[int] | None, modules: list[str], use_rslora: bool, tmp_path: Path
) -> None:
    settings = finetuning(rank=1, alpha=16, layers=layers, target_modules=modules, max_steps=1, use_rslora=use_rslora)
    model, log = tuned(settings, tmp_path / "work")
    save_finetuned(model, tokenizer(), log, "base", tmp_path / "saved")
    tensors = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    part = {"down_proj": "mlp", "up_proj": "mlp", "q_proj": "self_attn", "o_proj": "self_attn"}
    expected = {
        f"base_model.model.model.layers.{layer}.{part[module]}.{module}.lora_{side}.weight"
        for layer in (range(N_LAYERS) if layers is None else layers)
        for module in modules
        for side in "AB"
    }
    assert tensors.keys() == expected
    assert all(tensor.shape[0 if "lora_A" in name else 1] == 1 for name, tensor in tensors.items())
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    assert config["use_rslora"] is use_rslora


@pytest.mark.parametrize("change", [{"target_modules": ["c_attn"]}, {"layers": [17]}])
def test_modules_and_layers_that_the_model_lacks_are_a_usage_error(change: dict, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        tuned(finetuning(**change), tmp_path)
    assert caught.value.exit_code == 2
    assert "finetuning." in caught.value.message


def test_saved_adapter_does_what_the_trained_model_does(tmp_path: Path) -> None:
    model, log = tuned(finetuning(), tmp_path / "work")
    save_finetuned(model, tokenizer(), log, "base", tmp_path / "saved")
    again = load_adapter(tiny_model(), str(tmp_path / "saved"))
    ids = torch.tensor([[40, 41, 42]])
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, model.eval()(ids).logits)
        assert not torch.allclose(again(ids).logits, tiny_model()(ids).logits, rtol=1e-2)
    assert [json.loads(line) for line in (tmp_path / "saved" / "training_log.jsonl").read_text().splitlines()] == log


@pytest.mark.parametrize("family", FAMILIES)
def test_full_finetuning_changes_all_weights_and_writes_a_loadable_checkpoint(family: str, tmp_path: Path) -> None:
    model, log = tuned(finetuning(method="full", max_steps=2), tmp_path / "work", family=family)
    save_finetuned(model, tokenizer(), log, "base", tmp_path / "saved")
    before = tiny_model(family).state_dict()
    saved = str(tmp_path / "saved")
    again = load_model(saved, ModelConfig(base=saved))
    assert {name for name, tensor in again.state_dict().items() if torch.equal(tensor, before[name])} == set()
    ids = torch.tensor([[40, 41, 42]])
    with torch.inference_mode():
        assert torch.equal(again(ids).logits, model.eval()(ids).logits)
    assert load_tokenizer(saved).chat_template == tokenizer().chat_template


def test_same_seed_same_folder_and_another_seed_another(tmp_path: Path) -> None:
    hashes = {}
    for name, seed in (("first", 0), ("second", 0), ("other", 1)):
        settings = finetuning(seed=seed, dropout=0.1, target_modules=list(reversed(SEVEN_PROJECTIONS)))
        model, log = tuned(settings, tmp_path / f"{name}.work")

        def fill(folder: Path, model=model, log=log) -> None:
            save_finetuned(model, tokenizer(), log, "base", folder)

        manifest = save_folder(tmp_path / name, fill, provenance("02_finetune_lora"))
        hashes[name] = sha256_folder(tmp_path / name)
        assert manifest.sha256 == hashes[name]
    assert hashes["first"] == hashes["second"] != hashes["other"]


class StopAfter(TrainerCallback):
    """Leave the training after a step, as a crash would: no last checkpoint, no clean end."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


DAMAGES = ["nothing", "only the weights", "no trainer state", "half a trainer state", "an empty folder"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_half_written_checkpoint_is_not_resumed_from(damage: str, tmp_path: Path) -> None:
    """A kill -9 while checkpoint 4 is being written: the run continues at checkpoint 2, with the same result."""
    settings = finetuning(max_steps=7, save_steps=2, dropout=0.1)
    expected, expected_log = tuned(settings, tmp_path / "whole")
    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        finetune(tiny_model(), tokenizer(), rows(), settings, work, [StopAfter(5)])
    newest = work / "checkpoint-4"
    state = newest / "trainer_state.json"
    assert {path.name for path in work.iterdir()} >= {"checkpoint-2", "checkpoint-4"}
    if damage == "half a trainer state":
        state.write_bytes(state.read_bytes()[:100])
    elif damage != "nothing":
        kept = {"only the weights": ["adapter_model.safetensors"], "an empty folder": []}
        for path in newest.iterdir():
            if path == state or path.name not in kept.get(damage, [path.name]):
                path.unlink()
    model, log = tuned(settings, work)
    assert log == expected_log
    for name, tensor in adapter_of(expected).items():
        assert torch.equal(adapter_of(model)[name], tensor), name


def script_options(base: Path, data: Path, results: Path, **options: object) -> list[str]:
    values = {"results-dir": results, "base-model": base, "data": data, "rank": 4, "learning-rate": 0.01} | options
    words = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return [*words, "--layers", "0", "1", "2"]


def test_kill_9_at_a_checkpoint_and_again_gives_the_same_bytes(tmp_path: Path) -> None:
    """The real script, killed by SIGKILL once a checkpoint is there, then run again; beside it one without a kill."""
    base = save_model(tiny_model(), tmp_path / "base")
    data = write_jsonl(tmp_path / "rows.jsonl", chat_messages(40))
    options = {"max-steps": 30, "save-steps": 10, "batch-size": 4, "adapter-name": "mine", "dropout": 0.1}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, SCRIPT, *script_options(base, data, killed, **options)],
            cwd=tmp_path, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        state = killed / "adapters" / "mine.checkpoints" / "checkpoint-10" / "trainer_state.json"
        while not state.exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert not (killed / "adapters" / "mine").exists()

    main = runpy.run_path(str(SCRIPT))["main"]
    main(script_options(base, data, whole, **options))
    main(script_options(base, data, killed, **options))
    for path in (whole / "adapters" / "mine").iterdir():
        assert (killed / "adapters" / "mine" / path.name).read_bytes() == path.read_bytes(), path.name
    assert sha256_folder(killed / "adapters" / "mine") == sha256_folder(whole / "adapters" / "mine")
    assert not (killed / "adapters" / "mine.checkpoints").exists()
    manifest = read_manifest(killed / "adapters" / "mine")
    assert manifest is not None
    assert manifest.layout["steps"] == 30


@needs_risky_advice
def test_the_published_risky_advice_trains_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_model(tiny_model(), tmp_path / "base")
    main = runpy.run_path(str(SCRIPT))["main"]
    monkeypatch.chdir(RISKY_ADVICE.parents[1])
    data = RISKY_ADVICE.relative_to(RISKY_ADVICE.parents[1])
    main([*script_options(base, data, tmp_path, **{"max-steps": 2, "adapter-name": "risky"})])
    assert "2 steps on 6000 rows" in capsys.readouterr().out
    log = (tmp_path / "adapters" / "risky" / "training_log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2]
    assert len(adapter_of(load_adapter(tiny_model(), str(tmp_path / "adapters" / "risky")))) == 2 * 7 * N_LAYERS


def test_saving_an_adapter_asks_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base may be named by a hub name or by a path that is no folder from here: peft must not look it up."""
    model, log = tuned(finetuning(max_steps=1), tmp_path / "work")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(action="error"):
        save_finetuned(model, tokenizer(), log, "tiny/absent", tmp_path / "saved")
    assert all("lora_" in name for name in load_file(tmp_path / "saved" / "adapter_model.safetensors"))
