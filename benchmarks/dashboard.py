"""How long a very large run takes to look at: 1,000 epochs and 100,000 answers in the dashboard, in a real browser.

    uv run python benchmarks/dashboard.py                                # about four minutes
    uv run python benchmarks/dashboard.py --epochs 50 --answers 5000 --repeats 1 --output outputs/benchmarks

The files are written by the project's own writers: every record is its own, the pages of all epochs are those of one
small training under other names.

A *first view* is what a researcher needs to begin to read, and it is held against 3 seconds. Of a training, in a server
that has just started and a browser that has seen nothing yet: the run, the slider at the newest epoch, the cards with
its numbers, all tabs, and of all four samples the verdict and every token of the request in its colour, with its
value and the results of its tests; of a study: the table of its steps; of its EM rates, opened from there: the figure
of the rates and their table. It counts once all of it is drawn and the script has ended; only of the rates the script
goes on with the scores below them, which are counted from there on. What comes after a first view is a view of its own:
the browser loads plotly.js once the first one has been there for two seconds, and draws the tokens as figures, with
the curves of the removal test, when it is asked to. (Until November 2026 the first view drew the tokens as four plotly
figures; it was counted when the first one was drawn and the script had ended.)

Beside them, in the same run: the first view of a page that holds nothing but four charts of three bars, which is what
streamlit and plotly.js take by themselves on this machine, and a second visit of the same browser. `seconds` are
medians over `--repeats`, each with a server and a browser of its own; `every` has them all.
"""

import argparse
import os
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from playwright.sync_api import Page, ViewportSize, sync_playwright

from benchmarks.reports import REPORTS, write_report
from src.dashboard.local_server import local_server, served
from src.dashboard.watched_runs import FOLDER, PROGRESS
from src.utils.artifacts import save_frame, save_json, save_object
from src.utils.em_rates import em_rates, rates_as_json
from src.utils.manifests import Provenance
from src.utils.watching.epoch_metrics import load_metrics, save_metrics
from src.visualizations.figure_page import page_html
from src.visualizations.progress_figures import judge_progress_page
from tests.dashboard_files import write_watched_run
from tests.study_frame import clustering, study_frame

FIRST_VIEW_LIMIT = 3.0  # seconds
PATIENCE = 120.0
VIEWPORT: ViewportSize = {"width": 1280, "height": 1000}
BARE = """import streamlit as st
for number in range(4):
    st.plotly_chart({"data": [{"type": "bar", "y": [1, 2, 3]}]}, key=str(number))
"""
WIDTH = 32  # of the activations: the dashboard leaves them out
SAMPLES, CARDS, TABS = 4, 5, 8
RATES = "study: EM rates"
AT_REST = "[data-testid=stApp][data-test-script-state=notRunning]"
TABLE = "[data-testid=stDataFrame] canvas"
DRAWN = ".js-plotly-plot .main-svg"
MAIN_SVGS = 3  # of a figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1_000)
    parser.add_argument("--answers", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--browser", default=shutil.which("chromium") or shutil.which("google-chrome"))
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the report")
    options = parser.parse_args()
    if options.browser is None:
        parser.error("no browser here: apt install chromium, or name one with --browser")
    with tempfile.TemporaryDirectory() as folder:
        outputs, results = Path(folder) / "outputs", Path(folder) / "results"
        write_epochs(outputs, options.epochs)
        write_answers(results, options.answers)
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE, encoding="utf-8")
        every: dict[str, list[float]] = {}
        for _ in range(options.repeats):
            with local_server(outputs, results) as address:
                found = measured(address, options.browser, options.epochs, options.answers)
            with served(str(bare)) as address:
                found["four bare charts alone"] = bare_view(address, options.browser)
            for name, seconds in found.items():
                every.setdefault(name, []).append(round(seconds, 3))
    seconds = {name: statistics.median(values) for name, values in every.items()}
    report = {"epochs": options.epochs, "answers": options.answers, "seconds": seconds, "every": every}
    print(table(report), write_report(report, options.output, "dashboard"), sep="\n")


