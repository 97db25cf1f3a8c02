"""Memory that runs out, rows that fail, and several ranks: what is kept, what is flagged, and what is the same."""

import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from src.utils import collection
from src.utils.artifacts import load_frame
from src.utils.collection import ModelPass, Plan, collect_arms, model_passes, plan_collection
from src.utils.collection_frame import assemble
from src.utils.collection_parts import ARMS
from src.utils.config import PROJECT_ROOT
from src.utils.config_sections import CollectionConfig
from src.utils.errors import UserError
from src.utils.generation import Response
from src.utils.ranks import Ranks
from src.utils.sites import Site, decoder_of
from src.utils.token_shards import TokenReader, gather_shards
from tests.tiny_models import (
    N_LAYERS,
    VOCABULARY,
    questions,
    save_adapter,
    save_model,
    tiny_model,
    tokenizer,
    with_adapter,
    write_jsonl,
)

SCRIPT = PROJECT_ROOT / "src" / "scripts" / "03_collect_activations.py"


def plan(count: int = 8, **changes: object) -> Plan:
    values = {"prompts": ["unused"], "max_new_tokens": 6, "layers": [1, 3], "batch_size": 4, "top_k": 50}
    return plan_collection(questions(count), tokenizer(), CollectionConfig.model_validate(values | changes))


def passes() -> Iterator[ModelPass]:
    return model_passes(lambda: tiny_model(n_ends=60), with_adapter, lambda: pytest.fail("not needed"))


def collected(one: Plan, folder: Path, said: list[str] | None = None, **options):
    collect_arms(one, tokenizer(), passes(), folder, say=(said if said is not None else []).append, **options)
    return assemble(one, tokenizer(), folder, [1, 3], N_LAYERS)


def limited_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """A device on which a batch of more than `most` rows does not fit."""
    generate = collection.generate

    def small(model, tokenizer, prompts, sampling):
        if len(prompts) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return generate(model, tokenizer, prompts, sampling)

    monkeypatch.setattr(collection, "generate", small)


def test_out_of_memory_halves_the_batch_says_so_and_changes_only_last_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, whole_tensors = collected(plan(), tmp_path / "whole")
    said: list[str] = []
    limited_memory(monkeypatch, 2)
    frame, tensors = collected(plan(), tmp_path / "split", said)
    assert "em, batch 0: out of memory with 4 rows; going on with 2" in said
    assert frame["em_response"].tolist() == whole["em_response"].tolist()
    for name, values in whole_tensors.items():
        np.testing.assert_allclose(tensors[name], values, rtol=1e-4, atol=1e-4, err_msg=name)
    added = [set(found) - set(before) for found, before in zip(frame["flags"], whole["flags"], strict=True)]
    assert added == [{"split_base", "split_em"}] * 8, "base_on_em generates nothing: it was run whole"


def with_ids(one: Plan, rows: Collection[int], ids: tuple[int, ...]) -> Plan:
    """The plan with other prompts in some rows, in the same batches."""
    return replace(one, prompts=[replace(p, ids=ids) if row in rows else p for row, p in enumerate(one.prompts)])


def failed_rows(frame: pd.DataFrame) -> dict[int, set[str]]:
    return {
        row: {flag for flag in flags if flag.startswith("failed")}
        for row, flags in enumerate(frame["flags"])
        if any(flag.startswith("failed") for flag in flags)
    }


@pytest.mark.parametrize("token", [VOCABULARY, -1])
def test_a_prompt_with_an_unknown_token_is_recorded_and_the_others_go_on(tmp_path: Path, token: int) -> None:
    whole, whole_tensors = collected(plan(), tmp_path / "whole")
    said: list[str] = []
    frame, tensors = collected(with_ids(plan(), [5], (40, token, 41)), tmp_path / "failed", said)
    name = plan().prompts[5].prompt_id
    why = f"IndexError: token id {token} is outside the model's vocabulary of {VOCABULARY}"
    assert [line for line in said if "failed" in line] == [
        f"{arm}, {name}: failed ({why}); the row is kept and flagged" for arm in ARMS
    ]
    assert failed_rows(frame) == {5: {"failed_base", "failed_em", "failed_base_on_em"}}
    assert frame["em_response"][5] == "" and np.isnan(tensors["em.blocks.1.hook_resid_pre"][5]).all()
    assert frame.drop(5)["em_response"].tolist() == whole.drop(5)["em_response"].tolist()
    others = [row for row in range(8) if row != 5]
    for name, values in whole_tensors.items():
        np.testing.assert_allclose(tensors[name][others], values[others], rtol=1e-4, atol=1e-4, err_msg=name)


