"""What the batch script learns of a recipe, and of the processes of a node."""

import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from svf_rl.cli import main as svf_rl_command
from svf_rl.errors import SVFError
from svf_rl.launch.slurm import add_servers, read_slurm_values
from svf_rl.launch.slurm_processes import Processes, count_processes, default_config, format_shell_lines, main
from svf_rl.quickstart import model_path
from svf_rl.settings.recipe import load_recipe


@pytest.fixture
def values(repository: Path):
    """The values of the quickstart recipe with overrides."""

    def values(*overrides: str, rollout_nodes: int = 0) -> dict[str, str]:
        path = repository / "recipes" / "quickstart.yaml"
        return read_slurm_values(load_recipe(path, add_servers(path, overrides, rollout_nodes)))

    return values


def test_folders_are_absolute(values, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SVF_RL_CACHE", "cache")
    got = values("--output_dir", "runs/a b")
    assert got["SVF_RL_OUTPUT_DIR"] == str(tmp_path / "runs" / "a b")
    assert got["SVF_RL_CACHE"] == str(tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


def test_what_is_decomposed_is_what_the_recipe_trains(values) -> None:
    model, targets, dtype = shlex.split(values("--target_modules", "[up_proj, down_proj]")["SVF_RL_DECOMPOSE"])
    assert model == str(model_path())
    assert targets == r"--targets=(?:.*\.)?(?:down_proj|up_proj)"
    assert dtype == "--dtype=float32"


def test_lora_decomposes_nothing(values) -> None:
    assert values("--adapter", "lora")["SVF_RL_DECOMPOSE"] == ""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("--use_vllm", "false"), "needs use_vllm: true"),
        (("--vllm_server_base_url=http://a:1",), "names a vLLM server already: leave out --rollout-nodes"),
        (("--vllm-mode", "server", "--vllm-server-base-url", "http://a:1"), "names a vLLM server already"),
    ],
)
def test_servers_that_the_recipe_has_no_use_for(values, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(SVFError, match=message):
        values(*overrides, rollout_nodes=1)


def test_a_recipe_for_servers_need_not_name_those_that_the_job_starts(values) -> None:
    own = ("--use_vllm", "--vllm_mode", "server", "--vllm_tensor_parallel_size", "2")
    assert values(*own, rollout_nodes=1)["SVF_RL_SERVER_GPUS"] == "2"
    with pytest.raises(SVFError, match="needs vllm_server_base_url"):
        values(*own)


def test_the_batch_is_that_of_all_processes(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--slurm", "--nodes", "2", "--per_device_train_batch_size", "4", "--num_generations", "8"]
    own += ["--gradient_accumulation_steps", "1"]
    assert svf_rl_command(["plan", str(repository / "recipes/quickstart.yaml"), *own, "--processes", "1"]) == 0
    assert "SVF_RL_OUTPUT_DIR" in capsys.readouterr().out
    assert svf_rl_command(["plan", str(repository / "recipes/quickstart.yaml"), *own]) == 1


def test_a_shell_reads_the_values_as_they_are() -> None:
    hostile = {"A": "a b'c\"$(touch /nowhere)`id`;\n*", "B": ""}
    script = f'{format_shell_lines(hostile)}\nprintf "%s|%s" "$A" "$B"'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{hostile['A']}|"


@pytest.mark.parametrize(
    ("nodes", "gpus", "name"),
    [
        (1, 0, "cpu.yaml"),
        (2, 0, "cpu_ddp.yaml"),
        (1, 1, "single_gpu.yaml"),
        (1, 8, "multi_gpu.yaml"),
        (2, 1, "multi_gpu.yaml"),
    ],
)
def test_the_default_config_suits_the_processes(nodes: int, gpus: int, name: str) -> None:
    config = default_config(nodes, gpus)
    assert config.name == name
    assert count_processes(config, nodes, gpus) == Processes(max(gpus, 1), on_cpu=gpus == 0, deepspeed=False)


def test_a_cpu_config_takes_one_process_a_node_also_beside_gpus(repository: Path) -> None:
    assert count_processes(repository / "accelerate_configs" / "cpu_ddp.yaml", 2, 8) == Processes(
        1, on_cpu=True, deepspeed=False
    )


def test_the_lines_say_where_to_compute(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = repository / "accelerate_configs" / "cpu_ddp.yaml"
    assert main(["--nodes", "2", "--gpus", "0", str(config)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"SVF_RL_CONFIG={shlex.quote(str(config))}",
        "SVF_RL_PROCESSES=1",
        "SVF_RL_ON_CPU=true",
        "ACCELERATE_USE_CPU=true",
        "ACCELERATE_TORCH_DEVICE=cpu",
    ]


def test_deepspeed_is_not_told_of_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("distributed_type: DEEPSPEED\nuse_cpu: true")
    assert main(["--nodes", "2", "--gpus", "0", str(config)]) == 0
    assert "ACCELERATE" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "nodes", "gpus", "message"),
    [
        ("distributed_type: 'NO'\nuse_cpu: false", 1, 8, "is for one process, and 1 nodes × 8 are 8"),
        (
            "distributed_type: 'NO'\nuse_cpu: true",
            2,
            0,
            "take one for several, such as accelerate_configs/cpu_ddp.yaml",
        ),
        ("distributed_type: MULTI_GPU", 2, 0, "this node has none"),
        ("model_name_or_path: quickstart", 1, 0, "it has no distributed_type"),
        ("a: [", 1, 0, "is not valid YAML"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    text: str, nodes: int, gpus: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    assert main(["--nodes", str(nodes), "--gpus", str(gpus), str(config)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.skipif(torch.version.cuda is not None, reason="says what happens with a torch for the CPU")
def test_a_torch_for_the_cpu_on_nodes_with_gpus(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = repository / "accelerate_configs"
    assert main(["--nodes", "2", "--gpus", "8", str(configs / "multi_gpu.yaml")]) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert "is built for the CPU, and each node has 8 GPU(s)" in printed.err
    assert main(["--nodes", "2", "--gpus", "8", str(configs / "cpu_ddp.yaml")]) == 0  # which asks for none
    monkeypatch.setenv("SVF_RL_SRUN_OPTIONS", "--container-image=svf.sqsh")  # whose torch is another one
    assert main(["--nodes", "2", "--gpus", "8", str(configs / "multi_gpu.yaml")]) == 0


def test_a_config_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SVFError, match="cannot be read"):
        count_processes(tmp_path / "none.yaml", 1, 0)
