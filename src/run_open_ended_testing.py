"""Evolve prompts against a safety judge, keep them by style and category, and train the judge on half of them once.

    uv run python src/run_open_ended_testing.py
    uv run python src/run_open_ended_testing.py --iterations 60 --batch_size 128 --seed 1 --no-retrain
    uv run python src/run_open_ended_testing.py --checkpoint outputs/natural --data natural --output_dir outputs/attacks
    uv run python src/run_open_ended_testing.py --llm     # half of each batch reworded by a model, with a key in .env

Reads a judge (default outputs/checkpoints); writes archive.jsonl, open_ended.json, open_ended.html and, unless
--no-retrain, safety_judge/ after the round. A search that was stopped continues with the same command, to the same
archive. Random search judges as many prompts beside it. In the judge world every attack's true label is known.
"""

import json
import os
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from src.utils.artifacts import open_resumable, save_artifact, save_json
from src.utils.cli import run_script, with_hyphens
from src.utils.config import shown
from src.utils.config_sections import ModelConfig
from src.utils.errors import UserError
from src.utils.llm.confirmation import confirm
from src.utils.manifests import Provenance, hash_inputs, refuse_foreign_overwrite
from src.utils.open_ended.options import DATA, options_parser
from src.utils.record_store import open_store
from src.utils.safety_judge.data import data_inputs, load_data
from src.utils.safety_judge.judge_folder import JUDGE, check_writable, load_record, open_judge, save_judge
from src.utils.safety_judge.settings import load_judge_config

STEP, WORK, ARCHIVE, RESULT = "run_open_ended_testing", "open_ended.parts", "archive.jsonl", "open_ended.json"
RATES_WORDS = "How often the judge is right, with 95% intervals over what the prompts are about."


def main(arguments: Sequence[str]) -> None:
    own = options_parser(__doc__).parse_args([with_hyphens(argument) for argument in arguments])
    if not 0 <= own.replay < float("inf"):
        raise UserError(f"--replay {own.replay}: must be a finite number of at least 0", 2)
    checkpoint = own.checkpoint / JUDGE if (own.checkpoint / JUDGE).is_dir() else own.checkpoint
    folder = own.output_dir.absolute()
    if (folder / JUDGE).resolve() == checkpoint.resolve():
        raise UserError(f"{folder}: holds the judge that is attacked; choose another --output-dir", 2)
    record = load_record(checkpoint)
    config = load_judge_config(record.profile)
    check_writable(folder)
    refuse_foreign_overwrite(folder / RESULT, record.profile, own.data, own.force)
    data = load_data([DATA[own.data]])
    inputs = hash_inputs({JUDGE: checkpoint}) | data_inputs([DATA[own.data]])
    used = {"data": own.data, "batch_size": own.batch_size, "llm": own.llm, "llm_model": own.llm_model}
    seeds = {"seed": own.seed}
    work = open_resumable(folder / WORK, Provenance(STEP, record.profile, own.data, used, seeds, inputs))

    import torch

    from src.utils.models import SMALL_MODEL
    from src.utils.open_ended.judging import open_language, rescorer, scorer
    from src.utils.open_ended.rates import before_and_after, fresh_attacks, rates_table, sample_sets
    from src.utils.open_ended.retraining import retrain, retraining_samples, round_settings
    from src.utils.open_ended.rewriting import open_service
    from src.utils.open_ended.search import SearchPlan, described, search
    from src.utils.safety_judge.evaluation import format_table
    from src.visualizations.archive_figures import archive_page
    from src.visualizations.figure_page import page_files

    if record.trainable_parameters + record.frozen_parameters < SMALL_MODEL:
        torch.set_num_threads(1)
    judge = open_judge(str(checkpoint), ModelConfig(base=record.base_model, dtype="float32"), record)
    size, language = config.evaluation.eval_batch_size, open_language(own.data, data)
    plan, score = SearchPlan(own.iterations, own.batch_size, own.seed), scorer(judge, size)
    with ExitStack() as opened:
        service, rewrite = None, None
        if own.llm:
            service = open_service(opened.enter_context(open_store(work / "replies.jsonl")), os.environ, own.llm_model)
            confirm(f"at most {own.iterations * own.batch_size // 2:,} rewordings", service.model, own.yes)
            rewrite = service.rewrite
        store = opened.enter_context(open_store(work / "iterations.jsonl"))
        archive, history = search("evolution", plan, language, score, store, rewrite)
        if service:
            print(service.bill, flush=True)
        histories = {"evolution": history, "random": search("random", plan, language, score, store)[1]}

    sets = sample_sets(archive, fresh_attacks(language, own.seed), data.test)
    measure, after = rescorer(judge, size), None
    settings = round_settings(config.training, own.retrain_epochs, own.learning_rate, own.seed)
    used |= {"iterations": own.iterations, "retrain": own.retrain}
    used |= {"replay": own.replay, "training": settings.model_dump()} if own.retrain else {}
    provenance = Provenance(STEP, record.profile, own.data, used, seeds, inputs)
    before = measure(sets)
    if own.retrain:
        samples = retraining_samples(archive.of_half("training"), data.train, own.replay, own.seed)
        retrain(judge, record.frozen_blocks, samples, data.validation, settings, config.evaluation, work)
        after = measure(sets)
        trained = record.model_copy(update={"epochs": settings.num_epochs, "epoch": float(settings.num_epochs)})
        save_judge(folder / JUDGE, judge, trained, provenance)
    rates = before_and_after(sets, before, after, config.evaluation)
    lines = "".join(json.dumps(elite.as_record(), ensure_ascii=False) + "\n" for elite in archive)
    schema = {"rows": sum(1 for _ in archive), "niches": len(archive.niches)}
    write = {folder / ARCHIVE: lambda file: file.write_text(lines, encoding="utf-8")}
    save_artifact(folder / ARCHIVE, write, provenance, schema)
    searched = {arm: [asdict(progress) for progress in found] for arm, found in histories.items()}
    save_json({"niches": len(archive.niches), "search": searched, "rates": rates}, folder / RESULT, provenance)
    words = [shown(Path(word)) if Path(word).is_absolute() else word for word in arguments]
    command = shlex.join(["uv", "run", "python", "src/run_open_ended_testing.py", *words])
    page = archive_page(archive, histories, rates, command, inputs)
    files = page_files([page], folder, rates_table(rates), RATES_WORDS)
    save_artifact(folder / page.file_name, files, provenance, {"pages": [page.file_name]})
    print("\n".join(described(arm, found[-1]) for arm, found in histories.items()))
    print(format_table(rates_table(rates)))
    print(folder / page.file_name)


if __name__ == "__main__":
    run_script(main)
