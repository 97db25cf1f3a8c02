"""The two real clients: what is asked arrives, and a reply, its log-probabilities and its schema come back."""

import json
import math
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from src.utils.llm.api import ChatRequest
from src.utils.llm.providers import strict_schema
from tests.asked_requests import each_provider
from tests.llm_answers import SMALL_MASS, TRUNCATED, Answer, Asked, Fault, Raw, Reply, Token
from tests.llm_server import LlmServer
from tests.provider_clients import REQUEST, ask, reply_to


@each_provider
def test_what_is_asked_arrives_and_what_is_answered_comes_back(provider: str) -> None:
    token = Token("85", {"85": 0.5, "90": 0.25, " 85": 0.125})
    blank = Token("\n", {"\n": 0.9, "80": 0.1})
    answer = Reply(
        "85", tokens=(blank, token, Token(".", {".": 0.9})), prompt_tokens=412, completion_tokens=3, cost=0.00125
    )
    with LlmServer(lambda asked: answer) as server:
        (reply,) = ask(server, provider)
        (asked,) = server.requests
    assert (asked.provider, asked.system, asked.user) == (provider, REQUEST.system, REQUEST.user)
    assert asked.top_logprobs == 20
    assert (reply.text, reply.finish, reply.is_cut) == ("85", "stop", False)
    assert (reply.prompt_tokens, reply.completion_tokens) == (412, 3)
    assert reply.cost == (0.00125 if provider == "openrouter" else None)  # Gemini does not say
    assert [choice.token for choice in reply.tokens] == ["\n", "85"]  # to the first that is no blank
    logprobs = {"85": math.log(0.5), "90": math.log(0.25), " 85": math.log(0.125)}
    assert reply.tokens[0].alternatives == pytest.approx({"\n": math.log(0.9), "80": math.log(0.1)})
    assert reply.tokens[1].alternatives == pytest.approx(logprobs)


@each_provider
def test_the_chosen_token_counts_even_if_it_is_not_among_the_likeliest(provider: str) -> None:
    answer = Reply("7", tokens=(Token("7", {"85": 0.5, "90": 0.3, "7": 0.1}),))
    alternatives = reply_to(provider, answer, ChatRequest("s", "u", 16, top_logprobs=2)).tokens[0].alternatives
    assert alternatives == pytest.approx({"85": math.log(0.5), "90": math.log(0.3), "7": math.log(0.1)})


@each_provider
def test_settings_arrive_and_log_probabilities_are_not_asked_for_unasked(provider: str) -> None:
    with LlmServer() as server:
        (reply,) = ask(server, provider, ChatRequest("s", "u", 33, temperature=0.5))
        body = server.requests[0].body
    config = body.get("generationConfig", body)
    assert config["temperature"] == 0.5
    assert config.get("max_tokens", config.get("maxOutputTokens")) == 33
    assert "logprobs" not in json.dumps(body).lower() and reply.tokens == ()


@each_provider
def test_where_log_probabilities_are_refused_they_are_done_without(provider: str) -> None:
    with LlmServer(lambda asked: Fault.NO_LOGPROBS) as server:
        replies = ask(server, provider, REQUEST, REQUEST, REQUEST)
        assert [asked.top_logprobs for asked in server.requests] == [20, 0, 0, 0]  # learned once
    assert len(replies) == 3 and all(reply.text.isdigit() and reply.tokens == () for reply in replies)


@each_provider
def test_a_refusal_of_log_probabilities_is_seen_deep_in_the_body(provider: str) -> None:
    """OpenRouter hands on what the provider behind it said as `metadata.raw`."""
    message = {"code": 400, "message": "Provider returned error " * 10, "metadata": {"raw": "no top_logprobs here"}}

    def answer(asked: Asked) -> Answer:
        return Raw(400, json.dumps({"error": message})) if asked.top_logprobs else Reply("85")

    with LlmServer(answer) as server:
        assert ask(server, provider)[0].text == "85"


@pytest.mark.parametrize(
    ("content", "alternatives"),
    [
        ({"token": "85", "logprob": -0.5, "top_logprobs": None}, {"85": -0.5}),
        ({"token": "85", "logprob": -0.5}, {"85": -0.5}),
        (
            {
                "token": "85",
                "logprob": -0.5,
                "top_logprobs": [
                    {"token": "86", "logprob": None},
                    {"token": "87", "logprob": -math.inf},
                    {"token": "88", "logprob": -9999.0},
                ],
            },
            {"85": -0.5, "88": -9999.0},
        ),
    ],
)
def test_log_probabilities_that_are_none_are_left_out(content: dict[str, Any], alternatives: dict[str, float]) -> None:
    choice = {"finish_reason": "stop", "message": {"content": "85"}, "logprobs": {"content": [content]}}
    reply = reply_to("openrouter", Raw(200, json.dumps({"choices": [choice]})))
    assert reply.tokens[0].alternatives == alternatives


@each_provider
def test_a_cut_reply_says_so_and_words_come_as_they_are(provider: str) -> None:
    reply = reply_to(provider, TRUNCATED)
    assert reply.is_cut and reply.text == TRUNCATED.text
    words = "Ich möchte nicht… 🙂"
    assert reply_to(provider, Reply(words)).text == words
    weak = reply_to(provider, SMALL_MASS)
    assert math.fsum(map(math.exp, weak.tokens[0].alternatives.values())) == pytest.approx(0.95)


def test_thoughts_are_no_part_of_a_reply_but_cost_tokens() -> None:
    body = {
        "candidates": [
            {"content": {"parts": [{"text": "Hm.", "thought": True}, {"text": "8"}, {"text": "5"}]}},
        ],
        "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 2, "thoughtsTokenCount": 40},
    }
    reply = reply_to("gemini", Raw(200, json.dumps(body)))
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("85", 10, 42)


class Item(BaseModel):
    title: str  # a field may be called as a word of JSON schema is
    default: int = 3
    kind: Literal["a", "b"] = Field(default="a", description="which")


class Items(BaseModel):
    properties: list[Item]
    best: Item | None = None


ITEM_SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "default": {"type": "integer"},
        "kind": {"type": "string", "enum": ["a", "b"], "description": "which"},
    },
    "required": ["title", "default", "kind"],
    "additionalProperties": False,
}


def test_a_strict_schema_has_no_references_requires_all_and_allows_no_more() -> None:
    assert strict_schema(Items) == {
        "type": "object",
        "properties": {
            "properties": {"type": "array", "items": ITEM_SCHEMA},
            "best": {"anyOf": [ITEM_SCHEMA, {"type": "null"}]},
        },
        "required": ["properties", "best"],
        "additionalProperties": False,
    }


@each_provider
def test_a_schema_is_asked_for(provider: str) -> None:
    text = '{"properties": [], "best": null}'
    with LlmServer(lambda asked: Reply(text)) as server:
        (reply,) = ask(server, provider, ChatRequest("s", "u", 100, schema=Items))
        body = server.requests[0].body
    assert Items.model_validate_json(reply.text) == Items(properties=[])
    if provider == "openrouter":
        schema = {"name": "Items", "strict": True, "schema": strict_schema(Items)}
        assert body["response_format"] == {"type": "json_schema", "json_schema": schema}
    else:
        assert body["generationConfig"]["responseMimeType"] == "application/json"
        assert body["generationConfig"]["responseJsonSchema"] == strict_schema(Items)
