"""The weights of one worker of a vLLM server, rebuilt from `z`."""

import uuid
from typing import Any

import torch
from torch import Tensor, nn

from svf_rl.errors import SVFError
from svf_rl.generation.server.z_update import AdaptedMatrix, Layout, check_values
from svf_rl.svf.cache import FactorCache
from svf_rl.svf.decompose import Factors, fingerprint
from svf_rl.svf.mask import change_of_singular_values
from svf_rl.svf.merge import merged_weight
from svf_rl.svf.stored_weights import StoredWeights, local_folder

# what is above it comes from a training that has diverged, or from nowhere
_LARGEST_WEIGHT = 1e6


class ServedWeights:
    """
    The module of one worker and its weights.

    An update needs memory for one matrix, its factors and the result, for models of any size: files are mapped, so that
    the workers of a machine share the cached pages.

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
        # with the weight, as it is stored, and its factors, both mapped from files
        self._matrices: list[tuple[AdaptedMatrix, Tensor, Factors]] = []
        self._changed: set[str] = set()  # the weights that are not those of the checkpoint
        self._run = ""  # the run that pushed last
        self._foreign: set[str] = set()  # weights that other runs changed and that are not restored yet
        self._pushed: set[str] | None = None  # by the current push; `None` where none was begun
        self._files: StoredWeights | None = None  # what the names of a push are looked up in
        self.instance = uuid.uuid4().hex
        """Different after every start of the server."""
        self.version: str | None = ""
        """The name of the weights: `Layout.version` of the last update, `""` for those of the checkpoint, `None` for a
        mixture of two, after a failed update or during one."""
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
        """Find the weights and the factors of `layout`. The served weights do not change. Raises `SVFError` where they
        are not those of the trained model, of another type, or factors that this machine cannot read."""
        layout.check(self._model, self._dtype)
        stored = self._stored(layout.prefix)
        cache = FactorCache(layout.cache)
        if layout.matrices and not cache.root.is_dir():
            raise SVFError(
                f"it does not see the factor cache {layout.cache}: set SVF_RL_CACHE, where the training runs, to a "
                "folder on a file system that the machine of the server has too"
            )
        matrices = [(matrix, *self._find(matrix, stored, cache)) for matrix in layout.matrices]
        self._prefix, self._layout, self._matrices = layout.prefix, layout, matrices

    def _find(self, matrix: AdaptedMatrix, stored: StoredWeights, cache: FactorCache) -> tuple[Tensor, Factors]:
        try:
            weight = stored.read(matrix.name)
        except SVFError as error:
            raise SVFError(f"it serves another model than the trained one: {error}") from error
        live = weight.to(self._dtype)
        live = live.T if matrix.transposed else live
        matrix.check_served(fingerprint(live) if live.ndim == 2 else "", self._model)
        factors = cache.map_file(matrix.fingerprint, self._dtype, live)
        if factors is None:
            raise SVFError(
                f"it finds no sound factors of {matrix.name} in {cache.root}: fill the cache again (svf-rl decompose)"
            )
        matrix.check_rank(factors.s.numel())
        return weight, factors

    @torch.no_grad()
    def update(self, version: str, z: bytes) -> None:
        """Serve the weights of `z`. After a failure `version` is `None`; the next update repairs it, since every weight
        is rebuilt from the untouched one. Raises `SVFError` without a layout, or where `z` is not what `version`
        names."""
        if self._layout is None:
            raise SVFError("it does not have the layout of the adapter: call svf_setup first")
        parts = self._layout.unpack(version, z)
        if version == self.version:
            return
        changes = []
        for (matrix, _, factors), masks_and_z in zip(self._matrices, parts, strict=True):
            change = change_of_singular_values(factors.s.to(self._device), masks_and_z)
            if not (factors.s.max() + change.abs().max().cpu()).item() <= torch.finfo(self._dtype).max:  # NaN too
                raise SVFError(f"z makes of {matrix.name} what {self._dtype} cannot hold: the training has diverged")
            changes.append(change)
        self.version, self._run, self._pushed = None, "", None
        self._restore(self._changed - {matrix.name for matrix, _, _ in self._matrices})
        for (matrix, weight, factors), change in zip(self._matrices, changes, strict=True):
            self._load(matrix.name, self._rebuild(matrix, weight, factors, change))
        self.version = version
        self.updates += 1

    def _rebuild(self, matrix: AdaptedMatrix, weight: Tensor, factors: Factors, change: Tensor) -> Tensor:
        """`W'` as `W` is stored, in the server's type, on its device. (A function, so that nothing of it stays in
        memory while the next one is rebuilt.)"""
        U, Vt = factors.U.to(self._device), factors.Vt.to(self._device)
        left, right = (Vt.T, U.T) if matrix.transposed else (U, Vt)
        return merged_weight(weight.to(device=self._device, dtype=self._dtype), left, right, change)

    def _load(self, name: str, weight: Tensor) -> None:
        self._changed.add(name)
        self._module.load_weights([(name, weight)])

    def _stored(self, prefix: str) -> StoredWeights:
        return StoredWeights(self._model, local_folder(self._model, self._revision)[0], prefix)

    def _restore(self, names: set[str]) -> None:
        """Restore weights that an earlier adapter changed."""
        if names:
            stored = self._stored(self._prefix)
            for name in names:
                self._load(name, stored.read(name).to(device=self._device, dtype=self._dtype))
                self._changed.discard(name)

    def begin_push(self, prefix: str, run: str) -> None:
        """Announce full weights, in any order, until `commit`: for adapters that `z` does not describe, and for
        comparison. Weights that other runs than `run` changed and this push does not are restored at the end; `prefix`
        is the base model's `base_model_prefix`."""
        if not isinstance(prefix, str) or not isinstance(run, str):
            raise SVFError("a push begins with a prefix and the name of its run, both text")
        self._files = self._stored(prefix)
        self.version, self._pushed, self._prefix = None, set(), prefix
        if run != self._run:
            self._run, self._foreign = run, set(self._changed)

    def push(self, name: str, weight: Tensor) -> None:
        """One full weight. Raises `SVFError`, and loads nothing, where no push was begun, the files have no weight of
        this name and shape that could be restored, or a value is not finite or out of all proportion."""
        if self._pushed is None or self._files is None:
            raise SVFError("a weight was pushed and no push was begun: call svf_begin_push first")
        wanted = self._files.read(name).shape
        if weight.shape != wanted:
            raise SVFError(f"{name} has shape {tuple(weight.shape)}, and in {self._model} it has {tuple(wanted)}")
        check_values(weight, name, _LARGEST_WEIGHT)
        self._pushed.add(name)
        self._load(name, weight.to(self._device))

    def commit(self, version: str, tensors: int) -> None:
        """The push of `tensors` weights is complete; they are now called `version`. Raises `SVFError` where not all of
        them arrived."""
        pushed, self._pushed = self._pushed, None
        if pushed is None or len(pushed) != tensors:
            raise SVFError(f"{len(pushed or ())} of {tensors} weights arrived: another run pushes to this server too")
        self._restore(self._foreign - pushed)
        self._foreign = set()
        self.version = version
        self.updates += 1
