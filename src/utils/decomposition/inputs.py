"""What a decomposition is fitted on: activations of the EM model's answers, raw or less the base model's.

Any captured site, one layer or several jointly; tokens are left to `token_inputs`. `Preprocessing` is fitted on the
rows that it is given and on no others: what is removed from test rows was estimated on training rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float32, Int
from sklearn.covariance import ledoit_wolf_shrinkage

from src.utils.config_sections import PoolingKind, SiteKind
from src.utils.errors import UserError

if TYPE_CHECKING:  # imported where it is used: it brings torch, which the processes that share the draws do without
    from src.utils.sites import Site

OTHER_ARM: dict[str, str | None] = {"em": None, "em_minus_base": "base", "em_minus_base_on_em": "base_on_em"}
UNUSABLE = ("failed", "empty", "non_finite", "norm_outlier")  # other flags say how a sound row came about


@dataclass(frozen=True, eq=False)
class Evidence:
    """Row i of `matrix` and of `base` belongs to row i of `frame` and to row `rows[i]` of the study's frame.

    `base` is the base model's own arm at the same place. `frame` has every column of the study but its activations
    (`prompt_id`, `sample`, `subset`, `facet`, `keyed`, `flags`, texts, and scores where there are any), and `length`:
    characters of the EM model's answer.
    """

    name: str
    matrix: Float32[np.ndarray, "rows features"]
    base: Float32[np.ndarray, "rows features"]
    frame: pd.DataFrame
    rows: Int[np.ndarray, " rows"]


def build_evidence(
    frame: pd.DataFrame,
    tensors: Mapping[str, np.ndarray],
    kind: str,
    layers: Sequence[int],
    site: SiteKind = "resid",
    drop_flagged: bool = True,
    pooling: PoolingKind = "response_mean",
) -> Evidence:
    """The evidence of a study's frame and the tensors of step 3, whose rows are the frame's.

    `kind`: `em` as it is; `em_minus_base`, each model on its own answer; `em_minus_base_on_em`, both on the EM model's
    answer. `layers` count as everywhere: layer l of `resid` is `blocks.l.hook_resid_pre` (Hugging Face's
    `hidden_states[l]`), and the number of layers stands for what leaves the last block; `embed` has one place and
    takes no layers. Of several layers each is divided by its mean row norm (over the rows kept, `base` by its own)
    before they are put side by side, so that none counts more because its stream is longer; one layer keeps its units.

    Rows that are not finite, in `matrix` or in `base`, are always dropped. `drop_flagged` drops the norm outliers of
    the arms in use, and what failed or is empty there; truncated and split answers stay, their means are sound.

    Raises `UserError` for an unknown kind, layer or site (naming what there is), where no row is left, and where EM
    and base model do not differ beyond rounding.
    """
    from src.utils.collection import tensor_name
    from src.utils.steering_vectors import LEAST_SHARE

    if kind not in OTHER_ARM:
        raise UserError(f"evidence {kind!r}: unknown; there are {', '.join(OTHER_ARM)}", 2)
    layers = tuple(dict.fromkeys(layers))
    arms = tuple(dict.fromkeys(arm for arm in ("em", OTHER_ARM[kind], "base") if arm is not None))
    sites = sites_of_layers(recorded_sites(tensors, pooling), layers, site)
    names = [tensor_name(one, pooling) for one in sites]
    values = {arm: [tensor_of(tensors, f"{arm}.{name}", len(frame)) for name in names] for arm in arms}
    other = OTHER_ARM[kind]
    parts = values["em"] if other is None else [a - b for a, b in zip(values["em"], values[other], strict=True)]

    usable = finite_rows([*parts, *values["base"]])
    if drop_flagged:
        usable &= ~flagged_rows(frame, arms)
    if not usable.any():
        raise UserError(
            f"evidence {kind}: no row of {len(frame)} is finite and unflagged; look at `flags` of the frame"
        )
    kept, base = [part[usable] for part in parts], [part[usable] for part in values["base"]]
    for one, part, reference in zip(sites, kept, base, strict=True):
        if mean_norm(part) <= LEAST_SHARE * mean_norm(reference):
            raise UserError(f"evidence {kind}: EM and base model do not differ at {one.name}; choose a later layer", 2)
    rows = np.flatnonzero(usable)
    return Evidence(
        name_of(kind, layers, site, pooling), side_by_side(kept), side_by_side(base), metadata_of(frame, rows), rows
    )


def name_of(kind: str, layers: Sequence[int], site: str, pooling: str = "response_mean") -> str:
    """What tells one evidence from another: `em_minus_base_layer_20`, `em_attn_out_layers_15_20_prompt_mean`."""
    parts = [kind] if site == "resid" else [kind, site]
    if layers:
        parts.append(f"layer{'s' if len(layers) > 1 else ''}_{'_'.join(map(str, layers))}")
    return "_".join(parts if pooling == "response_mean" else [*parts, pooling])


def recorded_sites(names: Iterable[str], pooling: str = "response_mean") -> "set[Site]":
    """The sites of tensors called `em.<site>` (of one pooling), as step 3 names them."""
    from src.utils.sites import parse_site

    found = set()
    for name in names:
        arm, _, rest = name.partition(".")
        if arm != "em":
            continue
        kinds = [one for one in ("prompt_mean", "last_prompt_token") if rest.endswith(f".{one}")]
        if (kinds[0] if kinds else "response_mean") == pooling:
            found.add(parse_site(rest.removesuffix(f".{pooling}")))
    return found


def sites_of_layers(recorded: "set[Site]", layers: Sequence[int], kind: str) -> "list[Site]":
    """Where a kind of site is read at some layers; what was not recorded raises `UserError` naming what was."""
    from src.utils.sites import Site

    places: dict[int, Site] = {}
    for one in recorded:
        if one.block is not None and kind == "resid" and one.kind in ("resid_pre", "resid_post"):
            places[one.block + (one.kind == "resid_post")] = one
        elif one.block is not None and one.kind == kind:
            places[one.block] = one
    if kind == "embed" and Site("embed") in recorded:
        if layers:
            raise UserError(f"site embed: it has no layer {layers[0]}; give no layers with it", 2)
        return [Site("embed")]
    if not places:
        kinds = {"resid" if one.kind in ("resid_pre", "resid_post") else one.kind for one in recorded}
        raise UserError(f"site {kind}: not recorded; there are {', '.join(sorted(kinds)) or 'none'}: collect it", 2)
    missing = [layer for layer in layers if layer not in places]
    if missing or not layers:
        known = " ".join(map(str, sorted(places)))
        what = f"layer {missing[0]}" if missing else "no layer"
        raise UserError(f"{what} of {kind}: layers {known} were recorded; choose among them, or collect it", 2)
    return [places[layer] for layer in dict.fromkeys(layers)]


def tensor_of(tensors: Mapping[str, np.ndarray], name: str, rows: int) -> Float32[np.ndarray, "rows features"]:
    if name not in tensors:
        raise UserError(f"{name}: not among the recorded tensors; run step 3 again", 2)
    if len(tensors[name]) != rows:
        raise UserError(f"{name}: {len(tensors[name])} rows, the frame has {rows}; load frame and tensors of one run")
    return np.asarray(tensors[name], np.float32).reshape(rows, -1)


def finite_rows(parts: Sequence[Float32[np.ndarray, "rows features"]]) -> Bool[np.ndarray, " rows"]:
    """Rows that are numbers in every part."""
    return np.logical_and.reduce([np.isfinite(part).all(axis=1) for part in parts])


def flagged_rows(frame: pd.DataFrame, arms: Sequence[str]) -> Bool[np.ndarray, " rows"]:
    """Rows whose activations in one of these arms are missing or a norm outlier, by the frame's `flags`."""
    unusable = {f"{flag}_{arm}" for flag in UNUSABLE for arm in arms}
    return np.array([not unusable.isdisjoint(flags) for flags in frame["flags"]], dtype=bool)


