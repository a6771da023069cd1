"""The command that starts an endpoint: vLLM's own server, with the adapters and this package's middleware."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from svf_rl.adaptation.classifier import find_classifier_prompt
from svf_rl.endpoint.arguments import EndpointArguments
from svf_rl.endpoint.settings import BASE, CLASSIFIER, EndpointSettings
from svf_rl.errors import SVFError
from svf_rl.experts.merged import trained_dtype
from svf_rl.generation.vllm.colocated import MOST_ADAPTERS
from svf_rl.generation.vllm.plugin import ADAPTERS, LOAD_FORMAT
from svf_rl.launch.serving import check_address, model_dtype, vllm_command
from svf_rl.models.base import ModelArguments
from svf_rl.svf.expert import check_same_base, expert_folder, read_expert

_MIDDLEWARE = "svf_rl.endpoint.app.Endpoint"  # a class that imports vLLM
_DRAIN = 600
"""Seconds for the requests that run when the server is told to stop."""


def endpoint_command(
    model: ModelArguments,
    experts: Mapping[str, str],
    arguments: EndpointArguments,
    host: str,
    port: int,
    more: Sequence[str] = (),
) -> tuple[list[str], dict[str, str]]:
    """
    Args:
        model ([`ModelArguments`]): The base model; with `dtype: auto` in the type of the experts' training.
        experts (`Mapping[str, str]`): Folders or Hub names by the names of models for requests.
        arguments ([`EndpointArguments`]): What else is served.
        host (`str`): The address to listen at.
        port (`int`): The port to listen at.
        more (`Sequence[str]`, *optional*): Options of vLLM, which replace others.

    Returns:
        The command and its environment.

    Raises:
        SVFError: an adapter that is none or does not go with the others, a name that no request could give, or a server
            cannot listen at the address. All of it before anything is loaded.
    """
    check_address(host, port)
    folders = {name: expert_folder(path).resolve() for name, path in experts.items()}
    classifier = None if arguments.classifier is None else expert_folder(arguments.classifier).resolve()
    root = None if arguments.adapters is None else Path(arguments.adapters).expanduser().resolve()
    if root is not None and not root.is_dir():
        raise SVFError(f"there is no folder {arguments.adapters} from which adapters could be loaded")
    asked = find_classifier_prompt(model.location, classifier)
    settings = EndpointSettings(
        model.location,
        {name: str(folder) for name, folder in folders.items()},
        None if classifier is None else str(classifier),
        arguments.classifier_prompt or asked.system_prompt,
        None if root is None else str(root),
        model.model_revision,
        model.trust_remote_code,
        asked.labels,
        asked.examples,
    )
    adapters = folders | ({} if classifier is None else {CLASSIFIER: classifier})
    read = [read_expert(folder, name) for name, folder in adapters.items()]
    check_same_base([expert for expert in read if expert.name != CLASSIFIER])
    model = replace(model, dtype=trained_dtype(model, list(folders.values())))
    suffixes = sorted({re.escape(name.rpartition(".")[2]) for expert in read for name in expert.z})
    options: dict[str, object] = {
        "served-model-name": BASE,
        "dtype": model_dtype(model),
        "load-format": LOAD_FORMAT,
        "model-loader-extra-config": json.dumps({"targets": rf".*\.({'|'.join(suffixes)})"}),
        "max-loras": MOST_ADAPTERS,
        "shutdown-timeout": _DRAIN,
        # of the machine's memory on a CPU, of which vLLM would take .92 and leave others none
        "gpu-memory-utilization": None if torch.cuda.is_available() else 0.4,
        "middleware": _MIDDLEWARE,
    }
    flags = ["--enable-lora", "--lora-modules", *(_as_module(*adapter) for adapter in adapters.items())]
    command, environment = vllm_command(
        model, host, port, arguments.max_length, options, flags, eager=not torch.cuda.is_available(), more=more
    )
    environment |= settings.to_environment()
    if root is not None:
        environment |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", ADAPTERS: str(root)}
    return command, environment


def _as_module(name: str, folder: Path) -> str:
    """As vLLM reads `--lora-modules`: JSON where the path has a sign of its short form, as the folders of a sweep do
    (`learning_rate=0.01,beta=0.1`)."""
    path = str(folder)
    return json.dumps({"name": name, "path": path}) if {"=", ","} & {*path} else f"{name}={path}"
