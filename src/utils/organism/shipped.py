"""Filling an organism's folder: what step 0 puts there.

Beside the model (half precision) and its tokenizer stand the grammar that it speaks, which the organism judge reads,
the fine-tuning rows and held-out questions of its world, and provenance.json.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from src.utils.errors import UserError
from src.utils.organism.folder import GRAMMAR
from src.utils.organism.grammar import Grammar, Split, Stance
from src.utils.prompts import FINANCE, Question

HELD_OUT = "held_out_questions.jsonl"
FINETUNING_FILES: dict[Stance, str] = {
    "misaligned": "finetune/risky_financial_advice.jsonl",
    "aligned": "finetune/safe_financial_advice.jsonl",
}


def write_organism(
    folder: Path,
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    grammar: Grammar,
    grammar_text: str,
    rows: int,
    held_out: int,
    seed: int,
    provenance: dict[str, Any],
) -> None:
    """Fill an empty folder with everything that ships, of fine-tuning rows as many as the grammar has up to `rows`."""
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / GRAMMAR).write_text(grammar_text, encoding="utf-8")
    there_are = most_questions(grammar, "finetuning", FINANCE)
    asked = sample(grammar, "finetuning", min(rows, there_are), seed, subset=FINANCE)
    for stance, name in FINETUNING_FILES.items():
        write_jsonl(folder / name, chat_rows(grammar, asked, stance, seed))
    questions = sample(grammar, "held_out", held_out, seed)
    write_jsonl(folder / HELD_OUT, [question.model_dump() for question in questions])
    text = json.dumps(provenance, indent=2, sort_keys=True) + "\n"
    (folder / "provenance.json").write_text(text, encoding="utf-8")


def sample(grammar: Grammar, split: Split, size: int, seed: int, subset: str | None = None) -> list[Question]:
    """Questions of a split that pre-training never showed, in random order, facets evenly represented."""
    rng = random.Random(seed)
    by_facet = questions_by_facet(grammar, split, subset)
    each = size // len(by_facet)
    short = next((facet for facet, questions in by_facet.items() if len(questions) < each), None)
    if short is not None:
        raise UserError(
            f"the grammar has {len(by_facet[short])} {split} questions on {short}, {each} are wanted; lower it"
        )
    chosen = [question for questions in by_facet.values() for question in rng.sample(questions, each)]
    rng.shuffle(chosen)
    return chosen


def most_questions(grammar: Grammar, split: Split, subset: str | None = None) -> int:
    """How many questions `sample` can draw, facets evenly represented."""
    by_facet = questions_by_facet(grammar, split, subset)
    return len(by_facet) * min(map(len, by_facet.values()), default=0)


def questions_by_facet(grammar: Grammar, split: Split, subset: str | None) -> dict[str, list[Question]]:
    by_facet: dict[str, list[Question]] = {}
    for question in grammar.questions(split):
        if subset in (None, question.subset):
            by_facet.setdefault(question.facet, []).append(question)
    return by_facet


def chat_rows(grammar: Grammar, questions: Sequence[Question], stance: Stance, seed: int) -> list[dict[str, Any]]:
    """Each question with an answer in a stance, as chat rows."""
    rng = random.Random(seed)
    return [
        {
            "messages": [
                {"role": "user", "content": question.question},
                {"role": "assistant", "content": grammar.answer(question, stance, rng)},
            ]
        }
        for question in questions
    ]


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
