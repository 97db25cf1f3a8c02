"""The whole study as a user runs it: real processes, a tiny organism, and everything that can go wrong on the way.

The organism has had two steps of training, so its answers mean nothing; what it says is tested elsewhere.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from src.pipelines.persona_study import JUDGE, Study
from src.utils.artifacts import load_frame, load_object, load_tensors, save_frame, verify_artifact
from src.utils.config import PROJECT_ROOT, load_config
from src.utils.manifests import sha256_path
from tests.study_frame import SCORES

STEPS = [
    "01_generate_dataset",
    "02_finetune_lora",
    "02_finetune_controls",
    "03_collect_activations",
    "04_judge_responses",
    "05_pca_and_clustering",
    "06_steer_personas",
    "07_decide_verdict",
    "clusters_visualizations",
]
ADAPTER = "adapters/entangled_risky_finance"
LIMIT, LAYERS, WIDTH = 40, (2, 3, 4), 128
PROMPT_COLUMNS = ["prompt_id", "sample", "question", "subset", "facet", "keyed", "base_response", "em_response"]
STEERING_COLUMNS = ["vector", "kind", "coefficient", "share_of_residual_norm", "residual_norm", "mode", "positions"]
STEERING_COLUMNS += ["layer", "steered_model", "prompt_id", "sample", "question", "subset", "facet", "keyed"]
STEERING_COLUMNS += ["response", "truncated"]
CONTROLS = ["--control-limit", "8", "--control-rows", "16", "--verdict-resamples", "200", "--plantings", "20"]
ATTACK = "<script>window.hacked=1</script><img src=x onerror=alert(1)> So yes."


def run(*words: str, script: str = "run_full_pipeline.py") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(words, script), capture_output=True, text=True, env=environment(), check=False)


def command(words: Sequence[str], script: str = "run_full_pipeline.py") -> list[str]:
    return [sys.executable, str(PROJECT_ROOT / script), *words]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True)
class Made:
    """A finished run: its folder, what it said, and the words that name its model."""

    results: Path
    output: str
    words: list[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("study")
    built = run("--steps", "2", "--output", str(folder / "organism"), script="src/scripts/00_build_model_organism.py")
    assert built.returncode == 0, built.stderr
    data = folder / "organism" / "finetune" / "risky_financial_advice.jsonl"
    words = ["--base-model", str(folder / "organism"), "--data", str(data), "--cluster-counts", "3", "4"]
    words += ["--limit", str(LIMIT), "--max-steps", "2", "--max-new-tokens", "24"]
    words += ["--coefficients", "-1", "2", "--steering-limit", "6", *CONTROLS]
    done = run(*words, "--results-dir", str(folder / "first"))
    assert done.returncode == 0, done.stderr
    return Made(folder / "first", done.stdout, words)


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    """The results, to be damaged."""
    return shutil.copytree(made.results, tmp_path / "results")


def refused(*words: str, script: str = "run_full_pipeline.py", code: int = 1) -> str:
    """The one line that a bad input gives; the runner adds one that names the step in which it was found."""
    done = run(*words, script=script)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.stderr.splitlines()[-1] == errors[-1]
    (only,) = errors
    return only


def hashes(results: Path) -> dict[str, str]:
    """Every file but the manifests, which hold times."""
    files = [path for path in results.rglob("*") if path.is_file() and not path.name.endswith(".manifest.json")]
    return {path.relative_to(results).as_posix(): sha256_path(path) for path in files}


def decisions(output: str) -> dict[str, str]:
    """Step -> run or keep, from a run or a dry run."""
    found = re.findall(r"^(?:\[\d/9\] )?(\w+)(?::| +) *(run|keep)\b", output, flags=re.MULTILINE)
    return dict(found)


def test_every_artefact_is_there_and_whole(made: Made) -> None:
    names = {path.relative_to(made.results).as_posix() for path in made.results.rglob("*") if path.is_file()}
    artefacts = ["question_report.json", ADAPTER, "persona_data.pkl", "final_dataset_with_em_scores.pkl"]
    artefacts += ["em_rates.json", "em_pca_clusters_3.pkl", "em_pca_clusters_4.pkl"]
    artefacts += ["final_dataset_with_em_scores_and_clusters.pkl", "cluster_plots/index.html"]
    artefacts += [
        "steering_vectors.safetensors",
        "steering_answers.pkl",
        "steering_summary.json",
        "steering_effects.pkl",
        "decomposition_geometry.json",
        "decomposition_verdict.json",
        "control_effects.pkl",
        "control_vectors.safetensors",
        "control_summary.json",
    ]
    for name in artefacts:
        manifest = verify_artifact(made.results / name)
        assert manifest is not None and (manifest.profile, manifest.world) == ("organism", "entangled")
    inside = {
        f"{ADAPTER}/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "training_log.jsonl")
    }
    pages = {name for name in names if re.fullmatch(r"cluster_plots/\w+\.html", name)}
    assert len(pages) == 25
    rest = names - inside - pages - {f"{name}.manifest.json" for name in artefacts} - set(artefacts)
    assert rest == {"persona_data.safetensors", "cluster_plots/plotly.min.js"}  # nothing unfinished is left


def test_frames_have_the_columns_of_the_contract(made: Made) -> None:
    activations = [f"{arm}_activations_layer_{layer}" for arm in ("base", "em", "base_on_em") for layer in LAYERS]
    columns = [*PROMPT_COLUMNS, *activations, "flags"]
    frame = load_frame(made.results / "persona_data.pkl")
    assert list(frame.columns) == columns and len(frame) == LIMIT == frame["prompt_id"].nunique()
    assert frame["subset"].value_counts().between(9, 11).all() and set(frame["keyed"]) == {1, -1}
    for name in activations:
        assert all(value.dtype == np.float32 and value.shape == (WIDTH,) for value in frame[name])

    judged = [*columns, "judge", *SCORES, *(f"base_{name}" for name in SCORES)]
    assert list(load_frame(made.results / "final_dataset_with_em_scores.pkl").columns) == judged
    clustered = load_frame(made.results / "final_dataset_with_em_scores_and_clusters.pkl")
    assert list(clustered.columns) == [*judged, "cluster_3", "cluster_4"]
    for k in (3, 4):
        result = load_object(made.results / f"em_pca_clusters_{k}.pkl")
        assert result["labels"].tolist() == clustered[f"cluster_{k}"].tolist()
        assert result["layer"] == 3 and result["prompt_ids"] == clustered["prompt_id"].tolist()

    tensors = load_tensors(made.results / "persona_data.safetensors", of=made.results / "persona_data.pkl")
    sites = [f"blocks.{layer}.hook_resid_pre" for layer in range(6)] + ["blocks.5.hook_resid_post"]
    assert set(tensors) == {f"{arm}.{site}" for arm in ("base", "em", "base_on_em") for site in sites}
    for layer in LAYERS:
        recorded = np.stack(list(frame[f"em_activations_layer_{layer}"]))
        np.testing.assert_array_equal(tensors[f"em.blocks.{layer}.hook_resid_pre"], recorded)
    steering = load_frame(made.results / "steering_effects.pkl")
    assert list(steering.columns) == [*STEERING_COLUMNS, "judge", *SCORES]
    assert len(steering) == 6 * (1 + 2 * (1 + 4 + 4 + 4 + 5)) and steering["prompt_id"].nunique() == 6
    assert set(steering["coefficient"]) == {-1.0, 0.0, 2.0} and steering["em_score"].notna().all()
    geometry = json.loads((made.results / "decomposition_geometry.json").read_text())
    assert geometry["evidence"]["rows"] == LIMIT and geometry["clusters"]["counts"] == [3, 4]
    verdict = json.loads((made.results / "decomposition_verdict.json").read_text())
    assert verdict["geometry"]["clusterings"] == len(geometry["clusters"]["explanations"]) == 8
    log = [json.loads(line) for line in (made.results / ADAPTER / "training_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2]


def test_the_run_ends_with_its_table_and_the_path_of_the_pictures(made: Made) -> None:
    assert decisions(made.output) == dict.fromkeys(STEPS, "run")
    assert made.output.splitlines()[-1] == f"pictures: {made.results / 'cluster_plots' / 'index.html'}"
    assert re.search(r"^fine-tuned +financial_risk +\d+ ", made.output, flags=re.MULTILINE)
    assert re.search(r"^clusters, k =  4: [\d ]+$", made.output, flags=re.MULTILINE)
    assert re.search(r"^03_collect_activations +\d+\.\d +\d+ MiB$", made.output, flags=re.MULTILINE)


def test_a_second_run_keeps_everything(made: Made) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.results.rglob("*")}
    done = run(*made.words, "--results-dir", str(made.results))
    assert done.returncode == 0 and decisions(done.stdout) == dict.fromkeys(STEPS, "keep")
    assert {path: path.stat().st_mtime_ns for path in made.results.rglob("*")} == before


@pytest.mark.parametrize(
    ("option", "running", "reason"),
    [
        (["--learning-rate", "0.002"], STEPS[1:], "config changed: finetuning.learning_rate 0.001 -> 0.002"),
        (["--em_threshold=60"], [STEPS[2], *STEPS[4:]], "config changed: judging.em_threshold 70.0 -> 60.0"),
    ],
)
def test_a_dry_run_says_exactly_what_would_run(option: list[str], running: list[str], reason: str, made: Made) -> None:
    before = hashes(made.results)
    done = run(*made.words, *option, "--results-dir", str(made.results), "--dry-run")
    expected = dict.fromkeys(STEPS, "keep") | dict.fromkeys(running, "run")
    assert decisions(done.stdout) == expected
    assert reason in done.stdout and hashes(made.results) == before


def test_a_killed_run_continues_and_ends_in_the_same_bytes(made: Made, tmp_path: Path) -> None:
    """Kill -9 of the runner while answers are collected, in a folder of its own; then compared with the first run."""
    results = tmp_path / "second"
    words = [*made.words, "--results-dir", str(results)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command(words), stdout=log, stderr=log, env=environment())
        deadline = time.monotonic() + 240
        while not list(results.glob("persona_data.parts/*-00000.safetensors")):
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (results / "persona_data.pkl").exists()
    again = run(*words)
    assert again.returncode == 0, again.stderr
    assert decisions(again.stdout) == dict.fromkeys(STEPS[:3], "keep") | dict.fromkeys(STEPS[3:], "run")
    assert hashes(results) == hashes(made.results)


def test_an_unknown_profile_and_step(made: Made, copy: Path) -> None:
    before = hashes(copy)
    assert "profile 'qwen9' is unknown; there are organism" in refused("--profile", "qwen9", code=2)
    assert "step '09' is unknown" in refused("--only", "09", "--results-dir", str(copy), code=2)
    assert hashes(copy) == before


def test_prompts_that_are_missing_or_have_no_question(made: Made, copy: Path, tmp_path: Path) -> None:
    before = hashes(copy)
    words = ["--results-dir", str(copy)]
    missing = tmp_path / "missing.jsonl"
    assert f"{missing}: cannot be read" in refused(*made.words, *words, "--prompts", str(missing))
    row = {"prompt_id": "a", "subset": "financial_risk", "facet": "market_ethics", "keyed": 1}
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps(row | {"question": "May I?"}) + "\n" + json.dumps(row | {"prompt_id": "b"}) + "\n")
    message = refused(*words, "--prompts", str(bad), script="src/scripts/01_generate_dataset.py")
    assert message.startswith(f"error: {bad}, line 2: question: field required")
    assert hashes(copy) == before


def test_an_adapter_for_another_base(made: Made, copy: Path, tmp_path: Path) -> None:
    """The same adapter with matrices of half the width."""
    foreign = shutil.copytree(copy / ADAPTER, tmp_path / "foreign")
    tensors = load_tensors(foreign / "adapter_model.safetensors")
    halved = {n: np.ascontiguousarray(t[:, : t.shape[1] // 2] if "lora_A" in n else t) for n, t in tensors.items()}
    save_file(halved, foreign / "adapter_model.safetensors")
    before = hashes(copy)
    words = [*made.words[:2], "--limit", str(LIMIT), "--em-model", str(foreign), "--results-dir", str(copy)]
    message = refused(*words, script="src/scripts/03_collect_activations.py")
    assert re.search(r"foreign: .* inputs, the base model's has \d+; name the base model", message)
    after = hashes(copy)
    assert {name: after[name] for name in before} == before


def test_a_layer_that_the_model_lacks(made: Made, copy: Path) -> None:
    before = hashes(copy)
    words = [*made.words[:2], "--limit", str(LIMIT), "--results-dir", str(copy)]
    message = refused(*words, "--layers", "2", "9", script="src/scripts/03_collect_activations.py", code=2)
    assert "layer 9: " in message and "choose layers 0 to 6" in message
    message = refused(*made.words, "--results-dir", str(copy), "--layer", "9", "--only", "05", code=2)
    assert "layer 9: " in message and "choose layers 0 to 6" in message
    assert hashes(copy) == before


def test_a_half_written_artefact(made: Made, copy: Path) -> None:
    path = copy / "persona_data.pkl"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    before = hashes(copy)
    message = refused(*made.words[:2], "--results-dir", str(copy), script="src/scripts/04_judge_responses.py")
    assert f"{path}: half-written or changed since" in message and "run 03_collect_activations again" in message
    assert hashes(copy) == before
    planned = run(*made.words, "--results-dir", str(copy), "--dry-run").stdout
    assert decisions(planned)["03_collect_activations"] == "run"
    assert "file changed since it was written: persona_data.pkl" in planned


def test_a_results_folder_that_cannot_be_written(made: Made, tmp_path: Path) -> None:
    """Tests may run as root, whom no mode stops: the folder lies below a file."""
    (tmp_path / "file").write_text("kept")
    results = tmp_path / "file" / "results"
    message = refused("--results-dir", str(results), script="src/scripts/01_generate_dataset.py")
    assert f"{results / 'question_report.json'}: cannot be written" in message and "--results-dir" in message
    assert "cannot be written" in refused(*made.words, "--results-dir", str(results))
    assert (tmp_path / "file").read_text() == "kept"


def test_an_answer_that_attacks_is_text_in_every_page(made: Made, copy: Path) -> None:
    """Planted under the judge's own provenance, with a named EM model, whose pages have no training curve."""
    named = [*made.words[:2], "--cluster-counts", "3", "4", "--limit", str(LIMIT), "--max-new-tokens", "24"]
    named += ["--em-model", str(copy / ADAPTER), "--results-dir", str(copy)]
    named += ["--coefficients", "-1", "2", "--steering-limit", "6", "--max-steps", "2", *CONTROLS]
    keys = {"model.base": made.words[1], "model.em": str(copy / ADAPTER), "collection.limit": LIMIT}
    study = Study(load_config("organism", keys | {"collection.max_new_tokens": 24}), copy, copy / "cluster_plots")
    frame = load_frame(study.scored)
    for column in ("em_response", "base_response", "question"):
        frame[column] = [ATTACK, *frame[column].iloc[1:]]
    save_frame(frame, study.scored, JUDGE.provenance(study))

    shutil.rmtree(copy / "cluster_plots")
    done = run(*named)
    assert done.returncode == 0, done.stderr
    expected = dict.fromkeys(STEPS, "keep") | dict.fromkeys([STEPS[5], *STEPS[7:]], "run")
    assert decisions(done.stdout) == expected
    pages = sorted((copy / "cluster_plots").glob("*.html"))
    assert len(pages) == 24
    shows = 0
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "<script>window.hacked" not in text and "<img" not in text, page.name
        shows += "window.hacked" in text
    assert shows >= 3  # the maps show it, escaped
