"""Make the README's pictures from finished results: the main figures, a judge's training, the dashboard.

    uv run python run_full_pipeline.py
    uv run python src/scripts/02_finetune_lora.py --force --visualize_during_training --visualization_interval 2
    uv run python src/train_safety_judge.py --visualize_during_training --visualization_interval 1 --run_advanced_mi
    uv run python docs/make_pictures.py
    uv run python docs/make_pictures.py --results-dir results/separable --plots-dir results/separable/cluster_plots

Reads pages and artefacts, draws them in Chromium, offline, and writes docs/*.png, each of at most 250 KB. What is not
there is named and left as it was.
"""

import argparse
import io
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from src.dashboard.local_server import PATIENCE, local_server
from src.dashboard.watched_runs import PROGRESS, find_runs, read_run
from src.utils.atomic_writes import write_atomically
from src.utils.cli import run_script, with_hyphens
from src.utils.config import PROJECT_ROOT, shown
from src.utils.errors import UserError

LARGEST = 250_000  # bytes
COLOURS = (256, 128, 64, 32)  # tried in this order until a picture is small enough
WIDTH, HEIGHT = 1200, 1100
STUDY_PAGES = ("verdict", "em_rates", "pca_2d", "steering_cross_effects")
OTHER_KINDS = ("circuit_comparison", "circuits")
DRAWN = ".js-plotly-plot .main-svg"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results-dir", type=Path, default=PROJECT_ROOT / "results")
    parser.add_argument("--plots-dir", type=Path, default=PROJECT_ROOT / "cluster_plots")
    parser.add_argument("--outputs", type=Path, default=PROJECT_ROOT / "outputs", help="folder of trained judges")
    parser.add_argument("--output-dir", type=Path, default=PROJECT_ROOT / "docs", help="where pictures go")
    given = parser.parse_args([with_hyphens(argument) for argument in arguments])
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise UserError(f"{BROWSERS[0]}: is not installed here, and pictures are drawn by it; apt install chromium")
    pages = study_pages(given.plots_dir, given.results_dir) | judge_pages(given.outputs)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        for name, page in pages.items():
            if is_there(name, page):
                save(shot_of_page(browser, page), given.output_dir / f"{name}.png")
        seen = {"dashboard_training": pages["judge_tokens"], "dashboard_study": pages["pca_2d"]}
        views = [name for name, page in seen.items() if is_there(name, page)]
        with local_server(given.outputs.absolute(), given.results_dir.absolute()) as address:
            for name in views:
                save(shot_of_dashboard(browser, address, name), given.output_dir / f"{name}.png")
        browser.close()


def is_there(name: str, page: Path) -> bool:
    """Whether what a picture shows has been made; said where not."""
    if not page.exists():
        print(f"{name}.png: left as it was, since there is no {shown(page.absolute())}")
    return page.exists()


def study_pages(plots_dir: Path, results_dir: Path) -> dict[str, Path]:
    """Picture -> page, of the study and of its watched fine-tune."""
    watched = sorted((results_dir / "adapters").glob(f"*/training_visualizations/{PROGRESS}"))
    progress = watched[0] if watched else results_dir / "adapters" / PROGRESS
    return {name: plots_dir / f"{name}.html" for name in STUDY_PAGES} | {"persona_progress": progress}


def judge_pages(outputs: Path) -> dict[str, Path]:
    """Picture -> page, of the last moment of the newest watched judge: its first safe sample, then its circuits.

    It may say "unsafe" of an empty request as well; then only what makes a request safe is seen in its tokens.
    """
    runs = find_runs([outputs])
    if not runs:
        return {"judge_tokens": outputs / "checkpoints" / "training_visualizations"}
    run = read_run(runs[0])
    pages = {}
    for number in run.numbers[-1:]:
        safe = [file.path for file in run.of("tokens", number) if file.label == "safe"]
        if safe:
            pages["judge_tokens"] = safe[0]
        pages |= {f"judge_{kind}": file.path for kind in OTHER_KINDS for file in run.of(kind, number)}
    return pages


def new_page(browser: Browser) -> Page:
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=1.5)
    page.set_default_timeout(1000 * PATIENCE)
    return page


def shot_of_page(browser: Browser, path: Path) -> bytes:
    """A page without its link back, its notes and its footer."""
    page = new_page(browser)
    page.goto(path.absolute().as_uri())
    page.locator(DRAWN).first.wait_for()
    page.add_style_tag(content="footer, .back, .notes { display: none }")
    page.wait_for_timeout(500)
    picture = page.locator("main").screenshot()
    page.close()
    return picture


def shot_of_dashboard(browser: Browser, address: str, name: str) -> bytes:
    """The training's page, or the clusters of the study, as far as they fit in a window."""
    page = new_page(browser)
    if name == "dashboard_training":
        page.goto(address)
        page.get_by_role("heading", name="Training Visualizations").wait_for()
    else:
        page.goto(f"{address}/persona_study")
        page.get_by_role("tab", name="Clusters").click()
        page.locator(DRAWN).first.wait_for()
    picture = rested(page)
    page.close()
    return picture


def rested(page: Page) -> bytes:
    """The window once nothing in it moves any more."""
    page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()
    page.wait_for_timeout(2000)
    return page.screenshot()


def save(picture: bytes, path: Path) -> None:
    """Write a picture with as many colours as fit into `LARGEST`."""
    content = small_enough(picture)
    with write_atomically(path) as temporary:
        temporary.write_bytes(content)
    print(f"{shown(path.absolute())}: {len(content) / 1e3:.0f} KB")


def small_enough(picture: bytes, largest: int = LARGEST) -> bytes:
    """The PNG as it is if it is small; else with fewer colours, then fewer pixels, until it has `largest` bytes."""
    if len(picture) <= largest:
        return picture
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    while True:
        for colours in COLOURS:
            buffer = io.BytesIO()
            # by coverage, so that the few bright colours of a scale count as much as the many greys of text
            packed = image.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            packed.save(buffer, "PNG", optimize=True)
            if buffer.tell() <= largest:
                return buffer.getvalue()
        image = image.resize((image.width * 4 // 5, image.height * 4 // 5), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    run_script(main)
