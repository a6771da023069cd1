"""The random numbers of Python, NumPy and torch, which libraries and a user's code draw from."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import set_seed


def take_random_state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def restore_random_state(state: tuple[Any, ...]) -> None:
    """`state`: from [`take_random_state`]."""
    python, numpy, torch_state, cuda = state
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(torch_state)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)


@contextmanager
def own_random_numbers(seed: int) -> Iterator[None]:
    """Within it they begin with the seed; afterwards they go on as if nothing had been drawn."""
    state = take_random_state()
    set_seed(seed)
    try:
        yield
    finally:
        restore_random_state(state)
