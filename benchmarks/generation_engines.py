"""Ways to generate, compared by their tokens a second: what `benchmarks/collection.py --engines` adds."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from peft import PeftModel
from transformer_lens.model_bridge import TransformerBridge
from transformers import CompileConfig, PreTrainedTokenizerBase

from benchmarks.timing import synchronise
from src.utils.capture import pad_id_of
from src.utils.collection import Plan
from src.utils.generation import Prompt, logits_processors, plan_batches

TURNS = 3


def compare_engines(model: PeftModel, tokenizer: PreTrainedTokenizerBase, plan: Plan) -> list[dict[str, Any]]:
    """Tokens a second of each way to generate, on the largest batch, at full length (no end of turn).

    The ways take turns, and the median of each counts; the first turn, which compiles and allocates, does not.
    """
    batch = plan_batches([len(prompt.ids) for prompt in plan.prompts], max(map(len, plan.batches)))[0]
    prompts = [plan.prompts[row] for row in batch]
    ways = generators(model, tokenizer, prompts, plan)
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    failed: dict[str, str] = {}
    for _ in range(1 + TURNS):
        for name, run in ways.items():
            if name in failed:
                continue
            try:
                synchronise()
                started = time.perf_counter()
                tokens = run()
                synchronise()
                speeds[name].append(tokens / (time.perf_counter() - started))
            except Exception as error:  # a way that does not run here is a result, too
                failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return [
        {"engine": name, "failed": failed[name]}
        if name in failed
        else {"engine": name, "tokens_a_second": median(speeds[name][1:]), "each_turn": speeds[name][1:]}
        for name in ways
    ]


def compiled_everywhere() -> CompileConfig:
    """Compilation that transformers would keep for GPUs, on a processor too."""
    settings = CompileConfig()
    settings._compile_all_devices = True
    return settings


def generators(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], plan: Plan
) -> dict[str, Callable[[], int]]:
    """Name -> a run that returns how many tokens it made."""
    width, new = max(len(prompt.ids) for prompt in prompts), plan.sampling.max_new_tokens
    pad = pad_id_of(tokenizer)
    ids = torch.tensor([[pad] * (width - len(p.ids)) + list(p.ids) for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p.ids)) + [1] * len(p.ids) for p in prompts], device=model.device)

    def hugging_face(sampled: bool, **settings: Any) -> Callable[[], int]:
        def run() -> int:
            noise = logits_processors(prompts, plan.sampling, model.device) if sampled else None
            with torch.no_grad():
                output = model.generate(
                    input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=new, min_new_tokens=new,
                    pad_token_id=pad, logits_processor=noise, **settings,
                )  # fmt: skip
            return output[:, width:].numel()

        return run

    def batching() -> int:
        base: Any = model.get_base_model()
        done = base.generate_batch(
            inputs=[list(p.ids) for p in prompts], max_new_tokens=new, progress_bar=False, do_sample=False
        )
        assert len(done) == len(prompts), f"{len(done)} of {len(prompts)} answers came back"
        return sum(len(output.generated_tokens) for output in done.values())

    bridged = TransformerBridge.boot_transformers("data/organisms/entangled", hf_model=model.get_base_model())

    def bridge() -> int:
        output: Any = bridged.generate(ids, max_new_tokens=new, do_sample=False, stop_at_eos=False, verbose=False)
        return output[:, width:].numel()

    return {
        "generate, dynamic cache, each prompt's own noise (the engine)": hugging_face(sampled=True),
        "generate, dynamic cache, greedy": hugging_face(sampled=False),
        "generate, static cache, greedy": hugging_face(
            sampled=False, cache_implementation="static", disable_compile=True
        ),
        "generate, static cache, compiled, greedy": hugging_face(
            sampled=False, cache_implementation="static", compile_config=compiled_everywhere()
        ),
        "continuous batching, greedy": batching,
        "TransformerBridge generate, greedy": bridge,
    }
