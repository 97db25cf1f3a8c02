"""When the guard on a pod stops it, what must never end the guard, and whose key it uses."""

import fcntl
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from src.pod.remote.environment import find_credentials, pod_name, read_environment
from src.pod.remote.guard import (
    Activity,
    Orders,
    call_api,
    change_orders,
    decide,
    orders_of,
    start_guard,
)
from src.pod.remote.layout import RunFolder, state_of, unfetched_others
from src.pod.remote.progress import gpu_memory
from src.pod.remote.supervisor import cancel, start
from tests.pod_api_server import POD_KEY, ApiServer, pod_entry
from tests.pod_jobs import empty_run, job_spec
from tests.pod_server import wait_for


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    return empty_run(tmp_path, monkeypatch)


ORDERS = Orders(deadline=1e12, idle_seconds=100.0, when_done="stop", stop="podStop")


class Fixed:
    """An `Activity` of so many idle seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def idle_seconds(self, now: float) -> float:
        return self._seconds


def decision(run: RunFolder, idle: float = 0.0, **fields) -> str | None:
    orders = Orders(**{**ORDERS.__dict__, **fields})
    return decide(run, orders, Fixed(idle), time.time())[0]  # ty: ignore[invalid-argument-type]


def test_when_the_guard_stops_the_pod(run: RunFolder) -> None:
    lock = run.lock()
    assert lock is not None
    assert decision(run) is None and decision(run, idle=99) is None
    assert decision(run, idle=101) == "podStop", "a job that hangs"
    assert decision(run, deadline=time.time() - 1) == "podStop"
    assert decision(run, deadline=time.time() - 1, stop="podTerminate") == "podTerminate"
    os.close(lock)
    run.write("exit.json", {"code": 0})
    assert decision(run) is None, "a client has time to fetch"
    assert decision(run, idle=101, when_done="terminate") == "podStop", "unfetched results are not thrown away"
    run.touch("fetched")
    assert decision(run) == "podStop"
    assert decision(run, when_done="terminate") == "podTerminate"
    assert decision(run, when_done="keep") is None and decision(run, idle=101, when_done="keep") == "podStop"


def done(run: RunFolder) -> RunFolder:
    run.write("started", {})
    run.write("exit.json", {"code": 0})
    return run


def guarded(run: RunFolder, **fields) -> int:
    """The lock of a run's guard, as if it were there with these orders."""
    run.write("guard.json", {**ORDERS.__dict__, **fields, "pod": pod_name()})
    lock = run.lock("guard")
    assert lock is not None
    return lock


def test_a_guard_waits_for_the_job_of_another_run_but_not_beyond_the_hours(run: RunFolder) -> None:
    done(run).touch("fetched")
    other = RunFolder(run.root, "run2")
    lock = other.lock()
    assert lock is not None
    assert decision(run) is None and decision(run, idle=99) is None
    assert decision(run, idle=101) == "podStop", "nothing happens in the other either"
    assert decision(run, deadline=0) == "podStop", "the other has no guard"
    guard = guarded(other, idle_seconds=200.0)
    assert decision(run, deadline=0) is None and decision(run, deadline=0, when_done="keep") is None
    assert decision(run, idle=199) is None and decision(run, idle=201) == "podStop"
    os.close(lock)
    os.close(guard)
    assert decision(run) == "podStop"


