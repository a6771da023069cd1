"""What vLLM loads of this package by itself (entry point `vllm.general_plugins`), in each of its processes.

With it `vllm serve MODEL --load-format svf --enable-lora` takes SVF adapters where it takes LoRA.
"""

import os
from typing import Any

LOAD_FORMAT = "svf"
"""Of a vLLM that computes with factors (`--load-format`)."""

BACKEND = "svf"
"""Of vLLM's weight transfer (`--weight-transfer-config`)."""

ADAPTERS = "SVF_RL_ADAPTERS"
"""Variable with the folder of the resolver, before vLLM's own: by that vLLM looks for LoRA adapters too, where a name
with `../` leads out of the folder."""

_registered: list[str] = []


def register() -> None:
    """Make known the load format, the weight transfer, and where a variable names a folder, its resolver."""
    if _registered:
        return
    from vllm.config.load import LoadConfig
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.lora.resolver import LoRAResolverRegistry
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    class LazyLoader(BaseModelLoader):
        """Imports the loader where a model is loaded with it: other servers are not slowed by it."""

        def __new__(cls, load_config: LoadConfig) -> Any:
            from svf_rl.generation.vllm.factored.loader import FactoredLoader

            return FactoredLoader(load_config)

        def download_model(self, model_config: Any) -> None: ...

        def load_weights(self, model: Any, model_config: Any) -> None: ...

    register_model_loader(LOAD_FORMAT)(LazyLoader)
    WeightTransferEngineFactory.register_engine(
        BACKEND, "svf_rl.generation.server.transfer_engine", "SVFTransferEngine"
    )
    _registered.append(LOAD_FORMAT)
    folder = os.environ.get(ADAPTERS) or os.environ.get("VLLM_LORA_RESOLVER_CACHE_DIR")
    if folder:
        from svf_rl.generation.vllm.resolver import FolderResolver

        LoRAResolverRegistry.register_resolver(FolderResolver.__doc__, FolderResolver(folder))
