"""Many requests to one model: side by side, again where it helps, within a budget, each reply kept as it comes.

A reply in the store is never asked for again. A failure is recorded with its reason and asked again by the next run.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from src.utils.errors import UserError
from src.utils.llm.api import ChatClient, ChatReply, ChatRequest, RateLimited, Rejected, Unavailable, Unusable
from src.utils.llm.limiter import AdaptiveLimiter
from src.utils.llm.prices import cost_line
from src.utils.record_store import RecordStore

FIRST_LIMIT = 16
LONGEST_WAIT = 60.0  # seconds between two tries, unless the server asks for more
FIRST_WAIT = 1.0  # seconds before the second try, at most
FAILURES_IN_A_ROW = 40  # without one answer in between: the provider is down, and asking on would only cost time
FIRST_FAILURES = 5  # the same while requests are sent one at a time, each tried as often as ever


@dataclass(frozen=True)
class AskingLimits:
    """What a run may use. `max_cost` in US dollars, none of which asks nothing; tries count each request's own."""

    max_concurrency: int = 100
    max_tries: int = 6
    max_refusals: int = 30
    max_cost: float | None = None


@dataclass
class Account:
    """What a run did: requests answered, found in the store, failed by reason, left out; cost in US dollars.

    `refused` counts the refusals for too many requests since the last answer.
    """

    answered: int = 0
    kept: int = 0
    left_out: int = 0
    tries: int = 0
    refused: int = 0
    cost: float = 0.0
    cost_is_known: bool = True
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return self.answered + self.kept + len(self.failures)

    @property
    def status(self) -> str:
        """What it has cost, and whether it waits, for a line that runs along."""
        parts = [cost_line(self.cost, self.cost_is_known)] if self.answered or self.failures else []
        return ", ".join([*parts, *([f"refused {self.refused}, waiting"] if self.refused else [])])


def reply_in(store: RecordStore, key: str) -> ChatReply | None:
    """The stored reply to a request, None where there is none or where it failed."""
    record = store.get(key)
    return ChatReply.model_validate(record["reply"]) if record and "failure" not in record else None


def ask_all(
    requests: Mapping[str, ChatRequest],
    make_client: Callable[[], ChatClient],
    store: RecordStore,
    limits: AskingLimits,
    price: Callable[[ChatReply], float | None] = lambda reply: reply.cost,
    labels: Mapping[str, Mapping[str, Any]] | None = None,
    find_fault: Callable[[str, ChatReply], str | None] = lambda key, reply: None,
    on_change: Callable[[Account], object] = lambda account: None,
) -> Account:
    """Get a reply to every request, by key, into the store.

    `price` is the cost of a reply in US dollars, None where it is not known; `labels` are written into a request's
    record beside its reply. `find_fault` says why a reply is of no use, None if it is; such a reply is a failure.
    `on_change` is told of every request that is done or refused. Requests are sent in their order, and none after one
    that could pass `max_cost`. Raises `UserError` where no request can succeed, and where `max_cost` cannot be kept
    because the cost of a reply is not known; what was answered is kept in any case.
    """
    account = Account(kept=sum(reply_in(store, key) is not None for key in requests))
    missing = {key: request for key, request in requests.items() if reply_in(store, key) is None}
    on_change(account)
    if missing:
        run = _Run(missing, store, limits, price, labels or {}, find_fault, account, on_change)
        asyncio.run(run.all(make_client))
    account.left_out = len(requests) - account.done
    return account