def test_a_guard_waits_for_a_run_that_is_brought_or_not_yet_fetched(run: RunFolder) -> None:
    """Whatever the client of its own run wanted to follow: the other's results would go with the pod."""
    done(run).touch("fetched")
    other = RunFolder(run.root, "run2")
    guard = guarded(other, when_done="keep")
    assert decision(run, when_done="terminate") is None and decision(run) is None, "it uploads"
    assert decision(run, deadline=0) is None and state_of(run)["others"] == ["run2"]
    done(other)
    assert decision(run, when_done="terminate") is None and decision(run) is None, "it is to be fetched"
    assert decision(run, deadline=0) is None
    other.write("guard.json", {**ORDERS.__dict__, "deadline": 0, "pod": pod_name()})
    assert decision(run, deadline=0) == "podStop", "neither waits for the other for ever"
    assert decide(other, replace(ORDERS, deadline=0), Fixed(0), time.time())[0] == "podStop"  # ty: ignore[invalid-argument-type]
    os.close(guard)
    assert decision(run) == "podStop" and not state_of(run)["others"], "nobody fetches it"
    assert decision(run, when_done="terminate") == "podStop", "stopped, as it would be lost"
    other.contact()
    assert decision(run) is None and state_of(run)["others"] == ["run2"], "a client without a guard fetches it"
    other.write("exit.json", {"code": 1})
    assert not state_of(run)["others"], "the client of a run that failed is gone"
    other.touch("fetched")
    assert decision(run, when_done="terminate") == "podTerminate" and not state_of(run)["others"]


def test_work_that_only_the_volume_holds_is_known(run: RunFolder) -> None:
    for name in ("interrupted", "failed", "fetched", "cancelled", "placed"):
        RunFolder(run.root, name).touch("placed.json" if name == "placed" else "started")
    RunFolder(run.root, "failed").write("exit.json", {"code": 1})
    for name in ("fetched", "cancelled"):
        RunFolder(run.root, name).touch(name)
    done(run)
    assert unfetched_others(run) == ["failed", "interrupted"]


def test_two_runs_that_are_done_and_left_alone_stop_the_pod_after_the_grace(run: RunFolder) -> None:
    other = done(RunFolder(run.root, "run2"))
    guard = guarded(other, idle_seconds=3600.0)
    assert decision(done(run), idle=599, idle_seconds=3600.0) is None
    assert decision(run, idle=601, idle_seconds=3600.0) == "podStop"
    lock = other.lock()
    assert lock is not None
    assert decision(run, idle=601, idle_seconds=3600.0) is None, "the other has begun again, and is silent"
    os.close(lock)
    os.close(guard)


def test_an_interrupted_job_is_over_unless_somebody_comes_back_to_it(run: RunFolder) -> None:
    """Its container was started again, or its supervisor killed; what it has done is on the volume, and stays there."""
    run.write("started", {})
    assert decision(run, idle=599, idle_seconds=3600.0) is None and run.is_interrupted
    assert decision(run, idle=601, idle_seconds=3600.0, when_done="terminate") == "podStop"
    assert decision(run, idle=601, idle_seconds=3600.0, when_done="keep") is None
    lock = run.lock()
    assert lock is not None and not run.is_interrupted
    assert decision(run, idle=601, idle_seconds=3600.0) is None, "it has begun again, and is silent"
    os.close(lock)


def test_a_guard_that_is_there_takes_new_orders(run: RunFolder) -> None:
    """A first client went away while it uploaded; the next one wants something else."""
    guard = guarded(run, deadline=time.time() + 60, when_done="terminate")
    new = {"max_seconds": 7200.0, "idle_seconds": 50.0, "when_done": "stop", "stop": "podStop"}
    start_guard(run, dict(new))
    told = orders_of(run)
    assert told is not None and (told.when_done, told.idle_seconds) == ("stop", 50.0)
    assert told.deadline == pytest.approx(time.time() + 7200, abs=30)
    lock = run.lock()
    assert lock is not None
    start_guard(run, {**new, "max_seconds": 9000.0})
    assert orders_of(run) == told, "the hours of a job that is running go on"
    os.close(lock)
    os.close(guard)
    change_orders(run, "keep")
    assert orders_of(run) == replace(told, when_done="keep")
    run.write("guard.json", {**told.__dict__, "pod": "another on the same volume"})
    assert orders_of(run) is None


