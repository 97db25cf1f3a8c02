"""Directions to steer along, measured as differences between the EM and the base model's activations.

A vector keeps the length that was measured, so that a coefficient counts in it: 1 adds the whole mean difference. What
has no length of its own is given one: principal and independent components that of the mean difference, random
directions that of the longest vector. Using a vector is left to `steering`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float32
from sklearn.decomposition import PCA, FastICA
from threadpoolctl import threadpool_limits

from src.utils.artifacts import load_metadata, load_tensors, save_tensors
from src.utils.cluster_labels import EXCLUDED
from src.utils.config_sections import SteeringConfig
from src.utils.errors import UserError
from src.utils.manifests import Provenance
from src.utils.sites import Site, parse_site

OTHER_ARM = {"em_minus_base": "base", "em_minus_base_on_em": "base_on_em"}
OWN = "_own"  # ends the names and kinds of vectors without what they share
LEAST_SHARE = 1e-6  # of the activations' norm; a shorter difference is rounding


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """One direction at one site, float32, as long as it was measured.

    `rows` counts the answers that it was measured on (0 for a random direction); `base_projection` is the mean
    projection of the base model's activations, over its own answers, on the unit direction.
    """

    name: str
    kind: str
    site: Site
    direction: Float32[np.ndarray, " d_model"]
    representation: str
    rows: int
    base_projection: float

    @property
    def norm(self) -> float:
        return float(np.linalg.norm(self.direction))

    @property
    def unit(self) -> Float32[np.ndarray, " d_model"]:
        return self.direction / np.float32(self.norm)


@dataclass(frozen=True, eq=False)
class Differences:
    """EM minus base at one site: row i of `matrix` belongs to row i of `frame`; `base` is the base model's own arm."""

    site: Site
    representation: str
    frame: pd.DataFrame
    matrix: Float32[np.ndarray, "rows d_model"]
    base: Float32[np.ndarray, "rows d_model"]

    @property
    def usable(self) -> Bool[np.ndarray, " rows"]:
        """Rows that are numbers; an empty answer has no activation."""
        return np.asarray(np.isfinite(self.matrix).all(axis=1))

    def vector(
        self, name: str, kind: str, direction: Float[np.ndarray, " d_model"], rows: int
    ) -> SteeringVector:  # fmt: skip
        """A direction at this site; one that is no longer than rounding raises `UserError`."""
        norm = float(np.linalg.norm(direction))
        base = self.base[np.isfinite(self.base).all(axis=1)].astype(np.float64)
        if not norm > LEAST_SHARE * float(np.linalg.norm(base, axis=1).mean()):
            raise UserError(
                f"vector {name}: EM and base model do not differ at {self.site.name} ({self.representation}); choose a "
                "--steering-layer behind the blocks that the fine-tune changed, or another --steering-representation"
            )
        projection = float((base @ (direction / norm)).mean())
        return SteeringVector(
            name, kind, self.site, direction.astype(np.float32), self.representation, rows, projection
        )

    def mean(self, name: str, kind: str, chosen: Bool[np.ndarray, " rows"]) -> SteeringVector:
        """The mean difference of some rows; `UserError` where none of them is a number."""
        rows = chosen & self.usable
        if not rows.any():
            raise UserError(f"vector {name}: none of its answers has an activation; leave that kind of vector out")
        return self.vector(name, kind, self.matrix[rows].mean(axis=0, dtype=np.float64), int(rows.sum()))


def make_vectors(
    differences: Differences, settings: SteeringConfig, controls: Sequence[SteeringVector] = ()
) -> list[SteeringVector]:
    """The vectors that are asked for, and random directions as long as the longest of them.

    `controls` are those of the control fine-tunes, for kind `control`.
    """
    made = {
        "mean_difference": lambda: [mean_difference(differences)],
        "dimension": lambda: by_dimension(differences),
        "facet": lambda: by_facet(differences),
        "cluster": lambda: by_cluster(differences, settings.cluster_count),
        "control": lambda: at_site(controls, differences.site),
        "dimension_own": lambda: own_parts(differences, by_dimension(differences)),
        "control_own": lambda: own_parts(differences, at_site(controls, differences.site)),
        "principal_component": lambda: principal_components(differences, settings.components),
        "independent_component": lambda: independent_components(differences, settings.components, settings.seed),
    }
    vectors = [vector for kind in dict.fromkeys(settings.vectors) for vector in made[kind]()]
    longest = max(vector.norm for vector in vectors)
    return [*vectors, *random_like(differences, longest, settings.random_directions, settings.seed)]


