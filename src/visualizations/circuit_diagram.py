"""The circuit of a moment: the edges that carry the margin, at places that stay the same from moment to moment.

Every edge that is drawn has a measured effect, and the circuit is drawn only where it is more faithful than random
circuits of its size. Nothing here looks at a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import spearmanr

from src.utils.circuits.contrast import SAFETY, ContrastWords
from src.utils.circuits.faithfulness import CircuitChange, CircuitFaithfulness
from src.utils.circuits.graph import Graph
from src.utils.decomposition.multiplicity import stated_p
from src.visualizations.circuit_figures import LEVEL, SILENT, finite_range, lines_above, none_found
from src.visualizations.figure_page import FigurePage, as_floats
from src.visualizations.palette import (
    FAINT_COLOUR,
    LABEL_COLOURS,
    MISSING_COLOUR,
    NEUTRAL_COLOUR,
    REFERENCE_COLOUR,
    TEXT_COLOUR,
)
from src.visualizations.panels import Spec, assembled, axes, axis_names, line, panel_title, titled

DIAGRAM, SIDE = (0.0, 0.62), (0.71, 1.0)
CROWDED = 96  # edges: a size whose number would run into the next one on the axis
ALPHA = 0.05
LAYER_HEIGHT, LEAST_LAYER_HEIGHT, TALL = 74, 48, 1500  # pixels of a layer, fewer where all would be TALL together
SIDE_HEIGHT, SIDE_GAP = 300, 90  # pixels at most of a panel at the side, and between the two
READ_AS = {"q": "query", "k": "key", "v": "value, or by an MLP or the logits"}
DASHES = {"q": "dash", "k": "dot", "v": "solid", "mlp": "solid", "logits": "solid"}


@dataclass(frozen=True, eq=False)
class CircuitView:
    """Edges as (reader, writer), strongest first, the first ones with exact and estimated effects in logits.

    `chosen` is the size of circuit that may be drawn, one of `faithful`'s, chosen on other pairs than those measured.

    `gap` is the margin of the unsafe minus that of the safe prompt, of which effects are parts. `nodes` are the exact
    effects of whole writers, in the graph's order, NaN where not measured. All is measured on `n_pairs`.
    """

    ranked: Sequence[tuple[int, int]]
    chosen: int
    exact: Float[np.ndarray, " verified"]
    estimated: Float[np.ndarray, " verified"]
    faithful: CircuitFaithfulness
    gap: float
    nodes: Float[np.ndarray, " writers"]
    n_pairs: int

    @property
    def drawn_size(self) -> int | None:
        """The chosen size; None if random circuits do as well, or if not all of its edges are measured."""
        at = self.faithful.sizes.index(self.chosen)
        is_better = self.faithful.p[at] <= ALPHA and self.faithful.found[at] > 0
        return self.chosen if is_better and self.chosen <= len(self.exact) else None

    @property
    def is_decided(self) -> bool:
        """Whether of the chosen size all edges are measured, and so many random circuits that p could be small."""
        at = self.faithful.sizes.index(self.chosen)
        return self.chosen <= len(self.exact) and bool(1 / (1 + self.faithful.drawn[at]) <= ALPHA)

    @property
    def rank_correlation(self) -> float:
        """Spearman's, of estimated with exact effects; NaN for fewer than three."""
        if len(self.exact) < 3 or np.ptp(self.exact) == 0 or np.ptp(self.estimated) == 0:
            return float("nan")
        return float(spearmanr(self.estimated, self.exact).statistic)


