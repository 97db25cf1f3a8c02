"""What collection records: the frame, its tensors and its flags, by whatever route the EM model comes."""

import weakref
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from src.utils.collection import ModelPass, Plan, collect_arms, model_passes, run_capture
from src.utils.collection_frame import assemble, norm_outliers
from src.utils.collection_parts import ARMS, Arm, part_path, read_part, write_part
from src.utils.config_sections import ModelConfig
from src.utils.errors import UserError
from src.utils.generation import Prompt, Response, generate
from src.utils.models import load_adapter, load_model
from src.utils.prompts import Question, spread
from src.utils.sites import decoder_of
from tests.tiny_collection import (
    LAYERS,
    Collected,
    adapter_passes,
    base_model,
    collected,
    means_of,
    part_of,
    plan,
    save_model_folders,
    unused,
)
from tests.tiny_models import N_LAYERS, questions, tokenizer, with_adapter


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Collected]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, collected(plan(), folder)


def test_frame_and_tensors_hold_what_the_models_say_and_do(uninterrupted: tuple[Path, Collected]) -> None:
    """Each arm again, one prompt at a time, straight from the models."""
    frame, tensors = uninterrupted[1]
    one, adapted, base = plan(), with_adapter(base_model()), base_model()
    assert frame["prompt_id"].tolist() == [question.prompt_id for question in questions(10)]
    assert list(tensors) == [
        f"{arm}.blocks.{site}"
        for arm in ARMS
        for site in ("0.hook_resid_pre", "1.hook_resid_pre", "2.hook_resid_pre", "2.hook_resid_post")
    ]
    for row, prompt in enumerate(one.prompts):
        said = {
            "base": generate(base, tokenizer(), [prompt], one.sampling),
            "em": generate(adapted, tokenizer(), [prompt], one.sampling),
        }
        said["base_on_em"] = said["em"]
        assert said["base"] != said["em"]
        for arm, model in (("base", base), ("em", adapted), ("base_on_em", base)):
            means = means_of(model, [prompt], said[arm])[0]
            for layer, (name, tensor) in enumerate(item for item in tensors.items() if item[0].startswith(f"{arm}.")):
                np.testing.assert_allclose(tensor[row], means[layer], rtol=1e-4, atol=1e-5, err_msg=name)
        for arm in ("base", "em"):
            text = tokenizer().decode(list(said[arm][0].ids), skip_special_tokens=True)
            assert isinstance(text, str)
            assert frame[f"{arm}_response"][row] == text.strip()
    for arm in ARMS:
        for layer, site in ((1, "1.hook_resid_pre"), (3, "2.hook_resid_post")):
            column = np.stack(frame[f"{arm}_activations_layer_{layer}"])
            assert column.dtype == np.float32
            np.testing.assert_array_equal(column, tensors[f"{arm}.blocks.{site}"])


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_model_folders(tmp_path_factory.mktemp("models"))


def test_adapter_and_full_checkpoint_give_the_same(model_folders: dict[str, Path], tmp_path: Path) -> None:
    load = ModelConfig(base=str(model_folders["base"]))

    def base() -> PreTrainedModel:
        return load_model(str(model_folders["base"]), load)

    def adapter(model: PreTrainedModel) -> PeftModel:
        return load_adapter(model, str(model_folders["adapter"]))

    def checkpoint() -> PreTrainedModel:
        return load_model(str(model_folders["merged"]), load)

    frame, tensors = collected(plan(), tmp_path / "adapter", model_passes(base, adapter, unused))
    full_frame, full_tensors = collected(plan(), tmp_path / "full", model_passes(base, None, checkpoint))
    texts = ["prompt_id", "base_response", "em_response"]
    pd.testing.assert_frame_equal(frame[texts], full_frame[texts])
    assert (frame["base_response"] != frame["em_response"]).all()
    for name, tensor in tensors.items():
        np.testing.assert_allclose(full_tensors[name], tensor, rtol=1e-4, atol=1e-4, err_msg=name)
    em, base_on_em = tensors["em.blocks.2.hook_resid_pre"], tensors["base_on_em.blocks.2.hook_resid_pre"]
    assert np.abs(em - base_on_em).max() > 0.01


def test_a_full_checkpoint_is_gone_before_the_base_is_loaded(tmp_path: Path) -> None:
    loaded: list[weakref.ref] = []

    def load() -> PreTrainedModel:
        assert all(reference() is None for reference in loaded), "two sets of weights in memory"
        model = base_model()
        loaded.append(weakref.ref(model))
        return model

    collect_arms(plan(4), tokenizer(), model_passes(load, None, load), tmp_path)
    assert len(loaded) == 2


