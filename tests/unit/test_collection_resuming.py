"""Collection in parts: stopped anywhere, and whatever became of its parts, it ends in the same bytes."""

import os
import random
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from tqdm import tqdm

from src.utils.artifacts import load_frame, load_tensors
from src.utils.collection import ModelPass, collect_arms
from src.utils.collection_frame import assemble
from src.utils.collection_parts import ARMS, Arm, ArmPart, part_path, read_part, write_part
from src.utils.config import PROJECT_ROOT
from src.utils.generation import Response
from src.utils.shared_work import can_fork
from tests.tiny_collection import LAYERS, Collected, base_model, collected, means_of, part_of, plan, save_model_folders
from tests.tiny_models import N_LAYERS, questions, tokenizer, with_adapter, write_jsonl

SCRIPT = PROJECT_ROOT / "src" / "scripts" / "03_collect_activations.py"


def assert_identical(found: Collected, expected: Collected) -> None:
    pd.testing.assert_frame_equal(found[0], expected[0], check_exact=True)
    assert found[1].keys() == expected[1].keys()
    for name, tensor in expected[1].items():
        assert found[1][name].tobytes() == tensor.tobytes(), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Collected]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, collected(plan(), folder)


def test_resuming_after_lost_and_damaged_parts_gives_the_same(
    uninterrupted: tuple[Path, Collected], tmp_path: Path
) -> None:
    collected(plan(), tmp_path)
    part_path(tmp_path, "base", 0).unlink()
    part_path(tmp_path, "em", 1).unlink()
    part_path(tmp_path, "base_on_em", 2).unlink()
    for arm, batch in (("em", 2), ("base_on_em", 0), ("base", 1)):
        damaged = part_path(tmp_path, arm, batch)
        damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    (tmp_path / ".left-behind.tmp").write_bytes(b"half a part")
    assert_identical(collected(plan(), tmp_path), uninterrupted[1])


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"\xff" * 8 + b"{}"], ids=["empty", "zeros", "long header"])
def test_a_part_of_garbage_is_made_again(uninterrupted: tuple[Path, Collected], tmp_path: Path, content: bytes) -> None:
    collected(plan(), tmp_path)
    part_path(tmp_path, "em", 0).write_bytes(content)
    assert_identical(collected(plan(), tmp_path), uninterrupted[1])


def test_a_part_without_all_its_tensors_is_made_again(uninterrupted: tuple[Path, Collected], tmp_path: Path) -> None:
    collected(plan(), tmp_path)
    save_file({"means": np.zeros((4, 4, 32), np.float32)}, part_path(tmp_path, "base", 0))
    assert_identical(collected(plan(), tmp_path), uninterrupted[1])


def test_a_whole_run_is_not_run_again(uninterrupted: tuple[Path, Collected]) -> None:
    folder, expected = uninterrupted
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    rows: list[tuple[Arm, int]] = []
    model = with_adapter(base_model())
    model.register_forward_pre_hook(lambda *_: pytest.fail("a model ran"))
    collect_arms(plan(), tokenizer(), iter([ModelPass(model, ARMS)]), folder, lambda arm, n: rows.append((arm, n)))
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    assert sum(n for _, n in rows) == 30, "progress counts what was there already"
    assert_identical(assemble(plan(), tokenizer(), folder, LAYERS, N_LAYERS), expected)


def test_stopped_between_arms_the_em_ids_of_the_first_run_are_read(tmp_path: Path) -> None:
    """base_on_em reads the ids that are in the work folder, not what the model would say now."""
    one = plan(4)
    planted = [Response((30 + row, 40, 50), is_truncated=True) for row in range(4)]
    order = one.batches[0]
    means = np.zeros((4, N_LAYERS + 1, 32), np.float32)
    write_part(part_path(tmp_path, "em", 0), part_of([planted[row] for row in order], means))
    _, tensors = collected(one, tmp_path)
    expected = means_of(base_model(), one.prompts, planted)[:, 2]
    np.testing.assert_allclose(tensors["base_on_em.blocks.2.hook_resid_pre"], expected, rtol=1e-4, atol=1e-5)


