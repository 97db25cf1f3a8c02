"""How fast the study's questions are asked and recorded, against the original's way.

    uv run python benchmarks/collection.py                                  # the organism, on this machine
    uv run python benchmarks/collection.py --architecture qwen3_4b          # random weights, for a GPU
    uv run python benchmarks/collection.py --engines                        # generate, static cache, batching, bridge

The engine: batched `generate` with each prompt's own noise, then one teacher-forced pass for all layers and three arms;
in one process on all cores, and shared among processes as step 3 does where there is no GPU.
The original's way, on a slice of the same prompts with the same sampling and token budget: one prompt at a time
through TransformerLens, hooks at three layers during every decode step, two models. The same loop through Hugging
Face's `generate` stands beside it. Prints tables and writes results/benchmarks/collection_<name>.json.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.collection_models import models_of
from benchmarks.generation_engines import compare_engines
from benchmarks.reports import REPORTS, circumstances, device_kind, write_report
from benchmarks.timing import floors, interleaved, peak_watched, synchronise
from src.utils import collection
from src.utils.capture import capture_pooled, markup_of, pad_id_of, teacher_forcing_batch
from src.utils.collection import Plan, collect_arms, model_passes, plan_collection, sites_of
from src.utils.collection_frame import assemble
from src.utils.config import load_config, resolve_path
from src.utils.generation import Prompt, Response, generate
from src.utils.prompts import load_questions
from src.utils.ranks import RUN_ALONE, Ranks
from src.utils.shared_work import OnRows, Say, share_out
from src.utils.sites import Site, count_layers, decoder_of, edit_sites


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=("organism", "qwen3_4b"), default="organism")
    parser.add_argument("--limit", type=int, help="questions for the engine (default: all 885)")
    parser.add_argument("--slice", type=int, default=24, help="prompts asked in the original's way (default: 24)")
    parser.add_argument("--batch-size", type=int, help="default: the profile's (for qwen3_4b that of --memory 80gb)")
    parser.add_argument("--engines", action="store_true", help="compare ways to generate, too")
    parser.add_argument("--output", type=Path, default=REPORTS, help="folder of the report")
    options = parser.parse_args()

    config = load_config(options.architecture, memory=None if options.architecture == "organism" else "80gb")
    overrides: dict[str, Any] = {"limit": options.limit}
    if options.batch_size:
        overrides["batch_size"] = options.batch_size
    settings = config.collection.model_copy(update=overrides)
    tokenizer, model = models_of(options.architecture, config)
    plan = plan_collection(load_questions(map(resolve_path, settings.prompts)), tokenizer, settings)

    shared = run_shared(model, tokenizer, plan, settings.layers, config.model.processes)
    engine = run_engine(model, tokenizer, plan, settings.layers)
    hugging_face = run_one_by_one(model, tokenizer, plan, settings.layers, options.slice)
    original = run_original(model, tokenizer, plan, settings.layers, options.slice)
    report = {
        "architecture": options.architecture,
        "prompts": len(plan.prompts),
        "batch_size": settings.batch_size,
        "max_new_tokens": plan.sampling.max_new_tokens,
        "layers": count_layers(model) + 1,
        "engine": engine,
        "original": original,
        "engine_in_processes": shared,
        "ratio": original["seconds_a_prompt"] * len(plan.prompts) / engine["seconds"],
        "ratio_in_processes": original["seconds_a_prompt"] * len(plan.prompts) / shared["seconds"],
        "one_by_one_through_hugging_face": hugging_face,
        "ratio_to_hugging_face": hugging_face["seconds_a_prompt"] * len(plan.prompts) / engine["seconds"],
        "capture": capture_overhead(model, tokenizer, plan),
    }
    if torch.cuda.is_available():
        report["floor"] = floors(plan, model)
    if options.engines:
        report["engines"] = compare_engines(model, tokenizer, plan)
    file = write_report(report, options.output, f"collection_{options.architecture}_{device_kind()}")
    print(tables(circumstances() | report), file, sep="\n")


def run_engine(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, plan: Plan, layers: Sequence[int]
) -> dict[str, float]:
    """The whole collection as step 3 runs it, and where its time goes."""
    spent = {"generate": 0.0, "capture": 0.0}
    tokens = 0

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            synchronise()
            started = time.perf_counter()
            result = function(*args, **kwargs)
            synchronise()
            spent[name] += time.perf_counter() - started
            return result

        return run

    def counting(*args: Any) -> list[Response]:
        nonlocal tokens
        responses = timed("generate", generate)(*args)
        tokens += sum(len(response.ids) for response in responses)
        return responses

    module: Any = collection
    replaced = module.generate, module.run_capture
    warm_up = Plan(plan.questions, plan.prompts, [plan.batches[-1]], plan.sampling)
    with tempfile.TemporaryDirectory() as folder:
        collect_arms(warm_up, tokenizer, passes(model), Path(folder))
    module.generate, module.run_capture = counting, timed("capture", module.run_capture)
    try:
        with tempfile.TemporaryDirectory() as folder, peak_watched() as peak:
            synchronise()
            started = time.perf_counter()
            collect_arms(plan, tokenizer, passes(model), Path(folder))
            assemble(plan, tokenizer, Path(folder), layers, count_layers(model))
            seconds = time.perf_counter() - started
    finally:
        module.generate, module.run_capture = replaced
    return {
        "seconds": seconds,
        "generate": spent["generate"] / seconds,
        "capture": spent["capture"] / seconds,
        "write_and_assemble": 1 - (spent["generate"] + spent["capture"]) / seconds,
        "generated_tokens": tokens,
        "tokens_a_second": tokens / seconds,
        "peak_memory_gib": peak.gib,
    }


def run_shared(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, plan: Plan, layers: Sequence[int], processes: int
) -> dict[str, float]:
    """The same, shared among processes as step 3 shares it (`model.processes`)."""
    with tempfile.TemporaryDirectory() as folder:

        def work(ranks: Ranks, on_rows: OnRows, say: Say) -> None:
            collect_arms(plan, tokenizer, passes(model), Path(folder), ranks=ranks)

        synchronise()
        started = time.perf_counter()
        share_out(processes, RUN_ALONE, work, lambda rows: None, print)
        assemble(plan, tokenizer, Path(folder), layers, count_layers(model))
        return {"seconds": time.perf_counter() - started, "at_most": processes}


def passes(model: Any) -> Any:
    def unused() -> PreTrainedModel:
        raise AssertionError("an adapter needs no checkpoint")

    return model_passes(lambda: model, lambda base: model, unused)


def run_original(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, plan: Plan, layers: Sequence[int], count: int
) -> dict[str, float]:
    """One prompt at a time through TransformerLens, base and merged EM model, activations of every step by hooks."""
    from transformer_lens.model_bridge import TransformerBridge

    merged = copy.deepcopy(model).merge_and_unload()
    with model.disable_adapter():
        base = copy.deepcopy(model).unload()
    bridges = [TransformerBridge.boot_transformers("data/organisms/entangled", hf_model=one) for one in (base, merged)]
    seen: dict[str, list[torch.Tensor]] = {f"blocks.{layer}.hook_resid_pre": [] for layer in layers}

    def recorder(parts: list[torch.Tensor]) -> Callable[..., None]:
        return lambda hidden, hook: parts.append(hidden[0].float().cpu())

    drawn = plan.sampling

    def ask(bridge: Any, prompt: Prompt) -> int:
        ids = torch.tensor([prompt.ids], device=model.device)
        with bridge.hooks(fwd_hooks=[(name, recorder(parts)) for name, parts in seen.items()]):
            output = bridge.generate(
                ids, max_new_tokens=drawn.max_new_tokens, do_sample=True, temperature=drawn.temperature,
                top_p=drawn.top_p, top_k=drawn.top_k, eos_token_id=tokenizer.eos_token_id, return_type="tokens",
                verbose=False,
            )  # fmt: skip
        for parts in seen.values():
            torch.cat(parts)[len(prompt.ids) :].mean(dim=0)
            parts.clear()
        return output.shape[1] - len(prompt.ids)

    return time_prompts(plan, count, lambda prompt: sum(ask(bridge, prompt) for bridge in bridges))


def time_prompts(plan: Plan, count: int, ask: Callable[[Prompt], int]) -> dict[str, float]:
    """Seconds a prompt and tokens a second of `ask`, which returns its tokens, on `count` prompts of the plan."""
    chosen = [plan.prompts[i * len(plan.prompts) // count] for i in range(min(count, len(plan.prompts)))]
    ask(chosen[0])
    synchronise()
    with peak_watched() as peak:
        started = time.perf_counter()
        tokens = sum(ask(prompt) for prompt in chosen)
        synchronise()
        seconds = time.perf_counter() - started
    return {
        "prompts": len(chosen),
        "seconds_a_prompt": seconds / len(chosen),
        "tokens_a_second": tokens / seconds,
        "peak_memory_gib": peak.gib,
    }


def run_one_by_one(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, plan: Plan, layers: Sequence[int], count: int
) -> dict[str, float]:
    """The original's loop through Hugging Face's `generate`, with this project's hooks and noise."""
    seen: list[torch.Tensor] = []

    def ask(prompt: Prompt) -> int:
        hooks = {Site("resid_pre", layer): lambda hidden: seen.append(hidden[0].float().cpu()) for layer in layers}
        with edit_sites(decoder_of(model), hooks):
            (response,) = generate(model, tokenizer, [prompt], plan.sampling)
        for start in range(len(layers)):
            torch.cat(seen[start :: len(layers)])[len(prompt.ids) :].mean(dim=0)
        seen.clear()
        return len(response.ids)

    def both(prompt: Prompt) -> int:
        with model.disable_adapter():
            said = ask(prompt)
        return said + ask(prompt)

    return time_prompts(plan, count, both)