def test_the_guard_looks_at_its_orders_each_time(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with ApiServer(pods={"p": pod_entry("p", 1)}) as api:
        for name, value in (("RUNPOD_API_KEY", POD_KEY), ("RUNPOD_POD_ID", "p"), ("RUNPOD_API_BASE_URL", api.url)):
            monkeypatch.setenv(name, value)
        orders = {"max_seconds": 3600.0, "idle_seconds": 1e9, "when_done": "keep", "stop": "podStop"}
        start_guard(run, {**orders, "poll_seconds": 0.05})
        assert not api.calls("podStop")
        start_guard(run, {**orders, "max_seconds": 0.0})
        wait_for(lambda: api.calls("podStop"), "the guard stops the pod")


def test_two_jobs_that_hang_are_an_idle_pod_and_one_that_works_is_not(run: RunFolder) -> None:
    other = RunFolder(run.root, "run2")
    other.project.mkdir(parents=True)
    for one in (run, other):
        start(one, job_spec("import time; time.sleep(60)"), {})
        wait_for(lambda one=one: one.read("pid"), "the job runs")
    activity, now = Activity(run), time.time()
    activity.idle_seconds(now)
    time.sleep(0.5)  # until both have started Python
    activity.idle_seconds(now + 10)
    assert activity.idle_seconds(now + 200) >= 190
    assert decide(run, ORDERS, activity, now + 300)[0] == "podStop"
    other.log.write_text("a line")
    assert activity.idle_seconds(now + 310) == 0
    cancel(run)
    cancel(other)


def test_short_limits_are_kept_and_long_ones_looked_at_every_few_seconds() -> None:
    assert ORDERS.pause(0.0) == 5.0 and replace(ORDERS, idle_seconds=2.0).pause(0.0) == 0.5
    assert replace(ORDERS, deadline=3.0).pause(2.5) == 0.5
    assert replace(ORDERS, deadline=3.0).pause(9.0) == 5.0, "over, and left to another's guard"


def test_who_looks_at_a_lock_is_not_taken_for_its_holder(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A status that is asked for just when a job, or its guard, is to start."""
    looking = os.open(run.lock_path("job"), os.O_RDWR | os.O_CREAT)
    fcntl.flock(looking, fcntl.LOCK_SH)
    assert not run.is_locked()
    with monkeypatch.context() as patch:
        patch.setattr("src.pod.remote.layout.time.sleep", lambda seconds: os.close(looking))
        lock = run.lock()
    assert lock is not None and run.is_locked() and run.lock() is None
    os.close(lock)


def test_a_guard_that_cannot_look_or_write_its_log_still_counts_the_hours(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ApiServer(pods={"p": pod_entry("p", 1)}) as api:
        for name, value in (("RUNPOD_API_KEY", POD_KEY), ("RUNPOD_POD_ID", "p"), ("RUNPOD_API_BASE_URL", api.url)):
            monkeypatch.setenv(name, value)
        (run.path / "guard.log").mkdir(parents=True)
        lock = run.lock()
        assert lock is not None
        run.write("pid", {"no": "group"})
        start_guard(run, {"max_seconds": 2.0, "idle_seconds": 100.0, "when_done": "keep", "stop": "podStop"})
        wait_for(lambda: api.calls("podStop"), "the guard stops the pod")
        os.close(lock)


WATCH = """
import pathlib, sys
from src.pod.remote.guard import Orders, watch
from src.pod.remote.layout import RunFolder
run = RunFolder(pathlib.Path(sys.argv[1]), "run1")
run.contact()
watch(run, Orders(deadline=0.0, idle_seconds=1e9, when_done="keep", stop="podStop", poll_seconds=0.0))
"""


def test_on_a_full_disk_the_guard_still_stops_the_pod(run: RunFolder) -> None:
    """No byte can be written there; an API that answers nonsense first is asked again."""
    with ApiServer(pods={"p": pod_entry("p", 1)}) as api, Path("/dev/full").open("wb") as full:
        api.failures = [(200, "null", {})]
        subprocess.run(
            [sys.executable, "-c", WATCH, str(run.root)],
            env={**os.environ, "RUNPOD_API_KEY": POD_KEY, "RUNPOD_POD_ID": "p", "RUNPOD_API_BASE_URL": api.url},
            stdout=full,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
            check=True,
        )
        assert api.calls("podStop") == [POD_KEY] * 2 and api.pods["p"]["desiredStatus"] == "EXITED"


@pytest.mark.parametrize(
    ("body", "headers"), [("null", {}), ('{"errors": ["no"]}', {}), ("<html>", {}), ("{", {"Content-Length": "99"})]
)
def test_no_answer_of_the_api_ends_the_guard(
    body: str, headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ApiServer(pods={"p": pod_entry("p", 1)}) as api:
        monkeypatch.setenv("RUNPOD_API_KEY", POD_KEY)
        monkeypatch.setenv("RUNPOD_POD_ID", "p")
        monkeypatch.setenv("RUNPOD_API_BASE_URL", api.url)
        api.failures = [(200, body, headers)]
        assert not call_api("podStop") and call_api("podStop")


def test_a_gpu_that_does_not_tell_its_load_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '1024, 81559, [N/A]'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert gpu_memory() == [{"used_mib": 1024.0, "total_mib": 81559.0, "percent": 0.0}]
    program.write_text("#!/bin/sh\necho 'No devices were found'\n")
    assert gpu_memory() == []


def test_activity_is_a_client_a_line_or_work(run: RunFolder) -> None:
    activity = Activity(run)
    now = time.time()
    assert activity.idle_seconds(now + 10) == 0, "looks for the first time"
    assert activity.idle_seconds(now + 20) == 10
    run.contact()
    assert activity.idle_seconds(now + 30) == 0
    run.log.write_text("a line")
    assert activity.idle_seconds(now + 40) == 0 and activity.idle_seconds(now + 50) == 10
    name = (
        "import ctypes\nctypes.CDLL(None).prctl(15, b'caf\\xc3')"  # PR_SET_NAME; cut within a character, as names are
    )
    start(run, job_spec(f"{name}\nfor _ in iter(int, 1): pass"), {})  # says nothing, works
    wait_for(lambda: run.read("pid"), "the job runs")
    wait_for(lambda: activity.idle_seconds(now + 60) == 0, "its CPU time is seen")
    cancel(run)
    RunFolder(run.root, "other").contact()
    assert activity.idle_seconds(now + 70) == 0, "a client that uploads for another run"


def test_credentials_come_from_the_containers_environment_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported = 'export RUNPOD_API_KEY="pod key"\nexport OTHER=x\n'  # pragma: allowlist secret
    (tmp_path / "rp").write_text(f"{exported}export RUNPOD_POD_ID=abc\n")
    (tmp_path / "environ").write_bytes(b"RUNPOD_POD_ID=zero\0RUNPOD_API_BASE_URL=http://x\0")
    assert read_environment(tmp_path / "rp")["RUNPOD_API_KEY"] == "pod key"  # pragma: allowlist secret
    assert read_environment(tmp_path / "environ")["RUNPOD_POD_ID"] == "zero"
    assert read_environment(tmp_path / "none") == {}
    monkeypatch.setattr(
        "src.pod.remote.environment.ENVIRONMENT_FILES", (str(tmp_path / "rp"), str(tmp_path / "environ"))
    )
    for name in ("RUNPOD_API_KEY", "RUNPOD_POD_ID", "RUNPOD_API_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    assert find_credentials() == {
        "RUNPOD_API_KEY": "pod key",  # pragma: allowlist secret
        "RUNPOD_POD_ID": "abc",
        "RUNPOD_API_BASE_URL": "http://x",
    }
    assert pod_name() == "abc", "whatever a session is told of it"
