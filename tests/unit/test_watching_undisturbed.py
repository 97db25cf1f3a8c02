"""A training under the watcher ends as it would without, whatever a picture does to it and however it fails."""

import pickle
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, TrainerCallback

from src.utils.models import SMALL_MODEL
from src.utils.safety_judge.freezing import blocks_of
from src.utils.watching.callback import VISUALIZATIONS
from src.utils.watching.pictures import Budget, Measurement, Moment
from src.utils.watching.undisturbed import InterferenceError, threads_for, undisturbed
from src.visualizations.figure_page import FigurePage
from tests.watched_training import (
    judge_model,
    same_weights,
    trained_judge,
    watcher,
)


class HostilePicture:
    """Does everything that a picture must not do and get away with, then fails in the way that it is told to."""

    name = "hostile"
    is_advanced = False
    relative_budget = 1.0

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def file_names(self, number: int) -> list[str]:
        return [f"epoch_{number}_hostile.html"]

    def measure(self, moment: Moment, budget: Budget, baseline: Measurement | None) -> Measurement:
        random.random()
        np.random.rand(3)
        model = moment.model.train()
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        ids = torch.randint(3, 100, (2, 9))
        model(input_ids=ids, labels=ids).loss.backward()
        next(model.children()).register_forward_hook(lambda module, args, output: None)
        parameters[0].requires_grad_(False)
        if self.error:
            raise self.error
        return Measurement({"drawn": torch.rand(3).numpy()})

    def shared(self, history: Mapping[int, Measurement]) -> Mapping[str, float]:
        return {}

    def draw(self, number: int, history: Mapping[int, Measurement]) -> list[FigurePage]:
        raise AssertionError("never drawn")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def numpy_state() -> bytes:
    return pickle.dumps(np.random.get_state())


@pytest.fixture(scope="module")
def unwatched(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    return trained_judge(judge_model(), tmp_path_factory.mktemp("unwatched"))


@pytest.mark.parametrize("error", [None, RuntimeError("a bug"), torch.OutOfMemoryError("CUDA out of memory. Tried")])
def test_pictures_that_meddle_and_fail_change_nothing_and_say_why(
    error: Exception | None, unwatched: PreTrainedModel, tmp_path: Path
) -> None:
    chosen = watcher(tmp_path, interval=2)
    chosen.pictures = [HostilePicture(error)]
    chosen.measured = {"hostile": {}}
    model = trained_judge(judge_model(), tmp_path / "work", [chosen])
    assert same_weights(model, unwatched)
    page = (tmp_path / VISUALIZATIONS / "epoch_2_hostile.html").read_text(encoding="utf-8")
    reason = chosen.records[2].pictures[0].failure
    assert reason is not None and reason.split("(")[0] in page
    expected = {None: "AssertionError: never drawn", RuntimeError: "RuntimeError: a bug"}
    assert reason == expected.get(type(error) if error else None, reason)
    assert ("out of memory" in reason) is isinstance(error, torch.OutOfMemoryError)


def test_the_same_meddling_unguarded_would_be_seen(unwatched: PreTrainedModel, tmp_path: Path) -> None:
    """The control of the test above: without the guard a hostile picture does change the weights."""

    class Unguarded(TrainerCallback):
        def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            HostilePicture().measure(Moment("epoch", 1, state.global_step, kwargs["model"]), Budget(1), None)

    assert not same_weights(trained_judge(judge_model(), tmp_path, [Unguarded()]), unwatched)


@pytest.mark.usefixtures("two_threads")
def test_everything_is_put_back_by_the_guard() -> None:
    model = judge_model().train()
    blocks = list(blocks_of(model))
    blocks[0].eval()
    parameter = next(p for p in model.parameters() if p.requires_grad)
    gradient = torch.ones_like(parameter)
    parameter.grad = gradient
    seen: list[int] = []
    kept = model.register_forward_hook(lambda module, args, output: seen.append(1))
    states = torch.get_rng_state(), numpy_state(), random.getstate()
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(KeyError), undisturbed(model):
        assert not model.training and parameter.grad is None and torch.get_num_threads() == 1
        HostilePicture(KeyError("x")).measure(Moment("epoch", 1, 1, model), Budget(1), None)
    assert model.training and not blocks[0].training and blocks[1].training
    assert parameter.grad is gradient and bool((gradient == 1).all())
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[2]
    assert numpy_state() == states[1] and torch.get_num_threads() == 2
    assert not any(module._forward_hooks for module in model.children())
    seen.clear()
    model(torch.tensor([[5, 6]]))
    assert seen == [1]
    kept.remove()


@pytest.mark.parametrize(("threads", "parameters"), [(1, SMALL_MODEL - 1), (2, SMALL_MODEL)])
def test_the_number_of_threads_is_not_set_where_it_stays(
    threads: int, parameters: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    with threads_for(torch.nn.Linear(parameters, 1, bias=False, device="meta")):
        pass
    assert calls == []


def test_a_picture_that_writes_to_the_weights_ends_the_training(tmp_path: Path) -> None:
    class Writing(HostilePicture):
        def measure(self, moment: Moment, budget: Budget, baseline: Measurement | None) -> Measurement:
            with torch.no_grad():
                moment.model.get_parameter("model.norm.weight").mul_(1.001)
            return Measurement({})

    chosen = watcher(tmp_path)
    chosen.pictures = [Writing()]
    chosen.measured = {"hostile": {}}
    with pytest.raises(InterferenceError, match=r"model\.norm\.weight"):
        trained_judge(judge_model(), tmp_path / "work", [chosen])


def test_a_folder_that_is_lost_on_the_way_does_not_end_the_training(
    unwatched: PreTrainedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Lose(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 1:
                shutil.rmtree(tmp_path / VISUALIZATIONS)
                (tmp_path / VISUALIZATIONS).write_text("in the way", encoding="utf-8")

    model = trained_judge(judge_model(), tmp_path / "work", [Lose(), watcher(tmp_path, budget_seconds=0.0)])
    assert same_weights(model, unwatched)
    assert "the training goes on" in caplog.text
