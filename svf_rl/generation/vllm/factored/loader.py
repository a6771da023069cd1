"""vLLM's loading of a model whose adapted layers are factored: `load_format="svf"`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from torch import nn
from vllm.config import CompilationMode, ModelConfig, VllmConfig
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from svf_rl.generation.vllm import CannotServeFactors
from svf_rl.generation.vllm.factored.linear import FactoredLayers
from svf_rl.generation.vllm.factored.table import MultiplierTable
from svf_rl.svf.layer import SVFFactors

LOAD_FORMAT = "svf"
_FACTORS: ContextVar[Mapping[str, SVFFactors]] = ContextVar("factors")


@contextmanager
def serving_factors(factors: Mapping[str, SVFFactors]) -> Iterator[None]:
    """Engines of this process that are built within it with `load_format="svf"` compute with these very tensors, by
    the path of each layer in the model's files."""
    token = _FACTORS.set(factors)
    try:
        yield
    finally:
        _FACTORS.reset(token)


@register_model_loader(LOAD_FORMAT)
class FactoredLoader(DefaultModelLoader):
    """Loads all that has no factors from the model's files. The model it returns has a `svf_table`."""

    def __init__(self, load_config: LoadConfig):
        load_config.load_format = "auto"  # of the files
        super().__init__(load_config)

    def load_model(self, vllm_config: VllmConfig, model_config: ModelConfig, prefix: str = "") -> nn.Module:
        if vllm_config.quant_config is not None:
            raise CannotServeFactors("the model is quantised, and factors are served beside plain weights only")
        vllm_config.quant_config = layers = FactoredLayers(_FACTORS.get())
        _compile_as_without_adapters(vllm_config)
        model = super().load_model(vllm_config, model_config, prefix)
        table = MultiplierTable(
            layers.singular_values(),
            tokens=vllm_config.scheduler_config.max_num_batched_tokens,
            fixed=vllm_config.device_config.device_type == "cuda" and not model_config.enforce_eager,
        )
        layers.use(table)
        # where the compiled model finds what it computes by a layer's name
        vllm_config.compilation_config.static_forward_context.update(layers.methods)
        model.svf_table = table
        return model


def _compile_as_without_adapters(vllm_config: VllmConfig) -> None:
    """On the CPU vLLM compiles no model that takes adapters, for the sake of LoRA's layers."""
    compilation = vllm_config.compilation_config
    if vllm_config.device_config.device_type == "cpu" and not vllm_config.model_config.enforce_eager:
        compilation.mode = CompilationMode.DYNAMO_TRACE_ONCE
        compilation.backend = "inductor"
        compilation.inductor_compile_config.update(size_asserts=False, nan_asserts=False, epilogue_fusion=True)
