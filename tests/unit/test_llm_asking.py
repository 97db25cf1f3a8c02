"""Many requests end to end: real clients, a server that misbehaves, the store on disk, processes that are killed."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from src.utils.config import PROJECT_ROOT
from src.utils.errors import UserError
from src.utils.llm import asking
from src.utils.llm.api import ChatClient, ChatReply
from src.utils.llm.asking import Account, AskingLimits, ask_all, reply_in, wait_after
from src.utils.llm.prices import Price
from src.utils.record_store import RecordStore, open_store
from tests.asked_requests import ask, client_maker, each_provider, requests, times_asked
from tests.llm_answers import DECLINED, Answer, Asked, Fault, TooMany, default_reply
from tests.llm_server import KEY, LlmServer


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RecordStore]:
    with open_store(tmp_path / "judgements.jsonl") as store:
        yield store


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "LONGEST_WAIT", 0.1)


def on_first(fault: Answer, times: int = 1) -> Callable[[Asked], Answer]:
    """That fault for the first so many times that a body comes, then a reply."""
    return lambda asked: fault if asked.times <= times else default_reply(asked)


@each_provider
def test_every_request_is_answered_once_and_kept(provider: str, store: RecordStore) -> None:
    labels = {key: {"aspect": "coherence"} for key in requests(200)}
    seen: list[int] = []
    with LlmServer(latency=(0.01, 0.03)) as server:
        make = client_maker(server, provider)

        def ask_again() -> Account:
            return ask_all(
                requests(200),
                make,
                store,
                AskingLimits(max_concurrency=50),
                price=Price(1.0, 10.0).of,
                labels=labels,
                on_change=lambda account: seen.append(account.done),
            )

        account = ask_again()
        assert (account.answered, account.kept, account.left_out, account.failures) == (200, 0, 0, {})
        assert account.tries == 200 == len(server.requests) and set(times_asked(server).values()) == {1}
        assert 1 < server.max_concurrent <= 50
        assert seen == list(range(201))
        by_tokens = (400 * 1.0 + 2 * 10.0) / 1e6
        assert account.cost == pytest.approx(200 * (0.0001 if provider == "openrouter" else by_tokens))
        assert account.cost_is_known

        again = ask_again()
        assert (again.answered, again.kept, again.tries, again.cost) == (0, 200, 0, 0) and len(server.requests) == 200
    replies = {asked.user: default_reply(asked).text for asked in server.requests}
    for key in requests(200):
        reply = reply_in(store, key)
        assert reply is not None and reply.text == replies[key] and len(reply.tokens[0].alternatives) == 3
        record = store.records[key]
        assert record["aspect"] == "coherence" and record["asked"] > 1.7e9 and record["cost"] > 0
    assert KEY not in store.path.read_text()


@pytest.mark.parametrize(
    "fault", [Fault.SERVER_ERROR, Fault.DROPPED, Fault.CUT, Fault.ERROR_BODY, Fault.NO_CHOICES, Fault.NOT_JSON]
)
def test_a_fault_that_passes_is_tried_again(fault: Fault, store: RecordStore) -> None:
    with LlmServer(on_first(fault, times=2)) as server:
        account = ask(server, store, 5)
    assert account.answered == 5 and account.tries == 15
    assert times_asked(server) == dict.fromkeys(requests(5), 3)


def test_a_hanging_request_is_given_up_and_asked_again(store: RecordStore) -> None:
    with LlmServer(on_first(Fault.HANG)) as server:
        account = ask_all(requests(3), client_maker(server, timeout=2.0), store, AskingLimits())
    assert account.answered == 3 and account.tries == 6


@pytest.mark.parametrize("refusal", [TooMany(), TooMany(0.05), TooMany(0)])
def test_refusals_are_waited_out_and_are_no_tries(refusal: TooMany, store: RecordStore) -> None:
    with LlmServer(on_first(refusal, times=3)) as server:
        account = ask(server, store, 20, AskingLimits(max_tries=1))
    assert account.answered == 20 and account.failures == {} and len(server.requests) == 80


def test_refused_for_good_is_a_failure_with_its_reason(store: RecordStore) -> None:
    with LlmServer(lambda asked: TooMany(0) if asked.user == "k1" else default_reply(asked)) as server:
        account = ask(server, store, 3, AskingLimits(max_refusals=4))
    assert account.answered == 2 and list(account.failures) == ["k1"]
    assert "429" in account.failures["k1"] and "Rate limit exceeded (5 times)" in account.failures["k1"]
    assert times_asked(server) == {"k0": 1, "k1": 5, "k2": 1}


def test_refusals_are_told_until_an_answer_comes(store: RecordStore) -> None:
    told: list[str] = []
    with LlmServer(on_first(TooMany(0), times=3)) as server:
        ask(server, store, 2, AskingLimits(max_concurrency=1), on_change=lambda account: told.append(account.status))
    first = ["", *(f"refused {n}, waiting" for n in (1, 2, 3)), "$0.0001"]
    assert told == [*first, *(f"$0.0001, refused {n}, waiting" for n in (1, 2, 3)), "$0.0002"]


@pytest.mark.parametrize("retry_after", [None, 0.05])
def test_a_server_with_a_limit_answers_all_and_is_not_flooded(retry_after: float | None, store: RecordStore) -> None:
    with LlmServer(latency=(0.2, 0.3), limit=24, retry_after=retry_after) as server:
        account = ask(server, store, 120)
    assert account.answered == 120 and account.failures == {}
    assert server.max_concurrent == 24  # all that it gives is used
    assert 0 < server.refused < 60


def test_a_failure_is_recorded_and_asked_again_by_the_next_run_alone(store: RecordStore) -> None:
    answers: dict[str, Answer] = {"k1": Fault.SAFETY, "k2": Fault.SERVER_ERROR, "k3": DECLINED}

    def find_fault(key: str, reply: ChatReply) -> str | None:
        return None if reply.text.isdigit() else f"no score: {reply.text}"

    with LlmServer(lambda asked: answers.get(asked.user, default_reply(asked))) as server:
        account = ask(server, store, 5, AskingLimits(max_tries=2), find_fault=find_fault)
        assert account.answered == 2 and account.done == 5 and account.left_out == 0
        assert account.failures == {
            "k1": "blocked by the provider's content filter",
            "k2": "500: Error code: 500 - Internal server error (2 tries)",
            "k3": "no score: I'd rather not",
        }
        assert times_asked(server) == {"k0": 1, "k1": 1, "k2": 2, "k3": 1, "k4": 1}
        assert {key: store.records[key]["failure"] for key in account.failures} == account.failures
        assert store.records["k3"]["reply"]["text"] == DECLINED.text  # to be looked at, not to be used
        assert all(reply_in(store, key) is None for key in account.failures)
        assert account.cost == pytest.approx(0.0004)  # k1 and k3 are paid too

        answers.clear()
        account = ask(server, store, 5, find_fault=find_fault)
        assert (account.answered, account.kept, account.failures) == (3, 2, {})
        assert times_asked(server) == {"k0": 1, "k1": 2, "k2": 3, "k3": 2, "k4": 1}
    with pytest.raises(UserError, match="another run"), open_store(store.path):
        pytest.fail("opened")
    assert all(reply_in(store, key) for key in requests(5))


def test_a_find_fault_that_names_one_key_fails_that_key(store: RecordStore) -> None:
    with LlmServer() as server:
        account = ask(server, store, 4, find_fault=lambda key, reply: "odd" if key == "k2" else None)
    assert account.failures == {"k2": "odd"} and account.answered == 3


def test_nothing_to_ask_makes_no_client(store: RecordStore) -> None:
    def no_client() -> ChatClient:
        raise AssertionError("made")

    assert ask_all({}, no_client, store, AskingLimits()) == Account()
    store.append({"key": "k0", "reply": {"text": "1", "finish": "stop"}})
    assert ask_all(requests(1), no_client, store, AskingLimits()).kept == 1


def test_waits_grow_are_spread_and_keep_to_what_the_server_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "LONGEST_WAIT", 60.0)
    for times, first in ((times, first) for times in range(1, 40) for first in (0.3, 1.0)):
        longest = min(60.0, first * 2 ** (times - 1))
        waits = [wait_after(times, None, first) for _ in range(50)]
        assert all(0.1 <= wait <= longest for wait in waits) and max(waits) > 0.6 * longest
        assert len(set(waits)) == 50
    assert all(12 <= wait_after(3, 12.0, 1.0) <= 13.25 for _ in range(50))
    assert all(0 <= wait_after(30, 0.0, 1.0) <= 0.05 for _ in range(50))


@each_provider
def test_ctrl_c_loses_nothing_that_came(provider: str, store: RecordStore) -> None:
    def stop(account: Account) -> None:
        if account.done == 60:
            signal.raise_signal(signal.SIGINT)

    with LlmServer(latency=(0.01, 0.03)) as server:
        make = client_maker(server, provider)
        with pytest.raises(KeyboardInterrupt):
            ask_all(requests(300), make, store, AskingLimits(), on_change=stop)
        server.settle()
        kept = set(store.records)
        asked = set(times_asked(server))
        assert 60 <= len(kept) < 120 and kept <= asked and len(asked) < 200
        assert ask_all(requests(300), make, store, AskingLimits()).kept == len(kept)
    assert {key for key, count in times_asked(server).items() if count == 2} == asked - kept


RUN = """
from pathlib import Path
from src.utils.cli import run_script
from src.utils.llm.api import ChatRequest
from src.utils.llm.asking import AskingLimits, ask_all
from src.utils.llm.providers import make_client
from src.utils.record_store import open_store

