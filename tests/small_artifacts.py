"""A small frame as a step saves it, and what a save leaves hidden beside it."""

from pathlib import Path

import numpy as np
import pandas as pd

from src.utils.manifests import Provenance

STEP = Provenance(step="03_collect_activations", profile="organism", world="entangled")


def small_frame(n: int = 3) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt_id": [f"p{i}" for i in range(n)],
            "question": [None if i % 2 else f"Frage {i}: ö?" for i in range(n)],
            "base_activations_layer_1": [np.full(4, i, dtype=np.float32) for i in range(n)],
            "flags": [["cut"] if i % 2 else [] for i in range(n)],
            "em_score": [float("nan") if i % 2 else float(i) for i in range(n)],
        }
    )


def hidden(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if file.name.startswith("."))


def write(file: Path, data: bytes) -> None:
    file.write_bytes(data)