def test_base_and_em_see_the_same_prompt_ids(tmp_path: Path) -> None:
    """What enters the embeddings in each arm: the same prompts, and in base_on_em the EM model's answers."""
    (both,), one = adapter_passes(), plan(6, batch_size=6)
    seen: dict[Arm, list[list[list[int]]]] = {arm: [] for arm in ARMS}
    now: list[Arm] = []
    embeddings = decoder_of(both.model).get_input_embeddings()
    embeddings.register_forward_pre_hook(lambda _, args: seen[now[-1]].append(args[0].tolist()))

    def context(arm: Arm) -> AbstractContextManager:
        now.append(arm)
        return both.context(arm)

    collect_arms(one, tokenizer(), iter([ModelPass(both.model, ARMS, context)]), tmp_path)
    width = max(len(prompt.ids) for prompt in one.prompts)
    batch = [one.prompts[row].ids for row in one.batches[0]]
    pad = tokenizer().pad_token_id
    left = [[pad] * (width - len(ids)) + list(ids) for ids in batch]
    assert seen["base"][0] == seen["em"][0] == left, "generation starts from the same ids"
    captured = {arm: seen[arm][-1] for arm in ARMS}
    assert captured["base_on_em"] == captured["em"] != captured["base"]
    assert len(seen["base_on_em"]) == 1, "nothing is generated for it"
    for arm in ("base", "em"):
        said = read_part(part_path(tmp_path, arm, 0)).responses
        for ids, prompt, response in zip(captured[arm], batch, said, strict=True):
            whole = prompt + response.ids
            assert tuple(ids[: len(whole)]) == whole


def planted(one: Plan, work_dir: Path, change: dict[tuple[Arm, int], tuple[Response, float]]) -> list[list[str]]:
    """Flags of a frame whose parts are written by hand: norms near 1, apart from what is changed."""
    rng = np.random.default_rng(0)
    for arm in ARMS:
        for number, batch in enumerate(one.batches):
            means = rng.normal(size=(len(batch), N_LAYERS + 1, 32)).astype(np.float32)
            means /= np.linalg.norm(means, axis=2, keepdims=True) * rng.uniform(0.9, 1.1, (len(batch), 1, 1))
            responses = [Response((40, 2), False) for _ in batch]
            for place, row in enumerate(batch):
                if (arm, row) in change:
                    responses[place], factor = change[arm, row]
                    means[place, 1] *= factor
            write_part(part_path(work_dir, arm, number), part_of(responses, means))
    frame, _ = assemble(one, tokenizer(), work_dir, LAYERS, N_LAYERS)
    assert len(frame) == len(one.prompts), "every row is kept"
    return frame["flags"].tolist()


def test_flags_name_what_is_odd_and_nothing_else(tmp_path: Path) -> None:
    one, said = plan(24), Response((40, 2), False)
    flags = planted(
        one,
        tmp_path,
        {
            ("em", 3): (said, 8.0),
            ("base", 5): (said, np.nan),
            ("base_on_em", 7): (said, np.inf),
            ("base", 9): (Response((40, 41), True), 1.0),
            ("em", 9): (Response((40, 41), True), 0.0),
            ("em", 11): (said, 1.2),
        },
    )
    assert {row: found for row, found in enumerate(flags) if found} == {
        3: ["norm_outlier_em"],
        5: ["non_finite_base"],
        7: ["non_finite_base_on_em"],
        9: ["truncated_base", "truncated_em", "norm_outlier_em"],
    }


def test_what_is_not_finite_is_flagged_at_every_site_and_pooling(tmp_path: Path) -> None:
    """The frame holds layers 1 and 3, means over answers; an empty answer's means are no fault, its prompt's are."""
    one = plan(8, sites=["resid", "attn_out"], poolings=["response_mean", "prompt_mean"], batch_size=8)
    collected(one, tmp_path)
    path, (batch,) = part_path(tmp_path, "em", 0), one.batches
    part = read_part(path)
    bad = {
        "blocks.2.hook_resid_pre": np.nan,
        "blocks.0.hook_attn_out": -np.inf,
        "blocks.1.hook_attn_out.prompt_mean": np.inf,
    }
    for row, (name, value) in enumerate(bad.items()):
        part.pooled[name][batch.index(row), 7] = value
    for row in (3, 4):
        part.counted[batch.index(row)] = 0
        for name, values in part.pooled.items():
            if not name.endswith("prompt_mean"):
                values[batch.index(row)] = np.nan
    part.pooled["blocks.0.hook_resid_pre.prompt_mean"][batch.index(4), 0] = np.nan
    write_part(path, part)
    frame, _ = assemble(one, tokenizer(), tmp_path, LAYERS, N_LAYERS)
    flagged = [row for row, flags in enumerate(frame["flags"]) if "non_finite_em" in flags]
    assert flagged == [0, 1, 2, 4]
    assert [row for row, flags in enumerate(frame["flags"]) if "empty_em" in flags] == [3, 4]


