"""The cost guard: a detached process that stops the pod, whether or not a client ever returns.

It stops the pod when the job has ended (after its results were fetched, or a time of grace), when nothing has happened
for too long, and when the hours are over. It knows only the key that RunPod gives this one pod, and never an account's.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from src.pod.remote.detach import detach
from src.pod.remote.environment import find_credentials, pod_name
from src.pod.remote.layout import RunFolder, last_contact, others_in_need, runs_on_pod, unfetched_others
from src.pod.remote.progress import gpu_memory

API_URL = "https://api.runpod.io"
RETRY_SECONDS = 20.0
GRACE_SECONDS = 600.0  # for a client to fetch the results of a job that has ended
BUSY_SHARE = 0.02  # of one core; a waiting process uses less


@dataclass(frozen=True)
class Orders:
    """What the guard does: times in seconds, `deadline` since the epoch; `stop` is podStop or podTerminate."""

    deadline: float
    idle_seconds: float
    when_done: str  # keep, stop or terminate
    stop: str  # how this pod stops costing money: one on a network volume can only be terminated
    poll_seconds: float = 5.0

    def pause(self, now: float) -> float:
        """Seconds until the next look: short limits are kept, too."""
        left = self.deadline - now
        return min(self.poll_seconds, self.idle_seconds / 4, left if left > 0 else self.poll_seconds)

    def patience(self, is_done: bool) -> float:
        """For how many seconds nothing may happen: fewer after a job that is no reason to keep the pod."""
        return min(self.idle_seconds, GRACE_SECONDS) if is_done and self.when_done != "keep" else self.idle_seconds


def start_guard(run: RunFolder, orders: dict[str, Any]) -> None:
    """Start the run's guard; one that is there gets the new orders. A job that is running keeps its hours.

    `orders` are the fields of `Orders` with `max_seconds` from now on in the place of the deadline. Raises
    `RuntimeError` where the guard does not stay.
    """
    lock = run.lock("guard")
    try:
        before = orders_of(run) if run.is_locked() else None
        deadline = time.time() + orders.pop("max_seconds")
        chosen = Orders(deadline=before.deadline if before else deadline, **orders)
        run.write("guard.json", {**asdict(chosen), "pod": pod_name(), "since": time.time()})
        if lock is None:
            return
        detach(lambda: watch(run, chosen), run.path / "guard.log")
    finally:
        if lock is not None:
            os.close(lock)
    if not run.is_locked("guard"):
        raise RuntimeError("the cost guard ended at once, see guard.log in the run's folder")


def change_orders(run: RunFolder, when_done: str) -> None:
    """What the guard does when the job is done, decided anew."""
    if (orders := run.read("guard.json")) is not None:
        run.write("guard.json", {**orders, "when_done": when_done})


def orders_of(run: RunFolder) -> Orders | None:
    """What the run's guard on this pod was told last; None where it was told nothing."""
    told = run.read("guard.json")
    if told is None or told.get("pod") != pod_name():
        return None
    return Orders(**{field.name: told[field.name] for field in fields(Orders)})


def watch(run: RunFolder, orders: Orders) -> None:
    """Look every few seconds, at the orders too; when it is time, stop the pod, again and again until the API agrees.

    Nothing else ends it: where it cannot look, as on a full or vanished disk, it still knows when the hours are over.
    """
    activity = Activity(run)
    while True:
        try:
            orders = orders_of(run) or orders
            action, reason = decide(run, orders, activity, time.time())
        except Exception as error:  # whatever it is: no guard would be worse
            is_over = time.time() >= orders.deadline
            action, reason = (orders.stop, "the hours are over") if is_over else (None, "")
            say(f"cannot look: {error!r}")
        if action:
            say(f"{action}: {reason}")
            if call_api(action):
                with contextlib.suppress(OSError):
                    run.write("guard.json", {**(run.read("guard.json") or {}), "stopped": action, "reason": reason})
                return
            time.sleep(min(RETRY_SECONDS, orders.poll_seconds * 4))
        else:
            time.sleep(orders.pause(time.time()))


