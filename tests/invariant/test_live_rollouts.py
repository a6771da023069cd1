"""With a vLLM of its own in every process, or one over two of them, a run draws the tokens that one process draws.

Sums of another order move logits in their last bits, so that a token can be another one where two are as likely; from
there on the runs part, since they learn from other completions. `pytest -s -m "" tests/invariant/test_live_rollouts.py`
says where.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from first_difference import Difference, differences, report
from launched import HALVES, SEQUENCES, TOLERANCE, UPDATES, train

from svf_rl.generation import sample_seed

A_PROMPT = 4  # completions, in the quickstart's recipe
OVER_TWO = ["--vllm_tensor_parallel_size", "2"]


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.distributed
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("config", "settings"),
    [
        pytest.param("cpu_ddp", [], id="DDP"),
        pytest.param("cpu_zero2", [], id="ZeRO-2"),
        pytest.param("cpu_zero3", [], id="ZeRO-3"),
        pytest.param("cpu_ddp", OVER_TWO, id="DDP, one vLLM"),
        pytest.param("cpu_zero2", OVER_TWO, id="ZeRO-2, one vLLM"),
        pytest.param("cpu_zero3", OVER_TWO, id="ZeRO-3, one vLLM"),
    ],
)
def test_the_first_update_draws_the_tokens_of_one_process(
    recorded: tuple[Path, dict[str, Any]],
    even_model: Path,
    tmp_path: Path,
    config: str,
    settings: list[str],
    request: pytest.FixtureRequest,
) -> None:
    completions, one = recorded
    mine = completions.with_name(f"{request.node.callspec.id}.json")  # beside it, DeepSpeed's extension is built once
    run = train(
        config, "record", mine, tmp_path / "out.json", *HALVES, "--model_name_or_path", str(even_model), *settings
    )
    pair = [json.loads(path.read_text()) for path in (completions, mine)]
    found = list(differences(pair[0], pair[1], UPDATES, SEQUENCES, A_PROMPT))
    lines = report(request.node.callspec.id, found, UPDATES, SEQUENCES)
    print(f"\n{lines}")
    same = found[0].update - 1 if found else UPDATES
    assert same >= 1, lines
    assert run["losses"][:same] == pytest.approx(one["losses"][:same], abs=TOLERANCE)
    for update in range(same):
        assert run["z"][update] == pytest.approx(one["z"][update], abs=TOLERANCE), f"z after update {update + 1}"


def _run(*completions: tuple[list[int], list[float]]) -> dict[str, Any]:
    return {
        str(sample_seed(0, "train", update, 0)): [[7], tokens, logprobs, True]
        for update, (tokens, logprobs) in enumerate(completions)
    }


def test_the_first_token_that_differs_is_reported() -> None:
    one = _run(([5, 6, 2], [-0.1, -0.2, -0.3]), ([5, 6, 2], [-0.1, -0.7, -0.3]), ([5, 2], [-0.1, -0.2]))
    other = _run(([5, 6, 2], [-0.1, -0.2, -0.3]), ([5, 8, 2], [-0.1, -0.7, -0.3]), ([5], [-0.1]))
    found = list(differences(one, other, 3, 1, 1))
    assert found == [Difference(2, 0, 0, 1, (6, 8), -0.7), Difference(3, 0, 0, 1, (2, None), -0.2)]
    assert report("DDP", found, 3, 1).splitlines() == [
        "DDP: first difference at update 2, prompt 0, completion 0, position 1: token 6 (log p -0.7000), "
        "the other token 8",
        "  completions of 1 that differ, by update: 0 1 1",
    ]
    assert report("DDP", [], 3, 1) == "DDP: all tokens of 3 updates are the same"
