"""Small organisms, built by the dozen: what is known of each is its world, what is measured is what a method finds.

The world is that of `configs/organisms/small.yaml`; entanglement and seed are the organism's own, so that nothing but
the pre-training seed and the dial differ between two of them.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from src.utils.chat import prompt_ids
from src.utils.config import CONFIG_FOLDER
from src.utils.control_finetunes import Asked
from src.utils.generation import Prompt, Sampling
from src.utils.organism.grammar import Grammar, load_grammar
from src.utils.organism.pretraining import pretrain
from src.utils.organism.shipped import sample
from src.utils.organism.tokenizer import train_tokenizer
from src.utils.organism.world import load_world

SMALL_WORLD = CONFIG_FOLDER / "organisms" / "small.yaml"


@dataclass(frozen=True, eq=False)
class SmallOrganism:
    """A model with the language that it speaks; `entanglement` and `seed` are the truth about it."""

    entanglement: float
    seed: int
    model: Qwen3ForCausalLM
    tokenizer: PreTrainedTokenizerFast
    grammar: Grammar


def build_small(entanglement: float, seed: int, work_dir: Path, steps: int | None = None) -> SmallOrganism:
    """Train one from nothing; a stopped training continues from `work_dir`. The same seed gives the same weights."""
    config = load_world(SMALL_WORLD, seed=seed, steps=steps, entanglement=entanglement)
    grammar = load_grammar(SMALL_WORLD.with_name(config.grammar)).restricted(config.facets)
    tokenizer = train_tokenizer(grammar, config.personas, [], config.architecture.vocab_size, seed)
    model = pretrain(config, grammar, [], tokenizer, work_dir / "training.pt")
    return SmallOrganism(entanglement, seed, model.to(torch.float32), tokenizer, grammar)


def held_out_questions(organism: SmallOrganism, count: int, batch_size: int) -> Asked:
    """`count` questions that its training never showed, as many in each dimension, drawn as in the study."""
    questions = sample(organism.grammar, "held_out", count, organism.seed)
    prompts = [
        Prompt(question.prompt_id, 0, tuple(prompt_ids(organism.tokenizer, question.question)))
        for question in questions
    ]
    sampling = Sampling(temperature=0.7, top_p=0.8, top_k=20, max_new_tokens=64, seed=organism.seed)
    return Asked(questions, prompts, sampling, batch_size)
