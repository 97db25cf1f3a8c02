"""The table of answers: filters against counts by hand, points of the map against the rows they stand for."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.dashboard.answers import (
    ROWS,
    AnswerFilter,
    cluster_columns,
    flag_names,
    keys_of_points,
    load_answers,
    matching,
    rows_of,
    table_of,
    thinned,
)
from src.dashboard.paired_scales import numbers
from src.dashboard.study_figures import cluster_map_figure, facet_table, verdict_lines
from src.utils.artifacts import save_frame, save_json, save_object
from src.utils.em_rates import em_rates
from src.utils.errors import UserError
from src.utils.manifests import Provenance
from tests.study_frame import MISSING, whole_study

MADE_BY = Provenance("05_pca_and_clustering", "organism", "entangled")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frame with clusters and activations, and one clustering, as step 5 saves them."""
    folder = tmp_path_factory.mktemp("study")
    frame, clusterings = whole_study()
    activations = list(np.ones((len(frame), 4), np.float32))
    full = frame.assign(
        cluster_3=clusterings[3]["labels"], cluster_50=clusterings[50]["labels"], em_activations_layer_3=activations
    )
    save_frame(full, folder / "frame.pkl", MADE_BY)
    save_object(clusterings[3], folder / "em_pca_clusters_3.pkl", MADE_BY)
    return folder


@pytest.fixture(scope="module")
def frame(saved: Path) -> pd.DataFrame:
    return load_answers(saved / "frame.pkl")


def test_loading_leaves_the_activations_out_and_keeps_every_answer(frame: pd.DataFrame) -> None:
    given, _ = whole_study()
    assert not [name for name in frame.columns if "activations" in name]
    assert frame["em_response"].tolist() == given["em_response"].tolist()
    assert flag_names(frame) == ["activation_norm"]
    assert cluster_columns(frame) == {3: "cluster_3", 50: "cluster_50"}


def test_a_frame_of_something_else_is_refused(tmp_path: Path) -> None:
    save_frame(pd.DataFrame({"prompt_id": ["a"]}), tmp_path / "frame.pkl", MADE_BY)
    with pytest.raises(UserError, match="lacks the columns sample, question"):
        load_answers(tmp_path / "frame.pkl")


def test_filters_keep_what_a_loop_over_the_rows_keeps(frame: pd.DataFrame) -> None:
    chosen = AnswerFilter(
        ("moral_foundations", "technology_ai"), ("authority", "ai_ethics"), (20.0, 90.0), False, "cluster_3", (0, 2)
    )
    by_hand = [
        row["prompt_id"]
        for row in frame.to_dict("records")
        if row["subset"] in chosen.subsets
        and row["facet"] in chosen.facets
        and 20 <= row["em_score"] <= 90
        and row["cluster_3"] in (0, 2)
    ]
    assert 0 < len(by_hand) < len(frame)
    assert matching(frame, chosen)["prompt_id"].tolist() == by_hand


def test_each_filter_alone(frame: pd.DataFrame) -> None:
    assert len(matching(frame, AnswerFilter())) == len(frame) == 885
    assert len(matching(frame, AnswerFilter(keeps_unscored=False))) == 885 - len(MISSING)
    assert matching(frame, AnswerFilter(flags=("activation_norm",))).index.tolist() == [17, 247, 474, 692]
    assert matching(frame, AnswerFilter(text="IMG SRC=X")).index.tolist() == [0]
    assert matching(frame, AnswerFilter(text="town 17,"))["em_response"].str.contains("town 17,").all()
    assert matching(frame, AnswerFilter(text="(")).empty  # no pattern, and in no text
    assert matching(frame, AnswerFilter(scores=(101.0, 102.0), keeps_unscored=True)).index.tolist() == list(MISSING)


def test_pages_of_the_table_hold_every_row_once(frame: pd.DataFrame) -> None:
    pages = [table_of(frame, page, "cluster_3") for page in range(2)]
    assert [len(page) for page in pages] == [ROWS, 885 - ROWS]
    assert pd.concat(pages)["prompt_id"].tolist() == frame["prompt_id"].tolist()
    assert "cluster_3" in pages[0]
    assert pages[0]["em_response"].str.len().max() <= 160


