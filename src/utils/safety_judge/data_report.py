"""What a judge's data consist of: prompts by split and label, categories, sources, contrast pairs."""

from collections import Counter
from typing import Any

from src.utils.safety_judge.samples import SPLITS, SafetyData


def report(data: SafetyData) -> dict[str, Any]:
    """By split: `prompts`, `unsafe`, whole `pairs`, `most_words` of a prompt, counts by `categories` and `sources`."""
    counted = {}
    for split in SPLITS:
        samples = data.split(split)
        sizes = Counter(sample.pair_id for sample in samples if sample.pair_id is not None)
        counted[split] = {
            "prompts": len(samples),
            "unsafe": sum(sample.unsafe for sample in samples),
            "pairs": sum(size == 2 for size in sizes.values()),
            "most_words": max(len(sample.prompt.split()) for sample in samples),
            "categories": dict(sorted(Counter(sample.category for sample in samples).items())),
            "sources": dict(sorted(Counter(sample.source for sample in samples).items())),
        }
    return counted


def format_report(counted: dict[str, Any]) -> str:
    """A line a split, and one of the sources."""
    lines = [f"{'split':<12} {'prompts':>8} {'unsafe':>8} {'pairs':>6} {'categories':>11}"]
    for split, found in counted.items():
        columns = (found["prompts"], found["unsafe"], found["pairs"], len(found["categories"]))
        lines.append(f"{split:<12} {columns[0]:>8,} {columns[1]:>8,} {columns[2]:>6,} {columns[3]:>11,}")
    sources = sorted({source for found in counted.values() for source in found["sources"]})
    return "\n".join([*lines, f"sources: {', '.join(sources)}"])
