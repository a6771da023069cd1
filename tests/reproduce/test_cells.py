"""Cells: real processes that are run once, end with their starter, and do not stop one another."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import wait_until
from written_cells import run, writing_cell

from svf_rl.errors import SVFError
from svf_rl.reproduce.cells import Cell, is_done, log_path, record_path
from svf_rl.reproduce.launch import hold_results, last_error

REPOSITORY = Path(__file__).resolve().parents[2]


def summary(cell):
    return json.loads(cell.result.read_text())


def test_a_finished_cell_is_not_run_again(tmp_path):
    cells = [writing_cell(tmp_path, "a", shots=2), writing_cell(tmp_path, "b")]
    assert run(cells, tmp_path).made == {"a", "b"}
    first = summary(cells[0])
    again = run(cells, tmp_path)
    assert (again.done, again.made) == ({"a", "b"}, set())
    assert summary(cells[0]) == first


def test_what_comes_of_a_run_that_is_made_again_is_made_again(tmp_path):
    cells = [writing_cell(tmp_path, "a"), writing_cell(tmp_path, "b", needs=["a"], kind="evaluation")]
    run(cells, tmp_path)
    cells[0].result.unlink()
    assert run(cells, tmp_path).made == {"a", "b"}


def test_a_cell_waits_for_what_it_needs_and_others_run_beside_one_another(tmp_path):
    nap = "time.sleep(1)"
    a, b = writing_cell(tmp_path, "a", code=nap), writing_cell(tmp_path, "b", code=nap)
    c = writing_cell(tmp_path, "c", needs=["a", "b"])
    run([c, a, b], tmp_path)
    assert summary(c)["start"] >= max(summary(a)["end"], summary(b)["end"])
    assert summary(b)["start"] < summary(a)["end"]


def test_one_at_a_time_where_one_job_is_wanted(tmp_path):
    cells = [writing_cell(tmp_path, name, code="time.sleep(0.2)") for name in "ab"]
    run(cells, tmp_path, jobs=1)
    assert summary(cells[1])["start"] >= summary(cells[0])["end"]


def test_a_cell_that_fails_stops_only_what_needs_it(tmp_path, capsys):
    bad = writing_cell(tmp_path, "bad", code="sys.exit('error: no such data')")
    good = writing_cell(tmp_path, "good")
    after = writing_cell(tmp_path, "after", needs=["bad"], kind="adaptation")
    outcome = run([bad, good, after], tmp_path)
    assert outcome.done == {"good"}
    assert outcome.failed == {"bad": "no such data", "after": "needs bad"}
    printed = capsys.readouterr().out
    assert f"failed: bad: no such data (log: {log_path(tmp_path, 'bad')})" in printed
    assert "[3/3]" in printed


def test_so_does_one_whose_supervisor_is_killed(tmp_path):
    cell = writing_cell(tmp_path, "a", code="import os, signal; os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)")
    assert run([cell], tmp_path).failed == {"a": "killed from outside, as when the memory is full"}


def test_a_process_that_is_killed_says_what_may_have_done_it(tmp_path):
    cell = writing_cell(tmp_path, "a", code="import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert run([cell], tmp_path).failed == {"a": "killed from outside, as when the memory is full"}


def test_an_evaluation_goes_on_without_the_adapter_that_failed(tmp_path):
    bad = writing_cell(tmp_path, "bad", code="sys.exit(1)")
    good = writing_cell(tmp_path, "good")
    adapters = {"bad": "runs/bad", "good": "runs/good"}
    evaluation = Cell(
        "evaluation", "evaluation", tmp_path / "evaluation", {"adapters": adapters},
        writing_cell(tmp_path, "x").command, ("bad", "good"), {"adapters": adapters},
    )  # fmt: skip
    run([bad, good, evaluation], tmp_path)
    assert list(json.loads(record_path(tmp_path, "evaluation").read_text())["spec"]["adapters"]) == ["good"]
    assert not is_done(evaluation, tmp_path)  # the next call, which tries the other adapter again, makes it whole


def test_other_settings_are_an_error_before_anything_runs(tmp_path):
    run([writing_cell(tmp_path, "a", max_steps=2)], tmp_path)
    changed, other = writing_cell(tmp_path, "a", max_steps=3), writing_cell(tmp_path, "b")
    with pytest.raises(SVFError, match=r"runs/a was made with other settings \(max_steps: 2 there, 3 here\): remove"):
        run([other, changed], tmp_path)
    assert not other.result.exists()


def test_what_an_unknown_run_left_is_taken_away(tmp_path):
    cell = writing_cell(tmp_path, "a")
    (cell.folder / "checkpoint-10").mkdir(parents=True)
    assert not is_done(cell, tmp_path)
    run([cell], tmp_path)
    assert [path.name for path in cell.folder.iterdir()] == ["summary.json"]


def test_what_a_training_run_of_the_same_settings_left_is_kept_for_it_to_go_on(tmp_path):
    killed = writing_cell(tmp_path, "a", code="(folder / 'checkpoint-10').mkdir(parents=True); sys.exit(1)")
    assert run([killed], tmp_path).failed
    run([same := writing_cell(tmp_path, "a")], tmp_path)
    assert {path.name for path in same.folder.iterdir()} == {"checkpoint-10", "summary.json"}


def test_the_checkpoints_of_other_settings_are_not_taken_away_without_a_word(tmp_path):
    killed = writing_cell(tmp_path, "a", code="(folder / 'checkpoint-10').mkdir(parents=True); sys.exit(1)")
    run([killed], tmp_path)
    other = writing_cell(tmp_path, "a", save_steps=12)
    told = (
        r"runs/a was made with other settings \(save_steps: null there, 12 here\): remove that folder, its checkpoints"
    )
    with pytest.raises(SVFError, match=told):
        run([other], tmp_path)
    assert (other.folder / "checkpoint-10").is_dir()
    (other.folder / "checkpoint-10").rmdir()  # a run that has not come to its first is begun anew
    assert run([other], tmp_path).made == {"a"}


def test_a_damaged_record_says_what_to_remove(tmp_path):
    cell = writing_cell(tmp_path, "a")
    run([cell], tmp_path)
    record_path(tmp_path, "a").write_text('{"kind"')
    with pytest.raises(SVFError, match=r"a\.json is damaged .*: remove it, and .* trains the run again from its start"):
        is_done(cell, tmp_path)


def test_two_calls_do_not_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("svf_rl.reproduce.launch._PATIENCE", 0.3)
    with hold_results(tmp_path), pytest.raises(SVFError, match="another process is writing"), hold_results(tmp_path):
        pass


KILLED = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
from written_cells import run, writing_cell
out = Path({out!r})
run([writing_cell(out, "slow", code="print('begun', flush=True); time.sleep(60)")], out)
"""


