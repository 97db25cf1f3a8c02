"""The real clients of both providers, asked in turn, and what a server that misbehaves makes of them."""

import asyncio
import traceback
from collections.abc import Sequence

import pytest

from src.utils.llm.api import ChatReply, ChatRequest, RateLimited, Rejected, Unavailable, Unusable
from tests.asked_requests import client_maker
from tests.llm_answers import Answer
from tests.llm_server import KEY, LlmServer

REQUEST = ChatRequest(system="You grade.", user="An answer.", max_tokens=16, top_logprobs=20)


def in_turn(
    server: LlmServer, provider: str, requests: Sequence[ChatRequest], timeout: float = 30.0
) -> list[ChatReply | Exception]:
    """What one client, asked in turn, gives or raises."""

    async def main() -> list[ChatReply | Exception]:
        client = client_maker(server, provider, timeout)()
        outcomes: list[ChatReply | Exception] = []
        for request in requests:
            try:
                outcomes.append(await client.ask(request))
            except Exception as error:
                outcomes.append(error)
        await client.close()
        return outcomes

    return asyncio.run(main())


def ask(server: LlmServer, provider: str, *requests: ChatRequest, timeout: float = 30.0) -> list[ChatReply]:
    """The replies to requests that one client sends in turn; raises what the client raises."""
    outcomes = in_turn(server, provider, requests or [REQUEST], timeout)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, ChatReply)]


def reply_to(provider: str, answer: Answer, request: ChatRequest = REQUEST) -> ChatReply:
    with LlmServer(lambda asked: answer) as server:
        return ask(server, provider, request)[0]


def failure_of(provider: str, answer: Answer, timeout: float = 30.0) -> Exception:
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
