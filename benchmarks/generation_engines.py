"""Ways to generate, compared by their tokens a second: what `benchmarks/collection.py --engines` adds."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from benchmarks.timing import synchronise
from src.utils.capture import pad_id_of
from src.utils.collection import Plan
from src.utils.generation import Prompt, logits_processors, plan_batches


def compare_engines(model: PeftModel, tokenizer: PreTrainedTokenizerBase, plan: Plan) -> list[dict[str, Any]]:
    """Tokens a second of each way to generate, on the largest batch, at full length (no end of turn)."""
    batch = plan_batches([len(prompt.ids) for prompt in plan.prompts], max(map(len, plan.batches)))[0]
    prompts = [plan.prompts[row] for row in batch]
    rows: list[dict[str, Any]] = []
    for name, run in generators(model, tokenizer, prompts, plan).items():
        try:
            run()
            synchronise()
            started = time.perf_counter()
            tokens = run()
            synchronise()
            rows.append({"engine": name, "tokens_a_second": tokens / (time.perf_counter() - started)})
        except Exception as error:  # a way that does not run here is a result, too
            rows.append({"engine": name, "failed": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"})
    return rows


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

    def bridge() -> int:
        from transformer_lens.model_bridge import TransformerBridge

        bridged = TransformerBridge.boot_transformers("data/organisms/entangled", hf_model=model.get_base_model())
        output: Any = bridged.generate(ids, max_new_tokens=new, do_sample=False, stop_at_eos=False, verbose=False)
        return output[:, width:].numel()

    return {
        "generate, dynamic cache, each prompt's own noise (the engine)": hugging_face(sampled=True),
        "generate, dynamic cache, greedy": hugging_face(sampled=False),
        "generate, static cache, greedy": hugging_face(
            sampled=False, cache_implementation="static", disable_compile=not torch.cuda.is_available()
        ),
        "continuous batching, greedy": batching,
        "TransformerBridge generate, greedy": bridge,
    }
