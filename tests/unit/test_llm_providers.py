"""The two real clients against a server that misbehaves: what each fault becomes, and that no key gets out."""

import asyncio
import json
import math
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from src.utils.llm.api import ChatReply, ChatRequest, RateLimited, Redactor, Rejected, Unavailable, Unusable
from src.utils.llm.providers import make_client, retry_after, retry_delay, strict_schema
from tests.llm_answers import SMALL_MASS, TRUNCATED, Answer, Asked, Fault, Raw, Reply, Token, TooMany
from tests.llm_server import KEY, LlmServer

REQUEST = ChatRequest(system="You grade.", user="An answer.", max_tokens=16, top_logprobs=20)
MODELS = {"openrouter": "openai/gpt-4.1-mini", "gemini": "gemini-2.5-flash"}
each_provider = pytest.mark.parametrize("provider", MODELS)


def in_turn(
    server: LlmServer, provider: str, requests: Sequence[ChatRequest], timeout: float = 5.0
) -> list[ChatReply | Exception]:
    """What one client, asked in turn, gives or raises."""
    url = {"openrouter": server.openrouter_url, "gemini": server.gemini_url}[provider]

    async def main() -> list[ChatReply | Exception]:
        client = make_client(provider, MODELS[provider], KEY, url, timeout)
        outcomes: list[ChatReply | Exception] = []
        for request in requests:
            try:
                outcomes.append(await client.ask(request))
            except Exception as error:
                outcomes.append(error)
        await client.close()
        return outcomes

    return asyncio.run(main())


def ask(server: LlmServer, provider: str, *requests: ChatRequest, timeout: float = 5.0) -> list[ChatReply]:
    """The replies to requests that one client sends in turn; raises what the client raises."""
    outcomes = in_turn(server, provider, requests or [REQUEST], timeout)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, ChatReply)]


def reply_to(provider: str, answer: Answer, request: ChatRequest = REQUEST) -> ChatReply:
    with LlmServer(lambda asked: answer) as server:
        return ask(server, provider, request)[0]


