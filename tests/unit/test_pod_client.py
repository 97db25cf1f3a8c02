"""The client's side without a pod: what a step needs, records, versions, and results that are not to be trusted."""

import argparse
import json
import pickle
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from packaging.requirements import Requirement
from paramiko import SFTPError
from plotly.offline import get_plotlyjs

from src.pod.api import Pod, RunPodApi
from src.pod.checks import all_passed, check_facts, check_sftp
from src.pod.client import Choices, PodClient
from src.pod.fetch import offered_files, publish_outputs
from src.pod.payload import judge_folder, outputs_of, rewrite_options, script_payload, step_payload, without_folder
from src.pod.plans import plan_command
from src.pod.remote.blocks import digest_file
from src.pod.remote.frames import ACCEPTED, BLOCK_HEADER, END, PUBLISHED, REFUSED, Wire
from src.pod.requirements import pinned_requirements
from src.pod.results import publish_results, verify_results
from src.pod.run_record import RunRecord, RunRecords, append_log, log_size, new_run_id, now, progress_line, progress_of
from src.pod.settings import PodSettings
from src.pod.terminal import HarmlessText, harmless, harmless_json
from src.pod.transfer import Traffic, upload_once
from src.pod.watch import explain
from src.utils.artifacts import load_frame, load_object, save_frame, save_object
from src.utils.errors import UserError
from src.utils.record_store import open_store
from tests.pod_api_server import ACCOUNT_KEY, ApiServer, pod_entry
from tests.tiny_models import provenance


