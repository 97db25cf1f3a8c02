"""Two studies beside each other: the same one agrees with itself, and planted differences are found."""

import importlib
import json

import numpy as np
import pytest
from scipy.stats import ortho_group

from src.utils.decomposition.study_comparison import StudyResults, compare_studies, format_comparison, linear_cka
from src.utils.errors import UserError
from src.visualizations.comparison_figures import clusters_beside, rates_beside
from tests.study_frame import clustering, study_frame


def results(name: str, activations: np.ndarray | None = None) -> StudyResults:
    """Eighty answers of the synthetic study, with components as step 5 writes them."""
    frame, recorded = study_frame()
    rows = np.arange(0, 885, 11)
    frame = frame.iloc[rows].reset_index(drop=True)
    shown = recorded[rows] if activations is None else activations
    found = clustering(frame, shown, 3)
    _, _, axes = np.linalg.svd(shown - shown.mean(axis=0), full_matrices=False)
    found["pca_components"] = axes[:50].astype(np.float32)
    verdict = {"verdict": "separable", "reason": "it stays", "lines": {}}
    return StudyResults(name, frame, {3: found}, {"finance": shown[0], "own": shown[1]}, verdict)


def test_a_study_beside_itself_differs_in_nothing() -> None:
    record = compare_studies(results("a"), results("b"), resamples=200)
    for row in record["rates"]:
        assert row["first"] == row["second"] and set(row["difference"].values()) == {0.0}
    assert record["clusters"][0]["ami"] == record["clusters"][0]["ari"] == pytest.approx(1)
    assert record["subspaces"]["cka"] == pytest.approx(1)
    np.testing.assert_allclose(record["subspaces"]["angles"], 0, atol=1e-2)
    assert min(record["subspaces"]["chance"]) > 30
    assert record["subspaces"]["cosines"]["finance"] == pytest.approx(1)
    assert json.loads(json.dumps(record)) == record


def test_rates_are_hand_counted_over_what_both_have_and_paired() -> None:
    first, second = results("a"), results("b")
    frame = second.frame.iloc[10:].copy()
    frame["em_score"] = 100.0
    frame["coherence"] = 100.0
    other = StudyResults("b", frame, second.clusterings, {}, None)
    record = compare_studies(first, other, resamples=300)
    assert record["shared"] == 71
    row = next(r for r in record["rates"] if (r["subset"], r["measure"]) == ("all", "em"))
    part = first.frame.iloc[10:]
    judged = part["em_score"].notna()
    share = ((part["em_score"] > 70) & (part["coherence"] > 50))[judged].mean()
    assert (row["first"], row["second"]) == (pytest.approx(share), 1.0) and row["answers"] == judged.sum()
    change = row["difference"]
    assert change["estimate"] == pytest.approx(1 - share) and 0 < change["low"] < change["estimate"] < change["high"]
    assert record["verdicts"][1] == {"reason": "b: step 7 has not run"} and record["subspaces"]["cosines"] == {}


def test_a_rotation_is_the_same_geometry_and_another_space() -> None:
    _, activations = study_frame()
    part = activations[np.arange(0, 885, 11)]
    turned = (part @ ortho_group.rvs(128, random_state=0)).astype(np.float32)
    record = compare_studies(results("a"), results("b", activations=turned), resamples=200)
    assert record["subspaces"]["cka"] == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(np.mean(record["subspaces"]["angles"]), np.mean(record["subspaces"]["chance"]), atol=8)


def test_models_of_two_widths_have_no_angles_but_a_similarity() -> None:
    _, activations = study_frame()
    narrow = activations[np.arange(0, 885, 11), :64]
    record = compare_studies(results("a"), results("b", activations=narrow), resamples=200)
    assert "widths 128 and 64" in record["subspaces"]["reason_angles"] and "angles" not in record["subspaces"]
    assert 0.2 < record["subspaces"]["cka"] < 1
    assert "widths 128 and 64" in format_comparison(record)


def test_cka_is_that_of_gram_matrices() -> None:
    """Kornblith et al., equation 3, with HSIC of centred linear kernels."""
    rng = np.random.default_rng(0)
    one, two = rng.standard_normal((40, 7)), rng.standard_normal((40, 3))
    centring = np.eye(40) - 1 / 40

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.trace(a @ a.T @ centring @ b @ b.T @ centring))

    assert linear_cka(one, two) == pytest.approx(hsic(one, two) / np.sqrt(hsic(one, one) * hsic(two, two)))


def test_studies_of_other_questions_are_refused_and_missing_steps_have_their_reason() -> None:
    first = results("a")
    other = first.frame.assign(prompt_id=[f"x{i}" for i in range(len(first.frame))])
    with pytest.raises(UserError, match="no question was put to both"):
        compare_studies(first, StudyResults("b", other, {}, {}, None))
    record = compare_studies(first, StudyResults("b", first.frame, {}, {}, None), resamples=200)
    assert "no k is in both" in record["clusters"]["reason"] and "no clusters" in record["subspaces"]["reason"]
    assert "no k is in both" in format_comparison(record)


def test_the_pictures_show_every_dimension_and_every_k() -> None:
    record = compare_studies(results("a<b>"), results("b"), resamples=200)
    rates = rates_beside(record)
    shown = {trace.name for trace in rates.data if trace.showlegend}
    assert len(shown) == 5 and "a<b>" not in rates.layout.xaxis.title.text
    assert [list(bar.x) for bar in clusters_beside(record).data] == [["3"]] * 3


def test_every_option_of_the_script_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    script = importlib.import_module("src.scripts.08_compare_studies")
    with pytest.raises(SystemExit):
        script.main(["--help"])
    lines = [*capsys.readouterr().out.partition("positional arguments:")[2].splitlines(), ""]
    options = [at for at, line in enumerate(lines) if line.startswith("  ") and not line.startswith("   ")]
    assert len(options) == 8
    for at in options:
        assert (len(lines[at]) > 24 and lines[at][24] != " ") or lines[at + 1].startswith(" " * 24)
