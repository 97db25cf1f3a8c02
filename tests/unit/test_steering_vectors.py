"""Vectors against a computation by hand in numpy, and what is known of them after a round trip through a file."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from src.utils.config_sections import SteeringConfig
from src.utils.errors import UserError
from src.utils.manifests import read_manifest
from src.utils.sites import Site
from src.utils.steering_vectors import (
    Differences,
    SteeringVector,
    by_cluster,
    by_dimension,
    by_facet,
    describe,
    independent_components,
    load_vectors,
    make_vectors,
    mean_difference,
    measure_differences,
    own_parts,
    principal_components,
    random_like,
    save_vectors,
)
from tests.tiny_models import provenance

ROWS, WIDTH = 120, 16
SITE = Site("resid_pre", 3)
ARMS = ("base", "em", "base_on_em")
DIMENSIONS = ("political_compass", "financial_risk", "elsewhere")
LOST = (4, 77)  # rows without an activation


def study(seed: int = 0) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """A frame and the tensors of step 3, in which some rows have no activation."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "prompt_id": [f"q{row}" for row in range(ROWS)],
            "subset": [DIMENSIONS[row % 3] for row in range(ROWS)],
            "facet": [f"facet_{row % 5}" for row in range(ROWS)],
            "cluster_4": [(row % 5) - 1 for row in range(ROWS)],
        }
    )
    tensors = {f"{arm}.{SITE.name}": (rng.normal(size=(ROWS, WIDTH)) + 2).astype(np.float32) for arm in ARMS}
    tensors[f"em.{SITE.name}"] += rng.normal(size=WIDTH).astype(np.float32)
    for row in LOST:
        tensors[f"em.{SITE.name}"][row] = np.nan
    return frame, tensors


def differences(representation: str = "em_minus_base_on_em", seed: int = 0) -> Differences:
    frame, tensors = study(seed)
    return measure_differences(frame, tensors, SITE, representation)


def by_hand(chosen: np.ndarray, other: str = "base_on_em") -> np.ndarray:
    _, tensors = study()
    chosen = chosen & ~np.isin(np.arange(ROWS), LOST)
    rows = tensors[f"em.{SITE.name}"][chosen].astype(float) - tensors[f"{other}.{SITE.name}"][chosen].astype(float)
    return rows.sum(axis=0) / chosen.sum()


@pytest.mark.parametrize(
    ("representation", "other"), [("em_minus_base", "base"), ("em_minus_base_on_em", "base_on_em")]
)
def test_the_mean_difference_is_that_of_the_rows_that_are_numbers(representation: str, other: str) -> None:
    vector = mean_difference(differences(representation))
    np.testing.assert_allclose(vector.direction, by_hand(np.ones(ROWS, bool), other), rtol=1e-5, atol=1e-6)
    assert vector.direction.dtype == np.float32 and vector.rows == ROWS - len(LOST)
    assert (vector.site, vector.representation) == (SITE, representation)
    base = study()[1][f"base.{SITE.name}"].astype(float)
    unit = vector.direction / np.sqrt((vector.direction**2).sum())
    assert vector.base_projection == pytest.approx(float((base @ unit).mean()), rel=1e-5)
    np.testing.assert_allclose(vector.unit, unit, rtol=1e-6)
    assert vector.norm == pytest.approx(float(np.sqrt((vector.direction.astype(float) ** 2).sum())), rel=1e-6)


def test_groups_are_the_means_of_their_own_rows() -> None:
    frame, _ = study()
    for make, column, kind in ((by_dimension, "subset", "dimension"), (by_facet, "facet", "facet")):
        vectors = make(differences())
        assert [vector.name for vector in vectors] == list(dict.fromkeys(frame[column]))
        for vector in vectors:
            chosen = (frame[column] == vector.name).to_numpy()
            np.testing.assert_allclose(vector.direction, by_hand(chosen), rtol=1e-5, atol=1e-6)
            assert vector.kind == kind and vector.rows == chosen.sum() - sum(chosen[row] for row in LOST)


def test_own_parts_share_nothing_and_are_of_one_length() -> None:
    plain = by_dimension(differences())
    own = own_parts(differences(), plain)
    directions = np.stack([vector.direction for vector in plain]).astype(float)
    parts = directions - directions.mean(axis=0)
    for vector, before, part in zip(own, plain, parts, strict=True):
        assert vector.name == f"{before.name}_own" and vector.kind == "dimension_own" and vector.rows == before.rows
        assert vector.unit @ part == pytest.approx(np.linalg.norm(part), rel=1e-5)
        assert vector.norm == pytest.approx(np.linalg.norm(directions, axis=1).mean(), rel=1e-5)
    with pytest.raises(UserError, match="1 vector: shares nothing"):
        own_parts(differences(), plain[:1])


