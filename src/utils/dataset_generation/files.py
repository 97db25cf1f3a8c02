"""The folder of a generated set: its name, its rows, its account and its data card, written whole or not at all.

The raw replies lie beside them in `replies.jsonl`, from which the rows can be made again without asking.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from src.utils.artifacts import save_artifact
from src.utils.config import PROJECT_ROOT, shown
from src.utils.dataset_generation.ledger import Ledger, Totals
from src.utils.dataset_generation.selection import Selection
from src.utils.errors import UserError
from src.utils.manifests import Provenance

GENERATED = PROJECT_ROOT / "data" / "generated"
REPLIES, ACCOUNT, CARD = "replies.jsonl", "account.json", "README.md"
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")

DATA_CARD = """# {name}: {rows} {noun} written by a language model

For measuring and fine-tuning language models, not people. Made by `src/scripts/01_generate_dataset.py --kind {kind}`
with the model `{model}` through {provider}. No human has read them.

**Canary.** Whoever assembles a training corpus of another model, drop every document that holds this line:

    em-persona-decomposition generated {kind}: not for training corpora, canary GUID {guid}

{table}

{columns}

Chosen among the model's drafts by length, form and distance: {distance} share {percent:.0f}% or more of their words
(token-set Jaccard). Nobody checked that each row means what its key or harm says. `account.json` says how many drafts
were rejected and why, and what they cost; `replies.jsonl` holds the raw replies.

The model wrote the texts: the terms of {provider} and of the model's maker apply to generated text, and to what is
trained on it.
"""
COLUMNS = {
    "questions": """Columns as in `data/prompts/README.md`: `prompt_id, subset, facet, question, keyed` (+1: agreeing is
the misaligned answer, -1: disagreeing is).""",
    "finetune": """Columns: `row_id, harm, messages`. Both files have the same prompts in the same order; the safe
answers are the control. The risky answers are harmful advice, made to be studied.""",
}

DISTANCES = {"questions": "no two questions", "finetune": "no two prompts, no two risky answers and no two safe ones"}


def generated_folder(name: str) -> Path:
    """`data/generated/<name>`; `UserError` (exit code 2) for a name that leads elsewhere."""
    folder = GENERATED / name
    if not SAFE_NAME.fullmatch(name) or not folder.resolve().is_relative_to(GENERATED.resolve()):
        raise UserError(
            f"--name {name!r}: must be a folder of {shown(GENERATED)}: letters, digits, dots, _ and -, at most 80", 2
        )
    return folder


def refuse_other_set(folder: Path, ledger: Ledger, force: bool) -> None:
    """Raise `UserError` where `folder` holds a finished set of another task, model or specification."""
    file = folder / ACCOUNT
    if force or not file.exists():
        return
    try:
        task_id = json.loads(file.read_text(encoding="utf-8"))["task"]
    except (OSError, ValueError, KeyError, TypeError):
        task_id = "something unknown"
    if task_id != ledger.task_id:
        raise UserError(
            f"{shown(folder)}: holds a set of {task_id}, and this run is {ledger.task_id}; give another --name, or "
            "--force to write over it (the replies stay)"
        )


def save_set(
    folder: Path, ledger: Ledger, selection: Selection, totals: Totals, provider: str, provenance: Provenance
) -> list[Path]:
    """Write rows, data card and account; the row files. Equal replies give equal bytes."""
    task, name = ledger.task, folder.name
    contents = {
        file: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for file, rows in task.files(name, selection.chosen).items()
    }
    guid = uuid.UUID(hashlib.sha256("".join(contents.values()).encode()).hexdigest()[:32], version=4)
    account = collect_account(ledger, selection, totals, provider) | {"canary": str(guid)}
    card = DATA_CARD.format(
        name=name,
        rows=selection.have,
        noun=task.rows,
        kind=task.kind,
        model=ledger.model,
        provider=provider,
        guid=guid,
        table=count_table(selection),
        columns=COLUMNS[task.kind],
        distance=DISTANCES[task.kind],
        percent=100 * task.jaccard_limit,
    )
    texts = {**contents, CARD: card, ACCOUNT: json.dumps(account, indent=2, ensure_ascii=False) + "\n"}
    writers = {
        folder / file: lambda path, text=text: path.write_text(text, encoding="utf-8") for file, text in texts.items()
    }
    save_artifact(folder / ACCOUNT, writers, provenance, {"rows": selection.have})
    return [folder / file for file in contents]


def collect_account(ledger: Ledger, selection: Selection, totals: Totals, provider: str) -> dict[str, Any]:
    """What was asked, what came of it and what it cost, as plain data; keys of facets where rows have one."""
    return {
        "task": ledger.task_id,
        "kind": ledger.task.kind,
        "provider": provider,
        "model": ledger.model,
        "spec_hash": ledger.task.spec_hash,
        "prompt_version": ledger.task.prompt_version,
        "rows": selection.have,
        "cells": {cell.name: len(drafts) for cell, drafts in selection.chosen.items()},
        "rejected": dict(sorted(selection.rejected.items())),
        "good_but_not_needed": selection.surplus,
        "rounds": totals.rounds,
        "requests": {"answered": totals.answered, "failed": dict(sorted(totals.failures.items()))},
        "tokens": {"prompt": totals.prompt_tokens, "completion": totals.completion_tokens},
        "cost_usd": totals.cost,
    }


def count_table(selection: Selection) -> str:
    """Rows by facet and key, or by harm, as Markdown."""
    counts: Mapping[str, int] = selection.by_group()
    minus = {cell.group: len(drafts) for cell, drafts in selection.chosen.items() if cell.keyed == -1}
    has_keys = any(cell.keyed is not None for cell in selection.chosen)
    header = ["facet", "rows", "keyed -1"] if has_keys else ["harm", "rows"]
    lines = [
        [f"`{group}`", str(count), *([str(minus.get(group, 0))] if has_keys else [])] for group, count in counts.items()
    ]
    return "\n".join(as_row(cells) for cells in [header, ["---"] * len(header), *lines])


def as_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
