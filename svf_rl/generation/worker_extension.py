"""
The methods that this package adds to the workers of a vLLM server, called by `POST /collective_rpc`:

    VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model MODEL ... \\
        --worker-extension-cls svf_rl.generation.worker_extension.SVFWorkerExtension

`svf-rl serve RECIPE` starts such a server. vLLM imports this file in every worker before it loads the model; nothing
else imports it.
"""

import base64
from collections.abc import Callable
from typing import Any

import torch

from svf_rl.errors import SVFError
from svf_rl.generation.server.served_weights import ServedWeights
from svf_rl.generation.server.z_update import Layout
from svf_rl.generation.vllm.cpu import plain_cpu_weights

# For the whole life of the process: no update could replace what vLLM repacks when it loads the model.
_PLAIN = plain_cpu_weights()
_PLAIN.__enter__()


class SVFWorkerExtension:
    """
    Mixed into vLLM's worker class. Every method takes and returns plain data; an error is returned as
    `{"error": "..."}`, since vLLM would hide the text of an exception.
    """

    svf_weights: ServedWeights | None = None

    # the worker's own
    model_runner: Any
    vllm_config: Any

    def svf_status(self) -> dict[str, Any]:
        """What is served: `ServedWeights.status`, and the server's settings that decide what a client gets."""
        return _answer(lambda: {**self._svf_served().status(), **self._svf_settings()})

    def svf_setup(self, layout: dict[str, Any]) -> dict[str, Any]:
        """See `ServedWeights.set_up`; `layout` is `Layout.to_json()`."""
        return self._svf_do(lambda served: served.set_up(Layout.from_json(layout)))

    def svf_update(self, version: str, z: str) -> dict[str, Any]:
        """See `ServedWeights.update`; `z` comes in base64."""
        return self._svf_do(lambda served: served.update(version, base64.b64decode(z)))

    def svf_begin_push(self, prefix: str, run: str) -> dict[str, Any]:
        """See `ServedWeights.begin_push`."""
        return self._svf_do(lambda served: served.begin_push(prefix, run))

    def svf_push(self, name: str, dtype: str, shape: list[int], data: str) -> dict[str, Any]:
        """See `ServedWeights.push`; the bytes of the weight come in base64."""
        return self._svf_do(lambda served: served.push(name, _tensor(dtype, shape, base64.b64decode(data))))

    def svf_commit(self, version: str, tensors: int) -> dict[str, Any]:
        """See `ServedWeights.commit`."""
        return self._svf_do(lambda served: served.commit(version, tensors))

    def _svf_do(self, action: Callable[[ServedWeights], None]) -> dict[str, Any]:
        def act() -> dict[str, Any]:
            served = self._svf_served()
            action(served)
            return served.status()

        return _answer(act)

    def _svf_served(self) -> ServedWeights:
        if self.svf_weights is None:
            module, config = self.model_runner.get_model(), self.vllm_config.model_config
            empty = [name for name, p in module.named_parameters() if p.numel() == 0]
            if empty:
                raise SVFError(f"vLLM repacked {empty[0]}, so that no weight can be synced: report this with your CPU")
            self.svf_weights = ServedWeights(module, config.model, config.revision, config.dtype)
        return self.svf_weights

    def _svf_settings(self) -> dict[str, Any]:
        config = self.vllm_config
        return {
            "model": config.model_config.model,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "max_model_len": config.model_config.max_model_len,
            "logprobs_mode": str(config.model_config.logprobs_mode),
            "device": config.device_config.device_type,
            "chunked_prefill": config.scheduler_config.enable_chunked_prefill,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "replicas": config.parallel_config.data_parallel_size,
        }


def _answer(act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return act()
    except (SVFError, RuntimeError, OSError) as error:  # torch's own, memory among them, are RuntimeErrors
        return {"error": " ".join(str(error).split())[:500]}


def _tensor(dtype: str, shape: list[int], data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=getattr(torch, dtype)).view(shape)
