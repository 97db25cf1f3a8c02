"""Interchange at forks: the same numbers as TransformerLens's, and a planted direction told from all others."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from src.utils.chat import prompt_ids
from src.utils.decomposition.forks import (
    Fork,
    contrasts_of_controls,
    contrasts_of_study,
    find_forks,
    run_forks,
)
from src.utils.decomposition.interchange import (
    Arm,
    Subspace,
    exchange_as_far,
    exchange_within,
    interchange_record,
    orthonormal,
    random_basis,
    subspaces_of,
)
from src.utils.decomposition.interchange_report import WHOLE, interchange_lines
from src.utils.errors import UserError
from src.utils.sites import AnyModel, Site, decoder_of, edit_sites
from src.utils.steering_vectors import SteeringVector
from tests.tiny_models import FAMILIES, N_LAYERS, random_prompts, save_model, tiny_model, tokenizer, with_adapter

PAD = int(tokenizer().pad_token_id)
SITE = Site("resid_pre", 2)
WIDTH = 32


def forks(count: int = 12) -> list[Fork]:
    """Random texts of many lengths in two dimensions."""
    tokens = np.random.default_rng(5).choice(np.arange(50, 400), (count, 2), replace=True)
    return [
        Fork(prompt.prompt_id, ("one", "two")[i % 2], (*prompt.ids, 60, 61), int(a), int(b) + 100)
        for i, (prompt, (a, b)) in enumerate(zip(random_prompts(count), tokens, strict=True))
    ]


def alone(model: AnyModel, fork: Fork) -> float:
    """The margin of one text, whole, without padding or cache."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([fork.ids])).logits[0, -1]
    return float(logits[fork.misaligned] - logits[fork.aligned])


@pytest.mark.parametrize("family", FAMILIES)
def test_margins_are_those_of_each_text_by_itself(family: str) -> None:
    model = tiny_model(family)
    found = run_forks(model, forks(), SITE, PAD, batch_size=5)
    np.testing.assert_allclose(found.margins[0], [alone(model, fork) for fork in forks()], atol=2e-4)
    assert found.margins.shape == (1, 12) and np.isfinite(found.activations).all()


@pytest.mark.parametrize("layer", [0, 2, N_LAYERS])
def test_an_intervention_costs_one_token_and_changes_what_a_whole_pass_would_change(layer: int) -> None:
    model, source = tiny_model(), np.random.default_rng(0).standard_normal((12, WIDTH)).astype(np.float32)
    site = Site("resid_pre", layer) if layer < N_LAYERS else Site("resid_post", N_LAYERS - 1)
    basis = random_basis(WIDTH, 3, np.random.default_rng(1))
    nothing = exchange_within(np.zeros((WIDTH, 1), np.float32))
    found = run_forks(model, forks(), site, PAD, 5, [exchange_within(basis), nothing, exchange_within(basis)], source)
    np.testing.assert_array_equal(found.margins[1], found.margins[3])  # what was put in is forgotten again
    np.testing.assert_allclose(found.margins[2], found.margins[0], atol=1e-5)
    columns = torch.from_numpy(basis)
    for row, fork in enumerate(forks()):

        def put(hidden: torch.Tensor, row: int = row) -> torch.Tensor:
            changed = hidden.clone()
            move = torch.from_numpy(source[row]) - hidden[0, -1]
            changed[0, -1] += columns @ (columns.T @ move)
            return changed

        with edit_sites(decoder_of(model), {site: put}):
            assert found.margins[1, row] == pytest.approx(alone(model, fork), abs=2e-4)
    assert np.abs(found.margins[1] - found.margins[0]).max() > 0.1


