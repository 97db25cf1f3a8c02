"""Pages of a watched training: they hold the numbers that were measured, and no text in them is markup."""

import json
from typing import Any, cast

import numpy as np
import plotly.graph_objects as go
import pytest

from src.utils.errors import UserError
from src.utils.watching.epoch_metrics import Convergence, EpochMetrics, load_history, load_metrics, save_metrics
from src.utils.watching.layer_activation import LayerChange
from src.utils.watching.pictures import Measurement
from src.utils.watching.safety_pictures import TokenAttributionPicture
from src.utils.watching.token_attribution import RemovalCurves
from src.visualizations.figure_page import FigurePage, page_html
from src.visualizations.layer_figures import layer_page
from src.visualizations.palette import LABEL_COLOURS
from src.visualizations.panels import stacked
from src.visualizations.persona_progress_figures import persona_progress_page
from src.visualizations.progress_figures import judge_progress_page
from src.visualizations.training_figures import SampleView, placeholder_page, reading, token_page

TOKENS = ["<|im_start|>", "\n", " kill", " <b>the</b>", " process", "?", " ", "end"]
SPAN = (2, 6)
VALUES = np.array([0, 0, 2.5, -0.75, -1.25, 0.125, 0, 0])


def view(label: Any = "unsafe", margin: float = 1.5) -> SampleView:
    return SampleView(3, label, TOKENS, SPAN, margin)


def curves() -> RemovalCurves:
    counts = np.array([1, 2, 4])
    return RemovalCurves(
        counts, 1.5, np.array([0.5, 0.0, -1.0]), np.array([1.0, 1.25, 1.5]),
        np.array([[1.0, 0.5, -1.0], [1.5, 0.25, -1.0]]), np.array([[0.0, 0.5, 1.5], [-0.5, 0.25, 1.5]]), 4,
    )  # fmt: skip


def tokens(has_passed: bool = True, note: str | None = None, margin: float = 1.5) -> FigurePage:
    convergence = Convergence(
        sample="sample_3", delta=0.0125, error=0.02, tolerance=0.05, has_passed=has_passed, points=16
    )
    return token_page(
        "epoch_2_sample_3_unsafe_tokens.html", "Epoch 2", view(margin=margin), VALUES, 0.875, "newline", convergence,
        curves(), 4.0, note,
    )  # fmt: skip


def traces(figure: go.Figure, name: str) -> list[Any]:
    return [trace for trace in figure.data if (trace.name or "").startswith(name)]


def drawn(page: FigurePage) -> str:
    return json.dumps(json.loads(page.figure.to_json(engine="json")), ensure_ascii=False)


def test_the_request_has_its_attributions_and_the_template_stands_apart() -> None:
    page = tokens()
    (request,), (template,) = traces(page.figure, "attribution"), traces(page.figure, "template")
    assert request.z[np.isfinite(request.z)].tolist() == VALUES[2:6].tolist()
    assert request.text[0, 0] == "kill<br>+2.50" and request.text[0, 2] == "process<br>-1.25"
    assert (request.zmin, request.zmax) == (-4.0, 4.0)
    assert request.colorscale[0][1] == LABEL_COLOURS["safe"] and request.colorscale[-1][1] == LABEL_COLOURS["unsafe"]
    shown = [text for text in template.text.flat if text]
    assert shown == ["&lt;|im_sta…", "⏎", "␣", "end"]
    assert template.customdata[0][0] == "&lt;|im_start|&gt;"
    assert set(template.z[np.isfinite(template.z)].tolist()) == {0.0}


def test_removal_curves_are_the_given_margins() -> None:
    page = tokens()
    for panel, own, random in (
        (3, curves().removed, curves().random_removed),
        (4, curves().kept, curves().random_kept),
    ):
        (line,) = [t for t in traces(page.figure, "in the order") if t.xaxis == f"x{panel}"]
        (mean,) = [t for t in traces(page.figure, "2 random orders") if t.xaxis == f"x{panel}"]
        assert line.x.tolist() == [25, 50, 100] and line.y.tolist() == own.tolist()
        np.testing.assert_allclose(mean.y, random.mean(axis=0))
    lost = 1.5 - np.mean([0.5, 0.5, 0.5, 0.5, 0.0])
    assert f"Comprehensiveness (should be larger):<br>{lost:.2f} logits lost" in drawn(page)


