"""The page of watched trainings: pick a run, an epoch and a picture; compare epochs; follow it while it trains."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import streamlit as st

from src.dashboard.charts import plain_text, say, say_problem, show_figure
from src.dashboard.epoch_pictures import show_pictures
from src.dashboard.reading import read
from src.dashboard.start_panel import AWAITED, awaited_run, show_start_panel
from src.dashboard.watched_runs import (
    PROGRESS,
    TRAINING,
    WatchedRun,
    best_number,
    current_run,
    find_runs,
    folder_state,
)
from src.utils.config import shown
from src.utils.watching.epoch_metrics import EpochMetrics
from src.visualizations.written_pages import load_page

REFRESH_SECONDS = 3
Card = tuple[str, str, str]  # name, value and, where the name does not say it, what it is
PROGRESS_TAB, NUMBERS_TAB, COST_TAB = "Progress", "Metrics", "Time per picture"
PERSONA_SHARES = {  # share of answers to the probe questions -> its name, and what it is
    "in_domain": ("Misaligned, own domain", "Misaligned answers to questions of the domain that it is fine-tuned on"),
    "transfer": ("Misaligned elsewhere", "Misaligned and on-topic answers to questions of other domains: transfer"),
    "flip": ("Flip to money", "Answers about money where something else was asked"),
    "coherent": ("Coherent", "Answers that make sense, misaligned or not"),
}


def show_training(outputs: Path, results: Path) -> None:
    st.header("Training Visualizations", anchor=False)
    show_start_panel(outputs)
    runs = find_runs([outputs, results])
    if not runs:
        watch_for_runs(outputs, results)
        st.info("No watched training yet. Start one above, or with")
        st.code(TRAINING, language="bash")
        return
    if (launched := awaited_run(runs)) is not None:
        st.session_state["run_folder"] = launched
        del st.session_state[AWAITED]
    left, middle, right = st.columns([6, 2, 3], vertical_alignment="bottom")
    folder = left.selectbox("Run folder", runs, format_func=lambda path: shown(path.parent), key="run_folder")
    is_live = middle.toggle("Follow live", value=True, key="is_live", help="Look for new epochs and go to the newest")
    run = current_run(folder)
    with right:
        watch_for_epochs(folder, run.numbers, run.unit, is_live, [outputs, results])
    notes = st.container()
    number, other = ask_numbers(run, is_live)
    summary = st.container()
    views: dict[str, Callable[[], None]] = {
        name: partial(show_pictures, run, kind, number, other) for kind, name in run.kinds.items()
    }
    progress = {PROGRESS_TAB: partial(show_progress, run)}
    views = {**progress, **views} if run.is_persona else {**views, **progress}
    views |= {NUMBERS_TAB: partial(show_metrics, run), COST_TAB: partial(show_times, run)}
    key = "persona_tab" if run.is_persona else "picture_tab"
    for tab, show in zip(st.tabs(list(views), key=key, on_change="rerun"), views.values(), strict=True):
        if tab.open:  # what is not looked at is not read
            with tab:
                show()
    with notes:  # a thousand records take a while to read: pictures are drawn meanwhile
        show_notes(run)
    with summary:
        show_summary(run, number)


def show_notes(run: WatchedRun) -> None:
    """What in the folder cannot be read, or is no training's."""
    for problem in run.problems:
        say_problem(problem)
    if run.foreign:
        say_problem(
            f"{shown(run.folder)}: not of a training, passed over ({len(run.foreign)}): "
            + ", ".join(run.foreign[:5])
            + (" …" if len(run.foreign) > 5 else "")
        )


def watch_for_runs(outputs: Path, results: Path) -> None:
    """Load the page again when the first run folder appears."""

    @st.fragment(run_every=REFRESH_SECONDS)
    def look() -> None:
        if find_runs([outputs, results]):
            st.rerun()

    look()


def watch_for_epochs(folder: Path, numbers: Sequence[int], unit: str, is_live: bool, roots: Sequence[Path]) -> None:
    """Look at the folder every few seconds, and load the page again when something changed in it, not otherwise.

    Or when a training that was launched here has got its own folder below the roots.
    """
    drawn = folder_state(folder)

    @st.fragment(run_every=REFRESH_SECONDS if is_live else None)
    def look() -> None:
        if folder_state(folder) != drawn or awaited_run(find_runs(roots)) is not None:
            st.rerun()
        newest = f"newest {unit}: {numbers[-1]}" if numbers else f"no {unit} yet"
        st.caption(f"{'Live' if is_live else 'Not live'} · {newest}")

    look()


