"""What makes each step stale: a change runs exactly the steps that depend on it, and those behind them."""

from pathlib import Path

import pytest

from src.pipelines.persona_inputs import has_geometry, has_steering
from src.pipelines.persona_settings import without_judging
from src.pipelines.persona_study import (
    CLUSTER,
    COLLECT,
    CONTROLS,
    FINETUNE,
    JUDGE,
    PICTURES,
    REPORT,
    STEER,
    STEPS,
    VERDICT,
    Step,
    Study,
)
from src.pipelines.runner import decide, plan
from src.utils.artifacts import load_frame, save_json
from src.utils.config import PROJECT_ROOT
from src.utils.errors import UserError
from tests.study_files import make, small_study, write_sources

NAMES = [step.name for step in STEPS]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole study, all steps made."""
    write_sources(tmp_path)
    study = small_study(tmp_path)
    for step in STEPS:
        make(step, study)
    return tmp_path


def stale(study: Study) -> list[str]:
    """The steps that a run would make, by what a dry run says."""
    return [decision.step.name for decision in plan(STEPS, study, forced=False) if decision.runs]


def remade(study: Study) -> list[str]:
    """The steps that a run makes, deciding each after those before it have run."""
    done = []
    for step in STEPS:
        if decide(step, study, forced=False).runs:
            make(step, study)
            done.append(step.name)
    return done


def reasons(study: Study) -> dict[str, str]:
    return {decision.step.name: decision.reason for decision in plan(STEPS, study, forced=False)}


def test_a_study_just_made_is_kept_whole(folder: Path) -> None:
    assert stale(small_study(folder)) == remade(small_study(folder)) == []
    assert set(reasons(small_study(folder)).values()) == {"up to date"}


BEHIND_CLUSTERS = (CLUSTER, VERDICT, PICTURES)  # the vectors of the organism's steering know no clusters
BEHIND_STEERING = (STEER, VERDICT, PICTURES)


@pytest.mark.parametrize(
    ("change", "steps", "reason"),
    [
        ({"finetuning__learning_rate": 2e-3}, STEPS[1:], "config changed: finetuning.learning_rate 0.001 -> 0.002"),
        ({"finetuning__seed": 3}, STEPS[1:], "seeds changed: finetuning 0 -> 3"),
        ({"model__dtype": "bfloat16"}, STEPS[1:], 'config changed: model.dtype "auto" -> "bfloat16"'),
        (
            {"controls__limit": 40},
            (CONTROLS, STEER, VERDICT, PICTURES),
            "config changed: controls.limit 120 -> 40",
        ),
        ({"collection__limit": 40}, STEPS[3:], "config changed: collection.limit null -> 40"),
        ({"collection__seed": 9}, STEPS[3:], "seeds changed: collection 0 -> 9"),
        (
            {"judging__em_threshold": 60.0},
            (CONTROLS, *STEPS[4:]),
            "config changed: judging.em_threshold 70.0 -> 60.0",
        ),
        ({"clustering__layer": 4}, BEHIND_CLUSTERS, "config changed: clustering.layer 3 -> 4"),
        (
            {"clustering__cluster_counts": [2]},
            BEHIND_CLUSTERS,
            "config changed: clustering.cluster_counts [2, 3] -> [2]",
        ),
        ({"clustering__whiten": True}, BEHIND_CLUSTERS, "config changed: clustering.whiten false -> true"),
        (
            {"clustering__layers_jointly": [2, 3]},
            BEHIND_CLUSTERS,
            "config changed: clustering.layers_jointly [] -> [2, 3]",
        ),
        ({"geometry__factors": 4}, BEHIND_CLUSTERS, "config changed: geometry.factors 10 -> 4"),
        ({"geometry__probes": False}, BEHIND_CLUSTERS, "config changed: geometry.probes true -> false"),
        ({"steering__limit": 9}, BEHIND_STEERING, "config changed: steering.limit 60 -> 9"),
        ({"steering__seed": 4}, BEHIND_STEERING, "seeds changed: steering 0 -> 4"),
        ({"steering__max_new_tokens": 9}, BEHIND_STEERING, "config changed: collection.max_new_tokens 64 -> 9"),
        ({"verdict__plantings": 30}, (VERDICT, PICTURES), "config changed: verdict.plantings 200 -> 30"),
    ],
)
def test_a_changed_setting_makes_its_step_and_those_that_depend_on_it_stale(
    change: dict[str, object], steps: tuple[Step, ...], reason: str, folder: Path
) -> None:
    study = small_study(folder, **change)
    expected = [step.name for step in steps]
    assert reasons(study)[expected[0]] == reason
    assert stale(study) == expected
    assert remade(study) == expected  # a dry run says what a run does
    assert stale(study) == remade(study) == []


def test_vectors_of_clusters_follow_the_clusters(folder: Path) -> None:
    study = small_study(folder, steering__vectors=["cluster"], steering__cluster_count=3)
    assert remade(study) == [STEER.name, VERDICT.name, PICTURES.name]
    again = small_study(folder, steering__vectors=["cluster"], steering__cluster_count=3, clustering__layer=4)
    assert stale(again) == remade(again) == [CLUSTER.name, STEER.name, VERDICT.name, PICTURES.name]
    make(JUDGE, small_study(folder, judging__em_threshold=60.0))
    with pytest.raises(UserError, match=r"was made from an older final_dataset_with_em_scores.pkl; run 05_pca"):
        STEER.provenance(again)


def test_the_answers_of_steering_outlive_another_judge(folder: Path) -> None:
    weights = folder / "m" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"first")
    declared = without_judging(STEER.provenance(small_study(folder)))
    local = {"judging__judge": "local", "judging__judge_model": str(weights.parent)}
    other = small_study(folder, judging__em_threshold=60.0, **local)
    assert decide(STEER, other, forced=False).runs
    again = without_judging(STEER.provenance(other))
    assert (again.config, again.inputs, again.seeds) == (declared.config, declared.inputs, declared.seeds)
    assert "judging" not in declared.config and "grammar" not in declared.inputs
    for step in (CONTROLS, STEER):
        make(step, other)
    weights.write_bytes(b"other")
    for step in (CONTROLS, JUDGE, STEER):
        assert "judge m" in step.provenance(other).inputs  # no path of this machine
    assert {decide(step, other, forced=False).reason for step in (CONTROLS, STEER)} == {"input judge m changed"}
    warmer = without_judging(STEER.provenance(small_study(folder, collection__temperature=0.2)))
    assert warmer.config != declared.config


def test_pictures_leave_out_steering_of_other_activations(folder: Path) -> None:
    study = small_study(folder)
    assert has_steering(study) and study.steering_summary.name in PICTURES.provenance(study).inputs
    make(COLLECT, small_study(folder, collection__seed=9))
    assert not has_steering(study)
    study.steering_summary.unlink()
    assert not has_steering(study)


def test_the_verdict_leaves_out_the_geometry_of_other_answers(folder: Path) -> None:
    study = small_study(folder)
    for step in (VERDICT, PICTURES):
        assert study.geometry.name in step.provenance(study).inputs
    make(JUDGE, small_study(folder, judging__em_threshold=60.0))
    assert not has_geometry(study) and study.geometry.name not in VERDICT.provenance(study).inputs
    study.geometry.unlink()
    assert not has_geometry(study)


def test_the_steered_em_model_is_an_input(folder: Path) -> None:
    assert "EM model" not in STEER.provenance(small_study(folder)).inputs
    assert "EM model" in STEER.provenance(small_study(folder, steering__model="em")).inputs


@pytest.mark.parametrize(
    "change", [{"finetuning__save_steps": 3}, {"model__device_map": "auto"}, {"geometry__jobs": 2}]
)
def test_what_changes_no_result_makes_nothing_stale(change: dict[str, object], folder: Path) -> None:
    assert stale(small_study(folder, **change)) == []


def test_a_changed_file_makes_its_readers_stale(folder: Path) -> None:
    study = small_study(folder)
    (folder / "rows.jsonl").write_text("other rows\n")
    assert stale(study) == [NAMES[1], *NAMES[3:]] and reasons(study)[NAMES[1]] == "input data rows.jsonl changed"
    (folder / "rows.jsonl").write_text('{"messages": []}\n')
    assert stale(study) == []

    questions = folder / "questions.jsonl"
    questions.write_text(questions.read_text().replace("May I?", "May we?"))
    assert stale(study) == [NAMES[0], *NAMES[2:]]


def test_two_prompt_files_of_one_name_are_two_inputs(folder: Path) -> None:
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "q.jsonl").write_text(name)
    both = [str(folder / name / "q.jsonl") for name in ("one", "two")]
    study = small_study(folder, collection__prompts=both)
    make(REPORT, study)
    assert not decide(REPORT, study, forced=False).runs
    (folder / "one" / "q.jsonl").write_text("changed")
    assert decide(REPORT, study, forced=False).runs
    make(REPORT, study)
    assert decide(REPORT, small_study(folder, collection__prompts=both[::-1]), forced=False).runs  # the order counts


def test_another_grammar_is_another_judge(folder: Path) -> None:
    (folder / "organism" / "grammar.yaml").write_text("closer_probability: 0.5\n")
    assert reasons(small_study(folder))[JUDGE.name] in (
        "input grammar changed",
        "reads what 03_collect_activations makes",
    )
    assert decide(JUDGE, small_study(folder), forced=False).reason == "input grammar changed"
    assert stale(small_study(folder)) == NAMES[1:]  # the model's folder is hashed whole


def test_what_a_second_judge_lacks_is_asked_for_again(folder: Path) -> None:
    study = small_study(folder, judging__judge="openrouter", judging__second_judge="gemini")
    make(JUDGE, study)
    for missing, reason in (({}, "up to date"), ({"left out": 3}, "not judged: 3 x left out")):
        by_judge = {"openrouter:a": {}, "gemini:b": missing}
        save_json({"missing": by_judge}, study.agreement, JUDGE.provenance(study))
        assert decide(JUDGE, study, forced=False).reason == reason


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("question_report.json", 0),
        ("control_effects.pkl", 2),
        ("control_summary.json", 2),
        ("control_vectors.safetensors", 2),
        ("persona_data.pkl", 3),
        ("final_dataset_with_em_scores.pkl", 4),
        ("em_rates.json", 4),
        ("final_dataset_with_em_scores_and_clusters.pkl", 5),
        ("em_pca_clusters_2.pkl", 5),
        ("em_pca_clusters_3.pkl", 5),
        ("decomposition_geometry.json", 5),
        ("steering_effects.pkl", 6),
        ("steering_summary.json", 6),
        ("steering_vectors.safetensors", 6),
        ("decomposition_verdict.json", 7),
        ("cluster_plots/index.html", 8),
    ],
)
@pytest.mark.parametrize("damage", ["lost", "half-written"])
def test_a_lost_or_half_written_artefact_is_made_again(name: str, first: int, damage: str, folder: Path) -> None:
    study, path = small_study(folder), folder / "results" / name
    content = path.read_bytes()
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2])
    assert NAMES[first] in stale(study)
    assert remade(study) == [NAMES[first]]  # the same content again: nothing behind it has changed
    assert path.read_bytes() == content and stale(study) == []


def test_a_missing_input_names_the_step_that_makes_it(tmp_path: Path) -> None:
    write_sources(tmp_path)
    study = small_study(tmp_path)
    for step, maker in (
        (COLLECT, "02_finetune_lora"),
        (JUDGE, "03_collect"),
        (CLUSTER, "04_judge"),
        (STEER, "03_collect"),
        (VERDICT, "06_steer"),
        (PICTURES, "04_judge"),
    ):
        with pytest.raises(UserError, match=rf"does not exist; run {maker}"):
            step.provenance(study)
    for step in (FINETUNE, COLLECT, JUDGE, CLUSTER):
        make(step, study)
    with pytest.raises(
        UserError, match=r"clusters_9\.pkl: does not exist; run 05_pca\w* \(or give the --cluster-counts"
    ):
        PICTURES.provenance(small_study(tmp_path, clustering__cluster_counts=[2, 9]))
    with pytest.raises(UserError, match=r"nowhere\.jsonl: input prompts .* does not exist"):
        REPORT.provenance(small_study(tmp_path, collection__prompts=[str(tmp_path / "nowhere.jsonl")]))
    with pytest.raises(UserError, match=r"rows\.jsonl\.gz: does not exist; give chat rows with --data"):
        FINETUNE.provenance(small_study(tmp_path, finetuning__data=str(tmp_path / "rows.jsonl.gz")))
    with pytest.raises(UserError, match="nowhere"):
        FINETUNE.provenance(small_study(tmp_path, model__base=str(tmp_path / "nowhere")))


def test_a_named_em_model_needs_no_fine_tune(folder: Path) -> None:
    study = small_study(folder, model__em=str(folder / "results" / "adapters" / "entangled_risky_finance"))
    assert not FINETUNE.is_needed(study) and not study.has_own_finetune
    assert not decide(FINETUNE, study, forced=True).runs
    assert stale(study) == [PICTURES.name]  # the same weights; only the training curve goes
    assert set(PICTURES.provenance(study).inputs) == {
        "em_rates.json",
        "final_dataset_with_em_scores_and_clusters.pkl",
        "em_pca_clusters_2.pkl",
        "em_pca_clusters_3.pkl",
        "decomposition_geometry.json",
        "steering_summary.json",
        "decomposition_verdict.json",
    }
    assert "entangled_risky_finance" in PICTURES.provenance(small_study(folder)).inputs


def test_paths_of_a_study_are_those_of_the_contract(tmp_path: Path) -> None:
    study = Study(small_study(tmp_path).config, tmp_path, tmp_path / "plots")
    assert [str(step.artefact(study).relative_to(tmp_path)) for step in STEPS] == [
        "question_report.json",
        "adapters/entangled_risky_finance",
        "control_effects.pkl",
        "persona_data.pkl",
        "final_dataset_with_em_scores.pkl",
        "final_dataset_with_em_scores_and_clusters.pkl",
        "steering_effects.pkl",
        "decomposition_verdict.json",
        "plots/index.html",
    ]
    assert study.clusters(15) == tmp_path / "em_pca_clusters_15.pkl"
    assert all((PROJECT_ROOT / step.script).is_file() for step in STEPS)
    assert all(Path(step.script).stem == step.name for step in STEPS)


def test_provenance_declares_seeds_apart_and_no_paths(folder: Path) -> None:
    provenance = FINETUNE.provenance(small_study(folder))
    assert provenance.seeds == {"finetuning": 0} and "seed" not in provenance.config["finetuning"]
    assert provenance.config["finetuning"].keys().isdisjoint({"name", "data", "save_steps"})
    assert str(folder) not in repr([step.provenance(small_study(folder)) for step in STEPS])
    assert load_frame(small_study(folder).scored, made_by=JUDGE.name)["made_by"].tolist() == [JUDGE.name]
