"""What `slurm/train.slurm` needs to know of a recipe, so that no shell script reads one."""

import shlex
from pathlib import Path

from svf_rl.errors import SVFError
from svf_rl.svf.cache import default_cache_dir
from svf_rl.svf.targets import as_regex
from svf_rl.training.arguments import AdapterArguments
from svf_rl.training.loading import named_experts
from svf_rl.training.recipe import Recipe


def slurm_values(recipe: Recipe, rollout_nodes: int = 0) -> dict[str, str]:
    """
    The values of a recipe that the batch script acts on, by the name of its variable.

    Args:
        recipe (`Recipe`): The recipe as loaded, with its overrides.
        rollout_nodes (`int`, *optional*, defaults to 0): How many nodes of the job run vLLM servers.

    Returns:
        `dict[str, str]`: `SVF_RL_OUTPUT_DIR` and `SVF_RL_CACHE` (the factor cache), both absolute; `SVF_RL_DECOMPOSE`,
        the arguments of `svf-rl decompose` quoted for a shell, empty where nothing is to be decomposed.

    Raises:
        SVFError: servers are asked for and the recipe does not use vLLM, or names servers of its own.
    """
    training = recipe.training
    if rollout_nodes < 0:
        raise SVFError(f"--rollout-nodes must be 0 or more, not {rollout_nodes}")
    if rollout_nodes and not training.use_vllm:
        raise SVFError("--rollout-nodes starts vLLM servers, which the recipe does not use: set use_vllm: true")
    if rollout_nodes and training.vllm_server_base_url:
        raise SVFError("the recipe names a vLLM server already: leave out --rollout-nodes or vllm_server_base_url")
    return {
        "SVF_RL_OUTPUT_DIR": str(Path(training.output_dir).expanduser().resolve()),
        "SVF_RL_CACHE": str(default_cache_dir().resolve()),
        "SVF_RL_DECOMPOSE": _decompose_arguments(recipe),
    }


def _decompose_arguments(recipe: Recipe) -> str:
    targets = _targets(recipe.adapter)
    if targets is None:
        return ""
    arguments = [recipe.model.location, f"--targets={targets}"]
    if recipe.model.dtype != "auto":
        arguments.append(f"--dtype={recipe.model.dtype}")
    if recipe.model.model_revision:
        arguments.append(f"--revision={recipe.model.model_revision}")
    if recipe.model.trust_remote_code:
        arguments.append("--trust-remote-code")
    return shlex.join(arguments)


def _targets(adapter: AdapterArguments) -> str | None:
    """The expression of the weights that training decomposes; `None` for LoRA."""
    if adapter.adapter == "lora":
        return None
    if adapter.adapter == "combination":
        return as_regex(named_experts(adapter.experts or [])[0].config.target_modules)
    return as_regex(adapter.target_modules)
