"""What a manifest holds, what makes an artefact stale, and whose artefacts are not overwritten."""

import dataclasses
import getpass
import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import pytest

from src.utils.artifacts import load_json, save_json
from src.utils.errors import UserError
from src.utils.manifests import (
    Provenance,
    hash_inputs,
    is_fresh,
    manifest_path,
    read_manifest,
    refuse_foreign_overwrite,
    sha256_folder,
)


def provenance(**changes: Any) -> Provenance:
    declared: dict[str, Any] = {
        "step": "05_pca_and_clustering",
        "profile": "organism",
        "world": "entangled",
        "config": {"layers": 3, "pca": {"components": 10, "sites": ("resid_pre", "mlp_out")}},
        "seeds": {"kmeans": 7},
        "inputs": {"persona_data.pkl": "a" * 64},
    }
    return Provenance(**(declared | changes))


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    path = tmp_path / "verdict.json"
    save_json({"verdict": "separable"}, path, provenance())
    return path


def test_a_manifest_holds_what_was_declared_and_no_machine(artefact: Path) -> None:
    manifest = read_manifest(artefact)
    assert manifest is not None
    assert manifest.sha256 == hashlib.sha256(artefact.read_bytes()).hexdigest()
    assert manifest.step == "05_pca_and_clustering" and manifest.seeds == {"kmeans": 7}
    assert manifest.packages.keys() >= {"numpy", "pandas"} and manifest.python == platform.python_version()
    assert 0 <= manifest.wall_seconds < 60 and manifest.peak_memory_bytes > 10_000_000
    assert manifest.created.utcoffset() is not None
    text = manifest_path(artefact).read_text()
    assert str(artefact.parent) not in text and str(Path.home()) not in text
    assert platform.node() not in text and f'"{getpass.getuser()}"' not in text


def test_unchanged_is_fresh_whatever_the_commit_and_the_clock(artefact: Path) -> None:
    assert is_fresh(artefact, provenance(started=0.0))
    other = dataclasses.replace(provenance(), code=dataclasses.replace(provenance().code, commit="0" * 40, dirty=True))
    assert is_fresh(artefact, other).reason == "up to date"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"config": {"layers": 4, "pca": {"components": 10, "sites": ["resid_pre", "mlp_out"]}}}, "layers 3 -> 4"),
        ({"config": {"layers": 3, "pca": {"components": 5, "sites": []}}}, "config changed: pca.components 10 -> 5"),
        ({"config": {"layers": 3}}, 'pca {"components": 10, "sites": ["resid_pre", "mlp_out"]} -> absent'),
        ({"seeds": {"kmeans": 8}}, "seeds changed: kmeans 7 -> 8"),
        ({"inputs": {"persona_data.pkl": "b" * 64}}, "input persona_data.pkl changed"),
        ({"inputs": {"persona_data.pkl": "a" * 64, "prompts": "c" * 64}}, "input prompts added"),
        ({"inputs": {}}, "input persona_data.pkl no longer used"),
        ({"profile": "qwen3_4b"}, 'profile "organism" -> "qwen3_4b"'),
        ({"world": None}, 'world "entangled" -> null'),
        ({"step": "06_steer_personas"}, 'step "05_pca_and_clustering" -> "06_steer_personas"'),
    ],
)
def test_each_declared_change_is_stale_and_named(artefact: Path, changes: dict[str, Any], reason: str) -> None:
    freshness = is_fresh(artefact, provenance(**changes))
    assert not freshness
    assert reason in freshness.reason and "\n" not in freshness.reason


def test_a_value_that_became_absent_differs_from_none(artefact: Path) -> None:
    save_json({}, artefact, provenance(config={"limit": None}))
    assert is_fresh(artefact, provenance(config={"limit": None}))
    assert is_fresh(artefact, provenance(config={})).reason == "config changed: limit null -> absent"


