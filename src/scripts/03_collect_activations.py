"""Ask base and EM model the study's questions and record their answers and activations.

    uv run python src/scripts/03_collect_activations.py --profile organism
    uv run python src/scripts/03_collect_activations.py --profile qwen3_4b --memory 80gb
    uv run python src/scripts/03_collect_activations.py --em-model my/adapter --prompts my_questions.jsonl --limit 50
    uv run python src/scripts/03_collect_activations.py --sites resid attn_out mlp_out --tokens --token-sites mlp_out
    uv run accelerate launch --num_processes 4 src/scripts/03_collect_activations.py --profile qwen3_4b

Writes results/persona_data.pkl (one row a question and sample, mean activations at the configured layers) and
results/persona_data.safetensors (every layer, three arms); with --tokens also results/persona_tokens/, token by token.
Layer l is TransformerLens's blocks.l.hook_resid_pre and Hugging Face's hidden_states[l]. A stopped run continues at
the first missing batch; with accelerate launch the batches are shared out, and the bytes are the same.
"""

import shutil
from collections.abc import Sequence

from src.pipelines.persona_study import COLLECT
from src.pipelines.step_run import begin_step
from src.utils.artifacts import save_folder, save_frame
from src.utils.cli import run_script
from src.utils.model_files import is_adapter
from src.utils.progress import progress_bar
from src.utils.prompts import load_questions
from src.utils.ranks import Ranks, join_ranks
from src.utils.shared_work import OnRows, Say, share_out


def main(arguments: Sequence[str]) -> None:
    run = begin_step(COLLECT, __doc__, arguments)
    if run is None:
        return
    from src.utils.collection import collect_arms, model_passes, open_work_dir, parts_folder, plan_collection
    from src.utils.collection_frame import assemble
    from src.utils.collection_parts import ARMS
    from src.utils.models import (
        check_checkpoint_fits,
        check_layers,
        load_adapter,
        load_model,
        load_tokenizer,
        text_config,
    )
    from src.utils.run_estimate import THREE_ARMS, estimate_run
    from src.utils.token_shards import gather_shards

    ranks = join_ranks()
    model, settings, em_model = run.config.model, run.config.collection, run.study.em_model
    check_layers(model.base, [*settings.layers, *(settings.token_layers or ())])
    has_adapter = is_adapter(em_model)
    if not has_adapter:
        check_checkpoint_fits(model.base, em_model)
    tokenizer = load_tokenizer(model.base)
    plan = plan_collection(load_questions(run.study.prompt_files), tokenizer, settings)
    if ranks.is_first:
        open_work_dir(run.study.persona_data, run.provenance)
        what, config = "prompts, three arms", text_config(model.base)
        if estimate := estimate_run(plan, THREE_ARMS, what, config, model.dtype, ranks.count):
            print(estimate, flush=True)
    ranks.wait()
    work_dir = parts_folder(run.study.persona_data)

    passes = model_passes(
        base=lambda: load_model(model.base, model),
        adapter=(lambda base: load_adapter(base, em_model)) if has_adapter else None,
        checkpoint=lambda: load_model(em_model, model),
    )
    mine = sum(len(batch) for number, batch in enumerate(plan.batches) if ranks.owns(number))

    def collect(ranks: Ranks, on_rows: OnRows, say: Say) -> None:
        collect_arms(plan, tokenizer, passes, work_dir, lambda arm, rows: on_rows(rows), ranks, say)

    with progress_bar("ask and record", "answer", mine * len(ARMS), is_hidden=not ranks.is_first) as progress:
        share_out(model.processes, ranks, collect, progress.update, progress.write)
    ranks.wait()
    if not ranks.is_first:
        return
    frame, tensors = assemble(plan, tokenizer, work_dir, settings.layers, text_config(model.base).num_hidden_layers)
    if settings.tokens:
        tokens = run.study.persona_tokens
        save_folder(tokens, lambda folder: gather_shards(work_dir, folder, len(frame)), run.provenance)
    save_frame(frame, run.study.persona_data, run.provenance, tensors)
    shutil.rmtree(work_dir)
    flagged = int(frame["flags"].map(len).gt(0).sum())
    print(f"{len(frame)} rows, {flagged} flagged: {run.study.persona_data}")


if __name__ == "__main__":
    run_script(main)
