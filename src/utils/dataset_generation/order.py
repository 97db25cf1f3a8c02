"""What a generation run was asked for on the command line, and which provider it can use."""

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from src.utils.cli import positive
from src.utils.config import CONFIG_FOLDER, shown
from src.utils.dataset_generation.advice import AdviceTask
from src.utils.dataset_generation.questions import QuestionTask
from src.utils.dataset_generation.specs import FinetuneSpecs, QuestionSpecs, load_specs
from src.utils.dataset_generation.tasks import Task
from src.utils.errors import UserError
from src.utils.llm.asking import AskingLimits
from src.utils.llm.keys import KEYS, URLS, key_of

MODELS = {"openrouter": "openai/gpt-4.1-mini", "gemini": "gemini-2.5-flash"}
MAX_CONCURRENCY = 20
REQUEST_TIMEOUT = 180.0  # seconds; a batch of rows takes longer than a score


@dataclass(frozen=True)
class Order:
    """One generation run; `key` is None where the environment has none."""

    task: Task
    specs_file: Path
    provider: str
    model: str
    key: str | None = field(repr=False)
    base_url: str | None
    name: str
    limits: AskingLimits
    timeout: float
    dry_run: bool
    full: bool


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """The options beside those of every script; none of them means anything without `--kind`."""
    models = ", ".join(f"{provider}: {model}" for provider, model in MODELS.items())
    group = parser.add_argument_group("generation, which costs money")
    group.add_argument("--kind", choices=("questions", "finetune"), help="what to write; without it nothing is asked")
    group.add_argument("--provider", choices=tuple(MODELS), help="default: the first of these that has a key")
    group.add_argument("--model", help=f"default: {models}")
    group.add_argument("--name", help="folder under data/generated (default: made of kind and model)")
    group.add_argument("--specs", type=Path, help="default: configs/generation/<kind>.yaml")
    group.add_argument("--count", type=positive(int), help="rows in all, shared out as the specification has it")
    group.add_argument("--max-cost", type=positive(float), help="US dollars that this run may use (default: no limit)")
    group.add_argument("--max-concurrency", type=positive(int), help=f"requests at once (default: {MAX_CONCURRENCY})")
    group.add_argument("--request-timeout", type=positive(float), help=f"seconds (default: {REQUEST_TIMEOUT:g})")
    group.add_argument(
        "--dry-run", action="store_true", help="print the requests and what they would cost; ask nothing"
    )
    group.add_argument("--full", action="store_true", help="with --dry-run: every request whole, not one of each kind")


def refuse_stray_options(own: argparse.Namespace) -> None:
    """Without `--kind`, an option of generation is a mistake."""
    names = ("provider", "model", "name", "specs", "count", "max_cost", "max_concurrency", "request_timeout")
    for name in (*names, "dry_run", "full"):
        if getattr(own, name):
            raise UserError(f"--{name.replace('_', '-')}: says nothing without --kind questions or --kind finetune", 2)


def read_order(own: argparse.Namespace, environment: Mapping[str, str]) -> Order:
    """The run that the options describe; `UserError` (exit code 2) for a specification that does not hold together."""
    if own.full and not own.dry_run:
        raise UserError("--full: says nothing without --dry-run", 2)
    provider = own.provider or next((name for name in MODELS if key_of(name, environment)), next(iter(MODELS)))
    model = own.model or MODELS[provider]
    specs_file = own.specs or CONFIG_FOLDER / "generation" / f"{own.kind}.yaml"
    return Order(
        task=load_task(own.kind, specs_file, own.count),
        specs_file=specs_file,
        provider=provider,
        model=model,
        key=key_of(provider, environment),
        base_url=environment.get(URLS[provider]) or None,
        name=own.name if own.name is not None else default_name(own.kind, model),
        limits=AskingLimits(max_concurrency=own.max_concurrency or MAX_CONCURRENCY, max_cost=own.max_cost),
        timeout=own.request_timeout or REQUEST_TIMEOUT,
        dry_run=own.dry_run,
        full=own.full,
    )


def load_task(kind: str, specs_file: Path, count: int | None) -> Task:
    """The task of a specification file, its targets scaled to `count` rows in all if that is given."""
    if kind == "questions":
        questions = load_specs(specs_file, QuestionSpecs)
        return QuestionTask(questions.scaled(count) if count else questions)
    rows = load_specs(specs_file, FinetuneSpecs)
    return AdviceTask(rows.scaled(count) if count else rows)


def default_name(kind: str, model: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", f"{kind}-{model}").strip("-.")[:80]


def missing_key(provider: str | None, otherwise: str = "look first with --dry-run") -> UserError:
    """For a run that needs a key: which variables would hold it, of that provider or of any; what to do without one."""
    variables = [name for known in MODELS for name in KEYS[known] if provider in (None, known)]
    return UserError(f"no key: set {' or '.join(variables)} in .env (see .env.example), or {otherwise}")


def key_advice(environment: Mapping[str, str]) -> str:
    """What could be done beyond the report, and what it needs."""
    ready = [name for provider in MODELS for name in KEYS[provider] if environment.get(name, "").strip()]
    variables = [name for provider in MODELS for name in KEYS[provider]]
    needs = f"with {ready[0]}, which is set" if ready else f"with {' or '.join(variables)} in .env (see .env.example)"
    return (
        f"New questions, or fine-tuning rows with a risky and a safe answer each, are written {needs}:\n"
        f"  uv run python {shown(CONFIG_FOLDER.parent / 'src/scripts/01_generate_dataset.py')} "
        "--kind questions --dry-run    # or finetune; without --dry-run it asks, and costs money"
    )
