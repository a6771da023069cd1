"""What vLLM raises becomes one line, its own classes included."""

import pytest

from svf_rl.errors import SVFError
from svf_rl.generation.vllm import vllm_errors


@pytest.mark.vllm
def test_errors_of_vllm_and_of_python_are_told_and_others_are_not() -> None:
    exceptions = pytest.importorskip("vllm.exceptions")
    for error in (exceptions.VLLMValidationError("no such thing"), RuntimeError("no such thing")):
        with pytest.raises(SVFError, match=r"^here: \w+Error: no such thing"), vllm_errors("here"):
            raise error
    with pytest.raises(KeyboardInterrupt), vllm_errors("here"):
        raise KeyboardInterrupt
