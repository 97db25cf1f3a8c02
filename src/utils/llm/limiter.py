"""How many requests may be under way at once, learned from the server's refusals.

Growth is that of TCP (RFC 5681 slow start, then the cubic of RFC 9438): doubling each round trip until the first
refusal, then back to 0.8 of what was refused and along a cubic towards it, flat near it, so that the next probe
beyond it is gentle. Time is counted in round trips, because a request may take 0.2 s or 20 s.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

CUT = 0.8
ROUND_TRIPS_TO_RECOVER = 4


@dataclass(frozen=True)
class Slot:
    """The right to one request, and when it was given."""

    given: float


class AdaptiveLimiter:
    """At most `limit` slots at once; `limit` grows with answers only while it is what holds requests back.

    Refusals of requests that were sent before the last cut say nothing new and cut no further. A request that was sent
    after a cut and is refused before any answer came shows that the rate is limited, not the number at once:
    then everything waits for the server's Retry-After.
    """

    def __init__(self, start: int, maximum: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.maximum = maximum
        self.limit = float(min(start, maximum))
        self.in_flight = 0
        self.cuts = 0
        self.clock = clock
        self.latency: float | None = None  # seconds a request, moving average
        self._refused_at: float | None = None  # slots in use when a request was last refused
        self._cut_at = float("-inf")
        self._answered_since_cut = True
        self._closed_until = float("-inf")
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def acquire(self, first: bool = False) -> Slot:
        """Wait for a slot; `first` goes before all that wait (a request that was refused once)."""
        waiter = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if first else self._waiting.append)(waiter)
        self._grant()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._release()
            raise
        return Slot(self.clock())

    def answered(self, slot: Slot) -> None:
        """Give the slot back after an answer."""
        now = self.clock()
        took = now - slot.given
        self.latency = took if self.latency is None else 0.9 * self.latency + 0.1 * took
        if slot.given > self._cut_at:
            self._answered_since_cut = True
        if self.in_flight >= int(self.limit):
            self.limit = min(self.maximum, self._grown(now))
        self._release()

    def refused(self, slot: Slot, retry_after: float | None) -> None:
        """Give the slot back after a refusal for too many requests."""
        now = self.clock()
        if slot.given > self._cut_at:
            if not self._answered_since_cut and retry_after:
                self._closed_until = max(self._closed_until, now + retry_after)
            self._refused_at = min(self.limit, float(self.in_flight))
            self.limit = max(1.0, CUT * self._refused_at)
            self._cut_at, self._answered_since_cut = now, False
            self.cuts += 1
        self._release()

    def dropped(self) -> None:
        """Give a slot back after any other fault; it says nothing about the limit."""
        self._release()

    def _grown(self, now: float) -> float:
        if self._refused_at is None:
            return self.limit + 1
        recovery = ROUND_TRIPS_TO_RECOVER * (self.latency or 1.0)
        progress = (now - self._cut_at) / recovery - 1
        cubic = self._refused_at * (1 + (1 - CUT) * progress**3)
        return max(self.limit, min(cubic, self.limit + 1))

    def _release(self) -> None:
        self.in_flight -= 1
        self._grant()

    def _grant(self) -> None:
        """Hand free slots to those who wait longest; while the server has closed, come back when it opens."""
        pause = self._closed_until - self.clock()
        if pause > 0:
            asyncio.get_running_loop().call_later(pause, self._grant)
            return
        while self._waiting and self.in_flight < int(self.limit):
            waiter = self._waiting.popleft()
            if not waiter.done():
                self.in_flight += 1
                waiter.set_result(None)