def mean_norm(part: Float32[np.ndarray, "rows features"]) -> float:
    return float(np.linalg.norm(part, axis=1).mean(dtype=np.float64))


def side_by_side(parts: Sequence[Float32[np.ndarray, "rows _"]]) -> Float32[np.ndarray, "rows features"]:
    """One layer as it is; several at unit mean row norm, next to each other."""
    if len(parts) == 1:
        return np.ascontiguousarray(parts[0])
    return np.concatenate([part / np.float32(mean_norm(part)) for part in parts], axis=1)


def metadata_of(frame: pd.DataFrame, rows: Int[np.ndarray, " rows"]) -> pd.DataFrame:
    """Every column but activations, and the length of the EM model's answer in characters, of some rows."""
    columns = [name for name in frame if "_activations_layer_" not in str(name)]
    chosen = frame.iloc[rows][columns].reset_index(drop=True)
    return chosen.assign(length=chosen["em_response"].str.len().astype(int))


@dataclass(frozen=True)
class Preprocessing:
    """What is done to rows before anything is fitted on them; `fit` estimates it, `Fitted.transform` does it.

    `centre` takes the mean of all rows off; `remove_dimension_means` takes the mean of the row's own dimension off
    instead, so that what the dimensions' questions have in common with each other alone is gone too. `whiten` is PCA
    whitening with the Ledoit-Wolf (2004) shrunk covariance of what is left.
    """

    centre: bool = True
    remove_dimension_means: bool = False
    whiten: bool = False

    def fit(self, matrix: Float[np.ndarray, "rows features"], dimensions: Sequence[str] | np.ndarray) -> "Fitted":
        """Estimate everything on these rows (a training fold), in float64.

        Whitening keeps the `rank` directions in which the rows vary, at most rows - 1, so that with fewer rows than
        features nothing is divided by a variance of zero; shrunk variances bound how far noise is blown up.
        """
        values = matrix.astype(np.float64)
        labels = np.asarray(dimensions, dtype=object)
        grand_mean = values.mean(axis=0) if self.centre or self.remove_dimension_means else np.zeros(values.shape[1])
        means: dict[str, Float[np.ndarray, " features"]] = {}
        if self.remove_dimension_means:
            means = {str(name): values[labels == name].mean(axis=0) for name in dict.fromkeys(labels)}
        fitted = Fitted(grand_mean, means, None)
        if not self.whiten:
            return fitted
        return Fitted(grand_mean, means, whitening(fitted.remove_means(values, labels)))


