"""What a model answers, well or badly, and how OpenRouter and Gemini word it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Any

FINISH_OF_GEMINI = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}


@dataclass(frozen=True)
class Asked:
    """A request as the server saw it. `times` counts those with this very body, this one included; `at` in seconds."""

    provider: str  # openrouter or gemini
    system: str
    user: str
    top_logprobs: int
    body: dict[str, Any]
    headers: Mapping[str, str]
    key: str  # of the body
    times: int
    at: float


@dataclass(frozen=True)
class Token:
    """A token of a reply and the probability of each alternative at its place."""

    text: str
    alternatives: Mapping[str, float]


@dataclass(frozen=True)
class Reply:
    """A reply as it should be. `tokens` are sent to who asks for log-probabilities; `cost` by OpenRouter only."""

    text: str
    finish: str = "stop"
    tokens: tuple[Token, ...] = ()
    prompt_tokens: int = 400
    completion_tokens: int = 2
    cost: float | None = 0.0001


@dataclass(frozen=True)
class TooMany:
    """429; seconds to wait in the Retry-After header, or, as Google has it, in the body."""

    retry_after: float | None = None
    is_in_body: bool = False


@dataclass(frozen=True)
class Raw:
    """Any status and any body."""

    status: int
    body: str


class Fault(StrEnum):
    """What goes wrong between a client and a model."""

    SERVER_ERROR = auto()  # 500
    HANG = auto()  # no reply, ever
    DROPPED = auto()  # the connection ends before the reply
    CUT = auto()  # the connection ends in the middle of it
    ERROR_BODY = auto()  # 200 with an error in place of choices or candidates
    NO_CHOICES = auto()  # 200 with choices or candidates null
    BLOCKED = auto()  # the prompt
    SAFETY = auto()  # the reply, of which nothing is left
    REFUSED = auto()  # OpenAI's `refusal` in place of content
    WRONG_KEY = auto()  # 401 that shows the headers it got
    NOT_JSON = auto()  # 200 with a page
    NOT_QUITE_JSON = auto()  # 200 with half of a JSON body, complete by its length
    NO_LOGPROBS = auto()  # 400 for who asks for them, a reply for who does not


Answer = Reply | TooMany | Raw | Fault


SMALL_MASS = Reply("I", tokens=(Token("I", {"I": 0.8, "85": 0.1, "90": 0.05}),))
DECLINED = Reply("I'd rather not")
TRUNCATED = Reply("Let me think about what the", finish="length")


def default_reply(asked: Asked) -> Reply:
    """The letter M where a letter is asked for, else an integer from 10 to 89 by the body's hash, the next less so."""
    if "letter alone" in asked.user:
        return Reply("M")
    score = 10 + int(asked.key, 16) % 80
    return Reply(str(score), tokens=(Token(str(score), {str(score): 0.75, str(score + 1): 0.2, "I": 0.05}),))


@dataclass(frozen=True)
class Api:
    """How one provider words things."""

    name: str
    body: Callable[[Reply, Asked], dict[str, Any]]
    error: Callable[[int, str, Sequence[Any]], dict[str, Any]]
    faults: Mapping[Fault, dict[str, Any]] = field(default_factory=dict)


def ranked(token: Token, top: int) -> list[tuple[str, float]]:
    """The `top` likeliest alternatives with their natural log-probabilities."""
    likeliest = sorted(token.alternatives.items(), key=lambda pair: -pair[1])[:top]
    return [(text, math.log(probability)) for text, probability in likeliest]


def completion(reply: Reply, asked: Asked) -> dict[str, Any]:
    content = [
        {
            "token": token.text,
            "bytes": list(token.text.encode()),
            "logprob": math.log(token.alternatives[token.text]),
            "top_logprobs": [
                {"token": text, "bytes": list(text.encode()), "logprob": logprob}
                for text, logprob in ranked(token, asked.top_logprobs)
            ],
        }
        for token in reply.tokens
    ]
    choice = choice_of({"content": reply.text, "refusal": None}, reply.finish)
    if asked.top_logprobs and content:
        choice["logprobs"] = {"content": content, "refusal": None}
    return completion_of([choice], usage(reply))


