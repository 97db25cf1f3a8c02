"""The command line of open-ended testing."""

import argparse
from pathlib import Path

from src.utils.cli import OneLineParser, positive
from src.utils.config import PROJECT_ROOT
from src.utils.safety_judge.data import WORLD

OUTPUT, CHECKPOINT = PROJECT_ROOT / "outputs" / "open_ended", PROJECT_ROOT / "outputs" / "checkpoints"
DATA = {"judge_world": WORLD, "natural": "data/safety"}


def options_parser(description: str | None) -> argparse.ArgumentParser:
    found = OneLineParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = found.add_argument
    add("--checkpoint", type=Path, default=CHECKPOINT, help="a judge's folder, or the one that it is in")
    add("--iterations", type=positive(int), default=40, help="batches of each search (default 40)")
    add("--batch-size", type=positive(int), default=128, help="prompts judged at once (default 128)")
    add("--seed", type=int, default=0, help="of the searches and of the training (default 0)")
    add("--output-dir", type=Path, default=OUTPUT, help="default outputs/open_ended")
    add("--data", choices=tuple(DATA), default="judge_world", help="what is attacked with (default judge_world)")
    add("--retrain", action=argparse.BooleanOptionalAction, default=True, help="a round of training on the archive")
    add("--retrain-epochs", type=positive(int), default=10, help="of that round (default 10)")
    add("--learning-rate", type=positive(float), help="of that round (default the profile's)")
    add("--replay", type=float, default=2.0, help="ordinary prompts for each attack in it (default 2)")
    add("--llm", action="store_true", help="let a model reword half of each batch; needs a key")
    add("--llm-model", help="default: that of src/scripts/01_generate_dataset.py")
    add("--yes", action="store_true", help="do not ask before requests that cost money")
    add("--force", action="store_true", help="write over what another profile or data left in the folder")
    return found
