"""The steps of the safety judge's study: data, training (with its pictures), evaluation, open-ended testing.

Everything lies in one output folder, but for open-ended testing, which has its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from src.pipelines.step import Step, keys_of, made_by
from src.utils.errors import UserError
from src.utils.manifests import Freshness, Provenance, is_fresh, read_manifest, refuse_foreign_overwrite
from src.utils.model_files import fingerprint
from src.utils.open_ended.options import DATA as ATTACK_DATA
from src.utils.open_ended.options import OUTPUT
from src.utils.safety_judge.data import WORLD, data_inputs
from src.utils.safety_judge.settings import JudgeConfig
from src.utils.watching.epoch_metrics import load_history
from src.utils.watching.schedule import Schedule

JUDGE_OPTIONS = ("--profile", "--config", "--output-dir", "--results-dir", "--force")
PICTURES, PROGRESS = "training_visualizations", "training_progress.html"
NEURON_MAP = "epoch_{epoch}_neuron_map.html"

# how often a checkpoint is written and how many prompts are scored at once changes nothing that is measured
OPERATIONAL = {"training": {"save_steps"}, "evaluation": {"eval_batch_size"}}


@dataclass(frozen=True)
class JudgeStudy:
    """One run of the study: its configuration and its folders."""

    config: JudgeConfig
    output_dir: Path
    open_ended_dir: Path = OUTPUT
    has_baselines: bool = True
    has_open_ended: bool = True
    iterations: int = 40  # of the open-ended search

    @property
    def data(self) -> Path:
        return self.output_dir / "safety_data"

    @property
    def judge(self) -> Path:
        return self.output_dir / "safety_judge"

    @property
    def pictures(self) -> Path:
        return self.output_dir / PICTURES

    @property
    def evaluation(self) -> Path:
        return self.output_dir / "evaluation.json"

    @property
    def evaluation_page(self) -> Path:
        return self.output_dir / "evaluation.html"

    @property
    def baselines(self) -> Path:
        return self.output_dir / "baselines.json"


JudgeStep = Step[JudgeStudy]


def sections(config: JudgeConfig, *names: str) -> dict[str, Any]:
    """The config sections that a step depends on, without what is only operational."""
    return {name: getattr(config, name).model_dump(exclude=OPERATIONAL.get(name, set())) for name in names}


def training_inputs(study: JudgeStudy) -> dict[str, str]:
    """The data, and the base model; an organism is built from the judge world, which is hashed in its place."""
    config = study.config
    is_organism = config.model.world is not None
    inputs = data_inputs([*config.data.data, *([WORLD] if is_organism else [])])
    return inputs if is_organism else inputs | {"base model": fingerprint(config.model.base)}


def missing_pictures(study: JudgeStudy) -> str | None:
    """What was not drawn of a training that is to be watched; pictures of an earlier training do not count."""
    watching = study.config.watching
    if not watching.visualize_during_training:
        return None
    watched = is_fresh(study.pictures / PROGRESS, TRAIN.provenance(study))
    if not watched:
        return f"{PROGRESS}: {watched.reason}"
    try:
        drawn = {record.number for record in load_history(study.pictures, "epoch") if record.is_visualised}
    except UserError as error:
        return error.message
    schedule, last = Schedule("epoch", watching.visualization_interval), study.config.training.num_epochs
    due = [epoch for epoch in range(1, last + 1) if schedule.is_due(epoch, epoch == last)]
    if undrawn := [epoch for epoch in due if epoch not in drawn]:
        return f"no pictures of epoch {undrawn[0]}"
    if watching.run_advanced_mi:
        undrawn = [epoch for epoch in due if not (study.pictures / NEURON_MAP.format(epoch=epoch)).is_file()]
        return f"no advanced pictures of epoch {undrawn[0]}" if undrawn else None
    return None


def training_words(study: JudgeStudy, is_forced: bool) -> tuple[str, ...]:
    """A training that was stopped continues, unless all is made again."""
    watched = ("--visualize-during-training",) if study.config.watching.visualize_during_training else ()
    return (*watched, "--force" if is_forced else "--resume")


def evaluation_settings(config: JudgeConfig) -> dict[str, Any]:
    """What is tested on and how often is resampled; `also` is further data, of a run by hand."""
    evaluation = sections(config, "evaluation")["evaluation"]
    evaluation["seed"] = evaluation.pop("eval_seed")
    return {"data": config.data.data, "also": [], "evaluation": evaluation}


def evaluation_inputs(study: JudgeStudy, also: Sequence[str] = ()) -> dict[str, str]:
    return made_by(TRAIN.script, study, study.judge) | data_inputs([*study.config.data.data, *also])


def attacked_with(config: JudgeConfig) -> str:
    """Prompts of the judge world for a judge of it, written ones for any other."""
    return "judge_world" if config.data.data == [WORLD] else "natural"


def open_ended_words(study: JudgeStudy, is_forced: bool) -> tuple[str, ...]:
    """All that the script is told; it searches whenever it is called, from what it has judged already."""
    return (
        *(("--force",) if is_forced else ()),
        *("--checkpoint", str(study.output_dir), "--output-dir", str(study.open_ended_dir)),
        *("--data", attacked_with(study.config), "--iterations", str(study.iterations)),
        *("--seed", str(study.config.training.seed)),
    )


class OpenEndedStep(JudgeStep):
    """A step whose script has settings of its own, left as they were where the runner does not give them.

    Its world is that of the attacks.
    """

    def refuse_overwrite(self, study: JudgeStudy, is_forced: bool) -> None:
        refuse_foreign_overwrite(self.artefact(study), study.config.profile, attacked_with(study.config), is_forced)

    def provenance(self, study: JudgeStudy) -> Provenance:
        config, seeds = study.config, {"seed": study.config.training.seed}
        used = self.settings(config) | {"iterations": study.iterations}
        return Provenance(self.name, config.profile, attacked_with(config), used, seeds, self.inputs(study))

    def freshness(self, study: JudgeStudy, provenance: Provenance) -> Freshness:
        made = read_manifest(self.artefact(study))
        if made is not None:
            provenance = replace(provenance, config={**made.config, **provenance.config})
        return super().freshness(study, provenance)


DATA = JudgeStep(
    name="prepare_safety_data",
    script="src/prepare_safety_data.py",
    keys=keys_of("model", "base") + keys_of("data", "data"),  # whose model: the organism's, or another
    artefact=lambda study: study.data,
    settings=lambda config: {"data": config.data.data},
    inputs=lambda study: data_inputs(study.config.data.data),
    common_options=JUDGE_OPTIONS,
)
TRAIN = JudgeStep(
    name="train_safety_judge",
    script="src/train_safety_judge.py",
    keys=keys_of("model", "base", "device_map")
    + keys_of("data", "data")
    + keys_of("judging", "question", "safe_word", "unsafe_word")
    + keys_of(
        "training",
        *("num_epochs", "batch_size", "learning_rate", "gradient_accumulation_steps", "freeze_layers", "max_length"),
        *("scheduler", "warmup_share", "weight_decay", "gradient_checkpointing", "keep", "save_steps", "seed"),
    )
    + keys_of(
        "watching", "visualize_during_training", "visualization_interval", "run_advanced_mi", "visualization_budget"
    )
    + keys_of("evaluation", "eval_batch_size", "bins"),
    artefact=lambda study: study.judge,
    settings=lambda config: sections(config, "model", "data", "judging", "training"),
    inputs=training_inputs,
    find_gap=missing_pictures,
    common_options=JUDGE_OPTIONS,
    own_options=("--resume",),
    given=training_words,
)
EVALUATE = JudgeStep(
    name="evaluate_safety",
    script="src/evaluate_safety.py",
    reads=(TRAIN.name,),
    keys=keys_of("data", "data")
    + keys_of("model", "device_map")
    + keys_of("evaluation", "eval_batch_size", "bins", "bootstrap_resamples", "folds", "penalties", "eval_seed"),
    artefact=lambda study: study.evaluation,
    settings=evaluation_settings,
    inputs=evaluation_inputs,
    companions=lambda study: [study.evaluation_page, *([study.baselines] if study.has_baselines else [])],
    common_options=JUDGE_OPTIONS,
    own_options=("--no-baselines",),
)
OPEN_ENDED = OpenEndedStep(
    name="run_open_ended_testing",
    script="src/run_open_ended_testing.py",
    reads=(TRAIN.name,),
    keys=(),
    artefact=lambda study: study.open_ended_dir / "open_ended.html",
    settings=lambda config: {"data": attacked_with(config)},
    inputs=lambda study: (
        made_by(TRAIN.script, study, study.judge) | data_inputs([ATTACK_DATA[attacked_with(study.config)]])
    ),
    companions=lambda study: [study.open_ended_dir / name for name in ("open_ended.json", "archive.jsonl")],
    is_needed=lambda study: study.has_open_ended,
    why_not_needed=lambda study: "--skip-open-ended",
    common_options=(),
    given=open_ended_words,
)
JUDGE_STEPS: tuple[JudgeStep, ...] = (DATA, TRAIN, EVALUATE, OPEN_ENDED)
