"""The start panel: chosen options become the command of a training, to be copied, or launched and stopped here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from src.dashboard.charts import plain_text, say_problem
from src.dashboard.launching import (
    LOG,
    OPTIONS,
    LaunchRecord,
    launch,
    launches_in,
    log_tail,
    read_record,
    shown_command,
    state_of,
    stop,
    training_command,
)
from src.utils.config import shown
from src.utils.errors import UserError
from src.utils.safety_judge.settings import judge_profiles, load_judge_config

REFRESH_SECONDS = 3
AWAITED = "awaited_folder"  # in the session: where a training was launched that has no pictures yet
STATES = {
    "running": "runs",
    "finished": "finished",
    "stopped": "was stopped",
    "failed": "failed",
    "ended": "no longer runs; how it ended was not seen",
}


def show_start_panel(outputs: Path) -> None:
    started = launches_in(outputs)
    panel = st.expander("Start a training", icon=":material/play_arrow:", key="start_panel", on_change="rerun")
    if panel.open:  # closed, its controls would only keep the pictures waiting
        with panel:
            show_command(outputs)
    if started:
        folders = started[:5]
        is_running = any(is_live(folder) for folder in folders)
        with st.expander("Trainings started here", icon=":material/terminal:", expanded=is_running):
            show_launches(folders)


def show_command(outputs: Path) -> None:
    """The controls, the command that they make, and the button that launches it."""
    try:
        command, folder = ask_command(outputs)
    except UserError as error:
        say_problem(error.message, "error")
        return
    st.code(shown_command(command), language="bash", wrap_lines=True)
    if st.button("Launch", type="primary", key="launch", help="It goes on when the dashboard is closed"):
        try:
            launch(command, folder)
        except UserError as error:
            say_problem(error.message, "error")
        else:
            st.session_state[AWAITED] = folder
            st.rerun()


def awaited_run(runs: Sequence[Path]) -> Path | None:
    """The run folder of the training that was launched here last, if it is there and was not looked at yet."""
    return next((run for run in runs if run.parent == st.session_state.get(AWAITED)), None)


def ask_command(outputs: Path) -> tuple[list[str], Path]:
    """The controls, and the command for what they say; raises `UserError` for what the configuration refuses."""
    first, second = st.columns(2)
    profile = first.selectbox(
        "Profile", judge_profiles(), index=judge_profiles().index("organism"), key="start_profile"
    )
    name = second.text_input("Folder under outputs", "checkpoints", key="start_folder").strip()
    config = load_judge_config(profile)
    values: dict[str, Any] = {}
    columns = st.columns(4)
    for place, option in enumerate(OPTIONS):
        section, field = option.key.split(".")
        default = getattr(getattr(config, section), field)
        label, key = option.help.capitalize(), f"start_{profile}{option.name}"
        column = columns[place % len(columns)]
        if isinstance(default, bool):
            is_on = default or option.name == "--visualize_during_training"
            values[option.name] = column.checkbox(label, value=is_on, key=key)
        elif isinstance(default, float):
            values[option.name] = column.number_input(label, value=default, format="%.2g", step=default / 2, key=key)
        else:
            values[option.name] = column.number_input(label, value=default, step=1, key=key)
    columns = st.columns(4)
    flags = [
        flag
        for column, (flag, label) in zip(
            columns, {"--resume": "Continue a stopped one", "--force": "Train again"}.items(), strict=False
        )
        if column.checkbox(label, key=f"start{flag}")
    ]
    return training_command(profile, name, outputs, values, flags), outputs / name


def is_live(folder: Path) -> bool:
    try:
        return state_of(read_record(folder)) == "running"
    except UserError:
        return False


@st.fragment(run_every=REFRESH_SECONDS)
def show_launches(folders: list[Path]) -> None:
    """Each launch with its state, its log and, while it runs, the button that stops it."""
    for folder in folders:
        try:
            record = read_record(folder)
        except UserError as error:
            say_problem(error.message)
            continue
        if record is not None:
            show_launch(folder, record)


def show_launch(folder: Path, record: LaunchRecord) -> None:
    state = state_of(record)
    assert state is not None
    code = f", exit code {record.exit_code}" if state == "failed" else ""
    left, right = st.columns([4, 1], vertical_alignment="bottom")
    left.markdown(f"**{plain_text(shown(folder))}** {STATES[state]}{code} (pid {record.pid})")
    if state == "running" and right.button(
        "Stop", key=f"stop_{folder.name}", help=f"End the training in {folder.name}"
    ):
        if stop(record):
            st.rerun(scope="fragment")
        else:
            say_problem(f"pid {record.pid}: is no longer the training that was started here; nothing was stopped")
    st.code(shown_command(record.command), language="bash", wrap_lines=True)
    st.code(log_tail(folder / LOG) or "(nothing yet)", language=None)
