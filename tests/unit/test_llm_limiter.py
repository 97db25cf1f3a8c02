"""The limiter against servers that are made up, in a loop whose clock jumps to what comes next."""

import asyncio
import random
import selectors
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

from src.utils.llm.limiter import CUT, ROUND_TRIPS_TO_RECOVER, AdaptiveLimiter, Slot

T = TypeVar("T")


class JumpingSelector(selectors.SelectSelector):
    """Waits for nothing: what would have been waited for is added to the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits, and nothing will come"
        self.now += timeout
        return super().select(0)


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.selector = JumpingSelector()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(coroutine)


def now() -> float:
    return asyncio.get_running_loop().time()


def new_limiter(start: int, maximum: int = 1000) -> AdaptiveLimiter:
    return AdaptiveLimiter(start, maximum, clock=asyncio.get_running_loop().time)


async def take(limiter: AdaptiveLimiter, count: int) -> list[Slot]:
    return [await limiter.acquire() for _ in range(count)]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@dataclass
class Server:
    """Answers in `latency` seconds, give or take `spread` of it; refuses what comes while `capacity` are answered."""

    limiter: AdaptiveLimiter
    capacity: int = 10**9
    latency: float = 1.0
    spread: float = 0.0
    draw: random.Random = field(default_factory=lambda: random.Random(0))
    busy: int = 0
    answered: int = 0
    refused: int = 0

    async def ask_forever(self) -> None:
        """One of many that always have something to ask."""
        is_refused = False
        while True:
            slot = await self.limiter.acquire(first=is_refused)
            is_refused = self.busy >= self.capacity
            if is_refused:
                await asyncio.sleep(0.1 * self.latency)
                self.refused += 1
                self.limiter.refused(slot, None)
                await asyncio.sleep(2 * self.latency)
                continue
            self.busy += 1
            await asyncio.sleep(self.latency * self.draw.uniform(1 - self.spread, 1 + self.spread))
            self.busy -= 1
            self.answered += 1
            self.limiter.answered(slot)

    async def limits(self, times: list[float], askers: int) -> list[float]:
        """The limit at each of these times, with that many askers."""
        tasks = [asyncio.create_task(self.ask_forever()) for _ in range(askers)]
        limits = []
        for time in times:
            await asyncio.sleep(time - now())
            limits.append(self.limiter.limit)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return limits


def test_no_more_than_the_limit_at_once() -> None:
    async def main() -> None:
        limiter = new_limiter(3)
        slots = await take(limiter, 3)
        fourth = asyncio.create_task(limiter.acquire())
        await settle()
        assert not fourth.done() and limiter.in_flight == 3
        limiter.dropped()
        await settle()
        assert fourth.done() and limiter.in_flight == 3
        for _ in slots:
            limiter.dropped()
        assert limiter.in_flight == 0 and limiter.limit == 3  # other faults say nothing about the limit

    run(main())


def test_doubles_each_round_trip_up_to_the_maximum() -> None:
    async def main() -> list[float]:
        return await Server(new_limiter(16, maximum=100)).limits([0.5, 1.5, 2.5, 3.5, 4.5], askers=500)

    assert run(main()) == [16, 32, 64, 100, 100]


def test_grows_only_where_it_holds_requests_back() -> None:
    async def main() -> list[float]:
        return await Server(new_limiter(16)).limits([10], askers=15)

    assert run(main()) == [16]


def test_a_refusal_cuts_to_four_fifths_of_what_was_in_use() -> None:
    async def main() -> None:
        limiter = new_limiter(64)
        slots = await take(limiter, 50)
        limiter.refused(slots[0], None)
        assert limiter.limit == pytest.approx(0.8 * 50) and limiter.cuts == 1 and limiter.in_flight == 49

    run(main())
    assert CUT == 0.8


def test_refusals_of_what_was_sent_before_the_cut_cut_no_further() -> None:
    async def main() -> None:
        limiter = new_limiter(64)
        old = await take(limiter, 64)
        await asyncio.sleep(0.1)
        limiter.refused(old[0], None)
        for slot in old[1:60]:
            await asyncio.sleep(0.01)
            limiter.refused(slot, None)
        assert limiter.limit == pytest.approx(0.8 * 64) and limiter.cuts == 1
        await asyncio.sleep(0.1)
        new = await limiter.acquire()
        limiter.refused(new, None)
        assert limiter.cuts == 2 and limiter.limit == pytest.approx(0.8 * 5)  # four old ones and this one were out

    run(main())


def test_refusals_within_one_tick_of_the_clock_are_one() -> None:
    async def main() -> None:
        limiter = new_limiter(64)
        for slot in await take(limiter, 64):
            limiter.refused(slot, 30)
        assert limiter.cuts == 1 and await seconds_until_granted(limiter) == 0

    run(main())


def test_recovers_to_the_refused_level_and_is_flat_there() -> None:
    async def main() -> list[float]:
        limiter = new_limiter(64)
        first = await limiter.acquire()
        await asyncio.sleep(1)
        limiter.answered(first)  # a round trip is 1 s
        slots = await take(limiter, 64)
        await asyncio.sleep(0.1)
        limiter.refused(slots[0], None)
        while limiter.in_flight:
            limiter.dropped()
        cut = now()
        return [limiter.limit, *await Server(limiter).limits([cut + t for t in (1.1, 2.1, 3.1, 4.1, 5.1, 8.1)], 300)]

    start, *rest = run(main())
    assert start == pytest.approx(51.2)

    def cubic(round_trips: float) -> float:
        return 64 * (1 + 0.2 * (round_trips / ROUND_TRIPS_TO_RECOVER - 1) ** 3)

    for limit, round_trips in zip(rest, (1, 2, 3, 4, 5, 8), strict=True):
        assert limit == pytest.approx(cubic(round_trips), abs=0.05)
    assert rest[3] == pytest.approx(64, abs=0.05) and rest[5] == pytest.approx(64 * 1.2, abs=0.05)
    assert (
        rest[4] - rest[2] < 0.5 < 7 < rest[1] - start
    )  # two round trips each: near the level, and right after the cut


@pytest.mark.parametrize("spread", [0.0, 0.5])
@pytest.mark.parametrize(("capacity", "latency"), [(64, 1.0), (10, 0.2), (300, 5.0)])
def test_finds_the_capacity_of_a_server_and_stays_near_it(capacity: int, latency: float, spread: float) -> None:
    async def main() -> Server:
        server = Server(new_limiter(16), capacity, latency, spread)
        await server.limits([60 * latency], askers=500)
        return server

    server = run(main())
    assert 0.8 * 60 * capacity < server.answered <= 60 * capacity  # four fifths of what it can do, the way up included
    assert server.refused < 0.06 * server.answered
    assert 0.75 * capacity < server.limiter.limit < 1.25 * capacity


@pytest.mark.parametrize("seed", range(5))
def test_stays_between_one_and_the_maximum_whatever_comes(seed: int) -> None:
    draw = random.Random(seed)

    async def main() -> set[int]:
        limiter = new_limiter(start=draw.choice([1, 8, 50]), maximum=20)
        held: list[Slot] = []
        waiting = [asyncio.create_task(limiter.acquire()) for _ in range(2000)]
        seen = set()
        while waiting or held:
            await settle()
            for task in [task for task in waiting if task.done()]:
                waiting.remove(task)
                held.append(task.result())
            assert 1 <= limiter.limit <= 20 and limiter.in_flight == len(held) <= 20
            seen.add(int(limiter.limit))
            refusals = 0.5 if len(waiting) % 400 > 300 else 0.02
            for slot in draw.sample(held, draw.randint(1, len(held))) if held else ():
                held.remove(slot)
                if draw.random() < refusals:
                    limiter.refused(slot, draw.choice([None, 0.0, 0.2]))
                elif draw.random() < 0.1:
                    limiter.dropped()
                else:
                    limiter.answered(slot)
            await asyncio.sleep(draw.uniform(0, 0.3))
        return seen

    assert {1, 20} <= run(main())  # both ends were reached


def test_slots_go_round_in_order_and_first_goes_before() -> None:
    async def main() -> list[str]:
        limiter = new_limiter(1)
        await limiter.acquire()
        order: list[str] = []

        async def wait(name: str, first: bool = False) -> None:
            await limiter.acquire(first)
            order.append(name)
            limiter.dropped()

        tasks = [asyncio.create_task(wait(name)) for name in "abc"]
        await settle()
        tasks.append(asyncio.create_task(wait("again", first=True)))
        await settle()
        limiter.dropped()
        await asyncio.gather(*tasks)
        return order

    assert run(main()) == ["again", "a", "b", "c"]


def test_a_cancelled_waiter_loses_no_slot() -> None:
    async def main() -> None:
        limiter = new_limiter(1)
        await limiter.acquire()
        waiters = [asyncio.create_task(limiter.acquire()) for _ in range(4)]
        await settle()
        waiters[0].cancel()  # while it waits
        await settle()
        assert limiter.in_flight == 1
        limiter.dropped()
        waiters[1].cancel()  # it has been given the slot, and has not run since
        await settle()
        assert waiters[0].cancelled() and waiters[1].cancelled()
        assert waiters[2].done() and not waiters[3].done() and limiter.in_flight == 1
        limiter.dropped()
        await settle()
        limiter.dropped()
        assert waiters[3].done() and limiter.in_flight == 0

    run(main())


async def seconds_until_granted(limiter: AdaptiveLimiter) -> float:
    start = now()
    await limiter.acquire()
    return now() - start


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (None, 30),  # the first request after the cut was refused too: the rate is limited, not the number at once
        ("of a request sent before the cut", 30),
        ("of a request sent after the cut", 0),
    ],
)
def test_retry_after_closes_where_a_cut_did_not_help(answer: str | None, seconds: float) -> None:
    async def main() -> float:
        limiter = new_limiter(10)
        old = await take(limiter, 10)
        await asyncio.sleep(1)
        limiter.refused(old[0], 30)
        for slot in old[2:]:
            limiter.refused(slot, 30)
        await asyncio.sleep(1)
        assert await seconds_until_granted(limiter) == 0  # a refusal of what was sent before the cut closes nothing
        limiter.dropped()
        new = await take(limiter, 2)
        if answer:
            await asyncio.sleep(1)
            limiter.answered(new[1] if "after" in answer else old[1])
        await asyncio.sleep(1)
        limiter.refused(new[0], 30)
        assert limiter.cuts == 2
        while limiter.in_flight:
            limiter.dropped()
        return await seconds_until_granted(limiter)

    assert run(main()) == pytest.approx(seconds)


def test_all_that_wait_are_served_once_the_server_opens() -> None:
    async def main() -> list[float]:
        limiter = new_limiter(4)
        for _ in range(2):
            slot = await limiter.acquire()
            await asyncio.sleep(1)
            limiter.refused(slot, 12)
            await asyncio.sleep(1)
        return await asyncio.gather(*(pass_through(limiter) for _ in range(3)))

    async def pass_through(limiter: AdaptiveLimiter) -> float:
        seconds = await seconds_until_granted(limiter)
        limiter.dropped()
        return seconds

    assert run(main()) == pytest.approx([11, 11, 11])
