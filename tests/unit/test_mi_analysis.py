"""Pictures of a saved model: those of a training, beside its untrained model, and one line for what cannot be."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import Trainer, TrainingArguments

from src.run_mi_analysis import main
from src.utils.config import PROJECT_ROOT, read_yaml
from src.utils.errors import UserError
from src.utils.safety_judge.judge_folder import Judge, JudgeRecord, save_judge
from src.utils.safety_judge.saved_model import find_model, number_of, record_of, tokenizer_of
from src.utils.safety_judge.settings import CONFIG_FILE, load_judge_config
from src.utils.watching.epoch_metrics import load_metrics
from tests.tiny_models import (
    provenance,
    put_into_cache,
    save_adapter,
    save_model,
    tiny_model,
    tokenizer,
    with_adapter,
    write_jsonl,
)
from tests.watched_training import (
    MAX_LENGTH,
    N_FROZEN,
    QUESTION,
    judge_model,
    judge_template,
    planted_samples,
    trained_judge,
)

PAGES = {f"epoch_2_{kind}.html" for kind in ("circuit_comparison", "neuron_map", "circuits")} | {
    f"epoch_2_sample_{index}_{label}_{kind}.html"
    for index, label in enumerate(("safe", "safe", "unsafe", "unsafe"))
    for kind in ("tokens", "layers")
}


def data_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for seed, split in enumerate(("train", "validation", "test")):
        rows = [
            {"sample_id": one.sample_id, "prompt": f"{one.prompt} {split}", "label": one.label,
             "category": one.category, "source": one.source, "pair_id": one.pair_id}
            for one in planted_samples(24, seed=20 + seed)
        ]  # fmt: skip
        write_jsonl(folder / f"{split}.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a judge of two epochs, its base model and its data beside it."""
    folder = tmp_path_factory.mktemp("finished")
    base = save_model(judge_model(), folder / "base")
    data = data_folder(folder / "data")
    model = trained_judge(judge_model(), folder / "work", count=24)
    record = JudgeRecord(
        profile="organism", base_model=str(base), question=QUESTION, safe_word="no", unsafe_word="yes",
        max_length=MAX_LENGTH, frozen_blocks=N_FROZEN, n_blocks=3, head_is_tied=False, trainable_parameters=1,
        frozen_parameters=1, data=[str(data)], epoch=2.0, epochs=2,
    )  # fmt: skip
    judge = Judge(model, tokenizer(), judge_template(), MAX_LENGTH)
    save_judge(folder / "out" / "safety_judge", judge, record, provenance("train_safety_judge"))
    return folder


def record_in(folder: Path, number: int = 2) -> Any:
    return load_metrics(folder / "mi_analysis" / "training_visualizations" / f"epoch_{number}_metrics.json")


def test_every_picture_of_a_judge_is_drawn_beside_its_untrained_model(finished: Path) -> None:
    main(["--output_dir", str(finished / "out")])
    folder = finished / "out" / "mi_analysis" / "training_visualizations"
    assert {path.name for path in folder.iterdir()} >= PAGES and (folder / "index.html").is_file()
    record = record_in(finished / "out")
    assert [picture.failure for picture in record.pictures] == [None] * 5
    assert record_in(finished / "out", 0).metrics["accuracy"] != record.metrics["accuracy"] or record.metrics["auroc"]
    layers = next(picture for picture in record.pictures if picture.name == "layer_activation")
    assert layers.facts["n_frozen"] == N_FROZEN + 1 and layers.facts["moved_frozen_layers"] == []


