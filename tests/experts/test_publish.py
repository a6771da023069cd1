"""A published adapter means the same elsewhere, and its card says how to load it."""

import json
import re
import shlex
from pathlib import Path

import huggingface_hub
import pytest
import torch
from fakes import FakeHub, refusal, served
from huggingface_hub import ModelCard

from svf_rl.cli import main
from svf_rl.errors import SVFError
from svf_rl.experts.publish import publish
from svf_rl.quickstart import model_path
from svf_rl.runs.model_card import MARKER
from svf_rl.runs.provenance import remove_paths
from svf_rl.svf.expert import read_expert


@pytest.fixture
def trained(make_expert, write_summary) -> Path:
    """An expert of the bundled model with all that a run leaves in its folder."""
    folder = make_expert("run", on=model_path(), dtype="float32", size=0.05)
    write_summary(folder)
    (folder / "training_args.bin").write_bytes(b"pickle")
    (folder / "checkpoint-20").mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 10, "eval_accuracy": 0.7}\n')
    return folder


def test_a_folder_gets_what_loading_needs_and_nothing_else(trained, loaded, tmp_path, logits):
    target = tmp_path / "shared" / "sums"
    published = publish(str(trained), str(target))
    assert sorted(path.name for path in target.iterdir()) == published.files
    assert published.files == ["README.md", "adapter_config.json", "adapter_model.safetensors", "summary.json"]
    assert read_expert(target).z.keys() == read_expert(trained).z.keys()
    here, there = (loaded(model_path(), folder, dtype="float32") for folder in (trained, target))
    assert torch.equal(logits(here), logits(there))


