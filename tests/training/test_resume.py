"""A run that was cut off and goes on is the run that was not cut off, to the bit."""

import shutil
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fakes import read_metrics, small_disk
from peft import LoraConfig
from torch import Tensor
from transformers import TrainerCallback

from svf_rl.errors import Stopped, SVFError
from svf_rl.training.resume import find_checkpoint

Make = Callable[..., Any]
Z = Callable[[Any], dict[str, Tensor]]

EVERY_OTHER = {
    "max_steps": 6, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "learning_rate": 0.02,
    "advantage": "leave_one_out", "beta": 0.1, "weight_decay": 0.1, "max_grad_norm": 1.0, "lr_scheduler_type": "linear",
}  # fmt: skip
TABLES = {"log_completions": True, "num_completions_to_print": 1}
SEVERAL_UPDATES = {"use_vllm": True}  # from one generation: TRL wants an engine that gives log-probabilities


class CutOff(RuntimeError):
    pass


class Mark(StrEnum):
    GOOD = "good"


class CutOffAt(TrainerCallback):
    """Ends the process, as it were, in the middle of an update."""

    def __init__(self, step: int):
        self._step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == self._step:
            raise CutOff


def tables(folder: Path) -> dict[str, str]:
    return {path.name: pd.read_parquet(path).to_json() for path in sorted((folder / "completions").glob("*.parquet"))}


@pytest.fixture
def make_generator(scripted: Make) -> Callable[[], Any]:
    def log_probabilities(prompt: list[int], tokens: list[int]) -> list[float]:
        return [-1.0 - (token % 7) / 10 for token in tokens]

    return lambda: scripted(logprobs=log_probabilities)


@pytest.fixture
def runs(make_trainer: Make, make_generator: Make, tmp_path: Path) -> Callable[..., tuple[Any, Any]]:
    """`runs(cut=(3,), **settings)`: the trainer of a run that was left alone, and that of one that was cut off in these
    updates and went on each time."""

    def build(cut: tuple[int, ...] = (3,), again: dict[str, Any] | None = None, **settings: Any) -> tuple[Any, Any]:
        def make(name: str, *callbacks: Any, **others: Any) -> Any:
            own = {**EVERY_OTHER, "output_dir": str(tmp_path / name), **settings, **others}
            return make_trainer(generator=make_generator(), callbacks=list(callbacks), **own)

        whole = make("whole")
        whole.train()
        for update in cut:
            with pytest.raises(CutOff):
                make("cut", CutOffAt(update), **(again or {})).train("auto")
        broken = make("cut", **(again or {}))
        broken.train("auto")
        return whole, broken

    return build


def assert_same(whole: Any, broken: Any, z_of: Z) -> None:
    expected, found = z_of(whole), z_of(broken)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert any(not torch.equal(z, torch.ones_like(z)) for z in expected.values())
    folders = [Path(trainer.args.output_dir) for trainer in (whole, broken)]
    assert read_metrics(folders[0]) == read_metrics(folders[1])
    assert tables(folders[0]) == tables(folders[1])


SETTINGS = {
    "plain": ((2, 4, 4, 6), TABLES),
    "accumulation": ((5,), {"gradient_accumulation_steps": 4, "steps_per_generation": 2}),
    "several updates": ((3, 6), {"steps_per_generation": 4, "save_steps": 1, **SEVERAL_UPDATES, **TABLES}),
    "iterations": ((4,), {"num_iterations": 3, "save_steps": 1, **SEVERAL_UPDATES}),
    "logs between": ((4, 5), {"num_iterations": 2, "logging_steps": 4, "save_steps": 3, **SEVERAL_UPDATES}),
    "epochs": ((11,), {"max_steps": -1, "num_train_epochs": 3}),  # four updates each, in an order of its own
    "logs of epochs": ((6,), {"max_steps": 9, "save_steps": 4, "logging_strategy": "epoch"}),
    "saved by epochs": ((6,), {"save_strategy": "epoch", "num_train_epochs": 2, "max_steps": -1}),
}  # fmt: skip


@pytest.mark.parametrize(("cut", "settings"), SETTINGS.values(), ids=SETTINGS.keys())
def test_the_same_run_to_the_bit(runs: Make, z_of: Z, cut: tuple[int, ...], settings: dict[str, Any]) -> None:
    assert_same(*runs(cut, **settings), z_of)


