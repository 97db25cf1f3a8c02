"""Runs on a pod, from the command to the results: failing jobs, cancelled ones, unfit pods, secrets."""

import argparse
import dataclasses
import hashlib
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from src.pod.launch import open_run
from src.pod.persona_data_runner import attend, end_run, fetch_again
from src.pod.remote.layout import state_of
from src.pod.watch import cancel, conclude, report
from src.utils.errors import UserError
from tests.pod_api_server import ACCOUNT_KEY, POD_KEY, ApiServer, pod_entry
from tests.pod_jobs import HUB_TOKEN, SLEEPY, attend_to, client_for, job_command, remote
from tests.pod_server import PASSPHRASE, PodServer, make_key, processes_in, wait_for

pytestmark = pytest.mark.usefixtures("fresh_api")
QUICK = "import pathlib\npathlib.Path('out').mkdir()\npathlib.Path('out/a.txt').write_text('a')\nprint('made it')\n"


def test_a_second_run_uploads_nothing_and_a_finished_one_is_not_attached_to(
    pod: PodServer, api: ApiServer, tmp_path: Path
) -> None:
    said: list[str] = []
    client = client_for(pod, api, tmp_path, say=said.append)
    command = job_command(tmp_path, QUICK)
    first, second = attend_to(client, command, tmp_path), attend_to(client, command, tmp_path)
    assert first.run_id != second.run_id
    uploads = [line for line in said if line.startswith("uploaded")]
    assert uploads[1] == "uploaded 0 of 1 files, 0.0 MB"
    assert (remote(pod, second).project / "out/a.txt").read_text() == "a"


def test_a_failed_job_says_why_and_the_same_command_tries_again_in_its_folder(
    pod: PodServer, api: ApiServer, tmp_path: Path
) -> None:
    source = (
        "import os, pathlib, sys\nprint('try', flush=True)\npathlib.Path('out').mkdir(exist_ok=True)\n"
        "if not os.path.exists('out/half'):\n    open('out/half', 'w').close()\n    sys.exit('half-way: it broke')\n"
    )
    client = client_for(pod, api, tmp_path)
    command = job_command(tmp_path, source)
    with pytest.raises(UserError, match="exit code 1; last line: half-way: it broke"):
        attend_to(client, command, tmp_path)
    failed = client.records.latest()
    assert (failed.state, failed.exit_code, failed.round) == ("failed", 1, 1)
    again = attend_to(client, command, tmp_path)
    assert (again.run_id, again.state, again.round) == (failed.run_id, "fetched", 2)
    assert client.records.log_path(again.run_id).read_text().count("try\n") == 2


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import os, signal\nprint('big')\nos.kill(os.getpid(), 9)", "killed by signal 9, perhaps for want of memory"),
        (
            "raise RuntimeError('CUDA out of memory. Tried to allocate')",
            "GPU out of memory: exit code 1; lower --batch",
        ),
        ("raise OSError(28, 'No space left on device')", "disk full on the pod: exit code 1; free some space"),
    ],
)
def test_how_a_job_ended(source: str, reason: str, pod: PodServer, api: ApiServer, tmp_path: Path) -> None:
    """A pod without guard that was to be terminated is stopped: the run's folder stays, and costs next to nothing."""
    with pytest.raises(UserError) as caught:
        attend_to(client_for(pod, api, tmp_path, when_done="terminate"), job_command(tmp_path, source), tmp_path)
    assert reason in caught.value.message and "\n" not in caught.value.message
    assert api.calls("podStop") == [ACCOUNT_KEY] and not api.calls("podTerminate")


