"""What each step of the persona study reads, hashed, and what its artefact may lack; a missing input is an error."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from src.pipelines.persona_folder import Study
from src.pipelines.persona_settings import JUDGE_INPUT
from src.pipelines.step import check_same_source, made_by
from src.utils.artifacts import load_json
from src.utils.config import resolve_path
from src.utils.config_sections import JudgeKind
from src.utils.errors import UserError
from src.utils.judging.judgement import NO_ANSWER
from src.utils.manifests import hash_inputs, read_manifest, sha256_path
from src.utils.model_files import fingerprint, public_name
from src.utils.organism.folder import grammar_of


def prompt_inputs(study: Study) -> dict[str, str]:
    """The question files with their places: their order is that of the frame, and two may have one name."""
    return hash_inputs({f"prompts {i} {path.name}": path for i, path in enumerate(study.prompt_files, start=1)})


def finetuning_inputs(study: Study) -> dict[str, str]:
    data = study.finetuning_data
    if not data.is_file():
        raise UserError(
            f"{study.config.finetuning.data}: does not exist; give chat rows with --data FILE.jsonl (or .jsonl.gz)"
        )
    return {f"data {data.name}": sha256_path(data), "base model": fingerprint(study.config.model.base)}


def control_inputs(study: Study) -> dict[str, str]:
    """The questions, the base model, the judge, and the rows: an organism's grammar, or the files that are named."""
    files = {f"rows {name}": resolve_path(path) for name, path in study.config.controls.data.items()}
    missing = next((path for path in files.values() if not path.is_file()), None)
    if missing is not None:
        raise UserError(f"controls.data: {missing}: does not exist; name chat rows (.jsonl or .jsonl.gz)")
    if not files:
        files["grammar"] = grammar_of(study.config.model.base)
    inputs = prompt_inputs(study) | hash_inputs(files) | {"base model": fingerprint(study.config.model.base)}
    return inputs | judges_inputs(study, study.config.judging.judges[:1])


def collection_inputs(study: Study) -> dict[str, str]:
    if study.config.model.em is None:
        made_by("02_finetune_lora (or name a model with --em-model)", study, study.finetuned)
    return prompt_inputs(study) | {
        "base model": fingerprint(study.config.model.base),
        "EM model": fingerprint(study.em_model),
    }


def judging_inputs(study: Study) -> dict[str, str]:
    inputs = made_by("03_collect_activations", study, study.persona_data)
    return inputs | judges_inputs(study, study.config.judging.judges)


def judges_inputs(study: Study, judges: Sequence[tuple[JudgeKind, str | None]]) -> dict[str, str]:
    """What judges are made of: the organism's of its grammar, a local one of weights, an API's of nothing here."""
    inputs = {}
    for kind, given in judges:
        model = study.config.judging.model_of(kind, given)
        if kind == "organism":
            inputs["grammar"] = sha256_path(grammar_of(study.config.model.base))
        elif kind == "local" and model:
            inputs[f"{JUDGE_INPUT}{public_name(model)}"] = fingerprint(model)
    return inputs


def judging_companions(study: Study) -> list[Path]:
    return [study.rates, *([study.agreement] if study.config.judging.second_judge else [])]


def collected(study: Study) -> dict[str, str]:
    """The frame of step 3, and the tensors beside it where its manifest lists them."""
    data = study.persona_data
    inputs = made_by("03_collect_activations", study, data)
    tensors, manifest = data.with_suffix(".safetensors").name, read_manifest(data)
    if manifest is not None and tensors in manifest.files:
        inputs[tensors] = manifest.files[tensors]
    return inputs


def clustering_inputs(study: Study) -> dict[str, str]:
    """The scored frame, and the activations of every layer behind it."""
    inputs = made_by("04_judge_responses", study, study.scored) | collected(study)
    check_same_source(study.scored, study.persona_data, "04_judge_responses")
    if study.config.clustering.token_level:
        inputs |= made_by("03_collect_activations --tokens", study, study.persona_tokens)
    return inputs


