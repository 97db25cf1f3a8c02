"""Fine-tuning on chat rows with the transformers trainer: LoRA or all weights, loss on answers only.

The trainer's checkpoints are where a stopped run continues; what is kept is written by `save_finetuned`.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from src.utils.artifacts import open_resumable
from src.utils.chat import ChatRow, EncodedRow, encode_row
from src.utils.config_sections import FinetuningConfig
from src.utils.errors import UserError
from src.utils.manifests import Provenance
from src.utils.models import pick_device
from src.utils.progress import progress_bar

LOG_COLUMNS = ("step", "epoch", "loss", "learning_rate", "grad_norm")
TRAINING_LOG = "training_log.jsonl"


class EncodedRows(Dataset):
    """Encoded chat rows; rows in which `max_length` left no answer token are dropped and counted."""

    def __init__(self, rows: Sequence[ChatRow], tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        encoded = [encode_row(tokenizer, row, max_length) for row in rows]
        self.rows: list[EncodedRow] = [row for row in encoded if any(label != -100 for label in row.labels)]
        self.dropped = len(encoded) - len(self.rows)
        if not self.rows:
            raise UserError(f"max_length {max_length} cuts every answer off; raise --max-length")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> EncodedRow:
        return self.rows[index]


class StepProgress(TrainerCallback):
    """A progress bar with the loss, in place of the trainer's bar and its printed log."""

    def __init__(self, is_shown: bool = True) -> None:
        self.is_hidden = not is_shown

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bar = progress_bar("fine-tune", "step", state.max_steps, state.global_step, self.is_hidden)

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}", refresh=False)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)
        if state.global_step >= state.max_steps:
            control.should_save = False  # resumed from its very end, the trainer would take a step too many

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.bar.close()


@dataclass(frozen=True)
class RightPadding:
    """Collates encoded rows into one right-padded batch."""

    pad_id: int

    def __call__(self, rows: Sequence[EncodedRow]) -> dict[str, Int[Tensor, "batch seq"]]:
        width = max(len(row.input_ids) for row in rows)

        def padded(values: list[int], filler: int) -> list[int]:
            return values + [filler] * (width - len(values))

        return {
            "input_ids": torch.tensor([padded(row.input_ids, self.pad_id) for row in rows]),
            "labels": torch.tensor([padded(row.labels, -100) for row in rows]),
            "attention_mask": torch.tensor([padded([1] * len(row.input_ids), 0) for row in rows]),
        }


def open_checkpoints(finetuned: Path, provenance: Provenance) -> Path:
    """The folder for the trainer's checkpoints; those of other data, settings or another base are cleared."""
    return open_resumable(finetuned.with_name(f"{finetuned.name}.checkpoints"), provenance)


def lora_config(settings: FinetuningConfig) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,  # ty: ignore[invalid-argument-type]  # peft only divides by the rank
        lora_dropout=settings.dropout,
        use_rslora=settings.use_rslora,
        target_modules=list(settings.target_modules),
        layers_to_transform=settings.layers,
    )


def finetune(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[ChatRow],
    settings: FinetuningConfig,
    work_dir: Path,
    callbacks: Sequence[TrainerCallback] = (),
    shows_steps: bool = True,
) -> tuple[PreTrainedModel | PeftModel, list[dict[str, Any]]]:
    """Train and return the model with its log, one row a step.

    Continues from the newest checkpoint in `work_dir`, if there is one; optimizer state is read with weights_only.
    """
    torch.manual_seed(settings.seed)
    model: PreTrainedModel | PeftModel = base
    if settings.method == "lora":
        try:
            model = get_peft_model(base, lora_config(settings))
        except ValueError as error:
            raise UserError(f"finetuning.target_modules: {error}; name modules of the base model", 2) from error
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    trainer = Trainer(
        model=model,
        args=training_arguments(settings, work_dir),
        train_dataset=EncodedRows(rows, tokenizer, settings.max_length),
        data_collator=RightPadding(pad_id),
        callbacks=[StepProgress(is_shown=shows_steps), *callbacks],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.train(resume_from_checkpoint=newest_whole_checkpoint(work_dir))
    log = [{column: row.get(column) for column in LOG_COLUMNS} for row in trainer.state.log_history if "loss" in row]
    return model, log


def newest_whole_checkpoint(work_dir: Path) -> str | None:
    """The checkpoint to continue from; one that a kill left half-written is removed, the trainer's state comes last."""
    while (checkpoint := get_last_checkpoint(str(work_dir))) is not None:
        try:
            TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
        else:
            break
    return checkpoint


def training_arguments(settings: FinetuningConfig, work_dir: Path) -> TrainingArguments:
    """The trainer's options: bfloat16 on a GPU that has it, float32 elsewhere; a checkpoint every `save_steps`."""
    device = pick_device()
    arguments = TrainingArguments(
        output_dir=str(work_dir),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        activation_checkpointing=settings.gradient_checkpointing,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps if settings.max_steps is not None else -1,
        bf16=device.type == "cuda" and torch.cuda.is_bf16_supported(),
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        label_names=["labels"],
        seed=settings.seed,
        data_seed=settings.seed,
        logging_steps=1,
        logging_first_step=True,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=2,
        report_to="none",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # DataParallel never by chance; `accelerate launch` asks for more
    return arguments


def save_finetuned(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    log: Sequence[dict[str, Any]],
    base_name: str,
    folder: Path,
) -> None:
    """Write an adapter (or a full checkpoint with its tokenizer) and the training log into a folder.

    The same weights give the same bytes: peft's set of target modules is sorted, its generated card left out, and
    the base is named as the config names it, not by this machine's path.
    """
    if isinstance(model, PeftModel):
        model.peft_config["default"].base_model_name_or_path = base_name
        # embeddings are frozen; left to itself, peft asks the hub whether their number changed
        model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
        config_file = folder / "adapter_config.json"
        config = json.loads(config_file.read_text(encoding="utf-8"))
        config["target_modules"] = sorted(config["target_modules"])
        config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    else:
        model.save_pretrained(str(folder), safe_serialization=True)
        tokenizer.save_pretrained(str(folder))
    lines = "".join(json.dumps(row) + "\n" for row in log)
    (folder / TRAINING_LOG).write_text(lines, encoding="utf-8")
