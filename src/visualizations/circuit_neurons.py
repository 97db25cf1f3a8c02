"""Which neurons tell two classes apart, where they are, and what the margin loses without the best of them.

Nothing here looks at a model: the numbers come from `src/utils/circuits`. Where nothing survives its test, the page
says "none found" and marks nothing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from src.utils.circuits.contrast import SAFETY, ContrastWords
from src.utils.circuits.neuron_ablation import Ablation
from src.utils.circuits.neurons import NeuronTable
from src.utils.decomposition.multiplicity import stated_p
from src.visualizations.circuit_figures import (
    BOUNDARY,
    LEFT,
    LEVEL,
    LOWER,
    NOT_MEASURED,
    RIGHT,
    SILENT,
    UPPER,
    layer_axis,
    lines_above,
    none_found,
)
from src.visualizations.figure_page import FigurePage, as_floats
from src.visualizations.palette import FAINT_COLOUR, LABEL_COLOURS, MISSING_COLOUR, REFERENCE_COLOUR
from src.visualizations.panels import Spec, assembled, axes, axis_names, line, panel_title, titled

LEAST_SETS = 19  # with fewer no p of 0.05 can be reached
MOST_POINTS = 2800  # neurons of all layers that are drawn, so that a page stays below 300 kB; the rest is counted


def neuron_page(
    file_name: str,
    moment: str,
    table: NeuronTable | None,
    top: Sequence[tuple[int, int]],
    ablations: Sequence[Ablation],
    n_frozen: int,
    note: str | None = None,
    words: ContrastWords = SAFETY,
) -> FigurePage:
    """The AUROC of every neuron by layer with the claimed ones marked, how many a layer has, what ablation takes.

    `table` is None where there were too few rows to test anything.
    """
    lines = lines_above(
        neuron_line(table, words),
        *(ablation_line(one, len(top)) for one in ablations),
        "Left of the dashed line blocks are frozen" if n_frozen > 1 and table is not None else None,
        note,
    )
    margin_top = 44 + 17 * len(lines)
    block = layer_axis("block", 0 if table is None else len(table.auroc))
    titles = (
        panel_title(points_title(table), 0, 1),
        panel_title("Neurons that tell the classes apart", RIGHT[0], UPPER[1]),
        panel_title(f"Ablated: the top {len(top)}, and random ones" if top else "Ablation", RIGHT[0], LOWER[1]),
    )
    is_any = table is not None and bool(table.is_claimed.any())
    claimed, ablated = {} if is_any else SILENT, {} if ablations else SILENT
    share = {"title": titled("% of the block's neurons"), "rangemode": "tozero"}
    learning = [] if table is None or n_frozen <= 1 else [1, 2] if is_any else [1]  # panels with frozen blocks in them
    auroc_title = f"larger on {words.low} ← AUROC → larger on {words.high}"
    layout = {
        **axes(1, LEFT, (0, 1), block, {"title": titled(auroc_title), "range": [-0.03, 1.03]}),
        **axes(
            2,
            RIGHT,
            UPPER,
            block | claimed,
            share | claimed,
        ),
        **axes(
            3,
            (RIGHT[0] + 0.05, RIGHT[1]),  # room for the names of both kinds
            LOWER,
            {"title": titled("% of the classes' separation lost"), "range": lost_range(ablations)} | ablated,
            {"type": "category"},
        ),
        "annotations": [
            *titles,
            *([none_found(1, NOT_MEASURED)] if table is None else []),
            *([] if is_any else [none_found(2, NOT_MEASURED if table is None else "none found")]),
            *([] if ablations else [none_found(3, "nothing ablated")]),
        ],
        "shapes": [
            line(1, LEVEL, y=0.5),
            *(line(panel, BOUNDARY, x=(n_frozen - 1.5,) * 2) for panel in learning),
        ],
        "height": 540 + margin_top,
        "margin": {"t": margin_top, "b": 84, "l": 64, "r": 24},
        "legend": {"orientation": "h", "yref": "container", "y": 0.01, "yanchor": "bottom", "x": 0},
        "barmode": "stack",
    }
    data = [*(neuron_points(table, words) if table is not None else []), *ablation_points(ablations)]
    count = 0 if table is None else int(table.is_claimed.sum())
    named = "Safety" if words == SAFETY else words.high.capitalize()
    said = f"{count} neurons tell" if count != 1 else "One neuron tells"
    return FigurePage(
        file_name=file_name,
        title=f"{moment}: which neurons tell {words.low} from {words.high} {words.item}s",
        sentence=(f"{said} the classes apart" if count else f"{named} neurons: none found")
        + " after correction over all neurons (Benjamini-Hochberg, 5%), replicated in two halves of the data"
        f"{' and more clearly than before training' if is_compared(table) else ''}. {ablation_sentence(ablations)}",
        figure=assembled(data, layout, lines),
        command="",
    )


def neuron_line(table: NeuronTable | None, words: ContrastWords) -> str:
    if table is None:
        return f"Too few {words.item}s of a class to test neurons in two halves"
    exceed = f", {int(table.is_claimed.sum())} exceed what they were before training" if is_compared(table) else ""
    return (
        f"{table.auroc.size:,} neurons; {int((table.q <= 0.05).sum())} survive correction, "
        f"{int(table.separates.sum())} of them replicate{exceed}"
    )


def is_compared(table: NeuronTable | None) -> bool:
    """Whether it is known what the neurons were before training."""
    return table is not None and not np.isnan(table.excess).all()


def ablation_sentence(ablations: Sequence[Ablation]) -> str:
    """Whether the top neurons do anything: only beyond matched random ones, by both kinds of ablation."""
    if not ablations:
        return "Nothing was ablated."
    if all(one.p <= 0.05 for one in ablations):
        share = min(lost(one, one.drop) for one in ablations)
        return (
            "Without the top ones the margin loses more than without matched random neurons: they have an effect, "
            f"{share:.2g}% of the classes' separation."
        )
    if min(len(one.random_drops) for one in ablations) < LEAST_SETS:
        return "Too few random sets were run to say whether the top ones have an effect."
    return "Without the top ones the margin loses no more than without matched random ones: no effect of theirs found."


def ablation_line(ablation: Ablation, count: int) -> str:
    drop, middle = lost(ablation, ablation.drop), float(np.median(lost(ablation, ablation.random_drops)))
    return (
        f"{ablation.mode.capitalize()} ablation of the top {count} takes {drop:.2g}% of the separation of "
        f"{ablation.separation:.2f} logits; {len(ablation.random_drops)} matched random sets: median {middle:.2g}%, "
        f"{stated_p(ablation.p, len(ablation.random_drops))}"
    )


def lost(ablation: Ablation, drop: Any) -> Any:
    """A drop as % of the separation; of one that is 0 or less, NaN."""
    return 100 * drop / ablation.separation if ablation.separation > 0 else np.nan * drop


def lost_range(ablations: Sequence[Ablation]) -> list[float]:
    """At least one percent to both sides, so that nothing does not look like something."""
    shares = [np.append(lost(one, one.random_drops), lost(one, one.drop)) for one in ablations]
    known = np.concatenate([np.zeros(1), *shares])
    known = known[np.isfinite(known)]
    return [1.1 * min(-1.0, float(known.min())), 1.1 * max(1.0, float(known.max()))]


def points_title(table: NeuronTable | None) -> str:
    title = "MLP neurons at the last token: AUROC"
    if table is None or table.auroc.size <= MOST_POINTS:
        return title
    return f"{title}<br>({int(drawn_neurons(table).sum()):,} of {table.auroc.size:,} drawn: claimed, or far from 0.5)"


def drawn_neurons(table: NeuronTable) -> Bool[np.ndarray, "layers neurons"]:
    """At most `MOST_POINTS`: claimed ones, then as many others a block; of both those farthest from 0.5."""
    distance = np.abs(table.auroc - 0.5)
    claimed = np.flatnonzero(table.is_claimed)
    claimed = claimed[np.argsort(-distance.ravel()[claimed], kind="stable")[:MOST_POINTS]]
    others = np.where(table.is_claimed, -1.0, distance)
    a_block = (MOST_POINTS - len(claimed)) // len(distance)
    found = np.zeros(distance.shape, dtype=bool)
    np.put_along_axis(found, np.argsort(-others, axis=1, kind="stable")[:, :a_block], True, axis=1)
    found.ravel()[claimed] = True
    return found


def neuron_points(table: NeuronTable, words: ContrastWords) -> list[Spec]:
    """The neurons that are drawn, claimed ones on top; a share of each block that is claimed."""
    claimed, drawn = table.is_claimed, drawn_neurons(table)
    x, y, text, colours, sizes = [], [], [], [], []
    for layer, aurocs in enumerate(table.auroc):
        order = np.flatnonzero(drawn[layer])
        order = order[np.argsort(claimed[layer, order], kind="stable")]
        offsets = ((order * 0.618034) % 1 - 0.5) * 0.7  # the same place for a neuron at every moment
        x += (layer + offsets).tolist()
        y += aurocs[order].tolist()
        text += [neuron_text(table, layer, int(neuron)) for neuron in order]
        colours += [side_colour(aurocs[neuron]) if claimed[layer, neuron] else FAINT_COLOUR for neuron in order]
        sizes += [8 if claimed[layer, neuron] else 4 for neuron in order]
    points = {
        "type": "scatter", "x": as_floats(np.array(x)), "y": as_floats(np.array(y)),
        "mode": "markers", "text": text, "marker": {"color": colours, "size": sizes, "line": {"width": 0}},
        "hovertemplate": "%{text}<extra></extra>", "showlegend": False, **axis_names(1),
    }  # fmt: skip
    bars = [
        {
            "type": "bar", "x": list(range(len(claimed))), "name": f"larger on {name} {words.item}s",
            "y": as_floats(100 * (claimed & side).mean(axis=1)), "marker": {"color": LABEL_COLOURS[label]},
            "hovertemplate": "block %{x}: %{y:.2f}%<extra></extra>", **axis_names(2),
        }
        for label, name, side in (("safe", words.low, table.auroc < 0.5), ("unsafe", words.high, table.auroc > 0.5))
    ]  # fmt: skip
    return [points, *(bars if claimed.any() else [])]


def neuron_text(table: NeuronTable, layer: int, neuron: int) -> str:
    first, second = table.halves[:, layer, neuron]
    return (
        f"block {layer}, neuron {neuron}: AUROC {table.auroc[layer, neuron]:.3f} (halves {first:.2f}, {second:.2f}), "
        f"q {table.q[layer, neuron]:.2g}"
    )


def side_colour(auroc: float) -> str:
    return LABEL_COLOURS["unsafe" if auroc > 0.5 else "safe"]


def ablation_points(ablations: Sequence[Ablation]) -> list[Spec]:
    found: list[Spec] = []
    for number, one in enumerate(ablations):
        rows = [one.mode]
        for name, values, marker in (
            ("matched random neurons", one.random_drops, {"color": MISSING_COLOUR, "size": 7, "symbol": "circle-open"}),
            ("the top neurons", np.array([one.drop]), {"color": REFERENCE_COLOUR, "size": 12, "symbol": "diamond"}),
        ):
            found.append({
                "type": "scatter", "x": as_floats(lost(one, values)), "y": rows * len(values), "mode": "markers",
                "name": name, "marker": marker, "legendgroup": name, "showlegend": number == 0,
                "hovertemplate": "%{x:.3g}%<extra></extra>", **axis_names(3),
            })  # fmt: skip
    return found
