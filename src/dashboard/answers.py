"""The answers of a study as a table to be searched: which columns, which rows, which of them a point of a map is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from src.dashboard.reading import read
from src.utils.artifacts import load_frame
from src.utils.errors import UserError

REQUIRED = ("prompt_id", "sample", "question", "subset", "facet", "base_response", "em_response", "em_score")
SHOWN = ("prompt_id", "sample", "subset", "facet", "em_score", "coherence", "base_em_score", "judged_facet", "flags")
TEXTS = ("question", "base_response", "em_response")
EXCERPT = 160  # characters of a text in the table
ROWS = 500  # a page of the table


@dataclass(frozen=True)
class AnswerFilter:
    """Which answers; an empty sequence means all. Scores are those of the EM answers, 0 to 100, ends included.

    `keeps_unscored`: whether answers without a score stay. `text` is looked for in question and answers, in any case.
    """

    subsets: Sequence[str] = ()
    facets: Sequence[str] = ()
    scores: tuple[float, float] = (0.0, 100.0)
    keeps_unscored: bool = True
    cluster_column: str | None = None
    clusters: Sequence[int] = ()
    flags: Sequence[str] = ()
    text: str = ""


def load_answers(path: Path) -> pd.DataFrame:
    """The frame without its activations, flags joined to one text. `UserError` if it is no frame of answers."""
    frame = load_frame(path)
    lacking = [name for name in REQUIRED if name not in frame]
    if lacking:
        raise UserError(f"{path}: lacks the columns {', '.join(lacking)}; run 04_judge_responses again")
    kept = frame[[name for name in frame.columns if "_activations_layer_" not in str(name)]]
    joined = [", ".join(map(str, flags)) for flags in kept["flags"]] if "flags" in kept else [""] * len(kept)
    return kept.assign(flags=joined).reset_index(drop=True)


def answers_at(path: Path) -> pd.DataFrame:
    """The same frame for all who draw it, loaded once; raises `UserError` where there is none."""
    reading = read(load_answers, path, made_by="05_pca_and_clustering")
    if reading.value is None:
        raise UserError(str(reading.problem))
    return reading.value


def matching(frame: pd.DataFrame, chosen: AnswerFilter) -> pd.DataFrame:
    """The rows that pass every part of a filter, in their order, under their own index."""
    keep: Bool[np.ndarray, " rows"] = np.ones(len(frame), dtype=bool)
    if chosen.subsets:
        keep &= frame["subset"].isin(list(chosen.subsets)).to_numpy()
    if chosen.facets:
        keep &= frame["facet"].isin(list(chosen.facets)).to_numpy()
    score = frame["em_score"].to_numpy(dtype=float)
    is_scored = np.isfinite(score)
    is_within = is_scored & (score >= chosen.scores[0]) & (score <= chosen.scores[1])
    keep &= is_within | (~is_scored & chosen.keeps_unscored)
    if chosen.cluster_column and chosen.clusters:
        keep &= frame[chosen.cluster_column].isin(list(chosen.clusters)).to_numpy()
    if chosen.flags:
        keep &= np.array([bool(set(flags.split(", ")) & set(chosen.flags)) for flags in frame["flags"]], dtype=bool)
    if chosen.text:
        found = [
            frame[name].astype(object).fillna("").str.contains(chosen.text, case=False, regex=False) for name in TEXTS
        ]
        keep &= np.logical_or.reduce([one.to_numpy(dtype=bool) for one in found])
    return frame[keep]


def cluster_columns(frame: pd.DataFrame) -> dict[int, str]:
    """K -> column, of every clustering that the frame holds."""
    names = [str(name) for name in frame.columns]
    found = {int(name[8:]): name for name in names if name.startswith("cluster_") and name[8:].isdigit()}
    return dict(sorted(found.items()))


def flag_names(frame: pd.DataFrame) -> list[str]:
    return sorted({flag for flags in frame["flags"].unique() for flag in flags.split(", ") if flag})


def table_of(frame: pd.DataFrame, page: int = 0, cluster_column: str | None = None) -> pd.DataFrame:
    """One page of the table: what an answer is and how it scored, with excerpts of its texts."""
    part = frame.iloc[page * ROWS : (page + 1) * ROWS]
    names = [name for name in (*SHOWN, cluster_column) if name in part]
    excerpts = {name: part[name].astype(object).fillna("").str.slice(0, EXCERPT) for name in TEXTS}
    return part[names].assign(**excerpts)


def thinned(clustering: Mapping[str, Any], limit: int) -> dict[str, Any]:
    """The clustering with at most `limit` rows, evenly spaced: a map of more points is slow and no clearer."""
    count = len(clustering["labels"])
    if count <= limit:
        return dict(clustering)
    rows = np.linspace(0, count - 1, limit).round().astype(int)
    by_row = {name: np.asarray(clustering[name])[rows] for name in ("pca_scores", "labels", "silhouette_samples")}
    lists = {name: [clustering[name][row] for row in rows] for name in ("prompt_ids", "samples")}
    return {**clustering, **by_row, **lists}


def keys_of_points(points: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """What was selected on a map, as (prompt_id, sample), once each; the map carries both as `customdata`."""
    found = []
    for point in points:
        data = point.get("customdata")
        if isinstance(data, Mapping):  # some versions of the browser's side number the entries
            data = [data[name] for name in sorted(data, key=str)]
        if isinstance(data, Sequence) and not isinstance(data, str) and len(data) == 2:
            found.append((str(data[0]), int(data[1])))
    return list(dict.fromkeys(found))


def rows_of(frame: pd.DataFrame, keys: Sequence[tuple[str, int]]) -> pd.DataFrame:
    """The rows with those keys, in the frame's order."""
    wanted = set(keys)
    near = frame[frame["prompt_id"].isin([prompt_id for prompt_id, _ in keys])]
    pairs = zip(near["prompt_id"].astype(str), near["sample"], strict=True)
    return near[np.fromiter((pair in wanted for pair in pairs), dtype=bool, count=len(near))]
