"""Sleep mode (CUDA only) drops the engine's weights after every generation; here they are destroyed by hand."""

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from svf_rl.generation import Sampling
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig

pytestmark = pytest.mark.vllm


@pytest.fixture
def sleeping_engine(vllm_engine, monkeypatch):
    """The engine as it is with sleep on: `sleep(level=2)` leaves no usable weight."""

    def sleep(level: int) -> None:
        assert level == 2
        with torch.no_grad():
            for parameter in vllm_engine.model.parameters():
                parameter.fill_(torch.nan)

    monkeypatch.setattr(vllm_engine, "_sleeps", True)
    monkeypatch.setattr(vllm_engine.llm, "sleep", sleep)
    monkeypatch.setattr(vllm_engine.llm, "wake_up", lambda tags: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    yield vllm_engine
    monkeypatch.undo()
    vllm_engine.sync(get_peft_model(AutoModelForCausalLM.from_pretrained(model_path()), SVFConfig()), everything=True)


def test_each_generation_needs_a_sync_of_all_weights(sleeping_engine):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32), SVFConfig())
    prompts, greedy = [[5, 6, 7, 8]] * 2, Sampling(max_tokens=8, temperature=0.0)
    sleeping_engine.sync(model, everything=True)
    first = sleeping_engine.generate(prompts, greedy, [0, 0])
    assert sleeping_engine.stale
    with pytest.raises(RuntimeError, match="sync before generating"):
        sleeping_engine.generate(prompts, greedy, [0, 0])
    report = sleeping_engine.sync(model)
    assert report.tensors == len(list(AutoModelForCausalLM.from_pretrained(model_path()).parameters()))
    second = sleeping_engine.generate(prompts, greedy, [0, 0])
    assert [c.token_ids for c in first] == [c.token_ids for c in second]
