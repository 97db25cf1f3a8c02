"""The figures of a study, from its artefacts to plotly's JSON: the loaders that `reading.read` is handed."""

from pathlib import Path
from typing import Any

import pandas as pd

from src.dashboard.answers import answers_at, thinned
from src.dashboard.charts import Spec
from src.utils.artifacts import load_json, load_object
from src.utils.em_rates import OVERALL, RATES, rates_from_json
from src.visualizations.figure_page import figure_json
from src.visualizations.palette import display_name, known_order

MAP_POINTS = 4000  # drawn at most


def rates_figure(path: Path) -> Spec:
    from src.visualizations.score_figures import em_rates

    return figure_json(em_rates(rates_from_json(load_json(path))))


def facet_table(path: Path) -> pd.DataFrame:
    """A row a dimension (facet `all`) or facet, arm and share: per cent, interval, answers counted."""
    rates = rates_from_json(load_json(path))
    chosen = rates[rates["measure"].isin(RATES)]
    order = {name: place for place, name in enumerate([*known_order(list(chosen["subset"])), OVERALL])}
    places = chosen["subset"].map(lambda name: order.get(name, len(order)))
    is_facet = chosen["facet"] != OVERALL
    sorted_rows = chosen.assign(place=places, is_facet=is_facet).sort_values(["place", "is_facet"], kind="stable")
    shares = 100 * sorted_rows[["estimate", "low", "high"]].astype(float)
    return pd.DataFrame(
        {
            "dimension": sorted_rows["subset"].map(display_name),
            "facet": sorted_rows["facet"].map(lambda name: "all" if name == OVERALL else display_name(name)),
            "arm": sorted_rows["arm"].map(display_name),
            "measure": sorted_rows["measure"].str.replace("_", " "),
            "%": shares["estimate"],
            "95% from": shares["low"],
            "to": shares["high"],
            "answers": sorted_rows["n"],
        }
    ).reset_index(drop=True)


def score_figure(path: Path, em_threshold: float) -> Spec:
    from src.visualizations.score_figures import em_score_distribution

    return figure_json(em_score_distribution(answers_at(path), em_threshold))


def cluster_map_figure(frame_path: Path, clusters_path: Path) -> tuple[Spec, int]:
    """The map with (prompt_id, sample) of each point as `customdata`, and the number of rows that it stands for."""
    from src.visualizations.answer_points import join_points
    from src.visualizations.cluster_figures import cluster_map

    clustering, frame = load_object(clusters_path), answers_at(frame_path)
    drawn = thinned(clustering, MAP_POINTS)
    figure = cluster_map(frame, drawn)
    points = join_points(frame, drawn)
    for trace, (_, part) in zip(figure.data, points.groupby("label", sort=True), strict=True):
        trace.customdata = [
            [str(name), int(sample)] for name, sample in zip(part["prompt_id"], part["sample"], strict=True)
        ]
    figure.update_layout(dragmode="select", clickmode="event+select")
    return figure_json(figure), len(clustering["labels"])


def cluster_profile_figure(frame_path: Path, clusters_path: Path) -> Spec:
    from src.visualizations.cluster_figures import cluster_profile

    return figure_json(cluster_profile(answers_at(frame_path), load_object(clusters_path)))


def cross_effects_figure(path: Path) -> Spec:
    from src.visualizations.steering_figures import cross_effects

    return figure_json(cross_effects(load_json(path)))


def dose_figure(path: Path) -> Spec:
    from src.visualizations.steering_figures import dose_response

    return figure_json(dose_response(load_json(path)))


def verdict_figure(path: Path) -> Spec:
    from src.visualizations.verdict_figures import verdict_card

    return figure_json(verdict_card(load_json(path)))


def verdict_record(path: Path) -> dict[str, Any]:
    """The record as step 7 wrote it."""
    record = load_json(path)
    return {
        "verdict": str(record["verdict"]),
        "reason": str(record["reason"]),
        "caveat": str(record["caveat"]),
        **record,
    }


def verdict_lines(path: Path) -> pd.DataFrame:
    """A row a line of evidence: how it was read, its effects with their intervals, its power."""
    rows = []
    for name, line in load_json(path)["lines"].items():
        row: dict[str, Any] = {"evidence": name, "reading": line["reading"]}
        for quantity, scale in (("own", 100), ("cross", 100), ("spread", 1)):
            unit = " (points)" if scale == 100 else ""
            for part, label in (("estimate", ""), ("low", " from"), ("high", " to")):
                value = line[quantity][part]
                row[f"{quantity}{unit}{label}"] = None if value is None else scale * value
        row |= {name: line.get(name) for name in ("power", "p_dominance", "permutations", "control", "coherence")}
        rows.append(row | {"questions": sum(line["questions"].values()), "reason": line["reason"]})
    return pd.DataFrame(rows)
