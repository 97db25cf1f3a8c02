"""Runs on a pod that are interrupted: killed clients, pods that go away, come back elsewhere or end."""

import argparse
import hashlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from src.pod.client import PodClient
from src.pod.launch import Command
from src.pod.persona_data_runner import fetch_again
from src.pod.run_record import RunRecord
from src.pod.watch import cancel, follow, report
from src.utils.errors import UserError
from tests.pod_api_server import ApiServer, pod_entry
from tests.pod_jobs import SLEEPY, attend_to, client_for, job_command, remote
from tests.pod_server import PodServer, Proxy, free_port, wait_for

pytestmark = pytest.mark.usefixtures("fresh_api")
KILLS = 20
LINES = 40
INPUT_BYTES, OUTPUT_BYTES = 6 << 20, 12 << 20
LONG = f"""
import hashlib, pathlib, time
with open('executions', 'a') as file:
    file.write('started\\n')
for i in range({LINES}):
    print('line', i, flush=True)
    time.sleep(0.02)
data = pathlib.Path('input').read_bytes()
pathlib.Path('out').mkdir(exist_ok=True)
pathlib.Path('out/reversed.txt').write_bytes(data[::-1])
print('done', hashlib.sha256(data).hexdigest(), flush=True)
"""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def life(
    pod: PodServer,
    api: ApiServer,
    folder: Path,
    command: Command,
    seconds: float,
    has_begun: Callable[[], bool] = lambda: True,
) -> bool:
    """One client process that is killed so many seconds after something has begun; whether it came to its end before.

    A client killed after it wrote its last word was at its end, too: another life would rightly start a second run.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            silence = os.open(os.devnull, os.O_RDWR)
            os.dup2(silence, 1)
            attend_to(client_for(pod, api, folder), command, folder)
            code = 0
        finally:
            os._exit(code)
    deadline = None
    while deadline is None or time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return True
        if deadline is None and has_begun():
            deadline = time.monotonic() + seconds
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return any(record.state == "fetched" for record in client_for(pod, api, folder).records.all())


def test_a_client_that_is_killed_twenty_times(pod: PodServer, api: ApiServer, tmp_path: Path) -> None:
    """Each run is one run, its job runs once, its log has each line once, the result is what it should be.

    Lives are drawn from how long an uninterrupted run takes here, so that kills hit all of its phases.
    """
    data = os.urandom(INPUT_BYTES)
    (tmp_path / "input").write_bytes(data)
    rng, kills, phases, longest = random.Random(8), 0, set(), 200.0
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        (folder / "input").write_bytes(data[attempt:] + data[:attempt])  # nothing of it is on the pod yet
        command = job_command(folder, LONG, {"input": folder / "input"})
        client = client_for(pod, api, folder)
        began, patience = time.monotonic(), 1.0
        while not life(pod, api, folder, command, rng.uniform(0.1, 1.0) * longest * patience):
            kills, patience = kills + 1, patience * 1.2  # a client that never gets as far as to log in does nothing
            phases |= {phase_of(client, record) for record in client.records.all()}
        longest = 0.35 * (time.monotonic() - began) if attempt == 0 else longest
        check_run(pod, client, data[attempt:] + data[:attempt])
        if kills >= KILLS and {"preparing", "running"} <= phases:
            break
    assert kills >= KILLS and {"preparing", "running"} <= phases, (kills, phases)


def phase_of(client: PodClient, record: RunRecord) -> str:
    """In which phase of a run its client was killed."""
    return "download" if client.records.staging_path(record.run_id).exists() else record.state


def check_run(pod: PodServer, client: PodClient, data: bytes) -> None:
    (record,) = client.records.all()
    assert record.state == "fetched" and (remote(pod, record).project / "executions").read_text() == "started\n"
    expected = "".join(f"line {i}\n" for i in range(LINES)) + f"done {sha256(data)}\n"
    assert client.records.log_path(record.run_id).read_text() == expected
    fetched = client.records.staging_path(record.run_id) / "out/reversed.txt"
    assert sha256(fetched.read_bytes()) == sha256(data[::-1])


def test_the_end_of_a_run_is_safe_from_kills_too(pod: PodServer, api: ApiServer, tmp_path: Path) -> None:
    """A job that is over at once, so that clients die while they download and publish."""
    command = job_command(
        tmp_path,
        f"import os, pathlib\npathlib.Path('out').mkdir()\nprint('x')\n"
        f"pathlib.Path('out/data').write_bytes(bytes(range(256)) * {OUTPUT_BYTES // 256})\n",
    )
    client = client_for(pod, api, tmp_path)
    attend_to(client, command, tmp_path, is_detached=True)
    record = client.records.latest()
    wait_for((remote(pod, record).path / "exit.json").exists, "the job ends")
    partial = client.records.staging_path(record.run_id)
    with Proxy(pod.port) as line:
        line.faults = [("stall", "down", OUTPUT_BYTES // 2)]  # it cannot be faster than who kills it
        api.pods = {pod.pod_id: pod_entry(pod.pod_id, line.port)}
        assert not life(pod, api, tmp_path, command, 0.0, has_begun=partial.exists)  # dies as soon as it downloads
    api.pods = {pod.pod_id: pod_entry(pod.pod_id, pod.port)}
    rng = random.Random(9)
    if not any(life(pod, api, tmp_path, command, rng.uniform(0.1, 0.9)) for _ in range(5)):
        attend_to(client, command, tmp_path)
    assert len(client.records.all()) == 1 and client.records.log_path(record.run_id).read_text() == "x\n"
    fetched = client.records.staging_path(record.run_id) / "out/data"
    assert sha256(fetched.read_bytes()) == sha256(bytes(range(256)) * (OUTPUT_BYTES // 256))


def test_an_interrupted_job_goes_on_with_its_shards_on_the_next_pod(
    pod: PodServer, api: ApiServer, tmp_path: Path, sshd: str
) -> None:
    """A spot pod is taken away (its processes killed); another pod with the same volume continues the same run."""
    source = (
        "import pathlib, time\npathlib.Path('shards').mkdir(exist_ok=True)\n"
        "for i in range(4):\n"
        "    if not pathlib.Path(f'shards/{i}').exists():\n"
        "        print('shard', i, flush=True)\n        pathlib.Path(f'shards/{i}').write_text('x')\n"
        "    if i == 1 and not pathlib.Path('taken').exists():\n"
        "        pathlib.Path('taken').touch()\n        time.sleep(60)\n"
        "pathlib.Path('out').write_text('whole')\n"
    )
    command = job_command(tmp_path, source)
    spot = PodServer(tmp_path / "spot", sshd, pod_id="spot1", api_url=api.url)
    spot.root = pod.root
    with spot:
        api.pods = {"spot1": pod_entry("spot1", spot.port, podType="INTERRUPTABLE", networkVolumeId="v")}
        client = client_for(spot, api, tmp_path)
        record = attend_to(client, command, tmp_path, is_detached=True)
        wait_for((remote(pod, record).project / "taken").exists, "the job is half-way")
    stopped, other = pod_entry("spot1", spot.port, desiredStatus="EXITED"), pod_entry("pod1", pod.port, costPerHr=2.0)
    api.pods = {"spot1": stopped, "pod1": other}
    with pytest.raises(UserError, match=r"lies on the volume of pod spot1, which is stopped; .* on another with --pod"):
        attend_to(client, command, tmp_path)
    stopped["networkVolumeId"] = "v"
    record = attend_to(client_for(pod, api, tmp_path), command, tmp_path)
    assert (record.state, record.pod_id, record.cost_per_hour) == ("fetched", "pod1", 2.0)
    assert (remote(pod, record).read("started") or {})["attempts"] == 2
    assert client.records.log_path(record.run_id).read_text() == "".join(f"shard {i}\n" for i in range(4))


def test_a_pod_without_the_volume_begins_anew_and_its_log_is_whole(
    pod: PodServer, api: ApiServer, tmp_path: Path, sshd: str
) -> None:
    source = (
        "import os, time\nname = os.environ['RUNPOD_POD_ID']\nprint(name, 'speaks', flush=True)\n"
        "time.sleep(60 if name == 'gone' else 0)\nopen('out', 'w').close()\n"
    )
    command = job_command(tmp_path, source)
    with PodServer(tmp_path / "gone", sshd, pod_id="gone", api_url=api.url) as gone:
        api.pods = {"gone": pod_entry("gone", gone.port)}
        client = client_for(gone, api, tmp_path)
        record = attend_to(client, command, tmp_path, is_detached=True)
        with client.link_to(record) as link, pytest.raises(KeyboardInterrupt):
            follow(client, record, link, stop_watching)
    api.pods = {"pod1": pod_entry("pod1", pod.port)}
    record = attend_to(client_for(pod, api, tmp_path), command, tmp_path)
    assert client.records.log_path(record.run_id).read_text() == "gone speaks\npod1 speaks\n"


def test_a_line_that_is_cut_while_the_job_is_silent_is_no_end(pod: PodServer, api: ApiServer, tmp_path: Path) -> None:
    """The client is patient from when it last heard of the pod, not from when the job last said something."""
    source = (
        "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.05)\n"
        "print('at last')\nopen('out', 'w').close()\n"
    )
    said: list[str] = []
    client = client_for(pod, api, tmp_path, patience=2.5, say=said.append)
    record = attend_to(client, job_command(tmp_path, source), tmp_path, is_detached=True)
    with client.link_to(record) as link:
        session = link.session()

        def cut_then_go() -> None:
            wait_for(lambda: client.records.load(record.run_id).last_seen != record.last_seen, "the client hears of it")
            time.sleep(2.7)  # longer than its patience
            session.close()
            wait_for(lambda: any("connection lost" in line for line in said), "the client notices")
            (remote(pod, record).project / "go").touch()

        cut = threading.Thread(target=cut_then_go)
        cut.start()
        assert follow(client, record, link, lambda piece: None)[1]["state"] == "finished"
        cut.join()
    assert client.records.log_path(record.run_id).read_text() == "at last\n"


def stop_watching(piece: str) -> None:
    """Ctrl-C at the first line."""
    raise KeyboardInterrupt


def test_a_restarted_container_at_another_address_is_found(
    pod: PodServer, api: ApiServer, tmp_path: Path, sshd: str
) -> None:
    source = "import time\nfor i in range(20):\n    print(i, flush=True)\n    time.sleep(0.1)\nopen('out', 'w')"
    command = job_command(tmp_path, source)
    first = PodServer(tmp_path / "first", sshd, pod_id="moving", api_url=api.url)
    first.start()
    api.pods = {"moving": pod_entry("moving", first.port)}
    client = client_for(first, api, tmp_path)
    record = attend_to(client, command, tmp_path, is_detached=True)
    first.stop()  # the job goes on; sshd comes back on another port
    first.port = free_port()
    with first:
        api.pods = {"moving": pod_entry("moving", first.port)}
        attend_to(client, command, tmp_path)
    assert client.records.log_path(record.run_id).read_text() == "".join(f"{i}\n" for i in range(20))


def test_a_pod_that_is_terminated_while_the_job_runs(pod: PodServer, api: ApiServer, tmp_path: Path, sshd: str) -> None:
    command = job_command(tmp_path, SLEEPY)
    doomed = PodServer(tmp_path / "doomed", sshd, pod_id="doomed", api_url=api.url)

    def show_then_end(piece: str) -> None:
        api.pods.clear()
        doomed.stop()
        doomed.end_processes()

    with doomed:
        api.pods = {"doomed": pod_entry("doomed", doomed.port)}
        client = client_for(doomed, api, tmp_path)
        record = attend_to(client, command, tmp_path, is_detached=True)
        with client.link_to(record) as link, pytest.raises(UserError, match="pod doomed: was terminated"):
            follow(client, record, link, show_then_end)
    record = client.records.latest()
    assert record.state == "interrupted" and record.exit_reason is not None
    text = report(client, record)
    assert "doomed is terminated" in text and "at least $" in text
    with pytest.raises(UserError, match="pod doomed was terminated; if it had a network volume, the command that"):
        fetch_again(client, record, argparse.Namespace())
    assert cancel(client, record)[0].state == "cancelled"
    assert cancel(client, record.updated(state="fetched"))[0].state == "fetched", "nothing is to end any more"
