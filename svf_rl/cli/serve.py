"""`svf-rl serve`."""

import argparse
import os
from dataclasses import dataclass

from svf_rl.cli.flags import Command, add_flags
from svf_rl.described import described


@dataclass
class ServeArguments:
    """Where the server listens."""

    host: str = described("127.0.0.1", "0.0.0.0 lets other machines in")
    port: int = described(8000, "")


def _fill(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file, or a name that svf-rl recipes lists")
    add_flags(parser, ServeArguments)


def _run(known: argparse.Namespace) -> None:
    """The server takes this process's place, so that signals reach it."""
    from svf_rl.launch.serving import server_command
    from svf_rl.settings.recipe import load_recipe

    recipe = load_recipe(known.recipe, known.keys, serving=True)
    command, environment = server_command(recipe, known.host, known.port, known.vllm)
    print(f"vLLM server for {known.recipe}: http://{known.host}:{known.port}", flush=True)
    os.execvpe(command[0], command, environment)


SERVE = Command(
    "serve", "start a vLLM server for runs of a recipe", _fill, _run,
    description="Start a vLLM server for runs of a recipe with vllm_mode: server.",
    keys="Every key of the recipe can be given as --key value; what stands after -- goes to vLLM as it is.",
)  # fmt: skip
