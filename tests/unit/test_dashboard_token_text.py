"""Token pages as text: colours as plotly draws them, text that can be read on them, and no markup of a model's."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from plotly.colors import sample_colorscale

from src.dashboard.paired_scales import numbers
from src.dashboard.token_text import colour_range_of, scale_colour, scale_html, token_text
from src.visualizations.dark_theme import LEAST_OF_TEXT, contrast
from src.visualizations.figure_page import FigurePage, page_html
from src.visualizations.training_figures import MARGIN_SCALE, placeholder_page, reading
from src.visualizations.written_pages import WrittenPage, load_page
from tests.unit.test_training_figures import SPAN, TOKENS, VALUES, tokens

CELL = re.compile(r'<li style="background: (#\w{6}); color: (#\w{6})" title="([^"]+) logits">(.*?)<span>(.*?)</span>')


def written(page: FigurePage, folder: Path) -> WrittenPage:
    path = folder / page.file_name
    path.write_text(page_html(page), encoding="utf-8")
    return load_page(path)


def shown(page: WrittenPage, colour_range: float = 4.0) -> str:
    text = token_text(page, colour_range)
    assert text is not None
    return text


def test_every_token_of_the_request_stands_there_in_order_with_its_value(tmp_path: Path) -> None:
    text = shown(written(tokens(), tmp_path))
    start, end = SPAN
    assert [float(value) for _, _, value, _, _ in CELL.findall(text)] == VALUES[start:end].tolist()
    assert [token for *_, token, _ in CELL.findall(text)] == ["kill", "&lt;b&gt;the&lt;/b&gt;", "process", "?"]
    assert [value for *_, value in CELL.findall(text)] == ["+2.50", "-0.75", "-1.25", "+0.12"]
    assert "<b>" not in text
    for token in (TOKENS[0], TOKENS[-1].strip()):
        assert token.replace("<", "&lt;").replace(">", "&gt;") in text[text.index("4 template and special tokens") :]


def test_verdict_and_tests_are_the_pages_own_words(tmp_path: Path) -> None:
    page = written(tokens(), tmp_path)
    text = shown(page)
    assert "✓ The judge says unsafe (margin +1.50 logits, P(unsafe) 0.818), the label is unsafe: right.</p>" in text
    assert "✗ The judge says safe (margin -1.50" in shown(written(tokens(margin=-1.5), tmp_path))
    lost = [note["text"] for note in page.figure["layout"]["annotations"] if "lost" in note["text"]]
    assert len(lost) == 2 and all(line.replace("<br>", " ") in text for line in lost)
    assert "<summary>Convergence PASS, template</summary>" in text and "alarm" not in text
    failed = shown(written(tokens(has_passed=False, note="half of the points"), tmp_path))
    assert "Convergence FAIL" in failed and "half of the points" in failed
    assert '<p class="alarm">NOT CONVERGED: the values do not add up to the margin and are not to be read.' in failed


@pytest.mark.parametrize("value", np.linspace(-4.5, 4.5, 19).tolist())
def test_a_value_has_the_colour_that_plotly_gives_it(value: float) -> None:
    place = min(max((value / 4.0 + 1) / 2, 0.0), 1.0)
    wanted = re.findall(r"[\d.]+", sample_colorscale(MARGIN_SCALE, [place])[0])
    found = scale_colour(MARGIN_SCALE, value, 4.0)
    assert np.allclose([int(found[at : at + 2], 16) for at in (1, 3, 5)], [float(part) for part in wanted], atol=1)


def test_tokens_can_be_read_on_their_colours(tmp_path: Path) -> None:
    page = written(tokens(), tmp_path)
    for colour_range in (0.0, 0.5, 2.5, 4.0):
        for ground, ink, *_ in CELL.findall(shown(page, colour_range)):
            assert contrast(ink, ground) >= LEAST_OF_TEXT


def test_pages_that_are_shown_together_share_the_widest_range(tmp_path: Path) -> None:
    page = written(tokens(), tmp_path).figure
    wider = {**page, "data": [{**page["data"][0], "zmin": -9.0, "zmax": 9.0}, *page["data"][1:]]}
    assert colour_range_of([page, wider]) == 9.0 and colour_range_of([]) == 0.0
    legend = scale_html(page, 9.0)
    assert "-9.00" in legend and "+9.00" in legend
    assert all(str(colour) in legend for _, colour in MARGIN_SCALE)


def test_a_picture_that_failed_has_no_text(tmp_path: Path) -> None:
    page = written(placeholder_page("epoch_1_sample_0_safe_tokens.html", "token_attribution", "no memory"), tmp_path)
    assert token_text(page, 1.0) is None and scale_html(page.figure, 1.0) == ""
    assert colour_range_of([page.figure]) == 0.0


def test_a_judge_that_needs_no_request_is_said_to_be_one(tmp_path: Path) -> None:
    page = written(tokens(), tmp_path)
    little = "It says much the same without any request: its tokens have little to add."
    assert little in shown(replace(page, sentence=f"Orange. {reading(2.0, 2.0, np.zeros(4))}"))
    assert little not in shown(page)


def test_empty_cells_after_the_last_token_are_no_tokens(tmp_path: Path) -> None:
    page = written(tokens(), tmp_path)
    grid = np.asarray(numbers(page.figure["data"][0]["z"]))
    assert grid.size > len(CELL.findall(shown(page))) == np.isfinite(grid).sum()
    assert shown(replace(page, sentence="Nothing of the kind.")).count("<li") == 4
