"""`svf-rl serve`."""

import argparse
import os
from dataclasses import dataclass

from svf_rl.cli.flags import Command, add_experts, add_flags, read_flags
from svf_rl.described import described
from svf_rl.errors import SVFError
from svf_rl.storage.bundled import check_recipe_file

_OF_ENDPOINT = ("model_revision", "dtype", "trust_remote_code")


@dataclass
class ServeArguments:
    """Where the server listens."""

    host: str = described("127.0.0.1", "0.0.0.0 lets other machines in")
    port: int = described(8000, "")


def _fill(parser: argparse.ArgumentParser) -> None:
    from svf_rl.endpoint.arguments import EndpointArguments

    parser.add_argument("served", metavar="recipe | model", help="a recipe, or with --expert a base model")
    add_flags(parser, ServeArguments)
    endpoint = parser.add_argument_group("with experts")
    add_experts(endpoint, "[NAME=]DIR", "an SVF adapter and the model's name in requests; given once for each")
    add_flags(endpoint, EndpointArguments)


def _run(known: argparse.Namespace) -> None:
    """The server takes this process's place, so that signals reach it."""
    command, environment = _endpoint(known) if known.experts else _for_runs(known)
    print(f"vLLM server for {known.served}: http://{known.host}:{known.port}", flush=True)
    os.execvpe(command[0], command, environment)


def _for_runs(known: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    check_recipe_file(known.served)  # before what takes seconds
    from svf_rl.launch.serving import server_command
    from svf_rl.settings.recipe import load_recipe

    recipe = load_recipe(known.served, known.keys, serving=True)
    return server_command(recipe, known.host, known.port, known.vllm)


def _endpoint(known: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    from svf_rl.adaptation.few_shot_run import experts_by_name
    from svf_rl.endpoint.arguments import EndpointArguments
    from svf_rl.endpoint.command import endpoint_command
    from svf_rl.models.base import ModelArguments

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_flags(parser, ModelArguments, _OF_ENDPOINT)
    model, unknown = parser.parse_known_args(known.keys)
    if unknown:
        raise SVFError(f"unknown option {unknown[0]} of a server of experts: options of vLLM follow after --")
    return endpoint_command(
        read_flags(model, ModelArguments, model_name_or_path=known.served),
        experts_by_name(known.experts),
        read_flags(known, EndpointArguments),
        known.host,
        known.port,
        known.vllm,
    )


SERVE = Command(
    "serve", "start a vLLM server for runs of a recipe, or of experts", _fill, _run,
    description="Start a vLLM server: for runs of a recipe with vllm_mode: server; or, with --expert, of a base model "
    "and its experts, for OpenAI's clients and a browser.",
    keys="Every key of the recipe can be given as --key value, and with experts --dtype, --model-revision and "
    "--trust-remote-code; what stands after -- goes to vLLM as it is. Where SVF_RL_API_KEY is set, a server of experts "
    "asks for it.",
)  # fmt: skip