def test_the_page_says_what_was_predicted_and_whether_it_converged() -> None:
    page, failed = tokens(), tokens(has_passed=False, note="Over its budget <of> 2 s", margin=-1.5)
    assert "says unsafe (margin +1.50 logits, P(unsafe) 0.818), the label is unsafe: right" in page.sentence
    assert "says safe (margin -1.50" in failed.sentence and "the label is unsafe: wrong" in failed.sentence
    assert "Convergence PASS" in drawn(page) and "+0.0125" in drawn(page) and "Convergence FAIL" in drawn(failed)
    assert "newline in the request's place +0.88, with it +1.50" in drawn(page)
    assert failed.sentence.startswith("NOT CONVERGED") and page.sentence.startswith("Orange")
    assert "falls faster without them" in page.sentence
    assert "falls faster without them" in tokens(margin=0.9).sentence, "its tokens cancel each other and are coloured"
    assert "says much the same" in reading(30.0, 28.0, VALUES)
    assert "Over its budget &lt;of&gt; 2 s" in drawn(failed) and "±4.00" in drawn(page)


def attributed(largest: float, has_passed: bool) -> Measurement:
    one = Convergence(sample="sample_0", delta=0, error=0, tolerance=1, has_passed=has_passed, points=4)
    return Measurement({"sample_0/attribution": np.array([0.5, -largest])}, convergence=[one])


def test_an_attribution_that_did_not_converge_sets_the_colours_only_where_none_did() -> None:
    picture, history = TokenAttributionPicture(cast(Any, None), cast(Any, None)), {1: attributed(9, False)}
    assert picture.shared(history) == {"colour_range": 9}
    history |= {2: attributed(2, True), 3: attributed(3, True), 4: attributed(8, False)}
    assert picture.shared(history) == {"colour_range": 3}


def layers(largest: float = 0.0, n_frozen: int = 2, has_baseline: bool = True) -> FigurePage:
    norms = np.arange(1, 33, dtype=float).reshape(4, 8)
    relative = np.zeros((4, 8))
    relative[2:] = np.linspace(0.1, 0.5, 16).reshape(2, 8)
    change = LayerChange(relative, np.array([0.0, largest, 0.2, 0.4]))
    last: dict[Any, np.ndarray] = {
        "safe": np.array([[0, 0, 0.1, 0.3], [0, 0, 0.2, 0.5], [0, 0, 0.3, 0.7]]),
        "unsafe": np.zeros((0, 4)),
    }
    return layer_page(
        "epoch_2_sample_3_unsafe_layers.html", "Epoch 2", view(), norms, change if has_baseline else None,
        last if has_baseline else {}, n_frozen, (0.0, 2.0), 0.5,
    )  # fmt: skip


def test_layers_show_norms_changes_and_the_boundary() -> None:
    figure = layers().figure
    (norm,), (change,), (last,) = traces(figure, "norm"), traces(figure, "change"), traces(figure, "3 safe")
    np.testing.assert_allclose(norm.z, np.log10(np.arange(1, 33)).reshape(4, 8), rtol=1e-6)
    assert (norm.zmin, norm.zmax, change.zmax) == (0.0, 2.0, 50.0)
    assert (np.asarray(change.z)[:2] == 0).all()
    np.testing.assert_allclose(np.asarray(change.z)[2:].flat, np.linspace(10, 50, 16), rtol=1e-6)
    np.testing.assert_allclose(last.x, [0, 0, 20, 50], rtol=1e-6)
    assert list(last.y) == ["embeddings", "block 0", "block 1", "block 2"]
    lines = [shape.y0 for shape in figure.layout.shapes if shape.y0 == shape.y1]
    assert lines == [1.5] * 3
    assert {"frozen ↓", "fine-tuned ↑"} <= {annotation.text for annotation in figure.layout.annotations}
    assert "Frozen layers (embeddings to block 0): change exactly 0" in drawn(layers())


def test_a_frozen_layer_that_moved_is_said_in_red_and_in_words() -> None:
    page = layers(largest=1e-7)
    assert "SOMETHING IS WRONG: 1 of 2 frozen layers" in drawn(page) and "block 0 (a number changed by 1e-07)" in drawn(
        page
    )
    assert page.sentence.startswith("SOMETHING IS WRONG")
    assert page.figure.layout.title.font.color != layers().figure.layout.title.font.color


