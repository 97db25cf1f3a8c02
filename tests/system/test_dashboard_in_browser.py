"""The dashboard as a user starts it: where it listens, and what mouse and keyboard do in a browser.

Every tab is photographed in windows of 1280 and 800 pixels, into the folder DASHBOARD_SCREENSHOTS where that is set.
"""

import os
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from plotly.colors import sample_colorscale

from src.dashboard.local_server import local_server
from src.dashboard.paired_scales import numbers
from src.visualizations.training_figures import MARGIN_SCALE
from src.visualizations.written_pages import load_page
from tests.dashboard_files import PATIENCE, write_results, write_watched_run
from tests.offline_pages import numbers_drawn

TRAINING_TABS = ("Tokens", "Layers", "Circuit comparison", "Progress", "Metrics", "Time per picture")
STUDY_TABS = ("Steps", "EM rates", "Answers", "Clusters", "Steering", "Verdict")

# Counts how often a new figure is drawn again: its first drawing is over before anything can listen.
COUNT_REDRAWN = """window.redrawn = 0; window.counting = false;
const known = new WeakSet();
new MutationObserver(() => document.querySelectorAll(".js-plotly-plot").forEach((graph) => {
  if (!graph.on || known.has(graph)) return;
  known.add(graph);
  if (window.counting) graph.on("plotly_beforeplot", () => window.redrawn++);
})).observe(document, { subtree: true, childList: true, attributes: true });"""

# When the tokens are first there, and when the browser asks for plotly.js, in its own milliseconds.
NOTE_TOKENS = """window.tokensAt = null;
new MutationObserver(() => {
  if (window.tokensAt === null && document.querySelector(".token-text li")) window.tokensAt = performance.now();
}).observe(document, { subtree: true, childList: true });"""
PLOTLY_AT = """() => performance.getEntriesByType("resource")
  .filter((one) => one.name.includes("/PlotlyChart.")).map((one) => one.startTime)[0]"""
COLOURS = """() => [...document.querySelectorAll(".token-text li")].map((token) => [
  parseFloat(token.title), getComputedStyle(token).backgroundColor, token.getBoundingClientRect().width])"""


def rest(page: Any) -> None:
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("DASHBOARD_SCREENSHOTS", tmp_path)).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def photograph(page: Any, folder: Path, name: str) -> None:
    """The page in a wide and in a narrow window."""
    for width in (1280, 800):
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(250)
        page.screenshot(path=folder / f"{name.lower().replace(' ', '_')}_{width}.png")
    page.set_viewport_size({"width": 1280, "height": 1000})


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_watched_run(tmp_path_factory.mktemp("watched") / "outputs")


