"""A process whose values drift away from the others' stops the run, on all of them."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
from accelerate import PartialState
from svf_rl.errors import SVFError
from svf_rl.training.policy import check_processes_agree
from svf_rl.training.run_context import leave_process_group

state = PartialState(cpu=True)
check_processes_agree("the same", 1)
try:
    check_processes_agree(f"of process {state.process_index}", 7)
except SVFError as error:
    print(error, flush=True)
leave_process_group()
"""


@pytest.mark.distributed
def test_all_processes_stop_where_one_differs(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("after step 7 process 1 has other trained values than process 0") == 2, done.stdout
