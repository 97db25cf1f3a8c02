"""Ask base and EM model the study's questions and record their answers and activations.

    uv run python src/scripts/03_collect_activations.py --profile organism
    uv run python src/scripts/03_collect_activations.py --profile qwen3_4b --memory 80gb
    uv run python src/scripts/03_collect_activations.py --em-model my/adapter --prompts my_questions.jsonl --limit 50

Writes results/persona_data.pkl (one row a question and sample, mean activations at the configured layers) and
results/persona_data.safetensors (every layer, three arms). Layer l is TransformerLens's blocks.l.hook_resid_pre and
Hugging Face's hidden_states[l]. A stopped run continues at the first missing batch.
"""

import shutil
from collections.abc import Sequence

from tqdm import tqdm

from src.pipelines.persona_study import COLLECT
from src.pipelines.step_run import begin_step
from src.utils.artifacts import save_frame
from src.utils.cli import run_script
from src.utils.model_files import is_adapter
from src.utils.prompts import load_questions


def main(arguments: Sequence[str]) -> None:
    run = begin_step(COLLECT, __doc__, arguments)
    if run is None:
        return
    from src.utils.collection import ARMS, assemble, collect_arms, model_passes, open_work_dir, plan_collection
    from src.utils.models import check_checkpoint_fits, check_layers, load_adapter, load_model, load_tokenizer

    model, settings, em_model = run.config.model, run.config.collection, run.study.em_model
    check_layers(model.base, settings.layers)
    has_adapter = is_adapter(em_model)
    if not has_adapter:
        check_checkpoint_fits(model.base, em_model)
    tokenizer = load_tokenizer(model.base)
    plan = plan_collection(load_questions(run.study.prompt_files), tokenizer, settings)
    work_dir = open_work_dir(run.study.persona_data, run.provenance)

    passes = model_passes(
        base=lambda: load_model(model.base, model),
        adapter=(lambda base: load_adapter(base, em_model)) if has_adapter else None,
        checkpoint=lambda: load_model(em_model, model),
    )
    with tqdm(total=len(plan.prompts) * len(ARMS), unit="answer", desc="ask and record") as progress:
        collect_arms(plan, tokenizer, passes, work_dir, on_batch=lambda arm, rows: progress.update(rows))
    frame, tensors = assemble(plan, tokenizer, work_dir, settings.layers)
    save_frame(frame, run.study.persona_data, run.provenance, tensors)
    shutil.rmtree(work_dir)
    flagged = int(frame["flags"].map(len).gt(0).sum())
    print(f"{len(frame)} rows, {flagged} flagged: {run.study.persona_data}")


if __name__ == "__main__":
    run_script(main)
