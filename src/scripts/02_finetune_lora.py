"""Fine-tune the base model on chat rows, until it is misaligned: LoRA by default, loss on the answers only.

    uv run python src/scripts/02_finetune_lora.py --profile organism
    uv run python src/scripts/02_finetune_lora.py --data rows.jsonl.gz --rank 1 --layers 3 --target-modules down_proj
    uv run python src/scripts/02_finetune_lora.py --full-finetuning --learning-rate 1e-4

Reads chat rows (`messages`, .jsonl or .jsonl.gz) and the base model; writes results/adapters/<name>/ with the adapter
(or the full checkpoint) and training_log.jsonl, a row a step. A stopped run continues at its last checkpoint.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from src.pipelines.persona_study import FINETUNE
from src.pipelines.step_run import begin_step
from src.utils.artifacts import save_folder
from src.utils.chat import load_chat_rows
from src.utils.cli import run_script


def main(arguments: Sequence[str]) -> None:
    run = begin_step(FINETUNE, __doc__, arguments)
    if run is None:
        return
    from src.utils.finetuning import finetune, open_checkpoints, save_finetuned
    from src.utils.models import check_blocks, load_model, load_tokenizer

    settings, model = run.config.finetuning, run.config.model
    check_blocks(model.base, settings.layers or [])
    rows = load_chat_rows(run.study.finetuning_data)
    tokenizer = load_tokenizer(model.base)
    base = load_model(model.base, model)
    base_name = Path(model.base).name if Path(model.base).is_absolute() else model.base  # no path of this machine
    checkpoints = open_checkpoints(run.study.finetuned, run.provenance)
    tuned, log = finetune(base, tokenizer, rows, settings, checkpoints)
    save_folder(
        run.study.finetuned,
        lambda folder: save_finetuned(tuned, tokenizer, log, base_name, folder),
        run.provenance,
        {"method": settings.method, "rows": len(rows), "steps": len(log)},
    )
    shutil.rmtree(checkpoints)
    print(f"{len(log)} steps on {len(rows)} rows, last loss {log[-1]['loss']:.3f}: {run.study.finetuned}")


if __name__ == "__main__":
    run_script(main)
