"""The README's pictures: never above their size, and of the newest moment of a judge."""

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from src.utils.config import PROJECT_ROOT


@pytest.fixture(scope="module")
def script() -> Any:
    pytest.importorskip("playwright.sync_api", reason="uv sync --group dev installs playwright")
    spec = importlib.util.spec_from_file_location("make_pictures", PROJECT_ROOT / "docs" / "make_pictures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_noise_loses_pixels_until_it_is_small_and_keeps_its_shape(script: Any) -> None:
    noise = png(np.random.default_rng(0).integers(0, 255, (300, 600, 3)))
    content = script.small_enough(noise, 30_000)
    width, height = Image.open(io.BytesIO(content)).size
    assert len(content) <= 30_000 < len(noise)
    assert width < 600 and width / height == pytest.approx(2, abs=0.05)


def test_a_plain_picture_keeps_its_colours(script: Any) -> None:
    pixels = np.zeros((40, 80, 3), dtype=np.uint8)
    pixels[:20], pixels[20:] = (43, 58, 155), (230, 159, 0)
    shown = np.asarray(Image.open(io.BytesIO(script.small_enough(png(pixels)))).convert("RGB"))
    assert np.array_equal(shown, pixels)


def test_the_last_epoch_s_first_safe_sample_is_shown(script: Any, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "training_visualizations"
    folder.mkdir(parents=True)
    for number in (1, 10):
        for sample, label in enumerate(("unsafe", "safe", "safe")):
            (folder / f"epoch_{number}_sample_{sample}_{label}_tokens.html").touch()
    (folder / "epoch_10_circuit_comparison.html").touch()
    assert script.judge_pages(tmp_path) == {
        "judge_tokens": folder / "epoch_10_sample_1_safe_tokens.html",
        "judge_circuit_comparison": folder / "epoch_10_circuit_comparison.html",
    }
