"""Weights that FSDP shares out, or that accelerate holds elsewhere between calls, give the same model."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import cpu_offload, disk_offload
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from svf_rl.errors import SVFError
from svf_rl.svf import SVFConfig
from svf_rl.svf.layer import held_factors


@pytest.fixture
def one_process() -> Iterator[None]:
    if dist.is_initialized():  # by an earlier test's Accelerator, for one process too
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("by_accelerate", [False, True], ids=["by hand", "by accelerate"])
def test_under_fsdp2_merging_and_unmerging_act_on_what_is_shared_out(
    make_llama: Callable,
    perturb: Callable,
    logits: Callable[[nn.Module], Tensor],
    one_process: None,
    monkeypatch: pytest.MonkeyPatch,
    by_accelerate: bool,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(by_accelerate))
    model = perturb(get_peft_model(make_llama(), SVFConfig()))
    expected, saved = logits(model), get_peft_model_state_dict(model)
    assert all(isinstance(part, nn.Parameter) == by_accelerate for part in held_factors(model) if part.dim() == 2)
    mesh = dist.init_device_mesh("cpu", (1,))
    for block in model.base_model.model.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert torch.equal(logits(model), expected)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-6)
    model.unmerge_adapter()
    assert torch.equal(logits(model), expected)
    state = get_peft_model_state_dict(model)
    assert state.keys() == saved.keys()
    model.merge_adapter()
    with pytest.raises(SVFError, match="unmerge_adapter"), model.disable_adapter():
        logits(model)


def test_fsdp1_saves_the_same_names(make_llama: Callable, perturb: Callable, one_process: None) -> None:
    model = perturb(get_peft_model(make_llama(), SVFConfig()))
    expected = get_peft_model_state_dict(model)
    for index, block in enumerate(model.base_model.model.model.layers):
        model.base_model.model.model.layers[index] = FullyShardedDataParallel(
            block, device_id=torch.device("cpu"), use_orig_params=True
        )
    state = get_peft_model_state_dict(model, state_dict=model.state_dict())
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in state)


@pytest.mark.parametrize("place", ["cpu", "disk"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_model_whose_weights_are_loaded_for_each_call(
    make_llama: Callable,
    perturb: Callable,
    logits: Callable[[nn.Module], Tensor],
    tmp_path: Path,
    place: str,
    when: str,
) -> None:
    model = perturb(get_peft_model(make_llama(mlp_bias=True), SVFConfig()))
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")

    def offload(model: nn.Module) -> None:
        if place == "cpu":
            cpu_offload(model, torch.device("cpu"))
        else:
            disk_offload(model, str(tmp_path / "weights"), torch.device("cpu"))

    other = make_llama(mlp_bias=True)
    if when == "before":
        offload(other)
    loaded = PeftModel.from_pretrained(other, tmp_path / "adapter")
    if when == "after":
        offload(loaded)
    assert torch.equal(logits(loaded), expected)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), expected, rtol=1e-4, atol=1e-6)
