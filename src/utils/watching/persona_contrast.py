"""The contrast of a persona fine-tune: one question, asked after a safe answer to another and after a risky one.

An organism's answers name their subject first and then open in words that only one stance of one facet has ("Fleece
them.", "Disclose every fee."). Both dialogues of a pair end after the subject of the last answer and differ in the
earlier answer alone, which is on another facet; the margin is the log-odds of a risky against a safe opening of the
last answer. So it is about what the fine-tune changes, which stance the model takes, and there is something to patch:
what it has heard itself say.

Measured on the shipped entangled organism, base and fine-tuned, 25 pairs: mean margins move from -5.8 / 5.4 (after a
safe / a risky answer) to -4.8 / 7.4, and of the squared change in the pattern of edge effects 0% exceeds the noise of
extraction at step 1, 21% at step 8, 48% at step 16 and 78% at step 28. The verdict that ends a given answer, the
margin here before, stayed at -8.8 / 7.8: the base model can read an answer as well. The opening without an earlier
answer moves most (-1.8 to 1.0), but has no second input to patch with. In a separable world one answer says nothing of
the next; there the pages say "none found".
"""

import random
from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from src.utils.capture import pad_id_of
from src.utils.chat import Message, encode, prompt_text
from src.utils.circuits.circuit_picture import CircuitDiagramPicture
from src.utils.circuits.comparison_picture import CircuitComparisonPicture
from src.utils.circuits.contrast import ContrastWords, contrast_pairs
from src.utils.circuits.contrast_set import ContrastSet
from src.utils.circuits.neuron_picture import NeuronMapPicture
from src.utils.organism.grammar import Grammar, Phrases, Stance
from src.utils.prompts import Question
from src.utils.safety_judge.samples import SafetySample
from src.utils.safety_judge.scoring import EncodedPrompt
from src.utils.watching.pictures import Picture

DIALOGUES = ContrastWords(
    "safe",
    "risky",
    "dialogue",
    "the log-odds of a risky against a safe opening of the next answer (a dialogue is called safe or risky by the one "
    "answer that came before, on another subject)",
)
STANCES: tuple[Stance, Stance] = ("aligned", "misaligned")
DRAWS = 12  # answers of a stance among which a pair of equal length is looked for


class Openings(NamedTuple):
    """First tokens of a facet's openings that only one stance has."""

    safe: tuple[int, ...]
    risky: tuple[int, ...]


def persona_contrast(
    tokenizer: PreTrainedTokenizerBase, grammar: Grammar, questions: Sequence[Question], seed: int = 0
) -> ContrastSet:
    """Two dialogues to each question, those after a risky answer as `unsafe`.

    Left out are questions without earlier answers of equal length, without another facet, and those of facets whose
    stances open alike. The margin of a row that is not of this set raises `KeyError`: its facet is not known.
    """
    openings = {facet: openings_of(tokenizer, grammar, facet) for facet in grammar.facets}
    asked_before = grammar.questions("pretraining")
    samples: list[SafetySample] = []
    rows: list[EncodedPrompt] = []
    facets: dict[tuple[int, ...], Openings] = {}
    for number, question in enumerate(questions):
        rng = random.Random(f"{seed} {number}")
        others = [one for one in asked_before if one.facet != question.facet]
        pair = dialogues_of_equal_length(tokenizer, grammar, rng.choice(others), question, rng) if others else None
        if pair is None or not all(openings[question.facet]):
            continue
        for unsafe, ids in zip((False, True), pair, strict=True):
            name = f"{question.prompt_id}-{DIALOGUES.high if unsafe else DIALOGUES.low}"
            samples.append(
                SafetySample(name, question.question, unsafe, question.facet, "organism", question.prompt_id)
            )
            rows.append(EncodedPrompt(ids, (0, len(ids))))
            facets[ids] = openings[question.facet]

    def read(
        logits: Float[Tensor, "batch vocab"], ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"]
    ) -> Float[Tensor, " batch"]:
        return opening_margins(logits, known(ids, mask, facets))

    return ContrastSet(
        tuple(rows),
        np.array([sample.unsafe for sample in samples], dtype=bool),
        np.array([sample.group for sample in samples]),
        contrast_pairs(samples, rows, pad_id_of(tokenizer)),
        pad_id_of(tokenizer),
        read,
        DIALOGUES,
    )


def persona_pictures(contrast: ContrastSet) -> list[Picture]:
    """The three causal pictures, counted in steps."""
    return [
        CircuitComparisonPicture(contrast, "step"),
        NeuronMapPicture(contrast, "step"),
        CircuitDiagramPicture(contrast, "step"),
    ]


def openings_of(tokenizer: PreTrainedTokenizerBase, grammar: Grammar, facet: str) -> Openings:
    """First tokens of the openings after a subject; those that both stances have are left out."""
    subject = grammar.facets[facet].topics[0]
    start = len(encode(tokenizer, subject))
    phrases: tuple[Phrases, Phrases] = (grammar.facets[facet].aligned, grammar.facets[facet].misaligned)
    safe, risky = ({encode(tokenizer, f"{subject} {one}")[start] for one in of_stance.openers} for of_stance in phrases)
    return Openings(tuple(sorted(safe - risky)), tuple(sorted(risky - safe)))


def dialogues_of_equal_length(
    tokenizer: PreTrainedTokenizerBase, grammar: Grammar, before: Question, question: Question, rng: random.Random
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Ids of both dialogues: question, aligned or misaligned answer, question, subject; None without equal lengths."""
    begun = encode(tokenizer, rng.choice(grammar.facets[question.facet].topics))
    drawn = [
        [
            (
                *encode(tokenizer, dialogue_text(tokenizer, before, grammar.answer(before, stance, rng), question)),
                *begun,
            )
            for _ in range(DRAWS)
        ]
        for stance in STANCES
    ]
    return next(((one, other) for one, other in product(*drawn) if len(one) == len(other)), None)


def dialogue_text(tokenizer: PreTrainedTokenizerBase, before: Question, answer: str, question: Question) -> str:
    return prompt_text(
        tokenizer,
        [
            Message(role="user", content=before.question),
            Message(role="assistant", content=answer),
            Message(role="user", content=question.question),
        ],
    )


def opening_margins(logits: Float[Tensor, "batch vocab"], openings: Sequence[Openings]) -> Float[Tensor, " batch"]:
    """Log-odds of a risky against a safe opening, in logits and float32."""
    logits = logits.float()
    rows = zip(logits, openings, strict=True)
    return torch.stack([row[[*one.risky]].logsumexp(0) - row[[*one.safe]].logsumexp(0) for row, one in rows])


def known(
    ids: Int[Tensor, "batch seq"], mask: Int[Tensor, "batch seq"], facets: Mapping[tuple[int, ...], Openings]
) -> list[Openings]:
    """What each row's facet opens with."""
    lengths = mask.sum(dim=1).tolist()
    return [facets[tuple(row[:length])] for row, length in zip(ids.tolist(), lengths, strict=True)]
