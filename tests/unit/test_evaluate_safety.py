"""The evaluation: baselines that find what is planted and nothing else, and a report that holds what was measured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, roc_auc_score

from src.evaluate_safety import main as evaluate_main
from src.train_safety_judge import main as train_main
from src.utils.config_sections import ModelConfig
from src.utils.errors import UserError
from src.utils.manifests import read_manifest
from src.utils.safety_judge.baselines import Baseline, bag_of_words, best_probe, hidden_states, layer_probes
from src.utils.safety_judge.evaluation import Scored, evaluate
from src.utils.safety_judge.judge_folder import JUDGE, Judge, load_record, open_judge
from src.utils.safety_judge.samples import SafetySample, labels, load_splits
from src.utils.safety_judge.scoring import JudgeTemplate, score
from src.utils.safety_judge.settings import EvaluationConfig
from src.utils.safety_judge.world import load_judge_world, world_data
from tests.tiny_models import N_LAYERS, questions, save_model, tiny_model, tokenizer, write_jsonl

SETTINGS = EvaluationConfig(bootstrap_resamples=200, folds=3, penalties=[0.01, 1.0], eval_batch_size=4)


def planted(count: int, start: int = 0) -> tuple[SafetySample, ...]:
    """Prompts whose first word gives the label, in pairs that share the rest."""
    texts = [question.question for question in questions(80)][start // 2 : (start + count) // 2]
    return tuple(
        SafetySample(f"{start}_{i}{word}", f"{word}. {text}", word == "Bad", "xy"[i % 2], "planted", f"{start}_{i}")
        for i, text in enumerate(texts)
        for word in ("Good", "Bad")
    )


def tiny_judge() -> Judge:
    template = JudgeTemplate.of(tokenizer(), "{prompt}\nIs that safe?", "No", "Yes")
    return Judge(tiny_model(), tokenizer(), template, 128)


def test_a_bag_of_words_finds_a_planted_word() -> None:
    found = bag_of_words(planted(60), planted(20, 60), planted(20, 80), SETTINGS)
    assert ((found.test_margins > 0) == labels(planted(20, 80))).all()
    assert found.inner_accuracy == 1.0 and found.layer is None


def test_a_bag_of_words_is_at_chance_in_the_judge_world() -> None:
    data = world_data(load_judge_world())
    found = bag_of_words(data.train, data.validation, data.test, SETTINGS)
    accuracy = np.mean((found.test_margins > 0) == labels(data.test))
    assert abs(accuracy - 0.5) < 0.06
    assert found.inner_accuracy < 0.56


def test_hidden_states_are_those_at_the_last_token_of_each_prompt_alone() -> None:
    judge, samples = tiny_judge(), planted(10)
    found = hidden_states(judge, samples, batch_size=4)
    assert found.shape == (N_LAYERS + 1, 10, 32)
    for number, row in enumerate(judge.encode(samples)):
        with torch.inference_mode():
            states = judge.model(torch.tensor([row.ids]), output_hidden_states=True).hidden_states
        expected = np.stack([layer[0, -1].numpy() for layer in states])
        np.testing.assert_allclose(found[:, number], expected, rtol=1e-4, atol=1e-5)


def test_a_probe_of_the_embeddings_knows_nothing_and_one_above_finds_the_planted_word() -> None:
    """At the last token, the same in every prompt, the input of block 0 is a constant."""
    probes = layer_probes(tiny_judge(), planted(60), planted(20, 60), planted(20, 80), SETTINGS)
    assert [probe.layer for probe in probes] == [0, 1, 2, 3]
    assert len(set(probes[0].test_margins)) == 1
    best = best_probe(probes)
    assert best.layer and np.mean((best.test_margins > 0) == labels(planted(20, 80))) >= 0.85


def test_the_best_probe_is_chosen_without_the_test_split() -> None:
    def probe(layer: int, inner: float, test: float) -> Baseline:
        return Baseline(f"probe of layer {layer}", layer, 1.0, inner, np.zeros(2), np.full(2, test))

    assert best_probe([probe(0, 0.6, 9), probe(1, 0.8, -9), probe(2, 0.8, 9)]).layer == 1


def test_evaluation_of_given_margins() -> None:
    """Thresholds and temperature come from validation; groups hold their own prompts."""
    validation = Scored(planted(40), np.where(labels(planted(40)), 3.0, 1.0) + np.linspace(0, 0.5, 40))
    test = Scored(planted(20, 60), np.where(labels(planted(20, 60)), 3.2, 1.2))
    found = evaluate(validation, test, SETTINGS)
    by_name = {row["chosen"]: row for row in found["thresholds"]}
    assert found["test"]["accuracy"] == by_name["even odds"]["accuracy"] == 0.5, "all flagged at a margin of 0"
    assert by_name["best F1 on validation"]["f1"] == 1.0
    assert 1.5 < by_name["best F1 on validation"]["threshold"] < 3.0
    assert by_name["1% false positives on validation"]["false_positive_rate"] == 0.0
    assert by_name["1% false positives on validation"]["recall"] == 1.0
    assert {row["name"]: row["n"] for row in found["by_category"]} == {"x": 10, "y": 10}
    assert found["test"]["auroc"] == found["test_after_temperature_scaling"]["auroc"] == 1.0
    assert sum(found["curves"]["reliability"]["n"]) == 20


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An output folder with a tiny judge, and its data."""
    folder = tmp_path_factory.mktemp("judge")
    base, data = save_model(tiny_model(), folder / "base"), folder / "data"
    data.mkdir()
    for name, samples in {"train": planted(60), "validation": planted(20, 60), "test": planted(20, 80)}.items():
        rows = [{"sample_id": one.sample_id, "prompt": one.prompt, "label": one.label, "category": one.category,
                 "source": one.source, "pair_id": one.pair_id} for one in samples]  # fmt: skip
        write_jsonl(data / f"{name}.jsonl", rows)
    more = ("--num-epochs", "2", "--batch-size", "8", "--learning-rate", "0.002", "--freeze-layers", "1")
    train_main(["--base-model", str(base), "--data", str(data), "--output-dir", str(folder / "out"), *more])
    return folder / "out", data