def test_no_file_names_a_path_or_a_token_of_this_machine(trained, write_summary, tmp_path):
    recipe = {"model_name_or_path": str(model_path()), "data_path": "/home/me/rows.jsonl", "hub_token": "hf_secret",
              "task": "columns", "output_dir": str(trained), "rewards": [{"name": "/home/me/a.py:right"}]}  # fmt: skip
    write_summary(trained, recipe=recipe)
    publish(str(trained), str(tmp_path / "out"))
    text = "".join(path.read_text() for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors")
    for hidden in (str(tmp_path), str(model_path()), "/home", "hf_secret"):
        assert hidden not in text
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["base_model_name_or_path"] == "quickstart"


def fenced(card: Path, language: str) -> str:
    """The block of that language on a card."""
    block = re.search(rf"```{language}\n(.*?)```", card.read_text(), re.DOTALL)
    assert block is not None
    return block[1]


def test_the_code_on_the_card_runs(trained, tmp_path, monkeypatch, capsys):
    publish(str(trained), str(tmp_path / "out"))
    monkeypatch.chdir(tmp_path / "out")
    exec(compile(fenced(Path("README.md"), "python"), "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_command_on_the_card_runs(trained, tmp_path, monkeypatch, capsys):
    publish(str(trained), str(tmp_path / "out"))
    monkeypatch.chdir(tmp_path / "out")
    program, *words = shlex.split(fenced(Path("README.md"), "bash"))
    assert program == "svf-rl"
    fast = ["--backend", "transformers", "--limit", "2", "--max-tokens", "4", "--out", str(tmp_path / "eval")]
    assert main([*words, *fast]) == 0
    assert "quickstart:math" in capsys.readouterr().out


def test_a_base_model_in_a_folder_needs_a_name(make_expert, base, tmp_path):
    expert = make_expert("expert")
    with pytest.raises(SVFError, match="--base-model OWNER/NAME"):
        publish(str(expert), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    publish(str(expert), str(tmp_path / "out"), base_model="me/small")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/small"
    assert ModelCard.load(tmp_path / "out" / "README.md").data.base_model == "me/small"


def test_a_card_of_one_s_own_is_kept_and_a_written_one_is_written_anew(trained, tmp_path):
    card = trained / "README.md"
    card.write_text(f"# as of last week\n\n{MARKER}\n")
    publish(str(trained), str(tmp_path / "anew"))
    assert "last week" not in (tmp_path / "anew" / "README.md").read_text()
    card.write_text("# My sums\n")
    published = publish(str(trained), str(tmp_path / "kept"))
    assert (tmp_path / "kept" / "README.md").read_text() == "# My sums\n"
    assert "your own" in published.notes[0]


def test_lora_is_published_too(make_lora, tmp_path):
    published = publish(str(make_lora("lora")), str(tmp_path / "out"), base_model="me/small")
    assert "summary.json" not in published.files
    assert "no summary.json" in published.notes[0]
    assert "LORA of rank 4" in (tmp_path / "out" / "README.md").read_text()


def test_a_target_that_is_taken_or_none(trained, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    assert "not empty" in refusal(publish, str(trained), str(tmp_path / "taken"))
    assert "OWNER/sums" in refusal(publish, str(trained), "sums")


def test_a_folder_without_a_sound_adapter(trained, tmp_path):
    (trained / "adapter_model.safetensors").write_bytes(b"cut off")
    assert "damaged" in refusal(publish, str(trained), str(tmp_path / "out"))
    (trained / "adapter_config.json").unlink()
    assert "no adapter" in refusal(publish, str(trained), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_without_a_token_or_a_network_there_is_one_line(trained, monkeypatch):
    monkeypatch.setattr("svf_rl.runs.hub.get_token", lambda: None)
    with pytest.raises(SVFError, match="no Hugging Face token"):
        publish(str(trained), "me/sums")
    monkeypatch.setattr("svf_rl.runs.hub.get_token", lambda: "hf_token")
    with pytest.raises(SVFError, match="cannot be reached"):  # the tests run offline
        publish(str(trained), "me/sums")


def test_the_same_files_go_to_the_hub(trained, monkeypatch):
    """Through the real client, to a server that answers as the Hub does."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    FakeHub.uploads = []
    with served(FakeHub) as url:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
        published = publish(str(trained), "me/sums")
    assert published.where.endswith("me/sums")
    assert sorted(FakeHub.uploads[0]) == published.files


SECRETS = {
    "vllm_server_base_url": "https://me:pass-word@gpu-7.example:8000/v?token=to-ken", "run_name": "host-7-night",
    "hub_token": "hf_abcdefghijklmnopqrstuvwx", "data_path": "http://example/rows.jsonl?a=1&access_token=to-ken&b=2",
    "rewards": [{"name": "judge", "openai_api_key": "sk-abcdefghijklmnop", "url": "http://u:pass-word@example/judge"}],
    "generation_kwargs": {"headers": "Bearer abcdefgh12345678"}, "output_dir": "/scratch/me/run",
}  # fmt: skip


def test_nothing_secret_is_published(trained, write_summary, tmp_path):
    recipe = {"model_name_or_path": "quickstart", "task": "columns", "system_prompt": "Write <answer>…</answer>."}
    warnings = ["the rows in /home/me/data/rows.jsonl are few", "the server https://me:pass-word@gpu-7.example is slow"]
    write_summary(trained, recipe={**recipe, **SECRETS}, warnings=warnings)
    publish(str(trained), str(tmp_path / "out"))
    files = {path.name: path.read_text() for path in (tmp_path / "out").iterdir() if path.suffix != ".safetensors"}
    for hidden in (
        "pass-word",
        "to-ken",
        "night",
        "hf_abc",
        "sk-abc",
        "abcdefgh1234",
        "example:8",
        "/home",
        "/scratch",
    ):
        assert not [name for name, text in files.items() if hidden in text], hidden
    kept = json.loads(files["summary.json"])
    assert kept["recipe"]["system_prompt"] == recipe["system_prompt"]
    assert kept["recipe"]["data_path"] == "http://example/rows.jsonl?a=1&access_token=&b=2"
    assert kept["recipe"]["rewards"] == [{"name": "judge", "url": "http://example/judge"}]
    assert kept["warnings"] == ["the rows in rows.jsonl are few", "the server https://gpu-7.example is slow"]


def test_what_only_looks_like_a_secret_stays():
    value = {
        "eos_token": "</s>", "classifier_tokens": 3, "url": "https://huggingface.co/owner/name/blob/main/a.json",
        "text": "and/or 1/2/3/4, me@example.org, sk-learn", "max_key": 1,
    }  # fmt: skip
    assert remove_paths(value) == value
