"""Ask base and EM model the same questions and record what they say and what goes on inside.

Three arms: the base model on its own answers, the EM model on its own, and the base model over the EM model's
answers (identical text). Batches are planned once over all prompts; each batch of each arm is one file in the work
folder, so that a stopped run continues at the first missing batch and ends in the same bytes.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.numpy import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.utils.artifacts import open_resumable, write_atomically, write_tensors
from src.utils.capture import capture_means, count_layers, excluded_token_ids, site_name
from src.utils.chat import prompt_ids
from src.utils.config import CollectionConfig
from src.utils.errors import UserError
from src.utils.generation import Prompt, Response, Sampling, generate, plan_batches
from src.utils.manifests import Provenance
from src.utils.prompts import Question

Arm = Literal["base", "em", "base_on_em"]
ARMS: tuple[Arm, ...] = ("base", "em", "base_on_em")  # the third reads what the second said
AnyModel = PreTrainedModel | PeftModel
OUTLIER_ROBUST_DEVIATIONS = 10.0


@dataclass(frozen=True)
class Plan:
    """Every prompt of a study, in the order of the frame, and the batches in which they are run."""

    questions: list[Question]
    prompts: list[Prompt]
    batches: list[list[int]]
    sampling: Sampling


@dataclass(frozen=True)
class ModelPass:
    """A loaded model, the arms that it serves, and the context in which it is that arm's (an adapter switched off)."""

    model: AnyModel
    arms: Sequence[Arm]
    context: Callable[[Arm], AbstractContextManager] = lambda arm: nullcontext()


@dataclass(frozen=True)
class ArmPart:
    """What one arm recorded for one batch: answers and mean activations (rows, layers, d_model)."""

    responses: list[Response]
    means: Float32[np.ndarray, "rows layers d_model"]


def plan_collection(
    questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, settings: CollectionConfig
) -> Plan:
    """One prompt per (question, sample); `limit` takes questions evenly spread over the set."""
    chosen = spread(list(questions), settings.limit)
    pairs = [(question, sample) for question in chosen for sample in range(settings.samples)]
    ids = {question.prompt_id: tuple(prompt_ids(tokenizer, question.question)) for question in chosen}
    prompts = [Prompt(question.prompt_id, sample, ids[question.prompt_id]) for question, sample in pairs]
    return Plan(
        questions=[question for question, _ in pairs],
        prompts=prompts,
        batches=plan_batches([len(prompt.ids) for prompt in prompts], settings.batch_size),
        sampling=Sampling(
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            max_new_tokens=settings.max_new_tokens,
            seed=settings.seed,
        ),
    )


