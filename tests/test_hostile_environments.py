"""Machines on which little is as it should be: a command does its work there, or ends with one clear line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = f"{sys.executable} -m svf_rl.cli"
SMALL = (
    "train quickstart --use_vllm false --max_steps 1 --validation_items 4 --test_items 4 --max_completion_length 8 "
    "--per_device_train_batch_size 8 --disable_tqdm true --output_dir run"
)
# `bash -c` of each, in an empty folder; $C is the command. What needs mounts runs in a mount namespace of its own.
QUICK = {
    "a working directory that is gone": ("mkdir gone; cd gone; rmdir ../gone; $C recipes", "working directory is gone"),
    "no /proc": ("mount -t tmpfs none /proc; $C recipes", "/proc is not mounted"),
    "no temporary folder": (
        "for d in /tmp /var/tmp /usr/tmp $PWD; do mount --bind $d $d; mount -o remount,bind,ro $d; done; "
        "cd $PWD; TMPDIR=$PWD $C recipes",
        "no folder for temporary files can be written",
    ),
    "a number of processes that is none": ("WORLD_SIZE=x $C recipes", "WORLD_SIZE is 'x' in the environment"),
    "a rank that is empty": ("RANK= $C recipes", "RANK is '' in the environment"),
    "no home": ("env -u HOME $C recipes", None),
    "no environment at all": ("env -i PYTHONPATH=$PYTHONPATH $C recipes", None),
    "an encoding that is none": ("LANG=nonsense LC_ALL=C TERM= $C recipes", None),
    "no standard input, output or error": ("$C recipes <&- >&- 2>&-", None),
    "a user without an entry": ("unshare --user --map-user=12345 env HOME=/nonexistent $C recipes", None),
    "few descriptors": ("ulimit -n 16; $C recipes", None),
    "little address space": ("ulimit -v 2000000; $C recipes", "limited to 2.0 GB (ulimit -v)"),
    "hardly any address space": ("ulimit -v 500000; $C train quickstart --dry-run", "limited to 0.5 GB (ulimit -v)"),
}
SLOW = {
    "few descriptors": (f"ulimit -n 32; $C {SMALL}", None),
    "few descriptors for programs": (f"ulimit -n 64; $C {SMALL} --skill code", None),
    "no home": (f"env -u HOME -u SVF_RL_CACHE -u USER -u LOGNAME HF_HOME=$PWD/home $C {SMALL}", None),
    "a user without an entry": (f"unshare --user --map-user=12345 env HOME=/nonexistent $C {SMALL} --skill code", None),
    "ASCII": (f"env -u TERM LANG=C LC_ALL=C $C {SMALL}", None),
    "no standard input and output": (f"$C {SMALL} <&- >&-", None),
    "a temporary folder that is none": (f"TMPDIR=/nonexistent $C {SMALL} --skill code", None),
    "a temporary folder that is full": (
        f"mkdir full; mount -t tmpfs -o size=4k none full; head -c 8k /dev/zero >full/x; TMPDIR=$PWD/full $C {SMALL} "
        "--skill code",
        None,
    ),
    "no shared memory": (f"mount -t tmpfs -o ro none /dev/shm; $C {SMALL} --skill code", None),
    "a small stack": (f"ulimit -s 256; $C {SMALL}", None),
    "some address space": (f"ulimit -v 8000000; $C {SMALL}", None),
    "an output folder that is full": (
        f"mkdir run; mount -t tmpfs -o size=64k none run; $C {SMALL}", "No space left on device"
    ),
    "an output folder that is read-only": (
        f"mkdir run; mount -t tmpfs -o ro none run; $C {SMALL}", "is not a folder that can be written"
    ),
    "a factor cache that is a file": (f"SVF_RL_CACHE=/dev/null $C {SMALL}", "set SVF_RL_CACHE to a writable folder"),
    "a factor cache that is read-only": (
        f"mkdir cache; mount -t tmpfs -o ro none cache; SVF_RL_CACHE=$PWD/cache $C {SMALL}",
        "set SVF_RL_CACHE to a writable folder",
    ),
}  # fmt: skip


def check(script: str, message: str | None, folder: Path, repository: Path) -> None:
    """Run it; `None`: it does its work."""
    private = "mount" in script
    if private and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("mounts of one's own need root")
    if "unshare --user" in script and subprocess.run(["unshare", "--user", "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run(
        [*(["unshare", "-m"] if private else []), shutil.which("bash") or "bash", "-c", script],
        cwd=folder, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL,
        env={**os.environ, "C": COMMAND, "PYTHONPATH": str(repository)},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    if message is None:
        assert done.returncode == 0, done.stderr[-3000:]
        return
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1
    assert message in line


@pytest.mark.parametrize("name", QUICK)
def test_a_command_ends_well_or_with_one_line(name: str, tmp_path: Path, repository: Path) -> None:
    check(*QUICK[name], tmp_path, repository)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_a_training_ends_well_or_with_one_line(name: str, tmp_path: Path, repository: Path) -> None:
    check(*SLOW[name], tmp_path, repository)
