"""
The methods that this package adds to the workers of a vLLM server, called by `POST /collective_rpc`:

    VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model MODEL ... \\
        --worker-extension-cls svf_rl.generation.worker_extension.SVFWorkerExtension \\
        --middleware svf_rl.generation.server.secret.RequireSecret

`svf-rl serve RECIPE` starts such a server. vLLM imports this file in every worker before it loads the model; nothing
else imports it.
"""

import base64
from collections.abc import Callable
from typing import Any

import torch

from svf_rl.errors import SVFError, one_line
from svf_rl.generation.server.known_layouts import KnownLayouts
from svf_rl.generation.server.secret import check_secret
from svf_rl.generation.server.served_rows import ServedRows
from svf_rl.generation.server.served_weights import ServedWeights
from svf_rl.generation.server.z_update import Layout
from svf_rl.generation.vllm.cpu import check_not_repacked, plain_cpu_weights
from svf_rl.generation.vllm.plugin import register

_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}

register()  # also where the package is no installed one, whose entry point vLLM finds

# For the whole life of the process: no update could replace what vLLM repacks when it loads the model.
_PLAIN = plain_cpu_weights()
_PLAIN.__enter__()


class SVFWorkerExtension:
    """
    Mixed into vLLM's worker class. `svf_X` is `X` of `ServedWeights`, or of `ServedRows` where the worker computes with
    factors, for callers over HTTP: it takes and returns plain data, with bytes in base64, and returns the status
    afterwards. An error is returned as `{"error": "..."}`, since vLLM would hide the text of an exception. Nothing is
    done without the server's secret: vLLM's route asks for no key.
    """

    svf_weights: Any = None

    # the worker's own
    model_runner: Any
    vllm_config: Any

    def svf_status(self, *, secret: object = None) -> dict[str, Any]:
        """What is served: `ServedWeights.status`, and the server's settings that decide what a client gets."""
        status, config = self._svf_do(secret, lambda served: None), self.vllm_config
        if "error" in status:
            return status
        return {
            **status,
            "model": config.model_config.model,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "max_model_len": config.model_config.max_model_len,
            "logprobs_mode": str(config.model_config.logprobs_mode),
            "device": config.device_config.device_type,
            "chunked_prefill": config.scheduler_config.enable_chunked_prefill,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "replicas": config.parallel_config.data_parallel_size,
        }

    def svf_setup(self, layout: dict[str, Any], *, secret: object = None) -> dict[str, Any]:
        return self._svf_do(secret, lambda served: served.set_up(Layout.from_json(layout)))

    def svf_update(self, version: str, z: str, *, secret: object = None) -> dict[str, Any]:
        return self._svf_do(secret, lambda served: served.update(version, base64.b64decode(z)))

    def svf_put(
        self, layout: str, version: str, z: str, number: int, unused: list[int], *, secret: object = None
    ) -> dict[str, Any]:
        return self._svf_do(secret, lambda served: served.put(layout, version, base64.b64decode(z), number, unused))

    def svf_begin_push(self, prefix: str, run: str, *, secret: object = None) -> dict[str, Any]:
        return self._svf_do(secret, lambda served: served.begin_push(prefix, run))

    def svf_push(self, name: str, dtype: str, shape: list[int], data: str, *, secret: object = None) -> dict[str, Any]:
        def push(served: ServedWeights) -> None:
            weight = torch.frombuffer(bytearray(base64.b64decode(data)), dtype=_DTYPES[dtype])
            served.push(name, weight.view(shape))

        return self._svf_do(secret, push)

    def svf_commit(self, version: str, tensors: int, *, secret: object = None) -> dict[str, Any]:
        return self._svf_do(secret, lambda served: served.commit(version, tensors))

    def _svf_do(self, secret: object, action: Callable[[Any], None]) -> dict[str, Any]:
        try:
            check_secret(secret)
            if self.svf_weights is None:
                self.svf_weights = self._svf_served()
            action(self.svf_weights)
            return self.svf_weights.status()
        except SVFError as error:
            return {"error": one_line(error)}
        # torch's own, memory among them, are RuntimeErrors; vLLM's loaders assert; the rest is of arguments of any kind
        except (RuntimeError, OSError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
            return {"error": f"{type(error).__name__}: {one_line(error)}"}

    def _svf_served(self) -> ServedWeights | ServedRows:
        module, config = self.model_runner.get_model(), self.vllm_config.model_config
        if getattr(module, "svf_table", None) is not None:
            layouts = KnownLayouts(module.svf_table, module.svf_fingerprints, config.model, config.dtype)
            return ServedRows(self.model_runner.lora_manager, layouts)
        check_not_repacked(module)
        return ServedWeights(module, config.model, config.revision, config.dtype)