def test_a_pod_whose_guard_is_there_is_left_to_it_for_another_try(
    pod: PodServer, api: ApiServer, tmp_path: Path
) -> None:
    said: list[str] = []
    client = client_for(pod, api, tmp_path, when_done="stop", is_guarded=True, say=said.append)
    with pytest.raises(UserError, match="exit code 3"):
        attend_to(client, job_command(tmp_path, "raise SystemExit(3)"), tmp_path)
    assert not api.calls("podStop")
    failed = client.records.latest()
    own = argparse.Namespace(results_dir=tmp_path / "results", force=False)
    with pytest.raises(UserError, match="is failed on the pod, without results; the command that started it makes"):
        fetch_again(client, failed, own)
    assert end_run(client, failed, own) == 0 and client.records.latest().state == "cancelled", "it is given up"
    assert api.calls("podStop") == [ACCOUNT_KEY] and state_of(remote(pod, failed))["state"] == "cancelled"
    client.release_pod(client.records.latest(), [])
    assert said[-1] == "pod pod1: stopped already" and len(api.calls("podStop")) == 1
    pod.end_processes()


def test_results_that_cannot_be_taken_keep_no_pod_running(pod: PodServer, api: ApiServer, tmp_path: Path) -> None:
    client = client_for(pod, api, tmp_path, when_done="stop")
    with pytest.raises(UserError, match="left none of its outputs"):
        attend_to(client, job_command(tmp_path, "print('nothing')"), tmp_path)
    assert api.calls("podStop") == [ACCOUNT_KEY] and client.records.latest().state == "finished"


def test_a_pod_goes_on_for_another_run_that_is_on_it(pod: PodServer, api: ApiServer, tmp_path: Path) -> None:
    said: list[str] = []
    client = client_for(pod, api, tmp_path, when_done="stop", say=said.append)
    other = attend_to(client, job_command(tmp_path / "other", SLEEPY), tmp_path, is_detached=True)
    attend_to(client, job_command(tmp_path, QUICK, options=["mine"]), tmp_path)
    assert not api.calls("podStop")
    assert f"pod pod1: goes on, and on costing, for {other.run_id}; --cancel RUN gives one up" in said
    own = argparse.Namespace()
    assert end_run(client, client.records.load(other.run_id), own) == 0
    assert api.calls("podStop") == [ACCOUNT_KEY], "cancelled, the last of them"


def test_cancel_ends_the_job_and_its_children(pod: PodServer, api: ApiServer, tmp_path: Path) -> None:
    client = client_for(pod, api, tmp_path)
    stubborn = (
        "import signal, subprocess, time\nsubprocess.Popen(['sleep', '71'])\nprint('up', flush=True)\ntime.sleep(60)\n"
    )
    record = attend_to(client, job_command(tmp_path, stubborn), tmp_path, is_detached=True)
    log = remote(pod, record).log
    wait_for(lambda: log.exists() and log.read_text() == "up\n", "the job runs")
    text = report(client, record)
    assert "on the pod: running, WITHOUT A COST GUARD" in text and "$0.500 an hour" in text
    there = remote(pod, record)
    there.write("guard.json", {"when_done": "keep"})
    record, _ = cancel(client_for(pod, api, tmp_path, when_done="stop"), record)
    assert record.when_done == "stop" and there.read("guard.json") == {"when_done": "stop"}, "a guard is told"
    assert record.state == "cancelled" and (remote(pod, record).read("exit.json") or {})["cancelled"]
    on_pod = processes_in(pod.folder)
    wait_for(lambda: not [pid for pid in on_pod if command_line(pid).split() == ["sleep", "71"]], "its child ends")
    assert cancel(client, record)[0].state == "cancelled"


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_a_second_client_does_not_write_the_same_log(pod: PodServer, api: ApiServer, tmp_path: Path) -> None:
    client = client_for(pod, api, tmp_path)
    record = attend_to(client, job_command(tmp_path, QUICK), tmp_path)
    watched = pytest.raises(UserError, match="another client on this machine watches it")
    with client.alone_with(record.run_id), watched, client.alone_with(record.run_id):
        pass