def test_outliers_are_ten_robust_deviations_from_the_median() -> None:
    """The threshold computed by hand, and rows just inside and just outside it."""
    norms = np.random.default_rng(1).normal(50, 2, (200, 1)).astype(np.float32)
    for _ in range(2):  # the second time with the planted rows in place, which move the median a little
        centre = np.median(norms[:, 0])
        scale = 1.4826 * np.median(np.abs(norms[:, 0] - centre))
        norms[:4, 0] = centre + scale * np.array([10.2, 9.8, -10.2, -9.8])
    assert np.flatnonzero(norm_outliers(norms)).tolist() == [0, 2]


def test_flags_of_a_real_run_say_which_answers_have_no_end(uninterrupted: tuple[Path, Collected]) -> None:
    folder, (frame, _) = uninterrupted
    one = plan()
    for arm in ("base", "em"):
        truncated = set()
        for number, batch in enumerate(one.batches):
            responses = read_part(part_path(folder, arm, number)).responses
            ends = base_model().generation_config.eos_token_id
            truncated |= {row for row, said in zip(batch, responses, strict=True) if said.ids[-1] not in ends}
        assert 0 < len(truncated) < 10
        assert {row for row, flags in enumerate(frame["flags"]) if f"truncated_{arm}" in flags} == truncated


def test_an_empty_answer_is_flagged_and_kept(tmp_path: Path) -> None:
    one = plan(3)
    end = Response((int(tokenizer().eos_token_id),), is_truncated=False)
    batch = one.batches[0]
    part, _ = run_capture(base_model(), tokenizer(), one, [one.prompts[row] for row in batch], [end] * 3)
    write_part(part_path(tmp_path, "em", 0), part)
    frame, _ = collected(one, tmp_path)
    assert frame["em_response"].tolist() == ["", "", ""]
    assert all({"empty_em", "empty_base_on_em"} <= set(flags) for flags in frame["flags"])
    assert np.isnan(np.stack(frame["em_activations_layer_1"])).all()


@pytest.mark.parametrize(("count", "limit"), [(885, 100), (885, 7), (10, 9), (10, 1), (3, 3), (3, 8)])
def test_limit_takes_questions_at_even_distances(count: int, limit: int) -> None:
    every = [Question(prompt_id=f"q{i}", subset="s", facet="f", question="?", keyed=1) for i in range(count)]
    chosen = [every.index(question) for question in spread(every, limit)]
    assert len(chosen) == min(limit, count)
    assert chosen == sorted(set(chosen))
    gaps = np.diff([*chosen, count])
    assert gaps.max() - gaps.min() <= 1


def test_what_each_head_adds_is_recorded_by_name_with_the_adapter_that_its_arm_has(tmp_path: Path) -> None:
    _, tensors = collected(plan(4, sites=["resid", "attn_out", "attn.result"]), tmp_path)
    for arm in ARMS:
        for block in range(N_LAYERS):
            heads = tensors[f"{arm}.blocks.{block}.attn.hook_result"].reshape(4, 4, 32)
            added = tensors[f"{arm}.blocks.{block}.hook_attn_out"]
            np.testing.assert_allclose(heads.sum(axis=1), added, rtol=1e-4, atol=1e-4)


def test_samples_repeat_each_question_with_noise_of_its_own(tmp_path: Path) -> None:
    one = plan(3, samples=2, batch_size=4)
    assert [(prompt.prompt_id, prompt.sample) for prompt in one.prompts] == [
        (question.prompt_id, sample) for question in questions(3) for sample in (0, 1)
    ]
    frame, _ = collected(one, tmp_path)
    assert frame["sample"].tolist() == [0, 1] * 3
    assert frame["base_response"].nunique() == 6


def test_batch_size_changes_no_answer_and_no_activation(uninterrupted: tuple[Path, Collected], tmp_path: Path) -> None:
    frame, tensors = collected(plan(batch_size=7), tmp_path)
    texts = ["prompt_id", "base_response", "em_response", "flags"]
    pd.testing.assert_frame_equal(frame[texts], uninterrupted[1][0][texts])
    for name, tensor in uninterrupted[1][1].items():
        scale = float(np.nanmax(np.abs(tensor)))
        np.testing.assert_allclose(tensors[name], tensor, rtol=1e-5, atol=1e-5 * scale, err_msg=name)


def test_a_layer_that_the_model_lacks_is_a_usage_error(uninterrupted: tuple[Path, Collected]) -> None:
    with pytest.raises(UserError, match="layer 4") as caught:
        assemble(plan(), tokenizer(), uninterrupted[0], [1, 4], N_LAYERS)
    assert caught.value.exit_code == 2


def test_prompt_ids_are_the_chat_template_of_the_question() -> None:
    one = plan(4)
    for prompt, question in zip(one.prompts, questions(4), strict=True):
        messages = [{"role": "user", "content": question.question}]
        expected = tokenizer().apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert isinstance(prompt, Prompt)
        assert list(prompt.ids) == expected


def test_collection_leaves_the_random_state_alone(tmp_path: Path) -> None:
    one, passes = plan(2), list(adapter_passes())
    before = torch.get_rng_state()
    collect_arms(one, tokenizer(), iter(passes), tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
