"""Where safe and unsafe part in a model that learns, by probes and by patching; and what its causal pictures share.

Nothing here looks at a model: the numbers come from `src/utils/circuits`. Where nothing survives its test, the page
says "none found" and marks nothing.
"""

import numpy as np
from jaxtyping import Float

from src.utils.circuits.contrast import SAFETY, ContrastWords
from src.utils.circuits.divergence import Divergence, divergence_layer
from src.utils.circuits.layer_probes import ALPHA, LayerProbes
from src.utils.circuits.patching import ATTENTION, DIFFERING, KINDS, LAST, MLP, LayerPatching
from src.utils.decomposition.multiplicity import stated_p
from src.visualizations.figure_page import FigurePage, as_floats, escape_text
from src.visualizations.palette import MISSING_COLOUR, NEUTRAL_COLOUR, REFERENCE_COLOUR, TEXT_COLOUR
from src.visualizations.panels import Spec, assembled, axes, axis_names, line, panel_title, titled
from src.visualizations.training_figures import NOTE_WIDTH

MOST_NAMED = 12  # layers along an axis: in two columns of a window of 800 pixels two-digit numbers do not touch
NOT_MEASURED = "not measured"
LEFT, RIGHT = (0.0, 0.455), (0.545, 1.0)
UPPER, LOWER = (0.58, 1.0), (0.0, 0.42)
# dark teal and violet, solid and dashed as well: told apart by every kind of colour blindness and in grey
DIRECTIONS = (("denoising: what suffices", "#0F766E", "solid"), ("noising: what is needed", "#8B5CF6", "dash"))
PART_NAMES = {ATTENTION: "attention", MLP: "MLP"}
BOUNDARY = {"color": TEXT_COLOUR, "dash": "dash", "width": 1.4}
LEVEL = {"color": MISSING_COLOUR, "dash": "dot", "width": 1.2}
FOUND = {"color": REFERENCE_COLOUR, "width": 1.6}
SILENT: Spec = {"showticklabels": False, "showgrid": False, "zeroline": False}  # of an axis along which nothing lies


def comparison_page(
    file_name: str,
    moment: str,
    probes: LayerProbes | None,
    patching: LayerPatching | None,
    n_frozen: int,
    note: str | None = None,
    words: ContrastWords = SAFETY,
    before: tuple[float, float] | None = None,
) -> FigurePage:
    """Probes by layer, and the share of the margin that each layer carries, in both directions.

    Without enough groups there are no probes, without contrast pairs no patching: the page says so. `n_frozen` layers,
    from the embeddings on, cannot have changed; `note` says what the budget cut. `before` are the mean margins of the
    two classes before training, on the same pairs or as many of them as were measured then.
    """
    divergence = None if patching is None else divergence_layer(patching)
    is_readable = patching is not None and patching.is_readable
    silence = NOT_MEASURED if patching is None else "none found"
    than = ", and above the model before training" if probes is not None and is_compared(probes) else ""
    n_layers = len(probes.auroc) if probes is not None else 0 if patching is None else len(patching.denoised[LAST])
    lines = lines_above(
        probe_line(probes),
        *patching_lines_above(patching, words, before),
        "Left of the dashed line nothing learns, and nothing can have changed" if n_frozen and n_layers else None,
        note,
    )
    top = 44 + 17 * len(lines)
    share = {"title": titled("% of the margin's gap"), "range": share_range(patching)}
    titles = (
        panel_title("Held-out probe at the last token", LEFT[0], UPPER[1]),
        panel_title("Patched: residual stream, last token", RIGHT[0], UPPER[1]),
        panel_title("Patched: residual stream, differing tokens", LEFT[0], LOWER[1]),
        panel_title("Patched: what a block's attention or MLP adds", RIGHT[0], LOWER[1]),
    )
    layer = layer_axis("layer (hidden_states[l]: 0 embeddings)", n_layers)
    shown, layered = ({}, (1, 2, 3)) if is_readable else (SILENT, (1,))
    layout = {
        **axes(1, LEFT, UPPER, layer, {"title": titled("AUROC, held out"), "range": [0.3, 1.03]}),
        **axes(2, RIGHT, UPPER, layer | shown, share | shown),
        **axes(3, LEFT, LOWER, layer | shown, share | shown),
        **axes(4, RIGHT, LOWER, layer_axis("block", n_layers - 1) | shown, share | shown),
        "annotations": [
            *titles,
            *([none_found(1, NOT_MEASURED)] if probes is None else []),
            *([] if is_readable else [none_found(panel, silence) for panel in (2, 3, 4)]),
        ],
        "shapes": [
            line(1, LEVEL, y=0.5),
            *(line(panel, LEVEL, y=at) for panel in (2, 3, 4) for at in (0, 100) if is_readable),
            *(line(panel, BOUNDARY, x=(n_frozen - 0.5,) * 2) for panel in layered if n_frozen and n_layers),
            *([] if divergence is None else divergence_marks(divergence)),
        ],
        "height": 640 + top,
        "margin": {"t": top, "b": 96, "l": 64, "r": 24},
        "legend": {"orientation": "h", "yref": "container", "y": 0.01, "yanchor": "bottom", "x": 0},
    }  # fmt: skip
    data = [*probe_lines(probes), *(patching_lines(patching) if patching is not None and is_readable else [])]
    return FigurePage(
        file_name=file_name,
        title=f"{moment}: where {words.low} and {words.high} {words.item}s part",
        sentence=f"{divergence_sentence(divergence, words)} Top left: what a probe reads off each layer (filled: above "
        f"shuffled labels, corrected p ≤ {ALPHA:g}{than}). The others: how much of the margin's gap follows "
        f"when a layer's activation is exchanged between the two {words.item}s of a pair. The margin is "
        f"{words.margin}.",
        figure=assembled(data, layout, lines),
        command="",
    )


