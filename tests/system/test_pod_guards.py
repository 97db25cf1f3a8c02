"""Guards on a pod: there before the job, stopping the pod though nobody returns, back when they were killed."""

import os
import signal
from pathlib import Path

import pytest

from src.utils.errors import UserError
from tests.pod_api_server import ACCOUNT_KEY, POD_KEY, ApiServer, pod_entry
from tests.pod_jobs import QUICK, SLEEPY, attend_to, client_for, guarded, job_command, remote
from tests.pod_server import PodServer, holds, processes_in, wait_for

pytestmark = pytest.mark.usefixtures("fresh_api")


@pytest.mark.parametrize("choices", [{"max_hours": 8 / 3600}, {"idle_minutes": 0.1}])
def test_the_guard_stops_the_pod_with_its_own_key_though_nobody_returns(
    choices: dict[str, float], pod: PodServer, api: ApiServer, tmp_path: Path
) -> None:
    guarded(pod, api, tmp_path, SLEEPY, **choices)
    wait_for(lambda: api.calls("podStop"), "the guard stops the pod")
    assert api.calls("podStop") == [POD_KEY] and not api.calls("podTerminate")
    pod.end_processes()


def test_the_guard_is_there_before_a_client_that_dies_while_it_uploads(
    pod: PodServer, api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given again, the command tells the guard what it wants now."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("src.pod.launch.upload", die)
    with pytest.raises(KeyboardInterrupt):
        guarded(pod, api, tmp_path, QUICK, idle_minutes=0.2, when_done="terminate")
    with pytest.raises(KeyboardInterrupt):
        guarded(pod, api, tmp_path, QUICK, idle_minutes=0.01, when_done="keep")
    record = client_for(pod, api, tmp_path).records.latest()
    assert (remote(pod, record).read("guard.json") or {})["when_done"] == record.when_done == "keep"
    wait_for(lambda: api.calls("podStop"), "the guard stops the pod")
    assert api.calls("podStop") == [POD_KEY]


def test_the_guard_stops_the_pod_when_the_job_is_done_and_fetched(
    pod: PodServer, api: ApiServer, tmp_path: Path
) -> None:
    """The guard is held up meanwhile: it looks every few seconds, and could be there before the client."""
    record = guarded(pod, api, tmp_path, QUICK, when_done="terminate", idle_minutes=0.1)
    (guard,) = [pid for pid in processes_in(pod.folder) if holds(pid, f"{record.run_id}.guard")]
    os.kill(guard, signal.SIGSTOP)
    client = client_for(pod, api, tmp_path, is_guarded=True)
    assert attend_to(client, job_command(tmp_path, QUICK), tmp_path).state == "fetched"
    assert api.calls("podTerminate") == [ACCOUNT_KEY], "the client does it at once"
    api.pods["pod1"] = pod_entry("pod1", pod.port)
    os.kill(guard, signal.SIGCONT)
    wait_for(lambda: POD_KEY in api.calls("podTerminate"), "and so does the guard, if it had not")


def test_a_guard_that_was_killed_comes_back_with_the_client(pod: PodServer, api: ApiServer, tmp_path: Path) -> None:
    record = guarded(pod, api, tmp_path, SLEEPY)
    before = remote(pod, record).read("guard.json") or {}
    (guard,) = [pid for pid in processes_in(pod.folder) if holds(pid, f"{record.run_id}.guard")]
    os.kill(guard, signal.SIGKILL)
    wait_for(lambda: not holds(guard, f"{record.run_id}.guard"), "the guard is gone")
    assert guarded(pod, api, tmp_path, SLEEPY).run_id == record.run_id
    assert [pid for pid in processes_in(pod.folder) if holds(pid, f"{record.run_id}.guard")]
    after = remote(pod, record).read("guard.json") or {}
    assert after["since"] > before["since"] and after["deadline"] == before["deadline"]
    assert (remote(pod, record).read("started") or {})["attempts"] == 1
    pod.end_processes()


def test_without_a_key_of_its_own_no_job_starts(api: ApiServer, tmp_path: Path, sshd: str) -> None:
    with PodServer(tmp_path / "bare", sshd, pod_id="bare") as bare:
        api.pods = {"bare": pod_entry("bare", bare.port)}
        with pytest.raises(UserError, match=r"no RUNPOD_API_KEY\); .*--no-guard"):
            guarded(bare, api, tmp_path, QUICK)
        record = client_for(bare, api, tmp_path).records.latest()
        assert not (remote(bare, record).path / "started").exists() and not (bare.root / "store").exists()
        said: list[str] = []
        attend_to(client_for(bare, api, tmp_path, say=said.append), job_command(tmp_path, QUICK), tmp_path)
        assert "pod bare: no guard: it costs $0.500 an hour until it is stopped" in said