def circuit_page(
    file_name: str,
    moment: str,
    graph: Graph,
    view: CircuitView | None,
    n_pairs: int,
    since: tuple[str, CircuitChange] | None,
    note: str | None = None,
    words: ContrastWords = SAFETY,
) -> FigurePage:
    """The circuit, its faithfulness by size, and estimates beside exact effects; `view` is None without a gap.

    `since` names an earlier moment and how far the effects have moved from it.
    """
    size = None if view is None else view.drawn_size
    lines = lines_above(circuit_line(view, size, n_pairs), None if since is None else change_line(*since), note)
    rows = graph.n_layers + 1
    top = 44 + 17 * len(lines)
    height = max(430, rows * min(LAYER_HEIGHT, max(LEAST_LAYER_HEIGHT, TALL // rows)))
    upper, lower = side_domains(height)
    places = node_places(graph)
    silence = "none found" if view is None or view.is_decided else "not decided"
    hidden = {"visible": False}
    bare = {} if view is not None else SILENT
    kept: Spec = {"title": titled("edges kept"), "type": "log"}
    if view is not None:
        sizes = [str(one) if one != CROWDED else "" for one in view.faithful.sizes]
        kept |= {"tickvals": list(view.faithful.sizes), "ticktext": sizes, "tickangle": 0}
    layout = {
        **axes(
            1, DIAGRAM, (0, 1), hidden | {"range": [-0.13, 1.13]}, hidden | {"range": [-1.6, 2 * graph.n_layers + 0.6]}
        ),
        **axes(2, SIDE, upper, kept | bare, {"title": titled("% of the gap kept")} | bare),
        **axes(
            3,
            SIDE,
            lower,
            {"title": titled("estimated, to first order (logits)")} | bare,
            {"title": titled("exact (logits)")} | bare,
        ),
        "annotations": [
            panel_title("Circuit, from the embeddings up to the logits", 0, 1),
            panel_title("Faithfulness on other pairs", SIDE[0], 1),
            *block_names(graph),
            panel_title("Effects of the strongest edges", SIDE[0], lower[1]),
            *([none_found(1, silence)] if size is None else []),
            *([none_found(panel) for panel in (2, 3)] if view is None else []),
        ],
        "shapes": [line(2, LEVEL, y=at) for at in (0, 100) if view is not None],
        "height": height + top + 90,
        "margin": {"t": top, "b": 90, "l": 30, "r": 24},
        "legend": {"orientation": "h", "yref": "container", "y": 0.01, "yanchor": "bottom", "x": 0},
    }
    drawn = [] if view is None or size is None else list(zip(view.ranked[:size], view.exact[:size], strict=True))
    data = [
        *edge_lines(graph, drawn, places, 0.0 if view is None else view.gap),
        *(line_names(words) if drawn else []),
        node_points(graph, [ends(graph, *edge) for edge, _ in drawn], places, view),
        *(side_points(view) if view is not None else []),
    ]
    return FigurePage(
        file_name=file_name,
        title=f"{moment}: the circuit behind the margin",
        sentence=f"{drawn_sentence(words) if drawn else f'No edge is drawn: {silence}. '}The circuit and its size are "
        "chosen on pairs of one half; how much of the gap it keeps when all other edges are exchanged is measured on "
        f"pairs of the other. The margin is {words.margin}.",
        figure=assembled(data, layout, lines),
        command="",
    )


def drawn_sentence(words: ContrastWords) -> str:
    """What colours, widths and names of a circuit mean."""
    return (
        f"Orange edges and nodes push the margin towards “{words.high}” when they alone carry the {words.high} "
        f"{words.item}'s activation, blue ones towards “{words.low}”; width and size are that effect, measured one by "
        "one, grey is under 1% of the gap; a node in the colour of its name only reads, a hollow one was not measured. "
        "L2H1 is head 1 of block 2, L2KV0 the keys and values that its first heads share, MLP2 its MLP. "
    )


def side_domains(height: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """The two panels at the side, from the top on, in shares of the diagram's height in pixels."""
    panel = min(SIDE_HEIGHT, (height - SIDE_GAP) / 2)
    below = height - panel - SIDE_GAP
    return (1 - panel / height, 1.0), ((below - panel) / height, below / height)


def circuit_line(view: CircuitView | None, size: int | None, n_pairs: int) -> str:
    if view is None:
        return f"Circuit: none found; {n_pairs} pairs whose margins do not differ more than chance, or too few"
    if size is None and not view.is_decided:
        return "Circuit: not decided; too few random circuits were run, or too few of its edges measured"
    if size is None:
        return "Circuit: none found; random circuits of the same size keep as much of the gap"
    at = view.faithful.sizes.index(size)
    best = float(np.fmax.reduce(view.faithful.random[at], initial=0.0))
    return (
        f"{size} edges keep {view.faithful.found[at]:.0%} of the gap of {view.gap:.2f} logits, mean of "
        f"{view.n_pairs} pair{'s' * (view.n_pairs != 1)}; the best of "
        f"{view.faithful.drawn[at]} random circuits of that size {best:.0%} "
        f"({stated_p(view.faithful.p[at], view.faithful.drawn[at])})"
    )


def change_line(moment: str, change: CircuitChange) -> str:
    return (
        f"Since {moment} the pattern of all edges' effects (each pair's as a vector of length 1) moved by "
        f"{change.total:.0%} of its length; extracting it again from other pairs moves it by {change.noise:.0%}, so "
        f"that {change.beyond_noise:.0%} of the squared change is more than noise"
    )


def node_places(graph: Graph) -> dict[str, tuple[float, float]]:
    """Where each node stands, by its name: x from 0 to 1, y two a layer. It follows from the model's sizes alone."""
    found = {"embeddings": (0.5, -1.0), "logits": (0.5, 2.0 * graph.n_layers)}
    for layer in range(graph.n_layers):
        heads = np.linspace(0, 0.8, graph.n_heads) if graph.n_heads > 1 else np.array([0.4])
        found |= {f"L{layer}H{head}": (float(heads[head]), 2.0 * layer) for head in range(graph.n_heads)}
        for group, members in enumerate(np.array_split(heads, graph.n_kv_heads)):
            found[f"L{layer}KV{group}"] = (float(members.mean()), 2.0 * layer - 0.45)
        found[f"MLP{layer}"] = (1.0, 2.0 * layer + 0.9)
    return found


def ends(graph: Graph, reader: int, writer: int) -> tuple[str, str]:
    """The names of the nodes at the two ends of an edge, writer first; keys and values are read by a group of heads."""
    return graph.writers[writer].name, graph.readers[reader].name.split(".")[0]


def block_names(graph: Graph) -> list[Spec]:
    """The block of each row, at its left."""
    names = axis_names(1)
    return [
        {"text": f"block {layer}", "x": -0.04, "y": 2.0 * layer, "xref": names["xaxis"], "yref": names["yaxis"],
         "xanchor": "right", "showarrow": False, "font": {"size": 11, "color": NEUTRAL_COLOUR}}
        for layer in range(graph.n_layers)
    ]  # fmt: skip


def line_names(words: ContrastWords) -> list[Spec]:
    """What colours and dashes mean, for the legend."""
    kinds = [
        (f"towards “{words.high}”", LABEL_COLOURS["unsafe"], "solid", 4),
        (f"towards “{words.low}”", LABEL_COLOURS["safe"], "solid", 4),
        ("under 1% of the gap", FAINT_COLOUR, "solid", 2),
        *((f"read as {name}", TEXT_COLOUR, DASHES[kind], 2) for kind, name in READ_AS.items()),
    ]
    return [
        {"type": "scatter", "x": [None], "y": [None], "mode": "lines", "name": name,
         "line": {"color": colour, "dash": dash, "width": width}, **axis_names(1)}
        for name, colour, dash, width in kinds
    ]  # fmt: skip


def edge_lines(
    graph: Graph, drawn: Sequence[tuple[tuple[int, int], float]], places: dict[str, tuple[float, float]], gap: float
) -> list[Spec]:
    """A curve an edge, and at its middle a point that says what it is; the slightest first, under all others."""
    widest = finite_range(np.array([effect for _, effect in drawn]))
    found: list[Spec] = []
    middles: list[tuple[float, float, str]] = []
    for (reader, writer), effect in sorted(drawn, key=lambda one: abs(one[1])):
        colour = effect_colour(effect, gap)
        start, end = (np.array(places[name]) for name in ends(graph, reader, writer))
        kind = graph.readers[reader].kind
        bend = np.array([0.06 if end[1] - start[1] > 2 else 0.0, 0.0]) * (1 if start[0] < 0.9 else -1)
        steps = np.linspace(0, 1, 13)[:, None]
        middle = (start + end) / 2 + 2 * bend
        curve = (1 - steps) ** 2 * start + 2 * steps * (1 - steps) * middle + steps**2 * end
        found.append({
            "type": "scatter", "x": as_floats(curve[:, 0]), "y": as_floats(curve[:, 1]), "mode": "lines",
            "line": {"color": colour, "dash": DASHES[kind], "width": 1 + 6 * abs(effect) / widest},
            "opacity": 0.75, "hoverinfo": "skip", "showlegend": False, **axis_names(1),
        })  # fmt: skip
        name = f"{graph.writers[writer].name} → {graph.readers[reader].name}: {effect:+.3f} logits"
        middles.append((float(curve[6, 0]), float(curve[6, 1]), name))
    if middles:
        x, y, text = zip(*middles, strict=True)
        found.append({
            "type": "scatter", "x": as_floats(np.array(x)), "y": as_floats(np.array(y)), "mode": "markers",
            "text": list(text), "marker": {"size": 9, "color": "rgba(0,0,0,0.01)"}, "showlegend": False,
            "hovertemplate": "%{text}<extra></extra>", **axis_names(1),
        })  # fmt: skip
    return found


def node_points(
    graph: Graph, edges: Sequence[tuple[str, str]], places: dict[str, tuple[float, float]], view: CircuitView | None
) -> Spec:
    """All nodes, those of the circuit with their names and effects; of the others a trace, so that places compare.

    A node that writes and whose effect was not measured is hollow; one that only reads has none.
    """
    used, writing = {name for edge in edges for name in edge}, {writer for writer, _ in edges}
    effects = {} if view is None else dict(zip((one.name for one in graph.writers), view.nodes.tolist(), strict=True))
    effects = {name: effect for name, effect in effects.items() if name in used and np.isfinite(effect)}
    widest = finite_range(np.array([*effects.values()]))
    names = [name for name in places if "KV" not in name or name in used]

    def colour(name: str) -> str:
        if name not in used:
            return FAINT_COLOUR
        if name not in effects or view is None:
            return "white" if name in writing else TEXT_COLOUR
        return effect_colour(effects[name], view.gap)

    def said(name: str) -> str:
        return f"{name}: not measured" if name in writing else name

    return {
        "type": "scatter", "x": [places[name][0] for name in names], "y": [places[name][1] for name in names],
        "mode": "markers+text", "text": [name if name in used else "" for name in names],
        "hovertext": [f"{name}: {effects[name]:+.3f} logits" if name in effects else said(name) for name in names],
        "textposition": "top center", "textfont": {"size": 11, "color": TEXT_COLOUR}, "showlegend": False,
        "marker": {"size": [9 + 9 * abs(effects.get(name, 0.0)) / widest if name in used else 5 for name in names],
                   "symbol": ["square" if "KV" in name or name.startswith("MLP") else "circle" for name in names],
                   "color": [colour(name) for name in names], "opacity": 1,
                   "line": {"color": TEXT_COLOUR, "width": [1.2 if name in used else 0 for name in names]}},
        "hovertemplate": "%{hovertext}<extra></extra>", **axis_names(1),
    }  # fmt: skip


def effect_colour(effect: float, gap: float) -> str:
    """That of the class which an effect pushes towards; grey under 1% of the gap."""
    return FAINT_COLOUR if abs(effect) < 0.01 * abs(gap) else LABEL_COLOURS["unsafe" if effect > 0 else "safe"]


def side_points(view: CircuitView) -> list[Spec]:
    sizes, draws = view.faithful.sizes, view.faithful.random.shape[1]
    found: list[Spec] = [
        {
            "type": "scatter", "x": np.repeat(sizes, draws).tolist(), "mode": "markers",
            "y": as_floats(100 * view.faithful.random.ravel()), "name": "random circuits",
            "marker": {"color": MISSING_COLOUR, "size": 5, "symbol": "circle-open"}, **axis_names(2),
        },
        {
            "type": "scatter", "x": list(sizes), "y": as_floats(100 * view.faithful.found), "mode": "lines+markers",
            "name": "strongest edges", "line": {"color": REFERENCE_COLOUR}, **axis_names(2),
        },
    ]  # fmt: skip
    if len(view.exact):
        found.append({
            "type": "scatter", "x": as_floats(view.estimated), "y": as_floats(view.exact), "mode": "markers",
            "name": f"edges: rank correlation {view.rank_correlation:.2f}", "marker": {"color": TEXT_COLOUR, "size": 6},
            "hovertemplate": "estimated %{x:.3f}, exact %{y:.3f}<extra></extra>",
            **axis_names(3),
        })  # fmt: skip
    return found
