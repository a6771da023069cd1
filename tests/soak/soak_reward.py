"""The rewards of the soak run: a user's file that runs programs and checks mathematics, and that breaks when told to.

Files in the folder `flags` say what breaks: `raise`, `overflow` (rewards whose sum is beyond fp32), `engine` (vLLM's
step fails, as it does when a kernel or the memory does).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from svf_rl.rewards.reward import completion_text
from svf_rl.rewards.verifier import check_failed_share, verify_all


def passes_tests(
    completions: Sequence[Any], tests: Sequence[list[str]], log_metric: Any = None, *, flags: str
) -> list[float | None]:
    """1 where the program in the completion passes its tests, in the sandbox."""
    if (Path(flags) / "raise").exists():
        raise RuntimeError("the judge is out")
    verdicts = verify_all("unit_tests", completions, [{"test_list": one} for one in tests], progress=False)
    check_failed_share("unit_tests", verdicts, 0.25, log_metric)
    if (Path(flags) / "engine").exists():
        _break_the_engine()
    if (Path(flags) / "overflow").exists():
        return [3e38 * (-1) ** index for index in range(len(completions))]
    return [verdict.value for verdict in verdicts]


def closes_brackets(completions: Sequence[Any], log_metric: Any = None) -> list[float | None]:
    """A little for as many brackets that close as that open; the sums with x are for the `math` verifier's workers."""
    texts = [completion_text(completion) for completion in completions]
    counts = [(f"\\boxed{{x + {text.count('(')}}}", f"\\frac{{{2 * text.count(')')}}}{{2}} + x") for text in texts]
    verdicts = verify_all("math", *zip(*counts, strict=True), progress=False)  # type: ignore[arg-type]
    check_failed_share("math", verdicts, 0.25, log_metric)
    return [None if verdict.value is None else 0.1 * verdict.value for verdict in verdicts]


def _break_the_engine() -> None:
    from vllm.v1.worker.worker_base import WorkerBase

    def fail(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError("no answer from the device")

    # by class: vLLM freezes what it has built, so that the collector knows none of it
    kinds = [WorkerBase]
    for kind in kinds:
        kinds += kind.__subclasses__()
        kind.execute_model = fail  # type: ignore[method-assign]
