"""The files that a newcomer's first commands rest on."""

import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.utils import DistributedType

CONFIGS = {
    "cpu.yaml": DistributedType.NO,
    "cpu_ddp.yaml": DistributedType.MULTI_GPU,  # accelerate's name for torchrun's processes
    "single_gpu.yaml": DistributedType.NO,
    "multi_gpu.yaml": DistributedType.MULTI_GPU,
    "zero2.yaml": DistributedType.DEEPSPEED,
    "zero3.yaml": DistributedType.DEEPSPEED,
}


def test_the_accelerate_configs_are_those_listed_here(repository: Path) -> None:
    assert {path.name for path in (repository / "accelerate_configs").iterdir()} == CONFIGS.keys()


@pytest.mark.parametrize(("name", "distributed_type"), CONFIGS.items())
def test_accelerate_reads_the_config(repository: Path, name: str, distributed_type: DistributedType) -> None:
    config = ClusterConfig.from_yaml_file(str(repository / "accelerate_configs" / name))
    assert config.distributed_type == distributed_type
    assert config.mixed_precision == "no"  # z stays in float32
    if distributed_type == DistributedType.DEEPSPEED:
        assert f"zero{config.deepspeed_config['zero_stage']}.yaml" == name


def test_the_cpu_config_uses_no_gpu(repository: Path) -> None:
    config = yaml.safe_load((repository / "accelerate_configs" / "cpu.yaml").read_text())
    assert config["use_cpu"] is True
    assert config["num_processes"] == 1


def test_the_makefile_names_only_files_that_exist(repository: Path) -> None:
    named = re.findall(r"\b(?:accelerate_configs|svf_rl|recipes)/[\w/]+\.\w+", (repository / "Makefile").read_text())
    assert named
    assert [path for path in named if not (repository / path).is_file()] == []