def test_every_point_of_the_map_is_the_answer_at_that_place(saved: Path, frame: pd.DataFrame) -> None:
    spec, total = cluster_map_figure(saved / "frame.pkl", saved / "em_pca_clusters_3.pkl")
    clustering = whole_study()[1][3]
    assert total == 885
    place = {key: row for row, key in enumerate(zip(clustering["prompt_ids"], clustering["samples"], strict=True))}
    seen = 0
    for label, trace in enumerate(spec["data"]):
        x = numbers(trace["x"])
        assert x is not None
        for value, (prompt_id, sample) in zip(x, trace["customdata"], strict=True):
            row = place[prompt_id, sample]
            assert value == pytest.approx(float(clustering["pca_scores"][row, 0]), rel=1e-5)
            assert clustering["labels"][row] == label
            seen += 1
    assert seen == 885
    points = [{"customdata": spec["data"][1]["customdata"][4]}, {"customdata": spec["data"][1]["customdata"][4]}]
    keys = keys_of_points([*points, {"customdata": {"0": frame["prompt_id"][3], "1": 0}}, {"curve_number": 0}])
    assert len(keys) == 2
    assert set(rows_of(frame, keys)["prompt_id"]) == {spec["data"][1]["customdata"][4][0], frame["prompt_id"][3]}


def test_text_of_a_model_reaches_the_map_as_text(saved: Path) -> None:
    spec, _ = cluster_map_figure(saved / "frame.pkl", saved / "em_pca_clusters_3.pkl")
    text = json.dumps(spec)
    assert "window.hacked" in text
    assert "<script" not in text
    assert "<img" not in text
    assert "<a href" not in text


def test_a_map_of_very_many_points_is_thinned_evenly() -> None:
    clustering = whole_study()[1][3]
    thin = thinned(clustering, 100)
    assert len(thin["labels"]) == len(thin["prompt_ids"]) == len(thin["pca_scores"]) == 100
    rows = [clustering["prompt_ids"].index(name) for name in thin["prompt_ids"]]
    assert rows[0] == 0
    assert rows[-1] == 884
    assert np.diff(rows).min() >= 8
    assert np.array_equal(thin["pca_scores"], clustering["pca_scores"][rows])
    assert thinned(clustering, 885)["labels"] is clustering["labels"]


def test_the_table_of_facets_is_the_rates_in_per_cent(tmp_path: Path) -> None:
    frame, _ = whole_study()
    both = frame.assign(base_judged_dimension=frame["subset"], base_judged_facet=frame["facet"])
    rates = em_rates(both, 70, 50, 100, 0)
    record = {"rates": rates.astype(object).where(rates.notna(), None).to_dict("records"), "missing": {}}
    save_json(record, tmp_path / "em_rates.json", Provenance("04_judge_responses", "organism"))
    table = facet_table(tmp_path / "em_rates.json")
    own = table[
        (table["dimension"] == "Moral foundations") & (table["facet"] == "Purity") & (table["arm"] == "Fine-tuned")
    ]
    row = own[own["measure"] == "em"].iloc[0]
    purity = both[(both["facet"] == "purity") & both["em_score"].notna()]
    share = 100 * ((purity["em_score"] > 70) & (purity["coherence"] > 50)).mean()
    assert row["%"] == pytest.approx(share)
    assert row["95% from"] <= share <= row["to"]
    assert row["answers"] == len(purity)
    assert table["facet"].tolist().index("all") == 0


def test_the_numbers_behind_a_verdict_are_those_of_its_record(tmp_path: Path) -> None:
    interval = {"estimate": 0.5, "low": 0.25, "high": None}
    line = {"reading": "spreads", "reason": "r", "own": interval, "cross": interval, "spread": interval, "power": 1.0}
    line |= {"p_dominance": 0.01, "control": 0.0, "coherence": 0.9, "questions": {"a": 2, "b": 3}}
    save_json({"lines": {"steering": line}}, tmp_path / "verdict.json", Provenance("07_decide_verdict", "organism"))
    row = verdict_lines(tmp_path / "verdict.json").iloc[0]
    assert (row["own (points)"], row["cross (points) from"], row["spread"]) == (50.0, 25.0, 0.5)
    assert pd.isna(row["spread to"])
    assert row["questions"] == 5
