"""Any saved model that can be asked as a judge: a finished one, a checkpoint of its training, or another model."""

import math
from pathlib import Path

from transformers import PreTrainedTokenizerBase, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from src.utils.errors import UserError
from src.utils.models import load_tokenizer, text_config
from src.utils.safety_judge.judge_folder import JUDGE, RECORD, JudgeRecord, load_record
from src.utils.safety_judge.settings import JudgeConfig


def find_model(folder: Path) -> Path:
    """The folder of the model: itself, or the judge within a training's output folder; `UserError` where neither is."""
    found = next((one for one in (folder, folder / JUDGE) if (one / "config.json").is_file()), None)
    if found is None:
        raise UserError(f"checkpoint {folder}: holds no saved model (config.json); name a folder that does", 2)
    return found


def record_of(folder: Path, config: JudgeConfig) -> JudgeRecord:
    """`judge.json` where there is one; else how the configuration asks, freezes and names its base model.

    A checkpoint of the trainer says its epoch, another model counts as of epoch 1. Counts of weights are then 0: they
    are not known.
    """
    if (folder / RECORD).is_file():
        return load_record(folder)
    made = text_config(str(folder))
    return JudgeRecord(
        profile=config.profile,
        base_model=config.model.base,
        **config.judging.model_dump(),
        max_length=config.training.max_length,
        frozen_blocks=config.training.freeze_layers,
        n_blocks=made.num_hidden_layers,
        head_is_tied=bool(made.tie_word_embeddings),
        trainable_parameters=0,
        frozen_parameters=0,
        data=config.data.data,
        epoch=epoch_of(folder),
        epochs=config.training.num_epochs,
    )


def epoch_of(folder: Path) -> float:
    """The epoch of a trainer's checkpoint; 1 where it does not say."""
    try:
        epoch = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME)).epoch
    except (OSError, ValueError, TypeError):
        return 1.0
    return float(epoch or 1.0)


def number_of(record: JudgeRecord) -> int:
    """The epoch under which a model's pictures stand, at least 1."""
    return max(1, math.ceil(record.epoch - 1e-6))


def tokenizer_of(folder: Path, record: JudgeRecord) -> PreTrainedTokenizerBase:
    """The model's own tokenizer, or, where a trainer's checkpoint has none, that of its base model."""
    has_own = (folder / "tokenizer_config.json").is_file()
    return load_tokenizer(str(folder) if has_own else record.base_model)
