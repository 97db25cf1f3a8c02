"""Ask base and EM model the same questions and record what they say and what goes on inside.

Three arms: the base model on its own answers, the EM model on its own, and the base model over the EM model's
answers (identical text). Batches are planned once over all prompts; each batch of each arm is one file in the work
folder, so that a stopped run continues at the first missing batch and ends in the same bytes, on however many ranks.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.utils.artifacts import open_resumable
from src.utils.capture import (
    capture,
    markup_of,
    pad_id_of,
    teacher_forcing_batch,
)
from src.utils.chat import prompt_content, prompt_ids
from src.utils.collection_faults import NO_ANSWER, attempt, run_rows
from src.utils.collection_parts import ARMS, Arm, ArmPart, is_whole, part_path, read_part, write_part
from src.utils.config_sections import CollectionConfig, PoolingKind
from src.utils.errors import UserError
from src.utils.generation import Prompt, Response, Sampling, generate, plan_batches
from src.utils.manifests import Provenance
from src.utils.prompts import Question, spread
from src.utils.ranks import RUN_ALONE, Ranks
from src.utils.sites import AnyModel, Site, count_layers, decoder_of, resid_site
from src.utils.token_shards import TokenShard, shard_path, write_shard

PROBES = 8  # prompts of other batches that are tried, from the shortest on, where all of a batch fail


@dataclass(frozen=True)
class Plan:
    """Every prompt of a study, in the order of the frame, the batches in which they are run, and what is recorded."""

    questions: list[Question]
    prompts: list[Prompt]
    batches: list[list[int]]
    sampling: Sampling
    kinds: tuple[str, ...] = ("resid",)
    poolings: tuple[PoolingKind, ...] = ("response_mean",)
    token_kinds: tuple[str, ...] = ()  # what is kept token by token, and at which layers
    token_layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModelPass:
    """A loaded model, the arms that it serves, and the context in which it is that arm's (an adapter switched off)."""

    model: AnyModel
    arms: Sequence[Arm]
    context: Callable[[Arm], AbstractContextManager] = lambda arm: nullcontext()


def plan_collection(
    questions: Sequence[Question], tokenizer: PreTrainedTokenizerBase, settings: CollectionConfig
) -> Plan:
    """One prompt per (question, sample); `limit` takes questions evenly spread over the set."""
    chosen = spread(list(questions), settings.limit)
    pairs = [(question, sample) for question in chosen for sample in range(settings.samples)]
    encoded = {
        one.prompt_id: (tuple(prompt_ids(tokenizer, one.question)), prompt_content(tokenizer, one.question))
        for one in chosen
    }
    prompts = [Prompt(question.prompt_id, sample, *encoded[question.prompt_id]) for question, sample in pairs]
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
        kinds=tuple(settings.sites),
        poolings=tuple(settings.poolings),
        token_kinds=tuple(settings.token_sites) if settings.tokens else (),
        token_layers=tuple(settings.token_layers or settings.layers),
    )


def sites_of(kinds: Sequence[str], n_layers: int, layers: Sequence[int] | None = None) -> list[Site]:
    """The sites of some kinds at some layers, by default at every one.

    `resid` is the residual stream into each block, and out of the last one for layer `n_layers`, where other kinds
    have nothing.
    """
    chosen = range(n_layers + 1) if layers is None else layers
    sites: list[Site] = []
    for kind in kinds:
        if kind == "resid":
            sites += [resid_site(layer, n_layers) for layer in chosen]
        elif kind == "embed":
            sites.append(Site("embed"))
        else:
            sites += [Site(kind, block) for block in chosen if block < n_layers]
    return list(dict.fromkeys(sites))


def collect_arms(
    plan: Plan,
    tokenizer: PreTrainedTokenizerBase,
    passes: Iterator[ModelPass],
    work_dir: Path,
    on_batch: Callable[[Arm, int], object] = lambda arm, rows: None,
    ranks: Ranks = RUN_ALONE,
    say: Callable[[str], object] = print,
) -> None:
    """Run every batch of every arm that is this rank's and not yet in the work folder.

    `passes` are taken one after another, so that a later one can load its model when an earlier one's is gone; see
    `model_passes`. `say` is told where memory ran out and which rows failed.
    """
    while (one := next(passes, None)) is not None:
        for number, batch in enumerate(plan.batches):
            if not ranks.owns(number):
                continue
            for arm in one.arms:
                if not is_done(plan, work_dir, arm, number):
                    with one.context(arm):
                        run_batch(one.model, tokenizer, plan, work_dir, arm, number, say)
                on_batch(arm, len(batch))
        del one  # the last reference to its model: the next pass loads another


