"""Checkpoints on the disk: whole or not there, recognised when torn, pruned without losing what is needed."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svf_rl.errors import SVFError
from svf_rl.storage.folders import partial_folder
from svf_rl.training import checkpoints
from svf_rl.training.checkpoints import Checkpoint, Manifest, last_sound, prune, publish, read_checkpoint
from svf_rl.training.resume import check_same_machinery, check_same_run, find_checkpoint

SETTINGS = {
    "learning_rate": 0.01, "max_steps": 30, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2,
    "steps_per_generation": 2, "generation_batch_size": 32, "rewards": ["numeric"],
}  # fmt: skip


def manifest(step: int = 10, run: str = "one", **changes: Any) -> Manifest:
    values = {
        "processes": 2, "parallelism": "no DeepSpeed", "resumable": True, "settings": SETTINGS,
        "rows": {"train": "a"}, "packages": {},
    }  # fmt: skip
    return Manifest(run=run, step=step, **{**values, **changes})


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(10, run="one")`: a checkpoint of two files in `tmp_path`, which is the folder of run `one`."""
    checkpoints.name_run(tmp_path, "one")

    def make(step: int, **changes: Any) -> Path:
        folder = checkpoints.checkpoint_folder(tmp_path, step)
        partial = partial_folder(folder)
        (partial / "global_step").mkdir(parents=True)
        (partial / "z.bin").write_bytes(bytes([step]) * 100)
        (partial / "global_step/optimizer.pt").write_bytes(b"state")
        publish(partial, folder, manifest(step, **changes))
        return folder

    return make


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != ".run"}


# ---- writing and reading ---------------------------------------------------------------------------------------------