def main(arguments):
    path, url, key = arguments
    requests = {f"k{i}": ChatRequest("Score it.", f"k{i}", max_tokens=16, top_logprobs=5) for i in range(400)}
    client = lambda: make_client("openrouter", "openai/gpt-4.1-mini", key, url, timeout=30.0)
    with open_store(Path(path)) as store:
        ask_all(requests, client, store, AskingLimits(max_concurrency=20))

run_script(main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_stopped_or_killed_is_continued(number: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "judgements.jsonl"
    with LlmServer(latency=(0.02, 0.08)) as server:
        command = [sys.executable, "-c", RUN, str(path), server.openrouter_url, KEY]
        process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: server.answered >= 150 or process.poll() is not None)
        os.kill(process.pid, number)
        output, errors = process.communicate(timeout=60)
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert errors.strip() == "stopped; the same command continues where it was" and output == ""
        else:
            assert process.returncode == -signal.SIGKILL
        server.settle()
        asked_before = set(times_asked(server))
        kept = {json.loads(line)["key"] for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")}
        assert 100 < len(kept) < 400 and kept <= asked_before
        assert len(asked_before - kept) <= 20  # what was under way

        with open_store(path) as store:
            account = ask(server, store, 400)
            assert (account.kept, account.answered) == (len(kept), 400 - len(kept))
            assert all(reply_in(store, key) for key in requests(400))
    times = times_asked(server)
    assert len(times) == 400 and set(times.values()) <= {1, 2}
    assert {key for key, count in times.items() if count == 2} == asked_before - kept
    assert KEY not in path.read_text()


def wait_until(is_so: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_the_server_runs_as_a_process_of_its_own(tmp_path: Path, store: RecordStore) -> None:
    """As benchmarks and the tests of whole scripts use it."""
    script, port_file = PROJECT_ROOT / "tests" / "llm_server.py", tmp_path / "port"
    options = ["--latency", "0.01", "0.02", "--limit", "8", "--port-file", str(port_file)]
    process = subprocess.Popen([sys.executable, str(script), *options], stdout=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: port_file.exists() or process.poll() is not None)
        server = LlmServer()
        server.port = int(port_file.read_text())
        assert ask(server, store, 60).answered == 60
        with urllib.request.urlopen(f"{server.gemini_url}/stats") as response:
            stats = json.load(response)
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and server.openrouter_url in output
    assert stats["answered"] == 60 == len(stats["bodies"]) and stats["max_concurrent"] == 8
    assert stats["total"] == 60 + stats["refused"] == sum(stats["bodies"].values())