def steering_inputs(study: Study) -> dict[str, str]:
    """The recorded activations, the clusters where vectors are made of them, and the model that is steered."""
    data, inputs = study.persona_data, collected(study)
    if needs_controls(study):
        inputs |= made_by("02_finetune_controls", study, study.control_vectors)
    if needs_clusters(study):
        inputs |= made_by("05_pca_and_clustering", study, study.clustered)
        check_same_source(study.clustered, study.scored, "05_pca_and_clustering")
        check_same_source(study.scored, data, "04_judge_responses")
    if study.config.steering.model == "em":
        inputs["EM model"] = fingerprint(study.em_model)
    inputs["base model"] = fingerprint(study.config.model.base)
    return inputs | judges_inputs(study, study.config.judging.judges[:1])


def verdict_inputs(study: Study) -> dict[str, str]:
    """The evidence: what step 6 did, what the controls did where there are any; and the geometry beside it."""
    inputs = made_by("06_steer_personas", study, study.steering_effects)
    if study.has_controls:
        inputs |= made_by("02_finetune_controls", study, study.control_effects)
    inputs |= made_by("04_judge_responses", study, study.rates)
    if has_geometry(study):
        inputs |= made_by("05_pca_and_clustering", study, study.geometry)
    return inputs


def picture_inputs(study: Study) -> dict[str, str]:
    config = study.config
    clusters = [study.clusters(k) for k in config.clustering.cluster_counts]
    inputs = made_by("04_judge_responses", study, *judging_companions(study))
    inputs |= made_by("05_pca_and_clustering", study, study.clustered)
    inputs |= made_by("05_pca_and_clustering (or give the --cluster-counts that it had)", study, *clusters)
    check_same_source(study.clustered, study.scored, "05_pca_and_clustering")
    if has_geometry(study):
        inputs |= made_by("05_pca_and_clustering", study, study.geometry)
    if has_steering(study):
        inputs |= made_by("06_steer_personas", study, study.steering_summary)
    if has_verdict(study):
        inputs |= made_by("07_decide_verdict", study, study.verdict)
    if study.has_own_finetune:
        inputs |= made_by("02_finetune_lora", study, study.finetuned)
    return inputs


def needs_controls(study: Study) -> bool:
    return bool({"control", "control_own"} & set(study.config.steering.vectors))


def needs_clusters(study: Study) -> bool:
    return "cluster" in study.config.steering.vectors


def has_geometry(study: Study) -> bool:
    """Whether there is a description of the activations that are there now, with the scores that are there now."""
    made, scored = read_manifest(study.geometry), read_manifest(study.scored)
    return bool(made and scored and made.inputs.get(study.scored.name) == scored.sha256)


def has_steering(study: Study) -> bool:
    """Whether there are effects of steering with vectors of the activations that are there now."""
    made, data = read_manifest(study.steering_summary), read_manifest(study.persona_data)
    return bool(made and data and made.inputs.get(study.persona_data.name) == data.sha256)


def has_verdict(study: Study) -> bool:
    """Whether there is a verdict on the steering that is there now."""
    made, steered = read_manifest(study.verdict), read_manifest(study.steering_effects)
    return bool(made and steered and made.inputs.get(study.steering_effects.name) == steered.sha256)


def missing_judgements(study: Study) -> str | None:
    """What a judge has not judged, if anything; what has no answer no judge can."""
    missing = [load_json(study.rates)["missing"]]
    if study.config.judging.second_judge:
        missing += load_json(study.agreement).get("missing", {}).values()
    could_be = [{why: n for why, n in one.items() if not why.startswith(NO_ANSWER)} for one in missing]
    return next(filter(None, map(gap, could_be)), None)


def missing_steering_judgements(study: Study) -> str | None:
    """What of the steered answers has not been judged, if anything."""
    return gap(load_json(study.steering_summary)["missing"])


def missing_control_judgements(study: Study) -> str | None:
    """What of the controls' answers has not been judged, if anything."""
    return gap(load_json(study.control_summary)["missing"])


def gap(missing: Mapping[str, int]) -> str | None:
    """The most common reason of those that `count_reasons` has, None if there are none."""
    return next((f"not judged: {count} x {reason}" for reason, count in missing.items()), None)