def test_a_checkpoint_says_what_it_is_of(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = write(10)
    assert read_checkpoint(folder) == Checkpoint(folder, manifest(10))
    assert set(json.loads((folder / "manifest.json").read_text())["files"]) == {"z.bin", "global_step/optimizer.pt"}
    assert names(tmp_path) == {"checkpoint-10"}


def _cut(folder: Path) -> None:
    (folder / "z.bin").write_bytes((folder / "z.bin").read_bytes()[:-1])


def _flip(folder: Path) -> None:
    (folder / "z.bin").write_bytes(b"x" * 100)


TEARS = {
    "shorter": _cut,
    "changed": _flip,
    "file missing": lambda folder: (folder / "global_step/optimizer.pt").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "half a manifest": lambda folder: (folder / "manifest.json").write_text('{"run": '),
    "another manifest": lambda folder: (folder / "manifest.json").write_text("[1]"),
    "empty": lambda folder: [shutil.rmtree(folder), folder.mkdir()],
}


@pytest.mark.parametrize("tear", TEARS.values(), ids=TEARS.keys())
def test_a_torn_one_is_passed_over_with_a_warning(
    write: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, tear: Callable[[Path], Any]
) -> None:
    sound, torn = write(10), write(20)
    tear(torn)
    with caplog.at_level(logging.WARNING):
        assert last_sound(tmp_path).folder == sound
    assert "checkpoint-20 is not a complete checkpoint" in caplog.text
    with pytest.raises(SVFError, match="checkpoint-20 is not a complete checkpoint") as error:
        find_checkpoint(str(torn), tmp_path)
    assert "\n" not in str(error.value)


def test_a_torn_one_is_replaced_by_a_whole_one(write: Callable[..., Path], tmp_path: Path) -> None:
    _cut(write(10))
    assert read_checkpoint(write(10)).manifest.step == 10
    assert names(tmp_path) == {"checkpoint-10"}


def test_what_a_killed_process_left_is_no_checkpoint(write: Callable[..., Path], tmp_path: Path) -> None:
    sound = write(10)
    shutil.copytree(sound, tmp_path / ".checkpoint-20.partial")
    shutil.copytree(sound, tmp_path / ".checkpoint-5.old")
    assert last_sound(tmp_path).folder == sound
    checkpoints.clear_leftovers(tmp_path)
    assert names(tmp_path) == {"checkpoint-10"}


def test_the_last_is_the_last_by_its_number(write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-1000").write_text("a file")
    folders = [write(step) for step in (100, 9, 20)]
    assert last_sound(tmp_path).folder == folders[0]


def test_an_earlier_run_in_the_same_folder_does_not_count(
    write: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(30, run="earlier")
    assert last_sound(tmp_path) is None
    assert f"--resume_from_checkpoint {tmp_path / 'checkpoint-30'} resumes from it" in caplog.text
    write(10)
    assert last_sound(tmp_path).folder == tmp_path / "checkpoint-10"


def test_there_must_be_one_for_true_and_there_may_be_one_for_auto(tmp_path: Path) -> None:
    assert find_checkpoint("auto", tmp_path / "new") is None
    assert find_checkpoint(None, tmp_path) is find_checkpoint(False, tmp_path) is None
    with pytest.raises(SVFError, match="holds no checkpoint to resume from"):
        find_checkpoint(True, tmp_path)


def test_an_adapter_alone_is_not_enough(write: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(SVFError, match="save_only_model"):
        find_checkpoint(str(write(10, resumable=False)), tmp_path)


# ---- pruning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "keep", "left"),
    [
        (None, (50,), {10, 20, 30, 40, 50}),
        (0, (50,), {10, 20, 30, 40, 50}),
        (3, (50,), {30, 40, 50}),
        (2, (50, 10), {10, 50}),
        (3, (50, 10), {10, 40, 50}),
        (1, (50, 10), {10, 50}),
        (1, (50,), {50}),
        (9, (50,), {10, 20, 30, 40, 50}),
    ],
)
def test_the_oldest_go_and_never_the_last_or_the_best(
    write: Callable[..., Path], tmp_path: Path, limit: int | None, keep: tuple[int, ...], left: set[int]
) -> None:
    folders = {step: write(step) for step in (10, 20, 30, 40, 50)}
    prune(tmp_path, limit, [folders[step] for step in keep])
    assert names(tmp_path) == {f"checkpoint-{step}" for step in left}


def test_those_of_an_earlier_run_go_first(write: Callable[..., Path], tmp_path: Path) -> None:
    write(100, run="earlier")
    write(10)
    prune(tmp_path, 2, [write(20)])
    assert names(tmp_path) == {"checkpoint-10", "checkpoint-20"}


def test_a_kill_while_pruning_leaves_no_torn_one(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = [write(step) for step in (10, 20)][-1]

    def killed(folder: Path, **_: Any) -> None:
        if folder.exists():
            (folder / "z.bin").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path, 1, [last])
    monkeypatch.undo()
    assert checkpoints.checkpoints(tmp_path) == [last]
    checkpoints.clear_leftovers(tmp_path)
    assert names(tmp_path) == {"checkpoint-20"}


# ---- what no run wrote -----------------------------------------------------------------------------------------------


def _foreign(folder: Path) -> Path:
    """What transformers' own Trainer leaves, or somebody's base model."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    return folder


def _with_manifest(folder: Path) -> Path:
    (_foreign(folder) / "manifest.json").write_text('{"name": "my app", "files": []}')
    return folder


def _file(folder: Path) -> Path:
    folder.write_text("notes")
    return folder


def _link(folder: Path) -> Path:
    folder.symlink_to(_foreign(folder.with_name("elsewhere")), target_is_directory=True)
    return folder


def _copy(folder: Path) -> Path:
    shutil.copytree(folder.with_name("checkpoint-10"), folder)
    return folder


def test_an_evaluation_before_training_is_no_hindrance(
    make_trainer: Callable[..., Any], scripted: Callable[..., Any]
) -> None:
    trainer = make_trainer(generator=scripted(), eval_items=4)
    trainer.evaluate()
    assert (Path(trainer.args.output_dir) / "metrics.jsonl").is_file()
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("make", [_foreign, _with_manifest, _file, _link, _copy])
def test_a_checkpoint_of_something_else_is_refused_at_the_start_and_never_touched(
    write: Callable[..., Path], tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    sound = write(10)
    foreign = make(tmp_path / "checkpoint-2")
    with pytest.raises(SVFError, match="checkpoint-2 is no checkpoint of a run of svf_rl") as error:
        checkpoints.check_ours(tmp_path)
    assert "\n" not in str(error.value)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    prune(tmp_path, 1, [sound])
    with pytest.raises(SVFError, match="checkpoint-2 is there"):
        write(2)
    checkpoints.clear_leftovers(tmp_path)
    make_way = tmp_path / "checkpoint-20"
    foreign.rename(make_way)
    checkpoints.cut_back(tmp_path, Checkpoint(_metrics(sound), manifest(10)))
    make_way.rename(foreign)
    assert sorted(str(path) for path in tmp_path.rglob("*") if path.name != "metrics.jsonl") == before


def _metrics(folder: Path) -> Path:
    (folder / "metrics.jsonl").write_text("")
    return folder


def test_other_names_and_own_checkpoints_are_no_hindrance(write: Callable[..., Path], tmp_path: Path) -> None:
    write(10, run="earlier")
    _cut(write(20))
    _foreign(tmp_path / "checkpoint-best")
    _foreign(tmp_path / "base")
    checkpoints.check_ours(tmp_path, [str(tmp_path / "base"), "owner/name", None])
    checkpoints.check_ours(tmp_path / "new")


def test_files_that_a_run_would_replace_are_refused_in_a_folder_of_no_run(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    checkpoints.check_ours(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(SVFError, match=r"holds README\.md, which no run wrote"):
        checkpoints.check_ours(tmp_path)


def test_what_a_run_starts_from_is_not_where_it_writes(write: Callable[..., Path], tmp_path: Path) -> None:
    for used in (tmp_path, write(10)):
        with pytest.raises(SVFError, match=rf"the run starts from {used}, which lies in its output_dir"):
            checkpoints.check_ours(tmp_path, [str(used)])


# ---- the same run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"max_steps": 60}, {"save_steps": 1}, {"output_dir": "b"}, {"unknown": None}])
def test_what_changes_no_update_may_differ(changes: dict[str, Any]) -> None:
    check_same_run(Checkpoint(Path("checkpoint-10"), manifest()), {**SETTINGS, **changes}, 2)


@pytest.mark.parametrize("changes", [{"learning_rate": 0.02}, {"rewards": ["choice"]}, {"seed": 1}])
def test_what_changes_the_updates_is_refused_by_name(changes: dict[str, Any]) -> None:
    with pytest.raises(SVFError, match=rf"written with other settings \({next(iter(changes))}: ") as error:
        check_same_run(Checkpoint(Path("checkpoint-10"), manifest()), {**SETTINGS, **changes}, 2)
    assert "\n" not in str(error.value)


def test_a_key_that_is_newer_than_the_checkpoint_had_its_default() -> None:
    before = Checkpoint(Path("checkpoint-10"), manifest())
    check_same_run(before, {**SETTINGS, "drop_long_prompts": False, "print_completions_steps": 3}, 2)
    with pytest.raises(SVFError, match="drop_long_prompts: false there, true here"):
        check_same_run(before, {**SETTINGS, "drop_long_prompts": True}, 2)


def test_a_manifest_of_another_version_is_read(write: Callable[..., Path]) -> None:
    folder = write(10)
    content = json.loads((folder / checkpoints.MANIFEST).read_text())
    (folder / checkpoints.MANIFEST).write_text(json.dumps({**content, "settings_digest": "0a1b"}))
    assert read_checkpoint(folder).manifest == manifest()
    del content["rows"]
    (folder / checkpoints.MANIFEST).write_text(json.dumps(content))
    with pytest.raises(SVFError, match="damaged"):
        read_checkpoint(folder)


def test_other_processes_may_divide_the_same_updates() -> None:
    halved = {"per_device_train_batch_size": 16}
    check_same_run(Checkpoint(Path("checkpoint-10"), manifest()), {**SETTINGS, **halved}, 1)
    accumulated = {"gradient_accumulation_steps": 4, "steps_per_generation": 4}
    check_same_run(Checkpoint(Path("checkpoint-10"), manifest()), {**SETTINGS, **accumulated}, 1)


@pytest.mark.parametrize(
    ("changes", "processes"),
    [({}, 1), ({"gradient_accumulation_steps": 1}, 2), ({"generation_batch_size": 64}, 2)],
)
def test_updates_of_other_sequences_are_refused(changes: dict[str, Any], processes: int) -> None:
    with pytest.raises(SVFError, match="32 sequences a step"):
        check_same_run(Checkpoint(Path("checkpoint-10"), manifest()), {**SETTINGS, **changes}, processes)


def test_other_rows_and_another_form_of_the_optimizer_are_refused() -> None:
    check_same_machinery(Checkpoint(Path("c"), manifest()), {"train": "a"}, "no DeepSpeed")
    with pytest.raises(SVFError, match="other train rows"):
        check_same_machinery(Checkpoint(Path("c"), manifest()), {"train": "b"}, "no DeepSpeed")
    with pytest.raises(SVFError, match="DeepSpeed ZeRO-2"):
        check_same_machinery(Checkpoint(Path("c"), manifest()), {"train": "a"}, "DeepSpeed ZeRO-2")


def test_the_shares_of_deepspeed_want_as_many_processes() -> None:
    halved = {**SETTINGS, "per_device_train_batch_size": 16, "steps_per_generation": 2}
    shared = manifest(parallelism="DeepSpeed ZeRO-2")
    check_same_run(Checkpoint(Path("checkpoint-10"), shared), SETTINGS, 2)
    with pytest.raises(SVFError, match=r"2 process.* under DeepSpeed ZeRO-2.* here are 1"):
        check_same_run(Checkpoint(Path("checkpoint-10"), shared), halved, 1)
