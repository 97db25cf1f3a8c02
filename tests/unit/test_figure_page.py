"""The writer: nothing in a figure becomes markup, equal figures give equal bytes, pages open offline."""

import html
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from src.utils.artifacts import save_artifact
from src.utils.errors import UserError
from src.utils.manifests import Provenance, manifest_path
from src.visualizations.figure_page import FigurePage, escape_text, page_files, page_html
from src.visualizations.written_pages import INDEX
from tests.study_frame import ATTACK


def page_of(figure: go.Figure, **changes: object) -> FigurePage:
    page = FigurePage(
        file_name="em_rates.html",
        title="EM rates",
        sentence="Fine-tuned answers are misaligned more often.",
        figure=figure,
        command="uv run python src/visualizations/clusters_visualizations.py",
        inputs={"final_dataset_with_em_scores.pkl": "0123456789abcdef" * 4},
    )
    return replace(page, **changes)


def save(pages: Sequence[FigurePage], folder: Path, summary: Sequence[Sequence[str]] = ()) -> dict[str, str]:
    """Save the pages as the study does; the text of every file in the folder, by name."""
    index = folder / INDEX
    save_artifact(index, page_files(pages, folder, summary), Provenance("pictures", "organism"), {})
    return {file.name: file.read_text(encoding="utf-8") for file in sorted(folder.iterdir())}


def attacked_figure() -> go.Figure:
    """A figure that forgot to escape: the attack stands in every place that plotly reads as text."""
    figure = go.Figure(
        go.Scatter(x=[ATTACK, "b"], y=[1, 2], text=[ATTACK, ""], hovertext=[ATTACK, ""], name=ATTACK, showlegend=True)
    )
    return figure.update_layout(title_text=ATTACK, xaxis_title_text=ATTACK, annotations=[{"text": ATTACK}])


class Tags(HTMLParser):
    """The elements of a page as a browser sees them, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.append(tag)


def test_text_of_a_model_adds_no_element_to_the_page() -> None:
    clean = page_html(page_of(go.Figure(go.Scatter(x=["a", "b"], y=[1, 2]))))
    attacked = page_html(
        page_of(attacked_figure(), title=ATTACK, sentence=ATTACK, command=ATTACK, inputs={ATTACK: "<b>", "b": "c"})
    )
    expected = [*Tags(clean).found, "code"]  # the second input
    assert Tags(attacked).found == expected
    assert "<script>window.hacked" not in attacked
    assert "</script></script>" not in attacked


def test_forgotten_markup_is_neutralised_for_plotly_but_line_breaks_stay() -> None:
    figure = go.Figure(
        go.Scatter(x=[1], y=[1], hovertext=["<b>x</b><br>y"], hovertemplate="%{hovertext}<extra></extra>")
    )
    text = page_html(page_of(figure)).replace("\\u003c", "<").replace("\\u003e", ">").replace("\\u002f", "/")
    assert "&lt;b>x&lt;/b><br>y" in text
    assert "%{hovertext}<extra></extra>" in text


def test_escaped_text_reads_back_as_the_text() -> None:
    assert html.unescape(escape_text(ATTACK)) == ATTACK
    assert escape_text('say "no" & it\'s <b>') == 'say "no" &amp; it\'s &lt;b&gt;'


def test_long_text_is_wrapped_without_losing_a_word_or_splitting_an_escape() -> None:
    text = "one < two & three " * 60
    lines = escape_text(text, width=90).split("<br>")
    assert max(len(html.unescape(line)) for line in lines) <= 90
    assert " ".join(map(html.unescape, lines)).split() == text.split()


def test_paragraphs_of_an_answer_stay_apart() -> None:
    assert escape_text("a\n\nb", width=90) == "a<br><br>b"


def test_a_limit_cuts_before_escaping() -> None:
    assert escape_text("<" * 500, width=90, limit=10) == "&lt;" * 9 + "…"
    assert escape_text("short", width=90, limit=10) == "short"


def test_equal_figures_give_equal_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save([page_of(attacked_figure())], tmp_path / folder)
    for name in ("em_rates.html", INDEX, "plotly.min.js"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_page_has_its_title_its_sentence_its_command_and_short_hashes() -> None:
    text = page_html(page_of(go.Figure()))
    assert "<title>EM rates</title>" in text
    assert "<h1>EM rates</h1>" in text
    assert "Fine-tuned answers are misaligned more often." in text
    assert "<code>uv run python src/visualizations/clusters_visualizations.py</code>" in text
    assert "final_dataset_with_em_scores.pkl <code>0123456789ab</code>" in text


def test_pages_share_one_plotly_and_ask_no_server_for_anything(tmp_path: Path) -> None:
    (tmp_path / "plotly.min.js").write_text("of another version")
    files = save([page_of(go.Figure())], tmp_path)
    assert files["plotly.min.js"] == get_plotlyjs()
    text = files["em_rates.html"]
    assert re.findall(r'src="([^"]*)"', text) == ["plotly.min.js"]
    assert "http" not in text
    assert '"showSendToCloud": false' in text  # plotly's own default uploads the figure on a click
    assert len(text) < 20_000
    assert list(files) == ["em_rates.html", INDEX, manifest_path(tmp_path / INDEX).name, "plotly.min.js"]


def test_index_lists_pages_in_order_under_their_sections(tmp_path: Path) -> None:
    names = ["b.html", "a.html", "c.html"]
    pages = [
        page_of(go.Figure(), file_name=name, title=f"<i>{name}", section=section)
        for name, section in zip(names, ["Scores", "Scores", "Clusters & more"], strict=True)
    ]
    rows = [["Dimension", "EM rate"], ["<script>window.hacked=1</script>", "45%"]]
    text = save(pages, tmp_path, rows)[INDEX]
    assert re.findall(r'href="([^"]*)"', text) == names
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Scores", "Clusters &amp; more"]
    assert "<td>&lt;script&gt;window.hacked=1&lt;/script&gt;</td><td>45%</td>" in text
    assert not {"script", "i"} & set(Tags(text).found)


@pytest.mark.parametrize("name", ["../x.html", "x.htm", "index.html", "a b.html", 'x");alert(1);(".html', ".html"])
def test_a_file_name_that_could_leave_the_folder_or_the_script_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="file_name"):
        page_of(go.Figure(), file_name=name)


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="cannot be written"):
        save([page_of(go.Figure())], tmp_path / "plots")