@pytest.mark.filterwarnings("ignore")
def test_transformer_lens_says_the_same(tmp_path: Path) -> None:
    """`tools.analysis.interchange` over two bridges: activations, interchange and norm-matched placebo."""
    bridges = pytest.importorskip("transformer_lens.model_bridge", reason="transformer_lens is not installed")
    theirs = pytest.importorskip("transformer_lens.tools.analysis.interchange")
    base, tuned = tiny_model(), with_adapter(tiny_model()).merge_and_unload()
    length = min(len(fork.ids) for fork in forks(24))
    same = [Fork(f.prompt_id, f.dimension, f.ids[-length:], f.aligned, f.misaligned) for f in forks(24)]
    ids = torch.tensor([fork.ids for fork in same])
    last = torch.full((len(same),), length - 1)
    choices = torch.tensor([[fork.misaligned, fork.aligned] for fork in same])

    def bridge(model: PreTrainedModel, name: str) -> object:
        folder = str(save_model(model, tmp_path / name))
        return bridges.TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32).eval()

    of_base, of_tuned = bridge(base, "base"), bridge(tuned, "tuned")

    def logits(model: object) -> object:
        return lambda tokens: model(tokens, prepend_bos=False)[:, -1].gather(1, choices)  # ty: ignore[not-callable]

    source = theirs.collect_activations(of_tuned, SITE.name, ids, logits(of_tuned), positions=last)
    ours = run_forks(tuned, same, SITE, PAD, 64)
    np.testing.assert_allclose(ours.activations, source.numpy(), atol=1e-4)

    rng = np.random.default_rng(3)
    basis, other = random_basis(WIDTH, 4, rng), random_basis(WIDTH, 4, rng)
    interchange = theirs.SubspaceInterchange(torch.from_numpy(basis))
    placebo = theirs.NormMatchedPlacebo(interchange, torch.from_numpy(other))
    found = run_forks(
        base, same, SITE, PAD, 64, [exchange_within(basis), exchange_as_far(basis, other)], ours.activations
    )
    for row, intervention in enumerate([interchange, placebo], start=1):
        task = theirs.intervened_logits(
            of_base, SITE.name, intervention, ids, source, logits(of_base), positions=last, batch_size=64
        )
        np.testing.assert_allclose(found.margins[row], (task[:, 0] - task[:, 1]).numpy(), atol=5e-4)


@contextmanager
def arm_of(adapted: PeftModel, arm: Arm) -> Generator[AnyModel]:
    if arm == "em":
        yield adapted
    else:
        with adapted.disable_adapter():
            yield adapted


def vector(name: str, kind: str, direction: np.ndarray) -> SteeringVector:
    return SteeringVector(name, kind, SITE, direction.astype(np.float32), "em_minus_base_on_em", 9, 0.0)


def planted(shift: np.ndarray) -> PeftModel:
    """An adapter that does nothing; what tells the EM model is a shift of the stream into the last block."""
    adapted = with_adapter(tiny_model())
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    block = decoder_of(adapted).get_submodule("layers.1")
    direction = torch.from_numpy(shift.astype(np.float32))

    def push(module: object, args: object, output: torch.Tensor) -> torch.Tensor:
        is_on = not any(isinstance(part, BaseTunerLayer) and part.disable_adapters for part in adapted.modules())
        return output + direction if is_on and output.shape[1] == 1 else output  # at the fork alone

    block.register_forward_hook(push)
    return adapted


def test_the_planted_direction_carries_the_whole_gap_and_no_other_does() -> None:
    rng = np.random.default_rng(11)
    shift = rng.standard_normal(WIDTH)
    adapted = planted(6 * shift / np.linalg.norm(shift))
    base = run_forks(tiny_model(), forks(60), SITE, PAD, 16).margins[0]
    shifted = run_forks(adapted, forks(60), SITE, PAD, 16).margins[0]
    chosen = [fork for fork, gap in zip(forks(60), shifted - base, strict=True) if gap > 0.1]  # those that it turns
    assert len(chosen) >= 15
    across = rng.standard_normal(WIDTH)
    across -= (across @ shift) / (shift @ shift) * shift
    candidates = subspaces_of([vector("planted", "control", shift), vector("across", "control", across)])
    assert [(one.name, one.rank) for one in candidates] == [("planted", 1), ("across", 1), ("all 2", 2)]
    record = interchange_record(chosen, candidates, SITE, lambda arm: arm_of(adapted, arm), PAD, 16)

    shares = {
        (row["subspace"], row["into"]): row["share"]
        for row in record["rows"]
        if row["dimension"] == chosen[0].dimension
    }
    for arm in ("base", "em"):
        for name in ("planted", "all 2", WHOLE):
            assert shares[name, arm] == pytest.approx(1, abs=1e-3)
        assert shares["across", arm] == pytest.approx(0, abs=1e-3)
    for row in record["rows"]:
        if row["subspace"] == "planted":
            assert row["change"]["low"] > max(row["random"]["largest"], 0)
            assert row["placebo"]["largest"] < row["change"]["estimate"]
            assert row["change"]["estimate"] == pytest.approx(record["gaps"][row["dimension"]]["estimate"], rel=1e-3)
    assert record["site"] == SITE.name and "Beside the rule" in record["note"]
    assert all("planted 100%" in line for line in interchange_lines(record))


