"""What requests cost: counted before they are sent, priced after."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from src.utils.errors import UserError
from src.utils.llm.api import ChatReply, ChatRequest

CHARACTERS_PER_TOKEN = 4  # English prose; an estimate before sending, the API's own count after


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens in and out; None where nobody told us."""

    input: float | None = None
    output: float | None = None

    @property
    def is_known(self) -> bool:
        return self.input is not None and self.output is not None

    def of_tokens(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """Cost in US dollars, None where the price is unknown."""
        if self.input is None or self.output is None:
            return None
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6

    def of(self, reply: ChatReply) -> float | None:
        """What a reply cost: as the API reported it, else by its tokens, None where it told neither."""
        if reply.cost is not None or not reply.prompt_tokens:
            return reply.cost
        return self.of_tokens(reply.prompt_tokens, reply.completion_tokens)


@dataclass(frozen=True)
class Estimate:
    """Requests that a run would send, their tokens by character count, and their cost in US dollars if known."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None

    def __add__(self, other: "Estimate") -> "Estimate":
        cost = None if self.cost is None or other.cost is None else self.cost + other.cost
        prompt_tokens = self.prompt_tokens + other.prompt_tokens
        completion_tokens = self.completion_tokens + other.completion_tokens
        return Estimate(self.requests + other.requests, prompt_tokens, completion_tokens, cost)

    def __str__(self) -> str:
        cost = "cost unknown (no price in configs/llm_prices.yaml)"
        if self.cost is not None:
            cost = f"about ${self.cost:.2f}"
        return (
            f"{self.requests:,} requests, about {self.prompt_tokens:,} tokens in and {self.completion_tokens:,} out, "
            f"{cost}"
        )


def cost_line(cost: float, is_known: bool) -> str:
    """What a run has cost, for a line that runs along; what has no price is said, not counted as nothing."""
    if is_known:
        return f"${cost:.4f}"
    return f"${cost:.4f} and what has no price" if cost else "cost unknown"


def estimate(requests: Sequence[ChatRequest], price: Price, reply_tokens: int) -> Estimate:
    """Count before sending; `reply_tokens` is how long a reply is expected to be."""
    characters = sum(len(request.system) + len(request.user) for request in requests)
    prompt_tokens, completion_tokens = characters // CHARACTERS_PER_TOKEN, reply_tokens * len(requests)
    return Estimate(len(requests), prompt_tokens, completion_tokens, price.of_tokens(prompt_tokens, completion_tokens))


def load_price(file: Path, model: str) -> Price:
    """The price of a model in a YAML file of model -> {input, output}; unknown where the file does not list it."""
    try:
        listed = yaml.safe_load(file.read_text(encoding="utf-8"))["models"].get(model)
        return Price(float(listed["input"]), float(listed["output"])) if listed else Price()
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: no price list ({error}); models: {{name: {{input: 0.4, output: 1.6}}}}") from error