BEST = {
    "eval_items": 4, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True,
    "metric_for_best_model": "eval_completion_length", "greater_is_better": False,
}  # fmt: skip


def test_the_best_so_far_and_the_patience_are_kept(runs: Make, z_of: Z) -> None:
    whole, broken = runs((2, 4), **BEST, early_stopping_patience=3, max_steps=20, save_total_limit=1)
    assert 3 < whole.state.global_step < 20  # stopped early
    assert broken.state.global_step == whole.state.global_step
    assert (broken.state.best_metric, broken.state.best_global_step) == (
        whole.state.best_metric,
        whole.state.best_global_step,
    )
    # the last and the best, whatever the limit
    kept = {f"checkpoint-{whole.state.global_step}", f"checkpoint-{whole.state.best_global_step}"}
    assert {path.name for path in Path(broken.args.output_dir).glob("checkpoint-*")} == kept
    assert_same(whole, broken, z_of)


def test_the_best_of_an_earlier_run_in_the_folder_is_not_taken_for_this_ones(
    make_trainer: Make, make_generator: Make, tmp_path: Path
) -> None:
    own = {**EVERY_OTHER, **BEST, "output_dir": str(tmp_path / "run")}
    trainer = make_trainer(generator=make_generator(), **own)
    trainer.train()
    best = trainer.state.best_global_step
    trainer.generator = make_generator()
    trainer.args.save_steps, trainer.args.max_steps = 4 if best % 4 else 5, 6
    trainer.args.load_best_model_at_end = False
    trainer.train()
    assert trainer.state.best_global_step == best  # which it did not save
    assert (tmp_path / f"run/checkpoint-{best}").is_dir()
    assert trainer.state.best_model_checkpoint is None


def test_another_trainer_does_not_replace_a_run_in_silence(
    make_trainer: Make, make_generator: Make, tmp_path: Path
) -> None:
    own = {**EVERY_OTHER, "output_dir": str(tmp_path / "run")}
    make_trainer(generator=make_generator(), **own).train()
    with pytest.raises(SVFError, match="--overwrite_output_dir removes it"):
        make_trainer(generator=make_generator(), **own).train()
    again = make_trainer(generator=make_generator(), **{**own, "max_steps": 2}, overwrite_output_dir=True)
    again.train()
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-2"]
    elsewhere = make_trainer(generator=make_generator(), **{**own, "output_dir": str(tmp_path / "elsewhere")})
    elsewhere.train()
    with pytest.raises(SVFError, match="which would be replaced"):
        make_trainer(generator=make_generator(), **own).train(str(tmp_path / "elsewhere/checkpoint-2"))


def test_stopped_early_in_the_middle_of_an_epoch_a_run_has_the_checkpoint_of_its_last_update(
    make_trainer: Make, make_generator: Make, tmp_path: Path
) -> None:
    own = {**EVERY_OTHER, **BEST, "save_strategy": "epoch", "load_best_model_at_end": False, "max_steps": 40}
    run = make_trainer(generator=make_generator(), **own, early_stopping_patience=2, output_dir=str(tmp_path / "run"))
    run.train()
    assert 0 < run.state.global_step < 40
    assert run.state.global_step % 4  # of an epoch
    assert (tmp_path / f"run/checkpoint-{run.state.global_step}").is_dir()


def test_what_a_reward_logs_is_read_back(
    make_trainer: Make, make_generator: Make, parity_reward: Any, tmp_path: Path
) -> None:
    def reward(completion_ids: list[list[int]], log_extra: Any, **_: Any) -> list[float]:
        values = parity_reward(completion_ids)
        log_extra("numpy", [np.float64(value) for value in values])
        log_extra("text", [np.str_(value) for value in values])
        log_extra("enumeration", [Mark.GOOD for _ in values])
        return values

    own = {**EVERY_OTHER, "output_dir": str(tmp_path / "run"), **TABLES}
    with pytest.raises(CutOff):
        make_trainer(generator=make_generator(), reward=reward, callbacks=[CutOffAt(4)], **own).train()
    again = make_trainer(generator=make_generator(), reward=reward, **own)
    again.train("auto")
    extra = again._logs["extra"]
    assert set(map(type, extra["numpy"])) <= {float, np.float64}
    assert set(extra["enumeration"]) == {"good"}


