"""A round of training on the archive: its training half beside ordinary prompts, so that those are not forgotten."""

import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from src.utils.open_ended.archive import Elite
from src.utils.prompts import spread
from src.utils.safety_judge.freezing import freeze
from src.utils.safety_judge.judge_folder import Judge
from src.utils.safety_judge.samples import SafetySample, labels
from src.utils.safety_judge.settings import EvaluationConfig, JudgeTraining
from src.utils.safety_judge.training import LabelledPrompts, train_judge


def retraining_samples(
    elites: Sequence[Elite], ordinary: Sequence[SafetySample], replay: float, seed: int
) -> list[SafetySample]:
    """The elites' prompts and `replay` times as many ordinary ones, evenly spread, in an order that the seed sets."""
    attacks = list({sample.sample_id: sample for elite in elites for sample in [elite.prompt.sample()]}.values())
    samples = [*attacks, *spread(list(ordinary), round(replay * len(attacks)))]
    random.Random(seed).shuffle(samples)
    return samples


def round_settings(training: JudgeTraining, epochs: int, learning_rate: float | None, seed: int) -> JudgeTraining:
    """The profile's training as a round after it: at its rate where none is given, last weights kept."""
    changes = {"num_epochs": epochs, "learning_rate": learning_rate or training.learning_rate, "seed": seed}
    return training.model_copy(update=changes | {"keep": "last", "save_steps": None})


def retrain(
    judge: Judge,
    frozen_blocks: int,
    samples: Sequence[SafetySample],
    validation: Sequence[SafetySample],
    settings: JudgeTraining,
    evaluation: EvaluationConfig,
    work_dir: Path,
) -> float:
    """Train the judge in place, the same blocks frozen as before; the validation accuracy on ordinary prompts after it.

    A round that is stopped begins anew; it takes a minute on the organism.
    """
    freeze(judge.model, frozen_blocks)
    train, held = (LabelledPrompts(judge.encode(chosen), labels(chosen)) for chosen in (samples, validation))
    with TemporaryDirectory(dir=work_dir) as folder:
        log, _ = train_judge(judge.model, judge.template, train, held, settings, evaluation, Path(folder))
    return float([row for row in log if row["kind"] == "epoch"][-1]["accuracy"])
