"""The same scales in two figures that stand side by side, so that a difference seen is a difference there is.

Only what both figures draw on the same axis is joined: the span of an axis, the ends of a colour scale. Figures are
plotly's JSON; arrays in them may be lists or base64, as plotly writes them.
"""

import base64
import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

Spec = dict[str, Any]
COLOURS = {"heatmap": ("zmin", "zmax", "z"), "contour": ("zmin", "zmax", "z")}
ROOM = 0.04  # of the span, at each end


def with_same_scales(figures: Sequence[Spec]) -> list[Spec]:
    """Copies of the figures with joined axes and colour scales.

    An axis is joined where every figure has it with numbers on it: to the union of the ranges that are set, or, where
    none is, to the span of all points. A scale that already agrees stays as it is.
    """
    copies = [copy.deepcopy(figure) for figure in figures]
    shared = set.intersection(*(set(axes_of(figure)) for figure in copies)) if copies else set()
    for name in sorted(shared):
        spans = [span_of(figure, name) for figure in copies]
        if all(span is not None for span in spans):
            low = min(span[0] for span in spans if span)
            high = max(span[1] for span in spans if span)
            for figure in copies:
                join_axis(figure["layout"].setdefault(name, {}), low, high)
    join_colours(copies)
    return copies


def axes_of(figure: Spec) -> dict[str, str]:
    """Layout name -> the name by which traces call it, of every cartesian axis that is drawn on: `xaxis2` -> `x2`."""
    names = {}
    for trace in figure["data"]:
        for letter in "xy":
            reference = trace.get(f"{letter}axis", letter)
            if letter in trace and isinstance(reference, str):
                names[f"{letter}axis{reference[1:]}"] = reference
    return names


def span_of(figure: Spec, name: str) -> tuple[float, float] | None:
    """Lowest and highest of an axis, None where it has categories, dates or a logarithm, or no number on it."""
    axis = figure["layout"].get(name, {})
    if axis.get("type", "linear") not in ("linear", "-"):
        return None
    if is_numeric_range(axis.get("range")):
        return float(min(axis["range"])), float(max(axis["range"]))
    reference, letter = name.replace("axis", ""), name[0]
    found, has_bars = [], False
    for trace in figure["data"]:
        if letter in trace and trace.get(f"{letter}axis", letter) == reference:
            values = numbers(trace[letter])
            if values is None:
                return None
            known = values[np.isfinite(values)]
            found.append(known)
            if trace.get("type") == "bar" and letter == along(trace):
                has_bars = True
                found.append(np.zeros(1))
            elif trace.get("type") == "bar":  # a bar is as wide as the next one is far
                half = np.diff(np.unique(known)).min(initial=np.inf) / 2
                found += [known - half, known + half] if np.isfinite(half) else []
    if figure["layout"].get("barmode") in ("stack", "relative"):
        found.append(stack_ends(figure, reference, letter))
    joined = np.concatenate(found) if found else np.empty(0)
    if not joined.size:
        return None
    room = ROOM * float(np.ptp(joined))
    low, high = float(joined.min()), float(joined.max())
    return 0.0 if low == 0 and has_bars else low - room, high + room


def stack_ends(figure: Spec, reference: str, letter: str) -> Float[np.ndarray, " ends"]:
    """Where bars that stand on each other along an axis end; none where bars stand beside it, or there are none."""
    ends: dict[tuple[Any, bool], float] = {}
    for trace in figure["data"]:
        if trace.get("type") != "bar" or along(trace) != letter or trace.get(f"{letter}axis", letter) != reference:
            continue
        lengths, feet = numbers(trace.get(letter)), trace.get("y" if letter == "x" else "x")
        places = numbers(feet) if isinstance(feet, Mapping) else feet
        if lengths is None or places is None:
            continue
        for place, length in zip(places, lengths, strict=True):
            if np.isfinite(length):
                key = (place, bool(length < 0))
                ends[key] = ends.get(key, 0.0) + float(length)
    return np.array([*ends.values()], dtype=float)


def along(bars: Spec) -> str:
    """The letter of the axis along which bars grow."""
    return "x" if bars.get("orientation") == "h" else "y"


def join_axis(axis: Spec, low: float, high: float) -> None:
    """Set the range, downwards where the axis counts downwards."""
    old = axis.get("range") or [0.0, 0.0]
    is_reversed = axis.get("autorange") == "reversed" or (is_numeric_range(old) and old[0] > old[1])
    axis["range"] = [high, low] if is_reversed else [low, high]
    axis.pop("autorange", None)


def join_colours(figures: Sequence[Spec]) -> None:
    """One colour scale for the heat maps at the same place of all figures, and for each colour axis."""
    for traces in zip(*(figure["data"] for figure in figures), strict=False):
        kind = traces[0].get("type")
        if kind in COLOURS and all(trace.get("type") == kind and "coloraxis" not in trace for trace in traces):
            low_name, high_name, values = COLOURS[kind]
            join_ends(traces, low_name, high_name, [numbers(trace.get(values)) for trace in traces])
    names = {name for figure in figures for name in figure["layout"] if name.startswith("coloraxis")}
    for name in names:
        ends = [figure["layout"].get(name, {}) for figure in figures]
        if all("cmin" in end and "cmax" in end for end in ends):
            join_ends(ends, "cmin", "cmax", [None] * len(ends))


def join_ends(
    holders: Sequence[Spec], low_name: str, high_name: str, values: Sequence[Float[np.ndarray, "..."] | None]
) -> None:
    lows, highs = [], []
    for holder, own in zip(holders, values, strict=True):
        finite = own[np.isfinite(own)] if own is not None else np.empty(0)
        low = holder.get(low_name, finite.min() if finite.size else None)
        high = holder.get(high_name, finite.max() if finite.size else None)
        if low is None or high is None:
            return
        lows.append(float(low))
        highs.append(float(high))
    for holder in holders:
        holder[low_name], holder[high_name] = min(lows), max(highs)


def numbers(values: Any) -> Float[np.ndarray, "..."] | None:
    """An array of a figure as float64, missing ones NaN; None if it holds anything but numbers."""
    if isinstance(values, Mapping) and "bdata" in values:
        flat = np.frombuffer(base64.b64decode(values["bdata"]), dtype=np.dtype(values["dtype"]))
        shape = [int(part) for part in str(values.get("shape", flat.size)).split(",")]
        return flat.reshape(shape).astype(float)
    try:
        return np.array(values, dtype=float)
    except (TypeError, ValueError):
        return None


def is_numeric_range(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(end, int | float) for end in value)
