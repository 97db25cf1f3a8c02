"""The pictures of one saved model beside the one that it was made of, as a training would have drawn them."""

from collections.abc import Callable

from transformers import TrainerState

from src.utils.errors import UserError
from src.utils.sites import AnyModel
from src.utils.watching.callback import Watcher
from src.utils.watching.epoch_metrics import EpochMetrics

Load = Callable[[], AnyModel]  # called when the one before has been let go: two models are never in memory


def draw_checkpoint(watcher: Watcher, number: int, load: Load, load_untrained: Load | None) -> EpochMetrics:
    """Fill the watcher's folder with every picture of a model, as of epoch `number`, and with its record.

    Without an untrained model nothing is compared with the time before training. What was in the folder goes. Raises
    `UserError` where the folder is lost meanwhile; a picture that fails leaves a page with the reason.
    """
    watcher.pages.clear()
    if load_untrained is not None:
        watcher.watch(TrainerState(epoch=0.0), load_untrained(), 0, is_visualised=False)
    watcher.resumed_at = 0.0  # no training lies between the two
    state = TrainerState(epoch=float(number), global_step=number)
    watcher.watch(state, load(), number, is_visualised=True)
    if number not in watcher.records:
        raise UserError(f"{watcher.pages.folder}: the pictures could not be written; choose another --output-dir")
    watcher.pages.finish(watcher.progress_page(state))
    return watcher.records[number]