def divergence_sentence(divergence: Divergence | None, words: ContrastWords) -> str:
    if divergence is None:
        return f"Divergence layer: none found; the margins of paired {words.item}s do not differ more than chance."
    return (
        f"Divergence layer: {divergence.layer}, 95% interval [{divergence.low}, {divergence.high}]: the first whose "
        "last token carries half of the margin."
    )


def probe_line(probes: LayerProbes | None) -> str:
    if probes is None:
        return "Probes: too few of a class for held-out folds"
    learned = ", ".join(map(str, np.flatnonzero(probes.is_learned))) or "none found"
    than = ", and more than before training" if is_compared(probes) else ""
    against = f"corrected over layers, p ≤ {ALPHA:g} against shuffled labels{than}"
    undecided = int((~probes.is_decidable).sum())
    few = f"; too little data to tell of {undecided} of {len(probes.p)} layers, even at an AUROC of 1"
    return f"Layers that tell the classes apart ({against}): {learned}{few if undecided else ''}"


def is_compared(probes: LayerProbes) -> bool:
    """Whether it is known what the layers said before training."""
    return not np.isnan(probes.before).all()


def patching_lines_above(
    patching: LayerPatching | None, words: ContrastWords, before: tuple[float, float] | None
) -> list[str]:
    """What is said of the margins of the pairs above the panels."""
    if patching is None:
        return [f"Patching: no pair of {words.item}s of equal length"]
    gap = float(np.mean(patching.unsafe - patching.safe))
    told = "" if patching.is_readable else ": no more than chance, so that no share of it is shown"
    levels = f"Mean margins: {words.high} {np.mean(patching.unsafe):+.2f}, {words.low} {np.mean(patching.safe):+.2f}"
    if before is not None:
        levels += f"; before training {before[1]:+.2f}, {before[0]:+.2f}"
    of_pair = f"margin of the {words.high} {words.item} minus that of the {words.low} one"
    return [f"Gap: {of_pair}, mean of {len(patching.safe)} pairs: {gap:+.2f} logits{told}", levels]


def probe_lines(probes: LayerProbes | None) -> list[Spec]:
    if probes is None:
        return []
    layers = list(range(len(probes.auroc)))
    estimate, low, high = probes.auroc.T
    found: list[Spec] = [
        {
            "type": "scatter", "x": layers, "y": as_floats(np.quantile(probes.null, 0.95, axis=0)), "mode": "lines",
            "name": "95% of shuffled labels, uncorrected", "line": {"color": MISSING_COLOUR, "dash": "dot"},
            **axis_names(1),
        },
        {
            "type": "scatter", "x": layers, "y": as_floats(estimate), "mode": "lines+markers", "name": "probe, now",
            "line": {"color": NEUTRAL_COLOUR},
            "marker": {"size": 9, "color": [NEUTRAL_COLOUR if one else "white" for one in probes.is_learned],
                       "line": {"color": NEUTRAL_COLOUR, "width": 1.5}},
            "error_y": {"type": "data", "symmetric": False, "array": as_floats(high - estimate),
                        "arrayminus": as_floats(estimate - low), "thickness": 1, "width": 3},
            "customdata": np.asarray(probes.excess, dtype=np.float32),
            "text": [stated_p(p, len(probes.null)) for p in probes.p],
            "hovertemplate": "layer %{x}: AUROC %{y:.3f}, %{text}<br>above before training "
            "%{customdata[0]:+.3f} [%{customdata[1]:+.3f}, %{customdata[2]:+.3f}]<extra></extra>", **axis_names(1),
        },
    ]  # fmt: skip
    if is_compared(probes):
        found.append({
            "type": "scatter", "x": layers, "y": as_floats(probes.before), "mode": "lines+markers",
            "name": "probe, before training", "line": {"color": "#A3ACB8"}, "marker": {"size": 5}, **axis_names(1),
        })  # fmt: skip
    return found