def decide(run: RunFolder, orders: Orders, activity: Activity, now: float) -> tuple[str | None, str]:
    """What to do now, and why: a mutation of the API, or None. Results that nobody has fetched are never terminated.

    (`orders.stop` is podTerminate only where the results lie on a network volume, which stays.) That a job is done is
    no reason to stop a pod that another run needs, nor are its hours while those of the other's guard last. The pod is
    idle when nothing happens in any run on it, for the longest time that one of their guards allows: a client that
    lives has started an interrupted job again by then.
    """
    ended, others = run.has_ended, others_in_need(run)
    guards = [(run, orders)]
    guards += [(other, told) for other in others if other.is_locked("guard") and (told := orders_of(other)) is not None]
    if now >= (max(told.deadline for _, told in guards) if ended else orders.deadline):
        return orders.stop, "the hours are over"
    if ended and (run.path / "fetched").exists() and not others and orders.when_done != "keep":
        reason = "the job is done and its results were fetched"
        if orders.when_done == "stop":
            return orders.stop, reason
        left = unfetched_others(run)
        return ("podTerminate", reason) if not left else (orders.stop, f"{reason}, those of {', '.join(left)} were not")
    idle = activity.idle_seconds(now)
    is_working = any(one.is_locked() for one in (run, *others))
    if idle < max(told.patience(one.is_over and not is_working) for one, told in guards):
        return None, ""
    if run.is_interrupted:
        return orders.stop, f"the job was interrupted, and for {idle:.0f} s nobody has come back to it"
    return orders.stop, "the job is done" if ended else f"nothing has happened for {idle:.0f} s"


class Activity:
    """Since when nothing has happened on the pod: no client, no line in a log, next to no CPU time, no GPU at work."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._since = self._looked = time.time()
        self._seen: tuple[float, list[int]] | None = None
        self._cpu = 0.0

    def idle_seconds(self, now: float) -> float:
        running = [one for one in runs_on_pod(self._run.root) if one.is_locked()]
        logs = [one.log.stat().st_size for one in {self._run, *running} if one.log.exists()]
        seen = (last_contact(), sorted(logs))
        cpu = cpu_seconds({int(pid["group"]) for one in running if (pid := one.read("pid")) is not None})
        is_busy = cpu - self._cpu > BUSY_SHARE * (now - self._looked)
        if seen != self._seen or is_busy or any(gpu["percent"] > 0 for gpu in gpu_memory()):
            self._since = now
        self._seen, self._cpu, self._looked = seen, cpu, now
        return now - self._since


def cpu_seconds(sessions: set[int]) -> float:
    """CPU time of the processes that are alive in these sessions; each job has one of its own."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat") if sessions else ():
        try:
            words = stat.read_text("latin-1").rpartition(")")[2].split()  # a name may be any bytes
        except OSError:
            continue
        if int(words[3]) in sessions:
            total += (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
    return total


def call_api(mutation: str) -> bool:
    """Call podStop or podTerminate for this pod with its own key; whether the API agreed."""
    found = find_credentials()
    selection = "" if mutation == "podTerminate" else " { id desiredStatus }"
    query = "mutation {{ {}(input: {{podId: {}}}){} }}".format(
        mutation, json.dumps(found.get("RUNPOD_POD_ID", "")), selection
    )
    request = urllib.request.Request(
        found.get("RUNPOD_API_BASE_URL", API_URL).rstrip("/") + "/graphql",
        json.dumps({"query": query}).encode(),
        {
            "Content-Type": "application/json",
            "Authorization": "Bearer " + found.get("RUNPOD_API_KEY", ""),
            "User-Agent": "em-persona-guard",
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.loads(response.read().decode())
    except (OSError, ValueError, http.client.HTTPException) as error:
        say(f"{mutation} failed: {error!r}")
        return False
    if not isinstance(answer, dict) or answer.get("errors") or "data" not in answer:
        say(f"{mutation} was refused: {str(answer)[:200]}")
        return False
    return True


def say(text: str) -> None:
    """To the guard's log, which is its standard output; a full disk loses the line and nothing else."""
    line = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()) + f" {text}\n"
    with contextlib.suppress(OSError):
        os.write(1, line.encode())
