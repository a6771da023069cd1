"""The values of a recipe that `slurm/train.slurm` needs, so that no shell script has to read recipes."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from svf_rl.errors import SVFError
from svf_rl.settings.recipe import Recipe
from svf_rl.settings.yaml_values import read_mapping
from svf_rl.storage.bundled import find_recipe
from svf_rl.svf import SVFConfig
from svf_rl.svf.cache import default_cache_dir
from svf_rl.svf.targets import regex_of


def add_servers(path: str | Path, overrides: Sequence[str], rollout_nodes: int) -> list[str]:
    """
    The overrides of a recipe whose vLLM servers the job starts on `rollout_nodes` nodes; their addresses are not known
    yet.

    Raises:
        SVFError: the recipe already names servers, or the number of nodes is not valid.
    """
    if rollout_nodes < 0:
        raise SVFError(f"--rollout-nodes must be 0 or more, not {rollout_nodes}")
    if not rollout_nodes:
        return list(overrides)
    key = "vllm_server_base_url"
    given = {text.removeprefix("--").partition("=")[0].replace("-", "_") for text in overrides if text.startswith("--")}
    if key in given or key in read_mapping(find_recipe(path)):
        raise SVFError(f"the recipe names a vLLM server already: leave out --rollout-nodes or {key}")
    started = {"vllm_mode": "server", "vllm_enable_sleep_mode": "false", key: "http://localhost"}
    return [*overrides, *(word for name, value in started.items() for word in (f"--{name}", value))]


def read_slurm_values(recipe: Recipe) -> dict[str, str]:
    """
    The values of a recipe that the batch script acts on, by the name of its variable.

    Args:
        recipe (`Recipe`): The recipe as loaded, with its overrides.

    Returns:
        `dict[str, str]`: `SVF_RL_OUTPUT_DIR` and `SVF_RL_CACHE` (the factor cache), both absolute; `SVF_RL_DECOMPOSE`,
        the arguments of `svf-rl decompose` quoted for a shell, empty where nothing is to be decomposed;
        `SVF_RL_SERVER_GPUS`, how many GPUs a vLLM server takes.
    """
    training = recipe.training
    return {
        "SVF_RL_OUTPUT_DIR": str(Path(training.output_dir).expanduser().resolve()),
        "SVF_RL_CACHE": str(default_cache_dir().resolve()),
        "SVF_RL_DECOMPOSE": _decompose_arguments(recipe),
        "SVF_RL_SERVER_GPUS": str(training.vllm_tensor_parallel_size),
    }


def _decompose_arguments(recipe: Recipe) -> str:
    config = recipe.adapter.kind.config(recipe.adapter)
    if not isinstance(config, SVFConfig):
        return ""
    arguments = [recipe.model.location, f"--targets={regex_of(config)}"]
    if recipe.model.dtype != "auto":
        arguments.append(f"--dtype={recipe.model.dtype}")
    if recipe.model.model_revision:
        arguments.append(f"--revision={recipe.model.model_revision}")
    if recipe.model.trust_remote_code:
        arguments.append("--trust-remote-code")
    return shlex.join(arguments)
