"""The two real clients against a server that misbehaves: what each fault becomes, and that no key gets out."""

import json
from collections.abc import Mapping

import pytest

from src.utils.llm.api import RateLimited, Redactor, Rejected, Unavailable, Unusable
from src.utils.llm.providers import retry_after, retry_delay
from tests.asked_requests import each_provider
from tests.llm_answers import Answer, Asked, Fault, Raw, Reply, Token, TooMany
from tests.llm_server import KEY, LlmServer
from tests.provider_clients import REQUEST, ask, failure_of, in_turn, reply_to


@each_provider
@pytest.mark.parametrize(
    ("answer", "kind", "reasons"),
    [
        (TooMany(), RateLimited, ("429",)),
        (Fault.SERVER_ERROR, Unavailable, ("500", "Internal server error")),
        (Fault.HANG, Unavailable, ("no reply within 1 s",)),
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
    error = failure_of(provider, answer, timeout=1.0 if answer is Fault.HANG else 30.0)
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
def test_another_400_is_not_asked_again(provider: str) -> None:
    assert type(failure_of(provider, Raw(400, '{"error": {"code": 400, "message": "no"}}'))) is Rejected
