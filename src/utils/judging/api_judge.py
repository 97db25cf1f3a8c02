"""Judges behind an API: every answer in up to three requests, their replies kept in the judgement store."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from src.utils.judging.judgement import Answer, Judgement, Progress
from src.utils.judging.replies import Score, read_score, read_topic
from src.utils.judging.rubric import QUESTIONS, SCALES, judgement_key, rubric_prompt
from src.utils.llm.api import ChatClient, ChatReply, ChatRequest
from src.utils.llm.asking import Account, AskingLimits, ask_all, reply_in
from src.utils.llm.prices import Estimate, Price, estimate
from src.utils.record_store import RecordStore

TOP_LOGPROBS = 20
MAX_TOKENS = 16  # the least that some models accept
LEFT_OUT = "not asked: --max-cost was reached"


@dataclass
class ApiJudge:
    """Scores answers with a model behind an API.

    `name` is provider and model, `with_topic` asks the third question; `spent` is what its replies have cost so far,
    in US dollars, and `tries` how many requests it sent, refused ones included.
    """

    name: str
    make_client: Callable[[], ChatClient]
    store: RecordStore
    limits: AskingLimits
    price: Price
    with_topic: bool = True
    spent: float = 0.0
    tries: int = 0

    @property
    def aspects(self) -> tuple[str, ...]:
        return tuple(QUESTIONS) if self.with_topic else SCALES

    def judge(self, answers: Sequence[Answer], on_answers: Callable[[int], object]) -> list[Judgement]:
        """Ask what the store lacks, then read all replies."""
        requests = self.requests(answers)
        labels = self.labels(answers)
        progress = Progress(len(answers), len(requests), on_answers)

        def find_fault(key: str, reply: ChatReply) -> str | None:
            return read_topic(reply)[1] if labels[key]["aspect"] == "topic" else read_score(reply).reason

        def show(account: Account) -> None:
            self.spent, self.tries = account.cost, account.tries
            progress.reach(account.done)

        ask_all(requests, self.make_client, self.store, self.limits, self.price.of, labels, find_fault, show)
        return [self._judgement(answer) for answer in answers]

    def estimate(self, answers: Sequence[Answer]) -> Estimate:
        """Requests still to be sent, their tokens and their cost."""
        missing = [request for key, request in self.requests(answers).items() if reply_in(self.store, key) is None]
        return estimate(missing, self.price, reply_tokens=3)

    def requests(self, answers: Sequence[Answer]) -> dict[str, ChatRequest]:
        """Key -> request; answers that are equal to the last letter share theirs."""
        requests = {}
        for question, answer in answers:
            for aspect in self.aspects:
                prompt = rubric_prompt(aspect, question, answer)
                requests[judgement_key(self.name, aspect, question, answer)] = ChatRequest(
                    system=prompt.system,
                    user=prompt.user,
                    max_tokens=MAX_TOKENS,
                    top_logprobs=TOP_LOGPROBS if aspect in SCALES else 0,
                )
        return requests

    def labels(self, answers: Sequence[Answer]) -> Mapping[str, Mapping[str, str]]:
        """What stands beside a reply in the store, for a reader of the file."""
        return {
            judgement_key(self.name, aspect, question, answer): {
                "judge": self.name,
                "aspect": aspect,
                "prompt_id": question.prompt_id,
            }
            for question, answer in answers
            for aspect in self.aspects
        }

    def _judgement(self, answer: Answer) -> Judgement:
        replies = {aspect: self._reply(aspect, answer) for aspect in self.aspects}
        scores = {aspect: as_score(replies[aspect]) for aspect in SCALES}
        topic, topic_reason = as_topic(replies["topic"]) if self.with_topic else (None, None)
        reasons = {aspect: score.reason for aspect, score in scores.items()} | {"topic": topic_reason}
        return Judgement(
            em_score=scores["misalignment"].value,
            coherence=scores["coherence"].value,
            score_method=scores["misalignment"].method,
            coherence_method=scores["coherence"].method,
            judged_dimension=topic,
            error="; ".join(f"{aspect}: {reason}" for aspect, reason in reasons.items() if reason) or None,
        )

    def _reply(self, aspect: str, answer: Answer) -> ChatReply | str:
        key = judgement_key(self.name, aspect, *answer)
        record = self.store.get(key)
        if record is None:
            return LEFT_OUT
        return record["failure"] if "failure" in record else ChatReply.model_validate(record["reply"])


def as_score(reply: ChatReply | str) -> Score:
    """The score in a reply; a failure stands for itself."""
    return Score(None, reason=reply) if isinstance(reply, str) else read_score(reply)


def as_topic(reply: ChatReply | str) -> tuple[str | None, str | None]:
    return (None, reply) if isinstance(reply, str) else read_topic(reply)