def test_what_makes_a_pod_unfit_is_said_before_anything_starts(
    pod: PodServer, api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = job_command(tmp_path, QUICK)
    api.pods = {"pod1": pod_entry("pod1", pod.port, gpuCount=1)}
    with pytest.raises(UserError, match="rented with 1 x RTX 4090 and shows none"):
        attend_to(client_for(pod, api, tmp_path), command, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"and the project needs 99.0; name another"):
        patch.setattr("src.pod.launch.OLDEST_PYTHON", (99, 0))
        attend_to(client_for(pod, api, tmp_path), dataclasses.replace(command, options=["new"]), tmp_path)
    api.pods = {"pod1": pod_entry("pod1", pod.port)}
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"GiB free at .*, and the run needs 4096.0"):
        patch.setattr("src.pod.launch.SPARE_BYTES", 1 << 42)
        attend_to(client_for(pod, api, tmp_path), dataclasses.replace(command, options=["other"]), tmp_path)


def test_no_secret_is_left_or_shown(
    pod: PodServer, api: ApiServer, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """The job has the token; no file on either side, no process list and no output has any secret."""
    key = make_key(tmp_path / "locked", PASSPHRASE)
    pod.authorize(key.with_suffix(".pub"))
    source = (
        "import hashlib, os, pathlib, time\n"
        "print(hashlib.sha256(os.environ['HF_TOKEN'].encode()).hexdigest(), flush=True)\n"
        "pathlib.Path('out').write_text('x')\ntime.sleep(1)\n"
    )
    said: list[str] = []
    client = client_for(
        pod, api, tmp_path, is_guarded=True, key=key, passphrase=PASSPHRASE, hub_token=HUB_TOKEN, say=said.append
    )
    command = job_command(tmp_path, source)
    record = attend_to(client, command, tmp_path, is_detached=True)
    listed = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    record = attend_to(client, command, tmp_path)
    assert hashlib.sha256(HUB_TOKEN.encode()).hexdigest() in client.records.log_path(record.run_id).read_text()
    secrets = (ACCOUNT_KEY, POD_KEY, PASSPHRASE, HUB_TOKEN, key.read_text().splitlines()[2])
    shown = capfd.readouterr()
    everything = [listed, shown.out, shown.err, "\n".join(said), repr(client)]
    for folder in (tmp_path / "results", pod.root / "runs", pod.root / "bin", pod.folder / "tmp"):
        everything += [path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file()]
    assert not [secret for secret in secrets if any(secret in text for text in everything)]


def test_attaching_and_fetching_again_need_no_command(pod: PodServer, api: ApiServer, tmp_path: Path) -> None:
    source = QUICK + "import time\ntime.sleep(0.5)\nprint('late')\n"
    client = client_for(pod, api, tmp_path)
    record = attend_to(client, job_command(tmp_path, source), tmp_path, is_detached=True)
    own = argparse.Namespace(detach=False, results_dir=tmp_path / "results", force=False)
    assert attend(client, record, own, None) == 0
    assert client.records.log_path(record.run_id).read_text() == "made it\nlate\n"
    fetched = client.records.staging_path(record.run_id) / "out/a.txt"
    fetched.write_text("b")
    assert fetch_again(client, client.records.load(record.run_id), own) == 0 and fetched.read_text() == "a"
    (remote(pod, record).project / "out/model.pt").write_bytes(b"what torch.load would run")
    with pytest.raises(UserError, match=r"a pod has no business sending a \.pt file"):
        fetch_again(client, client.records.load(record.run_id), own)


def test_a_run_that_goes_on_is_not_fetched_and_what_follows_it_is_decided_anew(
    pod: PodServer, api: ApiServer, tmp_path: Path
) -> None:
    source = QUICK + "import time\nwhile not pathlib.Path('go').exists(): time.sleep(0.05)\n"
    client = client_for(pod, api, tmp_path)
    record = attend_to(client, job_command(tmp_path, source), tmp_path, is_detached=True)
    there = remote(pod, record)
    wait_for((there.project / "out/a.txt").exists, "the first of its outputs")
    own = argparse.Namespace(detach=False, results_dir=tmp_path / "results", force=False)
    with pytest.raises(UserError, match=f"is running, .*--attach {record.run_id} waits"):
        fetch_again(client, record, own)
    assert client.records.load(record.run_id).state == "running" and not (there.path / "fetched").exists()
    (there.project / "go").touch()
    there.write("guard.json", {"when_done": "keep"})
    assert attend(client_for(pod, api, tmp_path, when_done="stop"), record, own, None) == 0
    assert there.read("guard.json") == {"when_done": "stop"}, "a guard is told"
    assert api.calls("podStop") == [ACCOUNT_KEY] and (there.path / "fetched").exists()


def test_results_outlive_the_pod_on_its_network_volume(pod: PodServer, api: ApiServer, tmp_path: Path) -> None:
    client = client_for(pod, api, tmp_path)
    command = job_command(tmp_path, QUICK)
    record = attend_to(client, command, tmp_path, is_detached=True)
    wait_for((remote(pod, record).path / "exit.json").exists, "the job ends")
    client.records.save(record.updated(state="finished", pod_id="terminated"))
    again = attend_to(client, command, tmp_path)
    assert (again.run_id, again.state, again.pod_id) == (record.run_id, "fetched", "pod1")
    assert (remote(pod, record).read("started") or {})["attempts"] == 1


def test_the_cost_of_a_run_that_nobody_watched_ends_with_its_pod(
    pod: PodServer, api: ApiServer, tmp_path: Path
) -> None:
    client = client_for(pod, api, tmp_path)
    record = open_run(client, job_command(tmp_path, QUICK))
    began = datetime(2026, 5, 4, 10, tzinfo=UTC)
    record = record.updated(state="running", started=began, last_seen=began)
    api.pods["pod1"] |= {
        "desiredStatus": "EXITED",
        "lastStatusChange": "Exited by user: Mon May 04 2026 13:00:00 GMT+0000 (Coordinated Universal Time)",
    }
    assert "$0.500 an hour, $1.50 so far" in report(client, record)
    exit_file = {"code": 0, "at": (began + timedelta(hours=1)).timestamp()}
    done = conclude(client, record, {"state": "finished", "exit": exit_file})
    assert done.cost_so_far == 0.5, "found a day later, on a pod that was started for it"
    api.pods["pod1"]["lastStatusChange"] = "who knows"
    assert "$0.500 an hour, at least $0.00 so far" in report(client, record)


def test_the_same_command_opens_one_run(pod: PodServer, api: ApiServer, tmp_path: Path) -> None:
    client = client_for(pod, api, tmp_path)
    command = job_command(tmp_path, QUICK)
    first = open_run(client, command)
    assert open_run(client, command).run_id == first.run_id
    other = dataclasses.replace(command, options=["--limit", "2"])
    api.delay = 0.2  # two clients at the same time
    try:
        with ThreadPoolExecutor() as pool:
            opened = [pool.submit(open_run, client_for(pod, api, tmp_path), other) for _ in range(2)]
        assert len({one.result().run_id for one in opened}) == 1
    finally:
        api.delay = 0.0
    other = dataclasses.replace(command, options=["--limit", "3"])
    assert open_run(client, other).run_id != first.run_id
    api.pods["pod1"]["desiredStatus"] = "EXITED"
    for meant in (command, dataclasses.replace(command, options=["new"])):
        with pytest.raises(UserError, match="pod pod1: is stopped; start it in the console"):
            open_run(client_for(pod, api, tmp_path, pod_id="pod1"), meant)
    assert len(client.records.all()) == 3, "no run is opened on a pod that does not run"
    record = client.records.load(first.run_id)
    assert (record.pod_id, record.state, record.cost_per_hour) == ("pod1", "preparing", 0.5)
