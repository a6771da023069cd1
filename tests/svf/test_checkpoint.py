"""Decomposing a checkpoint: what the live model will hold, one matrix at a time, once, and after any accident."""

import json
import multiprocessing
import multiprocessing.context
import os
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fakes import wait_until
from filelock import FileLock
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from svf_rl.errors import SVFError
from svf_rl.svf import checkpoint
from svf_rl.svf.cache import FactorCache
from svf_rl.svf.checkpoint import decompose_checkpoint
from svf_rl.svf.decompose import ALGORITHM_VERSION, Factors, fingerprint
from svf_rl.svf.targets import find_targets, logical_weight

LAYERS = 3
MATRICES = 3 * LAYERS


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama in several shards."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        vocab_size=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2 whose file names lack the base model's prefix, as the published one's do."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    file = folder / "model.safetensors"
    save_file({name.removeprefix("transformer."): t for name, t in load_file(file).items()}, file, {"format": "pt"})
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> FactorCache:
    return FactorCache(tmp_path / "cache")


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the matrices decomposed during the test."""
    shapes: list[tuple[int, ...]] = []
    real = checkpoint.thin_svd

    def counting(weight: torch.Tensor) -> object:
        shapes.append(tuple(weight.shape))
        return real(weight)

    monkeypatch.setattr(checkpoint, "thin_svd", counting)
    return shapes


def run(folder: Path, cache: FactorCache, **options: object) -> checkpoint.Index:
    return decompose_checkpoint(str(folder), cache=cache, progress=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_live_model_finds_all_its_factors(
    family: str, dtype: torch.dtype, cache: FactorCache, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(family)
    index = run(folder, cache, targets="mlp+attention", dtype=dtype)
    live = find_targets(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), "mlp+attention")
    assert list(index.modules) == list(live)
    assert index.stored == {name: name for name in live}
    for name, module in live.items():
        weight = logical_weight(module).detach()
        assert index.modules[name].fingerprint == fingerprint(weight)
        assert index.modules[name].shape == tuple(weight.shape)
        factors = cache.load(fingerprint(weight), dtype)
        assert factors is not None
        rebuilt = (factors.U.double() * factors.s.double()) @ factors.Vt.double()
        tolerance = 1e-6 if dtype == torch.float32 else 1e-2
        assert (rebuilt - weight.double()).norm() < tolerance * weight.double().norm()


def test_the_index_says_what_it_covers(llama: Path, cache: FactorCache) -> None:
    index = run(llama, cache)
    assert (len(index.modules), index.cached) == (MATRICES, 0)
    assert index.seconds > 0
    content = json.loads(index.path.read_text())
    assert content["model"] == str(llama)
    assert content["dtype"] == "float32"
    assert content["algorithm_version"] == ALGORITHM_VERSION
    assert set(content) == {"model", "revision", "dtype", "targets", "algorithm_version", "modules"}
    entry = content["modules"]["model.layers.0.mlp.down_proj"]
    assert entry["shape"] == [32, 48]
    assert (cache.root / entry["file"]).is_file()
    assert index.bytes == sum(path.stat().st_size for path in cache.root.glob("*.safetensors"))


def test_the_dtype_is_the_checkpoints_unless_told(llama: Path, cache: FactorCache, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16).save_pretrained(tmp_path / "bf16")
    for dtype, written in ((None, "bfloat16"), ("float32", "float32")):
        index = run(tmp_path / "bf16", cache, dtype=dtype)
        assert json.loads(index.path.read_text())["dtype"] == written
    with pytest.raises(SVFError, match="int8"):
        run(tmp_path / "bf16", cache, dtype="int8")


def test_a_second_call_decomposes_nothing_and_writes_nothing(
    llama: Path, cache: FactorCache, decomposed: list[tuple[int, ...]]
) -> None:
    first = run(llama, cache)
    assert len(decomposed) == MATRICES
    before = {path: path.stat().st_mtime_ns for path in cache.root.iterdir() if path.suffix != ".lock"}
    second = run(llama, cache)
    assert len(decomposed) == second.cached == MATRICES
    assert second.modules == first.modules
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_equal_weights_share_one_file(
    llama: Path, cache: FactorCache, decomposed: list[tuple[int, ...]], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    for layer in model.model.layers:
        layer.mlp.load_state_dict(model.model.layers[0].mlp.state_dict())
    model.save_pretrained(tmp_path / "equal")
    index = run(tmp_path / "equal", cache)
    assert len(index.modules) == MATRICES
    assert len(decomposed) == len(list(cache.root.glob("*.safetensors"))) == 3


def test_one_matrix_is_alive_at_a_time(llama: Path, cache: FactorCache, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[torch.UntypedStorage]] = []
    real = checkpoint.read_weight

    def watched(*arguments: object) -> torch.Tensor:
        assert not any(ref() is not None for ref in alive)
        weight = real(*arguments)  # type: ignore[arg-type]
        alive.append(weakref.ref(weight))
        return weight

    monkeypatch.setattr(checkpoint, "read_weight", watched)
    run(llama, cache)
    assert len(alive) == MATRICES


def test_only_the_targeted_tensors_are_read(llama: Path, cache: FactorCache, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []
    real = checkpoint.StoredWeights.read

    def watched(stored: checkpoint.StoredWeights, key: str) -> torch.Tensor:
        keys.append(key)
        return real(stored, key)

    monkeypatch.setattr(checkpoint.StoredWeights, "read", watched)
    run(llama, cache, targets=r".*layers\.1\.mlp\.up_proj")
    assert keys == ["model.layers.1.mlp.up_proj.weight"]


@pytest.mark.parametrize("damage", ["truncated", "bit flip"])
def test_a_damaged_file_is_rebuilt_and_no_other(
    llama: Path, cache: FactorCache, decomposed: list[tuple[int, ...]], damage: str
) -> None:
    index = run(llama, cache)
    decomposed.clear()
    path = cache.root / index.modules["model.layers.1.mlp.up_proj"].file
    good, factors = path.read_bytes(), cache.load(path.name.split("-")[0], torch.float32)
    path.write_bytes(good[:-1] if damage == "truncated" else good[:-9] + bytes([good[-9] ^ 4]) + good[-8:])
    with pytest.warns(UserWarning, match=path.name):
        again = run(llama, cache)
    assert decomposed == [(48, 32)]
    assert again.cached == MATRICES - 1
    rebuilt = cache.load(path.name.split("-")[0], torch.float32)
    assert factors is not None
    assert rebuilt is not None
    assert torch.equal(rebuilt.U, factors.U)
    assert torch.equal(rebuilt.Vt, factors.Vt)


# Children are forked from a server that has imported everything once: an import of transformers takes seconds.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["svf_rl.svf.checkpoint", "transformers.models.llama.modeling_llama"])


def slow_run(folder: Path, root: Path, log: Path) -> None:
    """In a process of its own: every decomposition is written down and takes long; messages go to the same log."""
    with log.open("w", buffering=1) as sys.stderr:
        real = checkpoint.thin_svd

        def slow(weight: torch.Tensor) -> Factors:
            print("one matrix", file=sys.stderr)
            time.sleep(0.2)
            return real(weight)

        checkpoint.thin_svd = slow  # type: ignore[assignment]
        index = run(folder, FactorCache(root))
        print(f"cached {index.cached} of {len(index.modules)}", file=sys.stderr)


def start(folder: Path, cache: FactorCache, log: Path) -> "multiprocessing.context.ForkServerProcess":
    process = PROCESSES.Process(target=slow_run, args=(folder, cache.root, log))
    process.start()
    return process


@pytest.mark.distributed
def test_a_killed_run_resumes_at_the_next_matrix(
    llama: Path, cache: FactorCache, decomposed: list[tuple[int, ...]], tmp_path: Path
) -> None:
    process = start(llama, cache, tmp_path / "log")
    wait_until(lambda: len(list(cache.root.glob("*.safetensors"))) >= 2, 120)
    process.kill()
    process.join()
    done = len(list(cache.root.glob("*.safetensors")))
    assert 2 <= done < MATRICES
    assert not list(cache.root.glob("index-*.json"))
    index = run(llama, cache)
    assert index.cached == done
    assert len(decomposed) == MATRICES - done
    assert index.path.is_file()


@pytest.mark.distributed
def test_two_processes_starting_together_decompose_once(llama: Path, cache: FactorCache, tmp_path: Path) -> None:
    logs = [tmp_path / "a", tmp_path / "b"]
    processes = [start(llama, cache, log) for log in logs]
    for process in processes:
        process.join(timeout=120)
    texts = [log.read_text() for log in logs]
    assert [process.exitcode for process in processes] == [0, 0], texts
    worked, waited = sorted(texts, key=lambda text: "waiting for" in text)
    assert worked.count("one matrix") == MATRICES
    assert f"cached 0 of {MATRICES}" in worked
    assert "waiting for" in waited
    assert "one matrix" not in waited
    assert f"cached {MATRICES} of {MATRICES}" in waited


def test_a_cache_that_cannot_be_created_is_named(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SVFError, match="SVF_RL_CACHE"):
        run(llama, FactorCache(tmp_path / "file" / "cache"))


def test_a_complete_cache_in_a_read_only_folder_still_serves(
    llama: Path, cache: FactorCache, decomposed: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(llama, cache)
    decomposed.clear()

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(FileLock, "acquire", read_only)
    monkeypatch.setattr(os, "fsync", read_only)
    assert run(llama, cache).cached == MATRICES
    with pytest.raises(SVFError, match=r"Read-only file system; .*SVF_RL_CACHE"):
        run(llama, cache, targets="attention")


def copy_with(folder: Path, to: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """The checkpoint in one file, its tensors changed."""
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(to)
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return to


UP = "model.layers.1.mlp.up_proj.weight"


def missing(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[UP]


def misshapen(tensors: dict[str, torch.Tensor]) -> None:
    tensors[UP] = tensors[UP][:, 1:].contiguous()


def quantised(tensors: dict[str, torch.Tensor]) -> None:
    tensors[UP] = tensors[UP].to(torch.float8_e4m3fn)


def not_finite(tensors: dict[str, torch.Tensor]) -> None:
    tensors[UP][3, 4] = float("nan")


FAULTS = {
    missing: f"lack {UP}",
    misshapen: "the config asks for",
    quantised: "quantised",
    not_finite: "model.layers.1.mlp.up_proj: .*NaN",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_checkpoint_is_refused(
    llama: Path, cache: FactorCache, tmp_path: Path, fault: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    folder = copy_with(llama, tmp_path / "model", fault)
    with pytest.raises(SVFError, match=FAULTS[fault]) as caught:
        run(folder, cache)
    assert "\n" not in str(caught.value)


def test_a_truncated_shard_is_named(llama: Path, cache: FactorCache, tmp_path: Path) -> None:
    folder = copy_with(llama, tmp_path / "model", lambda _: None)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(SVFError, match=r"model\.safetensors cannot be read"):
        run(folder, cache)


def as_pickled(folder: Path, to: Path, kind: str) -> Path:
    """The checkpoint as `torch.save` writes it: one file, one of the old format, or two with an index."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.save_pretrained(to)
    tensors = model.state_dict()
    if kind != "sharded":
        torch.save(tensors, to / "pytorch_model.bin", _use_new_zipfile_serialization=kind == "single")
        return to
    names = list(tensors)
    files = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({name: tensors[name] for name in names if files[name] == file}, to / file)
    (to / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return to


@pytest.mark.parametrize("kind", ["single", "old", "sharded"])
def test_pickled_weights_give_the_same_factors(llama: Path, cache: FactorCache, tmp_path: Path, kind: str) -> None:
    first = run(llama, cache)
    second = run(as_pickled(llama, tmp_path / "model", kind), cache)
    assert second.modules == first.modules
    assert second.cached == MATRICES


def test_an_index_that_names_no_file_is_refused(llama: Path, cache: FactorCache, tmp_path: Path) -> None:
    index = as_pickled(llama, tmp_path / "model", "sharded") / "pytorch_model.bin.index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "weight_map": dict.fromkeys(content["weight_map"], 1)}))
    with pytest.raises(SVFError, match="names a file that is no text: download"):
        run(tmp_path / "model", cache)


class Hostile:
    """Runs a command where it is unpickled by a reader that allows it."""

    def __init__(self, file: Path):
        self._file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self._file,)


