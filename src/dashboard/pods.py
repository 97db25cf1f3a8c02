"""The page of runs on pods, from the records that the client keeps; it speaks to no pod and knows no key."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import streamlit as st
from pydantic import ValidationError

from src.dashboard.charts import plain_text, say_problem
from src.dashboard.launching import log_tail
from src.dashboard.reading import Reading, read
from src.pod.run_record import RunRecord, RunRecords, progress_line
from src.utils.errors import UserError

COMMAND = "uv run python src/pod/persona_data_runner.py"
REFRESH_SECONDS = 10
SILENT_AFTER = 300.0  # seconds without news from a pod that is said to run
NOT_RECORDS = {"digests.json"}


def load_record(path: Path) -> RunRecord:
    """One record; anything else raises `UserError`."""
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UserError(f"{path}: is no record of a run of this version; remove it") from error


def read_records(folder: Path) -> tuple[list[RunRecord], list[str]]:
    """The readable records, the newest first, and what is wrong with the others."""
    readings: list[Reading[RunRecord]] = [
        read(load_record, path, made_by=COMMAND)
        for path in sorted(folder.glob("*.json"))
        if path.name not in NOT_RECORDS and not path.name.endswith(".manifest.json")
    ]
    records = [reading.value for reading in readings if reading.value is not None]
    problems = [reading.problem for reading in readings if reading.problem is not None and not reading.is_missing]
    return sorted(records, key=lambda record: record.created, reverse=True), problems


def runs_table(records: Sequence[RunRecord], now: datetime) -> pd.DataFrame:
    """A row a run: what, where, since when, at what cost."""
    rows = [
        {
            "run": record.run_id,
            "step": record.step,
            "state": record.state,
            "pod": record.pod_name or record.pod_id,
            "started": record.started,
            "ended": record.ended,
            "last seen": record.last_seen,
            "hours": hours_of(record, now),
            "$ an hour": record.cost_per_hour,
            "$ so far": record.cost_so_far,
            "progress": progress_line(record.progress),
            "exit": "" if record.exit_code is None else str(record.exit_code),
            "reason": record.exit_reason or "",
        }
        for record in records
    ]
    return pd.DataFrame(rows)


def hours_of(record: RunRecord, now: datetime) -> float | None:
    """Hours since the start, to the end of a run that is over."""
    if record.started is None:
        return None
    return max(0.0, ((record.ended or now) - record.started).total_seconds() / 3600)


def is_silent(record: RunRecord, now: datetime) -> bool:
    """Whether a run that should be running has not been heard of lately: its client may have died."""
    seen = record.last_seen or record.created
    return record.state in ("preparing", "running") and (now - seen).total_seconds() > SILENT_AFTER


def show_pods(folder: Path) -> None:
    st.header("Pods", anchor=False)
    st.caption("What runs where, from the records of this machine. A pod itself is asked by the runner, not from here.")
    show_runs(folder)


@st.fragment(run_every=REFRESH_SECONDS)
def show_runs(folder: Path) -> None:
    records, problems = read_records(folder)
    for problem in problems:
        say_problem(problem)
    if not records:
        st.info("No run on a pod yet. One is started by")
        st.code(f"{COMMAND} --help", language="bash")
        return
    now = datetime.now(UTC)
    left, middle, right = st.columns(3)
    left.metric("Runs", len(records))
    middle.metric("Running", sum(record.state == "running" for record in records))
    right.metric("Cost so far", f"${sum(record.cost_so_far for record in records):,.2f}")
    table = runs_table(records, now)
    st.dataframe(
        table,
        hide_index=True,
        alt="Runs on pods: state, pod, start, cost",
        column_config={
            "hours": st.column_config.NumberColumn(format="%.2f"),
            "$ an hour": st.column_config.NumberColumn(format="%.2f"),
            "$ so far": st.column_config.NumberColumn(format="%.2f"),
        },
    )
    names = [record.run_id for record in records]
    chosen = records[names.index(st.selectbox("Run", names, key="pod_run"))]
    if is_silent(chosen, now):
        say_problem(
            f"{chosen.run_id}: is recorded as {chosen.state} and was last seen "
            f"{chosen.last_seen or chosen.created:%Y-%m-%d %H:%M} UTC; its client may have ended: the same command "
            "takes it up again"
        )
    st.markdown(
        plain_text(
            f"{chosen.run_id} on {chosen.pod_name or chosen.pod_id}: {chosen.state}, when done: {chosen.when_done}"
        )
    )
    st.code(" ".join([chosen.script, *chosen.options]), language="bash")
    st.caption("Last lines of its log, as far as they have come here")
    st.code(log_tail(RunRecords(folder).log_path(chosen.run_id)) or "(nothing yet)", language=None)