def test_without_frozen_layers_or_baseline_the_page_says_so() -> None:
    assert "Nothing is frozen" in drawn(layers(n_frozen=0))
    page = layers(has_baseline=False)
    assert "No baseline" in drawn(page) and not traces(page.figure, "change")


def record(number: int, unit: Any = "epoch", **metrics: float | None) -> EpochMetrics:
    return EpochMetrics(
        unit=unit, number=number, step=10 * number, is_visualised=number == 1, metrics=metrics, training_seconds=4.0,
        watching_seconds=0.5, trainer_metrics={"eval_loss": 0.25} if number else {},
    )  # fmt: skip


def test_the_judges_progress_has_every_epoch_and_every_loss() -> None:
    records = [record(n, auroc=0.5 + n / 10, accuracy=0.5, n=8.0, **{"margin/safe/0.5": -n}) for n in range(4)]
    losses = [(step, 1 / step) for step in range(1, 31)]
    page = judge_progress_page(records, losses)
    (auroc,) = traces(page.figure, "AUROC")
    assert list(auroc.x) == [0, 1, 2, 3]
    np.testing.assert_allclose(auroc.y, [0.5, 0.6, 0.7, 0.8], rtol=1e-6)
    assert list(auroc.marker.symbol) == ["circle-open", "circle", "circle-open", "circle-open"]
    (f1,), (loss,), (validation,) = (traces(page.figure, name) for name in ("F1", "training loss", "validation loss"))
    assert np.isnan(f1.y).all(), "what was not measured is a gap"
    np.testing.assert_allclose(loss.y, [value for _, value in losses], rtol=1e-6)
    assert list(validation.x) == [10, 20, 30]
    (mean,) = traces(page.figure, "running mean")
    np.testing.assert_allclose(mean.y, [(1 / k + 1 / (k + 1)) / 2 for k in range(1, 30)], rtol=1e-6)
    assert "AUROC 0.50 → 0.80" in page.sentence and "from 1.000 to 0.033 in 30 steps" in page.sentence
    (watching,) = traces(page.figure, "watching")
    assert watching.y.tolist() == [0.5] * 4
    assert judge_progress_page([], []).title


def test_the_personas_progress_says_at_which_step_it_turns() -> None:
    shares = [0.0, 0.1, 0.6, 0.9]
    records = [
        record(n, "step", in_domain=share, transfer=0.0, em_score=7.0 * n, **{"adapter/local_cosine": 0.5})
        for n, share in enumerate(shares)
    ]
    page = persona_progress_page(records, [(1, 0.5)])
    assert "in its own domain misalignment turns between steps 10 and 20 (10% → 60%)" in page.sentence
    assert "elsewhere it does not turn" in page.sentence
    marked = [shape.x0 for shape in page.figure.layout.shapes if shape.x0 == shape.x1]
    assert marked == [20]
    (own,) = traces(page.figure, "misaligned in")
    np.testing.assert_allclose(own.y, [0, 10, 60, 90], atol=1e-4)
    (score,) = traces(page.figure, "mean EM score")
    assert (list(score.x), score.y.tolist()) == ([0, 10, 20, 30], [0, 7, 14, 21])


def test_a_placeholder_gives_the_reason_as_text() -> None:
    page = placeholder_page("epoch_1_x.html", "token_attribution", "RuntimeError: <script>alert(1)</script>")
    assert "<script>alert" not in page_html(page) and "RuntimeError" in page_html(page)


def test_tokens_are_text_on_every_page() -> None:
    for page in (tokens(), layers()):
        assert "<b>the" not in page_html(page) and "&lt;b&gt;the" in page_html(page)


def test_panels_share_the_height_out_in_pixels() -> None:
    first, second = stacked([100, 200], gap=100)
    assert first == pytest.approx((0.75, 1.0)) and second == pytest.approx((0.0, 0.5))


def test_a_record_comes_back_and_a_damaged_one_is_named(tmp_path: Any) -> None:
    records = [record(number, auroc=None, f1=0.5) for number in (0, 2, 10)]
    for one in reversed(records):
        save_metrics(one, tmp_path)
    assert load_history(tmp_path, "epoch") == records and load_history(tmp_path, "epoch", last=2) == records[:2]
    file = tmp_path / "epoch_2_metrics.json"
    file.write_text(file.read_text().replace('"watching_seconds": 0.5', '"watching_seconds": -1'))
    with pytest.raises(UserError, match=r"epoch_2_metrics\.json: no record of this version \(watching_seconds"):
        load_metrics(file)