def failure_of(provider: str, answer: Answer, timeout: float = 5.0) -> Exception:
    """What the client raises; nothing that is shown of it, causes included, holds the key, and it asks once."""
    with LlmServer(lambda asked: answer) as server:
        with pytest.raises((RateLimited, Unavailable, Rejected, Unusable)) as caught:
            ask(server, provider, timeout=timeout)
        assert len(server.requests) == 1
        headers = server.requests[0].headers
        assert KEY in (headers.get("Authorization", "") + headers.get("x-goog-api-key", ""))
    error = caught.value
    assert KEY not in "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error))
    assert "\n" not in str(error)
    return error


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
@pytest.mark.parametrize(
    ("answer", "kind", "reasons"),
    [
        (TooMany(), RateLimited, ("429",)),
        (Fault.SERVER_ERROR, Unavailable, ("500", "Internal server error")),
        (Fault.HANG, Unavailable, ("no reply within 0.3 s",)),
        (Fault.DROPPED, Unavailable, ("disconnected",)),
        (Fault.CUT, Unavailable, ("payload is not completed",)),
        (Fault.NOT_JSON, Unavailable, ()),
        (Fault.NOT_QUITE_JSON, Unavailable, ()),
        (Fault.NO_CHOICES, Unavailable, ("the reply holds no c",)),
        (Fault.BLOCKED, Rejected, ("blocked",)),
        (Fault.SAFETY, Rejected, ("blocked",)),
        (Fault.REFUSED, Rejected, ()),
        (Fault.WRONG_KEY, Unusable, ("401", "the key is not accepted", "[key]")),
        (Raw(402, '{"error": {"code": 402, "message": "Add credits"}}'), Unusable, ("402", "there is no credit")),
        (Raw(403, '{"error": {"code": 403, "message": "Input was flagged"}}'), Rejected, ("403", "Input was flagged")),
        (Raw(404, '{"error": {"code": 404, "message": "No such model"}}'), Unusable, ("404", "No such model")),
        (Raw(400, '{"error": {"code": 400, "message": "Too long"}}'), Rejected, ("400", "Too long")),
        (Raw(408, '{"error": {"code": 408, "message": "Timeout"}}'), Unavailable, ("408",)),
        (Raw(529, '{"error": {"code": 529, "message": "Overloaded"}}'), Unavailable, ("529",)),
        (Raw(503, "<html>"), Unavailable, ()),
        *((Raw(200, body), Unavailable, ()) for body in ("null", "[]", '"85"', "{}", "")),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else None,
)
def test_each_fault_is_what_the_engine_acts_on(
    provider: str, answer: Answer, kind: type[Exception], reasons: tuple[str, ...]
) -> None:
    error = failure_of(provider, answer, timeout=0.3 if answer is Fault.HANG else 5.0)
    assert type(error) is kind
    assert all(reason in str(error) for reason in reasons), str(error)
    if answer in (Fault.BLOCKED, Fault.SAFETY, Fault.REFUSED):
        assert isinstance(error, Rejected) and error.is_verdict
    elif isinstance(error, Rejected):
        assert not error.is_verdict  # malformed for this model: so will be the next


@pytest.mark.parametrize(
    ("provider", "answer", "kind", "reason"),
    [
        ("openrouter", Fault.ERROR_BODY, Unavailable, "502: Upstream provider is down"),
        ("openrouter", Raw(200, '{"error": {"code": 429, "message": "slow down"}}'), RateLimited, "429: slow down"),
        ("openrouter", Raw(200, '{"error": {"code": 402, "message": "broke"}}'), Unusable, "there is no credit: broke"),
        ("openrouter", Raw(200, '{"error": {"code": "unknown", "message": "odd"}}'), Unavailable, "500: odd"),
        ("openrouter", Raw(200, '{"choices": [{}]}'), Unavailable, "no chat completion"),
        ("openrouter", Raw(200, '{"choices": ["85"]}'), Unavailable, "no chat completion"),
        ("openrouter", Raw(200, '{"choices": [{"message": {"content": [85]}}]}'), Unavailable, "no chat completion"),
        ("openrouter", Raw(200, '{"choices": [{"finish_reason": "error", "message": {}}]}'), Unavailable, "failed"),
        ("openrouter", Fault.REFUSED, Rejected, "refused: I cannot help"),
        ("openrouter", Fault.BLOCKED, Rejected, "content filter"),
        ("gemini", Fault.BLOCKED, Rejected, "prompt blocked (prohibited_content)"),
        ("gemini", Fault.SAFETY, Rejected, "blocked (safety)"),
        ("gemini", Fault.REFUSED, Rejected, "blocked (recitation)"),
        ("gemini", Raw(400, '{"error": {"code": 400, "message": "API key not valid."}}'), Unusable, "key not valid"),
        ("gemini", Fault.ERROR_BODY, Unavailable, "no candidate"),
    ],
)
def test_what_only_one_provider_says(provider: str, answer: Answer, kind: type[Exception], reason: str) -> None:
    error = failure_of(provider, answer)
    assert type(error) is kind and reason in str(error)


@each_provider
def test_a_server_that_is_not_there_is_unavailable(provider: str) -> None:
    with LlmServer() as server:
        pass
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1"):
        ask(server, provider)


@each_provider
@pytest.mark.parametrize(
    ("refusal", "seconds"), [(TooMany(), None), (TooMany(7), 7.0), (TooMany(0.5), 0.5), (TooMany(31, True), 31.0)]
)
def test_the_wait_that_a_server_asks_for_is_read(provider: str, refusal: TooMany, seconds: float | None) -> None:
    error = failure_of(provider, refusal)
    assert isinstance(error, RateLimited)
    assert error.retry_after == (None if provider == "openrouter" and refusal.is_in_body else seconds)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        (None, None),
        ({}, None),
        ({"retry-after": "12"}, 12.0),
        ({"Retry-After": "0"}, 0.0),
        ({"retry-after": "Fri, 21 Nov 2025 07:28:00 GMT"}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "86400"}, None),
    ],
)
def test_only_seconds_under_an_hour_count(headers: Mapping[str, str] | None, seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_a_delay_is_read_from_a_body_of_either_spelling() -> None:
    body = {"error": {"details": [{"retryDelay": "3.5s"}]}}
    assert retry_delay(body) == retry_delay(json.dumps(body)) == 3.5
    assert retry_delay({"error": {"message": "in 3s"}}) is None


@each_provider
def test_a_key_that_stands_where_a_reason_is_cut_is_not_cut_to_half_a_key(provider: str) -> None:
    def answer(asked: Asked) -> Answer:
        return Raw(500, json.dumps({"error": {"code": 500, "message": "x" * 3 * asked.times + KEY}}))

    with LlmServer(answer) as server:
        reasons = [str(error) for error in in_turn(server, provider, [REQUEST] * 80)]
    assert all(reason.startswith("500: ") and KEY[:3] not in reason for reason in reasons)
    assert "[key]" in reasons[0] and reasons[-1].endswith("x…")


@each_provider
def test_a_key_that_a_reply_repeats_is_not_kept(provider: str) -> None:
    answer = Reply(f"Your key is {KEY}", tokens=(Token(KEY, {KEY: 0.5, f" {KEY}": 0.25}),))
    reply = reply_to(provider, answer)
    assert reply.text == "Your key is [key]" and KEY not in repr(reply) and len(reply.tokens[0].alternatives) == 2


def test_redaction_knows_every_secret_and_does_not_show_itself() -> None:
    redact = Redactor((KEY, "", "other"))
    assert redact(f"a {KEY} other {KEY}") == "a [key] [key] [key]" and redact(ValueError(KEY)) == "[key]"
    assert KEY not in repr(redact)
    assert redact.line(f"a\n  {KEY}\n{'x' * 300}") == f"a [key] {'x' * 191}…"


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


@each_provider
def test_another_400_is_not_asked_again(provider: str) -> None:
    assert type(failure_of(provider, Raw(400, '{"error": {"code": 400, "message": "no"}}'))) is Rejected


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
