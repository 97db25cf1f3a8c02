"""Export figures from written pages: PNG, SVG or PDF for papers, or one HTML file that needs no other.

    uv run python src/visualizations/export_figures.py cluster_plots/verdict.html
    uv run python src/visualizations/export_figures.py cluster_plots --format svg --width 900 --theme dark
    uv run python src/visualizations/export_figures.py cluster_plots/pca_2d.html --format html --output-dir shared

Reads pages that this project wrote (a folder stands for all pages in it); writes files of the same names into
--output-dir, by default the folder `exported` beside each page. Images are drawn by Chromium, offline; --format html
puts plotly.js (4.8 MB) into the page.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from src.utils.atomic_writes import write_atomically
from src.utils.cli import OneLineParser, run_script, with_hyphens
from src.utils.config import shown
from src.utils.errors import UserError
from src.visualizations.figure_images import ImageSettings, draw_images
from src.visualizations.figure_page import standalone_html
from src.visualizations.written_pages import EXPORTED, INDEX, load_page


def main(arguments: Sequence[str]) -> None:
    given = parser().parse_args([with_hyphens(argument) for argument in arguments])
    if given.width < 1 or (given.height is not None and given.height < 1) or given.scale <= 0:
        raise UserError("--width, --height, --scale: have to be above zero", exit_code=2)
    if given.format == "html" and given.theme == "dark":
        raise UserError("--theme dark: is for images; leave it out with --format html", exit_code=2)
    pages = pages_in(given.pages)
    targets = targets_of(pages, given.output_dir, given.format)
    contents = (
        [standalone(path) for path in pages]
        if given.format == "html"
        else draw_images([load_page(path).figure for path in pages], settings_of(given))
    )
    for target, content in zip(targets, contents, strict=True):
        with write_atomically(target) as temporary:
            temporary.write_bytes(content)
        print(f"{shown(target.absolute())}: {len(content) / 1e6:.2f} MB")


def parser() -> argparse.ArgumentParser:
    options = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    default = ImageSettings()
    options.add_argument("pages", nargs="+", type=Path, metavar="PAGE", help="a page, or a folder of pages")
    options.add_argument("--format", choices=("png", "svg", "pdf", "html"), default=default.format, help="default png")
    options.add_argument("--width", type=int, default=default.width, help=f"pixels (default {default.width})")
    options.add_argument("--height", type=int, help="pixels (default: what the figure says)")
    options.add_argument(
        "--scale", type=float, default=default.scale, help=f"PNG pixels a pixel (default {default.scale:g})"
    )
    options.add_argument("--theme", choices=("light", "dark"), default="light", help="the ground (default light)")
    options.add_argument("--output-dir", type=Path, help=f"where files go (default: {EXPORTED}/ beside each page)")
    return options


def settings_of(given: argparse.Namespace) -> ImageSettings:
    return ImageSettings(given.format, given.width, given.height, given.scale, given.theme == "dark")


def pages_in(given: Sequence[Path]) -> list[Path]:
    """The pages, those of a folder in the order of their names; an index is none."""
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(page for page in path.glob("*.html") if page.name != INDEX)
            if not inside:
                raise UserError(f"{path}: holds no pages; name a folder of figure pages, for example cluster_plots")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path}: is not there; name a page, for example cluster_plots/verdict.html")
    return list(dict.fromkeys(found))


def targets_of(pages: Sequence[Path], output_dir: Path | None, suffix: str) -> list[Path]:
    """Where each page's file goes; raises `UserError` where one would go over another or over its own page."""
    targets = [(output_dir or page.parent / EXPORTED) / f"{page.stem}.{suffix}" for page in pages]
    for page, target in zip(pages, targets, strict=True):
        if target.absolute() == page.absolute():
            raise UserError(f"{output_dir}: holds {page.name} itself; name another --output-dir", exit_code=2)
        if targets.count(target) > 1:
            raise UserError(f"{target}: more than one page is called so; export them one by one", exit_code=2)
    return targets


def standalone(path: Path) -> bytes:
    """The page with plotly.js in it; raises `UserError` if it is no page of this project."""
    load_page(path)
    return standalone_html(path.read_text(encoding="utf-8")).encode()


if __name__ == "__main__":
    run_script(main)
