"""Containers that RunPod starts again by itself: the guard is back though no client is, and knows what it knew."""

import argparse
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from src.pod.client import PodClient
from src.pod.config import main
from src.pod.persona_data_runner import attend
from src.pod.remote.layout import RunFolder
from src.pod.remote.resume import hook_into_image
from src.pod.run_record import RunRecord
from src.pod.watch import report
from src.utils.errors import UserError
from tests.pod_api_server import ACCOUNT_KEY, POD_KEY, ApiServer, pod_entry
from tests.pod_jobs import QUICK, attend_to, client_for, guarded, job_command, remote
from tests.pod_server import PodServer, holds, parent_of, processes_in, wait_for


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture
def pod(tmp_path: Path, sshd: str, api: ApiServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[PodServer]:
    """A pod as `config.py create` makes it: its container starts by the command that the API was given for it."""
    server = PodServer(tmp_path / "pod", sshd, pod_id="new1", api_url=api.url)
    for name, value in (("API_KEY", ACCOUNT_KEY), ("API_BASE_URL", api.url), ("REMOTE_ROOT", str(server.root))):
        monkeypatch.setenv(f"RUNPOD_{name}", value)
    main(["create", "--gpu", "RTX 4090", "--yes"])
    server.start_command = api.pods["new1"]["dockerArgs"]
    with server:
        api.pods["new1"] = pod_entry("new1", server.port, dockerArgs=server.start_command)
        yield server


def guards_of(pod: PodServer, run: RunFolder) -> list[int]:
    """The processes that hold the lock of a run's guard, detached: whatever started them is gone."""
    on_pod = processes_in(pod.folder)
    return [pid for pid in on_pod if holds(pid, f"{run.run_id}.guard") and parent_of(pid) not in (None, *on_pod)]


def restart(pod: PodServer, run: RunFolder, is_new: bool = False) -> int:
    """The guard that is back after a restart."""
    pod.restart_container(is_new)
    wait_for(lambda: len(guards_of(pod, run)) == 1, "the guard is back")
    return guards_of(pod, run)[0]


def tell(run: RunFolder, **orders: Any) -> dict[str, Any]:
    """New orders for a run whose guard is not there; all that it will know when it is back."""
    told = {**(run.read("guard.json") or {}), **orders}
    run.write("guard.json", told)
    return told


def reason_of(run: RunFolder) -> dict[str, Any]:
    """What the guard was told and has done, once it has written that down."""
    wait_for(lambda: "reason" in (run.read("guard.json") or {}), "the guard has written down why")
    return run.read("guard.json") or {}


def test_the_guard_comes_back_with_the_container_and_stops_the_pod_though_nobody_does(
    pod: PodServer, api: ApiServer, tmp_path: Path
) -> None:
    """The job died with the container: that counts as its end, and the hours go on from where they began."""
    record = guarded(pod, api, tmp_path, when_done="stop")
    run = remote(pod, record)
    wait_for(lambda: run.read("pid"), "the job runs")
    pod.end_container()
    before = tell(run, idle_seconds=3.0)
    api.asked.clear()
    pod.restart_container()
    wait_for(lambda: api.calls("podStop"), "the guard stops the pod")
    assert api.calls("podStop") == [POD_KEY] and not api.calls("podTerminate") and len(api.asked) == 1
    after = reason_of(run)
    assert after["reason"].startswith("the job was interrupted, and for ") and after["resumed"] > before["since"]
    assert all(after[name] == before[name] for name in before if name != "since")
    assert POD_KEY not in "".join(path.read_text() for path in (pod.root / "bin").glob("*.sh"))


def test_hours_that_pass_after_a_restart_stop_the_pod(pod: PodServer, api: ApiServer, tmp_path: Path) -> None:
    run = remote(pod, guarded(pod, api, tmp_path))
    pod.end_container()
    deadline = tell(run, deadline=time.time() + 5.0)["deadline"]
    pod.restart_container()
    wait_for(lambda: api.calls("podStop"), "the guard stops the pod")
    assert time.time() >= deadline
    told = reason_of(run)
    assert told["deadline"] == deadline and told["reason"] == "the hours are over"


def test_a_client_that_comes_back_finds_the_guard_and_the_reason_and_continues_the_job(
    pod: PodServer, api: ApiServer, tmp_path: Path
) -> None:
    """After two restarts there is one guard; a third one, by hand, adds none."""
    source = (
        "import os, pathlib, time\npathlib.Path('tries').open('a').write('x')\nprint('up', flush=True)\n"
        "time.sleep(60 if pathlib.Path('tries').read_text() == 'x' else 0)\nopen('out', 'w').close()\n"
    )
    record = guarded(pod, api, tmp_path, source)
    run = remote(pod, record)
    wait_for(lambda: run.log.exists() and run.log.read_text() == "up\n", "the job runs")
    first = restart(pod, run)
    second = restart(pod, run)
    again = shlex.split(pod.start_command.replace("exec /start.sh", "wait"))
    subprocess.run(again, env=pod.environment, check=True)
    assert guards_of(pod, run) == [second] != [first]
    client = client_for(pod, api, tmp_path, is_guarded=True)
    text = report(client, record)
    assert "on the pod: interrupted)" in text and "WITHOUT" not in text
    reason = r"its container was started again at .* UTC, and the job ended with it; the command that started it"
    seen = client.records.load(record.run_id)
    assert seen.state == "interrupted" and seen.exit_reason is not None
    with pytest.raises(UserError, match=f"run {record.run_id}: is interrupted: {reason}"):
        attach(client, record, tmp_path)
    done = attend_to(client, job_command(tmp_path, source), tmp_path)
    assert (done.run_id, done.state, done.exit_reason) == (record.run_id, "fetched", None)
    assert (run.project / "tries").read_text() == "xx" and guards_of(pod, run) == [second]


def attach(client: PodClient, record: RunRecord, folder: Path) -> None:
    attend(client, record, argparse.Namespace(detach=False, results_dir=folder / "results", force=False), None)


def test_guards_of_several_runs_come_back_together(pod: PodServer, api: ApiServer, tmp_path: Path) -> None:
    """One whose hours are over waits for the other's, whichever looks first; each is a process of its own."""
    one = remote(pod, guarded(pod, api, tmp_path / "one", QUICK, when_done="stop"))
    two = remote(pod, guarded(pod, api, tmp_path / "two"))
    wait_for((one.path / "exit.json").exists, "the first job ends")
    pod.end_container()
    tell(one, deadline=0.0)
    pod.restart_container()
    found: list[list[int]] = []

    def are_back() -> bool:
        """Until each is on its own it has the other's lock, too, from the process that started both."""
        found[:] = [guards_of(pod, one), guards_of(pod, two)]
        return [len(pids) for pids in found] == [1, 1] and found[0] != found[1]

    wait_for(are_back, "the guards are back")
    assert not api.calls("podStop")
    os.kill(found[0][0], signal.SIGKILL)
    wait_for(lambda: not guards_of(pod, one), "no other holds its lock")


def test_a_stopped_pod_that_somebody_starts_again_is_theirs_while_they_use_it(
    pod: PodServer, api: ApiServer, tmp_path: Path
) -> None:
    """Its container is a new one. A run that is settled has no say; one that is not, until the pod is idle."""
    settled = remote(pod, guarded(pod, api, tmp_path / "a", QUICK, when_done="stop"))
    waiting = remote(pod, guarded(pod, api, tmp_path / "b", QUICK, when_done="stop"))
    for run in (settled, waiting):
        wait_for((run.path / "exit.json").exists, "the job ends")
    pod.end_container()
    for run in (settled, waiting):
        tell(run, deadline=0.0)
    settled.touch("fetched")
    restart(pod, waiting, is_new=True)
    assert not guards_of(pod, settled) and not api.calls("podStop"), "hours that were over stop no pod that is used"
    client = client_for(pod, api, tmp_path / "b", is_guarded=True)
    assert attend_to(client, job_command(tmp_path / "b", QUICK), tmp_path / "b").state == "fetched"
    wait_for(lambda: POD_KEY in api.calls("podStop"), "the job is done and its results were fetched")


def test_a_pod_that_was_made_elsewhere_is_hooked_or_the_user_told(
    pod: PodServer, api: ApiServer, tmp_path: Path
) -> None:
    """What RunPod's images offer is played by a start script of the test's own, below the pod's folder."""
    api.pods["new1"]["dockerArgs"] = ""
    pod.start_command = "bash -c '/start.sh'"
    said: list[str] = []
    record = guarded(pod, api, tmp_path, say=said.append, when_done="stop")
    (line,) = [line for line in said if "guard" in line]
    assert line.startswith(
        "pod new1: if RunPod restarts its container, no guard stops it until a client comes back (it"
    )
    run = remote(pod, record)
    pod.restart_container()
    assert not guards_of(pod, run)
    (pod.folder / "proc/1").mkdir(parents=True)
    (pod.folder / "proc/1/cmdline").write_bytes(b"/bin/bash\0/start.sh\0")
    assert hook_into_image(pod.root, pod.folder) == ""
    tell(run, idle_seconds=3.0)
    restart(pod, run)
    wait_for(lambda: api.calls("podStop") == [POD_KEY], "the guard stops the pod")