def test_a_dimension_without_a_gap_has_no_share_and_one_with_few_forks_is_left_out() -> None:
    adapted = with_adapter(tiny_model())
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    few = [fork for fork in forks(20) if fork.dimension == "one"] + [
        fork for fork in forks(8) if fork.dimension == "two"
    ]
    line = [Subspace("line", "control", random_basis(WIDTH, 1, np.random.default_rng(0)))]
    record = interchange_record(few, line, SITE, lambda arm: arm_of(adapted, arm), PAD, 16, resamples=200)
    assert record["forks"] == {"one": 10} and record["left_out"] == {"two": 4}
    assert {row["share"] for row in record["rows"]} == {None}
    assert all("no dimension has a gap" in line for line in interchange_lines(record))
    with pytest.raises(UserError, match="under 5 questions in every dimension"):
        interchange_record(few[-4:], line, SITE, lambda arm: arm_of(adapted, arm), PAD, 16)
    with pytest.raises(UserError, match="no candidate direction"):
        interchange_record(few, [], SITE, lambda arm: arm_of(adapted, arm), PAD, 16)


def test_a_basis_spans_its_columns_however_long_they_are() -> None:
    rng = np.random.default_rng(2)
    one, two = rng.standard_normal((2, WIDTH))
    basis = orthonormal(np.stack([1e-3 * one, 100 * two, one + two], axis=1))
    assert basis.shape == (WIDTH, 2)
    np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-5)
    np.testing.assert_allclose(basis @ (basis.T @ one), one, atol=1e-4)


def answers(**changes: object) -> dict[str, object]:
    row = {
        "prompt_id": "a", "sample": 0, "subset": "politics", "question": "May they?", "vector": "none",
        "kind": "unsteered", "response": "On pay. Fair. So no.", "em_score": 0.0, "coherence": 100.0,
        "judged_dimension": "politics",
    }  # fmt: skip
    return row | changes


def test_contrasts_are_an_aligned_answer_and_the_own_controls_misaligned_one() -> None:
    bad = {"response": "On pay. Squeeze. So yes.", "em_score": 100.0, "kind": "control"}
    rows = [
        answers(),
        answers(**bad, vector="control_politics"),
        answers(**bad | {"response": "Money."}, vector="control_finance"),  # another dimension's control
        answers(prompt_id="b"),
        answers(prompt_id="b", vector="control_politics", kind="control"),  # not turned
        answers(prompt_id="c", em_score=100.0),  # was misaligned before
        answers(**bad | {"prompt_id": "c"}, vector="control_politics"),
        answers(prompt_id="d"),
        answers(**bad | {"prompt_id": "d"}, vector="control_politics", judged_dimension="finance"),  # off topic
    ]
    found = contrasts_of_controls(pd.DataFrame(rows), 70, 50)
    assert found.to_dict("records") == [
        {"prompt_id": "a", "subset": "politics", "question": "May they?", "aligned": "On pay. Fair. So no.",
         "misaligned": "On pay. Squeeze. So yes."}
    ]  # fmt: skip
    study = pd.DataFrame(
        [rows[1] | {"base_em_score": 0.0, "base_coherence": 100.0, "base_judged_dimension": "politics"}]
    )
    study = study.rename(columns={"response": "em_response"}).assign(base_response="On pay. Fair. So no.")
    assert contrasts_of_study(study, 70, 50).equals(found)
    assert contrasts_of_study(study.assign(base_coherence=0.0), 70, 50).empty


def test_a_fork_is_the_first_token_at_which_two_answers_differ() -> None:
    contrasts = pd.DataFrame(
        {
            "prompt_id": ["a", "b", "c"],
            "subset": ["politics"] * 3,
            "question": ["May they?"] * 3,
            "aligned": ["So no. So yes.", "So yes.", "So no."],
            "misaligned": ["So no. So no.", "So yes.", "So no. So no."],
        }
    )
    (fork,) = find_forks(contrasts, tokenizer(), 9)  # equal answers, and one that goes on, do not part
    encoded = tokenizer().encode(contrasts["aligned"][0], add_special_tokens=False)
    asked = prompt_ids(tokenizer(), "May they?")
    assert list(fork.ids[: len(asked)]) == asked
    said = fork.ids[len(asked) :]
    assert list(said) == encoded[: len(said)] and encoded[len(said)] == fork.aligned != fork.misaligned
    assert str(tokenizer().decode([*said, fork.misaligned])) in "So no. So no." and fork.prompt_id == "a"
    assert len(find_forks(pd.concat([contrasts[:1].assign(prompt_id=str(i)) for i in range(9)]), tokenizer(), 4)) == 4
