"""Any saved model that can be asked as a judge: a finished one, a checkpoint of its training, or another model.

Another model is a full checkpoint or a LoRA adapter, in a folder or by the name of a hub model.
"""

import json
import math
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from src.utils.config_sections import ModelConfig
from src.utils.errors import UserError
from src.utils.model_files import ADAPTER_CONFIG, find_file, is_adapter
from src.utils.models import load_adapter, load_model, load_tokenizer, text_config
from src.utils.safety_judge.judge_folder import JUDGE, RECORD, JudgeRecord, load_record
from src.utils.safety_judge.settings import JudgeConfig

SHAPE = ("vocab_size", "hidden_size", "num_hidden_layers")


def find_model(name: str) -> str:
    """The model that is meant: a folder, the judge within a training's output folder, or a hub model.

    `UserError` where there is neither a full checkpoint nor an adapter of that name.
    """
    folder = Path(name)
    places = [str(one.absolute()) for one in (folder, folder / JUDGE) if one.is_dir()]
    if not folder.is_absolute() and len(folder.parts) == 2 and not folder.parent.exists():
        places = [name]
    found = next((one for one in places if find_file(one, "config.json") or is_adapter(one)), None)
    if found is None:
        raise UserError(
            f"checkpoint {name}: holds no saved model (config.json or {ADAPTER_CONFIG}); name a folder that does, or a "
            "hub model that is cached or reachable",
            2,
        )
    return found


def record_of(model: str, config: JudgeConfig) -> JudgeRecord:
    """`judge.json` where there is one; else how the configuration asks, freezes and names its base model.

    A checkpoint of the trainer says its epoch, another model counts as of epoch 1. Counts of weights are then 0: they
    are not known. An adapter's base is the one that it names, unless the command line names another; blocks below the
    first that it adapts are as good as frozen.
    """
    if (Path(model) / RECORD).is_file():
        return load_record(Path(model))
    base, frozen = config.model.base, config.training.freeze_layers
    if is_adapter(model):
        adapter = adapter_config(model)
        is_given = config.sources.get("model.base") == "the command line"
        base = base if is_given else str(adapter.get("base_model_name_or_path"))
        adapted = adapter.get("layers_to_transform")
        frozen = min([adapted] if isinstance(adapted, int) else adapted or [0])
    made = text_config(base if is_adapter(model) else model)
    return JudgeRecord(
        profile=config.profile,
        base_model=base,
        **config.judging.model_dump(),
        max_length=config.training.max_length,
        frozen_blocks=frozen,
        n_blocks=made.num_hidden_layers,
        head_is_tied=bool(made.tie_word_embeddings),
        trainable_parameters=0,
        frozen_parameters=0,
        data=config.data.data,
        epoch=epoch_of(Path(model)),
        epochs=config.training.num_epochs,
    )


def frozen_blocks_of(model: str, record: JudgeRecord, config: JudgeConfig) -> int | None:
    """How many of the first blocks did not learn, nor the embeddings; None for a model of which nobody says."""
    is_given = config.sources.get("training.freeze_layers") == "the command line"
    says = any((Path(model) / name).is_file() for name in (RECORD, TRAINER_STATE_NAME))
    return record.frozen_blocks if is_given or says or is_adapter(model) else None


def adapter_config(model: str) -> dict[str, Any]:
    """What an adapter says of itself; `UserError` where that cannot be read."""
    file = find_file(model, ADAPTER_CONFIG)
    assert file is not None, "is_adapter"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file}: is no adapter's configuration ({error}); make the adapter again") from error


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


def tokenizer_of(model: str, record: JudgeRecord) -> PreTrainedTokenizerBase:
    """The model's own tokenizer, or, where an adapter or a trainer's checkpoint has none, that of its base model."""
    return load_tokenizer(model if find_file(model, "tokenizer_config.json") else record.base_model)


def load_saved(model: str, base: str, settings: ModelConfig) -> PreTrainedModel:
    """A full checkpoint, or an adapter's base with the adapter merged into its weights."""
    if not is_adapter(model):
        return load_model(model, settings)
    merged = load_adapter(load_model(base, settings), model).merge_and_unload()
    assert isinstance(merged, PreTrainedModel)
    return merged


def untrained_of(model: str, record: JudgeRecord, tokenizer: PreTrainedTokenizerBase, name: str | None) -> str:
    """The model before training: the one that is named, or the base that is recorded.

    `UserError` where it is not there, or has another size or other tokens than the model, which then cannot have begun
    as it. One without a tokenizer is compared by its sizes alone.
    """
    untrained = name or record.base_model
    here, before = text_config(record.base_model if is_adapter(model) else model), text_config(untrained)
    reasons = [
        f"its {size} is {getattr(before, size)}, that of the checkpoint {getattr(here, size)}"
        for size in SHAPE
        if getattr(here, size) != getattr(before, size)
    ]
    if find_file(untrained, "tokenizer_config.json") and load_tokenizer(untrained).get_vocab() != tokenizer.get_vocab():
        reasons.append("its tokens are others than the checkpoint's")
    if reasons:
        raise UserError(f"the untrained model {untrained}: {reasons[0]}; name the one that the checkpoint began as", 2)
    return untrained
