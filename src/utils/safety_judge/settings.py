"""The judge's configuration: `configs/safety_judge.yaml`, its profile's part, then the command line, checked as one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from src.utils.config import CONFIG_FOLDER, explain, merge, read_yaml, shown
from src.utils.config_sections import ModelConfig, Section
from src.utils.errors import UserError

CONFIG_FILE = CONFIG_FOLDER / "safety_judge.yaml"
PROMPT = "{prompt}"


def naming_the_prompt_once(question: str) -> str:
    if question.count(PROMPT) != 1:
        raise ValueError(f"must name {PROMPT} exactly once")
    return question


JudgeQuestion = Annotated[str, AfterValidator(naming_the_prompt_once)]


class DataConfig(Section):
    data: list[str] = Field(
        min_length=1,
        description="world, a folder of train, validation and test.jsonl, a published set (toxicchat, wildguardmix, "
        "jbb, harmbench, xstest, aegis2) or name=file; several are put together",
    )


class QuestionConfig(Section):
    """What the model is asked; `{prompt}` stands for the prompt."""

    question: JudgeQuestion
    safe_word: str = Field(min_length=1)
    unsafe_word: str = Field(min_length=1)


class JudgeTraining(Section):
    """How the upper layers learn; see `training` and `freezing`."""

    num_epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1, description="prompts at once, on each device")
    learning_rate: float = Field(gt=0)
    gradient_accumulation_steps: int = Field(1, ge=1)
    freeze_layers: int = Field(ge=0, description="so many first blocks are frozen, embeddings and head always")
    max_length: int = Field(ge=8, description="tokens, template included; the end of a longer prompt is cut off")
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    warmup_share: float = Field(0.0, ge=0, lt=1, description="share of all steps")
    weight_decay: float = Field(0.01, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    gradient_checkpointing: bool = False
    keep: Literal["best", "last"] = Field("best", description="best: the epoch of the lowest validation loss")
    save_steps: int | None = Field(None, ge=1, description="a checkpoint to resume from; each epoch when not given")
    seed: int = 0


class WatchingConfig(Section):
    visualize_during_training: bool = Field(False, description="pictures of what the judge does while it learns")
    visualization_interval: int = Field(3, ge=1, description="epochs: pictures at 1, at its multiples and at the last")
    run_advanced_mi: bool = Field(False, description="neurons and circuits too")
    visualization_budget: float = Field(
        2.0, gt=0, description="seconds for a plain picture of an epoch; others in proportion"
    )


def check_watching(watching: WatchingConfig) -> None:
    """Raise `UserError` with code 2 where advanced pictures are asked for and none are drawn."""
    if watching.run_advanced_mi and not watching.visualize_during_training:
        raise UserError(
            "--run-advanced-mi: adds pictures to those of a training; give --visualize-during-training too", 2
        )


class EvaluationConfig(Section):
    eval_batch_size: int = Field(32, ge=1)
    bins: int = Field(15, ge=2, description="of equal width, for the calibration error")
    bootstrap_resamples: int = Field(1000, ge=100)
    folds: int = Field(4, ge=2, description="of the inner cross-validation that chooses a baseline's penalty")
    penalties: list[Annotated[float, Field(gt=0)]] = Field(min_length=1, description="C: the smaller the stronger")
    eval_seed: int = 0


class JudgeConfig(Section):
    """Everything a judge's run needs to know; `sources` says for each dotted key which file or option set it."""

    profile: str
    model: ModelConfig
    data: DataConfig
    judging: QuestionConfig
    training: JudgeTraining
    watching: WatchingConfig
    evaluation: EvaluationConfig
    sources: dict[str, str] = Field(default_factory=dict, exclude=True)


def judge_profiles(file: Path = CONFIG_FILE) -> list[str]:
    """The profiles of a judge's config file."""
    return sorted(read_yaml(file).get("profiles") or {})


def load_judge_config(
    profile: str | None = None, overrides: Mapping[str, Any] | None = None, file: Path = CONFIG_FILE
) -> JudgeConfig:
    """Resolve the configuration of one run; `overrides` maps dotted keys (`training.batch_size`) to values.

    An unknown profile, key or a wrong value raises one-line `UserError` with exit code 2.
    """
    common = read_yaml(file)
    profiles = common.pop("profiles", None) or {}
    default = common.pop("profile", None)
    name = profile or default
    if name not in profiles:
        raise UserError(f"profile {name!r} is unknown; the judge has {', '.join(sorted(profiles))}", 2)
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    merge(merged, common, sources, shown(file))
    merge(merged, profiles[name] or {}, sources, f"{shown(file)} (profile {name})")
    for key, value in (overrides or {}).items():
        section, setting = key.split(".")
        merge(merged, {section: {setting: value}}, sources, "the command line")
    if "model.base" in (overrides or {}):
        merged["model"]["world"] = None  # somebody else's model: the organism is not built in its place
    try:
        return JudgeConfig.model_validate({"profile": name, **merged, "sources": sources})
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            where, key = sources.get(".".join(map(str, first["loc"])), shown(file)), ".".join(map(str, first["loc"]))
            raise UserError(f"{where}: unknown key {key}; known keys there: {', '.join(known_keys(key))}", 2) from error
        raise UserError(explain(error, sources, shown(file)), 2) from error


def known_keys(key: str) -> list[str]:
    """The keys that may stand beside an unknown one."""
    section = JudgeConfig.model_fields.get(key.split(".")[0])
    if section is not None and isinstance(section.annotation, type):
        return sorted(section.annotation.model_fields)
    return sorted(name for name in JudgeConfig.model_fields if name not in ("sources", "profile"))
