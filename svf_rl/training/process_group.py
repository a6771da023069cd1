"""What the processes of a run owe each other: the same values while they train, and one end."""

from accelerate.utils import gather_object
from torch import distributed

from svf_rl.errors import SVFError


def check_processes_agree(digest: str, step: int) -> None:
    """
    Compare what the processes train; all of them call it together.

    Args:
        digest (`str`): This process's `trainable_digest` (`policy.py`).
        step (`int`): The step that the values come from, for the message.

    Raises:
        SVFError: on every process, where two differ: from there on they would only drift apart.
    """
    digests = gather_object([digest])
    for process, other in enumerate(digests):
        if other != digests[0]:
            raise SVFError(
                f"after step {step} process {process} has other trained values than process 0: resume from the last "
                "checkpoint, and look for a process with other hardware, packages or data"
            )


def leave_process_group() -> None:
    """For several processes that have come to the same end: the interpreter's end, left to do it, now and then aborts
    one whose communication threads still run, and a run that has ended well would count as failed."""
    if distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.destroy_process_group()
