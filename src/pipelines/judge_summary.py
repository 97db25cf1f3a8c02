"""What the judge's study ends with: accuracy with its interval beside the two baselines, time, where the pages are."""

from typing import Any

from src.pipelines.judge_study import OPEN_ENDED, JudgeStudy
from src.utils.artifacts import load_json
from src.utils.manifests import read_manifest


def summarise_judge(study: JudgeStudy) -> str:
    """From the artefacts; what is not there is left out. Shares are of test prompts, intervals are 95%."""
    lines = []
    if study.evaluation.exists():
        found = load_json(study.evaluation)
        lines += [f"{'judge':<24} {accuracy(found['test'])}", *map(beside, found["baselines"])]
    made = read_manifest(study.judge)
    if made is not None:
        epoch = made.layout.get("epoch")
        lines.append(f"trained in {made.wall_seconds:.0f} s, with at most {made.peak_memory_bytes / 2**20:.0f} MiB")
        lines[-1] += f"; the weights are those of epoch {epoch:g}" if isinstance(epoch, int | float) else ""
    return "\n".join(lines)


def judge_pages(study: JudgeStudy) -> str:
    """Where the pages are, those that are there."""
    pages = {"evaluation": study.evaluation_page, "pictures": study.pictures / "index.html"}
    if study.has_open_ended:
        pages["open-ended testing"] = OPEN_ENDED.artefact(study)
    return "\n".join(f"{name}: {path}" for name, path in pages.items() if path.exists())


def accuracy(test: dict[str, Any]) -> str:
    low, high = test["intervals"]["accuracy"]
    return f"accuracy {test['accuracy']:6.1%} [{low:.1%}, {high:.1%}] of {test['n']:,} test prompts"


def beside(baseline: dict[str, Any]) -> str:
    """A baseline, and what the judge is better by, paired prompt by prompt."""
    gain = baseline["judge_gain_in_accuracy"]
    low, high = gain["interval"]
    test = baseline["test"]
    return f"{baseline['name']:<24} {accuracy(test)}; judge {gain['estimate']:+.1%} [{low:+.1%}, {high:+.1%}]"
