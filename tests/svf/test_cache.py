"""The factor cache gives back what was stored or nothing, whatever happened to its files or its folder."""

import errno
import os
import warnings
from pathlib import Path

import pytest
import torch

from svf_rl.errors import SVFError
from svf_rl.svf import cache as cache_module
from svf_rl.svf.cache import FactorCache, default_cache_dir, describes
from svf_rl.svf.decompose import Factors, fingerprint, thin_svd


@pytest.fixture
def cache(tmp_path: Path) -> FactorCache:
    return FactorCache(tmp_path / "cache")


def weight(seed: int = 0) -> torch.Tensor:
    return torch.randn(24, 40, generator=torch.Generator().manual_seed(seed))


def stored(cache: FactorCache, dtype: torch.dtype = torch.bfloat16) -> tuple[str, Factors, Path]:
    W = weight()
    factors = thin_svd(W).to(dtype)
    key = fingerprint(W)
    return key, factors, cache.store(key, factors)


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix == ".partial"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_stored_comes_back_bit_for_bit(cache: FactorCache, dtype: torch.dtype) -> None:
    key, factors, path = stored(cache, dtype)
    loaded = cache.load(key, dtype)
    assert loaded is not None
    assert cache.contains(key, dtype)
    for name in ("U", "s", "Vt"):
        assert torch.equal(getattr(loaded, name), getattr(factors, name))
        assert getattr(loaded, name).dtype == getattr(factors, name).dtype
    assert list(cache.root.iterdir()) == [path]


def test_other_weights_and_dtypes_are_other_entries(cache: FactorCache) -> None:
    key, _, _ = stored(cache, torch.bfloat16)
    assert cache.load(key, torch.float32) is None
    assert cache.load(fingerprint(weight(1)), torch.bfloat16) is None
    assert not cache.contains(key, torch.float32)


def test_another_version_of_the_algorithm_is_another_entry(cache: FactorCache, monkeypatch: pytest.MonkeyPatch) -> None:
    key, _, _ = stored(cache)
    monkeypatch.setattr(cache_module, "ALGORITHM_VERSION", 999)
    assert cache.load(key, torch.bfloat16) is None


def test_an_empty_cache_says_nothing(cache: FactorCache) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.load("0" * 64, torch.float32) is None


def refused(cache: FactorCache, key: str, path: Path) -> None:
    with pytest.warns(UserWarning, match=path.name):
        assert cache.load(key, torch.bfloat16) is None
    assert not path.exists()
    _, factors, _ = stored(cache)
    again = cache.load(key, torch.bfloat16)
    assert again is not None
    assert torch.equal(again.Vt, factors.Vt)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_never_used(cache: FactorCache, share: float) -> None:
    key, _, path = stored(cache)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(cache, key, path)


def test_a_flipped_bit_anywhere_is_never_used(cache: FactorCache) -> None:
    key, factors, path = stored(cache)
    data = path.read_bytes()
    for position in range(0, len(data), 97):
        changed = bytearray(data)
        changed[position] ^= 0x10
        path.write_bytes(changed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = cache.load(key, torch.bfloat16)
        # A flip in the padding of the header or the version string may be harmless; different factors never come back.
        assert loaded is None or all(torch.equal(getattr(loaded, n), getattr(factors, n)) for n in ("U", "s", "Vt"))
        assert position < len(data) // 2 or loaded is None
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(cache, key, path)


def test_a_file_under_another_name_is_never_used(cache: FactorCache) -> None:
    key, _, path = stored(cache)
    other = cache.path("f" * 64, torch.bfloat16)
    other.write_bytes(path.read_bytes())
    with pytest.warns(UserWarning, match=other.name):
        assert cache.load("f" * 64, torch.bfloat16) is None
    assert cache.load(key, torch.bfloat16) is not None


def test_sound_factors_of_something_else_are_never_used_for_a_weight(cache: FactorCache) -> None:
    """A file with the right name, shapes and checksum, from whoever can write to the folder."""
    key, factors, path = stored(cache)
    others = {
        "another weight's": thin_svd(weight(1)).to(torch.bfloat16),
        "one value": Factors(factors.U, factors.s * torch.where(torch.arange(24) == 5, 10.0, 1.0), factors.Vt),
        "the order": Factors(factors.U.flip(1), factors.s, factors.Vt),
        "a sign": Factors(-factors.U, factors.s, factors.Vt),
        "NaN": Factors(factors.U, factors.s * float("nan"), factors.Vt),
        "another shape": thin_svd(weight().T).to(torch.bfloat16),
    }
    for other in others.values():
        cache.store(key, other)
        with pytest.warns(UserWarning, match="do not multiply to the weight"):
            assert cache.load(key, torch.bfloat16, weight=weight()) is None
        assert not path.exists()
    cache.store(key, factors)
    assert cache.load(key, torch.bfloat16, weight=weight()) is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (64, 64), (2000, 40), (40, 2000)])