@pytest.fixture(scope="module")
def server(watched: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    with local_server(watched.parents[1], write_results(tmp_path_factory.mktemp("study") / "results")) as address:
        yield address


def test_the_server_listens_on_this_machine_alone(server: str) -> None:
    port = int(server.rpartition(":")[2])
    listening = {
        one.laddr.ip
        for one in psutil.net_connections("tcp")
        if one.laddr and one.laddr.port == port and one.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_every_page_of_a_training_draws_its_numbers_without_a_network(watched: Path, chromium: str) -> None:
    assert numbers_drawn(sorted(watched.glob("*.html")), chromium) > 1000


def assert_coloured(drawn: list[tuple[float, str, float]], watched: Path) -> None:
    """Every token of the last epoch's four pages has a place and the colour that plotly would give its value."""
    pages = [load_page(path).figure["data"][0] for path in sorted(watched.glob("epoch_2_sample_*_tokens.html"))]
    widest = max(page["zmax"] for page in pages)
    values = np.concatenate([np.asarray(numbers(page["z"])).ravel() for page in pages])
    values = values[np.isfinite(values)]
    assert len(drawn) == len(values) > 20
    for value, (shown, colour, width) in zip(values, drawn, strict=True):
        assert shown == pytest.approx(value, abs=5e-5) and width > 5
        wanted = sample_colorscale(MARGIN_SCALE, [(value / widest + 1) / 2])[0]
        channels = [[float(part) for part in re.findall(r"[\d.]+", one)] for one in (colour, wanted)]
        assert channels[0] == pytest.approx(channels[1], abs=1)


def test_a_visitor_moves_the_slider_opens_tabs_and_selects_points(
    server: str, watched: Path, chromium: str, shots: Path
) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="uv sync --group dev installs playwright")
    asked: list[str] = []
    errors: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(1000 * PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.add_init_script(COUNT_REDRAWN)
        page.add_init_script(NOTE_TOKENS)
        page.goto(server)
        page.get_by_text("epoch 2 · sample 0 (safe)").wait_for()
        rest(page)
        assert_coloured(page.evaluate(COLOURS), watched)
        page.locator(".st-key-plotly .js-plotly-plot").wait_for(state="attached")  # without a click
        assert page.evaluate(PLOTLY_AT) > page.evaluate("window.tokensAt"), "plotly.js keeps the first view waiting"
        page.get_by_text("Side by side").click()
        page.locator("[role=tabpanel] .js-plotly-plot .heatmaplayer image").nth(7).wait_for()
        rest(page)
        photograph(page, shots, "training tokens as figures")
        page.evaluate("window.counting = true")
        page.get_by_role("slider", name="Epoch").press("ArrowLeft")
        page.get_by_text("epoch 1 · sample 3 (unsafe)").wait_for()
        rest(page)
        page.wait_for_timeout(500)
        assert page.evaluate("window.redrawn") == 0, "drawn more than once: half of the seconds that a click takes"
        page.get_by_text("As text").click()
        page.locator(".token-text").nth(3).wait_for()
        for name in TRAINING_TABS:
            page.get_by_role("tab", name=name, exact=True).click()
            page.get_by_role("tab", name=name, selected=True, exact=True).wait_for()
            rest(page)
            photograph(page, shots, f"training {name}")
        page.get_by_role("link", name="Persona study").click()
        page.get_by_role("tab", name="Clusters").click()
        page.locator(".js-plotly-plot .scatterlayer .point").first.wait_for()
        page.get_by_text(re.compile("885 of 885 answers")).wait_for()
        box = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.1 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.9 * box["height"], steps=8)
        page.mouse.up()
        shown = page.get_by_text(re.compile(r"^(?!885 )\d+ of 885 answers"))
        shown.wait_for()
        assert 0 < int(shown.inner_text().split()[0]) < 885
        photograph(page, shots, "study Clusters selected")
        browser.close()
    assert errors == []
    assert [url for url in asked if not url.startswith((server, "data:", "blob:", server.replace("http", "ws")))] == []


CONTROL = re.compile(
    r"^\s*- '?(button|checkbox|switch|slider|tab|combobox|textbox|spinbutton|radio|link)\b(.*)$", re.MULTILINE
)


def nameless(snapshot: str) -> list[str]:
    """The controls of an accessibility snapshot that a screen reader has no name for."""
    return [f"{kind}{rest}" for kind, rest in CONTROL.findall(snapshot) if not re.match(r'\s+"[^"]+', rest)]


def test_a_snapshot_line_without_a_name_is_found() -> None:
    assert nameless('- button "Launch":\n  - slider "Epoch": "4"\n  - checkbox [checked]\n- button') == [
        "checkbox [checked]", "button",
    ]  # fmt: skip


def test_every_control_has_a_name_and_is_reached_by_keyboard(server: str, chromium: str, shots: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="uv sync --group dev installs playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(1000 * PATIENCE)
        body = page.locator("body")
        page.goto(server)
        page.get_by_text("epoch 2 · sample 3 (unsafe)").wait_for()
        for role, name in (("combobox", "Run folder"), ("slider", "Epoch")):  # the browser loads controls one by one
            page.get_by_role(role, name=name).wait_for()
        for _ in range(40):  # to the first tab, without a mouse
            page.keyboard.press("Tab")
            kind, role = page.evaluate("[document.activeElement.type, document.activeElement.getAttribute('role')]")
            if kind == "range":  # the epoch's slider
                page.keyboard.press("ArrowLeft")
                page.get_by_text("epoch 1 · sample 3 (unsafe)").wait_for()
            if role == "tab":
                break
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        page.get_by_role("tab", name="Layers", selected=True).wait_for()
        layers = page.get_by_role("tabpanel", name="Layers")  # the tab that was left fades out with the same words
        layers.get_by_text("epoch 1 · sample 3 (unsafe)").wait_for()
        page.locator("summary", has_text="Start a training").press("Enter")
        page.get_by_role("button", name="Launch").wait_for()
        assert nameless(body.aria_snapshot()) == []
        page.goto(f"{server}/persona_study")
        for name in STUDY_TABS:
            page.get_by_role("tab", name=name).click()
            page.get_by_role("tab", name=name, selected=True).wait_for()
            rest(page)
            photograph(page, shots, f"study {name}")
            assert nameless(body.aria_snapshot()) == []
            for figure in page.get_by_role("figure").all():
                assert figure.get_attribute("aria-label")
        page.get_by_role("tab", name="Clusters").click()
        page.get_by_role("combobox", name="Clusters in the table").press_sequentially("cluster 1")
        page.keyboard.press("Enter")
        page.get_by_text(re.compile(r"^(?!885 )\d+ of 885 answers")).wait_for()
        page.goto(f"{server}/pods")
        page.get_by_role("heading", name="Pods").wait_for()
        assert nameless(body.aria_snapshot()) == []
        browser.close()
