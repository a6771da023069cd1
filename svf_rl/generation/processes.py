"""Work that one process does for all of them."""

from collections.abc import Callable
from typing import Any, cast

from torch import distributed

from svf_rl.errors import SVFError


def run_on_main_process(act: Callable[[], dict[str, Any]], meanwhile: Callable[[], None]) -> dict[str, Any]:
    """The result of `act`, called on the first process of the run and returned on every process. The others call
    `meanwhile`, then wait. An `SVFError` of `act` is raised on every process."""
    if process_count() == 1:
        return act()
    outcome: list[Any] = [None, None]
    if distributed.get_rank() == 0:
        try:
            outcome[0] = act()
        except SVFError as error:
            outcome[1] = str(error)
    else:
        meanwhile()
    distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise SVFError(outcome[1])
    return cast("dict[str, Any]", outcome[0])


def process_count() -> int:
    """How many processes the run has."""
    return distributed.get_world_size() if distributed.is_initialized() else 1