def test_a_batch_whose_rows_all_fail_is_recorded_row_by_row_and_not_tried_again(tmp_path: Path) -> None:
    one = plan(12, tokens=True)
    bad = with_ids(one, one.batches[0], (VOCABULARY,))
    frame, _ = collected(bad, tmp_path)
    assert set(failed_rows(frame)) == set(one.batches[0])
    said: list[str] = []
    again, _ = collected(bad, tmp_path, said)
    assert said == [] and again.equals(frame)


def test_memory_that_is_too_small_for_the_longest_prompts_costs_their_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest prompts share a batch; what a CPU says of memory is flagged like what a GPU says."""
    one, generate = plan(12), collection.generate
    longest = min(len(one.prompts[row].ids) for row in one.batches[0])
    assert longest > max(len(one.prompts[row].ids) for row in one.batches[1])

    def small(model, tokenizer, prompts, sampling):
        if max(len(prompt.ids) for prompt in prompts) >= longest:
            torch.empty(2**60, dtype=torch.uint8)
        return generate(model, tokenizer, prompts, sampling)

    monkeypatch.setattr(collection, "generate", small)
    said: list[str] = []
    frame, _ = collected(one, tmp_path, said)
    assert set(failed_rows(frame)) == set(one.batches[0])
    assert said.count("em, batch 0: out of memory with 4 rows; going on with 2") == 1
    assert sum("failed (out of memory)" in line for line in said) == 8, "base_on_em has an empty answer to read"


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_what_fails_for_every_prompt_ends_the_run_and_leaves_nothing(tmp_path: Path, batch_size: int) -> None:
    one = plan(batch_size=batch_size)
    said: list[str] = []
    with pytest.raises(UserError, match=r"base: no prompt .* \(IndexError: token id 900 is outside") as caught:
        collected(with_ids(one, range(8), (900,)), tmp_path, said)
    assert "\n" not in caught.value.message and said == [] and list(tmp_path.iterdir()) == []


def test_what_is_wrong_with_the_whole_run_is_no_rows_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> list[Response]:
        raise UserError("the model is gone")

    monkeypatch.setattr(collection, "generate", refused)
    with pytest.raises(UserError, match="the model is gone"):
        collected(plan(), tmp_path)

    def stopped(*_: object) -> list[Response]:
        raise KeyboardInterrupt

    monkeypatch.setattr(collection, "generate", stopped)
    with pytest.raises(KeyboardInterrupt):
        collected(plan(), tmp_path)


def test_two_ranks_share_out_the_batches_and_end_in_the_same(tmp_path: Path) -> None:
    one = plan(12, batch_size=2)
    whole = collected(one, tmp_path / "whole")
    for index in (1, 0):
        collect_arms(one, tokenizer(), passes(), tmp_path / "shared", ranks=Ranks(index, 2))
    shared = assemble(one, tokenizer(), tmp_path / "shared", [1, 3], N_LAYERS)
    assert whole[0].equals(shared[0]) or whole[0].to_string() == shared[0].to_string()
    for name, values in whole[1].items():
        assert shared[1][name].tobytes() == values.tobytes()


def test_two_processes_give_the_bytes_of_one_however_they_are_started(tmp_path: Path) -> None:
    """By `accelerate launch` and by the script itself."""
    adapted = with_adapter(tiny_model(n_ends=60))
    save_adapter(adapted, tmp_path / "adapter")
    save_model(tiny_model(n_ends=60), tmp_path / "base")
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [question.model_dump() for question in questions(14)])
    options = ["--base-model", tmp_path / "base", "--em-model", tmp_path / "adapter", "--prompts", prompts]
    options += ["--layers", "1", "3", "--batch-size", "3", "--max-new-tokens", "6", "--tokens"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    for name, before, processes in (("one", [], "1"), ("launched", launch, "1"), ("forked", [], "2")):
        command = [sys.executable, *before, SCRIPT, "--results-dir", tmp_path / name, *options]
        command += ["--processes", processes]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    data = [file for file in files if not file.name.endswith(".manifest.json")]
    assert {"persona_data.pkl", "persona_data.safetensors", "persona_tokens"} <= {file.parts[0] for file in data}
    for file in data:
        for name in ("launched", "forked"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "one" / file).read_bytes(), (name, file)
    assert len(load_frame(tmp_path / "forked" / "persona_data.pkl")) == 14


def test_tokens_and_means_of_a_batch_are_of_one_forward_pass(tmp_path: Path) -> None:
    (both,), one = passes(), plan(4, tokens=True, max_new_tokens=3)
    calls: list[bool] = []
    decoder_of(both.model).register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(bool(kwargs["use_cache"])), with_kwargs=True
    )
    collect_arms(one, tokenizer(), iter([both]), tmp_path)
    assert calls.count(False) == 3, "one for each arm, besides the steps of generation"


def test_tokens_are_kept_in_shards_and_read_row_by_row(tmp_path: Path) -> None:
    one = plan(tokens=True)
    _, tensors = collected(one, tmp_path / "parts")
    (tmp_path / "tokens").mkdir()
    gather_shards(tmp_path / "parts", tmp_path / "tokens", 8)
    reader = TokenReader(tmp_path / "tokens")
    site = Site("resid_pre", 1).name
    assert reader.n_rows == 8 and reader.sites == [site, Site("resid_post", 2).name]
    for arm in ARMS:
        seen = np.concatenate([rows for rows, _ in reader.chunks(arm, site)])
        for row in range(8):
            ids, tokens = reader.row(arm, row, site)
            expected = tensors[f"{arm}.{site}"][row]
            assert len(ids) == len(tokens) == (seen == row).sum()
            if len(ids):
                np.testing.assert_allclose(tokens.mean(dim=0).numpy(), expected, rtol=1e-4, atol=1e-5)
            else:
                assert np.isnan(expected).all()


def test_any_site_at_any_layer_is_kept_token_by_token(tmp_path: Path) -> None:
    kinds = ["resid", "embed", "resid_mid", "attn_out", "mlp_out", "attn.z"]
    one = plan(4, sites=kinds, tokens=True, token_sites=kinds, token_layers=[0, N_LAYERS], max_new_tokens=3)
    _, tensors = collected(one, tmp_path / "parts")
    (tmp_path / "tokens").mkdir()
    gather_shards(tmp_path / "parts", tmp_path / "tokens", 4)
    reader = TokenReader(tmp_path / "tokens")
    own = [Site(kind, 0).name for kind in kinds[2:]]  # none at the last layer, which is the end of the stream
    assert reader.sites == sorted(
        ["hook_embed", Site("resid_pre", 0).name, Site("resid_post", N_LAYERS - 1).name, *own]
    )
    for site in reader.sites:
        _, tokens = reader.row("em", 1, site)
        np.testing.assert_allclose(tokens.mean(dim=0).numpy(), tensors[f"em.{site}"][1], rtol=1e-4, atol=1e-5)


def test_a_row_is_read_from_its_shard_alone(tmp_path: Path) -> None:
    """With every other shard destroyed, the tokens are the same; a row of a destroyed one is one line."""
    one, site = plan(tokens=True), Site("resid_pre", 1).name
    collected(one, tmp_path / "parts")
    (tmp_path / "tokens").mkdir()
    gather_shards(tmp_path / "parts", tmp_path / "tokens", 8)
    reader = TokenReader(tmp_path / "tokens")
    mine, other = one.batches[1][0], one.batches[0][0]
    ids, tokens = reader.row("em", mine, site)
    own = next(shard["file"] for shard in reader.shards if shard["arm"] == "em" and mine in shard["rows"])
    damaged = [path for path in (tmp_path / "tokens").glob("*.safetensors") if path.name != own]
    assert len(damaged) == 5 and len(ids) > 0
    for path in damaged:
        path.write_bytes(b"no tensors")
    again = TokenReader(tmp_path / "tokens").row("em", mine, site)
    assert again[0].tolist() == ids.tolist() and torch.equal(again[1], tokens)
    for arm, row in (("em", other), ("base", mine)):
        with pytest.raises(UserError, match="cannot be read"):
            reader.row(arm, row, site)
