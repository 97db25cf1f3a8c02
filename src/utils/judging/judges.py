"""Opening the judge that the configuration names: keys, models and the store, for as long as it judges."""

import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import pandas as pd
from tqdm import tqdm

from src.utils.config import CONFIG_FOLDER, JudgeKind, JudgingConfig, ModelConfig
from src.utils.errors import UserError
from src.utils.judging.judgement import Answer, Judge, Judgement, answers_of, judge_name, limited, with_scores
from src.utils.llm.confirmation import confirm
from src.utils.llm.prices import Estimate
from src.utils.organism.folder import grammar_of
from src.utils.record_store import open_store

PRICES = CONFIG_FOLDER / "llm_prices.yaml"


@runtime_checkable
class PaidJudge(Judge, Protocol):
    """A judge whose requests cost money: what it would ask, and what it has spent, in US dollars."""

    @property
    def spent(self) -> float: ...

    def estimate(self, answers: Sequence[Answer]) -> Estimate: ...


@contextmanager
def open_judge(
    kind: JudgeKind, given_model: str | None, settings: JudgingConfig, studied: ModelConfig, store_file: Path
) -> Generator[Judge]:
    """The judge, ready to score; its replies are kept in `store_file`, which the organism's judge does without.

    `studied` is the model whose answers are judged: the organism's judge reads its grammar, a local judge runs in its
    dtype. Raises `UserError` for a missing key or model.
    """
    if kind == "organism":
        from src.utils.organism.grammar import load_grammar
        from src.utils.organism.judge import OrganismJudge

        yield OrganismJudge(load_grammar(grammar_of(studied.base)))
        return
    model, name = settings.model_of(kind, given_model), judge_name(settings, kind, given_model)
    if model is None:
        raise UserError(f"judge {kind}: no model; name one with --judge-model, or in judging.judge_models", 2)
    if kind == "local":
        from src.utils.judging.local_judge import LocalJudge
        from src.utils.model_files import fingerprint
        from src.utils.models import load_model, load_tokenizer

        loaded = load_model(model, studied.model_copy(update={"base": model}))
        with open_store(store_file) as store:
            tokenizer, state = load_tokenizer(model), fingerprint(model)
            yield LocalJudge(name, state, loaded, tokenizer, store, settings.judge_batch_size, settings.topic)
        return
    from src.utils.judging.api_judge import ApiJudge
    from src.utils.llm.asking import AskingLimits
    from src.utils.llm.keys import URLS, find_key
    from src.utils.llm.prices import load_price
    from src.utils.llm.providers import make_client

    key, url = find_key(kind, os.environ), os.environ.get(URLS[kind]) or None
    limits = AskingLimits(max_concurrency=settings.max_concurrency, max_cost=settings.max_cost)
    price = load_price(PRICES, model)
    if settings.max_cost is not None and kind == "gemini" and not price.is_known:
        raise UserError(
            f"--max-cost: gemini reports no cost, and {PRICES.name} has no price of {model}; add it there", 2
        )
    with open_store(store_file) as store:
        yield ApiJudge(
            name=name,
            make_client=lambda: make_client(kind, model, key, url, settings.request_timeout),
            store=store,
            limits=limits,
            price=price,
            with_topic=settings.topic,
        )


def score_frame(
    frame: pd.DataFrame,
    kind: JudgeKind,
    given_model: str | None,
    settings: JudgingConfig,
    studied: ModelConfig,
    store_file: Path,
    yes: bool,
) -> pd.DataFrame:
    """The frame with a judge's scores, its progress shown; requests that cost money are confirmed unless `yes`."""
    chosen = limited(frame, settings.judge_limit)
    with open_judge(kind, given_model, settings, studied, store_file) as judge:
        judgements = score_answers(judge, answers_of(frame[chosen]), yes)
        return with_scores(frame, judge.name, chosen, judgements)


def score_answers(judge: Judge, answers: Sequence[Answer], yes: bool) -> list[Judgement]:
    """The judge's scores, its progress shown; requests that cost money are confirmed unless `yes`."""
    if isinstance(judge, PaidJudge):
        estimated = judge.estimate(answers)
        if estimated.requests:
            confirm(str(estimated), judge.name, yes)
    with tqdm(total=len(answers), unit="answer", desc=f"judge {judge.name}") as progress:

        def show(count: int) -> None:
            progress.update(count)
            if isinstance(judge, PaidJudge):
                progress.set_postfix_str(f"${judge.spent:.4f}", refresh=False)

        return judge.judge(answers, show)