def test_what_was_over_stays_over(runs: Make, make_generator: Make, make_trainer: Make, z_of: Z) -> None:
    """After the last update, and after early stopping: no further one is made, and the last lines come once."""
    whole, broken = runs((), **BEST, early_stopping_patience=3, max_steps=20)
    own = {**EVERY_OTHER, **BEST, "early_stopping_patience": 3, "max_steps": 20}
    again = make_trainer(generator=make_generator(), **own, output_dir=broken.args.output_dir)
    again.train("auto")
    assert again.state.global_step == broken.state.global_step
    assert again.generator.requests == []
    assert_same(whole, again, z_of)


@pytest.mark.parametrize("saved", [{"save_strategy": "no"}, {"save_steps": 1, "save_only_model": True}])
@pytest.mark.parametrize("update", [1, 3])
def test_a_signal_ends_the_run_after_the_update_with_a_checkpoint(
    make_trainer: Make, make_generator: Make, z_of: Z, tmp_path: Path, update: int, saved: dict[str, Any]
) -> None:
    own = {**EVERY_OTHER, **saved, "num_iterations": 2, "logging_steps": 4, **SEVERAL_UPDATES}
    whole = make_trainer(generator=make_generator(), **own, output_dir=str(tmp_path / "whole"))
    whole.train()

    class Signal(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step + 1 == update:
                stopped.context.stop.requested = "SIGUSR1"

    stopped = make_trainer(generator=make_generator(), **own, output_dir=str(tmp_path / "cut"), callbacks=[Signal()])
    with pytest.raises(Stopped, match=f"stopped by SIGUSR1 after step {update}: .*checkpoint-{update}$"):
        stopped.train()
    broken = make_trainer(generator=make_generator(), **own, output_dir=str(tmp_path / "cut"))
    broken.context.checkpoint = find_checkpoint("auto", Path(broken.args.output_dir))
    broken.checkpoints.begin()
    assert broken.context.checkpoint.manifest.step == update
    broken.train()
    assert_same(whole, broken, z_of)


def test_the_rollouts_of_the_model_itself(make_trainer: Make, z_of: Z, tmp_path: Path) -> None:
    """No scripted completions: what is drawn depends on `z` and on the seeds."""
    own = {**EVERY_OTHER, "max_steps": 3, "save_steps": 1, "learning_rate": 0.2}
    whole = make_trainer(**own, output_dir=str(tmp_path / "whole"))
    whole.train()
    with pytest.raises(CutOff):
        make_trainer(**own, output_dir=str(tmp_path / "cut"), callbacks=[CutOffAt(3)]).train()
    broken = make_trainer(**own, output_dir=str(tmp_path / "cut"))
    broken.train("auto")
    assert_same(whole, broken, z_of)


def test_lora_with_dropout(make_trainer: Make, make_generator: Make, tmp_path: Path) -> None:
    """Dropout draws from the process's own generator, whose state is another one in each update."""

    def make(name: str, *callbacks: Any) -> Any:
        lora = LoraConfig(r=2, lora_dropout=0.3, target_modules=["up_proj"], task_type="CAUSAL_LM")
        own = {**EVERY_OTHER, "max_steps": 4, "weight_decay": 0.0, "output_dir": str(tmp_path / name)}
        torch.manual_seed(0)  # the start of LoRA is random
        return make_trainer(generator=make_generator(), peft_config=lora, callbacks=list(callbacks), **own)

    whole = make("whole")
    whole.train()
    with pytest.raises(CutOff):
        make("cut", CutOffAt(4)).train()
    broken = make("cut")
    broken.train("auto")
    found = dict(broken.model.named_parameters())
    trained = {name: p for name, p in whole.model.named_parameters() if p.requires_grad}
    assert any("lora_B" in name and p.abs().max() > 0 for name, p in trained.items())
    assert all(torch.equal(p, found[name]) for name, p in trained.items())
    assert read_metrics(tmp_path / "whole") == read_metrics(tmp_path / "cut")


def test_a_longer_run_goes_on_from_a_shorter_one(runs: Make, make_generator: Make, make_trainer: Make, z_of: Z) -> None:
    own = {"lr_scheduler_type": "constant", "max_steps": 4}
    whole, short = runs((), **own)
    settings = {**EVERY_OTHER, **own, "max_steps": 6, "save_steps": 3, "output_dir": short.args.output_dir}
    longer = make_trainer(generator=make_generator(), **settings)
    longer.train("auto")
    assert longer.state.global_step == 6
    assert (Path(longer.args.output_dir) / "checkpoint-6").is_dir()
    steps = [line["step"] for line in read_metrics(Path(longer.args.output_dir)) if "loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert any(not torch.equal(z, z_of(longer)[name]) for name, z in z_of(whole).items())


def test_going_back_to_an_earlier_checkpoint_removes_the_later_ones(
    runs: Make, make_generator: Make, make_trainer: Make
) -> None:
    _, done = runs(())
    folder = Path(done.args.output_dir)
    again = make_trainer(generator=make_generator(), **EVERY_OTHER, output_dir=str(folder), callbacks=[CutOffAt(4)])
    with pytest.raises(CutOff):
        again.train(str(folder / "checkpoint-2"))
    assert [path.name for path in sorted(folder.glob("checkpoint-*"))] == ["checkpoint-2"]
    assert [line["step"] for line in read_metrics(folder)] == [1, 2, 3]


def test_other_rows_are_refused(runs: Make, make_generator: Make, make_trainer: Make) -> None:
    _, done = runs((), max_steps=2)
    other = make_trainer(generator=make_generator(), **{**EVERY_OTHER, "max_steps": 3}, output_dir=done.args.output_dir)
    other.train_dataset = other.train_dataset.select(range(8))
    with pytest.raises(SVFError, match="other training rows"):
        other.train("auto")


def test_tensorboard_shows_each_update_once(make_trainer: Make, make_generator: Make, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    own = {**EVERY_OTHER, "report_to": "tensorboard", "output_dir": str(tmp_path / "run")}
    with pytest.raises(CutOff):
        make_trainer(generator=make_generator(), **own, callbacks=[CutOffAt(4)]).train()
    make_trainer(generator=make_generator(), **own).train("auto")
    (folder,) = (tmp_path / "run/runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("train/reward")] == [1, 2, 3, 4, 5, 6]


# ---- faults ----------------------------------------------------------------------------------------------------------


def test_a_gradient_that_is_not_finite_ends_the_run_before_the_update(
    make_trainer: Make, make_generator: Make, parity_reward: Any, z_of: Z, tmp_path: Path
) -> None:
    calls = iter(range(100))

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        values = parity_reward(completion_ids)
        return [3e38] * len(values) if next(calls) == 3 else values

    own = {**EVERY_OTHER, "advantage": "none", "output_dir": str(tmp_path / "run"), "save_steps": 1}
    broken = make_trainer(generator=make_generator(), reward=reward, **own)
    with pytest.raises(SVFError, match=r"gradient of step 4 is not finite .*resumes from .*checkpoint-3") as error:
        broken.train()
    assert "\n" not in str(error.value)
    assert all(z.isfinite().all() for z in z_of(broken).values())
    again = make_trainer(generator=make_generator(), reward=parity_reward, **own)
    again.train("auto")
    assert again.state.global_step == 6


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB."""
    with small_disk(tmp_path / "disk", "400k") as folder:
        yield folder


@pytest.mark.parametrize("room", [0, 30_000, 90_000])
def test_a_full_disk_leaves_the_checkpoint_before_as_it_was(
    make_trainer: Make, make_generator: Make, disk: Path, room: int
) -> None:
    class Fill(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            left = shutil.disk_usage(disk).free - room
            (disk / "filling").write_bytes(bytes(max(0, left)))

    own = {**EVERY_OTHER, "output_dir": str(disk / "run"), "save_steps": 1, "logging_strategy": "no"}
    with pytest.raises(SVFError, match=r"cannot write .*checkpoint-2: .*resumes from .*checkpoint-1") as error:
        make_trainer(generator=make_generator(), **own, callbacks=[Fill()]).train()
    assert "\n" not in str(error.value)
    (disk / "filling").unlink()
    assert {path.name for path in (disk / "run").glob("*checkpoint-*")} == {"checkpoint-1"}
    again = make_trainer(generator=make_generator(), **{**own, "max_steps": 2})
    again.train("auto")
    assert again.state.global_step == 2
