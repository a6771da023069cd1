"""An adapter folder that went wrong, or was made to: every command that reads it works, or ends within seconds and some
memory with one line. `malformed.py` is what can go wrong."""

import copy
import json
import os
import resource
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from malformed import damage
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from svf_rl.errors import SVFError
from svf_rl.evaluation.adapters import find_adapters
from svf_rl.experts.arguments import EngineArguments
from svf_rl.experts.merged import merge
from svf_rl.experts.pool import ExpertPool, Mix
from svf_rl.experts.publish import publish
from svf_rl.experts.table import experts_table
from svf_rl.generation.server.update import ZUpdate
from svf_rl.generation.server.z_update import has_only_svf
from svf_rl.models.arguments import ModelArguments
from svf_rl.models.kinds import load_saved
from svf_rl.models.loading import load_base
from svf_rl.settings.dry_run import check_recipe
from svf_rl.settings.recipe import load_recipe
from svf_rl.svf import SVFConfig

MODEL = ModelArguments("quickstart")
TRANSFORMERS = EngineArguments(backend="transformers")
MEMORY = 4 << 30  # bytes of a process; the bundled model needs 1 GB with all libraries
SECONDS = 60
# What a recipe says of the sound ones beside the defaults.
OF_RECIPES = {
    "sigmoid": ("--parameterization", "sigmoid", "--renormalize"),
    "projected": ("--core", "projected:13"),
    "band": ("--core", "band:2", "--biases"),
    "lora": ("--adapter", "lora", "--lora_r", "4", "--lora_alpha", "8", "--lora_target_modules", "[up_proj,down_proj]"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of the bundled model: `direct`, `sigmoid`, those of other cores, `lora` and `mix`, a combination of the
    first two."""
    folder = tmp_path_factory.mktemp("sound")
    kinds = {
        "direct": SVFConfig(task_type="CAUSAL_LM"),
        "sigmoid": SVFConfig(task_type="CAUSAL_LM", parameterization="sigmoid", renormalize=True),
        "projected": SVFConfig(task_type="CAUSAL_LM", core="projected:13"),
        "band": SVFConfig(task_type="CAUSAL_LM", core="band:2", biases=True),
        "lora": LoraConfig(task_type="CAUSAL_LM", target_modules=["up_proj", "down_proj"], r=4),
    }
    for name, config in kinds.items():
        get_peft_model(load_base(MODEL), config).save_pretrained(folder / name)
    experts = {name: str(folder / name) for name in ("direct", "sigmoid")}
    ExpertPool(MODEL, experts, engine=TRANSFORMERS, max_length=64).save(Mix(torch.tensor([0.5, 0.5])), folder / "mix")
    return folder


@pytest.fixture(scope="module")
def commands(
    sound: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Callable[[Path, Path], object]]:
    """What reads an adapter, by the command that does: each takes its folder, and a free path to write to."""
    base, recipe, other = load_base(MODEL), repository / "recipes" / "quickstart.yaml", str(sound / "direct")

    def dry_run(folder: Path, out: Path) -> None:
        own = OF_RECIPES.get(folder.name.rpartition("-")[2], ())
        check_recipe(load_recipe(recipe, ["--adapter_path", str(folder), "--use_vllm", "false", *own]))

    def train(folder: Path, out: Path) -> None:
        model = load_saved(copy.deepcopy(base), MODEL, folder)
        if has_only_svf(model):
            ZUpdate(model)

    def evaluate(folder: Path, out: Path) -> None:
        find_adapters([str(folder)])
        ExpertPool(MODEL, {}, {"it": str(folder)}, engine=TRANSFORMERS, max_length=64).use("it")

    def few_shot(folder: Path, out: Path) -> None:
        pool = ExpertPool(MODEL, {"it": str(folder), "other": other}, engine=TRANSFORMERS, max_length=64)
        pool.use(Mix(torch.tensor([0.5, 0.5])))

    found = {
        "train --dry-run": dry_run,
        "train": train,
        "eval": evaluate,
        "few-shot": few_shot,
        "merge": lambda folder, out: merge(MODEL, [str(folder)], out),
        "merge of two": lambda folder, out: merge(MODEL, [str(folder), other], out),
        "push": lambda folder, out: publish(str(folder), str(out), to_folder=True),
        "experts": lambda folder, out: str(experts_table([str(folder), other])),
    }
    for name, command in found.items():  # a sound one works, and nothing is left to import
        command(sound / "sigmoid", tmp_path_factory.mktemp("out") / name)
    return found


def in_a_process(act: Callable[[], object]) -> str:
    """How `act` ends in a process of little memory and time: `done`, `error: …` of an `SVFError`, or a traceback."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        signal.alarm(SECONDS)
        try:
            act()
            said = "done"
        except SVFError as error:
            said = f"error: {error}"
        except BaseException:  # noqa: BLE001  (whatever it is, the test is told)
            said = traceback.format_exc()
        os.write(writer, said.encode(errors="backslashreplace")[-60_000:])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, errors="replace") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    return said or f"ended by {signal.Signals(os.WTERMSIG(status)).name}"


@pytest.fixture
def bad_ends(sound: Path, commands, tmp_path: Path) -> Callable[[int], list[str]]:
    """`bad_ends(seed)`: the commands that do not end well with what `seed` damages."""

    def run(seed: int) -> list[str]:
        kind = ("direct", "sigmoid", "lora", "mix", "projected", "band")[seed % 6]
        folder = tmp_path / f"{seed}-{kind}"
        shutil.copytree(sound / kind, folder)
        done, found = damage(folder, seed), []
        for name, command in commands.items():
            out = tmp_path / f"{seed}-{name}-out"
            said = in_a_process(lambda command=command, out=out: command(folder, out))
            clear = said == "done" or (said.startswith("error: ") and said.isprintable() and len(said) < 1500)
            left = [path.name for path in tmp_path.iterdir() if out.name in path.name]
            if not clear or (said != "done" and left):
                found.append(f"seed {seed}, {kind}, {done}: {name} left {left}: {said[-2000:]}")
        return found

    return run


# one of each kind of damage to each kind of adapter, and some more
@pytest.mark.parametrize("block", [0, *(pytest.param(block, marks=pytest.mark.slow) for block in (1, 2))])
def test_a_malformed_adapter_ends_each_command_in_a_line(bad_ends, block: int) -> None:
    assert [line for seed in range(8 * block, 8 * block + 8) for line in bad_ends(seed)] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_malformed_adapters(bad_ends) -> None:
    fresh = int.from_bytes(os.urandom(4))
    seeds = [*range(100, 300), *range(fresh, fresh + 100)]
    assert [line for seed in seeds for line in bad_ends(seed)] == []


@pytest.fixture
def changed(sound: Path, tmp_path: Path) -> Callable[..., Path]:
    """`changed(kind, z=None, **config)`: a copy of that adapter with other values; where `z`, saved with its probes."""

    def change(kind: str, z: float | None = None, **config: object) -> Path:
        folder = tmp_path / f"changed-{kind}"
        shutil.copytree(sound / kind, folder)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
        if z is not None:
            tensors = load_file(folder / "adapter_model.safetensors")
            filled = {
                name: torch.full_like(tensor, z) if name.endswith(("z.weight", "probe")) else tensor
                for name, tensor in tensors.items()
            }
            save_file(filled, folder / "adapter_model.safetensors")
        return folder

    return change


@pytest.mark.parametrize("z", [1e38, -1e38, 1e20, 1e5, float("inf"), float("nan")])
@pytest.mark.parametrize("kind", ["direct", "sigmoid"])
def test_a_z_that_no_training_reaches_is_refused_by_all(changed, commands, tmp_path: Path, kind: str, z: float) -> None:
    folder = changed(kind, z)
    for name in ("train", "merge of two", "experts", "push"):
        with pytest.raises(SVFError, match=r"not finite|trained on other|probe"):
            commands[name](folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("lora", {"r": 10**9}, "r 1e.09, more than any side of the tensors"),
        ("lora", {"rank_pattern": {"up_proj": 10**6}}, "rank_pattern 1e.06, more than any side"),
        ("lora", {"r": [[]]}, r"damaged \(r cannot be \[\[\]\]\)"),
        ("lora", {"lora_alpha": float("nan")}, r"damaged \(lora_alpha cannot be nan\)"),
        ("lora", {"layers_to_transform": 1e308}, "layers_to_transform cannot be"),
        ("lora", {"monteclora_config": [None]}, "monteclora_config cannot be"),
        ("direct", {"exclude_modules": 10**9}, "exclude_modules cannot be"),
        ("direct", {"target_modules": "a{99999999999}"}, "valid regular expression"),
        ("direct", {"core": "top:0"}, "core must be diagonal"),
        ("direct", {"core": "top:5"}, "damaged"),
        ("projected", {"core": "projected:999999999"}, "more than adapter_model.safetensors holds"),
        ("projected", {"core": "projected:12"}, "damaged"),
        ("projected", {"core": 13}, "core cannot be"),
        ("direct", {"max_multiplier": float("inf"), "parameterization": "sigmoid"}, "max_multiplier cannot be"),
        ("direct", {"base_model_name_or_path": "two\nlines"}, "base_model_name_or_path cannot be"),
        ("direct", {"peft_type": "NOSUCH"}, "NOSUCH"),
        ("mix", {"combination": {"experts": ["a"], "alpha": [[1, 2]]}}, "combination must have"),
    ],
)
def test_a_configuration_that_says_what_cannot_be(changed, commands, kind, config, message, tmp_path: Path) -> None:
    folder = changed(kind, **config)
    with pytest.raises(SVFError, match=message):
        commands["train"](folder, tmp_path / "out")