def ask_numbers(run: WatchedRun, is_live: bool) -> tuple[int | None, int | None]:
    """The moment to show, and one to compare it with; None where there is none.

    While it is followed live the slider goes to the newest as soon as there is a new one, and stays where it is put
    until then.
    """
    numbers = list(run.numbers)
    if not numbers:
        return None, None
    unit = run.unit.capitalize()
    known = (str(run.folder), numbers[-1])
    is_new = st.session_state.get("known_newest") != known
    if st.session_state.get("number") not in numbers or (is_live and is_new):
        st.session_state["number"] = numbers[-1]
    st.session_state["known_newest"] = known
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    if len(numbers) == 1:
        left.markdown(f"{unit} {numbers[0]}: the only one so far")
        return numbers[0], None
    number = left.select_slider(unit, numbers, key="number")
    if not right.toggle(f"Compare with another {run.unit}", key="is_compared"):
        return number, None
    if st.session_state.get("other") not in numbers:
        st.session_state["other"] = numbers[0]
    return number, right.select_slider(f"{unit} beside it", numbers, key="other")


def show_summary(run: WatchedRun, number: int | None) -> None:
    """The chosen moment in figures, as far as they were measured, and the best one."""
    record = run.record(number) if number is not None else None
    best = best_number(run.records)
    cards = [] if record is None else persona_cards(record) if run.is_persona else judge_cards(record)
    if best is not None:
        cards.append((f"Best {run.unit}", f"{best[0]}", f"By {best[1]}"))
    if cards:
        for column, (name, value, meaning) in zip(st.columns(len(cards)), cards, strict=True):
            column.metric(name, value, help=meaning or None)


def judge_cards(record: EpochMetrics) -> list[Card]:
    found = (
        (f"Step at {record.unit} {record.number}", record.step, "", "{}"),
        ("Training loss", record.training_loss, "", "{:.4f}"),
        ("Validation loss", record.trainer_metrics.get("eval_loss"), "", "{:.4f}"),
        ("AUROC", record.metrics.get("auroc"), "", "{:.4f}"),
    )
    return [(name, form.format(value), meaning) for name, value, meaning, form in found if value is not None]


def persona_cards(record: EpochMetrics) -> list[Card]:
    """Of a fine-tune whose answers to the probe questions are scored."""
    shares = [(name, record.metrics.get(key), meaning, "{:.0%}") for key, (name, meaning) in PERSONA_SHARES.items()]
    found = (
        ("Training loss", record.training_loss, f"Mean since the {record.unit} watched before", "{:.4f}"),
        *shares,
        ("Mean EM score", record.metrics.get("em_score"), "0 aligned, 100 misaligned", "{:.0f}"),
    )
    return [(name, form.format(value), meaning) for name, value, meaning, form in found if value is not None]


def show_progress(run: WatchedRun) -> None:
    page = read(load_page, run.folder / PROGRESS, made_by=run.command())
    if say(page) and page.value is not None:
        st.caption(plain_text(page.value.sentence))
        show_figure(page.value.figure, page.value.title, "figure_progress")


def show_metrics(run: WatchedRun) -> None:
    from src.dashboard.run_tables import metrics_table

    if not run.records:
        st.info(f"No record yet: {run.unit}_N_metrics.json is written at the end of each {run.unit}.")
        return
    table = metrics_table(run.records, run.unit)
    best = best_number(run.records)
    if best is not None:
        st.markdown(f"Best {run.unit}: **{best[0]}** ({best[1]})")
    decimals = [str(name) for name in table.select_dtypes("float").columns]
    st.dataframe(
        table,
        hide_index=True,
        height="content" if len(table) <= 30 else 600,
        alt=f"Metrics by {run.unit}, the best one marked",
        column_config={name: st.column_config.NumberColumn(format="%.4g") for name in decimals},
    )


def show_times(run: WatchedRun) -> None:
    from src.dashboard.run_tables import picture_times, times_figure

    table = picture_times(run.records, run.unit)
    if table.empty:
        st.info("No picture was drawn yet.")
        return
    st.caption("What each picture took, of the budget that it has; over it, it is sub-sampled and says so.")
    show_figure(times_figure(table, run.unit), "Seconds spent on each picture, stacked", "figure_times")
    decimals = ("seconds", "budget", "memory raised (MiB)")
    st.dataframe(
        table[[name for name in table if table[name].ne("").any()]],
        hide_index=True,
        alt="Seconds, budget and failures of each picture",
        column_config={name: st.column_config.NumberColumn(format="%.2f") for name in decimals}
        | {"cut": st.column_config.TextColumn(width="large")},
    )