def capture_overhead(model: PeftModel, tokenizer: PreTrainedTokenizerBase, plan: Plan) -> dict[str, float]:
    """Capture of all layers against the same forward pass without hooks and without the language-model head."""
    batch = plan.batches[len(plan.batches) // 2]
    prompts = [plan.prompts[row] for row in batch]
    responses = generate(model, tokenizer, prompts, plan.sampling)
    tokens = teacher_forcing_batch(prompts, responses, markup_of(tokenizer), pad_id_of(tokenizer))
    decoder = decoder_of(model)
    sites = sites_of(("resid",), count_layers(model))
    ids, mask = tokens.ids.to(decoder.device), tokens.mask.to(decoder.device)

    def plain() -> None:
        with torch.no_grad():
            decoder(input_ids=ids, attention_mask=mask, use_cache=False)

    times = interleaved({"plain": plain, "capture": lambda: capture_pooled(model, tokens, sites)})
    return {
        "plain_seconds": times["plain"],
        "capture_seconds": times["capture"],
        "ratio": times["capture"] / times["plain"],
    }


def tables(report: dict[str, Any]) -> str:
    engine, original, capture = report["engine"], report["original"], report["capture"]
    shares = (
        f"generate {engine['generate']:.0%}, capture {engine['capture']:.0%}, rest {engine['write_and_assemble']:.0%}"
    )
    measured = f"measured on {original['prompts']} prompts"
    alone = report["one_by_one_through_hugging_face"]

    def row(name: str, seconds: float, one: dict[str, Any], note: str) -> str:
        return f"{name:<24} {seconds:>9.1f} {one['tokens_a_second']:>9.0f} {one['peak_memory_gib']:>9.2f}   {note}"

    lines = [
        f"{report['architecture']}, {report['device']}, {report['prompts']} prompts, batch size {report['batch_size']}",
        f"up to {report['max_new_tokens']} new tokens, {report['layers']} layers, three arms",
        f"{'':<24} {'seconds':>9} {'tokens/s':>9} {'peak GiB':>9}",
        row("engine", engine["seconds"], engine, shares),
        f"{'engine, in processes':<24} {report['engine_in_processes']['seconds']:>9.1f}",
        row("original, extrapolated", original["seconds_a_prompt"] * report["prompts"], original, measured),
        row("the same loop through HF", alone["seconds_a_prompt"] * report["prompts"], alone, measured),
        f"ratio {report['ratio']:.1f}, in processes {report['ratio_in_processes']:.1f}",
        f"ratio to the same loop through HF {report['ratio_to_hugging_face']:.1f}",
        f"capture of all layers: {capture['ratio']:.3f} of the same pass without hooks and head",
    ]
    if "floor" in report:
        floor = report["floor"]
        least = floor["decode_bandwidth_seconds"] + floor["prefill_and_capture_arithmetic_seconds"]
        lines.append(
            f"floor: decoding {floor['decode_bandwidth_seconds']:.1f} s at {floor['bandwidth_gb_a_second']:.0f} GB/s, "
            f"prefill and capture {floor['prefill_and_capture_arithmetic_seconds']:.1f} s at {floor['tflops']:.0f} "
            f"TFLOP/s; the engine takes {engine['seconds'] / least:.1f} times that, its generation "
            f"{engine['generate'] * engine['seconds'] / floor['decode_bandwidth_seconds']:.1f} times the first, its "
            f"capture {engine['capture'] * engine['seconds'] / floor['prefill_and_capture_arithmetic_seconds']:.1f} "
            "times the second"
        )
    for row in report.get("engines", ()):
        speed = f"{row['tokens_a_second']:.0f} tokens/s" if "tokens_a_second" in row else row["failed"]
        lines.append(f"  {row['engine']:<62} {speed}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
