"""Looking through the answers of a study: filters, a table, one answer in full, and a map whose points are rows."""

import math
from pathlib import Path

import pandas as pd
import streamlit as st

from src.dashboard import study_figures as figures
from src.dashboard.answers import (
    ROWS,
    AnswerFilter,
    cluster_columns,
    flag_names,
    keys_of_points,
    load_answers,
    matching,
    rows_of,
    table_of,
)
from src.dashboard.charts import plain_text, say, show_figure, show_selectable, show_text
from src.dashboard.reading import read
from src.pipelines.persona_study import Study
from src.utils.cluster_labels import EXCLUDED
from src.visualizations.palette import display_name, known_order

TEXT_COLUMNS = {"question": "question", "base_response": "base answer", "em_response": "EM answer"}


def show_answers(path: Path, command: str) -> None:
    """Filters, the table of what passes them, and the chosen row in full."""
    reading = read(load_answers, path, made_by=command)
    if not say(reading) or reading.value is None:
        return
    frame = reading.value
    chosen = ask_filter(frame)
    found = matching(frame, chosen)
    show_rows(found, len(frame), chosen.cluster_column, "answers")


def ask_filter(frame: pd.DataFrame) -> AnswerFilter:
    """The controls above the table."""
    first, second, third = st.columns(3)
    subsets = first.multiselect(
        "Dimension", known_order(frame["subset"].unique().tolist()), format_func=display_name, key="filter_subsets"
    )
    within = frame[frame["subset"].isin(subsets)] if subsets else frame
    facets = second.multiselect(
        "Facet", within["facet"].unique().tolist(), format_func=display_name, key="filter_facets"
    )
    flags = third.multiselect("Flags", flag_names(frame), key="filter_flags")
    first, second, third = st.columns(3)
    low, high = first.slider(
        "Score of the EM answer (0 aligned, 100 misaligned)", 0, 100, (0, 100), key="filter_scores"
    )
    keeps_unscored = first.checkbox("Also answers without a score", value=True, key="filter_unscored")
    columns = cluster_columns(frame)
    column, clusters = None, []
    if columns:
        k = second.selectbox("Clustering", list(columns), format_func=lambda k: f"k = {k}", key="filter_k")
        column = columns[k]
        labels = sorted(frame[column].unique().tolist())
        clusters = second.multiselect("Clusters", labels, format_func=cluster_name, key="filter_clusters")
    text = third.text_input("Text in question or answer", key="filter_text")
    return AnswerFilter(
        tuple(subsets), tuple(facets), (low, high), keeps_unscored, column, tuple(clusters), tuple(flags), text.strip()
    )


def cluster_name(label: int) -> str:
    return "left out" if label == EXCLUDED else f"cluster {label}"


def show_rows(found: pd.DataFrame, total: int, cluster_column: str | None, key: str) -> None:
    """The table, a page at a time, and below it the row that was clicked (the first, until one is)."""
    rate = found["em_score"].mean()
    mean = "" if math.isnan(rate) else f", mean score {rate:.1f}"
    st.markdown(f"**{len(found):,}** of {total:,} answers{mean}")
    if found.empty:
        st.info("No answer passes these filters.")
        return
    pages = math.ceil(len(found) / ROWS)
    page = 0
    if pages > 1:
        narrow, _ = st.columns([1, 2])
        page = int(narrow.number_input(f"Page of {pages} ({ROWS} answers each)", 1, pages, key=f"{key}_page")) - 1
    table = table_of(found, page, cluster_column)
    event = st.dataframe(
        table.rename(columns=TEXT_COLUMNS),
        hide_index=True,
        height=330,
        key=f"{key}_table",
        on_select="rerun",
        selection_mode="single-row",
        alt="Answers that pass the filters; select a row to read it in full",
    )
    selected = event["selection"]["rows"]
    place = selected[0] if selected and selected[0] < len(table) else 0
    show_answer(found.loc[table.index[place]])


def show_answer(row: pd.Series) -> None:
    """Question, base and EM answer in full, side by side."""
    about = [str(row["prompt_id"]), display_name(str(row["subset"])), display_name(str(row["facet"]))]
    st.markdown(plain_text(" · ".join(about)))
    question, base, em = st.columns(3)
    with question:
        show_text("Question", row["question"])
    with base:
        show_text(f"Base answer, score {score_text(row.get('base_em_score'))}", row["base_response"])
    with em:
        show_text(
            f"EM answer, score {score_text(row['em_score'])}, coherence {score_text(row.get('coherence'))}",
            row["em_response"],
        )


def score_text(value: object) -> str:
    number = float(value) if isinstance(value, int | float) else math.nan
    return "missing" if math.isnan(number) else f"{number:.0f}"


def show_cluster_map(study: Study, command: str) -> None:
    """The map of one clustering; what is selected on it is the table below."""
    counts = study.config.clustering.cluster_counts
    made = [k for k in counts if study.clusters(k).exists()]
    k = st.segmented_control(
        "Number of clusters", made or counts, default=(made or counts)[0], key="map_k", required=True
    )
    assert k is not None
    drawn = read(figures.cluster_map_figure, study.clustered, study.clusters(k), made_by=command)
    if not say(drawn) or drawn.value is None:
        return
    spec, total = drawn.value
    st.caption("Draw a box around points, or click one, to read their answers below. Twice on empty space: all again.")
    points = show_selectable(spec, f"Map of {k} clusters in the plane of two principal components", f"map_{k}")
    if total > figures.MAP_POINTS:
        st.caption(f"Of {total:,} answers {figures.MAP_POINTS:,} are drawn, evenly spaced.")
    reading = read(load_answers, study.clustered, made_by=command)
    if reading.value is not None:
        keys, column = keys_of_points(points), f"cluster_{k}"
        found = rows_of(reading.value, keys) if keys else reading.value
        if column in found:  # what a mouse draws a box around, a keyboard chooses by number
            labels = sorted(found[column].unique().tolist())
            chosen = st.multiselect("Clusters in the table", labels, format_func=cluster_name, key=f"map_clusters_{k}")
            found = found[found[column].isin(chosen)] if chosen else found
        show_rows(found, len(reading.value), f"cluster_{k}", f"map_{k}")
    profile = read(figures.cluster_profile_figure, study.clustered, study.clusters(k), made_by=command)
    if say(profile) and profile.value is not None:
        show_figure(profile.value, f"What each of {k} clusters is made of", f"profile_{k}")
