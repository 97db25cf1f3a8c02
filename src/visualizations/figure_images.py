"""Figures as PNG, SVG and PDF for papers: plotly's JSON drawn by Chromium, offline, through kaleido."""

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import kaleido
from kaleido.errors import BrowserClosedError, BrowserFailedError, ChromeNotFoundError, JavascriptError

from src.utils.errors import UserError
from src.visualizations.dark_theme import darkened

Spec = dict[str, Any]
ImageFormat = Literal["png", "svg", "pdf"]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 90.0  # for one figure


@dataclass(frozen=True)
class ImageSettings:
    """How figures are drawn: sizes in pixels, a figure's own height where none is given, `scale` for PNG alone."""

    format: ImageFormat = "png"
    width: int = 1200
    height: int | None = None
    scale: float = 2.0
    is_dark: bool = False


def draw_images(figures: Sequence[Spec], settings: ImageSettings) -> list[bytes]:
    """The files' contents, in the order of the figures, by one browser.

    Raises `UserError` if there is no browser, or if it cannot draw one of them.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UserError(f"{BROWSERS[0]}: is not installed here, and images are drawn by it; apt install chromium")
    try:
        return asyncio.run(drawn(figures, settings, browser))
    except (BrowserClosedError, BrowserFailedError, ChromeNotFoundError) as error:
        detail = " ".join(str(error).split())[:200]
        raise UserError(f"{browser}: does not start ({detail}); try: {browser} --headless --version") from error
    except (JavascriptError, TimeoutError) as error:
        detail = " ".join(str(error).split())[:200] or f"more than {SECONDS:.0f} s"
        raise UserError(f"{browser}: cannot draw the figure ({detail}); make its page again") from error


async def drawn(figures: Sequence[Spec], settings: ImageSettings, browser: str) -> list[bytes]:
    """Without MathJax, which kaleido would ask the network for."""
    async with kaleido.Kaleido(n=1, timeout=SECONDS, mathjax=False, path=browser) as page:
        return [await page.calc_fig(prepared(figure, settings), image_options(figure, settings)) for figure in figures]


def prepared(figure: Spec, settings: ImageSettings) -> Spec:
    """The figure in the wanted colours and size; its layout's own height gives way."""
    chosen = darkened(figure) if settings.is_dark else figure
    return {**chosen, "layout": {**chosen["layout"], "height": height_of(figure, settings)}}


def image_options(figure: Spec, settings: ImageSettings) -> Any:
    scale = settings.scale if settings.format == "png" else 1.0
    height = height_of(figure, settings)
    return {"format": settings.format, "width": settings.width, "height": height, "scale": scale}


def height_of(figure: Spec, settings: ImageSettings) -> int:
    return settings.height or round(figure["layout"].get("height", 600))
