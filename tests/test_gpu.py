"""What a CUDA device does otherwise than a CPU could: factors, layer, merge, training, and the colocated vLLM."""

import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from svf_rl.generation.sampling import Sampling
from svf_rl.generation.transformers_generator import TransformersGenerator
from svf_rl.generation.weights import SharedWeights
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig, svf_layers
from svf_rl.svf.decompose import thin_svd
from svf_rl.train import run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def adapted(device: str, dtype: torch.dtype = torch.float32) -> PeftModel:
    """The bundled model with multipliers around 1, the same on every device."""
    base = AutoModelForCausalLM.from_pretrained(model_path(), dtype=dtype).to(device)
    model = get_peft_model(base, SVFConfig(target_modules=["gate_proj", "up_proj", "down_proj"]))
    generator = torch.Generator().manual_seed(0)
    for layer in svf_layers(model).values():
        z = layer.svf_z["default"].weight
        z.data += 0.1 * torch.randn(z.shape, generator=generator).to(z.device)
    return model.eval()


@pytest.mark.parametrize("method", ["gram", "svd"])
def test_factors_agree_with_those_of_the_cpu(method: str) -> None:
    weight = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    z = 1 + 0.1 * torch.randn(200, generator=torch.Generator().manual_seed(1)).double()
    here, there = thin_svd(weight), thin_svd(weight.cuda(), method)
    rebuilt = [(f.U.cpu() * (f.s.cpu() * z)) @ f.Vt.cpu() for f in (here, there)]
    assert there.U.is_cuda
    assert (rebuilt[0] - rebuilt[1]).norm() / rebuilt[0].norm() < 1e-9


def test_logits_and_gradients_agree_with_those_of_the_cpu() -> None:
    ids = torch.randint(5, 400, (4, 24), generator=torch.Generator().manual_seed(2))
    logits, gradients = [], []
    for device in ("cpu", "cuda"):
        model = adapted(device)
        out = model(input_ids=ids.to(device)).logits
        out.float().log_softmax(-1)[..., 7].sum().backward()
        logits.append(out.detach().cpu())
        gradients.append(torch.cat([layer.svf_z["default"].weight.grad.cpu() for layer in svf_layers(model).values()]))
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-2, atol=1e-2 * gradients[0].abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merge_agrees_with_that_of_the_cpu(dtype: torch.dtype) -> None:
    here, there = (svf_layers(adapted(device, dtype)) for device in ("cpu", "cuda"))
    for name, layer in here.items():
        on_cpu, on_gpu = layer.merged_weight(), there[name].merged_weight().cpu()
        unequal = (on_cpu != on_gpu).float().mean().item()
        assert unequal < 1e-3, name
        there[name].svf_z["default"].weight.data.fill_(1.0)
        assert torch.equal(there[name].merged_weight(), there[name].base_weight())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_quickstart_trains(dtype: str, repository: Path, tmp_path: Path) -> None:
    values = {
        "use_vllm": "false", "dtype": dtype, "max_steps": 2, "eval_steps": 1, "save_steps": 1, "test_items": 16,
        "validation_items": 16, "output_dir": tmp_path / "run", "disable_tqdm": "true", "report_to": "none",
    }  # fmt: skip
    summary = run(str(repository / "recipes/quickstart.yaml"), [f"--{key}={value}" for key, value in values.items()])
    assert summary is not None
    assert summary["updates"] == 2
    assert (tmp_path / "run/adapter_model.safetensors").is_file()


@pytest.mark.vllm
# vLLM allows one engine a process whose weights sleep
@pytest.mark.parametrize(
    ("dtype", "sleep", "eager", "share"),
    [
        (torch.float32, False, True, False),
        (torch.bfloat16, False, True, False),
        (torch.bfloat16, False, False, True),
        (torch.bfloat16, True, True, False),
        (torch.bfloat16, True, True, True),
    ],
)
def test_a_synced_vllm_answers_as_the_model_does(
    dtype: torch.dtype, sleep: bool, eager: bool, share: bool, prompts: list[list[int]]
) -> None:
    pytest.importorskip("vllm")
    from svf_rl.generation.vllm.colocated import ColocatedVLLMGenerator

    model = adapted("cuda", dtype)
    before = {name: p.clone() for name, p in model.named_parameters()}
    engine = ColocatedVLLMGenerator(
        str(model_path()), dtype=dtype, seed=0, max_model_len=256, max_num_seqs=64, enforce_eager=eager,
        gpu_memory_utilization=0.1, enable_sleep_mode=sleep, shared=SharedWeights.of(model) if share else None,
    )  # fmt: skip
    tokenless = TransformersGenerator(model, eos_token_ids=[1], pad_token_id=0)
    for _ in range(2):  # asleep between: the weights come back
        assert engine.stale is (sleep and not share)
        engine.sync(model)
        greedy = engine.generate(prompts, Sampling(max_tokens=16, temperature=0.0), range(len(prompts)))
        if sleep:
            engine.sync(model)
        continuations = [completion.token_ids for completion in greedy]
        theirs = engine.loglikelihood(prompts, continuations)
        ours = tokenless.loglikelihood(prompts, continuations)
        difference = max(abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))
        assert math.isfinite(difference)
        assert difference < (2e-3 if dtype == torch.float32 else 0.3)
        print(f"{dtype}, sleep={sleep}, shared={share}: log-probabilities differ by at most {difference:.2e}")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    if share:
        places = {p.untyped_storage().data_ptr() for p in engine.model.parameters()}
        shared = SharedWeights.of(model).parameters
        assert all(p.untyped_storage().data_ptr() in places for p in shared.values())
