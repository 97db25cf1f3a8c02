"""Fine-tuning a causal model into a judge with the transformers trainer: the margin is the logit of a binary loss.

Accumulation, schedule, bf16, checkpoints, resume and more GPUs are the trainer's. What is kept is left to
`judge_folder`, what is frozen to `freezing`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from src.utils.artifacts import write_tensors
from src.utils.atomic_writes import write_atomically
from src.utils.finetuning import StepProgress, newest_whole_checkpoint
from src.utils.models import pick_device
from src.utils.safety_judge.metrics import as_plain, judge_metrics
from src.utils.safety_judge.scoring import EncodedPrompt, JudgeTemplate, forward_margins, pad_right
from src.utils.safety_judge.settings import EvaluationConfig, JudgeTraining

LABEL = "unsafe"  # not `labels`: those the library shifts by a position and counts as tokens
STEP_COLUMNS = ("step", "epoch", "loss", "learning_rate", "grad_norm")


@dataclass(frozen=True)
class LabelledPrompt:
    encoded: EncodedPrompt
    unsafe: bool


class LabelledPrompts(Dataset):
    """Encoded prompts with their labels."""

    def __init__(self, encoded: Sequence[EncodedPrompt], unsafe: Bool[np.ndarray, " prompts"]) -> None:
        self.rows = [LabelledPrompt(row, bool(label)) for row, label in zip(encoded, unsafe, strict=True)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> LabelledPrompt:
        return self.rows[index]


@dataclass(frozen=True)
class JudgeCollator:
    """Collates labelled prompts into one right-padded batch."""

    pad_id: int

    def __call__(self, rows: Sequence[LabelledPrompt]) -> dict[str, Tensor]:
        ids, mask = pad_right([row.encoded for row in rows], self.pad_id)
        return {"input_ids": ids, "attention_mask": mask, LABEL: torch.tensor([row.unsafe for row in rows]).float()}


class JudgeTrainer(Trainer):
    """A trainer whose loss is the binary cross-entropy of the margin, a mean over the prompts of a whole step.

    Batches of a step may differ in size (the last of an epoch): each prompt weighs the same.
    """

    loss_is_scaled_for_ga = True

    def __init__(self, template: JudgeTemplate, **settings: Any) -> None:
        super().__init__(**settings)
        self.template = template

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, int]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return batches, sum(len(batch[LABEL]) for batch in batches)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        margins = forward_margins(model, inputs["input_ids"], inputs["attention_mask"], self.template)
        losses = torch.nn.functional.binary_cross_entropy_with_logits(margins, inputs[LABEL], reduction="sum")
        loss = losses / (len(margins) if num_items_in_batch is None else num_items_in_batch)
        return (loss, {"margins": margins}) if return_outputs else loss


def training_arguments(settings: JudgeTraining, evaluation: EvaluationConfig, work_dir: Path) -> TrainingArguments:
    """The trainer's options: bfloat16 autocast on a GPU that has it, float32 elsewhere; validation after each epoch."""
    device = pick_device()
    checkpoints: dict[str, Any] = {"save_strategy": "epoch"}
    if settings.save_steps is not None:
        checkpoints = {"save_strategy": "steps", "save_steps": settings.save_steps}
    arguments = TrainingArguments(
        output_dir=str(work_dir),
        num_train_epochs=settings.num_epochs,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=evaluation.eval_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        activation_checkpointing=settings.gradient_checkpointing,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=settings.warmup_share,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=device.type == "cuda" and torch.cuda.is_bf16_supported(),
        use_cpu=device.type == "cpu",
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        label_names=[LABEL],
        eval_strategy="epoch",
        seed=settings.seed,
        data_seed=settings.seed,
        logging_steps=1,
        logging_first_step=True,
        save_total_limit=2,
        report_to="none",
        **checkpoints,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # DataParallel would share the positions out; accelerate launch does not
    return arguments


class JudgeProgress(StepProgress):
    """The progress bar; like a step's, an epoch's checkpoint at the very end is left out."""

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_save = False


class BestWeights(TrainerCallback):
    """Keeps the trainable weights of the epoch of the lowest validation loss, through kills too.

    The library's own way would tie checkpoints to epochs, and copy what is frozen each time.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.best: tuple[float, float] | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        evaluated = [(row["eval_loss"], row["epoch"]) for row in state.log_history if "eval_loss" in row]
        self.best = min(evaluated) if evaluated else None

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        found = (kwargs["metrics"]["eval_loss"], float(state.epoch or 0))
        if self.best is None or found[0] < self.best[0]:
            self.best = found
            if state.is_world_process_zero:
                save_trainable(kwargs["model"], self.file)


def save_trainable(model: PreTrainedModel, file: Path) -> None:
    """The weights that learn, as safetensors."""
    weights = {
        name: parameter.detach().float().cpu().numpy()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    with write_atomically(file) as temporary:
        write_tensors(weights, temporary)


def load_trainable(model: PreTrainedModel, file: Path) -> None:
    """Put weights that `save_trainable` wrote back into the model."""
    model.load_state_dict(load_file(file), strict=False)


def train_judge(
    model: PreTrainedModel,
    template: JudgeTemplate,
    train: LabelledPrompts,
    validation: LabelledPrompts,
    settings: JudgeTraining,
    evaluation: EvaluationConfig,
    work_dir: Path,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[list[dict[str, Any]], float]:
    """Train `model` in place; returns the log, steps and epochs as they came, and the epoch whose weights it ends with.

    Continues from the newest checkpoint in `work_dir`, if there is one, to the same weights as without the stop.
    """
    best = BestWeights(work_dir / "best.safetensors")
    trainer = JudgeTrainer(
        template=template,
        model=model,
        args=training_arguments(settings, evaluation, work_dir),
        train_dataset=train,
        eval_dataset=validation,
        data_collator=JudgeCollator(template.pad_id),
        compute_metrics=lambda prediction: epoch_metrics(prediction, evaluation.bins),
        callbacks=[JudgeProgress(), best, *callbacks],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.train(resume_from_checkpoint=newest_whole_checkpoint(work_dir))
    epoch = float(trainer.state.epoch or 0)
    if settings.keep == "best" and best.best is not None:
        load_trainable(model, best.file)
        epoch = best.best[1]
    return training_log(trainer.state.log_history), epoch


def epoch_metrics(prediction: EvalPrediction, bins: int) -> dict[str, float]:
    """Measures of the validation split for the trainer's log; a measure that is not defined is left out."""
    margins: Float[np.ndarray, " prompts"] = np.asarray(prediction.predictions, dtype=np.float64)
    metrics = as_plain(judge_metrics(np.asarray(prediction.label_ids) > 0.5, margins, bins=bins))
    return {name: float(value) for name, value in metrics.items() if value is not None and name != "log_loss"}


def training_log(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a step (`kind` step) with loss, rate and gradient norm, one an epoch (`kind` epoch) with validation."""
    rows = []
    for row in history:
        if "loss" in row:
            rows.append({"kind": "step"} | {column: row.get(column) for column in STEP_COLUMNS})
        elif "eval_loss" in row:
            measured = {
                name.removeprefix("eval_"): value
                for name, value in row.items()
                if name.startswith("eval_") and not name.endswith(("_runtime", "_per_second"))
            }
            rows.append({"kind": "epoch", "step": row["step"], "epoch": row["epoch"]} | measured)
    return rows
