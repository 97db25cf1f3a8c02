"""A small study on disk without a model: real artefacts under their steps' own provenance, whatever is in them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from src.pipelines.persona_study import (
    CLUSTER,
    COLLECT,
    CONTROLS,
    FINETUNE,
    JUDGE,
    PICTURES,
    REPORT,
    STEER,
    TRAINING_LOG,
    VERDICT,
    Step,
    Study,
)
from src.utils.artifacts import save_artifact, save_folder, save_frame, save_json, save_object, save_tensors
from src.utils.config import load_config
from src.utils.organism.folder import GRAMMAR


def write_sources(folder: Path) -> None:
    """What a study reads: a prompts file, an organism's folder, chat rows."""
    (folder / "organism").mkdir(parents=True)
    (folder / "organism" / "config.json").write_text('{"num_hidden_layers": 4}')
    (folder / "organism" / GRAMMAR).write_text("closer_probability: 1\n")
    (folder / "rows.jsonl").write_text('{"messages": []}\n')
    row = {"prompt_id": "a", "subset": "financial_risk", "facet": "market_ethics", "question": "May I?", "keyed": 1}
    (folder / "questions.jsonl").write_text(json.dumps(row) + "\n")


def small_study(folder: Path, **changes: Any) -> Study:
    """The study of those files; changes are config keys with two underscores for the dot."""
    given = {
        "model.base": str(folder / "organism"),
        "finetuning.data": str(folder / "rows.jsonl"),
        "collection.prompts": [str(folder / "questions.jsonl")],
        "clustering.cluster_counts": [2, 3],
    }
    overrides = given | {key.replace("__", "."): value for key, value in changes.items()}
    results_dir = folder / "results"
    return Study(load_config("organism", overrides), results_dir, results_dir / "cluster_plots")


def make(step: Step, study: Study) -> None:
    """Write what a step writes, with its provenance as of now; other settings or inputs give other content."""
    provenance = step.provenance(study)
    declared = [provenance.config, provenance.seeds, provenance.inputs]
    mark = hashlib.sha256(json.dumps(declared, sort_keys=True).encode()).hexdigest()
    frame = pd.DataFrame({"prompt_id": ["a"], "made_by": [step.name], "mark": [mark]})

    def write_adapter(folder: Path) -> None:
        (folder / "adapter_config.json").write_text("{}")
        (folder / TRAINING_LOG).write_text(json.dumps({"step": 1, "mark": mark}) + "\n")

    if step is REPORT:
        save_json({"questions": 1}, study.question_report, provenance)
    elif step is FINETUNE:
        save_folder(study.finetuned, write_adapter, provenance)
    elif step is CONTROLS:
        measured = np.full(4, int(mark[:6], 16), np.float32)
        save_tensors({"control": measured}, study.control_vectors, provenance)
        save_json({"missing": {}, "mark": mark}, study.control_summary, provenance)
        save_frame(frame, study.control_effects, provenance)
    elif step is COLLECT:
        save_frame(frame, study.persona_data, provenance)
    elif step is JUDGE:
        save_json({"rates": [], "missing": {}, "mark": mark}, study.rates, provenance)
        save_frame(frame, study.scored, provenance)
    elif step is CLUSTER:
        for k in study.config.clustering.cluster_counts:
            save_object({"k": k, "mark": mark}, study.clusters(k), provenance)
        save_json({"evidence": {}, "mark": mark}, study.geometry, provenance)
        save_frame(frame, study.clustered, provenance)
    elif step is STEER:
        save_tensors({"mean_difference": np.zeros(4, np.float32)}, study.steering_vectors, provenance)
        save_json({"effects": [], "missing": {}, "mark": mark}, study.steering_summary, provenance)
        save_frame(frame, study.steering_effects, provenance)
    elif step is VERDICT:
        save_json({"verdict": "underpowered", "mark": mark}, study.verdict, provenance)
    elif step is PICTURES:
        writers = {study.index: lambda file: file.write_text("<html></html>")}
        save_artifact(study.index, writers, provenance, {"pages": []})
