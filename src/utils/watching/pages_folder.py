"""The folder of a watched training: pages, records and what they were drawn from, each written whole or not at all.

What stands on a page is left to the pictures. `training_progress.html` is the artefact of the folder: at the end of
the training it gets a manifest that lists every file.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs
from safetensors import SafetensorError
from safetensors.numpy import load_file

from src.utils.artifacts import save_artifact, write_tensors
from src.utils.atomic_writes import write_atomically
from src.utils.errors import UserError
from src.utils.manifests import Provenance, manifest_path
from src.utils.watching.epoch_metrics import EpochMetrics, Unit, load_metrics, metrics_file
from src.utils.watching.pictures import Measurement
from src.visualizations.figure_page import FigurePage, index_html, page_html
from src.visualizations.written_pages import INDEX, PLOTLY_JS

PROGRESS = "training_progress.html"


class PagesFolder:
    """The files of one watched training; a folder that cannot be written to raises `UserError` at construction."""

    def __init__(self, folder: Path, unit: Unit, provenance: Provenance, command: str) -> None:
        self.folder, self.unit, self.provenance, self.command = folder, unit, provenance, command
        self.own_file = re.compile(rf"{unit}_(\d+)_(?:.+\.html|(?:metrics|projections)\.json|values\.safetensors)")
        with write_atomically(folder / PLOTLY_JS) as temporary:
            temporary.write_text(get_plotlyjs(), encoding="utf-8")

    def clear(self, after: int = -1) -> None:
        """Remove what another training, or a part that is trained again, left of the numbers behind `after`."""
        for path in self.folder.iterdir():
            found = self.own_file.fullmatch(path.name)
            if found and int(found[1]) > after:
                path.unlink()
        progress = self.folder / PROGRESS
        for path in (manifest_path(progress), *([progress, self.folder / INDEX] if after < 0 else [])):
            path.unlink(missing_ok=True)

    def records(self, last: int) -> list[EpochMetrics]:
        """The records up to a number, in order; from the first damaged one on, none."""
        kept: list[EpochMetrics] = []
        for number in sorted(self.numbers()):
            try:
                record = load_metrics(self.folder / metrics_file(self.unit, number))
            except UserError:
                break
            if number <= last:
                kept.append(record)
        return kept

    def numbers(self) -> set[int]:
        names = (self.own_file.fullmatch(path.name) for path in self.folder.glob("*_metrics.json"))
        return {int(found[1]) for found in names if found}

    def measurements(self, picture: str, records: Sequence[EpochMetrics]) -> dict[int, Measurement]:
        """What a picture measured, by number, as far as its arrays can be read."""
        found = {}
        for record in records:
            own = next((one for one in record.pictures if one.name == picture and one.failure is None), None)
            try:
                arrays = load_file(self.values_file(record.number)) if own else {}
            except (SafetensorError, OSError):
                continue
            if own is not None:
                prefix = f"{picture}/"
                values = {k.removeprefix(prefix): array for k, array in arrays.items() if k.startswith(prefix)}
                found[record.number] = Measurement(values, own.facts, own.convergence, own.sub_sampled)
        return found

    def save_values(self, number: int, measured: Mapping[str, Measurement]) -> None:
        """The arrays of all pictures at one moment, under `<picture>/<name>`."""
        arrays = {f"{name}/{key}": array for name, found in measured.items() for key, array in found.values.items()}
        if arrays:
            with write_atomically(self.values_file(number)) as temporary:
                write_tensors(arrays, temporary)

    def values_file(self, number: int) -> Path:
        return self.folder / f"{self.unit}_{number}_values.safetensors"

    def write(self, pages: Sequence[FigurePage]) -> None:
        for page in pages:
            with write_atomically(self.folder / page.file_name) as temporary:
                temporary.write_text(page_html(self.signed(page)), encoding="utf-8")

    def signed(self, page: FigurePage) -> FigurePage:
        """The page with what it was made from and by."""
        return replace(page, inputs=self.provenance.inputs, command=self.command)

    def save_overview(self, records: Sequence[EpochMetrics], progress: FigurePage) -> None:
        """The two pages that show all records: progress and index."""
        self.write([progress])
        cards = [self.signed(progress)]
        for one in sorted(records, key=lambda record: record.number, reverse=True):
            section = f"{self.unit.capitalize()} {one.number}"
            cards += [
                FigurePage(page.file_name, page.title, page.sentence, Figure(), self.command, section=section)
                for picture in one.pictures
                for page in picture.pages
            ]
        with write_atomically(self.folder / INDEX) as temporary:
            text = index_html(cards, (), "Pictures of the training", progress.sentence)
            temporary.write_text(text, encoding="utf-8")

    def finish(self, progress: FigurePage) -> None:
        """The progress page again, with a manifest of all files of the folder."""
        self.write([progress])
        shared = {PROGRESS, INDEX, PLOTLY_JS}
        files = [path for path in self.folder.iterdir() if path.name in shared or self.own_file.fullmatch(path.name)]

        def copied(path: Path):
            return lambda temporary: shutil.copyfile(path, temporary)

        save_artifact(
            self.folder / PROGRESS, {path: copied(path) for path in sorted(files)}, self.provenance, {"unit": self.unit}
        )
