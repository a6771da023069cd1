"""vLLM's loading of a model whose adapted layers are factored: `load_format="svf"`."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import CompilationMode, ModelConfig, VllmConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from svf_rl.errors import SVFError
from svf_rl.generation.vllm import CannotServeFactors
from svf_rl.generation.vllm.factored.adoption import Adoption
from svf_rl.generation.vllm.factored.folders import AdapterFolders
from svf_rl.generation.vllm.factored.linear import FactoredLayers
from svf_rl.generation.vllm.factored.patches import patch_adapters
from svf_rl.generation.vllm.factored.table import MultiplierTable
from svf_rl.generation.weights import SharedWeights
from svf_rl.svf.cache import FactorCache
from svf_rl.svf.checkpoint import decompose_checkpoint
from svf_rl.svf.layer import SVFFactors

_SHARED: ContextVar[SharedWeights] = ContextVar("shared")


@contextmanager
def sharing(weights: SharedWeights) -> Iterator[None]:
    """An engine of this process that is built within it with `load_format="svf"` computes with these very factors, and
    the parameters become views of its own."""
    token = _SHARED.set(weights)
    try:
        yield
    finally:
        _SHARED.reset(token)


def is_sharing() -> bool:
    return _SHARED.get(None) is not None


class FactoredLoader(DefaultModelLoader):
    """
    Loads all that has no factors from the model's files. The model it returns has a `svf_table`, and where adapters are
    read from folders `svf_read`, which does that ([`AdapterFolders.read`]).

    The factors are those that the engine shares. In a process without a trainer `model_loader_extra_config` says which:
    for `svf-rl serve`, the `cache` and, by the path of each matrix in the model's files, the fingerprint (`factors`)
    that they are stored by, and a model that cannot be served so is then loaded with whole weights, its `svf_table`
    `None`; for any other server the `targets` of its adapters (default: mlp), whose factors are computed now where the
    cache lacks them.
    """

    def __init__(self, load_config: LoadConfig):
        self._stored = load_config.model_loader_extra_config
        super().__init__(replace(load_config, load_format="auto", model_loader_extra_config={}))  # of the files

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> nn.Module:
        if is_sharing():
            return self._load_factored(_SHARED.get(), vllm_config, model_config, prefix)
        patch_adapters()
        plain, device = vllm_config.quant_config, torch.device(vllm_config.device_config.device)
        if "factors" not in self._stored:
            return self._load_for_folders(vllm_config, model_config, prefix)
        try:
            shared = SharedWeights(_map_factors(self._stored, model_config.dtype, device), {})
            model = self._load_factored(shared, vllm_config, model_config, prefix)
            model.svf_fingerprints = self._stored["factors"]
            return model
        except CannotServeFactors as error:
            reason = str(error)
        print(f"note: the server holds whole weights (vllm_weights: merged): {reason}", file=sys.stderr, flush=True)
        vllm_config.quant_config, vllm_config.lora_config = plain, None
        for layers in ("static_forward_context", "static_all_moe_layers"):  # of the model that was begun
            getattr(vllm_config.compilation_config, layers).clear()
        self._adoption = Adoption({})
        model = super().load_model(vllm_config, model_config, prefix)
        model.svf_table = None
        return model

    def _load_for_folders(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str) -> nn.Module:
        unknown = sorted(self._stored.keys() - {"targets"})
        if unknown:
            raise SVFError(f"--model-loader-extra-config has no {unknown[0]} with --load-format svf, only targets")
        if vllm_config.lora_config is None:
            raise SVFError("--load-format svf is for adapters: add --enable-lora")
        if vllm_config.parallel_config.tensor_parallel_size > 1:
            raise SVFError("adapters are served on one device: drop --tensor-parallel-size, or merge them")
        if vllm_config.lora_config.max_loras == 1:  # vLLM's default, for LoRA's sake
            print("note: a batch takes one adapter at a time: --max-loras 64 mixes them", file=sys.stderr, flush=True)
        device = torch.device(vllm_config.device_config.device)
        index = decompose_checkpoint(
            model_config.model,
            self._stored.get("targets", "mlp"),
            model_config.dtype,
            device=device,
            revision=model_config.revision,
            trust_remote_code=model_config.trust_remote_code,
        )
        fingerprints = {index.stored[name]: entry.fingerprint for name, entry in index.modules.items()}
        stored = {"cache": index.path.parent, "factors": fingerprints}
        factors = _map_factors(stored, model_config.dtype, device)
        model = self._load_factored(SharedWeights(factors, {}), vllm_config, model_config, prefix)
        model.svf_read = AdapterFolders(model_config.model, factors, fingerprints, index.stored).read
        model.svf_fingerprints = fingerprints
        return model

    def _load_factored(
        self, shared: SharedWeights, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str
    ) -> nn.Module:
        if vllm_config.quant_config is not None:
            raise CannotServeFactors("the model is quantised, and factors are served beside plain weights only")
        vllm_config.quant_config = layers = FactoredLayers(shared.factors)
        self._adoption = Adoption(shared.parameters)
        _compile_as_without_adapters(vllm_config)
        model = super().load_model(vllm_config, model_config, prefix)
        table = MultiplierTable(
            layers.singular_values(),
            tokens=vllm_config.scheduler_config.max_num_batched_tokens,
            slots=vllm_config.lora_config.max_loras,
        )
        layers.use(table)
        # where the compiled model finds what it computes by a layer's name
        vllm_config.compilation_config.static_forward_context.update(layers.methods)
        model.svf_table, model.svf_read = table, None
        return model

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        with self._adoption:
            super().load_weights(model, model_config)

    def get_all_weights(self, *args: Any) -> Iterator[tuple[str, Tensor]]:
        return self._adoption.watch(super().get_all_weights(*args))


def _map_factors(stored: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> dict[str, SVFFactors]:
    """On the CPU they stay in their files, and take no memory of the process."""
    cache, found = FactorCache(stored["cache"]), {}
    for path, fingerprint in stored["factors"].items():
        factors = cache.map_file(fingerprint, dtype)
        if factors is None:
            raise SVFError(f"no sound factors of {path} are in {cache.root}: fill the cache again (svf-rl decompose)")
        found[path] = SVFFactors(factors.to(dtype, device), sharded=False)
    return found


def _compile_as_without_adapters(vllm_config: VllmConfig) -> None:
    """On the CPU vLLM compiles no model that takes adapters, for the sake of LoRA's layers."""
    compilation = vllm_config.compilation_config
    if vllm_config.device_config.device_type == "cpu" and not vllm_config.model_config.enforce_eager:
        compilation.mode = CompilationMode.DYNAMO_TRACE_ONCE
        compilation.backend = "inductor"
        compilation.inductor_compile_config.update(size_asserts=False, nan_asserts=False, epilogue_fusion=True)
