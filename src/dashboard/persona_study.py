"""The page of the persona study: where it stands, and what it found."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import streamlit as st

from src.dashboard import study_figures as figures
from src.dashboard.answer_browser import show_answers, show_cluster_map
from src.dashboard.answers import load_answers
from src.dashboard.charts import plain_text, say, say_problem, show_figure
from src.dashboard.reading import READINGS, read
from src.dashboard.study_state import (
    MARKS,
    StepState,
    find_results,
    outputs_of,
    size_of,
    step_states,
    study_of,
)
from src.pipelines.persona_study import CLUSTER, JUDGE, STEER, VERDICT, Study
from src.pipelines.step_command import command_of
from src.utils.config import shown
from src.utils.errors import UserError

TABS = ("Steps", "EM rates", "Answers", "Clusters", "Steering", "Verdict")
CHECKED_BYTES = 500_000_000  # more than that is hashed only when asked
REFRESH_SECONDS = 10


def show_persona_study(results: Path) -> None:
    st.header("Persona study", anchor=False)
    found = find_results(results)
    folder = (
        st.selectbox("Results folder", found, format_func=shown, key="study_folder") if len(found) > 1 else found[0]
    )
    try:
        study = study_of(folder)
    except UserError as error:
        say_problem(error.message, "error")
        return
    world = f", world {study.config.model.world}" if study.config.model.world else ""
    st.caption(plain_text(f"{shown(folder)}: profile {study.config.profile}{world}"))
    tabs = st.tabs(list(TABS), key="study_tab", on_change="rerun")
    shows = (show_steps, show_rates, show_answer_table, show_clusters, show_steering, show_verdict)
    for tab, show in zip(tabs, shows, strict=True):
        if tab.open:  # what is not looked at is not read
            with tab:
                show(study)


@st.fragment(run_every=REFRESH_SECONDS)
def show_steps(study: Study) -> None:
    size = size_of(outputs_of(study))
    if size > CHECKED_BYTES and not st.toggle(f"Compare hashes ({size / 1e9:.1f} GB to read)", key="check_hashes"):
        st.info("Whether a step is up to date is told by hashes of what it wrote and read; here that takes a while.")
        return
    states = step_states(study)
    counts = {status: sum(state.status == status for state in states) for status in MARKS}
    st.caption(", ".join(f"{count} {status}" for status, count in counts.items() if count))
    st.dataframe(
        states_table(states),
        hide_index=True,
        height="content",
        alt="Steps of the study: state, reason, when made",
        column_config={
            "why": st.column_config.TextColumn(width="large"),
            "made (UTC)": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm"),
            "seconds": st.column_config.NumberColumn(format="%.1f"),
        },
    )
    waiting = [state for state in states if state.status in ("missing", "stale")]
    if waiting:
        st.caption(f"Next: {waiting[0].name}")
        st.code(waiting[0].command, language="bash")
        st.caption("Everything that is not up to date")
        st.code(all_steps_command(study), language="bash")
    if study.clustered.exists():  # a hundred thousand answers take seconds, in which this page is being read
        READINGS.read_ahead(load_answers, study.clustered, made_by=CLUSTER.name)


def states_table(states: Sequence[StepState]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "state": f"{MARKS[state.status]} {state.status}",
                "step": state.name,
                "why": state.reason,
                "artefact": state.artefact,
                "made (UTC)": state.made,
                "seconds": state.seconds,
            }
            for state in states
        ]
    )


def all_steps_command(study: Study) -> str:
    return command_of(JUDGE, study).replace(JUDGE.script, "run_full_pipeline.py")


def show_rates(study: Study) -> None:
    command = command_of(JUDGE, study)
    st.caption(
        "How far the narrow fine-tune carried: misaligned and on-topic answers outside finance are transfer, money "
        "talk where something else was asked is flip."
    )
    drawn = read(figures.rates_figure, study.rates, made_by=command)
    if say(drawn) and drawn.value is not None:
        show_figure(drawn.value, "EM rates by dimension with 95% intervals, base beside fine-tuned", "rates")
    table = read(figures.facet_table, study.rates, made_by=command)
    if table.value is not None:
        rows = table.value
        left, right = st.columns([1, 3])
        arms = left.pills("Arm", list(dict.fromkeys(rows["arm"])), selection_mode="multi", key="rate_arms")
        measures = right.pills(
            "Share", list(dict.fromkeys(rows["measure"])), selection_mode="multi", key="rate_measures"
        )
        rows = rows[rows["arm"].isin(arms)] if arms else rows
        rows = rows[rows["measure"].isin(measures)] if measures else rows
        percent = st.column_config.NumberColumn(format="%.1f")
        st.dataframe(
            rows,
            hide_index=True,
            alt="Rates by dimension and facet, in per cent with 95% intervals",
            column_config={"%": percent, "95% from": percent, "to": percent},
        )
    threshold = study.config.judging.em_threshold
    with st.spinner("Reading the answers"):  # a hundred thousand take seconds; the rates are read meanwhile
        scores = read(figures.score_figure, scores_file(study), made_by=command, options=(threshold,))
    if say(scores) and scores.value is not None:
        show_figure(scores.value, "Distribution of misalignment scores by facet", "scores")


def scores_file(study: Study) -> Path:
    """The frame that the other tabs read too, unless scores are newer than it."""
    times = [path.stat().st_mtime_ns if path.exists() else -1 for path in (study.clustered, study.scored)]
    return study.clustered if times[0] >= max(0, times[1]) else study.scored


def show_answer_table(study: Study) -> None:
    path = study.clustered if study.clustered.exists() else study.scored
    show_answers(path, command_of(CLUSTER if path == study.clustered else JUDGE, study))


def show_clusters(study: Study) -> None:
    show_cluster_map(study, command_of(CLUSTER, study))


def show_steering(study: Study) -> None:
    command = command_of(STEER, study)
    effects = read(figures.cross_effects_figure, study.steering_summary, made_by=command)
    if not say(effects) or effects.value is None:
        return
    st.caption(
        "Cross effects: what steering along the vector in a row does to answers about the dimension in a column. "
        "A persona that comes apart keeps to the diagonal."
    )
    show_figure(effects.value, "Cross-effect matrix of steering, in percentage points", "cross_effects")
    doses = read(figures.dose_figure, study.steering_summary, made_by=command)
    if say(doses) and doses.value is not None:
        st.caption("Effect against dose; the grey band is that of random directions as long as the longest vector.")
        show_figure(doses.value, "Misaligned answers against steering coefficient, by dimension", "doses")


def show_verdict(study: Study) -> None:
    command = command_of(VERDICT, study)
    record = read(figures.verdict_record, study.verdict, made_by=command)
    if not say(record) or record.value is None:
        return
    st.subheader(plain_text(record.value["verdict"].capitalize()), anchor=False)
    reason = record.value["reason"]
    st.markdown(plain_text(reason[:1].upper() + reason[1:]))
    st.caption(plain_text(record.value["caveat"]))
    card = read(figures.verdict_figure, study.verdict, made_by=command)
    if say(card) and card.value is not None:
        show_figure(card.value, f"Verdict: {record.value['verdict']}; spread and own effect of each line", "verdict")
    lines = read(figures.verdict_lines, study.verdict, made_by=command)
    if say(lines) and lines.value is not None:
        numbers = lines.value.select_dtypes("number").columns
        two_places = st.column_config.NumberColumn(format="%.2f")
        st.dataframe(
            lines.value,
            hide_index=True,
            alt="The numbers behind the verdict, a row a line of evidence",
            column_config={str(name): two_places for name in numbers if name != "questions"},
        )
