"""A base model and labelled prompts in miniature, for the judge's scripts: real files, trained in a second."""

from pathlib import Path

from src.utils.safety_judge.samples import SafetySample
from tests.tiny_models import questions, save_model, tiny_model, write_jsonl

N_TRAIN, N_VALIDATION, N_TEST = 40, 12, 20


def planted_pairs(count: int, start: int = 0) -> list[SafetySample]:
    """Prompts whose first word gives the label, in pairs that share the rest."""
    texts = [question.question for question in questions(80)][start // 2 : (start + count) // 2]
    return [
        SafetySample(f"{start}_{i}{word}", f"{word}. {text}", word == "Bad", "xy"[i % 2], "planted", f"{start}_{i}")
        for i, text in enumerate(texts)
        for word in ("Good", "Bad")
    ]


def write_judge_sources(folder: Path) -> None:
    """`base/`, a tiny model, and `data/`, three splits."""
    save_model(tiny_model(), folder / "base")
    (folder / "data").mkdir()
    ends = {"train": (N_TRAIN, 0), "validation": (N_VALIDATION, N_TRAIN), "test": (N_TEST, N_TRAIN + N_VALIDATION)}
    for name, (count, start) in ends.items():
        rows = [
            {"sample_id": one.sample_id, "prompt": one.prompt, "label": one.label, "category": one.category,
             "source": one.source, "pair_id": one.pair_id}
            for one in planted_pairs(count, start)
        ]  # fmt: skip
        write_jsonl(folder / "data" / f"{name}.jsonl", rows)


def judge_options(folder: Path) -> list[str]:
    """The options of a training on them that takes a second, its results under `out/`."""
    return [
        *("--base-model", str(folder / "base"), "--data", str(folder / "data"), "--output-dir", str(folder / "out")),
        *("--num-epochs", "2", "--batch-size", "8", "--learning-rate", "0.002", "--freeze-layers", "1"),
        *("--max-length", "128"),
    ]