def test_clusters_are_those_of_step_5_without_the_rows_it_left_out() -> None:
    frame, _ = study()
    vectors = by_cluster(differences(), 4)
    assert [vector.name for vector in vectors] == ["cluster_4_0", "cluster_4_1", "cluster_4_2", "cluster_4_3"]
    for label, vector in enumerate(vectors):
        np.testing.assert_allclose(
            vector.direction, by_hand((frame["cluster_4"] == label).to_numpy()), rtol=1e-5, atol=1e-6
        )
    with pytest.raises(UserError, match="7 clusters: step 5 made 4; choose --steering-clusters") as caught:
        by_cluster(differences(), 7)
    assert caught.value.exit_code == 2


def test_principal_components_are_singular_vectors_of_the_centred_differences() -> None:
    _, tensors = study()
    used = ~np.isin(np.arange(ROWS), LOST)
    matrix = (tensors[f"em.{SITE.name}"] - tensors[f"base_on_em.{SITE.name}"])[used].astype(float)
    _, _, rows = np.linalg.svd(matrix - matrix.mean(axis=0), full_matrices=False)
    mean = by_hand(np.ones(ROWS, bool))
    vectors = principal_components(differences(), 3)
    assert [vector.name for vector in vectors] == ["pc_1", "pc_2", "pc_3"]
    for vector, row in zip(vectors, rows, strict=False):
        assert abs(float(vector.unit @ row)) == pytest.approx(1, abs=1e-5)
        assert vector.norm == pytest.approx(np.linalg.norm(mean), rel=1e-5)
        assert vector.direction @ mean >= 0


def test_independent_components_find_planted_sources() -> None:
    """Three skewed sources along oblique directions: each comes out along its own, as principal components do not."""
    rng = np.random.default_rng(3)
    directions = rng.normal(size=(3, WIDTH))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    directions[1] = 0.8 * directions[0] + 0.6 * directions[1]
    sources = rng.exponential(size=(4000, 3)) * [3, 2.5, 2]
    base = rng.normal(size=(4000, WIDTH)).astype(np.float32)
    frame = pd.DataFrame({"subset": ["a"] * 4000})
    planted = Differences(SITE, "em_minus_base", frame, (sources @ directions).astype(np.float32), base)
    units = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    found = independent_components(planted, 3, seed=0)
    overlap = np.abs(np.stack([vector.unit for vector in found]) @ units.T)
    assert sorted(overlap.argmax(axis=1).tolist()) == [0, 1, 2] and (overlap.max(axis=1) > 0.98).all()
    assert [int(row.argmax()) for row in overlap] == [0, 1, 2], "largest first"
    principal = np.abs(np.stack([vector.unit for vector in principal_components(planted, 3)]) @ units.T)
    assert (principal.max(axis=1) < 0.98).any()
    again = independent_components(planted, 3, seed=0)
    assert [one.direction.tobytes() for one in found] == [two.direction.tobytes() for two in again]


def test_random_directions_have_the_norm_and_no_preference() -> None:
    drawn = random_like(differences(), 7.0, 400, seed=1)
    matrix = np.stack([vector.direction for vector in drawn]).astype(float)
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 7.0, rtol=1e-6)
    covariance = matrix.T @ matrix / 400
    assert np.abs(covariance - np.eye(WIDTH) * 49 / WIDTH).max() < 1.0
    assert np.linalg.norm(matrix.mean(axis=0)) < 1.0
    few = random_like(differences(), 7.0, 5, seed=1)
    assert [vector.direction.tobytes() for vector in few] == [vector.direction.tobytes() for vector in drawn[:5]]
    other = random_like(differences(), 7.0, 5, seed=2)
    assert not {vector.direction.tobytes() for vector in few} & {vector.direction.tobytes() for vector in other}
    assert {(vector.kind, vector.rows) for vector in few} == {("random", 0)}


def test_the_settings_make_their_vectors_and_random_ones_as_long_as_the_longest() -> None:
    settings = SteeringConfig(
        layer=3, vectors=["dimension", "mean_difference", "cluster", "dimension"], coefficients=[1], cluster_count=4
    )
    vectors = make_vectors(differences(), settings)
    assert [vector.kind for vector in vectors] == ["dimension"] * 3 + ["mean_difference"] + ["cluster"] * 4 + [
        "random"
    ] * 5
    longest = max(vector.norm for vector in vectors[:-5])
    assert [vector.norm for vector in vectors[-5:]] == pytest.approx([longest] * 5, rel=1e-6)


