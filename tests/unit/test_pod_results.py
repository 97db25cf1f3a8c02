"""What comes from a pod is not to be trusted: results, names, texts, acknowledgements."""

import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from plotly.offline import get_plotlyjs

from src.pod.fetch import offered_files, publish_outputs
from src.pod.payload import judge_folder
from src.pod.remote.blocks import digest_file
from src.pod.remote.frames import ACCEPTED, BLOCK_HEADER, END, PUBLISHED, REFUSED, Wire
from src.pod.results import publish_results, verify_results
from src.pod.terminal import HarmlessText, harmless, harmless_json
from src.pod.transfer import Traffic, upload_once
from src.pod.watch import explain
from src.utils.artifacts import load_frame, load_object, save_frame, save_object
from src.utils.errors import UserError
from src.utils.record_store import open_store
from tests.pod_jobs import run_record
from tests.tiny_models import provenance


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
    one = run_record(step="judge-train", options=["--num_epochs", "3", f"--output_dir={here}"])
    found = verify_results(staged, ["outputs/checkpoints"])
    published, left = publish_outputs(one, found, staged, tmp_path / "results", False)
    assert {path.name for path in published} == {"judge.pkl", "judge.pkl.manifest.json", "pages"} and not left
    assert {path.name for path in here.iterdir()} >= {"evaluation.json", "judge.pkl", "pages"}
    assert load_object(here / "judge.pkl") == {"a": 1} and (here / "pages/index.html").exists()
    assert judge_folder(["--num_epochs", "3"], tmp_path) == tmp_path / "outputs/checkpoints"
    assert publish_outputs(run_record(), found, staged, tmp_path / "results", False) == ([], found)


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
