"""What was saved is what is loaded, the same content gives the same bytes, and anything else is refused."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.utils.artifacts import (
    load_frame,
    load_json,
    load_object,
    load_tensors,
    save_artifact,
    save_folder,
    save_frame,
    save_json,
    save_object,
    save_tensors,
    verify_artifact,
)
from src.utils.config import PROJECT_ROOT
from src.utils.errors import UserError
from src.utils.manifests import manifest_path, read_manifest, sha256_file, sha256_folder
from tests.small_artifacts import STEP, hidden, small_frame, write


def test_frame_and_companion_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deeper" / "persona_data.pkl"
    tensors = {"all_layers": np.arange(12, dtype=np.float32).reshape(3, 4).T, "scalar": np.array(2, np.float32)}
    manifest = save_frame(small_frame(), path, STEP, tensors)
    pd.testing.assert_frame_equal(load_frame(path), small_frame())
    loaded = load_tensors(path.with_suffix(".safetensors"), of=path)
    for name, array in tensors.items():
        assert loaded[name].shape == array.shape
        np.testing.assert_array_equal(loaded[name], array)
    assert read_manifest(path) == manifest
    assert manifest.sha256 == sha256_file(path)
    assert manifest.files == {"persona_data.safetensors": sha256_file(path.with_suffix(".safetensors"))}
    written = json.loads(manifest_path(path).read_text())
    assert written["schema"] == {
        "rows": 3,
        "columns": {
            "prompt_id": "str",
            "question": "str",
            "base_activations_layer_1": "float32[4]",
            "flags": "list",
            "em_score": "float64",
        },
        "tensors": {"all_layers": "float32[4, 3]", "scalar": "float32[]"},
    }
    assert hidden(path.parent) == []


def test_object_tensors_and_json_round_trip(tmp_path: Path) -> None:
    centres = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    save_object({"centres": centres, "labels": np.array([0, 2, 1]), "k": 3, 5: ["x", None]}, tmp_path / "a.pkl", STEP)
    loaded = load_object(tmp_path / "a.pkl")
    np.testing.assert_array_equal(loaded["centres"], centres)
    assert loaded["labels"].tolist() == [0, 2, 1] and loaded["k"] == 3 and loaded[5] == ["x", None]

    save_tensors({"w": centres.T}, tmp_path / "w.safetensors", STEP)
    np.testing.assert_array_equal(load_tensors(tmp_path / "w.safetensors")["w"], centres.T)

    save_json({"verdict": "entangled", "power": 0.93, "why": "größer"}, tmp_path / "v.json", STEP)
    assert load_json(tmp_path / "v.json") == {"verdict": "entangled", "power": 0.93, "why": "größer"}
    with pytest.raises(ValueError, match="JSON"):
        save_json({"power": float("nan")}, tmp_path / "v.json", STEP)
    assert load_json(tmp_path / "v.json")["power"] == 0.93


def test_folder_is_swapped_whole(tmp_path: Path) -> None:
    path = tmp_path / "adapters" / "finance"

    def fill(*names: str) -> None:
        def write(folder: Path) -> None:
            (folder / "logs").mkdir()
            for name in names:
                (folder / name).write_text(name)

        save_folder(path, write, STEP, {"rank": 1})

    fill("adapter_config.json", "logs/train.jsonl", "old.bin")
    fill("adapter_config.json", "logs/train.jsonl")
    manifest = verify_artifact(path)
    assert manifest is not None and list(manifest.files) == ["adapter_config.json", "logs/train.jsonl"]
    assert manifest.sha256 == sha256_folder(path)
    assert hidden(path.parent) == []
    (path / "logs" / "train.jsonl").write_text("longer")
    with pytest.raises(UserError, match="changed since it was written: finance"):
        verify_artifact(path)

    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("out of memory")

    before = sha256_folder(path)
    with pytest.raises(RuntimeError):
        save_folder(path, fail, STEP)
    assert sha256_folder(path) == before and hidden(path.parent) == []


def test_writers_must_stay_in_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with pytest.raises(ValueError, match="companions in its folder"):
        save_artifact(path, {path: lambda _: None, tmp_path / "other" / "b": lambda _: None}, STEP, {})
    with pytest.raises(ValueError, match="companions in its folder"):
        save_artifact(path, {tmp_path / "b": lambda _: None}, STEP, {})


def test_what_would_be_refused_on_load_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "frame.pkl"
    save_frame(small_frame(), path, STEP)
    with pytest.raises(UserError, match=r"pathlib\.PosixPath"):
        save_frame(pd.DataFrame({"source": [Path("x")]}), path, STEP)
    pd.testing.assert_frame_equal(load_frame(path), small_frame())
    assert hidden(tmp_path) == []


def test_a_missing_artefact_names_its_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"persona_data\.pkl: does not exist; run 03_collect_activations first"):
        load_frame(tmp_path / "persona_data.pkl", made_by="03_collect_activations")


def test_changed_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "persona_data.pkl"
    save_frame(small_frame(), path, STEP, {"x": np.zeros(3)})
    good = path.read_bytes()
    path.write_bytes(good[:-40] + b"?" + good[-39:])
    with pytest.raises(UserError, match=r"half-written or changed since .*persona_data\.pkl.*run 03_collect"):
        load_frame(path)
    path.write_bytes(good)
    path.with_suffix(".safetensors").unlink()
    with pytest.raises(UserError, match=r"missing: persona_data\.safetensors"):
        load_frame(path)


def test_wrong_kinds_of_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    save_object({"a": 1}, path, STEP)
    with pytest.raises(UserError, match="holds a dict, not a frame"):
        load_frame(path)
    save_frame(small_frame(), path, STEP)
    with pytest.raises(UserError, match="holds a DataFrame, not a dict"):
        load_object(path)
    with pytest.raises(UserError, match="does not list it"):
        load_tensors(tmp_path / "a.safetensors", of=path)
    (tmp_path / "w.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="no safetensors file"):
        load_tensors(tmp_path / "w.safetensors")
    (tmp_path / "v.json").write_text("{")
    with pytest.raises(UserError, match="no JSON"):
        load_json(tmp_path / "v.json", made_by="07_decide_verdict")


def test_a_foreign_frame_loads_without_manifest_and_a_hostile_one_never(tmp_path: Path) -> None:
    path = tmp_path / "foreign.pkl"
    small_frame().to_pickle(path)
    pd.testing.assert_frame_equal(load_frame(path), small_frame())

    marker = tmp_path / "it-ran"

    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {marker}",)

    save_artifact(path, {path: lambda file: write(file, pickle.dumps(Hostile()))}, STEP, {})
    assert verify_artifact(path) is not None  # the manifest is valid: it proves wholeness, not honesty
    with pytest.raises(UserError, match=r"posix\.system.*allow-list"):
        load_frame(path)
    assert not marker.exists()


DETERMINISM = """
import sys
from pathlib import Path
import numpy as np, pandas as pd
from src.utils.artifacts import save_frame, save_object
from src.utils.manifests import Provenance
step = Provenance(step="s", profile="p")
folder = Path(sys.argv[1])
frame = pd.DataFrame(
    {
        "prompt_id": [f"p{i}" for i in range(50)],
        "question": [None if i % 2 else "ö" * i for i in range(50)],
        "vector": [np.full(4, i, dtype=np.float32) for i in range(50)],
        "flags": [["cut"] if i % 2 else [] for i in range(50)],
        "facet": pd.Categorical(["a", "b"] * 25),
    }
)
save_frame(frame, folder / "f.pkl", step, {name: np.ones((2, 3)) for name in "abcdef"})
save_object({"a": np.arange(5), "names": ["x", "y"], "frame": frame.head()}, folder / "o.pkl", step)
"""


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", DETERMINISM, str(tmp_path / seed)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(PROJECT_ROOT)},
        )
        for seed in ("1", "2")
    ]
    assert [child.wait() for child in children] == [0, 0]
    for name in ("f.pkl", "f.safetensors", "o.pkl"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_the_bytes_do_not_tell_how_a_frame_was_put_together(tmp_path: Path) -> None:
    def saved(frame: pd.DataFrame) -> bytes:
        save_frame(frame, tmp_path / "f.pkl", STEP)
        return (tmp_path / "f.pkl").read_bytes()

    whole = small_frame(6)
    bytes_of_whole = saved(whole)
    parts = pd.concat([small_frame(6).iloc[:2], load_frame(tmp_path / "f.pkl").iloc[2:]], ignore_index=True)
    filtered = small_frame(9)[lambda frame: frame["prompt_id"] < "p6"].reset_index(drop=True)
    sliced = small_frame(9)
    sliced.loc[8, "prompt_id"] = None  # gives the column a mask, which the slice keeps
    sliced = sliced.iloc[:6]
    narrowed = small_frame(6).assign(extra=0).iloc[:, :-1]
    by_column = pd.DataFrame(index=pd.RangeIndex(6))
    stacked = np.asfortranarray(np.stack(list(whole["base_activations_layer_1"])))
    for name in whole.columns:
        by_column[name] = whole[name]
    by_column["base_activations_layer_1"] = [stacked[i] for i in range(6)]
    for other in (parts, filtered, sliced, narrowed, by_column):
        assert saved(other) == bytes_of_whole
    whole.loc[0, "em_score"] = 7.0
    assert saved(whole) != bytes_of_whole