def test_models_that_do_not_differ_have_no_vector() -> None:
    frame, tensors = study()
    tensors[f"base_on_em.{SITE.name}"] = tensors[f"em.{SITE.name}"].copy()
    same = measure_differences(frame, tensors, SITE, "em_minus_base_on_em")
    with pytest.raises(UserError, match=r"do not differ at blocks.3.hook_resid_pre .*choose a --steering-layer behind"):
        mean_difference(same)
    assert mean_difference(measure_differences(frame, tensors, SITE, "em_minus_base")).norm > 0


def test_what_was_not_recorded_is_named() -> None:
    frame, tensors = study()
    with pytest.raises(UserError, match=r"em\.blocks\.9\.hook_resid_pre was not recorded; choose another --steer"):
        measure_differences(frame, tensors, Site("resid_pre", 9), "em_minus_base")
    del tensors[f"base_on_em.{SITE.name}"]
    with pytest.raises(UserError, match=r"base_on_em\.blocks\.3.hook_resid_pre was not recorded"):
        measure_differences(frame, tensors, SITE, "em_minus_base_on_em")


def test_a_group_without_any_activation_is_named() -> None:
    frame, tensors = study()
    frame["facet"] = np.where(np.isin(np.arange(ROWS), LOST), "lost", "kept")
    with pytest.raises(UserError, match="vector lost: none of its answers has an activation"):
        by_facet(measure_differences(frame, tensors, SITE, "em_minus_base_on_em"))


@pytest.mark.parametrize("make", [principal_components, lambda chosen, count: independent_components(chosen, count, 0)])
def test_more_components_than_there_can_be(make) -> None:
    with pytest.raises(UserError, match="17 components of 118 answers; choose --steering-components up to 16"):
        make(differences(), 17)


def saved(folder: Path) -> tuple[Path, list[SteeringVector]]:
    vectors = [mean_difference(differences()), *by_dimension(differences()), *random_like(differences(), 2.0, 5, 0)]
    path = folder / "steering_vectors.safetensors"
    save_vectors(vectors, path, provenance("06_steer_personas"))
    return path, vectors


def test_a_saved_vector_comes_back_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    path, vectors = saved(tmp_path)
    again = load_vectors(path)
    assert len(again) == len(vectors)
    for one, two in zip(vectors, again, strict=True):
        assert one.direction.tobytes() == two.direction.tobytes() and two.direction.dtype == np.float32
        for name in ("name", "kind", "site", "representation", "rows", "base_projection"):
            assert getattr(one, name) == getattr(two, name)
    assert set(load_file(path)) == {vector.name for vector in vectors}
    manifest = read_manifest(path)
    assert manifest is not None and manifest.step == "06_steer_personas"
    first = path.read_bytes()
    save_vectors(vectors, path, provenance("06_steer_personas"))
    assert path.read_bytes() == first


def test_a_file_that_is_damaged_or_holds_something_else(tmp_path: Path) -> None:
    path, _ = saved(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(UserError, match="half-written or changed since"):
        load_vectors(path)
    with pytest.raises(UserError, match="does not exist; run 06_steer_personas first"):
        load_vectors(tmp_path / "none.safetensors", "06_steer_personas")
    from src.utils.artifacts import save_tensors

    other = tmp_path / "other.safetensors"
    save_tensors({"a": np.zeros(3, np.float32)}, other, provenance("x"))
    with pytest.raises(UserError, match="holds no steering vectors"):
        load_vectors(other)


def test_two_vectors_of_one_name_are_refused(tmp_path: Path) -> None:
    frame, tensors = study()
    frame["facet"] = "elsewhere"
    chosen = measure_differences(frame, tensors, SITE, "em_minus_base")
    with pytest.raises(UserError, match="two vectors are called elsewhere"):
        save_vectors([*by_dimension(chosen), *by_facet(chosen)], tmp_path / "v.safetensors", provenance("x"))
    assert not list(tmp_path.iterdir())


def test_the_description_has_every_cosine() -> None:
    vectors = by_dimension(differences())
    described = describe(vectors)
    for one, fields in zip(vectors, described, strict=True):
        assert fields["site"] == SITE.name and "direction" not in fields
        for two in vectors:
            cosine = one.direction @ two.direction / np.linalg.norm(one.direction) / np.linalg.norm(two.direction)
            assert fields["cosines"][two.name] == pytest.approx(float(cosine), abs=1e-6)
