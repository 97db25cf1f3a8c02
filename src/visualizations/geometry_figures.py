"""Figures of clusterings beside their nulls: the tests, and what each clustering is.

They draw `results/decomposition_geometry.json` (see `decomposition.geometry`); nothing here estimates. Ward's
tree is left to `dendrogram_figure`, layers side by side to `layer_statistics`, probes to `probe_figures`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from src.utils.decomposition.geometry_report import smallest_found
from src.utils.decomposition.multiplicity import stated_p
from src.visualizations.evidence_words import describe_evidence
from src.visualizations.figure_page import as_floats, escape_text
from src.visualizations.palette import FAINT_COLOUR, NEUTRAL_COLOUR, TEMPLATE

Record = Mapping[str, Any]

ALPHA = 0.05
UNDEFINED = -1  # the silhouette of fewer than two clusters, in `cluster_nulls`
ALGORITHM_NAMES = {
    "kmeans": "k-means",
    "gaussian_mixture": "Gaussian mixture",
    "ward": "Ward",
    "dbscan": "DBSCAN",
    "hdbscan": "HDBSCAN",
}
STATISTIC_NAMES = {
    "silhouette": "Silhouette",
    "bootstrap_ari": "Stability<br>(bootstrap ARI)",
    "seed_ari": "Stability<br>(seed ARI)",
    "gap": "Gap against the covariance",
}
OWN_K = "own k"
BEYOND_COLOUR = "#2F3B52"
# light for what is explained, dark for what is not; every cell says its kind in words
KIND_COLOURS = {
    "topic": "#BFDCF2",
    "base model": "#CFE8D5",
    "length": "#F4E3B5",
    "misalignment": "#F6C4B4",
    "outliers": "#DCD3EC",
    "no structure beyond covariance": "#E9EBEE",
    "unexplained structure": "#7A1230",
}


def cluster_tests(record: Record) -> go.Figure:
    """Silhouette and stability of each clustering against the 5-95% band of Gaussian data of the same covariance.

    A column an algorithm, the density algorithms in one; filled markers are beyond the null after correction over k and
    algorithm (max-T, 5%). A clustering without two clusters has no silhouette and no marker; one that no seed changes
    has no stability over seeds.
    """
    rows = record["clusters"]["tests"]
    known = {row["statistic"] for row in rows}
    statistics = [name for name in ("silhouette", "bootstrap_ari", "seed_ari") if name in known]
    columns = columns_of(rows)
    figure = make_subplots(
        rows=len(statistics),
        cols=len(columns),
        shared_yaxes=True,
        shared_xaxes=True,
        horizontal_spacing=0.02,
        vertical_spacing=0.16 / max(2, len(statistics)),
        column_titles=[" and ".join(ALGORITHM_NAMES[name] for name in names) for names in columns],
    )
    for line, statistic in enumerate(statistics, start=1):
        for column, names in enumerate(columns, start=1):
            part = [row for row in rows if row["algorithm"] in names and row["statistic"] == statistic]
            if not part:
                add_blank(figure, rows, names, line, column)
                continue
            add_tests(
                figure, part, family_of(rows, statistic), {"row": line, "col": column}, is_first=line == column == 1
            )
        figure.update_yaxes(range=shown_range(rows, statistic), row=line)
        figure.update_yaxes(title_text=STATISTIC_NAMES[statistic], row=line, col=1)
    figure.update_annotations(selector={"yref": "paper"}, font_size=13)  # the names of the columns
    figure.update_xaxes(type="category")
    for column, names in enumerate(columns, start=1):
        title = "number of clusters k" if all(row["k"] for row in rows if row["algorithm"] in names) else None
        figure.update_xaxes(title_text=title, row=len(statistics), col=column)
    draws = record["clusters"]["draws"]
    return figure.update_layout(
        template=TEMPLATE,
        height=330 + 220 * (len(statistics) - 1),
        title_text=f"{describe_evidence(record)} · {draws['others']} draws of the null ({draws['kmeans']} for k-means)"
        f"<br>{what_would_be_found(record)}",
        legend={"orientation": "h", "y": -0.32 / len(statistics), "yanchor": "top", "x": 0},
        margin={"t": 110},
        bargap=0.35,
        barmode="overlay",
    )


def add_blank(figure: go.Figure, rows: Sequence[Record], names: Sequence[str], line: int, column: int) -> None:
    """A panel of algorithms that have no such statistic."""
    shown = list(dict.fromkeys(str(row["k"] or ALGORITHM_NAMES[row["algorithm"]]) for row in rows
                               if row["algorithm"] in names))  # fmt: skip
    figure.add_scatter(x=shown, y=[None] * len(shown), showlegend=False, row=line, col=column)
    figure.add_annotation(
        text="the same<br>for every seed", x=(len(shown) - 1) / 2, y=0.5, font={"size": 11, "color": NEUTRAL_COLOUR},
        row=line, col=column,
    )  # fmt: skip


def columns_of(rows: Sequence[Record]) -> list[list[str]]:
    """Algorithms that are given k, a column each; those that find theirs share one."""
    by_count = list(dict.fromkeys(row["algorithm"] for row in rows if row["k"]))
    by_density = list(dict.fromkeys(row["algorithm"] for row in rows if not row["k"]))
    return [[name] for name in by_count] + ([by_density] if by_density else [])


def family_of(rows: Sequence[Record], statistic: str) -> tuple[int, int]:
    """How many tests of a statistic were corrected together, and the draws that they share."""
    family = [row["draws"] for row in rows if row["statistic"] == statistic]
    return len(family), min(family)


def add_tests(
    figure: go.Figure, rows: Sequence[Record], family: tuple[int, int], place: dict[str, int], is_first: bool
) -> None:
    """One panel: a floating bar from the null's 5th to its 95th percentile, and the data's value."""
    shown = [str(row["k"]) if row["k"] else ALGORITHM_NAMES[row["algorithm"]] for row in rows]
    low, high = (np.array([row[name] for row in rows], dtype=float) for name in ("null_low", "null_high"))
    figure.add_bar(
        x=shown, y=as_floats(high - low), base=as_floats(low),
        marker={"color": FAINT_COLOUR, "line": {"color": FAINT_COLOUR, "width": 3}},  # a null without spread shows too
        name="null, 5th to 95th percentile",
        legendgroup="null", showlegend=is_first, hoverinfo="skip", **place,
    )  # fmt: skip
    for is_beyond, name in ((True, f"data, beyond the null (max-T p < {ALPHA:g})"), (False, "data, not beyond it")):
        chosen = [at for at, row in enumerate(rows) if (row["p_max"] < ALPHA) == is_beyond and not is_undefined(row)]
        figure.add_scatter(
            x=[shown[at] for at in chosen] or [None],  # a trace without points is not in the legend
            y=as_floats(np.array([rows[at]["observed"] for at in chosen])) if chosen else [None],
            mode="markers", name=name, legendgroup=name, showlegend=is_first,
            marker={"symbol": "circle" if is_beyond else "circle-open", "size": 11, "color": BEYOND_COLOUR,
                    "line": {"width": 2, "color": BEYOND_COLOUR}},
            text=[corrected_text(rows[at], *family) for at in chosen],
            hovertemplate="%{x}: %{y:.3f}<br>%{text}<extra></extra>",
            **place,
        )  # fmt: skip
    for at, row in enumerate(rows):
        if row["statistic"] != "silhouette":
            continue
        nothing = [name for name, value in (("data", row["observed"]), ("null", high[at])) if value <= UNDEFINED]
        if nothing:
            figure.add_annotation(
                x=shown[at], y=0, yanchor="bottom", text=f"{' and '.join(nothing)}:<br>no two<br>clusters",
                font={"size": 11, "color": NEUTRAL_COLOUR}, **place,
            )  # fmt: skip


def corrected_text(row: Record, tests: int, shared_draws: int) -> str:
    """A test's p-value as it is, and corrected over the tests of its statistic."""
    p_values = {
        "alone": stated_p(row["p"], row["draws"]),
        "max-T": stated_p(row["p_max"], shared_draws),
        "Holm": stated_p(row["p_holm"], row["draws"], tests),
    }
    return "<br>".join(f"{name}: {stated}" for name, stated in p_values.items())