def is_done(plan: Plan, work_dir: Path, arm: Arm, number: int) -> bool:
    """Whether a batch's part, and its shard where tokens are kept, are there."""
    has_shard = not plan.token_kinds or shard_path(work_dir, arm, number).exists()
    return has_shard and is_whole(part_path(work_dir, arm, number), len(plan.batches[number]))


def run_batch(
    model: AnyModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    work_dir: Path,
    arm: Arm,
    number: int,
    say: Callable[[str], object],
) -> None:
    """Answer (or take the EM model's answers), record, and write the part, with the shard of tokens before it.

    Where every row of the batch fails and prompts of other batches do, too, the fault is not theirs: `UserError`, and
    nothing is written.
    """
    batch = plan.batches[number]
    em_part = read_part(part_path(work_dir, "em", number)) if arm == "base_on_em" else None
    said = dict(zip(batch, em_part.responses, strict=True)) if em_part else {}
    shards: list[TokenShard] = []

    def record(rows: list[int]) -> ArmPart:
        prompts = [plan.prompts[row] for row in rows]
        check_ids(model, prompts)
        if arm == "base_on_em":
            responses = [said.get(row, NO_ANSWER) for row in rows]
        else:
            responses = generate(model, tokenizer, prompts, plan.sampling)
        part, shard = run_capture(model, tokenizer, plan, prompts, responses)
        if shard is not None:
            shards.append(replace(shard, rows=np.array([rows[row] for row in shard.rows], dtype=np.int64)))
        return part

    part = run_rows(record, batch, lambda text: say(f"{arm}, batch {number}: {text}"))
    if len(part.failures) == len(batch):
        others = [row for rows in reversed(plan.batches) for row in reversed(rows) if row not in batch]
        if not any(attempt(record, [row])[0] for row in spread(others, PROBES)):
            raise UserError(f"{arm}: no prompt that was tried can be recorded ({part.failures[0]}); nothing is written")
        shards.clear()  # the row that went well is another batch's
    for row, why in part.failures.items():
        say(f"{arm}, {plan.prompts[batch[row]].prompt_id}: failed ({why}); the row is kept and flagged")
    if plan.token_kinds:
        write_shard(shard_path(work_dir, arm, number), shards)
    write_part(part_path(work_dir, arm, number), part)


def check_ids(model: AnyModel, prompts: Sequence[Prompt]) -> None:
    """Raise `IndexError` for an id without an embedding; looking it up on a GPU would break the whole process."""
    known = decoder_of(model).config.vocab_size
    unknown = [token for prompt in prompts for token in prompt.ids if not 0 <= token < known]
    if unknown:
        raise IndexError(f"token id {unknown[0]} is outside the model's vocabulary of {known}")


def run_capture(
    model: AnyModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: Plan,
    prompts: Sequence[Prompt],
    responses: Sequence[Response],
) -> tuple[ArmPart, TokenShard | None]:
    """Pooled activations at every site of the plan over given answers, and the tokens' where the plan keeps them."""
    batch = teacher_forcing_batch(prompts, responses, markup_of(tokenizer), pad_id_of(tokenizer))
    n_layers = count_layers(model)
    kept = sites_of(plan.token_kinds, n_layers, plan.token_layers)
    means, tokens = capture(model, batch, sites_of(plan.kinds, n_layers), plan.poolings, kept)
    pooled: dict[str, np.ndarray] = {}
    for site, values in means.items():
        poolings = plan.poolings if site.kind != "attn.pattern" else ("response_mean",)
        pooled |= {tensor_name(site, pooling): values[:, i].numpy() for i, pooling in enumerate(poolings)}
    counted = batch.answer.sum(dim=1).numpy()
    part = ArmPart(list(responses), pooled, counted, np.zeros(len(responses), dtype=bool))
    if not plan.token_kinds:
        return part, None
    by_name = {site.name: values for site, values in tokens.items()}
    return part, TokenShard(np.repeat(np.arange(len(responses)), counted), batch.ids[batch.answer].numpy(), by_name)


def tensor_names(plan: Plan, n_layers: int) -> list[str]:
    """What a part of the plan holds, in the order of layers and kinds."""
    return [
        tensor_name(site, pooling)
        for site in sites_of(plan.kinds, n_layers)
        for pooling in (plan.poolings if site.kind != "attn.pattern" else ("response_mean",))
    ]


def tensor_name(site: Site, pooling: PoolingKind) -> str:
    """The site's name, with the pooling where it is not the mean over the answer."""
    return site.name if pooling == "response_mean" else f"{site.name}.{pooling}"


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


def parts_folder(artefact: Path) -> Path:
    """Where the parts of an artefact lie until it is made."""
    return artefact.with_name(f"{artefact.stem}.parts")


def open_work_dir(artefact: Path, provenance: Provenance) -> Path:
    """The folder for the parts of an artefact; what another configuration or other inputs left there is cleared."""
    return open_resumable(parts_folder(artefact), provenance)
