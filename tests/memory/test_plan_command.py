"""`svf-rl plan` through its command line."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from svf_rl.cli import main

ON_80GB = ("--gpus", "1", "--gpu-memory", "80GB")


@pytest.fixture
def command(repository: Path, capsys: pytest.CaptureFixture[str]):
    """`command(*arguments)`: exit status, standard output and standard error of `svf-rl plan` for the quickstart."""

    def run(*arguments: str, recipe: str | None = None) -> tuple[int, str, str]:
        status = main(["plan", recipe or str(repository / "recipes" / "quickstart.yaml"), *arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_a_run_that_fits(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = command(*ON_80GB)
    assert (status, err) == (0, "")
    assert "trained: 864 values for 9 matrices" in out
    assert out.splitlines()[-1].startswith("fits: one GPU, ")
    assert list(tmp_path.iterdir()) == []  # nothing is written


def test_a_run_that_does_not_fit_says_what_to_change(command) -> None:
    status, out, _ = command("--gpus", "1", "--gpu-memory", "2GB")
    assert status == 1
    assert out.splitlines()[-1].startswith("does not fit (")
    assert "; change: " in out.splitlines()[-1]


def test_stages_stand_side_by_side(command) -> None:
    status, out, _ = command("--gpus", "4", "--nodes", "2", "--gpu-memory", "80GiB", "--zero", "3")
    assert status == 0
    heading = next(line for line in out.splitlines() if "DDP" in line)
    assert heading.split()[-4:] == ["DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3"]
    assert "2 nodes of 4 GPUs of 80.00 GiB" in out
    assert "fits: ZeRO-3" in out


def test_numbers_as_json(command) -> None:
    status, out, _ = command(*ON_80GB, "--json", "--adapter", "lora", "--lora_r", "8")
    values = json.loads(out)
    assert (status, values["fits"], values["trained_values"]) == (0, True, 25_344)
    assert values["tensors"]["trained"] == 4 * 25_344
    assert values["sync"]["z"] is None


def test_keys_for_a_gpu_count_on_a_machine_without_one(command) -> None:
    out = command(*ON_80GB, "--json", "--dtype", "bfloat16", "--vllm_gpu_memory_utilization", "0.5")[1]
    values = json.loads(out)
    assert values["tensors"]["base"] == 2 * values["parameters"]
    assert values["gpu"]["zero0"]["engine"] == 40 * 10**9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what the machine has: --gpus 8 --gpu-memory 80GB"),
        (["--gpus", "0", "--gpu-memory", "80GB"], "--gpus must be at least 1, not 0"),
        (["--gpus", "1", "--gpu-memory", "80GB", "--nodes", "0"], "--nodes must be at least 1, not 0"),
        (["--gpus", "1", "--gpu-memory", "80XB"], "--gpu-memory '80XB' is not a valid size"),
        (["--gpus", "1", "--gpu-memory", "80GB", "--zero", "3"], "--zero 3 shards over several processes"),
        (["--gpus", "1", "--gpu-memory", "80GB", "--prompt-tokens", "4000"], "2048 positions"),
        (
            [*ON_80GB, "--prompt-tokens", "500", "--vllm_max_model_length", "128"],
            "more than vllm_max_model_length (128)",
        ),
        ([*ON_80GB, "--per_device_train_batch_size", "3"], "does not divide into groups"),
        ([*ON_80GB, "--target_modules", "ffn"], "match no module path"),
        ([*ON_80GB, "--rewards", "exact_mach"], "unknown reward"),
        ([*ON_80GB, "--no_such_key", "1"], "unknown recipe key"),
        ([*ON_80GB, "--model_name_or_path", "nobody/no-such-model"], "is not on this machine"),
    ],
)
def test_bad_input_is_one_line(command, arguments: list[str], message: str) -> None:
    status, out, err = command(*arguments)
    assert (status, out) == (1, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_configuration_that_builds_nothing(command, tmp_path: Path) -> None:
    LlamaConfig(hidden_size=64, num_attention_heads=4).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    status, _, err = command(*ON_80GB, "--model_name_or_path", str(tmp_path))
    assert status == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
