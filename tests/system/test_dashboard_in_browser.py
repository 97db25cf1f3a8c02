"""The dashboard as a user starts it: where it listens, and what mouse and keyboard do in a browser."""

import os
import re
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

from src.dashboard.local_server import local_server
from tests.dashboard_files import PATIENCE, write_results, write_watched_run


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    outputs = tmp_path_factory.mktemp("watched") / "outputs"
    write_watched_run(outputs)
    with local_server(outputs, write_results(tmp_path_factory.mktemp("study") / "results")) as address:
        yield address


def test_the_server_listens_on_this_machine_alone(server: str) -> None:
    port = int(server.rpartition(":")[2])
    listening = {
        one.laddr.ip
        for one in psutil.net_connections("tcp")
        if one.laddr and one.laddr.port == port and one.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_a_visitor_moves_the_slider_opens_tabs_and_selects_points(server: str, chromium: str, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="uv sync --group dev installs playwright")
    shots = Path(os.environ.get("DASHBOARD_SCREENSHOTS", tmp_path))
    shots.mkdir(parents=True, exist_ok=True)
    asked: list[str] = []
    errors: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(1000 * PATIENCE)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(server)
        page.get_by_text("epoch 2 · sample 0 (safe)").wait_for()
        page.locator(".js-plotly-plot .heatmaplayer image, .js-plotly-plot .trace").first.wait_for()
        page.screenshot(path=shots / "training_1280.png")
        page.get_by_role("slider", name="Epoch").press("ArrowLeft")
        page.get_by_text("epoch 1 · sample 3 (unsafe)").wait_for()
        for name in ("Layers", "Progress", "Metrics", "Time per picture"):
            page.get_by_role("tab", name=name).click()
            page.get_by_role("tab", name=name, selected=True).wait_for()
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
        page.screenshot(path=shots / "clusters_1280.png")
        page.set_viewport_size({"width": 800, "height": 1000})
        page.get_by_role("tab", name="Verdict").click()
        page.get_by_text("control", exact=False).first.wait_for()
        page.locator(".js-plotly-plot .heatmaplayer").first.wait_for()
        page.screenshot(path=shots / "verdict_800.png")
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


def test_every_control_has_a_name_and_is_reached_by_keyboard(server: str, chromium: str) -> None:
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
        for name in ("Steps", "EM rates", "Answers", "Clusters", "Steering", "Verdict"):
            page.get_by_role("tab", name=name).click()
            page.get_by_role("tab", name=name, selected=True).wait_for()
            page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
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
