"""The weights of one worker of a vLLM server, rebuilt from `z`."""

import uuid
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from svf_rl.errors import SVFError
from svf_rl.generation.server.z_update import AdaptedMatrix, Layout
from svf_rl.svf.cache import FactorCache
from svf_rl.svf.checkpoint import StoredWeights
from svf_rl.svf.decompose import Factors, fingerprint
from svf_rl.svf.mask import change_of_singular_values
from svf_rl.svf.merge import merged_weight


@dataclass(frozen=True)
class _Matrix:
    """An adapted weight with what it is rebuilt from; both are maps of files."""

    about: AdaptedMatrix
    weight: Tensor  # as stored: (out, in), or (in, out) where `about.transposed`
    factors: Factors


class ServedWeights:
    """
    The module of one worker and what its weights are.

    The untouched `W` and the factors stay in their files, the checkpoint and the factor cache, which are mapped: the
    workers of a machine share what the system keeps of them in memory. An update rebuilds one full `W'` at a time on
    the worker's device and hands it to vLLM's own loader, which takes the worker's shard of it; so it needs room for
    one matrix, its factors and the result there, whatever the size of the model.

    Args:
        module (`nn.Module`): vLLM's model in this worker.
        model (`str`): The checkpoint that the server was started with: folder or Hub name.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        dtype (`torch.dtype`): Type of the server's weights.
    """

    def __init__(self, module: nn.Module, model: str, revision: str | None, dtype: torch.dtype):
        self._module, self._model, self._revision, self._dtype = module, model, revision, dtype
        self._device = next(module.parameters()).device
        self._prefix = ""
        self._layout: Layout | None = None
        self._matrices: list[_Matrix] = []
        self._changed: set[str] = set()  # the weights that are not those of the checkpoint
        self._run = ""  # that pushed last
        self._foreign: set[str] = set()  # weights that others changed, and that are not put back yet
        self._pushed: set[str] = set()  # by the push under way
        self.instance = uuid.uuid4().hex
        """Another one after every start of the server."""
        self.version: str | None = ""
        """What the weights are: `Layout.version` of the last update, `""` those of the checkpoint, `None` a mixture of
        two, after an update that failed or while one is under way."""
        self.updates = 0
        """How often the weights changed."""

    def status(self) -> dict[str, Any]:
        """Instance, version, number of updates, and the digest of the layout (`None` before `set_up`)."""
        return {
            "instance": self.instance,
            "version": self.version,
            "updates": self.updates,
            "layout": self._layout.digest if self._layout else None,
        }

    def set_up(self, layout: Layout) -> None:
        """
        Find the weights and the factors of `layout`, and check that they are those of the trained model. The weights
        that are served stay as they are.

        Raises:
            SVFError: other weights, another type, or factors that are not to be seen from here.
        """
        served = str(self._dtype).removeprefix("torch.")
        if layout.dtype != served:
            raise SVFError(
                f"it serves {self._model} in {served}, and the trained model has {layout.dtype}: start it with "
                f"--dtype {layout.dtype}"
            )
        stored = StoredWeights(self._model, self._revision, layout.prefix)
        cache = FactorCache(layout.cache)
        if layout.matrices and not cache.root.is_dir():
            raise SVFError(
                f"it does not see the factor cache {layout.cache}: set SVF_RL_CACHE, where the training runs, to a "
                "folder on a file system that the machine of the server has too"
            )
        matrices = [self._found(matrix, stored, cache) for matrix in layout.matrices]
        self._prefix, self._layout, self._matrices = layout.prefix, layout, matrices

    def _found(self, matrix: AdaptedMatrix, stored: StoredWeights, cache: FactorCache) -> _Matrix:
        try:
            weight = stored.read(matrix.name)
        except SVFError as error:
            raise SVFError(f"it serves another model than the trained one: {error}") from error
        live = weight.to(self._dtype)
        if live.ndim != 2 or fingerprint(live.T if matrix.transposed else live) != matrix.fingerprint:
            raise SVFError(
                f"it serves {self._model}, whose {matrix.name} differs from that of the trained model: start it with "
                "the model of the recipe (svf-rl serve RECIPE)"
            )
        factors = cache.mapped(matrix.fingerprint, self._dtype)
        if factors is None:
            raise SVFError(
                f"it finds no sound factors of {matrix.name} in {cache.root}: fill the cache again (svf-rl decompose)"
            )
        return _Matrix(matrix, weight, factors)

    @torch.no_grad()
    def update(self, version: str, z: bytes) -> None:
        """
        Serve the weights that `z` makes. A failure leaves `version` at `None`; the next update mends it, since every
        weight is rebuilt from the untouched one.

        Raises:
            SVFError: no layout yet, or `z` is not what `version` names.
        """
        if self._layout is None:
            raise SVFError("it was not told the layout of the adapter: call svf_setup first")
        parts = self._layout.split(z)
        if self._layout.version(z) != version:
            raise SVFError("an update did not arrive as it was sent: its digest differs")
        if version == self.version:
            return
        self.version, self._run = None, ""
        self._restore(self._changed - {matrix.about.name for matrix in self._matrices})
        for matrix, masks_and_z in zip(self._matrices, parts, strict=True):
            change = change_of_singular_values(matrix.factors.s.to(self._device), masks_and_z)
            self._load(matrix.about.name, self._rebuilt(matrix, change))
        self.version = version
        self.updates += 1

    def _rebuilt(self, matrix: _Matrix, change: Tensor) -> Tensor:
        """`W'` as `W` is stored, in the server's type, on its device."""
        weight = matrix.weight.to(device=self._device, dtype=self._dtype)
        U, Vt = matrix.factors.U.to(self._device), matrix.factors.Vt.to(self._device)
        return merged_weight(weight, *((Vt.T, U.T) if matrix.about.transposed else (U, Vt)), change)

    def _load(self, name: str, weight: Tensor) -> None:
        self._changed.add(name)
        self._module.load_weights([(name, weight)])

    def _restore(self, names: set[str]) -> None:
        """Put back weights that another adapter before this one changed."""
        if names:
            stored = StoredWeights(self._model, self._revision, self._prefix)
            for name in names:
                self._load(name, stored.read(name).to(device=self._device, dtype=self._dtype))
                self._changed.discard(name)

    def begin_push(self, prefix: str, run: str) -> None:
        """
        Full weights are going to come, in any order, until `commit`: for adapters that `z` does not describe, and to
        compare with.

        Args:
            prefix (`str`): The base model's `base_model_prefix`.
            run (`str`): Who pushes. What others changed, and this push does not, is put back in the end.
        """
        self.version, self._pushed, self._prefix = None, set(), prefix
        if run != self._run:
            self._run, self._foreign = run, set(self._changed)

    def push(self, name: str, weight: Tensor) -> None:
        """One full weight."""
        self._pushed.add(name)
        self._load(name, weight.to(self._device))

    def commit(self, version: str, tensors: int) -> None:
        """
        The push is complete.

        Args:
            version (`str`): A name for the weights.
            tensors (`int`): How many were pushed.

        Raises:
            SVFError: not all of them have come.
        """
        if self.version is not None or len(self._pushed) != tensors:
            raise SVFError(f"{len(self._pushed)} weights of {tensors} have come: another run pushes to this server too")
        self._restore(self._foreign - self._pushed)
        self._foreign = set()
        self.version = version
        self.updates += 1
