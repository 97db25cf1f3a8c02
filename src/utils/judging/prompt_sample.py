"""Which questions are judged where not all of them are: the first in an order drawn by seed.

A question's place follows from the seed and its own id, so that what a limit or a budget leaves is a random sample of
the questions, a later run with more of either goes on from it, and every judge has the same.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import pandas as pd
from jaxtyping import Bool

from src.utils.judging.judgement import ARMS, LEFT_OUT, NO_ANSWER, NOT_ASKED


def drawn(prompt_ids: Iterable[str], seed: int) -> list[str]:
    """The distinct prompts in the order in which they are judged."""
    return sorted(set(prompt_ids), key=lambda prompt_id: hashlib.sha256(f"{seed}\0{prompt_id}".encode()).digest())


def limited(frame: pd.DataFrame, limit: int | None, seed: int) -> Bool[np.ndarray, " rows"]:
    """Which rows answer one of the first `limit` questions."""
    return frame["prompt_id"].isin(drawn(frame["prompt_id"], seed)[:limit]).to_numpy()


def judged_sample(judged: pd.DataFrame, seed: int) -> dict[str, int]:
    """How many questions there are, and how many questions and answers of both arms were judged, scored or not."""
    errors = judged[[f"{prefix}judge_error" for prefix in ARMS.values()]]
    has_answer = ~errors.fillna("").apply(lambda column: column.str.startswith(NO_ANSWER))
    was_asked = ~errors.isin([NOT_ASKED, LEFT_OUT]).any(axis=1)
    return {
        "questions": judged["prompt_id"].nunique(),
        "judged_questions": judged.loc[was_asked, "prompt_id"].nunique(),
        "judged_answers": int(has_answer[was_asked].sum(axis=None)),
        "seed": seed,
    }


def format_sample(sample: dict[str, int]) -> str:
    """The sample as a line for a terminal."""
    if sample["judged_questions"] == sample["questions"]:
        return f"judged all {sample['judged_answers']} answers to {sample['questions']} questions"
    return (
        f"judged {sample['judged_answers']} answers, to a random sample of {sample['judged_questions']} of "
        f"{sample['questions']} questions (drawn by seed {sample['seed']})"
    )
