"""What steering costs: a grid of 5 coefficients x 4 vectors against as many unsteered answers, in the same run.

    uv run python run_full_pipeline.py --only 02 03 && uv run python benchmarks/steering.py
    uv run python benchmarks/steering.py --prompts 100 --coefficients -1 -0.5 0.5 1 2

The organism's four dimension vectors of step 3's activations, in the batches of step 6; the unsteered answers are 20
samples of each prompt. Steered and unsteered batches take turns, so that what else runs on the machine slows both.
Steering also changes how long answers are: `tokens` counts what was said, `passes` the forward passes, which a batch
makes until its longest answer ends; the last row has answers cut at a fixed length, where only the hooks differ.
Prints a table and writes results/benchmarks/steering_<world>_<cpu or gpu>.json.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.reports import REPORTS, circumstances, device_kind, write_report
from src.utils.artifacts import load_frame, load_tensors
from src.utils.chat import prompt_ids
from src.utils.config import PROJECT_ROOT, load_config
from src.utils.generation import Prompt, Sampling, generate, plan_batches
from src.utils.models import load_model, load_tokenizer
from src.utils.prompts import spread
from src.utils.sites import count_layers, resid_site
from src.utils.steering import UNSTEERED, Dose, steered
from src.utils.steering_vectors import by_dimension, measure_differences


@dataclass
class Spent:
    """Seconds, answers, tokens and forward passes of one kind of run."""

    seconds: float = 0.0
    answers: int = 0
    tokens: int = 0
    passes: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=885)
    parser.add_argument("--coefficients", type=float, nargs="+", default=[-4, -2, 1, 2, 4])
    parser.add_argument("--world", default="entangled")
    parser.add_argument("--results-dir", type=Path, default=PROJECT_ROOT / "results")
    parser.add_argument("--fixed-prompts", type=int, default=60, help="of the row at a fixed length; 0 leaves it out")
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the report")
    options = parser.parse_args()

    config = load_config("organism", {"model.world": options.world})
    data = options.results_dir / "persona_data.pkl"
    frame, tensors = load_frame(data), load_tensors(data.with_suffix(".safetensors"), of=data)
    tokenizer, model = load_tokenizer(config.model.base), load_model(config.model.base, config.model)
    site = resid_site(config.steering.layer, count_layers(model))
    vectors = by_dimension(measure_differences(frame, tensors, site, config.steering.representation))
    doses = [Dose(vector, coefficient) for vector in vectors for coefficient in options.coefficients]
    ids = {row["prompt_id"]: tuple(prompt_ids(tokenizer, row["question"])) for row in frame.to_dict("records")}
    drawn = config.collection
    sampling = Sampling(drawn.temperature, drawn.top_p, drawn.top_k, drawn.max_new_tokens, drawn.seed)

    def measure(names: Sequence[str], cut: int | None) -> tuple[Spent, Spent]:
        steered_rows = [(Prompt(name, 0, ids[name]), dose) for dose in doses for name in names]
        plain_rows = [(Prompt(name, i, ids[name]), UNSTEERED) for i in range(len(doses)) for name in names]
        plain, pushed = Spent(), Spent()
        for batch in plan_batches([len(prompt.ids) for prompt, _ in plain_rows], config.steering.batch_size):
            for spent, rows in ((plain, plain_rows), (pushed, steered_rows)):
                run_batch(spent, [rows[row] for row in batch], cut)
        return plain, pushed

    def run_batch(spent: Spent, rows: Sequence[tuple[Prompt, Dose]], cut: int | None) -> None:
        started = time.perf_counter()
        with steered(model, [dose for _, dose in rows], "add", config.steering.positions):
            settings = sampling if cut is None else replace(sampling, max_new_tokens=cut)
            responses = generate(model, tokenizer, [prompt for prompt, _ in rows], settings)
        spent.seconds += time.perf_counter() - started
        spent.answers += len(rows)
        spent.tokens += sum(len(response.ids) for response in responses)
        spent.passes += max(len(response.ids) for response in responses)

    names = list(dict.fromkeys(frame["prompt_id"]))
    measure(names[:8], None)  # what is only slow the first time
    rows = []
    for label, count, cut in (("to their end", options.prompts, None), ("12 tokens", options.fixed_prompts, 12)):
        if not count:
            continue
        plain, pushed = measure(spread(names, count), cut)
        ratios = {name: getattr(pushed, name) / getattr(plain, name) for name in ("seconds", "tokens", "passes")}
        ratios["seconds_a_pass"] = ratios["seconds"] / ratios["passes"]
        prompts = {"answers": label, "prompts": min(count, len(names))}
        rows.append(prompts | {"unsteered": asdict(plain), "steered": asdict(pushed), "ratios": ratios})
    report = {
        "world": options.world,
        "vectors": [vector.name for vector in vectors],
        "coefficients": options.coefficients,
        "layer": config.steering.layer,
        "positions": config.steering.positions,
        "batch_size": config.steering.batch_size,
        "max_new_tokens": sampling.max_new_tokens,
        "rows": rows,
    }
    file = write_report(report, options.output, f"steering_{options.world}_{device_kind()}")
    print(table(circumstances() | report), file, sep="\n")


def table(report: dict[str, Any]) -> str:
    doses = len(report["vectors"]) * len(report["coefficients"])
    lines = [
        f"{doses} doses, batches of {report['batch_size']}, {report['device']}; ratios: steered to unsteered",
        "answers        prompts  answers  unsteered s  steered s  seconds  tokens  passes  seconds a pass",
    ]
    for row in report["rows"]:
        plain, pushed, ratios = row["unsteered"], row["steered"], row["ratios"]
        lines.append(
            f"{row['answers']:<14} {row['prompts']:>7} {plain['answers']:>8} {plain['seconds']:>12.1f} "
            f"{pushed['seconds']:>10.1f} {ratios['seconds']:>8.2f} {ratios['tokens']:>7.2f} {ratios['passes']:>7.2f} "
            f"{ratios['seconds_a_pass']:>15.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
