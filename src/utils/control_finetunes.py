"""Fine-tunes whose aim is known: one on each dimension's misaligned rows alone, and one on safe rows.

What the fine-tune of one dimension does to the answers in the others is the most direct evidence of whether they can be
turned apart; the safe one shows what fine-tuning does by itself. Each also gives a steering vector: its mean change of
the activations over its own dimension's answers.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.numpy import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.utils.artifacts import write_atomically, write_tensors
from src.utils.capture import capture_pooled, markup_of, pad_id_of, teacher_forcing_batch
from src.utils.chat import ChatRow
from src.utils.config_sections import FinetuningConfig
from src.utils.errors import UserError
from src.utils.finetuning import finetune
from src.utils.generation import Prompt, Response, Sampling, answer_all
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
    """One fine-tune: its answers, and at each site how it changed the mean activation over each of them."""

    name: str
    responses: list[Response]
    differences: dict[Site, Float32[np.ndarray, "rows d_model"]]


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
) -> ControlRun:
    """Fine-tune a LoRA on some rows, ask it the questions, record what it changed, and take it off `base` again."""
    if settings.method != "lora":
        raise UserError("controls are LoRAs, which come off the model again; give --method lora", 2)
    tuned, _ = finetune(base, tokenizer, rows, settings, work_dir, shows_steps=shows_steps)
    shutil.rmtree(work_dir, ignore_errors=True)
    assert isinstance(tuned, PeftModel)
    tuned.eval()
    responses = answer_all(tuned, tokenizer, asked.prompts, asked.sampling, asked.batch_size)
    after = means_over_answers(tuned, tokenizer, asked, responses, sites)
    tuned.unload()
    before = means_over_answers(base.eval(), tokenizer, asked, responses, sites)
    return ControlRun(name, responses, {site: after[site] - before[site] for site in sites})


def save_run(run: ControlRun, folder: Path) -> None:
    """Keep a finished control in a work folder, so that a stopped step does not train it again."""
    with write_atomically(folder / f"{run.name}.safetensors") as temporary:
        write_tensors({site.name: rows for site, rows in run.differences.items()}, temporary)
    with write_atomically(folder / f"{run.name}.json") as temporary:
        temporary.write_text(json.dumps([asdict(response) for response in run.responses]), encoding="utf-8")


def load_run(name: str, folder: Path) -> ControlRun | None:
    """What `save_run` kept; None if it is not there whole."""
    try:
        rows = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        tensors = load_file(folder / f"{name}.safetensors")
        responses = [Response(tuple(row["ids"]), bool(row["is_truncated"])) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    return ControlRun(name, responses, {parse_site(site): tensors[site] for site in tensors})


def means_over_answers(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Asked,
    responses: Sequence[Response],
    sites: Sequence[Site],
) -> dict[Site, Float32[np.ndarray, "rows d_model"]]:
    """Mean activations over the answer tokens, teacher-forced; an empty answer gives NaN."""
    markup, pad = markup_of(tokenizer), pad_id_of(tokenizer)
    parts: dict[Site, list[np.ndarray]] = {site: [] for site in sites}
    for start in range(0, len(responses), asked.batch_size):
        rows = slice(start, start + asked.batch_size)
        batch = teacher_forcing_batch(asked.prompts[rows], responses[rows], markup, pad)
        for site, pooled in capture_pooled(model, batch, sites).items():
            parts[site].append(pooled[:, 0].numpy())
    return {site: np.concatenate(arrays) for site, arrays in parts.items()}


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
    runs: Sequence[ControlRun], base: Sequence[Response], asked: Asked, decode: Callable[[Response], str]
) -> pd.DataFrame:
    """One row an answer in the columns of a steering run: vector (the control's name), kind, coefficient 1, ...

    The untouched model's answers are those of kind `unsteered`; a fine-tune adds no vector, so that its share of the
    residual norm is missing.
    """
    arms = [(NO_VECTOR, NO_KIND, 0.0, base)]
    arms += [(PREFIX + run.name, SAFE if run.name == SAFE else CONTROL, 1.0, run.responses) for run in runs]
    frames = []
    for name, kind, coefficient, responses in arms:
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
    return pd.concat(frames, ignore_index=True)
