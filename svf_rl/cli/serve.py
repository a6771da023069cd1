"""`svf-rl serve`."""

import argparse
import os
from collections.abc import Sequence

from svf_rl.errors import one_line_errors


def serve(arguments: Sequence[str]) -> int:
    """The command line of `svf-rl serve`. The server takes this process's place, so that signals reach it."""
    parser = argparse.ArgumentParser(
        "svf-rl serve",
        allow_abbrev=False,
        description="Start a vLLM server for runs of a recipe with vllm_mode: server.",
        epilog="Every key of the recipe can be given as --key value; what stands after -- goes to vLLM as it is.",
    )
    parser.add_argument("recipe", help="a YAML file, or a name that svf-rl recipes lists")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    own = list(arguments)
    cut = own.index("--") if "--" in own else len(own)
    known, overrides = parser.parse_known_args(own[:cut])
    with one_line_errors(known.debug) as outcome:
        from svf_rl.train import quiet_libraries

        quiet_libraries()
        from svf_rl.launch.serving import server_command
        from svf_rl.settings.recipe import load_recipe

        command, environment = server_command(
            load_recipe(known.recipe, overrides, serving=True), known.host, known.port, own[cut + 1 :]
        )
    if outcome.status:
        return outcome.status
    print(f"vLLM server for {known.recipe}: http://{known.host}:{known.port}", flush=True)
    os.execvpe(command[0], command, environment)
