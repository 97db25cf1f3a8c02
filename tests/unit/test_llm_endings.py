"""What ends many requests before their time: a wrong key, failures in a row, silence, a full disk."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from src.utils.errors import UserError
from src.utils.llm.api import ChatReply, ChatRequest, Unusable
from src.utils.llm.asking import FAILURES_IN_A_ROW, FIRST_LIMIT, AskingLimits, ask_all
from src.utils.record_store import RecordStore, open_store
from tests.asked_requests import MODELS, ask, client_maker, each_provider, requests
from tests.llm_answers import Answer, Asked, Fault, Reply, default_reply
from tests.llm_server import KEY, LlmServer


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RecordStore]:
    with open_store(tmp_path / "judgements.jsonl") as store:
        yield store


@each_provider
def test_a_wrong_key_is_one_line_without_the_key(provider: str, store: RecordStore) -> None:
    with LlmServer(lambda asked: Fault.WRONG_KEY, latency=0.02) as server:
        with pytest.raises(UserError) as caught:
            ask_all(requests(300), client_maker(server, provider), store, AskingLimits())
        assert len(server.requests) < 2 * FIRST_LIMIT
    message = caught.value.message
    assert message.startswith(f"{MODELS[provider]}: 401, the key is not accepted")
    assert message.endswith("nothing more was asked") and "[key]" in message
    shown: BaseException | None = caught.value
    while shown is not None:
        assert KEY not in repr(shown)
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)
    assert KEY[:8] not in store.path.read_text() and store.records == {}


def test_what_was_answered_before_the_key_failed_is_kept(store: RecordStore) -> None:
    def answer(asked: Asked) -> Answer:
        return default_reply(asked) if asked.user in requests(20) else Fault.WRONG_KEY

    with LlmServer(answer) as server, pytest.raises(UserError, match="401"):
        ask(server, store, 300, AskingLimits(max_concurrency=5))
    assert len(store.records) >= 16 and store.records.keys() <= set(requests(20))


def test_failures_in_a_row_stop_the_run(store: RecordStore) -> None:
    with LlmServer(lambda asked: Fault.SERVER_ERROR) as server:
        with pytest.raises(UserError, match=rf"{FAILURES_IN_A_ROW} requests failed in a row, last: 500.*again later"):
            ask(server, store, 500, AskingLimits(max_tries=1, max_concurrency=10))
        assert FAILURES_IN_A_ROW <= len(server.requests) <= FAILURES_IN_A_ROW + 10
    assert len(store.records) >= FAILURES_IN_A_ROW and all("failure" in record for record in store.records.values())


@pytest.mark.parametrize("now_and_then", [default_reply, lambda asked: Fault.SAFETY], ids=["answer", "verdict"])
def test_failures_with_answers_in_between_do_not(now_and_then: Callable[[Asked], Answer], store: RecordStore) -> None:
    def answer(asked: Asked) -> Answer:
        return Fault.SERVER_ERROR if int(asked.user[1:]) % 20 else now_and_then(asked)

    with LlmServer(answer) as server:
        account = ask(server, store, 200, AskingLimits(max_tries=1, max_concurrency=5))
    assert len(server.requests) == 200 == account.done


def test_verdicts_in_a_row_do_not_stop_the_run(store: RecordStore) -> None:
    with LlmServer(lambda asked: Fault.BLOCKED) as server:
        account = ask(server, store, 2 * FAILURES_IN_A_ROW)
    assert len(account.failures) == 2 * FAILURES_IN_A_ROW


def test_a_model_that_thinks_its_tokens_away_ends_the_run_early(store: RecordStore) -> None:
    """Each reply is cut before a word: every one of them is paid, and none will ever be of use."""
    with LlmServer(lambda asked: Reply("", finish="length", completion_tokens=16)) as server:
        with pytest.raises(UserError, match=rf"{FAILURES_IN_A_ROW} replies in a row ended before a word.*--reply-tok"):
            ask(server, store, 500, AskingLimits(max_concurrency=10), find_fault=lambda key, reply: "cut")
        assert len(server.requests) <= FAILURES_IN_A_ROW + 10


class TwoFaults:
    """A client whose two requests end in the same instant: the key is not accepted, and the disk is full."""

    model = "m"

    async def ask(self, request: ChatRequest) -> ChatReply:
        await asyncio.sleep(0.01)
        raise Unusable("401") if request.user == "k0" else UserError("disk full")

    async def close(self) -> None:
        pass


def test_two_faults_at_once_are_one_line(store: RecordStore) -> None:
    with pytest.raises(UserError, match=r"401|disk full"):
        ask_all(requests(2), TwoFaults, store, AskingLimits())


def test_a_store_that_cannot_be_written_ends_the_run(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def append(record: Mapping[str, Any]) -> None:
        raise UserError("judgements.jsonl: cannot be written (No space left on device); make room and run again")

    monkeypatch.setattr(store, "append", append)
    with LlmServer(latency=0.02) as server:
        with pytest.raises(UserError, match="No space left"):
            ask(server, store, 300)
        assert len(server.requests) <= 2 * FIRST_LIMIT
