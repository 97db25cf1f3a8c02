"""Is a pod fit for a run? One check after another, each with what to do where it fails."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from src.pod.api import Pod
from src.pod.client import PodClient
from src.pod.pods import choose_pod, state_of, wait_until_ready
from src.pod.remote.install import OLDEST_PYTHON
from src.pod.ssh import ConnectionLost, lost_connections
from src.utils.errors import UserError

NEEDED_DISK = 20 * 2**30  # bytes; Qwen3-4B, its fine-tune and the packages
NO_VOLUME = "name a folder on the volume with --remote-root, or create a pod that has one"
SFTP_TEXT = b"SFTP works"


@dataclass(frozen=True)
class Check:
    """One line of the table; `remedy` is empty where it passed. A check that only warns does not fail the table."""

    name: str
    passed: bool
    found: str
    remedy: str = ""
    is_warning: bool = False

    def line(self) -> str:
        mark = "pass" if self.passed else "warn" if self.is_warning else "FAIL"
        return f"{mark}  {self.name:<12} {self.found}" + (f"\n{'':19}{self.remedy}" if self.remedy else "")


def run_checks(client: PodClient, wait: bool = True) -> Generator[Check]:
    """Checks in order; the first that all later ones need and that fails is the last."""
    try:
        pod = choose_pod(client.api, client.choices.pod_id)
        if wait:
            pod, _ = wait_until_ready(client.api, pod.id, client.say, poll=client.choices.pod_poll)
    except UserError as error:
        yield failed("state", error)
        return
    state = state_of(pod)
    remedy = "leave --no-wait out, which waits for it" if state.may_come else ""
    yield Check(
        "state", state.address is not None, f"{pod.id}, {pod.gpu}, ${pod.cost_per_hour:.3f}/h: {state.text}", remedy
    )
    if state.address is None:
        return
    told: list[str] = []
    with client.link(pod.id) as link:
        link.tell = told.append
        try:
            session = link.session()
        except UserError as error:
            is_key = "host key" in error.message
            yield failed("host key" if is_key else "SSH", error)
            return
        except ConnectionLost as error:
            remedy = "is sshd running in the container? create the pod with startSsh and port 22/tcp"
            yield Check("SSH", False, f"{state.address.host}:{state.address.port}: {error}", remedy)
            return
        yield Check("host key", True, next((line for line in told if "host key" in line), "as pinned"))
        yield Check("SSH", True, f"{client.settings.user}@{state.address.host}:{state.address.port}")
        yield check_sftp(session.open_sftp, client.settings.remote_root)
        try:
            facts = link.ask("probe", {"asks_hub": True})
        except UserError as error:
            yield failed("Python", error)
            return
    yield from check_facts(facts, pod, client.settings.remote_root)


def check_sftp(open_sftp: Callable[[], Any], root: str) -> Check:
    """Write, read back and remove a file."""
    name = str(PurePosixPath(root).parent / ".em-persona-connection-test")
    try:
        with lost_connections(), open_sftp() as sftp:
            with sftp.open(name, "wb") as file:
                file.write(SFTP_TEXT)
            with sftp.open(name, "rb") as file:
                same = file.read() == SFTP_TEXT
            sftp.remove(name)
    except ConnectionLost as error:
        remedy = "only scp and sftp by hand need it; runs do without"
        return Check("SFTP", False, f"{name}: {error}", remedy, is_warning=True)
    return Check("SFTP", same, "write, read and remove")


def check_facts(facts: dict[str, Any], pod: Pod, root: str) -> Generator[Check]:
    """Python, torch, CUDA, GPU memory, disk, hub, guard, from what the pod told."""
    python = ".".join(map(str, facts["python"]))
    needed = ".".join(map(str, OLDEST_PYTHON))
    is_new = tuple(facts["python"][:2]) >= OLDEST_PYTHON
    yield Check("Python", is_new, python, "" if is_new else f"needs {needed}: take a newer image, or --remote-python")
    torch = facts["torch"]
    yield Check(
        "torch",
        torch is not None,
        torch["torch"] if torch else "none",
        "" if torch else "a run installs it, which takes minutes; an image with PyTorch has it",
        is_warning=True,
    )
    gpus = (torch or {}).get("gpus") or []
    if pod.gpu_count:
        visible = facts["visible_gpus"]
        is_seen = bool(gpus) or (torch is None and visible > 0)
        found = str(torch["cuda"] or "none") if torch else f"{visible} GPUs for nvidia-smi"
        remedy = "the pod has lost its GPU, or torch does not fit its driver: terminate it and create another"
        yield Check("CUDA", is_seen, found, "" if is_seen else remedy)
        if gpus:
            listed = ", ".join(f"{gpu['name']} {gpu['bytes'] / 2**30:.0f} GiB" for gpu in gpus)
            is_large = all(gpu["bytes"] >= 15 * 2**30 for gpu in gpus)
            remedy = "" if is_large else "Qwen3-4B needs 16 GB: --memory 16gb, or a larger GPU"
            yield Check("GPU memory", is_large, listed, remedy, is_warning=True)
    free = facts["free_bytes"]
    enough = free >= NEEDED_DISK
    remedy = "" if enough else f"needs {NEEDED_DISK / 2**30:.0f} GiB: free some, or create a pod with a larger volume"
    yield Check("disk", enough, f"{free / 2**30:.1f} GiB free at {root}", remedy)
    remedy = "" if facts["is_on_volume"] else f"a stopped pod loses it: {NO_VOLUME}"
    found = "holds the folder" if facts["is_on_volume"] else f"{root} lies on the container's disk"
    yield Check("volume", facts["is_on_volume"], found, remedy, is_warning=True)
    unreachable = facts["hub"]
    remedy = "models cannot be downloaded there; upload them as folders (--base-model FOLDER)" if unreachable else ""
    yield Check("hub", not unreachable, unreachable or "reachable from the pod", remedy)
    lack = facts["unguarded"]
    remedy = "no cost guard is possible; create the pod with src/pod/config.py, or run with --no-guard" if lack else ""
    yield Check("guard key", not lack, lack or "pod-scoped key is there", remedy)


def failed(name: str, error: UserError) -> Check:
    what, _, remedy = error.message.rpartition("; ") if "; " in error.message else (error.message, "", "")
    return Check(name, False, what, remedy)


def all_passed(checks: list[Check]) -> bool:
    return all(check.passed or check.is_warning for check in checks)
