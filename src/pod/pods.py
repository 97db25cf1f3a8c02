"""Which pod is meant, what state it is in, and where its SSH answers."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from src.pod.api import Pod, RunPodApi
from src.utils.errors import UserError

SSH_PORT = 22
STOPPED, GONE = ("EXITED", "STOPPED"), ("TERMINATED", "DEAD")
READY_TIMEOUT = 20 * 60.0  # seconds; images of 20 GB take that long to pull


@dataclass(frozen=True)
class Address:
    host: str
    port: int


@dataclass(frozen=True)
class State:
    """A pod's state in one line. `address` is where SSH answers; `may_come` whether waiting can help."""

    text: str
    address: Address | None = None
    may_come: bool = False


def state_of(pod: Pod) -> State:
    """What can be done with a pod now. Ports of a pod that does not run are stale and never used."""
    if pod.status in STOPPED:
        return State("stopped; start it in the console, or create another with `src/pod/config.py create`")
    if pod.status in GONE:
        return State("terminated; create another with `src/pod/config.py create`")
    if pod.status != "RUNNING":
        return State(f"not running yet (state {pod.status})", may_come=True)
    if pod.runtime is None:
        return State("starting: its image is being pulled", may_come=True)
    ports = pod.runtime.ports
    if not ports:
        return State("starting: it has no ports yet", may_come=True)
    found = next((port for port in ports if port.private == SSH_PORT and port.is_public), None)
    if found is None:
        return State(
            "running without a public port 22 (the proxied SSH has no SFTP); create it with port 22/tcp exposed"
        )
    if not found.ip or not found.public:
        return State("starting: port 22 has no address yet", may_come=True)
    return State("running", Address(found.ip, found.public))


def is_over(pod: Pod | None) -> bool:
    """Whether nothing runs on a pod any more; None is one that the account has no more."""
    return pod is None or pod.status in (*STOPPED, *GONE)


def describe(pod: Pod) -> str:
    """One line of a list of pods."""
    state = state_of(pod)
    where = f"{state.address.host}:{state.address.port}" if state.address else state.text
    kind = " spot" if pod.is_spot else ""
    return f"{pod.id:<18} {pod.name or '':<24} {pod.gpu:<24} ${pod.cost_per_hour:.3f}/h{kind}  {pod.status:<10} {where}"


def choose_pod(api: RunPodApi, pod_id: str | None) -> Pod:
    """The pod that is meant: `--pod`, else the only one that runs. `UserError` (code 2) where that is not clear."""
    if pod_id is not None:
        pod = api.pod(pod_id)
        if pod is None:
            known = ", ".join(pod.id for pod in api.pods()) or "none"
            raise UserError(
                f"--pod {pod_id}: the account has no such pod (it has {known}); it may have been terminated", 2
            )
        return pod
    running = [pod for pod in api.pods() if pod.status == "RUNNING"]
    if not running:
        raise UserError("no pod is running; create one with `src/pod/config.py create`, or start one in the console", 2)
    return running[0] if len(running) == 1 else ask_which(running)


def ask_which(pods: Sequence[Pod]) -> Pod:
    """Let the user choose; where nobody can be asked, `UserError` lists them."""
    if not sys.stdin.isatty():
        raise UserError(f"{len(pods)} pods are running; choose with --pod: {', '.join(pod.id for pod in pods)}", 2)
    for number, pod in enumerate(pods, start=1):
        print(f"{number}  {describe(pod)}")
    answer = input(f"Which? [1-{len(pods)}] ").strip()
    if not answer.isdigit() or not 1 <= int(answer) <= len(pods):
        raise UserError("no pod was chosen; choose with --pod", 2)
    return pods[int(answer) - 1]


def wait_until_ready(
    api: RunPodApi,
    pod_id: str,
    say: Callable[[str], object] = print,
    timeout: float = READY_TIMEOUT,
    wait: Callable[[float], object] = time.sleep,
    poll: float = 5.0,
) -> tuple[Pod, Address]:
    """The pod and its SSH address, as soon as it has one. `UserError` where waiting cannot help or took too long."""
    told, waited = "", 0.0
    while True:
        pod = api.pod(pod_id)
        if pod is None:
            raise UserError(f"pod {pod_id}: was terminated; create another with `src/pod/config.py create`")
        state = state_of(pod)
        if state.address is not None:
            return pod, state.address
        if not state.may_come:
            raise UserError(f"pod {pod_id}: is {state.text}")
        if waited >= timeout:
            raise UserError(
                f"pod {pod_id}: still {state.text} after {waited / 60:.0f} minutes; look at its log in the console"
            )
        if state.text != told:
            say(f"pod {pod_id}: {state.text}")
            told = state.text
        wait(poll)
        waited += poll
