"""Pages in a real browser, from disk: they draw every point, and text of a model stays text."""

import html
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from src.visualizations.cluster_figures import cluster_map
from src.visualizations.figure_page import FigurePage, page_files
from tests.dashboard_files import PATIENCE
from tests.large_judge import large_judge_pages
from tests.offline_pages import numbers_drawn
from tests.study_frame import ATTACK, whole_study
from tests.unit.test_study_pages import every_study_page, study_rates, study_record

FLAGS = shlex.split(
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1280,900 "
    "--virtual-time-budget=5000"
)

# Points at the first answer of the first trace that holds the attack, and says what ran and what became a link.
POINT_AT_ATTACK = """<script>
window.addEventListener("load", function () {
  var graph = document.querySelector(".plotly-graph-div"), trace = -1, point = -1;
  graph.data.forEach(function (data, curve) {
    data.hovertext.forEach(function (text, index) {
      if (text.indexOf("window.hacked") >= 0) { trace = curve; point = index; }
    });
  });
  Plotly.Fx.hover(graph, [{curveNumber: trace, pointNumber: point}]);
  document.body.setAttribute("data-hacked", String(window.hacked));
});
</script>"""

# Neighbouring tick labels of an axis that touch: upright ones by their widths, turned ones by their heights.
TOUCHING = r"""() => {
  const touching = [], axes = {};
  for (const label of document.querySelectorAll("g[class$=tick] > text")) {
    if (label.textContent.trim()) (axes[label.parentNode.getAttribute("class")] ??= []).push(label);
  }
  for (const [axis, labels] of Object.entries(axes)) {
    const isX = axis.startsWith("x");
    const found = labels.map((label) => {
      const box = label.getBoundingClientRect(), turned = /rotate\(([-.\d]+)/.exec(label.getAttribute("transform"));
      const angle = Math.abs(turned ? Number(turned[1]) : 0) * Math.PI / 180;
      const height = parseFloat(getComputedStyle(label).fontSize);
      const [place, size] = !isX ? [box.top + box.height / 2, height]
        : angle > 0.1 ? [box.right, height / Math.sin(angle)] : [box.left + box.width / 2, box.width];
      return [place, size, label.textContent];
    }).sort((one, other) => one[0] - other[0]);
    found.slice(1).forEach((one, at) => {
      const other = found[at];
      if (one[0] - other[0] < (one[1] + other[1]) / 2) touching.push(`${axis}: ${other[2]} and ${one[2]}`);
    });
  }
  return [Object.keys(axes).length, touching];
}"""


def dump_dom(chromium: str, path: Path, profile: Path) -> str:
    """The page after its scripts ran."""
    command = [chromium, *FLAGS, f"--user-data-dir={profile}", "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE, check=True).stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    frame, clusterings = whole_study()
    page = FigurePage(
        file_name="map_of_3_clusters.html",
        title="Answers by cluster <script>document.title='hacked'</script>",
        sentence="What to see.",
        figure=cluster_map(frame, clusterings[3]),
        command="pytest",
    )
    folder = tmp_path_factory.mktemp("pages")
    for path, write in page_files([page], folder).items():
        write(path)
    return folder / page.file_name


@pytest.fixture(scope="module")
def dom(chromium: str, page: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page with the mouse on the attack, as far as a script can put it there."""
    text = page.read_text(encoding="utf-8")
    hovered = page.with_name("hovered.html")
    hovered.write_text(text.replace("</body>", POINT_AT_ATTACK + "</body>"), encoding="utf-8")
    return dump_dom(chromium, hovered, tmp_path_factory.mktemp("profile"))


def test_every_answer_is_drawn_and_the_legend_names_the_clusters(dom: str) -> None:
    frame, clusterings = whole_study()
    assert len(re.findall(r'<path class="point"', dom)) == len(frame)
    labels = clusterings[3]["labels"].tolist()
    for label in range(3):
        assert f"Cluster {label} ({labels.count(label)})" in dom


def test_text_of_a_model_runs_nothing_and_links_nowhere(dom: str) -> None:
    assert 'data-hacked="undefined"' in dom
    assert "<title>Answers by cluster &lt;script&gt;" in dom
    hover = dom[dom.index('<g class="hoverlayer') :]
    hover = hover[: hover.index("</g></g>") + 8]
    shown = html.unescape(re.sub(r"<[^>]*>", "", hover))
    assert ATTACK.replace(" ", "") in shown.replace(" ", "")  # spaces fall where lines are broken
    assert not re.search(r"<(a|script|img)\b|font-weight: ?bold", hover)


def test_the_index_leads_to_the_page(chromium: str, page: Path, tmp_path: Path) -> None:
    text = dump_dom(chromium, page.with_name("index.html"), tmp_path)
    assert re.findall(r'href="([^"]*)"', text) == [page.name]


def test_pages_of_a_judge_as_deep_as_qwen3_4b_are_legible(chromium: str, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="uv sync --group dev installs playwright")
    files = page_files(large_judge_pages(), tmp_path)
    for path, write in files.items():
        write(path)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for width in (1280, 800):
            page = browser.new_page(viewport={"width": width, "height": 1000})
            page.set_default_timeout(1000 * PATIENCE)
            for path in sorted(tmp_path.glob("epoch_*.html")):
                page.goto(path.as_uri())
                page.locator(".main-svg").first.wait_for()
                axes, touching = page.evaluate(TOUCHING)
                assert axes >= 4 and touching == [], (path.name, width)
        browser.close()


def test_every_page_of_the_study_draws_its_numbers_without_a_network(chromium: str, tmp_path: Path) -> None:
    rates = study_rates()
    files = page_files(every_study_page(rates, study_record(rates), [3]), tmp_path)
    for path, write in files.items():
        write(path)
    assert numbers_drawn(sorted(tmp_path.glob("*.html")), chromium) > 10_000
