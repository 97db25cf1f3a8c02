"""Memory that runs out, rows that fail, and several ranks: what is kept, what is flagged, and what is the same."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from src.utils import collection
from src.utils.artifacts import load_frame
from src.utils.collection import ModelPass, Plan, collect_arms, model_passes, plan_collection, run_rows
from src.utils.collection_frame import assemble
from src.utils.collection_parts import ARMS, ArmPart
from src.utils.config import PROJECT_ROOT
from src.utils.config_sections import CollectionConfig
from src.utils.generation import Prompt, Response
from src.utils.ranks import Ranks
from src.utils.sites import Site
from src.utils.token_shards import TokenReader, gather_shards
from tests.tiny_models import (
    N_LAYERS,
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


def test_a_row_that_does_not_fit_alone_is_recorded_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, bad = collection.generate, plan().prompts[5].prompt_id

    def fails(model: PeftModel, tokenizer, prompts: list[Prompt], sampling) -> list[Response]:
        if any(prompt.prompt_id == bad for prompt in prompts):
            raise RuntimeError("index out of range in self")
        return generate(model, tokenizer, prompts, sampling)

    whole, _ = collected(plan(), tmp_path / "whole")
    monkeypatch.setattr(collection, "generate", fails)
    said: list[str] = []
    frame, tensors = collected(plan(), tmp_path / "failed", said)
    assert any(f"{bad}: failed (index out of range in self)" in line for line in said)
    row = frame.index[frame["prompt_id"] == bad][0]
    assert {"failed_base", "failed_em"} <= set(frame["flags"][row]) and frame["em_response"][row] == ""
    assert np.isnan(tensors["em.blocks.1.hook_resid_pre"][row]).all()
    others = frame.drop(row)
    assert others["em_response"].tolist() == whole.drop(row)["em_response"].tolist()
    assert not any("failed" in flag for flags in others["flags"] for flag in flags)


def test_what_fails_for_every_row_is_raised() -> None:
    def broken(rows: list[int]) -> ArmPart:
        raise RuntimeError("mat1 and mat2 must have the same dtype")

    with pytest.raises(RuntimeError, match="same dtype"):
        run_rows(broken, list(range(6)), lambda text: None)


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


def test_activations_are_those_of_decoding() -> None:
    """What a decoding step sees at a token, with its cache, is what the second pass sees there."""
    model, (prompt,) = tiny_model(), plan(1).prompts
    (response,) = collection.generate(model, tokenizer(), [prompt], plan(1).sampling)
    decoded: list[torch.Tensor] = []
    with torch.no_grad():
        cache = None
        for position, token in enumerate(prompt.ids + response.ids):
            out = model(torch.tensor([[token]]), past_key_values=cache, use_cache=True, output_hidden_states=True)
            cache = out.past_key_values
            if position >= len(prompt.ids):
                decoded.append(out.hidden_states[2][0, 0])
    part, _ = collection.run_capture(model, tokenizer(), plan(1), [prompt], [response])
    counted = [i for i, token in enumerate(response.ids) if token not in collection.excluded_token_ids(tokenizer())]
    expected = torch.stack(decoded)[counted].mean(dim=0)
    np.testing.assert_allclose(part.pooled["blocks.2.hook_resid_pre"][0], expected, rtol=1e-4, atol=1e-5)