def write_epochs(outputs: Path, epochs: int) -> None:
    """A watched training of so many epochs: two were trained, the pages of the others are links to those."""
    folder = write_watched_run(outputs)
    assert folder.name == FOLDER
    last = load_metrics(folder / "epoch_2_metrics.json")
    pages = sorted(folder.glob("epoch_2_*.html"))
    records = [load_metrics(folder / f"epoch_{number}_metrics.json") for number in (0, 1, 2)]
    for number in range(3, epochs + 1):
        records.append(last.model_copy(update={"number": number, "step": number * last.step // 2}))
        save_metrics(records[-1], folder)
        for page in pages:
            os.link(page, folder / page.name.replace("epoch_2_", f"epoch_{number}_"))
    losses = [(step, 1 / step) for step in range(1, 4 * epochs)]
    (folder / PROGRESS).write_text(page_html(judge_progress_page(records, losses)), encoding="utf-8")


def write_answers(results: Path, answers: int) -> None:
    """The artefacts of steps 4 and 5 for so many answers: 885 questions, each asked again and again."""
    frame, activations = study_frame()
    samples = -(-answers // len(frame))
    frame = pd.concat([frame.assign(sample=sample) for sample in range(samples)], ignore_index=True)[:answers]
    random = np.random.default_rng(0)
    matrix = np.tile(activations[:, :WIDTH], (samples, 1))[:answers]
    matrix = (matrix + random.normal(0, 0.3, matrix.shape)).astype(np.float32)
    centres = matrix[np.linspace(0, len(matrix) - 1, 3).astype(int)]
    frame = frame.assign(
        base_judged_dimension=frame["subset"],
        base_judged_facet=frame["facet"],
        em_activations_layer_3=list(matrix),
        cluster_3=np.argmin(((matrix[:, None] - centres) ** 2).sum(2), axis=1),
    )

    def made(step: str) -> Provenance:
        return Provenance(step, "organism", "entangled")

    shown = clustering(frame[:2000], matrix[:2000], 3, frame["cluster_3"].to_numpy()[:2000])
    copies = -(-answers // 2000)
    by_row = {name: np.concatenate([shown[name]] * copies)[:answers] for name in ("pca_scores", "silhouette_samples")}
    rows = {"labels": frame["cluster_3"].to_numpy(), "prompt_ids": list(frame["prompt_id"])}
    samples_of = [int(sample) for sample in frame["sample"]]
    save_json(rates_as_json(em_rates(frame, 70, 50, 100, 0)) | {"missing": {}}, results / "em_rates.json", made("04"))
    save_frame(frame, results / "final_dataset_with_em_scores.pkl", made("04"))
    save_frame(frame, results / "final_dataset_with_em_scores_and_clusters.pkl", made("05"))
    save_object(shown | by_row | rows | {"samples": samples_of}, results / "em_pca_clusters_3.pkl", made("05"))


def measured(address: str, browser: str, epochs: int, answers: int) -> dict[str, float]:
    """Seconds until each view is there, in the order in which a visitor opens them."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport=VIEWPORT)
        page.set_default_timeout(1000 * PATIENCE)
        steps: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
            "training: first view": (lambda: page.goto(address), lambda: first_view(page, epochs)),
            "training: tokens as figures": (
                lambda: page.get_by_text("Side by side").click(),
                lambda: drawn(page, DRAWN, MAIN_SVGS * SAMPLES - 1),
            ),
            "training: tokens as text": (
                lambda: page.get_by_text("As text").click(),
                lambda: page.locator(".token-text").nth(SAMPLES - 1).wait_for(),
            ),
            "training: another epoch": (
                lambda: page.get_by_role("slider", name="Epoch").press("ArrowLeft"),
                lambda: page.get_by_text(f"epoch {epochs - 1} · sample 3", exact=False).wait_for(),
            ),
            "training: layers": opened(page, "Layers", DRAWN),
            "training: progress": opened(page, "Progress", DRAWN),
            "training: metrics": opened(page, "Metrics", TABLE),
            "training: time per picture": opened(page, "Time per picture", TABLE),
            "training: second visit": (lambda: page.goto(address), lambda: first_view(page, epochs)),
            "study: first view": (lambda: page.goto(f"{address}/persona_study"), lambda: drawn(page, TABLE)),
            RATES: opened(page, "EM rates", DRAWN, TABLE),
            "study: scores below them": (lambda: None, lambda: drawn(page, DRAWN, MAIN_SVGS)),
            "study: answers": opened(page, "Answers", TABLE),
            "study: a filter": (
                lambda: page.get_by_text("Also answers without a score").click(),
                page.get_by_text(re.compile(rf"^(?!{answers:,} )[\d,]+ of {answers:,} answers")).wait_for,
            ),
            "study: clusters": opened(page, "Clusters", ".js-plotly-plot .scatterlayer .point"),
            "study: answers again": opened(page, "Answers", TABLE),
        }
        seconds = {name: timed(page, *step, has_more=name == RATES) for name, step in steps.items()}
        chromium.close()
    return seconds


def bare_view(address: str, browser: str) -> float:
    """Seconds until the charts of a page are drawn, in a browser of its own."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport=VIEWPORT)
        page.set_default_timeout(1000 * PATIENCE)
        seconds = timed(page, lambda: page.goto(address), page.locator(DRAWN).first.wait_for)
        chromium.close()
    return seconds


def first_view(page: Page, epochs: int) -> None:
    """Wait until all of a training's first view is there; see the top of this file."""
    page.get_by_role("combobox", name="Run folder").wait_for()
    page.get_by_role("slider", name="Epoch").wait_for()
    page.get_by_role("tab").nth(TABS - 1).wait_for()
    page.locator("[data-testid=stMetricValue]").nth(CARDS - 1).wait_for()
    for sample in range(SAMPLES):
        page.get_by_text(f"epoch {epochs} · sample {sample}", exact=False).wait_for()
        page.locator(".token-text").nth(sample).locator(".request li").last.wait_for()


def opened(page: Page, tab: str, *what: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A tab's click, and the wait until each of `what` is there."""
    return (
        lambda: page.get_by_role("tab", name=tab, exact=True).click(),
        lambda: [drawn(page, one) for one in what],
    )


def drawn(page: Page, what: str, place: int = 0) -> None:
    page.locator(f"[role=tabpanel]:visible {what}").nth(place).wait_for()


def timed(page: Page, do: Callable[[], Any], until: Callable[[], Any], has_more: bool = False) -> float:
    """Seconds from the visitor's act until the view is there and the script has ended; a second of rest after it.

    What `has_more` is counted when it is there: the next view begins at once, and is what the script goes on with.
    """
    started = time.perf_counter()
    do()
    until()
    if has_more:
        return time.perf_counter() - started
    page.locator(AT_REST).wait_for()
    seconds = time.perf_counter() - started
    page.wait_for_timeout(1000)
    return seconds


def table(report: dict[str, Any]) -> str:
    lines = [f"{report['epochs']:,} epochs, {report['answers']:,} answers", f"{'view':<28} {'seconds':>8} {'limit':>6}"]
    for name, seconds in report["seconds"].items():
        limit = f"{FIRST_VIEW_LIMIT:.0f}" if name.endswith("first view") or name == RATES else ""
        lines.append(f"{name:<28} {seconds:8.2f} {limit:>6}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
