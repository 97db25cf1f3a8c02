"""The watcher of the safety judge: which samples, which pictures, which numbers an epoch.

    SafetyWatcher(tokenizer, template, validation, output_dir, max_length=256, interval=3, provenance=…, command=…)

goes into the trainer's `callbacks`; pictures land in `<output_dir>/training_visualizations/`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.utils.circuits.circuit_picture import circuit_picture
from src.utils.circuits.comparison_picture import comparison_picture
from src.utils.circuits.neuron_picture import neuron_picture
from src.utils.manifests import Provenance
from src.utils.safety_judge.metrics import judge_metrics
from src.utils.safety_judge.samples import SafetySample, labels
from src.utils.safety_judge.scoring import JudgeTemplate, score
from src.utils.watching.callback import VISUALIZATIONS, Watcher
from src.utils.watching.pictures import BUDGET_SECONDS, Moment, Picture
from src.utils.watching.probe_set import ProbeSet, choose_probes
from src.utils.watching.safety_pictures import LayerActivationPicture, TokenAttributionPicture
from src.utils.watching.schedule import Schedule
from src.visualizations.progress_figures import judge_progress_page

STATISTICS_SAMPLES = 128  # half of each class; with fewer in the validation split, as many as there are
BATCH_SIZE = 64
MARGIN_QUANTILES = (0.1, 0.5, 0.9)

# what draws a picture, by the fixed samples and the template
MakePicture = Callable[[ProbeSet, JudgeTemplate], Picture]
PICTURES: tuple[MakePicture, ...] = (
    TokenAttributionPicture,
    LayerActivationPicture,
    comparison_picture,
    neuron_picture,
    circuit_picture,
)


class SafetyWatcher(Watcher):
    """Watches a judge on samples of its validation split; see `Watcher` for when and at what cost.

    Raises `UserError` for a folder that cannot be written to and a validation split with fewer than two prompts of a
    class. `run_advanced` adds the pictures that are marked as advanced. `command` remakes the pictures.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: JudgeTemplate,
        validation: Sequence[SafetySample],
        output_dir: Path,
        *,
        max_length: int,
        provenance: Provenance,
        command: str,
        interval: int = 3,
        run_advanced: bool = False,
        budget_seconds: float = BUDGET_SECONDS,
        batch_size: int = BATCH_SIZE,
        n_statistics: int = STATISTICS_SAMPLES,
    ) -> None:
        probes = choose_probes(validation, tokenizer, template, max_length, n_statistics)
        encoded = [probe.encoded for probe in probes.statistics]
        unsafe = labels([probe.sample for probe in probes.statistics])
        made = [make(probes, template) for make in PICTURES]

        def statistics(moment: Moment) -> dict[str, float | None]:
            assert isinstance(moment.model, PreTrainedModel)
            return margin_statistics(score(moment.model, encoded, template, batch_size), unsafe)

        super().__init__(
            output_dir / VISUALIZATIONS,
            Schedule("epoch", interval),
            [picture for picture in made if run_advanced or not picture.is_advanced],
            statistics,
            judge_progress_page,
            budget_seconds,
            provenance,
            command,
        )
        self.probes = probes


def margin_statistics(
    margins: Float[np.ndarray, " samples"], unsafe: Bool[np.ndarray, " samples"]
) -> dict[str, float | None]:
    """What `epoch_{N}_metrics.json` says of a judge: `JudgeMetrics` at margin 0, and quantiles of the margins.

    `margin/<label>/<quantile>` are in logits.
    """
    found: dict[str, float | None] = asdict(judge_metrics(unsafe, margins))
    for label, own in (("safe", margins[~unsafe]), ("unsafe", margins[unsafe])):
        for quantile in MARGIN_QUANTILES:
            found[f"margin/{label}/{quantile:g}"] = float(np.quantile(own, quantile))
    return found
