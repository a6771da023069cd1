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
from svf_rl.generation.vllm.cpu import check_not_repacked, plain_cpu_weights

# For the whole life of the process: no update could replace what vLLM repacks when it loads the model.
_PLAIN = plain_cpu_weights()
_PLAIN.__enter__()


class SVFWorkerExtension:
    """
    Mixed into vLLM's worker class. `svf_X` is `ServedWeights.X` for callers over HTTP: it takes and returns plain data,
    with bytes in base64, and returns the status afterwards. An error is returned as `{"error": "..."}`, since vLLM
    would hide the text of an exception.
    """

    svf_weights: ServedWeights | None = None

    # the worker's own
    model_runner: Any
    vllm_config: Any

    def svf_status(self) -> dict[str, Any]:
        """What is served: `ServedWeights.status`, and the server's settings that decide what a client gets."""
        config = self.vllm_config
        return {
            **self._svf_do(lambda served: None),
            "model": config.model_config.model,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "max_model_len": config.model_config.max_model_len,
            "logprobs_mode": str(config.model_config.logprobs_mode),
            "device": config.device_config.device_type,
            "chunked_prefill": config.scheduler_config.enable_chunked_prefill,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "replicas": config.parallel_config.data_parallel_size,
        }

    def svf_setup(self, layout: dict[str, Any]) -> dict[str, Any]:
        return self._svf_do(lambda served: served.set_up(Layout.from_json(layout)))

    def svf_update(self, version: str, z: str) -> dict[str, Any]:
        return self._svf_do(lambda served: served.update(version, base64.b64decode(z)))

    def svf_begin_push(self, prefix: str, run: str) -> dict[str, Any]:
        return self._svf_do(lambda served: served.begin_push(prefix, run))

    def svf_push(self, name: str, dtype: str, shape: list[int], data: str) -> dict[str, Any]:
        def push(served: ServedWeights) -> None:
            weight = torch.frombuffer(bytearray(base64.b64decode(data)), dtype=getattr(torch, dtype))
            served.push(name, weight.view(shape))

        return self._svf_do(push)

    def svf_commit(self, version: str, tensors: int) -> dict[str, Any]:
        return self._svf_do(lambda served: served.commit(version, tensors))

    def _svf_do(self, action: Callable[[ServedWeights], None]) -> dict[str, Any]:
        try:
            if self.svf_weights is None:
                module, config = self.model_runner.get_model(), self.vllm_config.model_config
                check_not_repacked(module)
                self.svf_weights = ServedWeights(module, config.model, config.revision, config.dtype)
            action(self.svf_weights)
            return self.svf_weights.status()
        except (SVFError, RuntimeError, OSError) as error:  # torch's own, memory among them, are RuntimeErrors
            return {"error": " ".join(str(error).split())[:500]}