@dataclass(frozen=True, eq=False)
class Fitted:
    """A preprocessing that was estimated; it does the same to any row, whoever else is there."""

    grand_mean: Float[np.ndarray, " features"]
    dimension_means: Mapping[str, Float[np.ndarray, " features"]]
    whitener: Float[np.ndarray, "features rank"] | None

    def transform(
        self, matrix: Float[np.ndarray, "rows features"], dimensions: Sequence[str] | np.ndarray
    ) -> Float[np.ndarray, "rows _"]:
        """The rows without their means, and whitened if that was asked for, in the dtype that came in.

        A dimension that `fit` has not seen loses the mean of all rows that it saw. Whitened rows have `rank` columns.
        """
        rest = self.remove_means(matrix.astype(np.float64), np.asarray(dimensions, dtype=object))
        return (rest if self.whitener is None else rest @ self.whitener).astype(matrix.dtype)

    def remove_means(
        self, values: Float[np.ndarray, "rows features"], labels: np.ndarray
    ) -> Float[np.ndarray, "rows features"]:
        if len(labels) != len(values):
            raise ValueError(f"{len(labels)} dimensions for {len(values)} rows")
        rest = values - self.grand_mean
        for name, mean in self.dimension_means.items():
            rest[labels == name] += self.grand_mean - mean
        return rest


def whitening(values: Float[np.ndarray, "rows features"]) -> Float[np.ndarray, "features rank"]:
    """Columns v / sqrt(shrunk variance along v), v the principal directions of the rows about their mean.

    The shrunk covariance is (1 - s) S + s trace(S)/features I with scikit-learn's Ledoit-Wolf s; it has the
    eigenvectors of S, so that a decomposition of the rows serves and no features x features matrix is inverted.
    """
    centred = values - values.mean(axis=0)
    rows, features = centred.shape
    shrinkage = float(ledoit_wolf_shrinkage(centred, assume_centered=True))
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    varies = singular > singular[0] * max(rows, features) * np.finfo(np.float64).eps
    if not varies.any():
        raise UserError(f"whitening: {rows} rows do not differ; leave whitening out, or give more rows")
    variances = singular[varies] ** 2 / rows
    shrunk = (1 - shrinkage) * variances + shrinkage * (singular**2).sum() / rows / features
    return directions[varies].T / np.sqrt(shrunk)
