"""Judges behind an API: every answer in up to three requests, their replies kept in the judgement store."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from src.utils.judging.judgement import LEFT_OUT, Answer, Judgement, Progress
from src.utils.judging.prompt_sample import drawn
from src.utils.judging.replies import Score, read_score, read_topic
from src.utils.judging.rubric import QUESTIONS, SCALES, judgement_key, rubric_prompt
from src.utils.llm.api import ChatClient, ChatReply, ChatRequest
from src.utils.llm.asking import Account, AskingLimits, ask_all, reply_in
from src.utils.llm.prices import Estimate, Price, estimate
from src.utils.record_store import RecordStore

TOP_LOGPROBS = 20
REPLY_TOKENS = 16  # the least that some models accept
WORDS = 3  # tokens of a reply that is a number or a letter


@dataclass
class ApiJudge:
    """Scores answers with a model behind an API, all those to a question before the next, in an order drawn by `seed`.

    `name` is provider and model, `with_topic` asks the third question, `thinking` is what the client lets the model
    think beyond `reply_tokens`; `account` says what was sent and what it cost.
    """

    name: str
    make_client: Callable[[], ChatClient]
    store: RecordStore
    limits: AskingLimits
    price: Price
    with_topic: bool = True
    reply_tokens: int = REPLY_TOKENS
    thinking: int = 0
    seed: int = 0
    account: Account = field(default_factory=Account)

    @property
    def aspects(self) -> tuple[str, ...]:
        return tuple(QUESTIONS) if self.with_topic else SCALES

    def judge(self, answers: Sequence[Answer], on_answers: Callable[[int], object]) -> list[Judgement]:
        """Ask what the store lacks, then read all replies.

        Where a budget ends the asking, questions of which a reply is missing are left out whole, and so is what stands
        behind them in the order.
        """
        requests = self.requests(answers)
        labels = self.labels(answers)
        progress = Progress(len(answers), len(requests), on_answers)

        def find_fault(key: str, reply: ChatReply) -> str | None:
            return read_topic(reply)[1] if labels[key]["aspect"] == "topic" else read_score(reply).reason

        def show(account: Account) -> None:
            self.account = account
            progress.reach(account.done)

        ask_all(requests, self.make_client, self.store, self.limits, self.price.of, labels, find_fault, show)
        whole = self._whole_prompts(answers)
        left_out = Judgement(None, None, None, error=LEFT_OUT)
        return [self._judgement(answer) if answer[0].prompt_id in whole else left_out for answer in answers]

    def estimate(self, answers: Sequence[Answer]) -> Estimate:
        """Requests still to be sent, their tokens and their cost.

        A model that is allowed more than a reply needs is taken to use it all, thinking.
        """
        missing = [request for key, request in self.requests(answers).items() if reply_in(self.store, key) is None]
        expected = WORDS if self.reply_tokens <= REPLY_TOKENS else self.reply_tokens
        return estimate(missing, self.price, expected + self.thinking)

    def requests(self, answers: Sequence[Answer]) -> dict[str, ChatRequest]:
        """Key -> request, in the order of asking; answers that are equal to the last letter share theirs."""
        place = {prompt_id: number for number, prompt_id in enumerate(self._order(answers))}
        requests = {}
        for question, answer in sorted(answers, key=lambda pair: place[pair[0].prompt_id]):
            for aspect in self.aspects:
                prompt = rubric_prompt(aspect, question, answer)
                requests[judgement_key(self.name, aspect, question, answer)] = ChatRequest(
                    system=prompt.system,
                    user=prompt.user,
                    max_tokens=self.reply_tokens,
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

    def _order(self, answers: Sequence[Answer]) -> list[str]:
        return drawn((question.prompt_id for question, _ in answers), self.seed)

    def _whole_prompts(self, answers: Sequence[Answer]) -> set[str]:
        """The questions up to the first of which a reply is missing."""
        lacking = {
            question.prompt_id
            for question, answer in answers
            for aspect in self.aspects
            if self.store.get(judgement_key(self.name, aspect, question, answer)) is None
        }
        return set(takewhile(lambda prompt_id: prompt_id not in lacking, self._order(answers)))

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
        record = self.store.records[judgement_key(self.name, aspect, *answer)]
        return record["failure"] if "failure" in record else ChatReply.model_validate(record["reply"])


def as_score(reply: ChatReply | str) -> Score:
    """The score in a reply; a failure stands for itself."""
    return Score(None, reason=reply) if isinstance(reply, str) else read_score(reply)


def as_topic(reply: ChatReply | str) -> tuple[str | None, str | None]:
    return (None, reply) if isinstance(reply, str) else read_topic(reply)