class _Run:
    def __init__(
        self,
        missing: Mapping[str, ChatRequest],
        store: RecordStore,
        limits: AskingLimits,
        price: Callable[[ChatReply], float | None],
        labels: Mapping[str, Mapping[str, Any]],
        find_fault: Callable[[str, ChatReply], str | None],
        account: Account,
        on_change: Callable[[Account], object],
    ) -> None:
        self.queue = iter(missing.items())
        self.workers = min(limits.max_concurrency, len(missing))
        self.limiter = AdaptiveLimiter(FIRST_LIMIT, limits.max_concurrency)
        self.store, self.limits, self.price, self.labels = store, limits, price, labels
        self.find_fault, self.account, self.on_change = find_fault, account, on_change
        self.failures_in_a_row = self.silent_in_a_row = 0
        self.started = 0
        self.paid = 0  # replies whose cost is known
        self.is_spent = False

    async def all(self, make_client: Callable[[], ChatClient]) -> None:
        client = make_client()
        try:
            async with asyncio.TaskGroup() as group:
                if self.limits.max_cost is not None:
                    await self._learn_price(client)
                for _ in range(self.workers):
                    group.create_task(self._work(client))
        except* (Unusable, UserError) as errors:  # in one clause: two that raise make a group of their own
            error = errors.exceptions[0]
            if isinstance(error, UserError):
                raise error from None
            raise UserError(f"{client.model}: {error}; nothing more was asked") from None
        finally:
            await client.close()
        if self.is_unpriced:
            raise UserError(
                f"{client.model}: the cost of a reply is unknown, so that --max-cost cannot be kept; give its price "
                "in configs/llm_prices.yaml, or leave --max-cost out"
            )

    async def _learn_price(self, client: ChatClient) -> None:
        """Send one at a time until a reply has told its price, so that the others fit into the budget."""
        for key, request in self.queue:
            await self._one(client, key, request)
            if self.paid or self.is_spent or self.is_unpriced:
                return

    async def _work(self, client: ChatClient) -> None:
        for key, request in self.queue:
            if self.is_spent or self.is_unpriced:
                return
            await self._one(client, key, request)

    @property
    def is_unpriced(self) -> bool:
        """Whether there is a budget, and nobody knows what has been spent of it."""
        return self.limits.max_cost is not None and not self.account.cost_is_known

    def _start(self) -> bool:
        """Whether one more request may be sent; where one may not, none behind it may.

        One that was sent and refused has its place in the budget, and is sent again whatever others cost.
        """
        self.is_spent = self.is_spent or not self._affordable()
        self.started += not self.is_spent
        return not self.is_spent

    def _affordable(self) -> bool:
        """Whether the requests under way, and the one about to be sent, will stay within the budget."""
        if self.limits.max_cost is None:
            return True
        under_way = self.started - self.account.answered - len(self.account.failures)
        mean = self.account.cost / self.paid if self.paid else 0.0
        is_left = self.account.cost < self.limits.max_cost
        return is_left and self.account.cost + mean * (under_way + 1) <= self.limits.max_cost

    def _pay(self, cost: float | None) -> float | None:
        self.account.cost += cost or 0.0
        self.account.cost_is_known &= cost is not None
        self.paid += cost is not None
        return cost

    async def _one(self, client: ChatClient, key: str, request: ChatRequest) -> None:
        tries = refusals = 0
        while True:
            is_new = tries + refusals == 0
            slot = await self.limiter.acquire(first=not is_new)
            if self.is_unpriced or (is_new and not self._start()):
                return self.limiter.dropped()
            self.account.tries += 1
            try:
                reply = await client.ask(request)
            except RateLimited as error:
                self.limiter.refused(slot, error.retry_after)
                refusals += 1
                self.account.refused += 1
                self.on_change(self.account)
                if refusals > self.limits.max_refusals:
                    return self._failed(key, f"{error} ({refusals} times)")
                # the limiter has let go of the slot: one round trip is when another may be free
                await asyncio.sleep(wait_after(refusals, error.retry_after, first=self.limiter.latency or FIRST_WAIT))
            except Unavailable as error:
                self.limiter.dropped()
                tries += 1
                if tries >= self.limits.max_tries:
                    return self._failed(key, f"{error} ({tries} tries)")
                await asyncio.sleep(wait_after(tries, None, FIRST_WAIT))
            except Rejected as error:
                self.limiter.answered(slot)
                self.account.refused = 0
                cost = self._pay(self.price(error.used)) if error.used else None
                return self._failed(key, str(error), is_verdict=error.is_verdict, cost=cost)
            except BaseException:
                self.limiter.dropped()
                raise
            else:
                self.limiter.answered(slot)
                self.account.refused = 0
                return self._answered(key, reply)

    def _answered(self, key: str, reply: ChatReply) -> None:
        cost = self._pay(self.price(reply))
        self.silent_in_a_row = self.silent_in_a_row + 1 if reply.is_silent else 0
        if fault := self.find_fault(key, reply):
            return self._failed(key, fault, is_verdict=True, reply=reply.model_dump(), cost=cost)
        self._record(key, reply=reply.model_dump(), cost=cost)
        self.account.answered += 1
        self.failures_in_a_row = 0
        self.on_change(self.account)
        return None

    def _failed(self, key: str, reason: str, is_verdict: bool = False, **beside: Any) -> None:
        self._record(key, failure=reason, **beside)
        self.account.failures[key] = reason
        self.failures_in_a_row = 0 if is_verdict else self.failures_in_a_row + 1  # a verdict is an answer
        self.on_change(self.account)
        is_alone = self.limits.max_cost is not None and not self.paid
        if self.failures_in_a_row >= (FIRST_FAILURES if is_alone else FAILURES_IN_A_ROW):
            raise UserError(f"{self.failures_in_a_row} requests failed in a row, last: {reason}; run again later")
        if self.silent_in_a_row >= FAILURES_IN_A_ROW:
            raise UserError(
                f"{self.silent_in_a_row} replies in a row ended before a word was said: the model thinks first; "
                "take another, or let a judge think longer (--reply-tokens)"
            )

    def _record(self, key: str, **what: Any) -> None:
        self.store.append({"key": key, **self.labels.get(key, {}), "asked": round(time.time(), 3), **what})


def wait_after(times: int, retry_after: float | None, first: float) -> float:
    """Seconds to wait after so many faults: what the server asks and a little, else up to `first`, doubled each time.

    The jitter is full (a uniform share of the longest wait), so that requests that failed together part.
    """
    if retry_after is not None:
        return retry_after + random.uniform(0, 0.1 * retry_after + 0.05)
    return random.uniform(0.1, min(LONGEST_WAIT, first * 2 ** (times - 1)))
