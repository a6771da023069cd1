"""A SLURM cluster of two nodes on this host, with everything in a folder of its own: key, sockets, ports, state, logs.

It shares nothing with an installed SLURM but the programs. As root, `node1` has a private folder, which `node0` sees
with other contents, as nodes do that do not share a disk.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo")
NODES = ("node0", "node1")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}

CONFIG = """\
ClusterName=svf_rl_test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=20
MinJobAge=3600
NodeName=node0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=test Nodes=node0,node1 Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """Those of SLURM's and munge's programs that are not on the PATH, where Debian's `sbin` counts too."""
    return [name for name in PROGRAMS if _program(name) is None]


@dataclass(frozen=True)
class Job:
    """A job that has ended: its state, its exit status, how often it was requeued, and its log."""

    state: str
    status: int
    restarts: int
    log: str

    @property
    def last_line(self) -> str:
        lines = [line for line in self.log.splitlines() if line.strip()]
        return lines[-1] if lines else ""


@dataclass
class Cluster:
    """A running cluster; `start` makes one, `stop` leaves nothing of it."""

    folder: Path
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """For SLURM's commands: nothing of a job that this process may itself be part of."""
        outside = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))
        }
        path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        return {**outside, "PATH": path, "SLURM_CONF": str(self.folder / "slurm.conf")}

    @property
    def private_folder(self) -> Path:
        """A folder that is another one on node1; only where `has_private_folder`."""
        return self.folder / "private"

    @cached_property
    def has_private_folder(self) -> bool:
        """Whether this process may give another one a mount of its own: root outside of most containers."""
        try:
            done = subprocess.run([*_in_private(self.private_folder), "true"], capture_output=True, timeout=10)
        except OSError:
            return False
        return done.returncode == 0

    def start(self) -> None:
        """Raises `RuntimeError` where a node is not idle within a minute, with the end of the logs."""
        host = socket.gethostname().split(".")[0]
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("state", "spool.node0", "spool.node1", "private"):
            (self.folder / name).mkdir()
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(folder=self.folder, host=host, user=user, ports=_free_ports(3))
        )
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        munge = {name: self.folder / f"munge.{name}" for name in ("socket", "pid", "log", "seed")}
        self._daemon(
            *("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge['socket']}"),
            *(f"--pid-file={munge['pid']}", f"--log-file={munge['log']}", f"--seed-file={munge['seed']}"),
        )
        self._until(munge["socket"].exists, "munged does not listen")
        self._daemon("slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        self._daemon("slurmd", "-D", "-N", "node0", "-f", str(self.folder / "slurm.conf"))
        node1 = ["slurmd", "-D", "-N", "node1", "-f", str(self.folder / "slurm.conf")]
        if self.has_private_folder:
            node1 = [*_in_private(self.private_folder), str(_program("slurmd")), *node1[1:]]
        self._daemon(*node1)
        self._until(lambda: self._states() == ["idle", "idle"], "the nodes are not idle")

    def submit(self, *arguments: str, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
        """`sbatch` with these arguments from the folder `cwd`; the job's number. Its log is `job_log`."""
        done = self.run(
            *("sbatch", "--parsable", f"--output={self.folder}/job-%j.log", *arguments),
            cwd=cwd,
            environment=environment,
        )
        return done.stdout.strip()

    def run(
        self, *command: str, cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """One of SLURM's commands, to its end."""
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done

    def job_log(self, job: str) -> str:
        """What a job has written so far."""
        path = self.folder / f"job-{job}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def facts(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job: `JobState`, `Restarts`, `ExitCode`, ..."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).stdout.split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_log(self, job: str, text: str, timeout: float) -> None:
        """Wait until the job has written `text`."""
        deadline = time.monotonic() + timeout
        while text not in self.job_log(job):
            if time.monotonic() > deadline or self.facts(job)["JobState"] in ENDED:
                raise AssertionError(f"job {job} did not write {text!r}:\n{self.job_log(job)[-4000:]}")
            time.sleep(0.2)

    def wait(self, job: str, timeout: float) -> Job:
        """Wait until the job has ended; one that was requeued has not."""
        deadline = time.monotonic() + timeout
        while (facts := self.facts(job))["JobState"] not in ENDED:
            if time.monotonic() > deadline:
                raise AssertionError(f"job {job} is still {facts['JobState']}:\n{self.job_log(job)[-4000:]}")
            time.sleep(0.5)
        time.sleep(0.5)  # the last lines of the log
        return Job(facts["JobState"], int(facts["ExitCode"].split(":")[0]), int(facts["Restarts"]), self.job_log(job))

    def processes(self, *, node: str | None = None, command: str | None = None) -> list[psutil.Process]:
        """The processes of jobs, by their environment: those of a node, those whose command line holds a word."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                environment = process.environ()
                if (
                    environment.get("SLURM_CONF") != str(self.folder / "slurm.conf")
                    or "SLURM_JOB_ID" not in environment
                ):
                    continue
                if node is not None and environment.get("SLURMD_NODENAME") != node:
                    continue
                if command is None or command in process.cmdline():
                    found.append(process)
        return found

    def stop(self) -> None:
        """End all jobs and daemons."""
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            self.run("scancel", "--user", str(os.getuid()))
            deadline = time.monotonic() + 15
            while self.processes() and time.monotonic() < deadline:
                time.sleep(0.2)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        # Each step has a process that outlives its slurmd; what a job left behind would outlive that.
        for process in self._left_behind():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)

    def _left_behind(self) -> list[psutil.Process]:
        mark = str(self.folder)
        left = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get("SLURM_CONF", "").startswith(mark):
                    left.append(process)
        return left

    def _daemon(self, *command: Any) -> None:
        program = _program(command[0])
        assert program is not None
        log = (self.folder / f"{Path(program).name}-{len(self.daemons)}.out").open("wb")
        # in a session of its own: Ctrl-C is for pytest, which then calls `stop`
        self.daemons.append(
            subprocess.Popen(
                [program, *command[1:]],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )
        log.close()

    def _states(self) -> list[str]:
        try:
            return self.run("sinfo", "--noheader", "--Node", "--format=%T").stdout.split()
        except RuntimeError:  # slurmctld does not listen yet
            return []

    def _until(self, condition: Any, otherwise: str, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            ended = [daemon.args for daemon in self.daemons if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                logs = "\n".join(
                    f"{path.name}: {path.read_text(errors='replace')[-1500:]}"
                    for pattern in ("*.log", "*.out")
                    for path in self.folder.glob(pattern)
                )
                raise RuntimeError(f"{otherwise}; ended: {ended}\n{logs}")
            time.sleep(0.2)


def _in_private(folder: Path) -> list[str]:
    """The beginning of a command that sees an empty folder of its own in the place of `folder`."""
    mount = 'mount -t tmpfs private "$1" && shift && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", mount, "sh", str(folder)]


def _program(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
