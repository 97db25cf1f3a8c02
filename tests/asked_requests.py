"""Requests for `ask_all`, numbered: put to a server by a real client, and counted there."""

from collections.abc import Callable
from typing import Any

import pytest

from src.utils.llm.api import ChatClient, ChatRequest
from src.utils.llm.asking import Account, AskingLimits, ask_all
from src.utils.llm.providers import make_client
from src.utils.record_store import RecordStore
from tests.llm_server import KEY, LlmServer

MODELS = {"openrouter": "openai/gpt-4.1-mini", "gemini": "gemini-2.5-flash"}
each_provider = pytest.mark.parametrize("provider", MODELS)


def client_maker(server: LlmServer, provider: str = "openrouter", timeout: float = 30.0) -> Callable[[], ChatClient]:
    url = {"openrouter": server.openrouter_url, "gemini": server.gemini_url}[provider]
    return lambda: make_client(provider, MODELS[provider], KEY, url, timeout)


def requests(count: int) -> dict[str, ChatRequest]:
    """Key -> request; the user text is the key."""
    return {f"k{i}": ChatRequest("Score it.", f"k{i}", max_tokens=16, top_logprobs=5) for i in range(count)}


def ask(
    server: LlmServer, store: RecordStore, count: int, limits: AskingLimits | None = None, **options: Any
) -> Account:
    return ask_all(requests(count), client_maker(server), store, limits or AskingLimits(), **options)


def times_asked(server: LlmServer) -> dict[str, int]:
    """How often the server saw each key."""
    users = [asked.user for asked in server.requests]
    return {user: users.count(user) for user in users}
