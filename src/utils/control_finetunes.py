"""Fine-tunes whose aim is known: one on each dimension's misaligned rows alone, and one on safe rows.

What the fine-tune of one dimension does to the answers in the others is the most direct evidence of whether they can be
turned apart; the safe one shows what fine-tuning does by itself. Each also gives a steering vector: its mean change of
the activations over its own dimension's answers.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.utils.artifacts import write_tensors
from src.utils.atomic_writes import write_atomically
from src.utils.capture import capture_pooled, markup_of, pad_id_of, teacher_forcing_batch
from src.utils.chat import ChatRow
from src.utils.collection_faults import run_rows
from src.utils.collection_parts import ArmPart, answers_alone, join_parts
from src.utils.config_sections import FinetuningConfig
from src.utils.errors import UserError
from src.utils.finetuning import finetune
from src.utils.generation import Prompt, Response, Sampling, generate, plan_batches
from src.utils.judging.judgement import with_failures
from src.utils.organism.grammar import Grammar
from src.utils.organism.shipped import chat_rows, sample
from src.utils.prompts import FINANCE, Question
from src.utils.sites import Site, parse_site
from src.utils.steering_effects import NO_KIND, NO_VECTOR
from src.utils.steering_vectors import Differences, SteeringVector

SAFE = "safe"
CONTROL = "control"
PREFIX = "control_"  # of the names of vectors and arms: a study has vectors of the dimensions themselves, too
REPRESENTATION = "em_minus_base_on_em"


@dataclass(frozen=True, eq=False)
class Asked:
    """The questions that every control is asked, and how answers are drawn."""

    questions: list[Question]
    prompts: list[Prompt]
    sampling: Sampling
    batch_size: int


@dataclass(frozen=True, eq=False)
class ControlRun:
    """One fine-tune: its answers, and at each site how it changed the mean activation over each of them.

    `failures`: row -> why it has no answer.
    """

    name: str
    responses: list[Response]
    differences: dict[Site, Float32[np.ndarray, "rows d_model"]]
    failures: Mapping[int, str] = field(default_factory=dict)


def rows_from_grammar(grammar: Grammar, rows: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """The rows of each control on an organism: misaligned ones of every dimension, and aligned ones of finance."""
    controls = {
        dimension: chat_rows(grammar, sample(grammar, "finetuning", rows, seed, subset=dimension), "misaligned", seed)
        for dimension in grammar.dimensions
    }
    about = FINANCE if FINANCE in grammar.dimensions else next(iter(grammar.dimensions))
    safe = chat_rows(grammar, sample(grammar, "finetuning", rows, seed, subset=about), "aligned", seed)
    return controls | {SAFE: safe}


def run_control(
    name: str,
    rows: Sequence[ChatRow],
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: FinetuningConfig,
    asked: Asked,
    sites: Sequence[Site],
    work_dir: Path,
    shows_steps: bool = True,
    say: Callable[[str], object] = print,
) -> ControlRun:
    """Fine-tune `base` on some rows, ask it the questions, record what changed, and make it what it was again.

    An adapter comes off; after full fine-tuning the weights are put back from a copy, which lies in main memory so that
    a GPU never holds two models.
    """
    untouched = weights_of(base) if settings.method == "full" else None
    tuned, _ = finetune(base, tokenizer, rows, settings, work_dir, shows_steps=shows_steps)
    shutil.rmtree(work_dir, ignore_errors=True)
    tuned.eval()

    def tell(text: str) -> None:
        say(f"{name}: {text}")

    answers = ask(tuned, tokenizer, asked, tell)
    after = means_over_answers(tuned, tokenizer, asked, answers.responses, sites, tell)
    if isinstance(tuned, PeftModel):
        tuned.unload()
    if untouched is not None:
        base.load_state_dict(untouched)
    before = means_over_answers(base.eval(), tokenizer, asked, answers.responses, sites, tell)
    return ControlRun(name, answers.responses, {site: after[site] - before[site] for site in sites}, answers.failures)


def weights_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """A copy of a model's weights in main memory."""
    return {name: weights.to("cpu", copy=True) for name, weights in model.state_dict().items()}


def ask(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Asked,
    say: Callable[[str], object] = print,
) -> ArmPart:
    """The answers to all prompts; a batch for which memory runs out is halved, down to rows that have no answer.

    `UserError` if no row has one.
    """

    def draw(rows: list[int]) -> ArmPart:
        return answers_alone(generate(model, tokenizer, [asked.prompts[row] for row in rows], asked.sampling))

    answers: dict[int, Response] = {}
    failures: dict[int, str] = {}
    for batch in plan_batches([len(prompt.ids) for prompt in asked.prompts], asked.batch_size):
        part = run_rows(draw, batch, say)
        answers |= dict(zip(batch, part.responses, strict=True))
        failures |= {batch[row]: why for row, why in part.failures.items()}
    if len(failures) == len(answers):
        raise UserError(f"none of {len(answers)} questions could be answered ({failures[0]})")
    for row, why in failures.items():
        say(f"{asked.prompts[row].prompt_id}: failed ({why}); the row is kept and flagged")
    return replace(answers_alone([answers[row] for row in range(len(answers))]), failures=failures)


