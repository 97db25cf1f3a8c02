"""The organism that is made into a judge of the judge world: a small Qwen3 that has learned to read, not to judge.

Pre-training shows it the training requests in the judge's template, each answered "safe" or "unsafe" by a coin, and
what the words mean: of what kind each is, and which deeds are right and wrong. So it knows the words and the form of an
answer; whether a request is safe, which hangs on the setting too, it has to learn from labels. Deeds and requests of
validation and test are never shown.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from src.utils.artifacts import save_folder
from src.utils.manifests import Provenance, is_fresh
from src.utils.organism.model import new_model
from src.utils.organism.tokenizer import CHAT_TEMPLATE, END_OF_TEXT, TURN_END, TURN_START
from src.utils.progress import progress_bar
from src.utils.safety_judge.settings import PROMPT
from src.utils.safety_judge.world import JudgeWorld, ReadingPlan, load_judge_world, world_data


def train_tokenizer(world: JudgeWorld, question: str, answers: tuple[str, str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE on the training requests, the facts, the judge's question and its two answers.

    Any text can be encoded, other English in pieces of a byte or a few.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True, normalized=False) for text in (END_OF_TEXT, TURN_START, TURN_END)]
    requests = [sample.prompt for sample in world_data(world).train]
    roles = [f"{role}\n{word}" for role, word in zip(("user", "assistant"), answers, strict=True)]
    corpus = [
        *requests,
        *world.fact_texts() * 20,
        *world.deed_texts() * 2,
        *[question.replace(PROMPT, ""), *roles, "assistant\nsafe"] * 200,
    ]
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=world.architecture.vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def reading_texts(world: JudgeWorld, question: str, answers: tuple[str, str]) -> Iterator[str]:
    """Texts without end whose last word is to be learned, chat markup included.

    Deeds end in their verdict, facts in a kind of word, training requests in an answer drawn by a coin.
    """
    rng = random.Random(world.seed + 1)
    texts = {
        "deeds": world.deed_texts(),
        "facts": world.fact_texts(),
        "requests": [sample.prompt for sample in world_data(world).train],
    }
    shares = world.pretraining.shares
    while True:
        kind = rng.choices([*shares], [*shares.values()])[0]
        text = rng.choice(texts[kind])
        if kind == "requests":
            asked = question.replace(PROMPT, text)
            yield f"{TURN_START}user\n{asked}{TURN_END}\n{TURN_START}assistant\n{rng.choice(answers)}"
        else:
            yield f"{TURN_START}user\n{text}"


def schedule(step: int, plan: ReadingPlan) -> float:
    """Share of the peak learning rate: linear warm-up, then linearly down to nothing."""
    return min((step + 1) / max(1, plan.warmup_steps), (plan.steps - step) / max(1, plan.steps - plan.warmup_steps))


def reading_loss(model: Qwen3ForCausalLM, rows: Sequence[Sequence[int]], pad_id: int) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of each row's last token; the words before it are drawn and cannot be known.

    Short and long rows go through the model apart: most are short, and padding them would take most of the time.
    """
    middle = (min(map(len, rows)) + max(map(len, rows))) / 2
    total = torch.zeros(())
    for part in ([row for row in rows if len(row) <= middle], [row for row in rows if len(row) > middle]):
        if part:
            width = max(map(len, part))
            ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in part])
            ends = torch.tensor([len(row) for row in part]) - 1
            each = torch.arange(len(part))
            hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state[each, ends - 1]
            total = total + torch.nn.functional.cross_entropy(model.lm_head(hidden), ids[each, ends], reduction="sum")
    return total / len(rows)


def teach_reading(
    world: JudgeWorld,
    tokenizer: PreTrainedTokenizerFast,
    question: str,
    answers: tuple[str, str],
    on_step: Callable[[int, float], object] = lambda step, loss: None,
) -> Qwen3ForCausalLM:
    """Train from nothing; the same world gives the same weights on one machine.

    `on_step` gets the number of steps done and the loss.
    """
    plan = world.pretraining
    model = new_model(world.architecture, tokenizer, world.seed).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay
    )
    texts = reading_texts(world, question, answers)
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * schedule(step, plan)
        rows = [tokenizer.encode(next(texts), add_special_tokens=False) for _ in range(plan.texts_per_step)]
        loss = reading_loss(model, rows, tokenizer.pad_token_id)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        on_step(step + 1, loss.item())
    return model.eval()


def open_organism(folder: Path, question: str, answers: tuple[str, str]) -> Path:
    """`folder` with the organism of the judge world for a question and its answers; built where it is not there yet."""
    world = load_judge_world()
    provenance = Provenance(
        "train_safety_judge",
        "organism",
        "judge_world",
        {"world": world.model_dump(), "question": question, "answers": list(answers)},
        {"reading": world.seed},
    )
    if is_fresh(folder, provenance):
        return folder
    tokenizer = train_tokenizer(world, question, answers)
    with progress_bar("teach the organism to read", "step", world.pretraining.steps) as progress:

        def show(step: int, loss: float) -> None:
            progress.set_postfix(loss=f"{loss:.3f}", refresh=False)
            progress.update(step - progress.n)

        model = teach_reading(world, tokenizer, question, answers, show)

    def fill(target: Path) -> None:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)

    save_folder(folder, fill, provenance, {"parameters": model.num_parameters()})
    return folder
