"""Looking at a model in the middle of its training, and leaving no trace in it.

Whatever runs inside `undisturbed` may draw random numbers, switch to evaluation mode, compute gradients and install
hooks: all of it is put back. Changed weights cannot be put back; they are found and raise `InterferenceError`.
"""

import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from src.utils.models import SMALL_MODEL

HOOK_TABLES = (
    *("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks"),
)


class InterferenceError(RuntimeError):
    """A picture wrote to the weights that it was to look at: the training is no longer the one that was asked for."""


@contextmanager
def undisturbed(model: nn.Module) -> Generator[None]:
    """While open, the model is in evaluation mode and without gradients; afterwards it is as it was before.

    Restored, however the block ends: the generators of Python, NumPy and PyTorch on every device, the number of threads
    (one for a small model meanwhile), each module's mode and hooks, each parameter's gradient (the same tensor) and
    `requires_grad`.
    """
    modules, parameters = list(model.modules()), list(model.named_parameters())
    modes = [module.training for module in modules]
    hooks = [{name: dict(getattr(module, name)) for name in HOOK_TABLES} for module in modules]
    gradients = [(parameter.grad, parameter.requires_grad) for _, parameter in parameters]
    versions = [(parameter.data_ptr(), parameter._version) for _, parameter in parameters]
    with unchanged_generators(), threads_for(model):
        try:
            for _, parameter in parameters:
                parameter.grad = None
            model.eval()
            yield
        finally:
            for module, mode, tables in zip(modules, modes, hooks, strict=True):
                module.training = mode
                for name, before in tables.items():
                    table = getattr(module, name)
                    if table != before:
                        table.clear()
                        table.update(before)
            for (_, parameter), (gradient, requires_grad) in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
                parameter.requires_grad_(requires_grad)
    for (name, parameter), version in zip(parameters, versions, strict=True):
        if (parameter.data_ptr(), parameter._version) != version:
            raise InterferenceError(f"{name}: a picture wrote to this weight while the model was in training")


@contextmanager
def threads_for(model: nn.Module) -> Generator[None]:
    """While open, a small model and NumPy beside it run on one thread each.

    On several they are slower, and on a busy machine many times so: the probes of one picture took 7 s instead of 0.3.
    PyTorch's number is not set where it stays: setting it keeps MKL from choosing its own ever after.
    """
    before = torch.get_num_threads()
    if sum(parameter.numel() for parameter in model.parameters()) >= SMALL_MODEL:
        yield
        return
    with threadpool_limits(1, "blas"):
        try:
            if before != 1:
                torch.set_num_threads(1)
            yield
        finally:
            if before != 1:
                torch.set_num_threads(before)


@contextmanager
def unchanged_generators() -> Generator[None]:
    """While open, random numbers may be drawn; afterwards every generator goes on where it was."""
    python, numpy = random.getstate(), np.random.get_state()  # the trainer's libraries draw from it
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            if mps is not None:
                torch.mps.set_rng_state(mps)