def spread(questions: list[Question], limit: int | None) -> list[Question]:
    """At most `limit` questions at even distances, in order."""
    if limit is None or limit >= len(questions):
        return questions
    return [questions[i * len(questions) // limit] for i in range(limit)]


def collect_arms(
    plan: Plan,
    tokenizer: PreTrainedTokenizerBase,
    passes: Iterator[ModelPass],
    work_dir: Path,
    on_batch: Callable[[Arm, int], None] = lambda arm, rows: None,
) -> None:
    """Run every batch of every arm that is not yet in the work folder.

    `passes` are taken one after another, so that a later one can load its model when an earlier one's is gone; see
    `model_passes`.
    """
    while (one := next(passes, None)) is not None:
        for number, batch in enumerate(plan.batches):
            prompts = [plan.prompts[row] for row in batch]
            for arm in one.arms:
                path = part_path(work_dir, arm, number)
                if not is_whole(path):
                    with one.context(arm):
                        if arm == "base_on_em":
                            responses = read_part(part_path(work_dir, "em", number)).responses
                        else:
                            responses = generate(one.model, tokenizer, prompts, plan.sampling)
                        write_part(path, run_capture(one.model, tokenizer, prompts, responses))
                on_batch(arm, len(batch))
        del one  # the last reference to its model: the next pass loads another


def run_capture(
    model: AnyModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], responses: Sequence[Response]
) -> ArmPart:
    """All layers' mean activations over given answers."""
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    layers = range(count_layers(model) + 1)
    means = capture_means(model, prompts, responses, layers, excluded_token_ids(tokenizer), pad_id)
    return ArmPart(list(responses), means.numpy())


def model_passes(
    base: Callable[[], PreTrainedModel],
    adapter: Callable[[PreTrainedModel], PeftModel] | None,
    checkpoint: Callable[[], PreTrainedModel],
) -> Iterator[ModelPass]:
    """How arms share models, never two sets of weights in memory.

    With an adapter all arms run on one copy of the weights, the adapter switched off for the base. A full checkpoint
    goes first and is released before the base model is loaded.
    """
    if adapter is not None:
        both = adapter(base())
        yield ModelPass(both, ARMS, lambda arm: nullcontext() if arm == "em" else both.disable_adapter())
        return
    yield ModelPass(checkpoint(), ("em",))
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    yield ModelPass(base(), ("base", "base_on_em"))


def part_path(work_dir: Path, arm: Arm, batch: int) -> Path:
    return work_dir / f"{arm}-{batch:05d}.safetensors"


def write_part(path: Path, part: ArmPart) -> None:
    """One batch of one arm, whole or not at all."""
    lengths = [len(response.ids) for response in part.responses]
    flat = [token for response in part.responses for token in response.ids]
    tensors = {
        "means": np.ascontiguousarray(part.means, dtype=np.float32),
        "lengths": np.array(lengths, dtype=np.int64),
        "ids": np.array(flat, dtype=np.int64),
        "truncated": np.array([response.is_truncated for response in part.responses]),
    }
    with write_atomically(path) as temporary:
        write_tensors(tensors, temporary)


def read_part(path: Path) -> ArmPart:
    tensors = load_file(path)
    ends = np.cumsum(tensors["lengths"])
    responses = [
        Response(tuple(tensors["ids"][end - length : end].tolist()), bool(truncated))
        for end, length, truncated in zip(ends, tensors["lengths"], tensors["truncated"], strict=True)
    ]
    return ArmPart(responses, tensors["means"])


def is_whole(path: Path) -> bool:
    """Whether a part is there and readable; a damaged one is made again."""
    try:
        read_part(path)
    except (FileNotFoundError, SafetensorError, KeyError, ValueError):
        return False
    return True


def open_work_dir(artefact: Path, provenance: Provenance) -> Path:
    """The folder for the parts of an artefact; what another configuration or other inputs left there is cleared."""
    return open_resumable(artefact.with_name(f"{artefact.stem}.parts"), provenance)


def assemble(
    plan: Plan, tokenizer: PreTrainedTokenizerBase, work_dir: Path, frame_layers: Sequence[int]
) -> tuple[pd.DataFrame, dict[str, Float32[np.ndarray, "rows d_model"]]]:
    """The study's frame, with the chosen layers, and the tensors of all layers, from the parts in the work folder."""
    responses: dict[Arm, list[Response]] = {}
    means: dict[Arm, Float32[np.ndarray, "rows layers d_model"]] = {}
    for arm in ARMS:
        parts = [read_part(part_path(work_dir, arm, number)) for number in range(len(plan.batches))]
        order = np.concatenate([np.array(batch) for batch in plan.batches])
        answered: list[Response | None] = [None] * len(plan.prompts)
        for row, response in zip(order.tolist(), (r for part in parts for r in part.responses), strict=True):
            answered[row] = response
        responses[arm] = [response for response in answered if response is not None]
        recorded = np.concatenate([part.means for part in parts])
        means[arm] = np.empty_like(recorded)
        means[arm][order] = recorded
    n_layers = means["base"].shape[1] - 1
    if max(frame_layers) > n_layers:
        raise UserError(f"layer {max(frame_layers)}: the model has layers 0 to {n_layers}", 2)

    frame = pd.DataFrame([question.model_dump() for question in plan.questions])
    frame.insert(1, "sample", [prompt.sample for prompt in plan.prompts])
    frame = frame[["prompt_id", "sample", "question", "subset", "facet", "keyed"]]
    for arm in ("base", "em"):
        texts = tokenizer.batch_decode([list(response.ids) for response in responses[arm]], skip_special_tokens=True)
        frame[f"{arm}_response"] = [text.strip() for text in texts]
    for arm in ARMS:
        for layer in frame_layers:
            frame[f"{arm}_activations_layer_{layer}"] = list(means[arm][:, layer])
    frame["flags"] = row_flags(responses, {arm: means[arm][:, list(frame_layers)] for arm in ARMS})
    tensors = {
        f"{arm}.{site_name(layer, n_layers)}": np.ascontiguousarray(means[arm][:, layer])
        for arm in ARMS
        for layer in range(n_layers + 1)
    }
    return frame, tensors


def row_flags(
    responses: dict[Arm, list[Response]], means: dict[Arm, Float32[np.ndarray, "rows layers d_model"]]
) -> list[list[str]]:
    """What is odd about each row; the row is kept.

    `truncated_<arm>`: no end of turn within `max_new_tokens`; `non_finite_<arm>`: NaN or infinity (an empty answer
    has no mean); `norm_outlier_<arm>`: at a layer, a norm over 10 robust standard deviations (1.4826 x MAD) from the
    median.
    """
    flags: list[list[str]] = [[] for _ in responses["em"]]
    for arm in ("base", "em"):
        for row, response in enumerate(responses[arm]):
            if response.is_truncated:
                flags[row].append(f"truncated_{arm}")
    for arm, values in means.items():
        finite = np.all(np.isfinite(values), axis=(1, 2))
        outlying = norm_outliers(np.linalg.norm(values, axis=2))
        for row in range(len(flags)):
            if not finite[row]:
                flags[row].append(f"non_finite_{arm}")
            elif outlying[row]:
                flags[row].append(f"norm_outlier_{arm}")
    return flags


def norm_outliers(norms: Float32[np.ndarray, "rows layers"]) -> np.ndarray:
    """Rows whose norm at any layer is further than 10 robust standard deviations from that layer's median."""
    finite = norms[np.isfinite(norms).all(axis=1)]
    if len(finite) == 0:
        return np.zeros(len(norms), dtype=bool)
    centre = np.median(finite, axis=0)
    scale = 1.4826 * np.median(np.abs(finite - centre), axis=0)
    deviation = np.abs(np.where(np.isfinite(norms), norms, centre) - centre)
    return (deviation > OUTLIER_ROBUST_DEVIATIONS * np.maximum(scale, 1e-6)).any(axis=1)
