"""The picture of the interchange shows every cell of the record, and a star only where the controls are cleared."""

from typing import Any

from src.visualizations.figure_page import FigurePage, page_html
from src.visualizations.interchange_figures import interchange_matrix, is_clear


def record() -> dict[str, Any]:
    def row(name: str, into: str, dimension: str, change: float, placebo: float | None) -> dict[str, Any]:
        control = None if placebo is None else {"mean": 0.1, "largest": placebo}
        return {
            "subspace": name, "kind": "whole activation" if placebo is None else "control", "into": into,
            "rank": 128 if placebo is None else 1, "dimension": dimension,
            "change": {"estimate": change, "low": change - 0.5, "high": change + 0.5},
            "share": None if dimension == "technology_ai" else change / 4, "random": control, "placebo": control,
        }  # fmt: skip

    rows = [
        row(name, into, dimension, change, placebo)
        for into in ("base", "em")
        for dimension in ("technology_ai", "financial_risk")
        for name, change, placebo in (
            ("whole activation", 4.0, None),
            ("control_<b>x", 2.0, 1.2),
            ("control_y", 2.0, 1.6),
        )
    ]
    gap = {"estimate": 4.0, "low": 3.0, "high": 5.0}
    return {
        "site": "blocks.5.hook_resid_pre", "forks": {"technology_ai": 30, "financial_risk": 28}, "left_out": {},
        "draws": 5, "note": "Beside the rule.", "gaps": {"technology_ai": gap, "financial_risk": gap}, "rows": rows,
    }  # fmt: skip


def test_every_cell_is_there_and_stars_clear_their_controls() -> None:
    whole, clear, not_clear = record()["rows"][:3]
    assert (is_clear(whole), is_clear(clear), is_clear(not_clear)) == (False, True, False)
    figure = interchange_matrix(record())
    for panel in figure.data:
        assert len(panel.y) == 3 and len(panel.x) == 2
        assert [list(line) for line in panel.text] == [
            ["+4.0", "+4.0 (100%)"], ["+2.0*", "+2.0 (50%)*"], ["+2.0", "+2.0 (50%)"],
        ]  # fmt: skip
        assert panel.zmax == -panel.zmin == 4.0
    assert "base model" in figure.layout.annotations[0].text


def test_no_text_of_the_record_is_markup() -> None:
    page = page_html(FigurePage("interchange.html", "t", "s", interchange_matrix(record()), "c"))
    assert "<b>x" not in page and "Beside the rule" in page
