"""Evidence of a tiny model's collection against its frame and tokens; preprocessing against scikit-learn."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LinearRegression

from src.utils.collection import collect_arms, model_passes, plan_collection
from src.utils.collection_frame import assemble
from src.utils.config_sections import CollectionConfig
from src.utils.decomposition.inputs import Preprocessing, build_evidence
from src.utils.decomposition.token_inputs import token_evidence
from src.utils.errors import UserError
from src.utils.token_shards import INDEX, TokenReader, TokenShard, gather_shards, shard_path, write_shard
from tests.tiny_models import N_LAYERS, questions, tiny_model, tokenizer, with_adapter

COUNT, LAYERS = 24, (1, N_LAYERS)
SITES = {1: "blocks.1.hook_resid_pre", N_LAYERS: f"blocks.{N_LAYERS - 1}.hook_resid_post"}
LOST = (("em", 5), ("base", 9), ("base_on_em", 14))  # rows that are no numbers in an arm
OTHER = {"em_minus_base": "base", "em_minus_base_on_em": "base_on_em"}
Study = tuple[pd.DataFrame, dict[str, np.ndarray], TokenReader]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    settings = CollectionConfig.model_validate(
        {"prompts": ["unused"], "max_new_tokens": 6, "layers": list(LAYERS), "batch_size": 4, "top_k": 50, "seed": 3}
        | {"sites": ["resid", "attn_out", "embed"], "poolings": ["response_mean", "prompt_mean"], "tokens": True}
    )
    plan = plan_collection(questions(COUNT), tokenizer(), settings)
    passes = model_passes(lambda: tiny_model(n_ends=60), with_adapter, lambda: pytest.fail("not needed"))
    collect_arms(plan, tokenizer(), passes, folder / "parts")
    frame, tensors = assemble(plan, tokenizer(), folder / "parts", LAYERS, N_LAYERS)
    for arm, row in LOST:
        for name in [name for name in tensors if name.startswith(f"{arm}.")]:
            tensors[name][row, 0] = np.nan
        for layer in LAYERS:
            frame.at[row, f"{arm}_activations_layer_{layer}"] = tensors[f"{arm}.{SITES[layer]}"][row]
    (folder / "tokens").mkdir()
    gather_shards(folder / "parts", folder / "tokens", COUNT)
    return frame, tensors, TokenReader(folder / "tokens")


def column(frame: pd.DataFrame, arm: str, layer: int) -> np.ndarray:
    return np.stack(frame[f"{arm}_activations_layer_{layer}"].tolist())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", ["em", "em_minus_base", "em_minus_base_on_em"])
def test_a_layer_is_the_frames_own_column(study: Study, kind: str, layer: int) -> None:
    frame, tensors, _ = study
    expected = column(frame, "em", layer) - (column(frame, OTHER[kind], layer) if kind in OTHER else 0)
    base = column(frame, "base", layer)
    usable = np.flatnonzero(np.isfinite(expected).all(axis=1) & np.isfinite(base).all(axis=1))
    assert 0 < len(usable) <= COUNT - 2
    evidence = build_evidence(frame, tensors, kind, [layer], drop_flagged=False)
    np.testing.assert_array_equal(evidence.rows, usable)
    np.testing.assert_array_equal(evidence.matrix, expected[usable])
    np.testing.assert_array_equal(evidence.base, base[usable])
    assert evidence.name == f"{kind}_layer_{layer}" and evidence.matrix.dtype == np.float32
    assert evidence.frame["prompt_id"].tolist() == frame["prompt_id"].iloc[usable].tolist()
    assert evidence.frame["length"].tolist() == [len(text) for text in frame["em_response"].iloc[usable]]
    assert not [name for name in evidence.frame if "activations" in name]


def test_other_sites_and_poolings_are_found_by_their_names(study: Study) -> None:
    frame, tensors, _ = study
    attention = build_evidence(frame, tensors, "em", [2], "attn_out")
    np.testing.assert_array_equal(attention.matrix, tensors["em.blocks.2.hook_attn_out"][attention.rows])
    prompt = build_evidence(frame, tensors, "em", [1], pooling="prompt_mean")
    np.testing.assert_array_equal(prompt.matrix, tensors["em.blocks.1.hook_resid_pre.prompt_mean"][prompt.rows])
    embedded = build_evidence(frame, tensors, "em", [], "embed")
    np.testing.assert_array_equal(embedded.matrix, tensors["em.hook_embed"][embedded.rows])
    assert [one.name for one in (attention, prompt, embedded)] == [
        "em_attn_out_layer_2",
        "em_layer_1_prompt_mean",
        "em_embed",
    ]


def test_several_layers_count_alike(study: Study) -> None:
    frame, tensors, _ = study
    joint = build_evidence(frame, tensors, "em_minus_base_on_em", [3, 1, 3])
    width = joint.matrix.shape[1] // 2
    for place, layer in enumerate((3, 1)):
        alone = build_evidence(frame, tensors, "em_minus_base_on_em", [layer])
        part = joint.matrix[:, place * width : (place + 1) * width]
        assert np.linalg.norm(part, axis=1).mean() == pytest.approx(1, rel=1e-5)
        np.testing.assert_allclose(part, alone.matrix / np.linalg.norm(alone.matrix, axis=1).mean(), rtol=1e-5)
        reference = joint.base[:, place * width : (place + 1) * width]
        np.testing.assert_allclose(reference, alone.base / np.linalg.norm(alone.base, axis=1).mean(), rtol=1e-5)
    assert joint.name == "em_minus_base_on_em_layers_3_1"


def test_flags_of_the_arms_in_use_drop_rows_and_remarks_do_not(study: Study) -> None:
    frame, tensors, _ = study
    kept = build_evidence(frame, tensors, "em", [1], drop_flagged=False).rows
    flags: list[list[str]] = [[] for _ in range(COUNT)]
    for row, flag in zip(
        kept,
        ["norm_outlier_em", "truncated_em", "norm_outlier_base_on_em", "split_em", "norm_outlier_base"],
        strict=False,
    ):
        flags[row] = [flag]
    marked = frame.assign(flags=flags)
    assert set(kept) - set(build_evidence(marked, tensors, "em", [1]).rows) == {kept[0], kept[4]}
    difference = build_evidence(frame, tensors, "em_minus_base_on_em", [1], drop_flagged=False).rows
    assert set(difference) - set(build_evidence(marked, tensors, "em_minus_base_on_em", [1]).rows) == {*kept[[0, 2, 4]]}
    assert build_evidence(marked, tensors, "em", [1], drop_flagged=False).rows.tolist() == kept.tolist()


def test_what_is_not_there_is_said_with_what_is(study: Study) -> None:
    frame, tensors, reader = study
    for arguments, message in (
        (("raw", [1]), "'raw': unknown; there are em, em_minus_base"),
        (("em", [9]), "layer 9 of resid: layers 0 1 2 3 were recorded"),
        (("em", []), "no layer of resid: layers 0 1 2 3"),
        (("em", [3], "attn_out"), "layer 3 of attn_out: layers 0 1 2 were recorded"),
        (("em", [1], "mlp_out"), "site mlp_out: not recorded; there are attn_out, embed, resid"),
        (("em", [1], "embed"), "site embed: it has no layer 1"),
        (("em", [1], "resid", True, "last_prompt_token"), "site resid: not recorded; there are none"),
        (("em_minus_base_on_em", [], "embed"), "do not differ at hook_embed"),
        (("em_minus_base_on_em", [0]), "do not differ at blocks.0.hook_resid_pre"),
    ):
        with pytest.raises(UserError, match=message):
            build_evidence(frame, tensors, *arguments)
    with pytest.raises(UserError, match="24 rows, the frame has 23"):
        build_evidence(frame.iloc[1:], tensors, "em", [1])
    empty = {name: np.full_like(values, np.nan) for name, values in tensors.items()}
    with pytest.raises(UserError, match="no row of 24 is finite"):
        build_evidence(frame, empty, "em", [1])
    with pytest.raises(UserError, match="em_minus_base': has no tokens"):
        token_evidence(frame, reader, "em_minus_base", [1])
    with pytest.raises(UserError, match="layer 2 of resid: layers 1 3"):
        token_evidence(frame, reader, "em", [2])
    with pytest.raises(UserError, match="tokens of 24 rows, the frame has 3"):
        token_evidence(frame.iloc[:3], reader, "em", [1])


@pytest.mark.parametrize("kind", ["em", "em_minus_base_on_em"])
def test_an_answers_tokens_have_its_evidence_as_their_mean(study: Study, kind: str) -> None:
    frame, tensors, reader = study
    evidence = build_evidence(frame, tensors, kind, [N_LAYERS])
    tokens = token_evidence(frame, reader, kind, [N_LAYERS])
    for _ in range(2):  # it can be read again
        blocks = list(tokens.blocks())
        rows, matrix = (np.concatenate([getattr(block, name) for block in blocks]) for name in ("rows", "matrix"))
        for row, expected in zip(evidence.rows, evidence.matrix, strict=True):
            np.testing.assert_allclose(matrix[rows == row].mean(axis=0), expected, rtol=1e-3, atol=1e-5)
            places = np.concatenate([block.places for block in blocks])[rows == row]
            np.testing.assert_array_equal(places, np.arange(len(places)))
    assert len(blocks) == COUNT // 4  # a shard a batch
    assert np.concatenate(list(tokens.matrices())).tobytes() == matrix.tobytes()


def test_layers_of_tokens_count_alike_and_flagged_rows_are_left_out(study: Study) -> None:
    frame, _, reader = study
    joint = np.concatenate(list(token_evidence(frame, reader, "em", LAYERS).matrices()))
    for part in np.split(joint, 2, axis=1):
        assert np.linalg.norm(part, axis=1).mean() == pytest.approx(1, rel=1e-5)
    seen = set(np.concatenate([block.rows for block in token_evidence(frame, reader, "em", [1]).blocks()]))
    flagged = frame.assign(flags=[["norm_outlier_em"] if row == min(seen) else [] for row in range(COUNT)])
    left = {*np.concatenate([block.rows for block in token_evidence(flagged, reader, "em", [1]).blocks()])}
    assert seen - left == {min(seen)}


def hand_made(folder: Path, shards: dict[tuple[str, int], tuple[list[int], float]]) -> TokenReader:
    """Shards of one value each, by arm and batch: which row each token belongs to, and the value."""
    (folder / "parts").mkdir()
    (folder / "tokens").mkdir()
    for (arm, batch), (rows, value) in shards.items():
        tokens = torch.full((len(rows), 2), value, dtype=torch.bfloat16)
        shard = TokenShard(np.array(rows), np.zeros(len(rows), int), {"blocks.1.hook_resid_pre": tokens})
        write_shard(shard_path(folder / "parts", arm, batch), [shard] if rows else [])
    gather_shards(folder / "parts", folder / "tokens", 6)
    return TokenReader(folder / "tokens")


def test_batches_and_rows_that_one_arm_lost_are_passed_over(tmp_path: Path) -> None:
    frame = pd.DataFrame({"flags": [[] for _ in range(6)]})
    reader = hand_made(
        tmp_path,
        {
            ("em", 0): ([0, 0, 1], 1.0),
            ("base_on_em", 0): ([], 0.0),
            ("em", 1): ([2, 3, 3], 5.0),
            ("base_on_em", 1): ([3, 3], 2.0),
            ("em", 2): ([4], float("nan")),
            ("base_on_em", 2): ([4], 2.0),
        },
    )
    blocks = list(token_evidence(frame, reader, "em_minus_base_on_em", [1]).blocks())
    assert [block.rows.tolist() for block in blocks] == [[3, 3]]
    assert (blocks[0].matrix == 3.0).all() and blocks[0].matrix.dtype == np.float32
    raw = token_evidence(frame, reader, "em", [1]).blocks()
    assert [block.rows.tolist() for block in raw] == [[0, 0, 1], [2, 3, 3]]


def test_arms_over_different_texts_are_refused(tmp_path: Path) -> None:
    reader = hand_made(tmp_path, {("em", 0): ([0, 0, 1], 1.0), ("base_on_em", 0): ([0, 1, 1], 0.0)})
    assert json.loads((tmp_path / "tokens" / INDEX).read_text())["rows"] == 6
    tokens = token_evidence(pd.DataFrame({"flags": [[] for _ in range(6)]}), reader, "em_minus_base_on_em", [1])
    with pytest.raises(UserError, match="shards 00000 of em and base_on_em hold other tokens"):
        list(tokens.blocks())


def rows_and_dimensions(rows: int, features: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    dimensions = rng.choice(["money", "politics", "morals"], size=rows).astype(object)
    shift = {name: rng.normal(size=features) * 5 for name in ("money", "politics", "morals")}
    matrix = rng.normal(size=(rows, features)) @ rng.normal(size=(features, features)) / np.sqrt(features)
    return matrix + np.stack([shift[name] for name in dimensions]) + 3, dimensions


def test_dimension_means_are_those_of_the_training_rows() -> None:
    train, dimensions = rows_and_dimensions(60, 7)
    test, other = rows_and_dimensions(30, 7, seed=1)
    fitted = Preprocessing(remove_dimension_means=True).fit(train, dimensions)
    dummies = pd.get_dummies(pd.Series([*dimensions, *other])).to_numpy(float)
    regression = LinearRegression(fit_intercept=False).fit(dummies[:60], train)
    np.testing.assert_allclose(
        fitted.transform(test, other), test - regression.predict(dummies[60:]), rtol=1e-9, atol=1e-9
    )
    alone = fitted.transform(test[:1], other[:1])
    np.testing.assert_array_equal(alone, fitted.transform(test, other)[:1])
    unseen = fitted.transform(test, np.full(30, "technology", dtype=object))
    np.testing.assert_allclose(unseen, test - train.mean(axis=0), rtol=1e-12)


def test_centring_is_optional_and_keeps_the_dtype() -> None:
    matrix, dimensions = rows_and_dimensions(50, 4)
    matrix = matrix.astype(np.float32)
    as_it_was = Preprocessing(centre=False).fit(matrix, dimensions).transform(matrix, dimensions)
    np.testing.assert_array_equal(as_it_was, matrix)
    centred = Preprocessing().fit(matrix[:20], dimensions[:20]).transform(matrix, dimensions)
    assert centred.dtype == np.float32
    np.testing.assert_allclose(centred, matrix - matrix[:20].mean(axis=0, dtype=float), atol=1e-6)
    with pytest.raises(ValueError, match="3 dimensions for 50 rows"):
        Preprocessing().fit(matrix, dimensions).transform(matrix, dimensions[:3])


@pytest.mark.parametrize(("rows", "features"), [(400, 12), (40, 150)])
def test_whitening_makes_scikit_learns_ledoit_wolf_covariance_the_identity(rows: int, features: int) -> None:
    matrix, dimensions = rows_and_dimensions(rows, features)
    fitted = Preprocessing(whiten=True).fit(matrix, dimensions)
    assert fitted.whitener is not None
    rank = min(rows - 1, features)
    assert fitted.whitener.shape == (features, rank)
    covariance = LedoitWolf().fit(matrix).covariance_
    np.testing.assert_allclose(fitted.whitener.T @ covariance @ fitted.whitener, np.eye(rank), atol=1e-8)
    white = fitted.transform(matrix + 1, dimensions)
    assert white.shape == (rows, rank) and (white.var(axis=0) < 1.01 * rows / (rows - 1)).all()


def test_rows_that_do_not_differ_cannot_be_whitened() -> None:
    with pytest.raises(UserError, match="5 rows do not differ"):
        Preprocessing(whiten=True).fit(np.ones((5, 3)), ["money"] * 5)
