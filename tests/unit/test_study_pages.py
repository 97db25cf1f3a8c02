"""All pages of a study: small enough to send, numbers in 32 bits, and nothing wider than the narrowest window."""

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from src.utils.decomposition.report import verdict_record
from src.utils.decomposition.verdict import Rule, decide, verdict_as_json
from src.utils.em_rates import em_rates, rates_as_json
from src.visualizations.figure_page import FigurePage, page_html
from src.visualizations.study_pages import study_pages
from src.visualizations.verdict_figures import verdict_card
from src.visualizations.verdict_report import verdict_table
from tests.study_frame import geometry_record, whole_study
from tests.unit.test_steering_figures import summary
from tests.unit.test_verdict import planted

MAP = re.compile(r"clusters_\d+_map|pca_[23]d|tsne_2d")
LARGEST, LARGEST_MAP = 300_000, 2_000_000  # bytes without plotly.js; a map carries the texts of its answers
NARROWEST = 110  # characters of a title in a window of 800 pixels


@pytest.fixture(scope="module")
def rates() -> pd.DataFrame:
    return study_rates()


@pytest.fixture(scope="module")
def record(rates: pd.DataFrame) -> dict[str, Any]:
    return study_record(rates)


@pytest.fixture(scope="module")
def pages(rates: pd.DataFrame, record: dict[str, Any]) -> list[FigurePage]:
    return every_study_page(rates, record)


def study_rates() -> pd.DataFrame:
    frame, _ = whole_study()
    return em_rates(
        frame.assign(base_judged_dimension=frame["subset"], base_judged_facet=frame["facet"]), 70, 50, 50, 0
    )


def study_record(rates: pd.DataFrame) -> dict[str, Any]:
    verdict = decide({"control fine-tunes": planted(0.8, 0.6), "steering": planted(0.7, 0.5)}, Rule(), 100, 10, 0)
    smallest = dict.fromkeys(verdict_as_json(verdict)["lines"], 0.2)
    return verdict_record(verdict, smallest, rates_as_json(rates)["rates"], "organism", "entangled")


def every_study_page(
    rates: pd.DataFrame, record: Mapping[str, Any], cluster_counts: Sequence[int] = ()
) -> list[FigurePage]:
    """All pages, or those of some of the clusterings and all others."""
    frame, clusterings = whole_study()
    chosen = [clusterings[k] for k in cluster_counts] or list(clusterings.values())
    log = [{"step": step, "loss": 1 / step, "learning_rate": 1e-3, "grad_norm": 1.0} for step in range(1, 500)]
    return study_pages(frame, rates, chosen, log, "pytest", {}, 70, None, summary(), record, geometry_record())


def test_no_page_is_larger_than_it_may_be(pages: list[FigurePage]) -> None:
    assert len(pages) > 20
    for page in pages:
        size = len(page_html(page).encode())
        assert size <= (LARGEST_MAP if MAP.match(page.file_name) else LARGEST), page.file_name


def test_no_array_takes_more_than_32_bits_a_number(pages: list[FigurePage]) -> None:
    for page in pages:
        assert set(re.findall(r'"dtype":\s*"(\w+)"', page_html(page))) <= {"f4", "i1", "i2", "i4", "u1", "u2", "u4"}


def test_titles_fit_into_a_narrow_window(pages: list[FigurePage]) -> None:
    for page in pages:
        lines = str(page.figure.layout.title.text or "").split("<br>")
        assert max(len(html.unescape(line)) for line in lines) <= NARROWEST, page.file_name


def test_the_verdict_says_in_words_what_its_record_says(pages: list[FigurePage], record: Mapping[str, Any]) -> None:
    page = pages[0]
    assert page.statement == f"{record['verdict'].capitalize()}: {record['reason']}."
    header, *rows = page.table
    assert [row[0] for row in rows] == [*record["lines"]]
    for row, line in zip(rows, record["lines"].values(), strict=True):
        own, spread = line["own"], line["spread"]
        assert len(row) == len(header) and row[1] == line["reading"]
        assert row[2] == f"{100 * own['estimate']:.0f} [{100 * own['low']:.0f}, {100 * own['high']:.0f}]"
        assert row[3].split(" ")[0] == f"{spread['estimate']:.2f}"
        assert line["reason"] in " ".join(page.notes)
    assert record["caveat"] in page.notes[-1] and "seeds: 1" in page.notes[-1]
    drawn = page_html(page)
    assert all(html.escape(cell, quote=False) in drawn for row in page.table for cell in row)


def test_the_panels_of_the_verdict_have_titles_that_fit(pages: list[FigurePage]) -> None:
    titles = [annotation.text for annotation in pages[0].figure.layout.annotations]
    assert max(len(line) for title in titles for line in title.split("<br>")) <= 40
    assert np.isfinite(pages[0].figure.data[0].x).all()


def test_a_verdict_without_evidence_is_drawn_too(record: dict[str, Any]) -> None:
    verdict = verdict_as_json(decide({}, Rule()))
    unread = {**record, **verdict, "lines": {}}
    assert "no control fine-tunes" in verdict_card(unread).layout.annotations[0].text
    assert [row[0] for row in verdict_table(unread)] == ["evidence"]
    line = next(iter(record["lines"].values()))
    figure = verdict_card({**unread, "beside": {"steering the EM model": line}})
    assert [*figure.data[0].y] == ["steering the EM<br>model"]
