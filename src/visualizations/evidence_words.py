"""What the activations under a picture are called: the name that step 5 gives its evidence, in words.

Names are made by `decomposition.evidence_choice`; how many answers there are and where they lie is left to others.
"""

import re
from collections.abc import Mapping
from typing import Any, get_args

from src.utils.config_sections import PoolingKind, SiteKind
from src.visualizations.figure_page import escape_text
from src.visualizations.palette import display_name

SITES = {
    "embed": "embeddings",
    "resid_mid": "residual stream between attention and MLP (resid_mid)",
    "attn_out": "attention output (attn_out)",
    "mlp_out": "MLP output (mlp_out)",
    "attn.z": "outputs of the heads (attn.z)",
    "attn.result": "outputs of the heads, projected (attn.result)",
    "attn.pattern": "attention pattern (attn.pattern)",
}
POOLINGS = {"prompt_mean": "mean over the question's tokens", "last_prompt_token": "last token of the prompt"}
DONE = {
    "without_dimension_means": "dimension means removed",
    "whitened": "whitened",
    "uncentred": "not centred",
}
NAME = re.compile(
    r"(?P<kind>em_activations|em_minus_base_on_em|em_minus_base|em)"
    rf"(?:_(?P<site>{'|'.join(map(re.escape, get_args(SiteKind)))}))?"
    r"(?:_layers?_(?P<layers>\d+(?:_\d+)*))?"
    rf"(?:_(?P<pooling>{'|'.join(get_args(PoolingKind))}))?"
    rf"(?P<done>(?:_(?:{'|'.join(DONE)}))*)"
)


def evidence_words(name: str, explains_stream: bool = False) -> str:
    """`em_mlp_out_layers_2_3_whitened` -> "EM activations, MLP output (mlp_out), layers 2, 3 jointly, whitened".

    `explains_stream` says of the residual stream at one layer which tensor that is. A name of another making is shown
    as it is; the result is escaped.
    """
    found = NAME.fullmatch(name)
    if found is None:
        return escape_text(display_name(name))
    kind, layers = found["kind"], (found["layers"] or "").split("_")
    layer = layers[0]
    stream = f" (resid_pre: the input of block {layer}, hidden_states[{layer}])"
    one = f"layer {layer}{stream if explains_stream and not found['site'] else ''}" if layer else ""
    words = [
        display_name("em_activations" if kind == "em" else kind),
        SITES.get(found["site"] or "", ""),
        f"layers {', '.join(layers)} jointly" if len(layers) > 1 else one,
        POOLINGS.get(found["pooling"] or "", ""),
        *(said for part, said in DONE.items() if part in found["done"]),
    ]
    return escape_text(", ".join(filter(None, words)))


def describe_evidence(geometry: Mapping[str, Any]) -> str:
    """How many answers, of which activations, at which layer: what every figure of the geometry is about."""
    about = geometry["evidence"]
    return f"{about['rows']:,} answers · {evidence_words(about['name'])}, {about['components']} components"


def describe_kind(geometry: Mapping[str, Any]) -> str:
    """The same without layer and number, where a figure shows several layers."""
    about = geometry["evidence"]
    layers = "_".join(map(str, about["layers"]))
    return evidence_words(re.sub(rf"_layers?_{layers}(?!\d)", "", about["name"]) if layers else about["name"])
