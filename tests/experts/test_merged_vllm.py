"""Plain vLLM, without a line of ours, generates from a merged model what our engine generates with the adapter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from svf_rl.experts.merged import merge
from svf_rl.generation import Sampling
from svf_rl.models.arguments import ModelArguments
from svf_rl.quickstart import make_rows, model_path

PLAIN = """
import json, sys
from vllm import LLM, SamplingParams
prompts = json.load(sys.stdin)
llm = LLM(sys.argv[1], dtype="float32", max_model_len=256, enforce_eager=True, seed=0)
outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], SamplingParams(temperature=0, max_tokens=48))
print("TOKENS", json.dumps([list(output.outputs[0].token_ids) for output in outputs]))
"""


@pytest.mark.vllm
def test_plain_vllm_gives_the_adapter_s_greedy_tokens(vllm_engine, make_expert, loaded, tmp_path):
    expert = make_expert("expert", on=model_path(), dtype="float32", size=0.4)
    out = tmp_path / "merged"
    merge(ModelArguments("quickstart", dtype="float32"), [str(expert)], out)
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    chats = [[{"role": "user", "content": row["prompt"]}] for row in make_rows("math", "validation", 16)]
    prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True)["input_ids"]

    def ours(adapter: Path | None) -> list[list[int]]:
        model = loaded(model_path(), adapter, dtype="float32").requires_grad_(False)
        vllm_engine.sync(model, everything=True)
        greedy = Sampling(max_tokens=48, temperature=0.0)
        return [c.token_ids for c in vllm_engine.generate(prompts, greedy, [0] * len(prompts))]

    assert ours(None) != ours(expert)  # else an adapter that was lost would not be noticed

    # vLLM compiles its sampler even so, for which half a minute and a C++ compiler are needed
    environment = {**os.environ, "TORCH_COMPILE_DISABLE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(out)],
        input=json.dumps(prompts), env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("TOKENS "))
    assert json.loads(line.removeprefix("TOKENS ")) == ours(expert)