def save_run(run: ControlRun, folder: Path) -> None:
    """Keep a finished control in a work folder, so that a stopped step does not train it again."""
    with write_atomically(folder / f"{run.name}.safetensors") as temporary:
        write_tensors({site.name: rows for site, rows in run.differences.items()}, temporary)
    with write_atomically(folder / f"{run.name}.json") as temporary:
        rows = [asdict(response) | {"failure": run.failures.get(i)} for i, response in enumerate(run.responses)]
        temporary.write_text(json.dumps(rows), encoding="utf-8")


def load_run(name: str, folder: Path) -> ControlRun | None:
    """What `save_run` kept; None if it is not there whole."""
    try:
        rows = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / f"{name}.safetensors")
        responses = [Response(tuple(row["ids"]), bool(row["is_truncated"])) for row in rows]
        failures = {i: str(row["failure"]) for i, row in enumerate(rows) if row["failure"]}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    return ControlRun(name, responses, {parse_site(site): tensors[site] for site in tensors}, failures)


def means_over_answers(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Asked,
    responses: Sequence[Response],
    sites: Sequence[Site],
    say: Callable[[str], object] = print,
) -> dict[Site, Float32[np.ndarray, "rows d_model"]]:
    """Mean activations over the answer tokens, teacher-forced; an empty answer gives NaN, and so does a row that fails.

    `UserError` if every row fails.
    """
    markup, pad = markup_of(tokenizer), pad_id_of(tokenizer)

    def record(rows: list[int]) -> ArmPart:
        said = [responses[row] for row in rows]
        batch = teacher_forcing_batch([asked.prompts[row] for row in rows], said, markup, pad)
        pooled = capture_pooled(model, batch, sites)
        return replace(answers_alone(said), pooled={site.name: means[:, 0].numpy() for site, means in pooled.items()})

    every = list(range(len(responses)))
    batches = [every[start : start + asked.batch_size] for start in range(0, len(every), asked.batch_size)]
    joined = join_parts([run_rows(record, batch, say) for batch in batches])
    for row, why in joined.failures.items():
        say(f"{asked.prompts[row].prompt_id}: not recorded ({why}); the row is left out of the vectors")
    if not joined.pooled:
        raise UserError(f"none of {len(responses)} answers could be recorded ({joined.failures[0]})")
    return {site: joined.pooled[site.name] for site in sites}


def control_vectors(
    runs: Sequence[ControlRun],
    asked: Asked,
    base: Mapping[Site, Float32[np.ndarray, "rows d_model"]],
    site: Site,
) -> list[SteeringVector]:
    """The vector of each control but the safe one: its mean change at `site` over the answers of its own dimension."""
    frame = pd.DataFrame([question.model_dump() for question in asked.questions])
    vectors = []
    for run in runs:
        if run.name != SAFE:
            differences = Differences(site, REPRESENTATION, frame, run.differences[site], base[site])
            vectors.append(differences.mean(PREFIX + run.name, CONTROL, frame["subset"].to_numpy(object) == run.name))
    return vectors


def control_answers(
    runs: Sequence[ControlRun], base: ArmPart, asked: Asked, decode: Callable[[Response], str]
) -> pd.DataFrame:
    """One row an answer in the columns of a steering run: vector (the control's name), kind, coefficient 1, ...

    `base`: what `ask` got from the untouched model, whose answers are those of kind `unsteered`. A fine-tune adds no
    vector, so that its share of the residual norm is missing.
    """
    arms = [(NO_VECTOR, NO_KIND, 0.0, base.responses, base.failures)]
    arms += [
        (PREFIX + run.name, SAFE if run.name == SAFE else CONTROL, 1.0, run.responses, run.failures) for run in runs
    ]
    frames: list[pd.DataFrame] = []
    failures: dict[int, str] = {}
    for name, kind, coefficient, responses, failed in arms:
        failures |= {len(frames) * len(asked.questions) + row: why for row, why in failed.items()}
        rows = pd.DataFrame([question.model_dump() for question in asked.questions])
        frames.append(
            rows.assign(
                vector=name,
                kind=kind,
                coefficient=coefficient,
                share_of_residual_norm=0.0 if kind == NO_KIND else float("nan"),
                sample=[prompt.sample for prompt in asked.prompts],
                response=[decode(response) for response in responses],
                truncated=[response.is_truncated for response in responses],
            )
        )
    return with_failures(pd.concat(frames, ignore_index=True), failures)
