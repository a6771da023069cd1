"""A checkpoint of somebody else runs no code: it is read as plain data, or refused in one line."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import refusal

from svf_rl.errors import SVFError
from svf_rl.training.checkpoints import publish, read_checkpoint
from svf_rl.training.pickled_files import check_plain, pickled_files

Make = Callable[..., Any]


class Marks:
    """Pickled, it makes a file where it is read."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.place,)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What DeepSpeed keeps of two processes, made of its own classes."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    folder = tmp_path / "checkpoint-2"
    (folder / "global_step2").mkdir(parents=True)
    (folder / "latest").write_text("global_step2")
    states = folder / "global_step2"
    dynamic = DynamicLossScaler(2.0**16, 2.0, 1000, 1.0, 1, False)
    for rank, scaler in enumerate((LossScaler(1.0), dynamic)):
        fragments = [{"z": fragment_address(numel=3, start=0)}]
        state = {"zero_stage": ZeroStageEnum(2), "loss_scaler": scaler, "param_slice_mappings": fragments}
        torch.save({"optimizer_state_dict": state}, states / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    torch.save({"module": {"z": torch.ones(3)}, "ds_config": {"a": 1}}, states / "mp_rank_00_model_states.pt")
    numpy_state = {"state": np.random.default_rng(0).bit_generator.state, "array": np.ones(3, np.uint32)}
    torch.save(numpy_state, folder / "rng.pth")
    return folder


def test_what_deepspeed_writes_is_plain(checkpoint: Path) -> None:
    files = pickled_files(checkpoint, deepspeed=True)
    assert len(files) == 4
    check_plain(files, deepspeed=True)
    assert pickled_files(checkpoint, deepspeed=False) == [checkpoint / "rng.pth"]


class Attribute:
    """Pickled, it is an attribute: so Python up to 3.11.3 writes a member of an enumeration."""

    def __init__(self, *of: Any) -> None:
        self.of = of

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, self.of


def test_a_stage_may_be_written_as_an_attribute(checkpoint: Path) -> None:
    from deepspeed.runtime.zero.config import ZeroStageEnum

    file = checkpoint / "global_step2" / "mp_rank_00_model_states.pt"
    torch.save({"zero_stage": Attribute(ZeroStageEnum, "gradients")}, file)
    assert torch.load(file, weights_only=False)["zero_stage"] is ZeroStageEnum(2)
    check_plain([file], deepspeed=True)
    assert "holds more than tensors" in refusal(check_plain, [file], deepspeed=False)
    for of in ((ZeroStageEnum, "__init__"), (ZeroStageEnum, "__members__"), (np.ndarray, "tofile")):
        torch.save({"zero_stage": Attribute(*of)}, file)
        assert "holds more than tensors" in refusal(check_plain, [file], deepspeed=True)


def _pickled(file: Path, place: Path) -> None:
    torch.save({"state": Marks(place)}, file)


def _legacy(file: Path, place: Path) -> None:
    torch.save({"state": Marks(place)}, file, _use_new_zipfile_serialization=False)


def _bare(file: Path, place: Path) -> None:
    file.write_bytes(pickle.dumps(Marks(place)))


def _zipped(file: Path, place: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Marks(place), protocol=4))
        archive.writestr("archive/version", "3")


def _scripted(file: Path, place: Path) -> None:
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(file))


def _cut(file: Path, place: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize("make", [_pickled, _legacy, _bare, _zipped, _scripted, _cut])
@pytest.mark.parametrize("name", ["global_step2/mp_rank_00_model_states.pt", "rng.pth"])
def test_anything_else_is_refused_and_nothing_is_run(checkpoint: Path, tmp_path: Path, make: Any, name: str) -> None:
    make(checkpoint / name, tmp_path / "run")
    line = refusal(check_plain, pickled_files(checkpoint, deepspeed=True), deepspeed=True)
    assert f"{checkpoint / name} holds more than tensors and plain values" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp", "..", "", "a/b", "."])
def test_deepspeed_is_not_sent_elsewhere(checkpoint: Path, name: str) -> None:
    (checkpoint / "latest").write_text(name)
    with pytest.raises(SVFError, match="no folder of this checkpoint"):
        pickled_files(checkpoint, deepspeed=True)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "progress_0.pt"])
def test_a_run_that_resumes_refuses_it_too(make_trainer: Make, scripted: Make, tmp_path: Path, name: str) -> None:
    settings = {"output_dir": str(tmp_path / "run"), "save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    make_trainer(generator=scripted(), **settings).train()
    folder = tmp_path / "run" / "checkpoint-1"
    manifest = read_checkpoint(folder).manifest
    _pickled(folder / name, tmp_path / "was run")
    partial = folder.rename(tmp_path / "run" / ".checkpoint-1.partial")
    (partial / "manifest.json").unlink()
    publish(partial, folder, manifest)  # digests say nothing against it: they are its author's
    trainer = make_trainer(generator=scripted(), **{**settings, "max_steps": 2})
    assert f"{name} holds more than tensors and plain values" in refusal(trainer.train, "auto")
    assert not (tmp_path / "was run").exists()