def test_without_advanced_pictures_and_without_an_untrained_model(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = tmp_path / "judge"
    judge.mkdir()
    for path in (finished / "out" / "safety_judge").iterdir():
        (judge / path.name).write_bytes(path.read_bytes())
    state = json.loads((judge / "judge.json").read_text(encoding="utf-8"))
    (judge / "judge.json").write_text(json.dumps(state | {"base_model": "results/gone"}), encoding="utf-8")
    main(["--checkpoint", str(judge), "--output_dir", str(tmp_path), "--no-run_advanced_mi", "--split", "test"])
    assert "nothing is compared with the time before training: results/gone: " in capsys.readouterr().out
    record = record_in(tmp_path)
    assert [one.name for one in record.pictures] == ["token_attribution", "layer_activation", "circuit_comparison"]
    assert not (tmp_path / "mi_analysis" / "training_visualizations" / "epoch_0_metrics.json").exists()
    with pytest.raises(UserError, match="nowhere"):
        main(["--checkpoint", str(judge), "--output_dir", str(tmp_path), "--untrained", str(tmp_path / "nowhere")])


def asked(finished: Path, output_dir: Path, checkpoint: str, *more: str) -> list[str]:
    """A model that is no judge, asked as the judge of `finished`."""
    words = ("--question", QUESTION, "--safe_word", "no", "--unsafe_word", "yes", "--max_length", str(MAX_LENGTH))
    where = ("--checkpoint", checkpoint, "--output_dir", str(output_dir), "--data", str(finished / "data"))
    return [*words, *where, "--no-run_advanced_mi", *more]


def test_an_adapter_is_drawn_as_the_checkpoint_into_which_it_is_merged(finished: Path, tmp_path: Path) -> None:
    adapted = with_adapter(judge_model())
    save_adapter(adapted, tmp_path / "adapter")
    save_model(adapted.merge_and_unload(), tmp_path / "merged")
    base = str(finished / "base")
    main(asked(finished, tmp_path / "a", str(tmp_path / "adapter"), "--base-model", base))
    main(asked(finished, tmp_path / "m", str(tmp_path / "merged"), "--base-model", base))
    adapter, merged = (record_in(tmp_path / name, 1) for name in ("a", "m"))
    assert [picture.failure for picture in adapter.pictures] == [None] * 3
    assert adapter.metrics == pytest.approx(merged.metrics, abs=1e-4)
    assert adapter.metrics != record_in(tmp_path / "a", 0).metrics
    frozen = [
        next(picture for picture in record.pictures if picture.name == "layer_activation").facts
        for record in (adapter, merged)
    ]
    assert frozen[0]["n_frozen"] == 1 and frozen[0]["moved_frozen_layers"] == [], "the embeddings alone are not adapted"
    assert frozen[1]["n_frozen"] == 0, "nobody says what of another model did not learn"


def test_nothing_is_compared_with_a_model_of_other_tokens_or_another_size(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = save_model(judge_model(), tmp_path / "checkpoint")
    other = save_model(judge_model(), tmp_path / "other")
    tokens = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    names = sorted(tokens["model"]["vocab"], key=tokens["model"]["vocab"].__getitem__)
    swapped = tokens["model"]["vocab"]
    swapped[names[-1]], swapped[names[-2]] = swapped[names[-2]], swapped[names[-1]]
    (other / "tokenizer.json").write_text(json.dumps(tokens), encoding="utf-8")
    main(asked(finished, tmp_path / "out", str(checkpoint), "--base-model", str(other)))
    assert "its tokens are others" in capsys.readouterr().out
    assert not (tmp_path / "out" / "mi_analysis" / "training_visualizations" / "epoch_0_metrics.json").exists()
    wide = save_model(tiny_model(width=64), tmp_path / "wide")
    for untrained, reason in ((other, "its tokens are others"), (wide, "its hidden_size is 64")):
        with pytest.raises(UserError, match=reason):
            main(asked(finished, tmp_path / "out", str(checkpoint), "--untrained", str(untrained)))


def test_a_model_in_the_hubs_cache_is_found_by_its_name(finished: Path, tmp_path: Path) -> None:
    put_into_cache(tmp_path / "home", "tiny/checkpoint", save_model(judge_model(), tmp_path / "checkpoint"), "a" * 40)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE_"))}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = asked(finished, tmp_path / "out", "tiny/checkpoint", "--base-model", str(finished / "base"))
    session = subprocess.run(
        [sys.executable, PROJECT_ROOT / "src" / "run_mi_analysis.py", *command],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert session.returncode == 0, session.stderr
    assert [picture.failure for picture in record_in(tmp_path / "out", 1).pictures] == [None] * 3


def test_a_checkpoint_of_the_trainer_is_asked_as_configured_with_its_bases_tokenizer(
    finished: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint-3"
    trainer = Trainer(model=judge_model(), args=TrainingArguments(output_dir=str(tmp_path), report_to="none"))
    trainer.state.epoch = 1.5
    trainer.save_model(str(checkpoint))
    trainer.state.save_to_json(str(checkpoint / "trainer_state.json"))
    overrides = {"model.base": str(finished / "base"), "training.freeze_layers": 1, "training.max_length": 80}
    record = record_of(find_model(str(checkpoint)), load_judge_config("organism", overrides))
    assert (record.epoch, number_of(record), record.max_length, record.frozen_blocks) == (1.5, 2, 80, 1)
    assert tokenizer_of(str(checkpoint), record).get_vocab() == tokenizer().get_vocab()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--checkpoint", "{tmp}"], "holds no saved model"),
        (["--checkpoint", "{tmp}/missing"], "holds no saved model"),
        (["--data", "{tmp}/nothing"], "is no folder of train.jsonl"),
        (["--visualization_budget", "-1"], "visualization_budget"),
    ],
)
def test_bad_input_is_one_line(options: list[str], reason: str, finished: Path, tmp_path: Path) -> None:
    given = [option.format(tmp=tmp_path) for option in options]
    with pytest.raises(UserError, match=reason) as caught:
        main(["--output_dir", str(finished / "out"), *given])
    assert "\n" not in caught.value.message


def test_no_option_of_the_configuration_file_is_needed(tmp_path: Path) -> None:
    """The defaults name the folder that the training writes."""
    config = read_yaml(CONFIG_FILE)
    file = tmp_path / "judge.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(UserError, match="safety_judge: holds no saved model"):
        main(["--output_dir", str(tmp_path / "empty"), "--config", str(file)])