def shown_range(rows: Sequence[Record], statistic: str) -> list[float]:
    """From the least to the greatest value that is defined, and 0."""
    values = [
        row[name] for row in rows if row["statistic"] == statistic for name in ("observed", "null_low", "null_high")
    ]
    defined = [0.0, *(value for value in values if value > UNDEFINED)]
    room = 0.08 * (max(defined) - min(defined))
    return [min(defined) - room, max(defined) + room]


def is_undefined(row: Record) -> bool:
    """Whether there were no two clusters, of which a silhouette could speak."""
    return row["statistic"] == "silhouette" and row["observed"] <= UNDEFINED


def cluster_explanations(record: Record) -> go.Figure:
    """A table of what each clustering is, algorithm by k, with its agreement with facet and misalignment."""
    clusters = record["clusters"]
    found = {(row["algorithm"], row["k"]): row for row in clusters["explanations"]}
    sizes = {(row["algorithm"], row["k"]): row["clusters"] for row in clusters["indices"]}
    algorithms = list(dict.fromkeys(name for name, _ in found))
    counts = sorted({k for _, k in found}, key=lambda k: k or np.inf)
    kinds = list(KIND_COLOURS)
    codes = np.full((len(algorithms), len(counts)), np.nan, dtype=np.float32)
    hover = [["" for _ in counts] for _ in algorithms]
    figure = go.Figure()
    names = [f"k = {k}" if k else OWN_K for k in counts]
    for y, algorithm in enumerate(algorithms):
        for x, k in enumerate(counts):
            row = found.get((algorithm, k))
            if row is None:
                continue
            codes[y, x] = kinds.index(row["kind"])
            hover[y][x] = escape_text(row["sentence"], width=70)
            figure.add_annotation(
                x=names[x], y=ALGORITHM_NAMES[algorithm], text=explanation_text(row, sizes[algorithm, k]),
                font={"size": 11, "color": "white" if row["kind"] == kinds[-1] else "#22272E"},
            )  # fmt: skip
    steps = [
        (edge, KIND_COLOURS[kind]) for at, kind in enumerate(kinds) for edge in (at / len(kinds), (at + 1) / len(kinds))
    ]
    figure.add_heatmap(
        x=names, y=[ALGORITHM_NAMES[name] for name in algorithms], z=codes, zmin=-0.5, zmax=len(kinds) - 0.5,
        colorscale=steps, showscale=False, xgap=3, ygap=3, text=hover, hoverongaps=False,
        hovertemplate="%{y}, %{x}<br>%{text}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(side="top", showgrid=False, showline=False)
    figure.update_yaxes(autorange="reversed", showgrid=False, showline=False)
    return figure.update_layout(
        template=TEMPLATE,
        height=150 + 105 * len(algorithms),
        margin={"t": 90, "b": 30},
        title_text=f"{describe_evidence(record)}<br>facet, EM: AMI with the facet, with being misaligned "
        f"· p: against the covariance<br>{what_would_be_found(record)}",
    )


def what_would_be_found(record: Record) -> str:
    """The size of what a clustering that is not beyond the null may still have missed."""
    return escape_text(f"by a test of clusters, {smallest_found(record['power'], 'clusters')}", width=105)


def explanation_text(row: Record, clusters: int) -> str:
    """A cell: the kind, then its agreement with facet and misalignment, and its p-value."""
    numbers = row["numbers"]
    agreement = {"facet": numbers["ami_facet"], "EM": numbers["ami_misaligned"]}
    stated = [f"{name} {round(ami, 2) + 0.0:.2f}" for name, ami in agreement.items() if ami is not None]
    found = "" if row["k"] else f"{clusters} cluster{'' if clusters == 1 else 's'}: "
    kind = escape_text(f"{found}{row['kind']}", width=13)
    return "<br>".join([kind, *stated, stated_p(numbers["structure_p"], numbers["structure_draws"])])