def test_a_part_reads_back_as_it_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pooled = {"hook_embed": rng.normal(size=(3, 5)), "blocks.0.hook_mlp_out.prompt_mean": rng.normal(size=(3, 7))}
    part = ArmPart(
        [Response((), True), Response((5, 6, 2), False), Response((7,), True)],
        {name: values.astype(np.float32) for name, values in pooled.items()},
        np.array([0, 2, 1]),
        np.array([False, True, True]),
        {0: "out of memory"},
    )
    write_part(tmp_path / "part", part)
    again = read_part(tmp_path / "part")
    assert again.responses == part.responses and again.failures == part.failures
    assert again.pooled.keys() == part.pooled.keys()
    for name, values in part.pooled.items():
        np.testing.assert_array_equal(again.pooled[name], values)
    np.testing.assert_array_equal(again.counted, part.counted)
    np.testing.assert_array_equal(again.is_split, part.is_split)


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_model_folders(tmp_path_factory.mktemp("models"))


def script_options(model_folders: dict[str, Path], prompts: Path, results: Path) -> list[str]:
    options = f"--results-dir {results} --base-model {model_folders['base']} --em-model {model_folders['adapter']}"
    return [*options.split(), *f"--prompts {prompts} --layers 1 3 --batch-size 2 --max-new-tokens 8 --tokens".split()]


def spawned(options: list[str]) -> int:
    """The real script in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return os.posix_spawn(sys.executable, [sys.executable, str(SCRIPT), *options], environment)


def forked(options: list[str]) -> int:
    """The same without the time that imports take."""
    if not can_fork():
        return spawned(options)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            tqdm.set_lock(threading.RLock())  # the one that it shares with this process may be held when it is killed
            runpy.run_path(str(SCRIPT))["main"](options)
            code = 0
        finally:
            os._exit(code)
    return child


def kill(process: int, folder: Path, files: int, seconds: float) -> int:
    """SIGKILL so long after there are so many files in a work folder, unless it ends before; the exit code."""
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.safetensors"))) < files:
        assert time.monotonic() < deadline
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def test_kill_9_at_random_points_and_again_gives_the_same_bytes(model_folders: dict[str, Path], tmp_path: Path) -> None:
    """Each run goes on where the last one was killed, among 120 files and after them; beside it one without a kill."""
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [question.model_dump() for question in questions(40)])
    killed, whole, rng = tmp_path / "killed", tmp_path / "whole", random.Random(0)
    options, parts = script_options(model_folders, prompts, killed), killed / "persona_data.parts"
    for number, files in enumerate(sorted(rng.sample(range(1, 110), 4))):
        process = forked(options) if number else spawned(options)
        assert kill(process, parts, files, rng.uniform(0, 0.02)) == -signal.SIGKILL
        assert files <= len(list(parts.glob("*.safetensors"))) < 120 and not (killed / "persona_data.pkl").exists()
    assert kill(forked(options), parts, 120, 0) in (-signal.SIGKILL, 0), "while the artefact is put together"

    main = runpy.run_path(str(SCRIPT))["main"]
    main(script_options(model_folders, prompts, whole))
    main(options)
    files = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    data = [file for file in files if not file.name.endswith(".manifest.json")]
    assert len(data) == 63, "the frame, the tensors, 60 shards and their index"
    for file in data:
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), file
    assert not parts.exists()
    frame = load_frame(killed / "persona_data.pkl")
    assert frame["prompt_id"].tolist() == [question.prompt_id for question in questions(40)]
    tensors = load_tensors(killed / "persona_data.safetensors", of=killed / "persona_data.pkl")
    assert len(tensors) == 3 * (N_LAYERS + 1)
    assert {tensor.shape for tensor in tensors.values()} == {(40, 32)}