def measure_differences(
    frame: pd.DataFrame, tensors: Mapping[str, np.ndarray], site: Site, representation: str
) -> Differences:
    """The differences of a study's answers from the tensors of step 3; what they do not hold raises `UserError`."""
    names = {arm: f"{arm}.{site.name}" for arm in ("em", OTHER_ARM[representation], "base")}
    missing = [name for name in names.values() if name not in tensors]
    if missing:
        raise UserError(f"{missing[0]} was not recorded; choose another --steering-layer, or collect it in step 3", 2)
    em, other, base = (np.asarray(tensors[names[arm]], np.float32) for arm in ("em", OTHER_ARM[representation], "base"))
    return Differences(site, representation, frame, em - other, base)


def mean_difference(differences: Differences) -> SteeringVector:
    """EM minus base over all answers."""
    return differences.mean("mean_difference", "mean_difference", np.ones(len(differences.frame), dtype=bool))


def by_dimension(differences: Differences) -> list[SteeringVector]:
    """EM minus base over the answers to each dimension's questions."""
    return by_value(differences, "subset", "dimension")


def by_facet(differences: Differences) -> list[SteeringVector]:
    """EM minus base over the answers to each facet's questions."""
    return by_value(differences, "facet", "facet")


def by_value(differences: Differences, column: str, kind: str) -> list[SteeringVector]:
    values = differences.frame[column].astype(object).to_numpy()
    return [differences.mean(str(value), kind, values == value) for value in dict.fromkeys(values)]


def by_cluster(differences: Differences, k: int) -> list[SteeringVector]:
    """EM minus base over the answers of each cluster of step 5, as the original study steered."""
    if f"cluster_{k}" not in differences.frame:
        known = [name.removeprefix("cluster_") for name in differences.frame if name.startswith("cluster_")]
        raise UserError(f"{k} clusters: step 5 made {', '.join(known) or 'none'}; choose --steering-clusters there", 2)
    labels = differences.frame[f"cluster_{k}"].to_numpy()
    return [
        differences.mean(f"cluster_{k}_{label}", "cluster", labels == label)
        for label in sorted(set(labels.tolist()) - {EXCLUDED})
    ]


def principal_components(differences: Differences, count: int) -> list[SteeringVector]:
    """The first principal components of the centred differences, as `as_vectors` orients and scales them."""
    matrix = differences.matrix[differences.usable]
    check_count(count, matrix)
    pca = PCA(n_components=count, svd_solver="full").fit(matrix.astype(np.float64))
    return as_vectors(differences, "pc", "principal_component", pca.components_)


def independent_components(differences: Differences, count: int, seed: int) -> list[SteeringVector]:
    """Independent components (FastICA: Hyvarinen 1999, deflated by `count` principal components), largest first.

    A component's direction is its column of the mixing matrix: what one unit of the source adds to an activation.
    """
    matrix = differences.matrix[differences.usable]
    check_count(count, matrix)
    with threadpool_limits(1):
        ica = FastICA(n_components=count, whiten="unit-variance", max_iter=2000, tol=1e-4, random_state=seed)
        mixing = ica.fit(matrix.astype(np.float64)).mixing_.T
    order = np.argsort(-np.linalg.norm(mixing, axis=1), kind="stable")
    return as_vectors(differences, "ic", "independent_component", mixing[order])


def at_site(controls: Sequence[SteeringVector], site: Site) -> list[SteeringVector]:
    """The control vectors, which must have been measured where the others are."""
    if not controls or any(vector.site != site for vector in controls):
        measured = controls[0].site.name if controls else "nowhere"
        raise UserError(f"control vectors: measured at {measured}, wanted at {site.name}; run 02_finetune_controls", 2)
    return list(controls)