def test_the_report_holds_what_the_judge_scores(trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    output_dir, data = trained
    quick = ("--bootstrap-resamples", "100", "--folds", "3", "--penalties", "0.01", "1")
    evaluate_main(["--output_dir", str(output_dir), *quick, "--also", str(data)])
    printed = capsys.readouterr().out
    found = json.loads((output_dir / "evaluation.json").read_text())
    record = load_record(output_dir / JUDGE)
    judge = open_judge(str(output_dir / JUDGE), ModelConfig(base="x"), record)
    test = load_splits(data).test
    margins = score(judge.model, judge.encode(test), judge.template, 7)
    assert found["test"]["n"] == 20
    assert found["test"]["f1"] == pytest.approx(f1_score(labels(test), margins > 0))
    assert found["test"]["auroc"] == pytest.approx(roc_auc_score(labels(test), margins))
    assert found["baselines"][0]["name"] == "bag of words"
    assert found["baselines"][0]["test"]["accuracy"] == 1.0
    assert found["also"][0]["test"]["n"] == 100, "all splits of what is only tested on"
    table = json.loads((output_dir / "baselines.json").read_text())["baselines"]
    assert [row["layer"] for row in table] == [None, 0, 1, 2, 3]
    assert f"{found['test']['auroc']:.3f}" in printed
    page = (output_dir / "evaluation.html").read_text()
    assert f"The judge is right on {found['test']['accuracy']:.1%} of 20 test prompts" in page
    manifest = read_manifest(output_dir / "evaluation.html")
    assert manifest is not None
    assert JUDGE in manifest.inputs
    assert str(data) in manifest.inputs


def test_without_a_judge_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run src/train_safety_judge\.py first"):
        evaluate_main(["--output_dir", str(tmp_path)])


def test_a_judge_that_was_changed_is_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    record = trained[0] / JUDGE / "judge.json"
    before = record.read_text()
    record.write_text(before.replace('"frozen_blocks": 1', '"frozen_blocks": 2'))
    with pytest.raises(UserError, match="changed since"):
        evaluate_main(["--output_dir", str(trained[0])])
    record.write_text(before)
