"""What is asked of a chat model and what comes back, the same for every provider.

A provider (`providers`) turns whatever goes wrong into one of four exceptions, so that the engine (`asking`) knows what
to do about it: wait, try again, give this request up, or give the run up.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import BaseModel, ConfigDict


@dataclass(frozen=True)
class ChatRequest:
    """One question to a chat model: system prompt, one user message, and how the reply is drawn.

    `top_logprobs` asks for that many alternatives at each token; `schema` asks for JSON of that shape.
    """

    system: str
    user: str
    max_tokens: int
    temperature: float = 0.0
    top_logprobs: int = 0
    schema: type[BaseModel] | None = None


class TokenChoice(BaseModel):
    """One token of a reply and the log-probabilities (natural) of the alternatives at its place, itself included."""

    model_config = ConfigDict(frozen=True)

    token: str
    alternatives: dict[str, float]


class ChatReply(BaseModel):
    """What came back.

    `tokens` are those up to the first that is no blank; `cost` is in US dollars as the provider reports it, None where
    it does not.
    """

    model_config = ConfigDict(frozen=True)

    text: str
    finish: str  # the provider's word in lower case: stop, length, max_tokens, content_filter, safety, ...
    tokens: tuple[TokenChoice, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None

    @property
    def is_cut(self) -> bool:
        """Whether the reply ended because its tokens ran out."""
        return self.finish in ("length", "max_tokens")

    @property
    def is_silent(self) -> bool:
        """Whether its tokens ran out before it said anything."""
        return self.is_cut and not self.text.strip()


class ChatClient(Protocol):
    """A provider and a model. `ask` raises the exceptions below and nothing else but a cancellation."""

    model: str

    async def ask(self, request: ChatRequest) -> ChatReply: ...

    async def close(self) -> None: ...


class RateLimited(Exception):
    """Too many requests; `retry_after` in seconds where the server said it."""

    def __init__(self, reason: str, retry_after: float | None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Unavailable(Exception):
    """A fault that may pass: a server error, a timeout, a cut connection, a reply without choices."""


class Rejected(Exception):
    """This request will not be answered: blocked, refused by a filter, or malformed for this model.

    `is_verdict`: the provider or its model judged the content, so that the next request may well be answered. `used`
    holds the tokens and the cost that the provider counted all the same, None where it counted none.
    """

    def __init__(self, reason: str, is_verdict: bool = False, used: ChatReply | None = None) -> None:
        super().__init__(reason)
        self.is_verdict = is_verdict
        self.used = used


class Unusable(Exception):
    """No request of this run will be answered: a wrong key, no credit, an unknown model."""


@dataclass(frozen=True)
class Redactor:
    """Takes secrets out of a text before it is shown, logged or stored: servers echo what they were sent."""

    secrets: tuple[str, ...] = field(repr=False)

    def __call__(self, text: object) -> str:
        cleaned = str(text)
        for secret in self.secrets:
            if secret:
                cleaned = cleaned.replace(secret, "[key]")
        return cleaned

    def line(self, text: object) -> str:
        """`first_line` of the cleaned text: cut first, half a secret would not be found."""
        return first_line(self(text))


def first_line(text: object, length: int = 200) -> str:
    """A text on one line, cut, for a reason that goes into a record or an error."""
    line = " ".join(str(text).split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


def header(headers: Mapping[str, str] | None, names: Iterable[str]) -> str | None:
    """The first of these headers that is there."""
    return next((headers[name] for name in names if name in headers), None) if headers else None
