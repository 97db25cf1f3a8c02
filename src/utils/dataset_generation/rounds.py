"""Asking in rounds until every cell is full: more than is missing, then a look at what came, then what is missing.

A run that cannot get there ends with an account of what it has and why the rest was not to be had.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from src.utils.config import shown
from src.utils.dataset_generation.ledger import Ledger
from src.utils.dataset_generation.selection import Selection, select
from src.utils.dataset_generation.tasks import Cell
from src.utils.errors import UserError
from src.utils.llm.api import ChatClient, ChatRequest, first_line
from src.utils.llm.asking import Account, AskingLimits, ask_all
from src.utils.llm.prices import Estimate, Price, estimate
from src.utils.record_store import RecordStore

MOST_ROUNDS = 12
MOST_IDLE_ROUNDS = 2  # in a row, without a row more for a facet that lacks some
OVERSHOOT = 1.3  # drafts asked for, of what is missing: some will be flawed or double
ACCOUNT_LINES = 5  # reasons named in an error


@dataclass(frozen=True)
class Asked:
    """One planned request."""

    cell: Cell
    ordinal: int
    request: ChatRequest


@dataclass(frozen=True)
class Progress:
    """Where a run is: requests of all rounds so far planned and done, rows of the set, cost in US dollars.

    `refused` counts the refusals for too many requests since the last answer.
    """

    round_number: int
    planned: int
    done: int
    have: int
    want: int
    cost: float
    cost_is_known: bool
    refused: int


@dataclass(frozen=True)
class Service:
    """The model that writes: its client, what it costs and what a run may use."""

    make_client: Callable[[], ChatClient]
    price: Price
    limits: AskingLimits


def plan_round(ledger: Ledger, selection: Selection) -> list[Asked]:
    """The requests for what is missing, a request of every cell first, then the second of each, and so on."""
    task = ledger.task
    planned = [
        (turn, place, cell, ordinal)
        for place, cell in enumerate(task.cells)
        for turn, ordinal in enumerate(
            ledger.open_ordinals(cell, math.ceil(OVERSHOOT * selection.missing(cell) / task.batch))
        )
    ]
    texts = {group: selection.texts(group) for group in task.groups}
    return [
        Asked(cell, ordinal, task.request(cell, ordinal, texts[cell.group]))
        for _, _, cell, ordinal in sorted(planned, key=lambda one: one[:2])
    ]


def estimate_round(ledger: Ledger, planned: list[Asked], price: Price) -> Estimate:
    return estimate([asked.request for asked in planned], price, ledger.task.reply_tokens)


def fill(
    ledger: Ledger,
    store: RecordStore,
    service: Service,
    on_progress: Callable[[Progress], object] = lambda progress: None,
) -> Selection:
    """Ask until the set is whole. `ledger` reads the records of `store`, which keeps every reply.

    Raises `UserError` with the account if two rounds in a row add nothing to a facet that lacks some, after twelve
    rounds, where `max_cost` is reached, and where no request can succeed.
    """
    run = _Run(ledger, store, service, on_progress)
    selection = select(ledger.task, ledger.drafts())
    for _ in range(MOST_ROUNDS):
        if selection.have == ledger.task.want:
            return selection
        before, selection = selection, run.round(selection)
        run.check_idle(before, selection)
    if selection.have == ledger.task.want:
        return selection
    raise run.stopped(f"{MOST_ROUNDS} rounds were not enough", selection)


class _Run:
    def __init__(
        self, ledger: Ledger, store: RecordStore, service: Service, on_progress: Callable[[Progress], object]
    ) -> None:
        self.ledger, self.store, self.service, self.on_progress = ledger, store, service, on_progress
        self.first_round = ledger.last_round() + 1
        self.rounds = self.planned = self.done = 0
        self.is_whole = True
        self.cost, self.cost_is_known = 0.0, True
        self.failures: Counter[str] = Counter()
        self.latest = Account()
        self.idle: Counter[str] = Counter()

    def round(self, selection: Selection) -> Selection:
        """Ask once for what is missing; the selection after it."""
        wanted = plan_round(self.ledger, selection)
        planned = wanted[: self._affordable(wanted)]
        self.is_whole = len(planned) == len(wanted)
        if not planned:
            raise self.stopped(self._budget_reason(), selection)
        self.planned += len(planned)
        account = self._ask(planned, selection)
        self.rounds += 1
        self.done += account.done
        self.cost += account.cost
        self.cost_is_known &= account.cost_is_known
        self._count_failures(account)
        after = select(self.ledger.task, self.ledger.drafts())
        self._show(Account(), after)
        if account.left_out and after.have < self.ledger.task.want:
            raise self.stopped(self._budget_reason(), after)
        return after

    def _ask(self, planned: list[Asked], selection: Selection) -> Account:
        """Send these requests; where nothing helps, the engine's error with the account behind it."""
        ledger, limits = self.ledger, self.service.limits
        if limits.max_cost is not None:
            limits = replace(limits, max_cost=limits.max_cost - self.cost)
        number = self.first_round + self.rounds
        keyed = {ledger.key(asked.cell, asked.ordinal): asked for asked in planned}
        try:
            return ask_all(
                {key: asked.request for key, asked in keyed.items()},
                self.service.make_client,
                self.store,
                limits,
                self.service.price.of,
                {key: ledger.labels(asked.cell, asked.ordinal, number) for key, asked in keyed.items()},
                lambda key, reply: ledger.task.find_fault(reply),
                lambda account: self._show(account, selection),
            )
        except UserError as error:
            self._count_failures(self.latest)
            reason = error.message.removeprefix(f"{ledger.model}: ")  # which the account begins with
            raise self.stopped(reason, select(ledger.task, ledger.drafts()), error.exit_code) from error

    def _show(self, account: Account, selection: Selection) -> None:
        """Report what earlier rounds and this account have come to."""
        self.latest = account
        self.on_progress(
            Progress(
                round_number=max(1, self.rounds + bool(account.done)),
                planned=self.planned,
                done=self.done + account.done,
                have=selection.have,
                want=self.ledger.task.want,
                cost=self.cost + account.cost,
                cost_is_known=self.cost_is_known and account.cost_is_known,
                refused=account.refused,
            )
        )

    def _count_failures(self, account: Account) -> None:
        self.failures.update(first_line(reason, 80) for reason in account.failures.values())

    def check_idle(self, before: Selection, after: Selection) -> None:
        """Stop where a facet that lacks some has gained nothing in two rounds; one cut by the budget says nothing."""
        if not self.is_whole:
            return
        had, has, wanted = before.by_group(), after.by_group(), self.ledger.task.wanted()
        for group, want in wanted.items():
            self.idle[group] = self.idle[group] + 1 if has[group] < want and has[group] <= had[group] else 0
        stuck = [group for group, rounds in self.idle.items() if rounds >= MOST_IDLE_ROUNDS]
        if stuck:
            others = f" and {len(stuck) - 1} more" if len(stuck) > 1 else ""
            raise self.stopped(f"{MOST_IDLE_ROUNDS} rounds in a row added nothing to {stuck[0]}{others}", after)

    def stopped(self, reason: str, selection: Selection, exit_code: int = 1) -> UserError:
        """The account of a run that ends before its set is whole."""
        task, has = self.ledger.task, selection.by_group()
        short = [f"{group} {has[group]}/{want}" for group, want in task.wanted().items() if has[group] < want]
        return UserError(
            f"{self.ledger.model}: {reason}. The set has {selection.have} of {task.want} {task.rows}; rounds: "
            f"{self.rounds}; short: {', '.join(short) or 'none'}; rejected: {listed(selection.rejected)}; "
            f"failed requests: {listed(self.failures)}. The replies stay in {shown(self.store.path)}: the "
            "same command goes on from them",
            exit_code,
        )

    def _affordable(self, planned: list[Asked]) -> int:
        """How many of these requests the budget covers at what a request has cost so far, else at the estimate."""
        budget = self.service.limits.max_cost
        if budget is None:
            return len(planned)
        guess = estimate_round(self.ledger, planned, self.service.price).cost
        each = self.cost / self.done if self.done else (guess or 0.0) / len(planned)
        left = budget - self.cost
        if left <= 0:
            return 0
        return len(planned) if each * len(planned) <= left else int(left / each)

    def _budget_reason(self) -> str:
        return f"--max-cost {self.service.limits.max_cost:g} is reached (${self.cost:.4f} used)"


def listed(counts: Mapping[str, int]) -> str:
    """Reasons with their counts, the most frequent first."""
    most = Counter(counts).most_common()
    named = [f"{reason} ({number})" for reason, number in most[:ACCOUNT_LINES]]
    more = sum(number for _, number in most[ACCOUNT_LINES:])
    return ", ".join([*named, *([f"others ({more})"] if more else [])]) or "none"
