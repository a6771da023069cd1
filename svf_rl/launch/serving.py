"""The command that starts a vLLM server which a run with `vllm_mode: server` can use."""

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence

import torch
from transformers import AutoConfig

from svf_rl.errors import SVFError
from svf_rl.generation.server.connection import EXTENSION
from svf_rl.generation.server.secret import RequireSecret, make_secret
from svf_rl.generation.vllm import require_vllm, vllm_errors
from svf_rl.generation.vllm.colocated import MOST_ADAPTERS
from svf_rl.generation.vllm.cpu import cpu_length
from svf_rl.generation.vllm.plugin import LOAD_FORMAT
from svf_rl.models.arguments import ModelArguments
from svf_rl.models.kinds.svf import SVFKind
from svf_rl.settings.recipe import Recipe
from svf_rl.storage.loading_errors import loading_error
from svf_rl.svf.cache import default_cache_dir

# a class that imports vLLM
_VERSIONS = "svf_rl.generation.server.versions.ServeVersions"


def server_command(recipe: Recipe, host: str, port: int, more: Sequence[str] = ()) -> tuple[list[str], dict[str, str]]:
    """
    Args:
        recipe ([`Recipe`]): The recipe of the run: model, type, length and sampling of its rollouts.
        host (`str`): The address to listen at.
        port (`int`): The port to listen at.
        more (`Sequence[str]`, *optional*): Options of vLLM, which replace those from the recipe.

    Returns:
        The command and its environment.

    Raises:
        SVFError: no such model, no vLLM, or a server cannot listen at the address.
    """
    model, training = recipe.model, recipe.training
    check_address(host, port)
    make_secret()
    dtype = model_dtype(model)
    options: dict[str, object] = {
        "dtype": dtype,
        "seed": training.seed,
        "tensor-parallel-size": training.vllm_tensor_parallel_size,
        "max-num-seqs": 256,
        # a server has its GPU to itself, but an update needs memory for a matrix and its factors
        "gpu-memory-utilization": 0.85 if torch.cuda.is_available() else training.vllm_gpu_memory_utilization,
        # after temperature and truncation: the distribution from which tokens are sampled
        "logprobs-mode": "processed_logprobs",
        "worker-extension-cls": EXTENSION,
        "middleware": f"{RequireSecret.__module__}.{RequireSecret.__name__}",
    }
    flags = ["--disable-log-stats"]
    if _serves_rows(recipe):
        options |= {
            "load-format": LOAD_FORMAT,
            "model-loader-extra-config": json.dumps(_factors(recipe, dtype)),
            "max-loras": MOST_ADAPTERS,
            "middleware": _VERSIONS,
        }
        flags.append("--enable-lora")
    length, eager = training.vllm_max_model_length, training.vllm_enforce_eager
    command, environment = vllm_command(model, host, port, length, options, flags, eager, more)
    return command, {**environment, "VLLM_SERVER_DEV_MODE": "1"}


def vllm_command(
    model: ModelArguments,
    host: str,
    port: int,
    length: int | None,
    options: Mapping[str, object],
    flags: Sequence[str],
    eager: bool,
    more: Sequence[str],
) -> tuple[list[str], dict[str, str]]:
    """
    Of any server of the package: what all of them need of vLLM, on this machine.

    Args:
        length (`int`, *optional*): The longest prompt and completion, in tokens.
        options (`Mapping[str, object]`), flags (`Sequence[str]`): What this one needs.
        eager (`bool`): Compile nothing.
        more (`Sequence[str]`): Options of vLLM from its user, which replace others.

    Raises:
        SVFError: vLLM cannot read the model's length.
    """
    flags = [*flags, "--disable-uvicorn-access-log", "--no-use-tqdm-on-load"]
    environment = {"PYTHONWARNINGS": "ignore::DeprecationWarning", **os.environ}
    if eager:
        flags.append("--enforce-eager")
        environment["TORCHDYNAMO_DISABLE"] = "1"  # `--enforce-eager` alone still compiles the sampler
    if not torch.cuda.is_available():
        if length is None:
            with vllm_errors(f"vLLM does not start with {model.location}"):
                length = cpu_length(model.location, model.model_revision, model.trust_remote_code)
        # vLLM rewinds a seeded random generator after part of a prompt, which those of the CPU cannot do
        flags.append("--no-enable-chunked-prefill")
        flags += ["--block-size", "32"]  # of vLLM's 128 tokens the completions of a shorter prompt would share none
    if model.trust_remote_code:
        flags.append("--trust-remote-code")
    given = {
        "host": host,
        "port": port,
        "model": model.location,
        "revision": model.model_revision,
        "max-model-len": length,
        "max-num-batched-tokens": max(4096, length) if length else None,
        **options,
    }
    texts = [text for name, value in given.items() if value is not None for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *texts, *flags, *more], environment


def _serves_rows(recipe: Recipe) -> bool:
    """Whether the server computes with factors: where nothing is known against it, and else a line says why not."""
    if recipe.training.vllm_weights == "merged":
        return False
    kind = recipe.adapter.kind
    hinders = {
        "an adapter other than SVF": not isinstance(kind, SVFKind),
        "a core that mixes singular directions, or biases": isinstance(kind, SVFKind)
        and not kind.config(recipe.adapter).is_multiplier,
        "modules_to_save": recipe.adapter.modules_to_save,
        "vllm_tensor_parallel_size above 1": recipe.training.vllm_tensor_parallel_size > 1,
    }
    reason = next((what for what, there in hinders.items() if there), None)
    if reason is None:
        return True
    print(f"note: the server holds whole weights (vllm_weights: merged): {reason}", file=sys.stderr)
    return False


def _factors(recipe: Recipe, dtype: str) -> dict[str, object]:
    """Where vLLM finds the factors of the matrices that the adapter adapts; computed now where they are missing."""
    kind = recipe.adapter.kind
    assert isinstance(kind, SVFKind)
    factors = kind.decompose(recipe.model, kind.config(recipe.adapter), getattr(torch, dtype))
    return {"cache": str(default_cache_dir().resolve()), "factors": factors}


def model_dtype(model: ModelArguments) -> str:
    """The type that transformers chooses for the trained model; vLLM's `auto` would turn float32 into half
    precision."""
    try:
        config = AutoConfig.from_pretrained(
            model.location, revision=model.model_revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise loading_error("model", model.location, error, model.model_revision) from error
    return model.dtype if model.dtype != "auto" else str(config.dtype or torch.float32).removeprefix("torch.")


def check_address(host: str, port: int) -> None:
    """Raises `SVFError` where there is no vLLM, or nothing can listen at the address: vLLM itself would fail only after
    minutes of loading."""
    require_vllm()
    if not 0 < port < 65536:
        raise SVFError(f"cannot listen at port {port}: give a --port between 1 and 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise SVFError(f"cannot listen at {host}:{port} ({error}): give another --port or --host") from error
