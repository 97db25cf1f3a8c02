"""What requests cost, and a budget for them that ends a run."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from src.utils.errors import UserError
from src.utils.llm.api import ChatReply, ChatRequest
from src.utils.llm.asking import AskingLimits, ask_all
from src.utils.llm.prices import Price
from src.utils.record_store import RecordStore, open_store
from tests.asked_requests import ask, client_maker, each_provider, requests
from tests.llm_answers import Answer, Asked, Fault, Raw, Reply, TooMany
from tests.llm_server import LlmServer

MODERATED = Raw(403, '{"error": {"code": 403, "message": "moderated"}}')


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RecordStore]:
    with open_store(tmp_path / "judgements.jsonl") as store:
        yield store


@pytest.mark.parametrize("is_useful", [True, False])
def test_max_cost_stops_before_it_is_passed(is_useful: bool, store: RecordStore) -> None:
    def find_fault(key: str, reply: ChatReply) -> str | None:
        return None if is_useful else "of no use"

    limits = AskingLimits(max_cost=0.505)
    with LlmServer(lambda asked: Reply("50", cost=0.01), latency=(0.005, 0.02)) as server:
        account = ask(server, store, 300, limits, find_fault=find_fault)
        assert len(server.requests) == 50 == account.done and account.cost == pytest.approx(0.5)
        assert account.left_out == 250
        assert len(store.records) == 50
        ask(server, store, 300, limits, find_fault=find_fault)
        assert len(server.requests) == 100  # each run has the budget anew


def test_no_budget_asks_nothing_and_a_spent_one_leaves_no_gap(store: RecordStore) -> None:
    """What was begun before the budget was spent is finished, however often it is refused; the rest is the end."""
    begins = {f"k{i}" for i in range(0, 40, 5)}

    def answer(asked: Asked) -> Answer:
        return TooMany(0.05) if asked.user in begins and asked.times <= 4 else Reply("50", cost=0.01)

    with LlmServer(answer) as server:
        assert ask(server, store, 40, AskingLimits(max_cost=0.0)).left_out == 40 and not server.requests
        account = ask(server, store, 40, AskingLimits(max_concurrency=8, max_cost=0.255))
    assert account.answered == 25 and set(store.records) == set(requests(25))


def test_a_budget_is_passed_by_no_more_than_the_request_that_shows_the_price(store: RecordStore) -> None:
    with LlmServer(lambda asked: Reply("50", cost=1.0), latency=0.05) as server:
        account = ask(server, store, 300, AskingLimits(max_cost=0.5))
    assert len(server.requests) == account.answered == 1 and account.left_out == 299


def test_a_budget_is_kept_where_the_first_requests_tell_no_price(store: RecordStore) -> None:
    def answer(asked: Asked) -> Answer:
        return MODERATED if asked.user in ("k0", "k1") else Reply("50", cost=1.0)

    with LlmServer(answer, latency=0.05) as server:
        account = ask(server, store, 300, AskingLimits(max_cost=0.5))
    assert len(server.requests) == 3 and account.cost == 1.0 and account.left_out == 297


def test_requests_that_fail_one_after_the_other_before_a_price_is_known_end_the_run(store: RecordStore) -> None:
    with LlmServer(lambda asked: MODERATED) as server:
        with pytest.raises(UserError, match=r"^5 requests failed in a row, last: .*moderated.*; run again later"):
            ask(server, store, 300, AskingLimits(max_cost=0.5))
        assert len(server.requests) == len(store.records) == 5


def test_a_price_that_nobody_knows_is_said(store: RecordStore) -> None:
    with LlmServer(lambda asked: Reply("50", cost=None)) as server:
        account = ask(server, store, 3)
    assert account.answered == 3 and account.cost == 0 and not account.cost_is_known
    assert account.status == "cost unknown" and store.records["k0"]["cost"] is None


def test_a_budget_on_a_cost_that_nobody_knows_ends_the_run(store: RecordStore) -> None:
    """With the first reply, which is kept; a price in the list, with the tokens to reckon by, mends it."""
    limits = AskingLimits(max_cost=1.0)
    with LlmServer(lambda asked: Reply("50", cost=None), latency=0.02) as server:
        with pytest.raises(UserError, match=r"gpt-4\.1-mini: the cost .* is unknown.*configs/llm_prices\.yaml"):
            ask(server, store, 300, limits)
        assert len(store.records) == len(server.requests) == 1
        account = ask(server, store, 300, limits, price=Price(1.0, 10.0).of)
        assert account.done == 300 == len(server.requests) and account.cost_is_known
    with LlmServer(lambda asked: Reply("50", cost=None, prompt_tokens=0)) as server:
        untold = {"x": ChatRequest("s", "x", 16)}
        with pytest.raises(UserError, match="the cost of a reply is unknown"):
            ask_all(untold, client_maker(server), store, limits, price=Price(1.0, 10.0).of)


@each_provider
def test_what_was_blocked_is_paid_by_its_tokens(provider: str, store: RecordStore) -> None:
    with LlmServer(lambda asked: Fault.SAFETY) as server:
        account = ask_all(requests(4), client_maker(server, provider), store, AskingLimits(), Price(1000, 1000).of)
    assert account.cost_is_known and account.cost == pytest.approx(4 * (0.0001 if provider == "openrouter" else 0.4))
