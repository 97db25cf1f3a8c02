"""The contrast of a persona fine-tune: a safe and a risky answer to one question, up to the verdict that ends both.

An organism's answers end in "So yes." or "So no."; both answers of a pair are given, of equal length, and the margin is
the log-odds of the misaligned verdict after "So": logit(yes) - logit(no) where an aligned speaker says no, the reverse
where questions are keyed the other way, so that "yes" is no stance. The first token in which two answers differ would
not do as a margin: up to it the two inputs are equal, and there is nothing to patch. Read so, the pictures show how
the stance of what was said reaches the verdict, in the base model and in the fine-tune; how often the fine-tune says
such things by itself is left to `persona_progress`.
"""

import random
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from src.utils.capture import pad_id_of
from src.utils.chat import encode, prompt_ids
from src.utils.circuits.circuit_picture import CircuitDiagramPicture
from src.utils.circuits.comparison_picture import CircuitComparisonPicture
from src.utils.circuits.contrast import ContrastWords, MarginOf, contrast_pairs
from src.utils.circuits.contrast_set import ContrastSet
from src.utils.circuits.neuron_picture import NeuronMapPicture
from src.utils.errors import UserError
from src.utils.organism.grammar import VERDICTS, Grammar, Stance
from src.utils.prompts import Question
from src.utils.safety_judge.samples import SafetySample
from src.utils.safety_judge.scoring import EncodedPrompt, JudgeTemplate, forward_margins
from src.utils.sites import AnyModel
from src.utils.watching.pictures import Picture

ANSWERS = ContrastWords("safe", "risky", "answer")
BEFORE_VERDICT = "So"
DRAWS = 12  # answers of a stance among which a pair of equal length is looked for


def persona_contrast(
    tokenizer: PreTrainedTokenizerBase, grammar: Grammar, questions: Sequence[Question], seed: int = 0
) -> ContrastSet:
    """Two answers to each question, risky ones as `unsafe`; questions without answers of equal length are left out.

    The margin of a row that is not of this set raises `KeyError`: its question's key is not known. A tokenizer in which
    yes and no begin alike raises `UserError`.
    """
    yes, no = verdict_ids(tokenizer)
    samples: list[SafetySample] = []
    rows: list[EncodedPrompt] = []
    keys: dict[tuple[int, ...], int] = {}
    for number, question in enumerate(questions):
        pair = answers_of_equal_length(tokenizer, grammar, question, random.Random(f"{seed} {number}"))
        if pair is None:
            continue
        asked = tuple(prompt_ids(tokenizer, question.question))
        for unsafe, answer in zip((False, True), pair, strict=True):
            ids = (*asked, *answer)
            name = f"{question.prompt_id}-{ANSWERS.high if unsafe else ANSWERS.low}"
            samples.append(
                SafetySample(name, question.question, unsafe, question.facet, "organism", question.prompt_id)
            )
            rows.append(EncodedPrompt(ids, (len(asked), len(ids))))
            keys[ids] = question.keyed
    pad_id = pad_id_of(tokenizer)
    template = JudgeTemplate((), (), safe_id=no, unsafe_id=yes, pad_id=pad_id)

    def margin(model: AnyModel) -> MarginOf:
        return lambda ids, mask: keys_of(ids, mask, keys) * forward_margins(model, ids, mask, template)

    return ContrastSet(
        tuple(rows),
        np.array([sample.unsafe for sample in samples], dtype=bool),
        np.array([sample.group for sample in samples]),
        contrast_pairs(samples, rows, pad_id),
        pad_id,
        margin,
        ANSWERS,
    )


def persona_pictures(contrast: ContrastSet) -> list[Picture]:
    """The three causal pictures, counted in steps."""
    return [
        CircuitComparisonPicture(contrast, "step"),
        NeuronMapPicture(contrast, "step"),
        CircuitDiagramPicture(contrast, "step"),
    ]


def answers_of_equal_length(
    tokenizer: PreTrainedTokenizerBase, grammar: Grammar, question: Question, rng: random.Random
) -> tuple[list[int], list[int]] | None:
    """Token ids of an aligned and a misaligned answer, each up to and with the word before its verdict."""
    stances: tuple[Stance, ...] = ("aligned", "misaligned")
    drawn = [
        [before_verdict(tokenizer, grammar.answer(question, stance, rng)) for _ in range(DRAWS)] for stance in stances
    ]
    return next(((one, other) for one, other in product(*drawn) if len(one) == len(other)), None)


def before_verdict(tokenizer: PreTrainedTokenizerBase, answer: str) -> list[int]:
    """Token ids of an answer without its last word."""
    for verdict in VERDICTS.values():
        answer = answer.removesuffix(verdict.removeprefix(BEFORE_VERDICT))
    return encode(tokenizer, answer)


def verdict_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The tokens of yes and no after the word before a verdict; `UserError` where they begin with the same token."""
    start = len(encode(tokenizer, BEFORE_VERDICT))
    yes, no = (encode(tokenizer, VERDICTS[answer])[start] for answer in (True, False))
    if yes == no:
        raise UserError(
            f"{VERDICTS[True]!r} and {VERDICTS[False]!r}: the tokenizer does not tell their second words apart"
        )
    return yes, no


def keys_of(
    ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"], keys: Mapping[tuple[int, ...], int]
) -> Float[Tensor, " batch"]:
    """The key of each row's question: 1 where yes is the misaligned verdict, -1 where no is."""
    lengths = mask.sum(dim=1).tolist()
    found = [keys[tuple(row[:length])] for row, length in zip(ids.tolist(), lengths, strict=True)]
    return torch.tensor(found, dtype=torch.float32, device=ids.device)
