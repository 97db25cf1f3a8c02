"""What every action on a run shares: the API, the records, the link to a run's pod, and who may touch a run.

Actions are in `launch` (start), `watch` (follow, state, cancel) and `fetch` (results).
"""

import fcntl
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from src.pod.api import Pod, RunPodApi
from src.pod.host_keys import PINS
from src.pod.link import PATIENCE_SECONDS, PodLink
from src.pod.pods import is_over, wait_until_ready
from src.pod.requirements import pinned_requirements
from src.pod.run_record import RunRecord, RunRecords
from src.pod.settings import PodSettings
from src.pod.ssh import SILENCE_SECONDS, Login
from src.utils.errors import UserError

WhenDone = Literal["keep", "stop", "terminate"]


@dataclass(frozen=True)
class Choices:
    """What the user chose about pod, guard and connection. Times: hours and minutes as typed, seconds elsewhere."""

    pod_id: str | None = None
    when_done: WhenDone | None = None  # as it was, and to keep the pod for a new run
    max_hours: float = 24.0
    idle_minutes: float = 30.0
    is_guarded: bool = True
    remote_python: str = "python3"
    installs: bool = True  # dependencies, around that Python; else it has everything
    fingerprint: str | None = None
    silence: float = SILENCE_SECONDS
    patience: float = PATIENCE_SECONDS
    pod_poll: float = 5.0  # seconds between two looks at a pod that starts


@dataclass
class PodClient:
    """One invocation of the runner."""

    api: RunPodApi
    settings: PodSettings
    records: RunRecords
    choices: Choices
    say: Callable[[str], object] = print
    requirements: Callable[[], list[str]] = pinned_requirements  # what is installed on the pod
    pins: Path = field(default_factory=PINS.expanduser)
    began: float = field(default_factory=time.time)  # hours count from here, however often a job is started again

    def link(self, pod_id: str) -> PodLink:
        """A link to a pod that finds the pod's address anew with each connection."""
        login = Login(pod_id, self.settings, self.pins, self.choices.fingerprint, self.choices.silence)
        return PodLink(
            lambda: wait_until_ready(self.api, pod_id, self.say, poll=self.choices.pod_poll)[1],
            login,
            self.choices.remote_python,
            self.say,
            self.choices.patience,
        )

    def link_to(self, record: RunRecord) -> PodLink:
        """A link to the pod of a run, with the folder that the run has there."""
        link = self.link(record.pod_id)
        link.root = record.remote_root
        return link

    def check_pod_of(self, record: RunRecord) -> None:
        """`UserError` where a run's pod does not run: who attaches or fetches looks for no other."""
        pod = self.api.pod(record.pod_id)
        if pod is None:
            raise UserError(
                f"run {record.run_id}: pod {record.pod_id} was terminated; if it had a network volume, the command "
                "that started the run goes on from another pod with it"
            )
        if is_over(pod):
            raise UserError(
                f"run {record.run_id}: lies on pod {pod.id}, which is stopped; start it in the console first"
            )

    @contextmanager
    def alone_with(self, run_id: str) -> Generator[None]:
        """Hold a run, so that no second client writes its log and record; `UserError` where one does."""
        self.records.folder.mkdir(parents=True, exist_ok=True)
        file = os.open(self.records.folder / f"{run_id}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"run {run_id}: another client on this machine watches it; wait for that one"
                ) from error
            yield
        finally:
            os.close(file)

    def release_pod(self, record: RunRecord, others: Sequence[str], unfetched: Sequence[str] = ()) -> None:
        """Stop or terminate the run's pod, as was asked for; not under `others`, runs that need it.

        For the sake of `unfetched` runs, whose work is nowhere else, a pod is stopped where it was to be terminated.
        """
        pod = self.api.pod(record.pod_id)
        if record.when_done == "keep":
            return
        if pod is None or is_over(pod):  # its guard can be faster
            self.say(f"pod {record.pod_id}: {'terminated' if pod is None else 'stopped'} already")
            return
        if others:
            self.say(f"pod {pod.id}: goes on, and on costing, for {', '.join(others)}; --cancel RUN gives one up")
            return
        if (record.when_done == "terminate" and not unfetched) or pod.network_volume:
            self.api.terminate(pod.id)
            self.say(f"pod {pod.id}: terminated")
            return
        self.api.stop(pod.id)
        kept = f", not terminated: {', '.join(unfetched)} was not fetched" if record.when_done == "terminate" else ""
        self.say(f"pod {pod.id}: stopped{kept}; its volume stays, and costs a little")


def stop_mutation(pod: Pod) -> str:
    """How a pod stops costing money: not every one with a network volume can be stopped, and the volume outlives it."""
    return "podTerminate" if pod.network_volume else "podStop"
