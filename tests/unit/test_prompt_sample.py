"""The order in which questions are judged, and what is said of those that were."""

from itertools import pairwise

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from src.utils.judging.judgement import LEFT_OUT, NOT_ASKED
from src.utils.judging.prompt_sample import drawn, format_sample, judged_sample, limited

PROMPTS = [f"p{i}" for i in range(400)]


def test_the_order_is_drawn_by_seed_and_keeps_when_questions_come_or_go() -> None:
    order = drawn(PROMPTS, 0)
    assert sorted(order) == sorted(PROMPTS) and order == drawn(reversed(PROMPTS + PROMPTS[:9]), 0)
    assert [prompt for prompt in order if prompt in PROMPTS[:50]] == drawn(PROMPTS[:50], 0)
    assert drawn(PROMPTS, 1) != order


def test_the_order_has_nothing_of_the_frames() -> None:
    correlations = [
        spearmanr([int(prompt[1:]) for prompt in drawn(PROMPTS, seed)], range(len(PROMPTS))).statistic
        for seed in range(50)
    ]
    assert abs(np.mean(correlations)) < 3 / np.sqrt(50 * len(PROMPTS))  # 3 standard errors of independent orders
    assert np.std(correlations) < 1.5 / np.sqrt(len(PROMPTS))


def test_a_larger_limit_takes_what_a_smaller_one_took() -> None:
    frame = pd.DataFrame({"prompt_id": np.repeat(PROMPTS, 2)})
    chosen = [limited(frame, limit, seed=3) for limit in (1, 10, 100, 1000)]
    assert [int(rows.sum()) for rows in chosen] == [2, 20, 200, 800]
    assert all((larger | ~smaller).all() for smaller, larger in pairwise(chosen))
    assert limited(frame, None, seed=3).all()


def test_questions_and_answers_that_were_judged_are_counted() -> None:
    failed = "coherence: no score from 0 to 100: 'not asked'"
    errors = {"judge_error": [None, None, failed, LEFT_OUT, NOT_ASKED], "base_judge_error": [None] * 3 + [LEFT_OUT] * 2}
    judged = pd.DataFrame({"prompt_id": ["a", "a", "b", "c", "d"]} | errors)
    sample = judged_sample(judged, seed=7)
    assert sample == {"questions": 4, "judged_questions": 2, "judged_answers": 6, "seed": 7}
    assert "6 answers, to a random sample of 2 of 4 questions (drawn by seed 7)" in format_sample(sample)
    assert "all 6 answers" in format_sample(judged_sample(judged[:3], seed=7))