def test_files_decide_too(artefact: Path) -> None:
    text = artefact.read_text()
    artefact.write_text(text + " ")
    assert is_fresh(artefact, provenance()).reason == "file changed since it was written: verdict.json"
    artefact.unlink()
    assert is_fresh(artefact, provenance()).reason == "not made yet"
    artefact.write_text(text)
    assert is_fresh(artefact, provenance())
    manifest_path(artefact).unlink()
    assert is_fresh(artefact, provenance()).reason == "has no manifest"


@pytest.mark.parametrize("damage", ["", "{", '{"schema_version": 2}', "[]", "\x00"])
def test_a_damaged_manifest_is_stale_and_no_traceback(artefact: Path, damage: str) -> None:
    manifest_path(artefact).write_text(damage)
    freshness = is_fresh(artefact, provenance())
    assert not freshness and "verdict.json.manifest.json" in freshness.reason and "\n" not in freshness.reason
    message = r"(damaged|no manifest of this version) \(.*\); run the step that makes verdict.json again, with --force$"
    with pytest.raises(UserError, match=message):
        load_json(artefact)


def test_another_profile_or_world_is_not_overwritten(artefact: Path) -> None:
    refuse_foreign_overwrite(artefact.with_name("none.json"), "organism", None, force=False)
    refuse_foreign_overwrite(artefact, "organism", "entangled", force=False)
    refuse_foreign_overwrite(artefact, "qwen3_4b", None, force=True)
    for profile, world in (("qwen3_4b", None), ("organism", "separable"), ("organism", None)):
        with pytest.raises(UserError) as caught:
            refuse_foreign_overwrite(artefact, profile, world, force=False)
        message = caught.value.message
        assert caught.value.exit_code == 1
        assert "profile organism, world entangled" in message and f"profile {profile}" in message
        assert "--force" in message and "--results-dir" in message and "\n" not in message
    manifest_path(artefact).unlink()
    with pytest.raises(UserError, match=r"unknown.*--force"):
        refuse_foreign_overwrite(artefact, "organism", "entangled", force=False)


def test_folder_hash_sees_names_contents_and_nothing_else(tmp_path: Path) -> None:
    for folder, names in {"one": ["a", "b/c"], "two": ["b/c", "a"], "three": ["a", "b_c"]}.items():
        for name in names:
            file = tmp_path / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(name[-1])
    (tmp_path / "two" / "empty").mkdir()
    assert sha256_folder(tmp_path / "one") == sha256_folder(tmp_path / "two") != sha256_folder(tmp_path / "three")
    (tmp_path / "two" / "a").write_text("A")
    assert sha256_folder(tmp_path / "one") != sha256_folder(tmp_path / "two")


def test_inputs_are_labelled_hashes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    assert hash_inputs({"prompts": tmp_path / "x"}) == {"prompts": hashlib.sha256(b"x").hexdigest()}
    with pytest.raises(UserError, match="input adapter does not exist"):
        hash_inputs({"adapter": tmp_path / "none"})


def test_config_that_json_cannot_hold_fails_early(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_json({}, tmp_path / "a.json", provenance(config={"path": tmp_path}))
    assert json.loads(json.dumps(sorted(file.name for file in tmp_path.iterdir()))) == []


def test_a_save_killed_between_its_renames_is_continued_a_foreign_file_is_not(artefact: Path) -> None:
    staging = artefact.with_name(f".{manifest_path(artefact).name}.4242-0a1b2c3d.tmp")
    staging.mkdir()
    manifest_path(artefact).rename(staging / manifest_path(artefact).name)
    refuse_foreign_overwrite(artefact, "organism", "entangled", force=False)
    foreign = artefact.with_name("foreign.pkl")
    foreign.write_bytes(b"made by nobody knows whom")
    with pytest.raises(UserError, match="has no manifest"):
        refuse_foreign_overwrite(foreign, "organism", "entangled", force=False)
    (staging / artefact.name).write_bytes(b"staged, and killed before any rename: what lies there is not of that save")
    with pytest.raises(UserError, match="has no manifest"):
        refuse_foreign_overwrite(artefact, "organism", "entangled", force=False)