def test_the_factors_of_a_weight_are_always_recognised(shape: tuple[int, int], dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    before = torch.get_rng_state()
    for kind in range(60):
        W = torch.randn(*shape, generator=draw) * 10.0 ** (kind % 5 - 3)
        if kind % 3 == 1:  # of rank 1
            W = W[:, :1] @ W[:1, :]
        if kind % 3 == 2:  # one direction far above the others
            W[0] *= 1000
        W = W.to(dtype)
        factors = thin_svd(W).to(dtype)
        assert describes(factors, W)
        assert W.norm() == 0 or not describes(Factors(factors.U, factors.s * 10, factors.Vt), W)
    assert torch.equal(torch.get_rng_state(), before)  # a run draws from it


def test_loaded_factors_do_not_change_with_the_file(cache: FactorCache) -> None:
    key, factors, path = stored(cache)
    loaded = cache.load(key, torch.bfloat16)
    with path.open("r+b") as file:
        file.truncate(10)
    assert loaded is not None
    assert torch.equal(loaded.Vt, factors.Vt)


def test_a_damaged_file_that_cannot_be_removed_is_not_used(cache: FactorCache, monkeypatch: pytest.MonkeyPatch) -> None:
    key, _, path = stored(cache)
    path.write_bytes(b"damaged")

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.warns(UserWarning, match=path.name):
        assert cache.load(key, torch.bfloat16) is None
    assert path.exists()


@pytest.mark.parametrize(("step", "code"), [("fsync", errno.ENOSPC), ("replace", errno.EROFS), ("open", errno.EACCES)])
def test_a_disk_that_takes_no_file_gives_one_clear_line_and_leaves_nothing(
    cache: FactorCache, monkeypatch: pytest.MonkeyPatch, step: str, code: int
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os if step == "fsync" else Path, step, fails)
    with pytest.raises(SVFError) as caught:
        stored(cache)
    message = str(caught.value)
    assert str(cache.root) in message
    assert "SVF_RL_CACHE" in message
    assert os.strerror(code) in message
    assert "\n" not in message
    assert temporaries(cache.root) == []


def test_a_file_in_the_place_of_the_folder_gives_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SVFError, match="SVF_RL_CACHE"):
        stored(FactorCache(tmp_path / "file"))


def test_an_interrupt_while_writing_leaves_the_old_file(cache: FactorCache, monkeypatch: pytest.MonkeyPatch) -> None:
    key, _, _ = stored(cache)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stored(cache)
    assert temporaries(cache.root) == []
    assert cache.load(key, torch.bfloat16) is not None


def test_the_folder_comes_from_the_environment_or_lies_beside_the_hub_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SVF_RL_CACHE", str(tmp_path))
    assert default_cache_dir() == FactorCache().root == tmp_path
    monkeypatch.delenv("SVF_RL_CACHE")
    monkeypatch.setattr(cache_module.constants, "HF_HOME", str(tmp_path / "hf"))
    assert default_cache_dir() == tmp_path / "hf" / "svf_rl"
