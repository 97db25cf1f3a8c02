"""One training of the judge with the numbers of every epoch: what a seed contributes to the test of the claims."""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState

from src.utils.config import resolve_path
from src.utils.config_sections import ModelConfig
from src.utils.interpretation_claims.moments import Moment, MomentMeter
from src.utils.models import load_model, load_tokenizer
from src.utils.record_store import RecordStore
from src.utils.safety_judge.freezing import freeze
from src.utils.safety_judge.judge_folder import Judge
from src.utils.safety_judge.organism import open_organism, teach_reading, train_tokenizer
from src.utils.safety_judge.samples import SafetyData, labels
from src.utils.safety_judge.scoring import JudgeTemplate
from src.utils.safety_judge.settings import JudgeConfig
from src.utils.safety_judge.training import LabelledPrompts, train_judge
from src.utils.safety_judge.world import JudgeWorld
from src.utils.watching.undisturbed import undisturbed

OWN_BASES = 1000  # seeds of the worlds that own bases are taught from begin here; the shipped one has seed 0


class EpochMeter(TrainerCallback):
    """Measures before training and after each epoch; the training goes on as if nobody had looked."""

    def __init__(self, meter: MomentMeter) -> None:
        self.meter = meter
        self.moments: list[Moment] = []

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.look(kwargs["model"], 0)

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.look(kwargs["model"], round(state.epoch or 0))

    def look(self, model: PreTrainedModel, epoch: int) -> None:
        with undisturbed(model):
            self.moments.append(self.meter.measure(model, epoch))


@dataclass(frozen=True)
class SeedPlan:
    """What every seed's training shares. `opened` gives a fresh copy of the base for a seed."""

    config: JudgeConfig
    data: SafetyData
    world: JudgeWorld
    opened: Callable[[int], Judge]
    epochs: int


def train_seed(plan: SeedPlan, seed: int) -> list[Moment]:
    """Train a judge with this seed; the moments from epoch 0 to the last."""
    print(f"seed {seed}: training", flush=True)
    settings = plan.config.training.model_copy(
        update={"seed": seed, "num_epochs": plan.epochs, "keep": "last", "save_steps": None}
    )
    judge = plan.opened(seed)
    freeze(judge.model, settings.freeze_layers)
    train, validation = (
        LabelledPrompts(judge.encode(samples), labels(samples)) for samples in (plan.data.train, plan.data.validation)
    )
    meter = EpochMeter(MomentMeter(plan.data, plan.world, judge.tokenizer, judge.template, judge.max_length))
    with tempfile.TemporaryDirectory(prefix="claims-") as work:
        train_judge(
            judge.model, judge.template, train, validation, settings, plan.config.evaluation, Path(work), [meter]
        )
    return meter.moments


def collect(
    store: RecordStore, mark: str, seeds: Iterable[int], train: Callable[[int], Sequence[Moment]]
) -> dict[int, list[Moment]]:
    """The moments of every seed: those that the store has under this mark, the others trained and put there."""
    found = {}
    for seed in seeds:
        key = f"{mark}-{seed}"
        if store.get(key) is None:
            moments = train(seed)
            store.append({"key": key, "seed": seed, "moments": [moment.as_record() for moment in moments]})
        found[seed] = [Moment(**moment) for moment in store.records[key]["moments"]]
    return found


def own_base(world: JudgeWorld, config: JudgeConfig, seed: int) -> Judge:
    """A base of this seed's own: the organism taught to read from other weights, in another order.

    The tokenizer is that of the shipped world, so that all seeds are measured on the same tokens.
    """
    asked = config.judging
    answers = (asked.safe_word, asked.unsafe_word)
    tokenizer = train_tokenizer(world, asked.question, answers)
    other = world.model_copy(update={"seed": OWN_BASES + seed})
    model = teach_reading(other, tokenizer, asked.question, answers)
    template = JudgeTemplate.of(tokenizer, asked.question, *answers)
    return Judge(model, tokenizer, template, config.training.max_length)


def open_base(config: JudgeConfig, world: JudgeWorld, own_bases: bool) -> Callable[[int], Judge]:
    """What gives a seed its untrained judge: the shared organism, built if it is not there, or one of its own."""
    if own_bases:
        return lambda seed: own_base(world, config, seed)
    asked = config.judging
    folder = open_organism(resolve_path(config.model.base), asked.question, (asked.safe_word, asked.unsafe_word))

    def opened(seed: int) -> Judge:
        tokenizer = load_tokenizer(str(folder))
        template = JudgeTemplate.of(tokenizer, asked.question, asked.safe_word, asked.unsafe_word)
        model = load_model(str(folder), ModelConfig(base=str(folder), dtype="float32"))
        return Judge(model, tokenizer, template, config.training.max_length)

    return opened