def test_a_command_holds_the_folder_and_ends_with_its_supervisor(tmp_path):
    """Which may be killed, as the memory's end does it."""
    with hold_results(tmp_path / "out") as lock:
        call = subprocess.Popen(
            [sys.executable, "-m", "svf_rl.reproduce.supervise", sys.executable, "-Sc", COMMAND, str(tmp_path)],
            cwd=REPOSITORY, stdin=subprocess.PIPE, pass_fds=[lock],
        )  # fmt: skip
        wait_until(lambda: (tmp_path / "begun").is_file(), 60)
        assert f"{tmp_path / 'out' / '_lock'}" in (tmp_path / "begun").read_text()
        call.kill()
        call.communicate()
        wait_until(lambda: (tmp_path / "asked to end").exists(), 10)


COMMAND = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: ((folder / "asked to end").touch(), os._exit(0)))
descriptors = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
held = "\\n".join(os.readlink(name) for name in descriptors if os.path.exists(name))
(folder / "partial").write_text(held)
(folder / "partial").rename(folder / "begun")
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_processes_of_a_killed_call_end_too_and_the_next_call_goes_on(tmp_path, number):
    script = KILLED.format(here=str(Path(__file__).parent), out=str(tmp_path))
    call = subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, start_new_session=True)
    log = log_path(tmp_path, "slow")
    wait_until(lambda: log.is_file() and "begun" in log.read_text(), 60)
    os.killpg(call.pid, number)
    call.wait()
    start = time.monotonic()
    outcome = run([writing_cell(tmp_path, "slow")], tmp_path)  # waits for the lock that the processes held
    assert outcome.made == {"slow"}
    assert time.monotonic() - start < 30
    left = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path / "runs" / "slow") not in left


def test_the_reason_of_a_failure_is_the_last_error_of_its_log(tmp_path):
    log = tmp_path / "log"
    log.write_text("error: first\n10 %|###\r20 %|####\nTraceback\nRuntimeError: out of memory\nbye\n")
    assert last_error(log) == "RuntimeError: out of memory"
    log.write_text("all well\n")
    assert last_error(log) is None