def record(run_id: str = "collect-1", **fields) -> RunRecord:
    values = {"step": "collect", "script": "s.py", "options": ["--limit", "3"], "pod_id": "p", "created": now()}
    values |= {"remote_root": "/w", "remote_folder": f"/w/runs/{run_id}", "outputs": ["results/x"]}
    return RunRecord.model_validate({**values, "run_id": run_id, **fields})


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    for name in ("src/a.py", "src/__pycache__/a.pyc", "configs/x.yaml", "pyproject.toml", "data/q.jsonl", "src/s.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def test_a_script_gets_the_code_and_the_files_that_its_options_name(repository: Path, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere/mine.jsonl"
    outside.parent.mkdir()
    outside.write_text("x")
    options = ["--prompts", str(outside), "--world", "data", "--also=data/q.jsonl", "--limit", "3"]
    payload = script_payload("src/s.py", options, [repository / "data"], ["out"], repository)
    assert set(payload.files) >= {"src/a.py", "src/s.py", "configs/x.yaml", "pyproject.toml", "data/q.jsonl"}
    assert not [name for name in payload.files if "pycache" in name]
    here = payload.options[1]
    assert here.startswith("inputs/") and here.endswith("/mine.jsonl") and payload.files[here] == outside
    assert payload.options[2:] == ["--world", "data", "--also=data/q.jsonl", "--limit", "3"]


def test_a_folder_goes_without_caches_and_secrets_whatever_lies_above_it(repository: Path) -> None:
    root = repository.rename(repository.parent / "repository.tmp")
    for name in (".env", "data/.env", "data/.env.local", ".git/config", ".venv/pyvenv.cfg", "data/half.tmp/x"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("HF_TOKEN=hf_x")
    payload = script_payload("src/s.py", [], [root], ["out"], root)
    assert {path.read_text() for path in payload.files.values()} == {
        *("src/a.py", "src/s.py", "configs/x.yaml", "pyproject.toml", "data/q.jsonl")
    }


def test_no_word_of_a_command_sends_all_that_lies_around_the_repository(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository.parent / "private.txt").write_text("x")
    monkeypatch.chdir(repository)
    for word in ("..", ".", "../", "/", f"--x={repository.parent}/", "src/../.."):
        assert rewrite_options([word], repository) == ([word], {})


def test_two_files_of_one_name_stay_two(repository: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "q.jsonl").write_text(folder)
    words, files = rewrite_options([str(tmp_path / "one/q.jsonl"), str(tmp_path / "two/q.jsonl")], repository)
    assert words[0] != words[1] and [files[word].read_text() for word in words] == ["one", "two"]


def test_what_a_script_may_not_do(repository: Path) -> None:
    with pytest.raises(UserError, match=r"--script none.py: there is no such file"):
        script_payload("none.py", [], [], ["out"], repository)
    for output in ("/etc/passwd", "../x"):
        with pytest.raises(UserError, match="must lie under the working folder"):
            script_payload("src/s.py", [], [], [output], repository)
    for output in (".", "./", "results", "./results/"):  # would take the place of all results here
        with pytest.raises(UserError, match="is more than the script writes"):
            script_payload("src/s.py", [], [], [output], repository)
    with pytest.raises(UserError, match="gone: does not exist"):
        script_payload("src/s.py", [], [repository / "gone"], ["out"], repository)


def test_the_results_folder_of_the_pod_is_its_own() -> None:
    words = ["--a", "--results-dir", "x", "--b", "--results_dir=y", "c", "--output-dir=z"]
    assert without_folder(words, "--results-dir") == ["--a", "--b", "c", "--output-dir=z"]


def test_the_safety_judge_is_resumed_and_leaves_its_results_where_they_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "sets.csv").write_text("x")
    words = ["--data", "data/safety", f"xstest={tmp_path}/sets.csv", "--output-dir", str(tmp_path)]
    own = argparse.Namespace(step="judge-train", force=True)
    command = plan_command(own, words)
    assert command is not None and command.options == [*words, "--force"]
    payload = command.pack()
    assert payload.options[2].startswith("xstest=inputs/") and payload.options[2][7:] in payload.files
    assert payload.options[3:] == ["--force", "--output-dir", "outputs/checkpoints", "--resume"]
    assert payload.outputs == ["outputs/checkpoints"] and "data/safety/README.md" in payload.files


def test_a_judge_that_is_in_the_way_is_named_before_a_pod_trains_another(tmp_path: Path) -> None:
    (tmp_path / "safety_judge").mkdir()
    own = argparse.Namespace(step="judge-train", force=False)
    with pytest.raises(UserError, match=r"safety_judge: has no manifest.*give --output-dir another folder"):
        plan_command(own, ["--output_dir", str(tmp_path)])
    own.force = True
    assert plan_command(own, ["--output_dir", str(tmp_path)]) is not None


def test_pages_and_watched_trainings_come_along(tmp_path: Path) -> None:
    from src.pipelines.persona_study import FINETUNE, JUDGE, Study
    from src.utils.config import load_config

    study = Study(load_config("organism", {"judging.second_judge": "local"}), tmp_path, tmp_path)
    assert {study.agreement_page, study.rates, study.scored} <= set(outputs_of(JUDGE, study))
    assert {study.finetuned, study.watched} <= set(outputs_of(FINETUNE, study))


def test_what_was_asked_goes_along_and_comes_back(tmp_path: Path) -> None:
    """Judgements and steered answers: what a later step, here or there, would pay for again."""
    from src.pipelines.persona_study import JUDGE, STEER, Study
    from src.utils.config import load_config

    study = Study(load_config("organism", {"judging.judge": "local"}), tmp_path, tmp_path)
    assert study.judgements in outputs_of(JUDGE, study)
    assert {study.judgements, study.steering_answers} <= set(outputs_of(STEER, study))
    study.judgements.write_text('{"key": "a"}\n')
    payload = step_payload(JUDGE, study, [])
    assert payload.files["results/judgements.jsonl"] == study.judgements
    assert "results/judgements.jsonl" in payload.outputs


def test_a_watched_fine_tune_needs_the_questions_that_are_its_probes(tmp_path: Path) -> None:
    from src.pipelines.persona_study import FINETUNE, Study
    from src.utils.config import load_config

    for is_watched in (True, False):
        config = load_config("organism", {"finetuning.visualize_during_training": is_watched})
        payload = step_payload(FINETUNE, Study(config, tmp_path, tmp_path), [])
        assert ("data/prompts/political_compass.jsonl" in payload.files) is is_watched


def test_without_a_fine_tune_the_collection_makes_one_on_the_pod_first(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What the document says of the runner without arguments holds in a fresh clone."""
    own = argparse.Namespace(step="collect", force=False, results_dir=tmp_path)
    words = ["--world", "separable", "--adapter_name=mine", "--limit", "3"]
    command = plan_command(own, words)
    assert command is not None and "mine: is not there, and made on the pod first" in capsys.readouterr().out
    payload = command.pack()
    shared = ["--world", "separable", "--adapter-name", "mine", "--results-dir", "results"]
    assert payload.before == (("src/scripts/02_finetune_lora.py", shared),)
    assert payload.script.endswith("03_collect_activations.py") and payload.options[:5] == words
    assert {"results/adapters/mine", "results/adapters/mine.manifest.json", "results/persona_data.pkl"} <= set(
        payload.outputs
    )
    assert "data/organisms/separable/finetune/risky_financial_advice.jsonl" in payload.files
    (tmp_path / "adapters/mine").mkdir(parents=True)
    (tmp_path / "adapters/mine/adapter_config.json").write_text("{}")
    assert not command.pack().before


@pytest.mark.parametrize(
    ("step", "words", "remedy"),
    [
        ("judge", ["--judge", "openrouter"], "--step judge: openrouter is asked from here, .*04_judge_responses"),
        ("judge", ["--judge", "local", "--second-judge", "gemini"], "--step judge: gemini is asked from here"),
        (
            "steer",
            ["--judge", "gemini"],
            "--step steer: gemini is asked from here, .*--judge local; run here after",
        ),
    ],
)
def test_a_judge_that_is_paid_is_not_asked_from_a_pod(step: str, words: list[str], remedy: str, tmp_path: Path) -> None:
    """Its key would have to go there, and nobody there can confirm its cost."""
    own = argparse.Namespace(step=step, force=False, results_dir=tmp_path)
    with pytest.raises(UserError, match=remedy):
        plan_command(own, words)


def test_the_collection_needs_prompts_model_and_adapter(tmp_path: Path) -> None:
    from src.pipelines.persona_study import COLLECT, Study
    from src.utils.config import load_config

    study = Study(load_config("organism"), tmp_path, tmp_path)
    study.finetuned.mkdir(parents=True)
    (study.finetuned / "adapter_config.json").write_text("{}")
    payload = step_payload(COLLECT, study, ["--limit", "3"])
    name = study.config.finetuning.name
    assert f"results/adapters/{name}/adapter_config.json" in payload.files
    assert {"data/organisms/entangled/model.safetensors", "data/prompts/political_compass.jsonl"} <= set(payload.files)
    assert payload.script == "src/scripts/03_collect_activations.py"
    assert payload.options == ["--limit", "3", "--results-dir", "results"]
    assert payload.outputs == [
        "results/persona_data.pkl",
        "results/persona_data.safetensors",
        "results/persona_data.html",
        "results/persona_data.pkl.manifest.json",
    ]


def test_a_pod_without_torch_shows_its_gpu_all_the_same() -> None:
    facts = {
        "python": [3, 11, 9],
        "torch": None,
        "free_bytes": 30 * 2**30,
        "hub": "",
        "unguarded": "",
        "is_on_volume": False,
    }
    pod = Pod.model_validate(pod_entry("p", 1, gpuCount=1))
    found = {check.name: check for check in check_facts({**facts, "visible_gpus": 1}, pod, "/w")}
    assert found["CUDA"].passed and not found["torch"].passed and all_passed(list(found.values()))
    assert "loses it: name a folder on the volume with --remote-root" in found["volume"].line()
    found = {check.name: check for check in check_facts({**facts, "visible_gpus": 0}, pod, "/w")}
    assert not found["CUDA"].passed and "create another" in found["CUDA"].remedy


def test_sftp_that_talks_nonsense_is_a_warning() -> None:
    def open_sftp() -> None:
        raise SFTPError("Incompatible sftp protocol")

    check = check_sftp(open_sftp, "/w/x")
    assert not check.passed and check.is_warning and "Incompatible" in check.found


def test_versions_are_those_of_this_environment() -> None:
    pins = {Requirement(line).name: str(Requirement(line).specifier) for line in pinned_requirements()}
    for name in ("transformers", "numpy", "pandas", "peft", "tokenizers", "pydantic-core"):
        assert pins[name] == f"=={version(name)}"
    assert "em-persona-decomposition" not in pins and "pytest" not in pins
    assert pins["torch"] == f"=={version('torch').partition('+')[0]}"
    with pytest.raises(UserError, match="no-such-project: is not installed"):
        pinned_requirements("no-such-project")


def test_a_record_comes_back_and_names_its_run(tmp_path: Path) -> None:
    records = RunRecords(tmp_path)
    first = records.save(record())
    assert records.load("collect-1") == first
    assert records.unfinished("collect", "s.py", ["--limit", "3"], None) == first
    assert records.unfinished("collect", "s.py", ["--limit", "4"], None) is None
    records.save(first.updated(state="fetched"))
    assert records.unfinished("collect", "s.py", ["--limit", "3"], None) is None
    (tmp_path / "digests.json").write_text("{}")
    assert [one.run_id for one in records.all()] == ["collect-1"]
    with pytest.raises(UserError, match=r"run nothing: is unknown in .*known: collect-1"):
        records.load("nothing")
    with pytest.raises(UserError, match="no run yet"):
        RunRecords(tmp_path / "empty").latest()
    assert len({new_run_id("collect") for _ in range(20)}) == 20


def test_money_is_hours_by_price() -> None:
    began = now().replace(year=2026, month=5, day=4, hour=10, minute=0, second=0, microsecond=0)
    one = record(started=began, cost_per_hour=2.0)
    assert one.updated(last_seen=began.replace(hour=11, minute=30)).cost_so_far == 3.0
    assert one.updated(last_seen=began.replace(hour=15), ended=began.replace(hour=12)).cost_so_far == 4.0
    assert record(cost_per_hour=2.0).updated(last_seen=began).cost_so_far == 0.0


def test_the_time_in_which_no_pod_works_for_a_run_costs_nothing() -> None:
    began = now() - timedelta(hours=10)
    first = record(started=began, cost_per_hour=2.0).updated(last_seen=began + timedelta(hours=1))
    moved = first.charged_anew(pod_id="other", cost_per_hour=5.0)
    assert moved.cost_so_far == first.cost_so_far == 2.0 and moved.started == began
    assert moved.updated(last_seen=now() + timedelta(hours=1)).cost_so_far == pytest.approx(7.0, abs=0.01)
    assert record(cost_per_hour=2.0).charged_anew().charged_from is None, "nothing has begun"


def test_the_local_log_is_its_own_offset(tmp_path: Path) -> None:
    path = tmp_path / "runs/a.log"
    assert log_size(path) == 0
    assert append_log(path, b"one\n") == 4 and append_log(path, "zwei ü".encode()) == 11 == log_size(path)
    assert path.read_bytes() == "one\nzwei ü".encode()


def test_progress_in_one_line() -> None:
    gpu = {"used_mib": 10240.0, "total_mib": 81920.0, "percent": 97.0}
    status = {"done": 3, "total": 9, "unit": "answer", "tokens_per_second": 812.4, "gpus": [gpu], "eta_seconds": 61}
    assert progress_line(status) == "3/9 answer, 812 tokens/s, GPU 10.0/80 GiB, 1:01 left"
    assert progress_line({}) == ""


def staged_frame(staged: Path) -> list[str]:
    frame = pd.DataFrame({"prompt_id": ["a", "b"], "x": [1.0, 2.0]})
    save_frame(frame, staged / "results/persona_data.pkl", provenance("03"), {"t": np.ones((2, 3), np.float32)})
    return ["results/persona_data.pkl", "results/persona_data.safetensors", "results/persona_data.pkl.manifest.json"]


def test_honest_results_are_published_with_their_manifest(tmp_path: Path) -> None:
    outputs = staged_frame(tmp_path / "staged")
    found = verify_results(tmp_path / "staged", outputs)
    published = publish_results(found, tmp_path / "staged/results", tmp_path / "results")
    assert published[-1].name == "persona_data.pkl.manifest.json" and len(published) == 3
    assert load_frame(tmp_path / "results/persona_data.pkl")["x"].tolist() == [1.0, 2.0]


def test_judgements_of_both_sides_are_kept_and_the_later_of_two_counts(tmp_path: Path) -> None:
    staged, results = tmp_path / "staged/results/judgements.jsonl", tmp_path / "results/judgements.jsonl"
    for path, records in (
        (staged, [("both", 2, "pod"), ("old", "never", "pod"), ("pod", 1, "pod")]),
        (results, [("both", 1, "here"), ("old", 2, "here"), ("here", 1, "here")]),
    ):
        path.parent.mkdir(parents=True)
        lines = [json.dumps({"key": key, "asked": asked, "by": by}) for key, asked, by in records]
        path.write_text("\n".join(lines) + "\n")
    for _ in range(2):  # fetched twice
        publish_results([staged], tmp_path / "staged/results", tmp_path / "results")
    with open_store(results) as store:
        assert {key: record["by"] for key, record in store.records.items()} == {
            "both": "pod",
            "pod": "pod",
            "old": "here",
            "here": "here",
        }
    assert results.read_text().count("\n") == 5
    staged.write_text("no record\n")
    with pytest.raises(UserError, match="line 1: no record"):
        verify_results(tmp_path / "staged", ["results/judgements.jsonl"])


def test_a_judge_that_was_trained_on_a_pod_lies_where_one_that_is_trained_here_does(tmp_path: Path) -> None:
    staged, here = tmp_path / "staged", tmp_path / "mine"
    made = staged / "outputs/checkpoints"
    made.mkdir(parents=True)
    save_object({"a": 1}, made / "judge.pkl", provenance("judge"))
    (made / "pages").mkdir()
    (made / "pages/index.html").write_text("x")
    here.mkdir()
    (here / "evaluation.json").write_text("{}")
    one = record(step="judge-train", options=["--num_epochs", "3", f"--output_dir={here}"])
    found = verify_results(staged, ["outputs/checkpoints"])
    published, left = publish_outputs(one, found, staged, tmp_path / "results", False)
    assert {path.name for path in published} == {"judge.pkl", "judge.pkl.manifest.json", "pages"} and not left
    assert {path.name for path in here.iterdir()} >= {"evaluation.json", "judge.pkl", "pages"}
    assert load_object(here / "judge.pkl") == {"a": 1} and (here / "pages/index.html").exists()
    assert judge_folder(["--num_epochs", "3"], tmp_path) == tmp_path / "outputs/checkpoints"
    assert publish_outputs(record(), found, staged, tmp_path / "results", False) == ([], found)


def test_pages_come_with_the_library_of_this_machine(tmp_path: Path) -> None:
    folder = tmp_path / "out/pages"
    folder.mkdir(parents=True)
    (folder / "plotly.min.js").write_text("what a pod would have every page do")
    assert verify_results(tmp_path, ["out"]) == [tmp_path / "out"]
    assert (folder / "plotly.min.js").read_text() == get_plotlyjs()
    (folder / "other.js").write_text("")
    with pytest.raises(UserError, match=r"no business sending a \.js file"):
        verify_results(tmp_path, ["out"])


def test_results_of_another_world_are_not_overwritten_by_what_is_fetched(tmp_path: Path) -> None:
    outputs = staged_frame(tmp_path / "staged")
    found = verify_results(tmp_path / "staged", outputs)
    publish_results(found, tmp_path / "staged/results", tmp_path / "results")
    manifest = tmp_path / "results/persona_data.pkl.manifest.json"
    ours = json.dumps({**json.loads(manifest.read_text()), "world": "another"})
    manifest.write_text(ours)
    with pytest.raises(UserError, match=r"persona_data.pkl: belongs to .* --force to overwrite"):
        publish_results(found, tmp_path / "staged/results", tmp_path / "results")
    assert manifest.read_text() == ours
    publish_results(found, tmp_path / "staged/results", tmp_path / "results", force=True)
    assert manifest.read_text() != ours


def test_a_pod_sends_what_it_was_asked_for_and_nothing_else() -> None:
    one = {"size": 0, "blocks": []}
    assert set(offered_files({"results/x": one, "out/a/b": one}, ["results/x", "out/"])) == {"results/x", "out/a/b"}
    for name in ("results/xy", "results", "ou", ".bashrc"):
        with pytest.raises(UserError, match="was not asked for"):
            offered_files({name: one}, ["results/x", "out"])
    typed = ["./results//x", "./out/"]
    assert set(offered_files({"results/x": one, "out/a": one}, typed)) == {"results/x", "out/a"}
    for value in ({"size": 1 << 60, "blocks": []}, {"size": "x", "blocks": []}, {}, 3):
        with pytest.raises(UserError, match="offers files that cannot be"):
            offered_files({"out/a": value}, ["out"])


def test_a_terminal_obeys_nothing_that_comes_from_a_pod() -> None:
    shown = HarmlessText()
    clipboard, colour, title = "\x1b]52;c;cm0gLXJm\x07", "\x1b[31mred\x1b[0m", "\x9b2J\x1b]0;x\x1b\\"
    said = f"1%|#\rü\t{colour}\n{clipboard}{title}\u202etxt.exe".encode()
    text = "".join(shown(said[i : i + 1]) for i in range(len(said)))  # even cut within a character
    assert not [letter for letter in text if letter not in "\r\n\t" and not letter.isprintable()]
    assert text.startswith("1%|#\rü\t") and harmless(colour) == "red"
    assert harmless_json({"\x07k": ["\x1b[2J", 1, None]}) == {"\ufffdk": ["", 1, None]}
    assert "\x1b" not in explain({"code": 1}, "\x1b]0;x\x07failed")


def test_a_pods_word_on_its_progress_is_taken_as_far_as_it_is_one() -> None:
    gpu = {"used_mib": 1.0, "total_mib": 2.0, "percent": 3.0}
    assert progress_of({"done": 3, "total": 9, "unit": "answer", "gpus": [gpu], "other": {}}) == {
        "done": 3,
        "total": 9,
        "unit": "answer",
        "gpus": [gpu],
    }
    for status in (None, [1], "x", {"done": "many"}, {"gpus": [{"used_mib": []}]}):
        assert progress_of(status) == {} and progress_line(progress_of(status)) == ""


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/evil-was-here"),))


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing", "code", "torch", "json", "link"])
def test_dishonest_results_go_nowhere(damage: str, tmp_path: Path) -> None:
    staged = tmp_path / "staged"
    outputs = staged_frame(staged)
    path = staged / "results/persona_data.pkl"
    if damage == "altered":
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif damage == "missing":
        path.unlink()
    elif damage == "code":
        (staged / "results/other.pkl").write_bytes(pickle.dumps(Evil()))
        outputs = ["results/other.pkl"]
    elif damage == "torch":
        (staged / "results/adapter").mkdir()
        (staged / "results/adapter/model.bin").write_bytes(b"x")
        outputs = ["results/adapter"]
    elif damage == "json":
        (staged / "results/a.json").write_text("{")
        outputs = ["results/a.json"]
    else:
        (staged / "results/a.txt").symlink_to("/etc/passwd")
        outputs = ["results/a.txt"]
    with pytest.raises(UserError):
        verify_results(staged, outputs)
    assert not Path("/tmp/evil-was-here").exists() and not (tmp_path / "results").exists()


def test_a_record_holds_no_secret_by_its_fields() -> None:
    assert not [name for name in RunRecord.model_fields if any(word in name for word in ("key", "token", "pass"))]
    assert json.loads(record().model_dump_json())["run_id"] == "collect-1"


@pytest.mark.parametrize(
    ("when_done", "others", "unfetched", "mutation", "said"),
    [
        ("terminate", [], [], "podTerminate", "pod p: terminated"),
        ("terminate", [], ["b"], "podStop", "pod p: stopped, not terminated: b was not fetched; its volume stays"),
        ("stop", [], ["b"], "podStop", "pod p: stopped; its volume stays"),
        ("stop", ["b"], [], None, "pod p: goes on, and on costing, for b"),
    ],
)
def test_what_is_not_fetched_is_not_terminated(
    when_done: str, others: list[str], unfetched: list[str], mutation: str | None, said: str, tmp_path: Path
) -> None:
    told: list[str] = []
    with ApiServer(pods={"p": pod_entry("p", 1)}) as api:
        settings = PodSettings(ACCOUNT_KEY, api_url=api.url)
        client = PodClient(RunPodApi(api.url, ACCOUNT_KEY), settings, RunRecords(tmp_path), Choices(), told.append)
        client.release_pod(record(when_done=when_done), others, unfetched)
        assert [name for name in ("podStop", "podTerminate") if api.calls(name)] == ([mutation] if mutation else [])
    assert told[0].startswith(said)


class Script:
    """A conversation in which the pod says what it likes."""

    def __init__(self, answer: object, frames: list[tuple[bytes, bytes]]) -> None:
        self._answer, self._frames = answer, frames
        self.wire = Wire(lambda count: b"", lambda data: None)

    def converse(self, command: str, request: dict) -> "Script":
        return self

    def read_json(self) -> object:
        return self._answer

    def read(self) -> tuple[bytes, bytes]:
        return self._frames.pop(0)


@pytest.mark.parametrize(
    ("answer", "frame", "complaint"),
    [
        (answer, None, "which blocks it lacks|blocks of no file")
        for answer in (
            [],
            {},
            {"missing": []},
            {"missing": {"x": [0]}},
            {"missing": {"1": [0]}},
            {"missing": {"0": [7]}},
        )
    ]
    + [
        ({"missing": {"0": [0]}}, frame, "acknowledges what was not sent")
        for frame in (
            (ACCEPTED, BLOCK_HEADER.pack(0, 1)),
            (REFUSED, BLOCK_HEADER.pack(3, 0)),
            (PUBLISHED, BLOCK_HEADER.pack(3, 0)),
            (ACCEPTED, b"x"),
            (END, b""),
        )
    ],
)
def test_a_pod_that_misunderstands_an_upload_is_one_line(
    answer: object, frame: tuple[bytes, bytes] | None, complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"x")
    files = [(tmp_path / "a", digest_file(tmp_path / "a"))]
    link = Script(answer, [frame] if frame else [])
    with pytest.raises(UserError, match=complaint):
        upload_once(link, "run", files, Traffic(), lambda count: None)  # ty: ignore[invalid-argument-type]
