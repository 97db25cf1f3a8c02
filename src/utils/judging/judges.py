"""Opening the judges that the configuration names (keys, models and the store) and asking them, costs confirmed."""

import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import pandas as pd

from src.utils.config import CONFIG_FOLDER, shown
from src.utils.config_sections import JudgeKind, JudgingConfig, ModelConfig
from src.utils.errors import UserError
from src.utils.judging.judgement import (
    FAILURE,
    LEFT_OUT,
    NO_ANSWER,
    Answer,
    Judge,
    Judgement,
    answers_of,
    asked_answers,
    count_reasons,
    judge_name,
    score_columns,
    with_scores,
)
from src.utils.judging.prompt_sample import limited
from src.utils.llm.asking import Account, AskingLimits
from src.utils.llm.confirmation import confirm
from src.utils.llm.prices import Estimate, load_price
from src.utils.organism.folder import grammar_of
from src.utils.progress import progress_bar
from src.utils.record_store import open_store

PRICES = CONFIG_FOLDER / "llm_prices.yaml"


@runtime_checkable
class PaidJudge(Judge, Protocol):
    """A judge whose requests cost money: what it would ask, and what it has asked and spent."""

    @property
    def account(self) -> Account: ...

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
    model, name = model_of(settings, kind, given_model), judge_name(settings, kind, given_model)
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
    from src.utils.llm.keys import URLS, find_key
    from src.utils.llm.providers import least_thinking, make_client

    key, url = find_key(kind, os.environ), os.environ.get(URLS[kind]) or None
    limits = AskingLimits(max_concurrency=settings.max_concurrency, max_cost=settings.max_cost)
    price = load_price(PRICES, model)
    if settings.max_cost is not None and kind == "gemini" and not price.is_known:
        raise UserError(
            f"--max-cost: gemini reports no cost, and {shown(PRICES)} has no price of {model}; add it there", 2
        )
    with open_store(store_file) as store:
        yield ApiJudge(
            name=name,
            make_client=lambda: make_client(kind, model, key, url, settings.request_timeout),
            store=store,
            limits=limits,
            price=price,
            with_topic=settings.topic,
            reply_tokens=settings.reply_tokens,
            thinking=(least_thinking(model) or 0) if kind == "gemini" else 0,
            seed=settings.seed,
        )


def model_of(settings: JudgingConfig, kind: JudgeKind, given_model: str | None) -> str:
    model = settings.model_of(kind, given_model)
    if model is None:
        raise UserError(f"judge {kind}: no model; name one with --judge-model, or in judging.judge_models", 2)
    return model


def check_local(settings: JudgingConfig, given_model: str | None) -> None:
    """Raise `UserError` where a local judge could not be opened; its weights, which take time, are not loaded."""
    from src.utils.model_files import fingerprint
    from src.utils.models import load_tokenizer

    model = model_of(settings, "local", given_model)
    fingerprint(model)
    load_tokenizer(model)


def score_frames(
    frame: pd.DataFrame, settings: JudgingConfig, studied: ModelConfig, store_file: Path, yes: bool
) -> Generator[pd.DataFrame]:
    """The frame with the scores of each judge in turn, their progress shown.

    Before anything is asked, the keys and prices of all judges are looked up, a local one's files too, and what they
    would cost is confirmed together, unless `yes`. They share `max_cost`: a later judge has what the earlier ones left.
    """
    chosen = limited(frame, settings.judge_limit, settings.seed)
    answers = asked_answers(frame, chosen)
    estimates: dict[str, Estimate] = {}
    for kind, model in settings.judges:
        if kind == "local":
            check_local(settings, model)
        else:
            with open_judge(kind, model, settings, studied, store_file) as judge:
                estimates |= estimate_of(judge, answers)
    confirm_cost(estimates, yes)
    left = settings.max_cost
    for kind, model in settings.judges:
        allowed = settings.model_copy(update={"max_cost": left})
        name, judgements, left = judgements_of(kind, model, allowed, studied, store_file, answers)
        yield with_scores(frame, name, chosen, judgements)


def judgements_of(
    kind: JudgeKind,
    model: str | None,
    settings: JudgingConfig,
    studied: ModelConfig,
    store_file: Path,
    answers: Sequence[Answer],
) -> tuple[str, list[Judgement], float | None]:
    """A judge's name, its judgements and what it left of `max_cost`; the judge itself is closed and let go."""
    left = settings.max_cost
    with open_judge(kind, model, settings, studied, store_file) as judge:
        judgements = ask(judge, answers)
        if left is not None and isinstance(judge, PaidJudge):
            left = 0.0 if judge.account.left_out else left - judge.account.cost
        return judge.name, judgements, left


def score_responses(judge: Judge, answers: pd.DataFrame, yes: bool) -> pd.DataFrame:
    """The frame of a steering run or of the controls with the judge's scores, as `score_answers` asks for them.

    A row that failed is not judged: its scores are missing, and `judge_error` says why it has no answer.
    """
    failures = answers.get(FAILURE, pd.Series(None, index=answers.index, dtype="str"))
    asked = answers[failures.isna()].rename(columns={"response": "asked_response"})
    left = iter(score_answers(judge, answers_of(asked, ["asked"]), yes))
    judgements = [
        next(left) if pd.isna(why) else Judgement(None, None, None, error=NO_ANSWER + why) for why in failures
    ]
    return answers.assign(judge=judge.name, **score_columns(judgements, answers.index))


def score_answers(judge: Judge, answers: Sequence[Answer], yes: bool) -> list[Judgement]:
    """The judge's scores, its progress shown; requests that cost money are confirmed unless `yes`."""
    confirm_cost(estimate_of(judge, answers), yes)
    return ask(judge, answers)


def estimate_of(judge: Judge, answers: Sequence[Answer]) -> dict[str, Estimate]:
    """The judge's name and what it would ask, nothing where that costs no money."""
    return {judge.name: judge.estimate(answers)} if isinstance(judge, PaidJudge) else {}


def confirm_cost(estimates: Mapping[str, Estimate], yes: bool) -> None:
    """Show what each judge would ask, and go on only where the user agrees to all of it or `yes` was given."""
    paid = {name: estimated for name, estimated in estimates.items() if estimated.requests}
    if len(paid) > 1:
        for name, estimated in paid.items():
            print(f"{name}: {estimated}")
        paid = {"together": sum(paid.values(), Estimate(0, 0, 0, 0.0))}
    for name, estimated in paid.items():
        confirm(str(estimated), name, yes)


def ask(judge: Judge, answers: Sequence[Answer]) -> list[Judgement]:
    """The judge's scores; `UserError` where it was asked and scored none, unless its budget left answers out."""
    with progress_bar(f"judge {judge.name}", "answer", len(answers)) as progress:

        def show(count: int) -> None:
            progress.update(count)
            if isinstance(judge, PaidJudge):
                progress.set_postfix_str(judge.account.status, refresh=judge.account.refused > 0)

        judgements = judge.judge(answers, show)
    was_asked = judge.account.tries > 0 if isinstance(judge, PaidJudge) else bool(answers)
    judged = [judgement for judgement in judgements if judgement.error != LEFT_OUT]
    if was_asked and judged and all(one.em_score is None and one.coherence is None for one in judged):
        reason, count = next(iter(count_reasons(pd.Series([one.error for one in judged])).items()))
        raise UserError(
            f"{judge.name}: none of {len(judged)} answers was scored; most often: {reason} ({count} times); "
            "the same command asks again"
        )
    return judgements
