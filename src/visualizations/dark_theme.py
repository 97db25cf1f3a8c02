"""A figure on a dark ground: grounds, texts, lines and grids are exchanged, marks keep their colours where they show.

Figures are plotly's JSON. Colour scales stay, since their values are read against a bar that is drawn beside them.
"""

import colorsys
import re
from typing import Any

from plotly.colors import hex_to_rgb

from src.visualizations.palette import ARM_COLOURS, FAINT_COLOUR

Spec = dict[str, Any]

GROUND, TEXT, LINE, GRID = "#14181D", "#E6E8EB", "#8B949E", "#30363D"
HEX = re.compile(r"#[0-9A-Fa-f]{6}")
LEAST_CONTRAST, LEAST_OF_TEXT = 3.0, 4.5  # WCAG 2.2, 1.4.11 and 1.4.3: of marks and of text against their ground
EXCHANGED = {  # the fine-tuned arm stays the louder one, and what is faint stays behind
    ARM_COLOURS["base"]: "#667282",
    ARM_COLOURS["em"]: "#DDE4EE",
    FAINT_COLOUR: "#505863",
}
COLOURS = frozenset(("color", "bordercolor", "line_color"))
SCALES = frozenset(("colorscale", "colorscales", "colorway"))
FONTS = ("font", "tickfont", "textfont", "insidetextfont", "outsidetextfont")
AXES = re.compile(r"[xyz]axis\d*")
AXIS = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": LINE}


def darkened(figure: Spec) -> Spec:
    """A copy for a dark ground; what was drawn too dark to be seen there is drawn as light as it was dark."""
    layout = visible(figure["layout"])
    template = layout.get("template", {})
    layout["template"] = {**template, "layout": dark_layout(template.get("layout", {}))}
    for name, value in layout.items():
        if AXES.fullmatch(name):
            layout[name] = {**value, **dark_axis(value)}
    grounds = dict.fromkeys(("paper_bgcolor", "plot_bgcolor"), GROUND)
    return {**figure, "data": [visible(trace) for trace in figure["data"]], "layout": {**layout, **grounds}}


def dark_layout(layout: Spec) -> Spec:
    """The layout of a template with dark grounds, light texts and faint grids."""
    axes = {name: {**value, **AXIS} for name, value in layout.items() if AXES.fullmatch(name)}
    font = {**layout.get("font", {}), "color": TEXT}
    return {**visible(layout), **axes, "font": font, "paper_bgcolor": GROUND, "plot_bgcolor": GROUND}


def dark_axis(axis: Spec) -> Spec:
    """What an axis says of its colours by itself, exchanged; the rest comes from the template."""
    return {name: AXIS[name] for name in AXIS if name in axis}


def visible(value: Any, name: str = "", least: float = LEAST_CONTRAST) -> Any:
    """The value with every colour of a mark or text that the dark ground would swallow made lighter.

    What has a ground of its own (a label in a box, a text in a cell of a heat map) stays as it is.
    """
    if name in SCALES:
        return value
    if isinstance(value, str):
        return lightened(value, least) if HEX.fullmatch(value) and value != GROUND and name in COLOURS else value
    if isinstance(value, list):
        return [visible(item, name, least) for item in value]
    if isinstance(value, dict):
        if name and "bgcolor" in value:
            return value
        if name == "marker":
            value = hollow(value)
        own = LEAST_OF_TEXT if name in FONTS else least
        kept = ("textfont",) if value.get("type") == "heatmap" else ()
        return {key: item if key in kept else visible(item, key, own) for key, item in value.items()}
    return value


def hollow(marker: Spec) -> Spec:
    """A marker, or a list of them, that is white to look hollow has the dark ground in it instead."""
    colour = marker.get("color")
    if isinstance(colour, list):
        return {**marker, "color": [GROUND if one == "white" else one for one in colour]}
    return {**marker, "color": GROUND} if colour == "white" else marker


def lightened(colour: str, least: float) -> str:
    """The colour with its lightness (HLS) turned round, if its contrast with the ground is below `least`."""
    if colour in EXCHANGED:
        return EXCHANGED[colour]
    if contrast(colour, GROUND) >= least:
        return colour
    red, green, blue = (part / 255 for part in hex_to_rgb(colour))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    parts = colorsys.hls_to_rgb(hue, max(lightness, 1 - lightness), saturation)
    return "#" + "".join(f"{round(255 * part):02X}" for part in parts)


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour, 0 to 1 (WCAG 2.2)."""
    parts = [part / 255 for part in hex_to_rgb(colour)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
