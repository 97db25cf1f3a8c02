"""Images of written pages, drawn by the system's Chromium: their size, their ground, what they say."""

import io
import re
from pathlib import Path

import pytest
from PIL import Image, ImageColor

from src.utils.errors import UserError
from src.visualizations.dark_theme import GROUND
from src.visualizations.export_figures import main
from src.visualizations.figure_page import FigurePage, page_files
from src.visualizations.palette import DIMENSION_COLOURS, display_name
from src.visualizations.score_figures import em_rates
from src.visualizations.written_pages import EXPORTED
from tests.study_frame import rates_frame
from tests.system.test_pages_in_browser import dump_dom


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    figure = FigurePage("em_rates.html", "EM rates", "What to see.", em_rates(rates_frame()), "pytest")
    for path, write in page_files([figure], folder).items():
        write(path)
    return folder / "em_rates.html"


def ground_of(image: Image.Image) -> tuple[int, ...]:
    corner = image.convert("RGB").getpixel((2, image.height - 2))
    assert isinstance(corner, tuple)
    return corner


@pytest.mark.parametrize(("theme", "ground"), [("light", "#FFFFFF"), ("dark", GROUND)])
def test_a_png_has_the_size_and_the_ground_that_were_asked_for(
    chromium: str, page: Path, tmp_path: Path, theme: str, ground: str
) -> None:
    main(
        [
            str(page),
            "--theme",
            theme,
            "--width",
            "900",
            "--height",
            "500",
            "--scale",
            "2",
            "--output-dir",
            str(tmp_path),
        ]
    )
    image = Image.open(io.BytesIO((tmp_path / "em_rates.png").read_bytes()))
    assert image.size == (1800, 1000)
    assert ground_of(image) == ImageColor.getrgb(ground)
    assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20  # something is drawn on it


def test_an_svg_says_every_dimension_and_every_share_as_text(chromium: str, page: Path) -> None:
    main([str(page), "--format", "svg"])
    text = (page.parent / EXPORTED / "em_rates.svg").read_text(encoding="utf-8")
    assert re.match(r'<svg [^>]*width="1200"', text)
    for dimension in DIMENSION_COLOURS:
        assert display_name(dimension) in text
    for share in (45, 43, 60, 98):  # of the fine-tuned answers
        assert f">{share}%<" in text


def test_a_pdf_is_one(chromium: str, page: Path, tmp_path: Path) -> None:
    main([str(page), "--format", "pdf", "--output-dir", str(tmp_path)])
    assert (tmp_path / "em_rates.pdf").read_bytes().startswith(b"%PDF-")


def test_a_standalone_page_draws_where_no_other_file_is(chromium: str, page: Path, tmp_path: Path) -> None:
    main([str(page), "--format", "html", "--output-dir", str(tmp_path / "alone")])
    dom = dump_dom(chromium, tmp_path / "alone" / "em_rates.html", tmp_path / "profile")
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["em_rates.html"]
    assert dom.count('class="point"') == dump_dom(chromium, page, tmp_path / "other").count('class="point"') > 10


def test_without_a_browser_the_remedy_is_named(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"chromium: is not installed here.*apt install chromium"):
        main([str(page), "--output-dir", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []
