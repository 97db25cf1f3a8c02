"""What the client keeps of a run: record, money, log, progress; and what it does with the pod at the end."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from src.pod.api import RunPodApi
from src.pod.client import Choices, PodClient
from src.pod.run_record import RunRecord, RunRecords, append_log, log_size, new_run_id, now, progress_line, progress_of
from src.pod.settings import PodSettings
from src.utils.errors import UserError
from tests.pod_api_server import ACCOUNT_KEY, ApiServer, pod_entry
from tests.pod_jobs import run_record


def test_a_record_comes_back_and_names_its_run(tmp_path: Path) -> None:
    records = RunRecords(tmp_path)
    first = records.save(run_record())
    assert records.load("collect-1") == first
    assert records.unfinished("collect", "s.py", ["--limit", "3"], None) == first
    assert records.unfinished("collect", "s.py", ["--limit", "4"], None) is None
    records.save(first.updated(state="fetched"))
    assert records.unfinished("collect", "s.py", ["--limit", "3"], None) is None
    (tmp_path / "digests.json").write_text("{}")
    assert [one.run_id for one in records.all()] == ["collect-1"]
    with pytest.raises(UserError, match=r"run nothing: is unknown in .*known: collect-1"):
        records.load("nothing")
    with pytest.raises(UserError, match="no run yet"):
        RunRecords(tmp_path / "empty").latest()
    assert len({new_run_id("collect") for _ in range(20)}) == 20


def test_money_is_hours_by_price() -> None:
    began = now().replace(year=2026, month=5, day=4, hour=10, minute=0, second=0, microsecond=0)
    one = run_record(started=began, cost_per_hour=2.0)
    assert one.updated(last_seen=began.replace(hour=11, minute=30)).cost_so_far == 3.0
    assert one.updated(last_seen=began.replace(hour=15), ended=began.replace(hour=12)).cost_so_far == 4.0
    assert run_record(cost_per_hour=2.0).updated(last_seen=began).cost_so_far == 0.0


def test_the_time_in_which_no_pod_works_for_a_run_costs_nothing() -> None:
    began = now() - timedelta(hours=10)
    first = run_record(started=began, cost_per_hour=2.0).updated(last_seen=began + timedelta(hours=1))
    moved = first.charged_anew(pod_id="other", cost_per_hour=5.0)
    assert moved.cost_so_far == first.cost_so_far == 2.0 and moved.started == began
    assert moved.updated(last_seen=now() + timedelta(hours=1)).cost_so_far == pytest.approx(7.0, abs=0.01)
    assert run_record(cost_per_hour=2.0).charged_anew().charged_from is None, "nothing has begun"


def test_the_local_log_is_its_own_offset(tmp_path: Path) -> None:
    path = tmp_path / "runs/a.log"
    assert log_size(path) == 0
    assert append_log(path, b"one\n") == 4 and append_log(path, "zwei ü".encode()) == 11 == log_size(path)
    assert path.read_bytes() == "one\nzwei ü".encode()


def test_progress_in_one_line() -> None:
    gpu = {"used_mib": 10240.0, "total_mib": 81920.0, "percent": 97.0}
    status = {"done": 3, "total": 9, "unit": "answer", "tokens_per_second": 812.4, "gpus": [gpu], "eta_seconds": 61}
    assert progress_line(status) == "3/9 answer, 812 tokens/s, GPU 10.0/80 GiB, 1:01 left"
    assert progress_line({}) == ""


def test_a_pods_word_on_its_progress_is_taken_as_far_as_it_is_one() -> None:
    gpu = {"used_mib": 1.0, "total_mib": 2.0, "percent": 3.0}
    assert progress_of({"done": 3, "total": 9, "unit": "answer", "gpus": [gpu], "other": {}}) == {
        "done": 3,
        "total": 9,
        "unit": "answer",
        "gpus": [gpu],
    }
    for status in (None, [1], "x", {"done": "many"}, {"gpus": [{"used_mib": []}]}):
        assert progress_of(status) == {} and progress_line(progress_of(status)) == ""


def test_a_record_holds_no_secret_by_its_fields() -> None:
    assert not [name for name in RunRecord.model_fields if any(word in name for word in ("key", "token", "pass"))]
    assert json.loads(run_record().model_dump_json())["run_id"] == "collect-1"


@pytest.mark.parametrize(
    ("when_done", "others", "unfetched", "mutation", "said"),
    [
        ("terminate", [], [], "podTerminate", "pod p: terminated"),
        ("terminate", [], ["b"], "podStop", "pod p: stopped, not terminated: b was not fetched; its volume stays"),
        ("stop", [], ["b"], "podStop", "pod p: stopped; its volume stays"),
        ("stop", ["b"], [], None, "pod p: goes on, and on costing, for b"),
    ],
)
def test_what_is_not_fetched_is_not_terminated(
    when_done: str, others: list[str], unfetched: list[str], mutation: str | None, said: str, tmp_path: Path
) -> None:
    told: list[str] = []
    with ApiServer(pods={"p": pod_entry("p", 1)}) as api:
        settings = PodSettings(ACCOUNT_KEY, api_url=api.url)
        client = PodClient(RunPodApi(api.url, ACCOUNT_KEY), settings, RunRecords(tmp_path), Choices(), told.append)
        client.release_pod(run_record(when_done=when_done), others, unfetched)
        assert [name for name in ("podStop", "podTerminate") if api.calls(name)] == ([mutation] if mutation else [])
    assert told[0].startswith(said)
