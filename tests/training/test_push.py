"""`push_to_hub: true` uploads what `svf-rl push` does, and nothing that is of this machine or of this user alone."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from fakes import FakeHub, refusal, served

from svf_rl.quickstart import model_path
from svf_rl.settings.config import SVFReinforceConfig

Make = Callable[..., Any]
TOKEN = "hf_abcdefghijklmnopqrstuvwx"
PUBLISHED = ["README.md", "adapter_config.json", "adapter_model.safetensors", "summary.json"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, bytes]]]:
    """The uploads to a server that answers as the Hub does."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)  # or it keeps the address of the test before
    FakeHub.uploads = []
    with served(FakeHub) as url:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        yield FakeHub.uploads


@pytest.fixture
def trainer(make_trainer: Make, scripted: Make, tmp_path: Path, hub: list[dict[str, bytes]]) -> Any:
    """Of two steps, each with a checkpoint."""
    return make_trainer(
        model=str(model_path()), generator=scripted(), output_dir=str(tmp_path / "sums"), push_to_hub=True,
        hub_token=TOKEN, run_name="night-on-host-7", report_to="tensorboard", save_strategy="steps", save_steps=1,
        max_steps=2,
    )  # fmt: skip


def test_every_push_has_the_files_of_svf_rl_push_alone(
    trainer: Any, tmp_path: Path, hub: list[dict[str, bytes]]
) -> None:
    trainer.train()
    trainer.push_to_hub("the last")
    assert [sorted(files) for files in hub] == [PUBLISHED] * 3  # two checkpoints, and the end
    assert hub[-1]["adapter_model.safetensors"] == (tmp_path / "sums" / "adapter_model.safetensors").read_bytes()
    for files in hub:
        text = b"".join(content for name, content in files.items() if name != "adapter_model.safetensors").decode()
        for hidden in (TOKEN, "night-on-host-7", str(tmp_path), str(model_path())):
            assert hidden not in text


def test_no_file_of_the_run_holds_the_token(trainer: Any, tmp_path: Path) -> None:
    trainer.train()
    trainer.save_model()
    files = [path for path in (tmp_path / "sums").rglob("*") if path.is_file()]
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
    assert torch.load(tmp_path / "sums" / "training_args.bin", weights_only=False).hub_token is None
    assert trainer.args.hub_token == TOKEN


def test_a_hub_that_fails_in_between_costs_no_run(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    trainer.train()
    assert trainer.state.global_step == 2
    assert "cannot be reached" in refusal(trainer.push_to_hub)


def test_a_base_model_that_nobody_else_has_is_refused_before_training(
    make_trainer: Make, scripted: Make, tiny_llama: Make, tmp_path: Path, hub: list[dict[str, bytes]]
) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    settings = {"push_to_hub": True, "hub_token": TOKEN}
    line = refusal(make_trainer, model=str(tmp_path / "base"), generator=scripted(), **settings)
    assert "the base model of push_to_hub is a folder of this machine (base)" in line
    assert hub == []


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_checkpoints_are_not_uploaded(tmp_path: Path, strategy: str) -> None:
    given = {"output_dir": str(tmp_path), "push_to_hub": True, "hub_strategy": strategy, "use_cpu": True}
    assert "set hub_strategy to every_save or end" in refusal(SVFReinforceConfig, **given)
