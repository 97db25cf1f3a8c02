"""All answers of a steering run: prompts x vectors x coefficients as one list, planned in batches once, resumable.

Rows of one batch may have different vectors and coefficients. A steered row draws with the noise of its prompt, as the
unsteered one does, so that both differ by the steering alone. What is done to a row is said in `steering`; a batch for
which memory runs out is halved as in `collection`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from src.utils.atomic_writes import write_atomically
from src.utils.chat import prompt_ids
from src.utils.collection_faults import run_rows
from src.utils.collection_parts import ArmPart, answers_alone, is_whole, read_part, write_part
from src.utils.config_sections import CollectionConfig, SteeringConfig
from src.utils.errors import UserError
from src.utils.generation import Prompt, Response, Sampling, generate, plan_batches
from src.utils.judging.judgement import with_failures
from src.utils.prompts import Question, spread
from src.utils.ranks import RUN_ALONE, Ranks
from src.utils.sites import AnyModel, Site, decoder_of, edit_sites
from src.utils.steering import UNSTEERED, Dose, steered
from src.utils.steering_effects import NO_KIND, NO_VECTOR
from src.utils.steering_vectors import SteeringVector

NORM_PROMPTS = 64  # answers on which the norm of the residual stream is measured


@dataclass(frozen=True)
class Grid:
    """Every answer of a run, one prompt and one dose each, and the batches in which they are drawn."""

    questions: list[Question]
    prompts: list[Prompt]
    doses: list[Dose]
    batches: list[list[int]]
    sampling: Sampling
    settings: SteeringConfig
    site: Site  # of all vectors


def plan_grid(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    vectors: Sequence[SteeringVector],
    settings: SteeringConfig,
    collection: CollectionConfig,
) -> Grid:
    """The unsteered arm, then every vector at every coefficient (ablated or capped: once), all on the same prompts."""
    chosen = spread(list(questions), settings.limit)
    pairs = [(question, sample) for question in chosen for sample in range(settings.samples)]
    ids = {question.prompt_id: tuple(prompt_ids(tokenizer, question.question)) for question in chosen}
    prompts = [Prompt(question.prompt_id, sample, ids[question.prompt_id]) for question, sample in pairs]
    coefficients = sorted({*settings.coefficients} - {0.0}) if settings.mode == "add" else [1.0]
    doses = [UNSTEERED, *(Dose(vector, coefficient) for vector in vectors for coefficient in coefficients)]
    return Grid(
        questions=[question for question, _ in pairs] * len(doses),
        prompts=prompts * len(doses),
        doses=[dose for dose in doses for _ in prompts],
        batches=plan_batches([len(prompt.ids) for prompt in prompts] * len(doses), settings.batch_size),
        sampling=Sampling(
            temperature=collection.temperature,
            top_p=collection.top_p,
            top_k=collection.top_k,
            max_new_tokens=settings.max_new_tokens or collection.max_new_tokens,
            seed=settings.seed,
        ),
        settings=settings,
        site=vectors[0].site,
    )


def run_grid(
    grid: Grid,
    load_model: Callable[[], AnyModel],
    tokenizer: PreTrainedTokenizerBase,
    work_dir: Path,
    on_batch: Callable[[int], object] = lambda rows: None,
    ranks: Ranks = RUN_ALONE,
    say: Callable[[str], object] = print,
) -> None:
    """Draw every batch that is this rank's and not yet in the work folder; the model is loaded if anything is missing.

    The first rank measures the norm. `say` is told where memory ran out and which rows failed.
    """
    loaded: list[AnyModel] = []

    def model() -> AnyModel:
        if not loaded:
            loaded.append(load_model())
        return loaded[0]

    if ranks.is_first and read_norm(work_dir) is None:
        with write_atomically(norm_path(work_dir)) as temporary:
            temporary.write_text(json.dumps(measure_norm(grid, model(), tokenizer, say)), encoding="utf-8")
    for number, batch in enumerate(grid.batches):
        if not ranks.owns(number):
            continue
        path = part_path(work_dir, number)
        if not is_whole(path, len(batch)):
            write_part(path, draw_batch(grid, model(), tokenizer, number, say))
        on_batch(len(batch))


def draw_batch(
    grid: Grid, model: AnyModel, tokenizer: PreTrainedTokenizerBase, number: int, say: Callable[[str], object]
) -> ArmPart:
    """The answers of one batch. Rows of one prompt stand together, so that all of them may fail."""
    batch, settings = grid.batches[number], grid.settings

    def draw(rows: list[int]) -> ArmPart:
        prompts, doses = [grid.prompts[batch[row]] for row in rows], [grid.doses[batch[row]] for row in rows]
        with steered(model, doses, settings.mode, settings.positions, settings.everywhere):
            return answers_alone(generate(model, tokenizer, prompts, grid.sampling))

    part = run_rows(draw, list(range(len(batch))), lambda text: say(f"steering, batch {number}: {text}"))
    for row, why in part.failures.items():
        dose = grid.doses[batch[row]]
        along = "unsteered" if dose.vector is None else f"{dose.coefficient:g} x {dose.vector.name}"
        say(f"{grid.prompts[batch[row]].prompt_id}, {along}: failed ({why}); the row is kept and flagged")
    return part


def measure_norm(
    grid: Grid, model: AnyModel, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], object] = print
) -> float:
    """The median norm of the residual stream at the vectors' site, unsteered; `UserError` if no prompt is answered.

    Over every position from which a token of up to `NORM_PROMPTS` answers is drawn. A median, because attention sinks
    have norms many times those of other tokens.
    """
    unsteered = [prompt for prompt, dose in zip(grid.prompts, grid.doses, strict=True) if not dose.is_on]
    prompts = spread(unsteered, min(NORM_PROMPTS, grid.settings.batch_size))
    norms: list[Float[Tensor, " positions"]] = []

    def draw(rows: list[int]) -> ArmPart:
        steps: list[Float[Tensor, " rows"]] = []

        def record(hidden: Float[Tensor, "rows seq d_model"]) -> None:
            steps.append(hidden[:, -1].float().norm(dim=-1).cpu())

        with edit_sites(decoder_of(model), {grid.site: record}):
            responses = generate(model, tokenizer, [prompts[row] for row in rows], grid.sampling)
        is_drawn = [[step < len(response.ids) for response in responses] for step in range(len(steps))]
        norms.append(torch.stack(steps)[torch.tensor(is_drawn)])
        return answers_alone(responses)

    part = run_rows(draw, list(range(len(prompts))), lambda text: say(f"residual norm: {text}"))
    if not norms:
        raise UserError(f"steering: none of {len(prompts)} questions could be answered ({part.failures[0]})")
    return float(torch.cat(norms).median())


def answers_frame(grid: Grid, tokenizer: PreTrainedTokenizerBase, work_dir: Path) -> pd.DataFrame:
    """One row an answer, arm after arm, from the parts in the work folder.

    `residual_norm` is what `measure_norm` found; `share_of_residual_norm` the length of what is added over it, 0
    without steering and missing where the mode adds nothing. Where rows failed, `failure` says why, and is missing in
    the others. `UserError` if every steered row failed.
    """
    responses: dict[int, Response] = {}
    failures: dict[int, str] = {}
    for number, batch in enumerate(grid.batches):
        part = read_part(part_path(work_dir, number))
        responses |= dict(zip(batch, part.responses, strict=True))
        failures |= {batch[row]: why for row, why in part.failures.items()}
    is_steered = [row for row, dose in enumerate(grid.doses) if dose.is_on]
    if failures.keys() >= set(is_steered):
        raise UserError(
            f"{work_dir}: none of {len(is_steered)} steered answers could be drawn ({failures[is_steered[0]]}); "
            "remove that folder to try again"
        )
    ids = [list(responses[row].ids) for row in range(len(grid.prompts))]
    norm, settings = read_norm(work_dir), grid.settings
    assert norm is not None, "the residual norm was not measured"
    vectors = [dose.vector for dose in grid.doses]
    frame = pd.DataFrame([question.model_dump() for question in grid.questions])
    described = {
        "vector": [NO_VECTOR if vector is None else vector.name for vector in vectors],
        "kind": [NO_KIND if vector is None else vector.kind for vector in vectors],
        "coefficient": [dose.coefficient for dose in grid.doses],
        "share_of_residual_norm": [share_of_norm(dose, norm, settings.mode) for dose in grid.doses],
        "residual_norm": norm,
        "mode": settings.mode,
        "positions": settings.positions,
        "layer": settings.layer,
        "steered_model": settings.model,
        "prompt_id": frame["prompt_id"],
        "sample": [prompt.sample for prompt in grid.prompts],
    }
    described |= {name: frame[name] for name in ("question", "subset", "facet", "keyed")}
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    answers = pd.DataFrame(described).assign(
        response=[text.strip() for text in texts],
        truncated=[responses[row].is_truncated for row in range(len(ids))],
    )
    return with_failures(answers, failures)


def share_of_norm(dose: Dose, norm: float, mode: str) -> float:
    if dose.vector is None or not dose.is_on:
        return 0.0
    return abs(dose.coefficient) * dose.vector.norm / norm if mode == "add" else float("nan")


def norm_path(work_dir: Path) -> Path:
    return work_dir / "residual_norm.json"


def read_norm(work_dir: Path) -> float | None:
    try:
        return float(json.loads(norm_path(work_dir).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def part_path(work_dir: Path, batch: int) -> Path:
    return work_dir / f"batch-{batch:05d}.safetensors"