def patching_lines(patching: LayerPatching) -> list[Spec]:
    found: list[Spec] = []
    for panel, kind, symbol in ((2, LAST, "circle"), (3, DIFFERING, "circle"), (4, ATTENTION, "diamond"),
                                (4, MLP, "square")):  # fmt: skip
        for (name, colour, dash), shares in zip(DIRECTIONS, patching.resampled(kind), strict=True):
            low, high = np.quantile(shares[1:], [0.025, 0.975], axis=0)
            part = f"{PART_NAMES[kind]}, {name.split(':')[0]}" if panel == 4 else name
            found.append({
                "type": "scatter", "x": list(range(shares.shape[1])), "y": as_floats(100 * shares[0]),
                "mode": "lines+markers", "name": part, "legendgroup": part, "showlegend": panel != 3,
                "line": {"color": colour, "dash": dash}, "marker": {"size": 7, "symbol": symbol},
                "error_y": {"type": "data", "symmetric": False, "array": as_floats(100 * (high - shares[0])),
                            "arrayminus": as_floats(100 * (shares[0] - low)), "thickness": 1, "width": 3},
                "hovertemplate": "%{x}: %{y:.1f}%<extra>" + part + "</extra>", **axis_names(panel),
            })  # fmt: skip
    return found


def share_range(patching: LayerPatching | None) -> list[float]:
    """From -25 to 125%, and as far beyond as any share: one layer may overshoot what another takes back."""
    known = [np.zeros(1)]
    if patching is not None and patching.is_readable:
        weights = np.ones((1, len(patching.safe)))
        known += [100 * shares[0] for kind in KINDS for shares in patching.shares(kind, weights)]
    every = np.concatenate(known)
    return [min(-25.0, 1.1 * float(every.min())), max(125.0, 1.1 * float(every.max()))]


def divergence_marks(divergence: Divergence) -> list[Spec]:
    """The divergence layer as a line, its interval as a band."""
    names = axis_names(2)
    band = {
        "type": "rect", "xref": names["xaxis"], "yref": f"{names['yaxis']} domain", "y0": 0, "y1": 1, "line_width": 0,
        "x0": divergence.low - 0.2, "x1": divergence.high + 0.2, "fillcolor": REFERENCE_COLOUR, "opacity": 0.12,
    }  # fmt: skip
    return [band, line(2, FOUND, x=(divergence.layer, divergence.layer))]


def layer_axis(title: str, count: int) -> Spec:
    """The axis of `count` layers or blocks, of which at most `MOST_NAMED` are named; also of a panel without data."""
    if count < 1:
        return {"title": titled(title), "showticklabels": False}
    return {"title": titled(title), "range": [-0.6, count - 0.4], "dtick": -(-count // MOST_NAMED)}


def lines_above(*texts: str | None) -> list[str]:
    """What stands above the panels, wrapped so that it fits a page of 800 pixels; None is left out."""
    return [line for text in texts if text for line in escape_text(text, width=NOTE_WIDTH).split("<br>")]


def none_found(panel: int, text: str = "none found") -> Spec:
    names = axis_names(panel)
    return {"text": text, "x": 0.5, "y": 0.5, "xref": f"{names['xaxis']} domain", "yref": f"{names['yaxis']} domain",
            "showarrow": False, "font": {"size": 15, "color": NEUTRAL_COLOUR}}  # fmt: skip


def finite_range(values: Float[np.ndarray, " values"]) -> float:
    """The largest absolute value, at least a little over 0."""
    return float(max(np.abs(values).max(initial=0.0), 1e-9))
