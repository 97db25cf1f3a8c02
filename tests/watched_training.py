"""A judge in miniature that is really trained: a random Qwen3 and requests in which one planted word decides.

Dropout is on, so that a watcher that draws a random number, or leaves evaluation mode on, changes the weights.
"""

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from src.utils.safety_judge.freezing import blocks_of, freeze
from src.utils.safety_judge.samples import SafetySample, labels
from src.utils.safety_judge.scoring import JudgeTemplate, encode
from src.utils.safety_judge.settings import EvaluationConfig, JudgeTraining
from src.utils.safety_judge.training import LabelledPrompts, train_judge
from src.utils.watching.safety_watcher import SafetyWatcher
from tests.tiny_models import grammar, provenance, tiny_model, tokenizer

QUESTION = "So {prompt} yes or no?"
MAX_LENGTH = 64
N_FROZEN = 1
COMMAND = "python src/train_safety_judge.py --visualize_during_training"


@cache
def whole_words() -> list[str]:
    """Words of at least four letters that are one token of the tests' language."""
    words = {word for question in grammar().questions("held_out") for word in question.question.split()}
    plain = sorted(word for word in words if word.isalpha() and word.islower() and len(word) > 3)
    return [word for word in plain if len(tokenizer().encode(f" {word}", add_special_tokens=False)) == 1]


def planted_words() -> tuple[str, str]:
    """The words that make a request safe and unsafe."""
    safe, unsafe = whole_words()[:2]
    return safe, unsafe


@cache
def judge_template() -> JudgeTemplate:
    return JudgeTemplate.of(tokenizer(), QUESTION, "no", "yes")


def planted_samples(count: int, seed: int = 0) -> list[SafetySample]:
    """Pairs of requests that differ in the planted word alone, at a random place among words that say nothing."""
    rng = random.Random(seed)
    samples = []
    for number in range(count // 2):
        words = rng.sample(whole_words()[2:], rng.randint(4, 8))
        place = rng.randrange(len(words))
        for label, word in enumerate(planted_words()):
            text = " ".join(["About", *words[:place], word, *words[place:]])
            samples.append(
                SafetySample(f"{seed}-{number}-{label}", text, bool(label), "planted", "test", f"{seed}-{number}")
            )
    rng.shuffle(samples)
    return samples


def labelled(samples: Sequence[SafetySample]) -> LabelledPrompts:
    rows = encode(tokenizer(), judge_template(), [sample.prompt for sample in samples], MAX_LENGTH)
    return LabelledPrompts(rows, labels(samples))


def judge_model(n_frozen: int = N_FROZEN, dropout: float = 0.1, seed: int = 0) -> PreTrainedModel:
    model = tiny_model(seed=seed)
    for block in blocks_of(model):
        setattr(block.get_submodule("self_attn"), "attention_dropout", dropout)  # noqa: B010
    freeze(model, n_frozen)
    return model


def trained_judge(
    model: PreTrainedModel, work_dir: Path, callbacks: Sequence[TrainerCallback] = (), count: int = 32, **changes: Any
) -> PreTrainedModel:
    """Train on planted samples with the judge's own training."""
    values = {"num_epochs": 2, "batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 3e-3}
    settings = JudgeTraining.model_validate(
        JUDGE_DEFAULTS | values | {"freeze_layers": N_FROZEN, "max_length": MAX_LENGTH, "keep": "last"} | changes
    )
    evaluation = EvaluationConfig.model_validate(EVALUATION_DEFAULTS)
    data = (labelled(planted_samples(count)), labelled(planted_samples(16, seed=9)))
    train_judge(model, judge_template(), *data, settings, evaluation, work_dir, callbacks)
    return model


def same_weights(one: PreTrainedModel, two: PreTrainedModel) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


JUDGE_DEFAULTS = {"scheduler": "cosine", "warmup_share": 0.05, "weight_decay": 0.01, "max_grad_norm": 1.0, "seed": 0}
EVALUATION_DEFAULTS = {"penalties": [1.0]}


def watcher(output_dir: Path, interval: int = 3, validation: int = 32, **changes: Any) -> SafetyWatcher:
    settings: dict[str, Any] = {"budget_seconds": 60.0, "n_statistics": 16}  # as much time as it takes, on any machine
    return SafetyWatcher(
        tokenizer(),
        judge_template(),
        planted_samples(validation, seed=5),
        output_dir,
        max_length=MAX_LENGTH,
        provenance=provenance("train_safety_judge"),
        command=COMMAND,
        interval=interval,
        **(settings | changes),
    )