def own_parts(differences: Differences, vectors: Sequence[SteeringVector]) -> list[SteeringVector]:
    """What each vector has beyond the mean of them all, its name ending in `_own`, each as long as they are on average.

    What all dimensions share is gone, and one coefficient is one length: a dose for all of them.
    """
    if len(vectors) < 2:
        raise UserError(f"{len(vectors)} vector: shares nothing with others; leave kinds that end in {OWN} out", 2)
    directions = np.stack([vector.direction for vector in vectors]).astype(np.float64)
    own = directions - directions.mean(axis=0)
    length = float(np.linalg.norm(directions, axis=1).mean())
    made = []
    for vector, part in zip(vectors, own, strict=True):
        kind = f"{vector.kind}{OWN}"
        differences.vector(vector.name + OWN, kind, part, vector.rows)  # refuses a part no longer than rounding
        scaled = differences.vector(vector.name + OWN, kind, length * part / np.linalg.norm(part), vector.rows)
        made.append(replace(scaled, representation=vector.representation))
    return made


def check_count(count: int, matrix: Float32[np.ndarray, "rows d_model"]) -> None:
    most = min(matrix.shape[0] - 1, matrix.shape[1])
    if count > most:
        raise UserError(f"{count} components of {len(matrix)} answers; choose --steering-components up to {most}", 2)


def as_vectors(
    differences: Differences, prefix: str, kind: str, directions: Float[np.ndarray, "count d_model"]
) -> list[SteeringVector]:
    """Directions without a sign or length of their own: turned towards the mean difference, and as long as it."""
    reference = mean_difference(differences)
    vectors = []
    for number, direction in enumerate(directions, start=1):
        sign = 1.0 if direction @ reference.direction >= 0 else -1.0
        scaled = sign * reference.norm * direction / np.linalg.norm(direction)
        vectors.append(differences.vector(f"{prefix}_{number}", kind, scaled, reference.rows))
    return vectors


def random_like(differences: Differences, norm: float, count: int, seed: int) -> list[SteeringVector]:
    """Directions drawn evenly from the sphere, of a given norm; the first ones are the same whatever the count."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((count, differences.matrix.shape[1]))
    drawn *= norm / np.linalg.norm(drawn, axis=1, keepdims=True)
    return [differences.vector(f"random_{i}", "random", row, 0) for i, row in enumerate(drawn, start=1)]


def describe(vectors: Sequence[SteeringVector]) -> list[dict[str, Any]]:
    """What is known of each vector as plain data, its cosines with the others included."""
    return [
        header_of(vector) | {"norm": vector.norm, "cosines": {v.name: float(vector.unit @ v.unit) for v in vectors}}
        for vector in vectors
    ]


def header_of(vector: SteeringVector) -> dict[str, Any]:
    """Everything but the direction."""
    fields = {field.name: getattr(vector, field.name) for field in dataclasses.fields(vector)}
    del fields["direction"]
    return fields | {"site": vector.site.name}


def save_vectors(vectors: Sequence[SteeringVector], path: Path, provenance: Provenance) -> None:
    """One safetensors file: a tensor a vector, what is known of it in the header, and a manifest beside it."""
    names = [vector.name for vector in vectors]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"two vectors are called {twice[0]}; leave one kind of vector out, or rename the facet")
    tensors = {vector.name: vector.direction for vector in vectors}
    save_tensors(tensors, path, provenance, {"vectors": [header_of(vector) for vector in vectors]})


def load_vectors(path: Path, made_by: str | None = None) -> list[SteeringVector]:
    """What `save_vectors` wrote, in its order; see `artifacts.verify_artifact` for what is refused."""
    tensors, metadata = load_tensors(path, made_by), load_metadata(path)
    try:
        return [
            SteeringVector(
                **fields | {"site": parse_site(fields["site"]), "direction": tensors[fields["name"]].astype(np.float32)}
            )
            for fields in metadata["vectors"]
        ]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: holds no steering vectors; run {made_by or 'the step that makes them'} again"
        ) from error
