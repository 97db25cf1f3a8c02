"""Pages opened from disk in a browser without a network: what plotly holds is what was written, no more."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.dashboard.paired_scales import numbers
from src.visualizations.written_pages import INDEX, load_page
from tests.dashboard_files import PATIENCE

# Of each trace what plotly has made of its numbers, and how many marks there are on the page.
DRAWN = """() => {
  const graph = document.querySelector(".plotly-graph-div");
  const plain = (value) => ArrayBuffer.isView(value) ? Array.from(value, (one) => isNaN(one) ? null : one)
    : Array.isArray(value) ? value.map(plain) : value;
  return {
    values: graph._fullData.map((trace) => ({x: plain(trace.x), y: plain(trace.y), z: plain(trace.z)})),
    marks: graph.querySelectorAll(".point, .js-line, .heatmaplayer image, .gl-container canvas").length,
  };
}"""


def numbers_drawn(pages: Sequence[Path], chromium: str) -> int:
    """How many numbers the pages draw, each as written; an error in the console or a request fails."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="uv sync --group dev installs playwright")
    wrong: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_context(offline=True, viewport={"width": 1280, "height": 900}).new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else wrong.append(asked.url))
        compared = 0
        for path in pages:
            page.goto(path.as_uri())
            if path.name == INDEX:
                page.get_by_role("link").first.wait_for()
                continue
            page.locator(".plotly-graph-div .main-svg").first.wait_for()
            drawn = page.evaluate(DRAWN)
            written = load_page(path).figure["data"]
            assert drawn["marks"] > 0 or not any(map(holds_a_number, written)), path.name
            compared += compare(written, drawn["values"], path.name)
            assert wrong == [], (path.name, wrong)
        browser.close()
    return compared


def holds_a_number(trace: dict[str, Any]) -> bool:
    """Whether there is something to draw: an empty panel has a trace that holds nothing."""
    given = (numbers(trace[axis]) for axis in "xyz" if axis in trace)
    return any(values is not None and np.isfinite(values).any() for values in given)


def compare(written: list[dict[str, Any]], drawn: list[dict[str, Any]], name: str) -> int:
    """How many numbers are the same; they are told from texts, which stay out, by the written page."""
    compared = 0
    for one, other in zip(written, drawn, strict=True):
        for axis in "xyz":
            given = numbers(one[axis]) if axis in one else None
            if given is not None:
                np.testing.assert_array_equal(np.array(other[axis], dtype=float), given, err_msg=f"{name} {axis}")
                compared += given.size
    return compared
