"""Documented commands for several GPUs keep the 256 prompts an update of the paper, which their recipes have."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from docs_blocks import REPOSITORY, blocks_of, pages

PAPER = re.compile(r"recipes/(llama3|mistral)_\w+\.yaml")


def _commands() -> list[list[str]]:
    """The words of every documented command that trains a recipe of the paper's settings on GPUs."""
    found = []
    for block in (block for page in pages() for block in blocks_of(page) if block.needs in ("gpu", "cluster")):
        lines = block.text.replace("\\\n", " ").splitlines()
        found += [shlex.split(line) for line in lines if "train" in line and PAPER.search(line)]
    return found


def _processes(words: list[str]) -> int:
    """One for each GPU that trains."""
    given = dict(re.findall(r"--([\w-]+)[= ](\S+)", " ".join(words)))
    if words[0] == "sbatch":
        return (int(given["nodes"]) - int(given.get("rollout-nodes", 0))) * int(given["gpus-per-node"])
    return int(yaml.safe_load((REPOSITORY / given["config_file"]).read_text())["num_processes"])


@pytest.mark.parametrize("words", _commands())
def test_an_update_has_as_many_prompts_on_any_number_of_gpus(words: list[str]) -> None:
    path = next(word for word in words if PAPER.fullmatch(word))
    recipe = yaml.safe_load((REPOSITORY / path).read_text())
    recipe |= {key: int(value) for key, value in re.findall(r"--(\w+)[= ](\d+)", " ".join(words)) if key in recipe}
    sequences = recipe["per_device_train_batch_size"] * recipe["gradient_accumulation_steps"] * _processes(words)
    assert sequences // recipe["num_generations"] == 256


def test_there_are_such_commands() -> None:
    kinds = [Path(words[0]).name for words in _commands()]
    assert kinds.count("sbatch") >= 5
    assert kinds.count("accelerate") >= 2
