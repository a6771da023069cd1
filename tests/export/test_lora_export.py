"""An SVF adapter as a LoRA of rank k: the nearest there is, with a certificate of what it does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes import adapted_model, refusal, refused_command, save_adapter
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from svf_rl.cli import main
from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.export.certificate import CERTIFICATE, equal_tokens
from svf_rl.export.lora import PICTURE, export_lora
from svf_rl.generation import Completion
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig
from svf_rl.svf.decompose import thin_svd
from svf_rl.svf.low_rank import low_rank

CONFIGS = {
    "direct": SVFConfig(target_modules="mlp", task_type="CAUSAL_LM"),
    "sigmoid, renormalized": SVFConfig(
        target_modules="mlp+attention", parameterization="sigmoid", renormalize=True, task_type="CAUSAL_LM"
    ),
    "one layer": SVFConfig(target_modules="mlp", layers_to_transform=[1], task_type="CAUSAL_LM"),
}
IDS = torch.tensor([[1, 40, 50, 60, 12, 7]])
ARGUMENTS = EvaluationArguments("quickstart", tasks=["quickstart:math"], limit=8, backend="transformers", max_tokens=16)


@torch.no_grad()
def _logits(folder: Path) -> torch.Tensor:
    base = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    return PeftModel.from_pretrained(base, folder).eval()(input_ids=IDS).logits


@pytest.mark.parametrize("shape", [(24, 16), (16, 24)])
def test_it_is_the_best_approximation_of_its_rank(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    factors, delta = thin_svd(torch.randn(shape)), torch.randn(16, dtype=torch.float64)
    change = (factors.U * delta) @ factors.Vt
    u, s, vt = torch.linalg.svd(change, full_matrices=False)
    for rank in (1, 5, 16, 20):
        B, A = low_rank(factors, delta, rank)
        assert (B.shape, A.shape) == ((shape[0], rank), (rank, shape[1]))
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        torch.testing.assert_close((B @ A).double(), best, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_of_the_whole_rank_it_is_the_adapter(name: str, tmp_path: Path) -> None:
    expert = save_adapter(tmp_path / "expert", CONFIGS[name], seed=1, by=0.2)
    ranks = {len(layer) for layer in _saved_z(tmp_path / "expert")}
    found = export_lora(expert, tmp_path / "lora", max(ranks), ARGUMENTS)
    torch.testing.assert_close(_logits(tmp_path / "lora"), _logits(tmp_path / "expert"), rtol=0, atol=1e-3)
    assert found.equal_tokens > 0.99
    assert found.logit_difference < 1e-3
    assert found.curve[-1].tail == pytest.approx(0, abs=1e-6)


def _saved_z(folder: Path) -> list[torch.Tensor]:
    from safetensors.torch import load_file

    return [z for key, z in load_file(folder / "adapter_model.safetensors").items() if "svf_z" in key]


def test_the_curve_tells_beforehand_what_a_rank_leaves(tmp_path: Path) -> None:
    expert = save_adapter(tmp_path / "expert", CONFIGS["direct"], seed=1, by=0.2)
    found = export_lora(expert, tmp_path / "lora", 8, ARGUMENTS)
    ranks, tails, kls = zip(*((one.rank, one.tail, one.kl) for one in found.curve), strict=True)
    assert ranks == (1, 2, 4, 8, 16, 32, 64, 96)
    assert list(tails) == sorted(tails, reverse=True)
    assert kls[0] > kls[3] > kls[5] > 1e-9
    # the same of weights that were rebuilt: what is left of W' − W without its best part
    squares = left = 0.0
    base = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    ours = adapted_model(CONFIGS["direct"], seed=1, by=0.2).merge_and_unload()
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32), tmp_path / "lora"
    ).merge_and_unload()
    for key, weight in base.state_dict().items():
        squares += (ours.state_dict()[key] - weight).double().square().sum().item()
        left += (ours.state_dict()[key] - theirs.state_dict()[key]).double().square().sum().item()
    assert (left / squares) ** 0.5 == pytest.approx(tails[3], rel=1e-3)
    assert (tmp_path / "lora" / PICTURE).stat().st_size > 5000
    written = json.loads((tmp_path / "lora" / CERTIFICATE).read_text())
    assert written["equal_tokens"] == found.equal_tokens
    assert str(tmp_path) not in (tmp_path / "lora" / CERTIFICATE).read_text()


@pytest.mark.slow
@pytest.mark.vllm
def test_the_engine_for_which_it_is_made_says_the_same(tmp_path: Path) -> None:
    """In a process of its own, with which its memory goes."""
    expert = save_adapter(tmp_path / "expert", CONFIGS["direct"], seed=1, by=0.2)
    command = [sys.executable, "-m", "svf_rl.cli", "export", "quickstart", "--expert", expert, "--format", "peft-lora"]
    command += ["--rank", "96", "--out", str(tmp_path / "lora"), "--task", "quickstart:math", "--limit", "8"]
    done = subprocess.run([*command, "--max-tokens", "16", "--enforce-eager"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    written = json.loads((tmp_path / "lora" / CERTIFICATE).read_text())
    assert written["backend"] == "vllm"
    assert written["equal_tokens"] > 0.98
    assert "rank 96, 9 matrices, 8 rows of quickstart:math (vllm)" in done.stdout


def test_equal_tokens_are_counted_by_their_places() -> None:
    def done(*ids: int) -> Completion:
        return Completion(list(ids), None, True)

    assert equal_tokens([done(1, 2, 3)], [done(1, 2, 3)]) == 1
    assert equal_tokens([done(1, 2, 3), done()], [done(1, 9, 3, 4), done(5)]) == pytest.approx(2 / 5)
    assert equal_tokens([done()], [done()]) == 1


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expert = save_adapter(tmp_path / "expert", CONFIGS["direct"])
    lora = save_adapter(tmp_path / "of lora", LoraConfig(target_modules=["up_proj"], task_type="CAUSAL_LM"))
    assert "from 1 to 96" in refusal(export_lora, expert, tmp_path / "out", 97, ARGUMENTS)
    assert "holds a LORA adapter" in refusal(export_lora, lora, tmp_path / "out", 4, ARGUMENTS)
    given = ("export", "quickstart", "--format", "peft-lora", "--out", "out")
    assert "name a --task" in refused_command(capsys, *given, "--expert", expert)
    assert "none" in refused_command(capsys, *given, "--expert", "none", "--task", "exam")
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        main([*given, "--expert", expert, "--format", "nothing"])
