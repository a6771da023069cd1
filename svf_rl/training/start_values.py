"""The trained values that a run starts from, kept beside those in training: the reference policy of the KL term with
`kl_reference: start`. They are a second set of the same few values, and no second copy of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from svf_rl.errors import SVFError

FILE = "start_values.safetensors"
"""In a checkpoint: the start of a run is the same after it was resumed, whatever has become of where it came from."""


class StartValues:
    """A copy of what `model` trains, as it is now; `model` is not shared out by ZeRO-3."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._values = {name: p.detach().clone() for name, p in self._trained.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it, the model computes with them, and without dropout. For passes without a gradient. The parameters
        stay the same objects, and have their own memory back afterwards."""
        own = {name: p.data for name, p in self._trained.items()}
        training = self._model.training
        self._model.eval()
        for name, parameter in self._trained.items():
            self._values[name] = parameter.data = self._values[name].to(parameter.device)
        try:
            yield
        finally:
            for name, parameter in self._trained.items():
                parameter.data = own[name]
            self._model.train(training)

    def save(self, folder: Path) -> None:
        """Write them into a checkpoint that is being made."""
        save_file({name: value.contiguous() for name, value in self._values.items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Take those of a checkpoint. Raises `SVFError` where it has none that fit."""
        if not (folder / FILE).is_file():
            raise SVFError(f"{folder} holds no values of the run's start ({FILE}): set kl_reference to base")
        saved = load_file(folder / FILE)
        if {name: value.shape for name, value in saved.items()} != {n: v.shape for n, v in self._values.items()}:
            raise SVFError(f"{folder / FILE} is not of what is trained here: resume with the adapter of before")
        with torch.no_grad():
            self._values = {name: saved[name].to(value) for name, value in self._values.items()}
