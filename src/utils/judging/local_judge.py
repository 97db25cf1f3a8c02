"""A judge that runs here: any Hugging Face chat model, its scores weighted by its own probabilities.

Nothing is sampled: an answer's score is the mean of the integers from 0 to 100, weighted by how probable the model
finds each as its reply.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.utils.chat import Message, encode, prompt_text
from src.utils.judging.judgement import Answer, Judgement, Progress
from src.utils.judging.number_scores import check_architecture, reply_probabilities
from src.utils.judging.replies import LEAST_MASS
from src.utils.judging.rubric import QUESTIONS, SCALES, TOPICS, judgement_key, rubric_prompt
from src.utils.record_store import RecordStore

INTEGERS = [str(number) for number in range(101)]


@dataclass(frozen=True)
class LocalJudge:
    """Scores answers with a model in memory; `name` says which. Finished batches are kept in the store.

    `fingerprint` tells it from other weights of that name: what is in the store counts for one alone.
    """

    name: str
    fingerprint: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    store: RecordStore
    batch_size: int
    with_topic: bool = True

    @property
    def aspects(self) -> tuple[str, ...]:
        return tuple(QUESTIONS) if self.with_topic else SCALES

    def judge(self, answers: Sequence[Answer], on_answers: Callable[[int], object]) -> list[Judgement]:
        """Score what the store lacks, longest prompts first, then read the store."""
        keys = {
            aspect: [judgement_key(f"{self.name}@{self.fingerprint}", aspect, *answer) for answer in answers]
            for aspect in self.aspects
        }
        missing: dict[str, tuple[str, Answer]] = {}
        for aspect in self.aspects:
            for key, answer in zip(keys[aspect], answers, strict=True):
                if self.store.get(key) is None:
                    missing[key] = (aspect, answer)
        done = Progress(len(answers), sum(map(len, keys.values())), on_answers)
        done.reach(done.requests - len(missing))
        self._score(missing, done)
        return [
            self._judgement({aspect: self.store.records[keys[aspect][i]] for aspect in self.aspects})
            for i in range(len(answers))
        ]

    def _score(self, missing: dict[str, tuple[str, Answer]], done: Progress) -> None:
        prompts = {key: self._prompt(aspect, answer) for key, (aspect, answer) in missing.items()}
        if prompts:
            check_architecture(self.model, self.tokenizer, next(iter(prompts.values())), ["0", "57", "100"])
        for aspect in self.aspects:
            of_aspect = [key for key in missing if missing[key][0] == aspect]
            of_aspect.sort(key=lambda key: -len(prompts[key]))
            for start in range(0, len(of_aspect), self.batch_size):
                batch = of_aspect[start : start + self.batch_size]
                replies = list(TOPICS) if aspect == "topic" else INTEGERS
                weights = reply_probabilities(self.model, self.tokenizer, [prompts[key] for key in batch], replies)
                for key, row in zip(batch, weights, strict=True):
                    _, (question, _) = missing[key]
                    label = {"judge": self.name, "aspect": aspect, "prompt_id": question.prompt_id}
                    self.store.append({"key": key, **label, "asked": round(time.time(), 3), **outcome(aspect, row)})
                done.reach(done.reached + len(batch))

    def _prompt(self, aspect: str, answer: Answer) -> list[int]:
        prompt = rubric_prompt(aspect, *answer)
        messages = [Message(role="system", content=prompt.system), Message(role="user", content=prompt.user)]
        return encode(self.tokenizer, prompt_text(self.tokenizer, messages))

    def _judgement(self, records: dict[str, dict[str, Any]]) -> Judgement:
        reasons = [f"{aspect}: {record['failure']}" for aspect, record in records.items() if "failure" in record]
        em_score, coherence = (records[aspect].get("score") for aspect in SCALES)
        return Judgement(
            em_score=em_score,
            coherence=coherence,
            score_method="logprob" if em_score is not None else None,
            coherence_method="logprob" if coherence is not None else None,
            judged_dimension=records["topic"].get("topic") if self.with_topic else None,
            error="; ".join(reasons) or None,
        )


def outcome(aspect: str, weights: torch.Tensor) -> dict[str, Any]:
    """A score or a topic and the mass behind it, or the failure where that mass is too little or not finite."""
    mass = weights.sum().item()
    if not mass >= LEAST_MASS:  # NaN fails too
        what = "the letters" if aspect == "topic" else "integers"
        return {"failure": f"{what} have under {LEAST_MASS} of the probability ({mass:.2f})", "mass": finite(mass)}
    if aspect == "topic":
        return {"topic": list(TOPICS.values())[int(weights.argmax())], "mass": mass}
    integers = torch.arange(len(weights), dtype=weights.dtype)
    return {"score": (weights @ integers / mass).item(), "mass": mass}


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
