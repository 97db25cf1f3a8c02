"""The state of a study's steps from their manifests, and the records of runs on pods."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from src.dashboard.pods import is_silent, read_records, runs_table
from src.dashboard.study_state import find_results, status_of, step_state, step_states, study_of
from src.pipelines.persona_study import CLUSTER, COLLECT, FINETUNE, JUDGE, REPORT, STEPS, VERDICT
from src.pipelines.step_command import command_of
from src.pod.run_record import RunRecord, RunRecords
from src.utils.config import PROJECT_ROOT
from src.utils.errors import UserError
from src.utils.manifests import manifest_path
from tests.study_files import make, small_study, write_sources


@pytest.fixture
def study(tmp_path: Path) -> Any:
    write_sources(tmp_path)
    return small_study(tmp_path)


def states(study: Any) -> dict[str, str]:
    return {step.name: status_of(step, study, step.artefact(study))[0] for step in STEPS}


def test_steps_go_from_missing_to_fresh_to_stale(study: Any, tmp_path: Path) -> None:
    assert set(states(study).values()) == {"missing"}
    for step in (REPORT, FINETUNE, COLLECT, JUDGE, CLUSTER):
        make(step, study)
    found = states(study)
    assert [found[step.name] for step in (REPORT, FINETUNE, COLLECT, JUDGE, CLUSTER)] == ["fresh"] * 5
    assert found[VERDICT.name] == "missing"
    changed = small_study(tmp_path, collection__seed=7)
    assert states(changed)[COLLECT.name] == "stale"
    state = step_state(COLLECT, changed)
    assert "seeds changed" in state.reason
    assert state.made is not None
    assert step_state(VERDICT, study).made is None


def test_what_cannot_be_compared_is_unknown_with_the_reason(study: Any) -> None:
    for step in (FINETUNE, COLLECT, JUDGE):
        make(step, study)
    study.persona_data.unlink()
    status, reason = status_of(JUDGE, study, study.scored)
    assert status == "unknown"
    assert "persona_data.pkl" in reason
    manifest_path(study.scored).write_text("{")
    assert status_of(COLLECT, study, study.persona_data)[0] == "missing"
    state = step_state(JUDGE, study)
    assert state.made is None


def test_the_profile_and_world_are_those_of_what_lies_there(tmp_path: Path) -> None:
    assert study_of(tmp_path / "empty").config.profile == "organism"
    write_sources(tmp_path)
    separable = small_study(tmp_path, model__world="separable")
    make(REPORT, separable)
    found = study_of(separable.results_dir)
    assert (found.config.profile, found.config.model.world) == ("organism", "separable")
    command = command_of(JUDGE, found)
    assert command.startswith(
        "uv run python src/scripts/04_judge_responses.py --profile organism --world separable --results-dir "
    )
    manifest = manifest_path(separable.question_report)
    manifest.write_text(manifest.read_text().replace('"profile": "organism"', '"profile": "gone"'))
    with pytest.raises(UserError, match="gone"):
        study_of(separable.results_dir)
    manifest.write_text("{")
    assert study_of(separable.results_dir).config.profile == "organism"


def test_results_folders_are_those_with_an_artefact(tmp_path: Path) -> None:
    for name in ("separable", "runs", "adapters"):
        (tmp_path / name).mkdir()
    (tmp_path / "separable" / "em_rates.json").touch()
    assert find_results(tmp_path) == [tmp_path, tmp_path / "separable"]
    assert find_results(tmp_path / "absent") == [tmp_path / "absent"]


def test_states_are_looked_at_again_when_a_file_changes(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    first = step_states(study)
    assert step_states(study) is first
    study.rates.write_text("{}")
    again = step_states(study)
    assert again is not first
    assert [state.name for state in again] == [step.name for step in STEPS]
    assert study_of(PROJECT_ROOT / "results").plots_dir == PROJECT_ROOT / "cluster_plots"


NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def run_record(run_id: str, **changes: Any) -> RunRecord:
    values: dict[str, Any] = {
        "run_id": run_id, "step": "collect", "script": "src/scripts/03_collect_activations.py", "options": ["--yes"],
        "pod_id": "p1", "created": NOW - timedelta(hours=3), "remote_root": "/w", "remote_folder": "/w/r",
        "outputs": [],
    }  # fmt: skip
    return RunRecord.model_validate(values).updated(**changes)


def test_runs_are_listed_newest_first_and_damaged_records_named(tmp_path: Path) -> None:
    records = RunRecords(tmp_path)
    started = NOW - timedelta(hours=2)
    records.save(
        run_record("old", state="fetched", started=started, ended=started + timedelta(minutes=30), cost_per_hour=2.0)
    )
    records.save(run_record("new", created=NOW - timedelta(hours=1), state="running", started=started, last_seen=NOW))
    (tmp_path / "digests.json").write_text("{}")
    (tmp_path / "half.json").write_text('{"run_id": "ha')
    (tmp_path / "other.json").write_text('{"api_key": "rp_SECRET"}')  # pragma: allowlist secret
    found, problems = read_records(tmp_path)
    assert [record.run_id for record in found] == ["new", "old"]
    assert [Path(problem.split(":")[0]).name for problem in problems] == ["half.json", "other.json"]
    assert "SECRET" not in " ".join(problems)
    table = runs_table(found, NOW)
    assert table["hours"].tolist() == [2.0, 0.5]
    assert table["$ so far"].tolist() == [0.0, 1.0]
    assert read_records(tmp_path / "absent") == ([], [])


def test_a_run_that_nobody_watches_is_said_to_be_silent() -> None:
    assert is_silent(run_record("a", state="running", started=NOW, last_seen=NOW - timedelta(minutes=6)), NOW)
    assert not is_silent(run_record("a", state="running", started=NOW, last_seen=NOW - timedelta(minutes=4)), NOW)
    assert not is_silent(run_record("a", state="fetched", last_seen=NOW - timedelta(days=1)), NOW)