@pytest.mark.parametrize("content", ["empty", "garbage", "truncated", "code", "no weights"])
def test_a_pickled_file_that_is_no_weights_is_refused_and_runs_nothing(
    llama: Path, cache: FactorCache, tmp_path: Path, content: str
) -> None:
    file = as_pickled(llama, tmp_path / "model", "single") / "pytorch_model.bin"
    if content == "code":
        torch.save({UP: Hostile(tmp_path / "ran")}, file)
    elif content == "no weights":
        torch.save({UP: 3}, file)
    else:
        whole = file.read_bytes()
        file.write_bytes({"empty": b"", "garbage": b"\x80\x02garbage", "truncated": whole[: len(whole) // 2]}[content])
    with pytest.raises(SVFError, match=r"pytorch_model\.bin (cannot be read|holds something else)") as caught:
        run(file.parent, cache)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_without_weights_is_refused(llama: Path, cache: FactorCache, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    with pytest.raises(SVFError, match=r"no model\.safetensors and no pytorch_model\.bin"):
        run(tmp_path, cache)


@pytest.mark.parametrize("content", [None, "not json", '{"model_type": "no-such-model"}', '{"model_type": "clip"}'])
def test_a_folder_that_holds_no_language_model_is_refused(
    cache: FactorCache, tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(SVFError) as caught:
        run(tmp_path, cache)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_nowhere_is_refused(cache: FactorCache) -> None:
    for name in ("no/such-model", "/no/such/folder"):
        with pytest.raises(SVFError, match=name) as caught:
            run(Path(name), cache)
        assert "\n" not in str(caught.value)


def test_the_progress_bar_names_the_matrix(llama: Path, cache: FactorCache, capsys: pytest.CaptureFixture[str]) -> None:
    decompose_checkpoint(str(llama), cache=cache)
    assert "model.layers.2.mlp.down_proj" in capsys.readouterr().err