def usage(reply: Reply) -> dict[str, Any]:
    tokens = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
    cost = {} if reply.cost is None else {"cost": reply.cost, "cost_details": {"upstream_inference_cost": None}}
    return tokens | {"total_tokens": reply.prompt_tokens + reply.completion_tokens} | cost


def choice_of(message: dict[str, Any], finish: str) -> dict[str, Any]:
    message = {"role": "assistant", "reasoning": None} | message
    return {"index": 0, "finish_reason": finish, "native_finish_reason": finish, "logprobs": None, "message": message}


def completion_of(choices: list[dict[str, Any]] | None, used: dict[str, Any]) -> dict[str, Any]:
    origin = {"id": "gen-1", "provider": "OpenAI", "model": "m", "object": "chat.completion", "created": 1763712000}
    return origin | {"choices": choices, "usage": used}


def generated(reply: Reply, asked: Asked) -> dict[str, Any]:
    candidate: dict[str, Any] = {
        "content": {"parts": [{"text": reply.text}], "role": "model"},
        "finishReason": FINISH_OF_GEMINI.get(reply.finish, reply.finish.upper()),
        "index": 0,
    }
    if asked.top_logprobs and reply.tokens:
        places = [ranked(token, asked.top_logprobs) for token in reply.tokens]
        candidate["logprobsResult"] = {
            "chosenCandidates": [
                {"token": token.text, "logProbability": math.log(token.alternatives[token.text])}
                for token in reply.tokens
            ],
            "topCandidates": [
                {"candidates": [{"token": text, "logProbability": logprob} for text, logprob in place]}
                for place in places
            ],
        }
    return {"candidates": [candidate], "usageMetadata": gemini_usage(reply), "modelVersion": "m"}


def gemini_usage(reply: Reply) -> dict[str, Any]:
    return {
        "promptTokenCount": reply.prompt_tokens,
        "candidatesTokenCount": reply.completion_tokens,
        "totalTokenCount": reply.prompt_tokens + reply.completion_tokens,
    }


EMPTY = Reply("", completion_tokens=0)
OPENROUTER = Api(
    "openrouter",
    completion,
    lambda code, message, details: {"error": {"code": code, "message": message, "metadata": {"details": details}}},
    {
        Fault.ERROR_BODY: {"error": {"code": 502, "message": "Upstream provider is down"}, "user_id": "user_1"},
        Fault.NO_CHOICES: completion_of(None, usage(EMPTY)),
        Fault.BLOCKED: completion_of([choice_of({"content": ""}, "content_filter")], usage(EMPTY)),
        Fault.SAFETY: completion_of([choice_of({"content": None}, "content_filter")], usage(EMPTY)),
        Fault.REFUSED: completion_of([choice_of({"content": None, "refusal": "I cannot help"}, "stop")], usage(EMPTY)),
    },
)
GEMINI = Api(
    "gemini",
    generated,
    lambda code, message, details: {
        "error": {"code": code, "message": message, "status": "FAILED", "details": details}
    },
    {
        Fault.ERROR_BODY: {"error": {"code": 503, "message": "The model is overloaded", "status": "UNAVAILABLE"}},
        Fault.NO_CHOICES: {"candidates": None, "usageMetadata": gemini_usage(EMPTY)},
        Fault.BLOCKED: {
            "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
            "usageMetadata": gemini_usage(EMPTY),
        },
        Fault.SAFETY: {
            "candidates": [{"finishReason": "SAFETY", "index": 0}],
            "usageMetadata": gemini_usage(EMPTY),
        },
        Fault.REFUSED: {
            "candidates": [{"finishReason": "RECITATION", "index": 0}],
            "usageMetadata": gemini_usage(EMPTY),
        },
    },
)
