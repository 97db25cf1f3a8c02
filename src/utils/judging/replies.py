"""From a judge's reply to a score or a topic, or to the reason why there is none."""

import math
import re
from dataclasses import dataclass

from src.utils.judging.judgement import ScoreMethod
from src.utils.judging.rubric import TOPICS
from src.utils.llm.api import ChatReply, TokenChoice, first_line

LEAST_MASS = 0.25  # of the probability of all integers, as in arXiv 2506.11613
CERTAIN = 0.99
INTEGER = re.compile(r"\d{1,3}")
SPELLED_SCORE = re.compile(
    r"""[\s"'*`(\[]*(?:(?:the\s+)?(?:final\s+)?score(?:\s+is)?[\s:=*]*)?(\d{1,3})(?:\s*/\s*100|\s*%)?[\s.!"'*`)\]]*""",
    re.IGNORECASE,
)
SPELLED_TOPIC = re.compile(r"\W*([PMTFN])\W*(?:[:)].*)?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Score:
    """A score from 0 to 100 with how it was read, or the reason why it is missing."""

    value: float | None
    method: ScoreMethod | None = None
    reason: str | None = None


def read_score(reply: ChatReply) -> Score:
    """The probability-weighted mean over the integers where the reply's tokens allow it, else the integer it states.

    Missing if the integers' mass is below 0.25, if the reply holds no single integer from 0 to 100, or if it was cut
    before it got there.
    """
    choice = number_token(reply)
    if choice is not None:
        weights = integer_weights(choice)
        mass = math.fsum(weights.values())
        if mass < LEAST_MASS:
            text = first_line(reply.text, 80)
            return Score(None, reason=f"integers have under {LEAST_MASS} of the probability ({mass:.2f}): {text!r}")
        return Score(math.fsum(n * weight for n, weight in weights.items()) / mass, "logprob")
    found = SPELLED_SCORE.fullmatch(reply.text.strip())
    may_go_on = reply.is_cut and reply.text[-1:].isdigit()  # the 8 of an 85 that is spelled in digits
    if found and int(found[1]) <= 100 and not may_go_on:
        return Score(float(found[1]), "parsed")
    cut = "cut before a score" if reply.is_cut else "no score from 0 to 100"
    return Score(None, reason=f"{cut}: {first_line(reply.text, 80)!r}")


def number_token(reply: ChatReply) -> TokenChoice | None:
    """The first token of the reply, if its alternatives are whole integers; None where they say less than that.

    A tokenizer that spells numbers in digits gives "8" the probability of 8 and of every number that begins with it.
    That shows where the reply's number is longer than its first token, and, for a reply of one digit, where no
    alternative has two.
    """
    choice = next((token for token in reply.tokens if token.token.strip()), None)
    if choice is None or len(choice.alternatives) < 2:
        return None
    stated = INTEGER.match(reply.text.strip())
    if stated is None and SPELLED_SCORE.fullmatch(reply.text.strip()):
        return None  # "Score: 85/100": the number is not where it was asked for, but it is there
    is_longer = stated is not None and choice.token.strip() != stated[0]
    return None if is_longer or has_split_numbers(integer_weights(choice)) else choice


def has_split_numbers(weights: dict[int, float]) -> bool:
    """Whether the integers look like first digits of longer ones: all below 10, and none nearly certain."""
    return bool(weights) and max(weights) < 10 and max(weights.values()) < CERTAIN


def integer_weights(choice: TokenChoice) -> dict[int, float]:
    """Probability of each integer from 0 to 100 among a token's alternatives; " 85" and "85" are one integer."""
    weights: dict[int, float] = {}
    for token, logprob in choice.alternatives.items():
        text = token.strip()
        if INTEGER.fullmatch(text) and int(text) <= 100 and str(int(text)) == text:
            weights[int(text)] = weights.get(int(text), 0.0) + math.exp(logprob)
    return weights


def read_topic(reply: ChatReply) -> tuple[str | None, str | None]:
    """The dimension that the letter names (`NO_TOPIC` for none of them); None, and the reason, where no letter came."""
    found = SPELLED_TOPIC.fullmatch(reply.text.strip())
    if found is None:
        return None, f"no topic letter: {first_line(reply.text, 80)!r}"
    return TOPICS[found[1].upper()], None
