"""Factors are exact and the same for every method and thread count; fingerprints tell weights apart."""

import os

import pytest
import torch
from torch import Tensor

from svf_rl.errors import SVFError
from svf_rl.svf.decompose import Factors, fingerprint, thin_svd

METHODS = ("auto", "svd", "gram")


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spectrum(s: Tensor, rows: int, columns: int) -> Tensor:
    """A matrix with the given singular values."""
    U, _ = torch.linalg.qr(matrix(rows, len(s), 1))
    V, _ = torch.linalg.qr(matrix(columns, len(s), 2))
    return (U * s) @ V.T


MATRICES = {
    "tall": matrix(96, 40),
    "wide": matrix(40, 96),
    "square": matrix(64, 64),
    "one row": matrix(1, 30),
    "one column": matrix(30, 1),
    "one number": torch.tensor([[-3.0]]),
    "zero": torch.zeros(12, 20),
    "rank 3": matrix(50, 3) @ matrix(3, 30, 1),
    "a zero row and column": matrix(30, 20) * (torch.arange(30) > 0)[:, None] * (torch.arange(20) != 5),
    "ill-conditioned": spectrum(torch.logspace(0, -12, 40, dtype=torch.float64), 60, 40),
    "huge": 1e200 * matrix(20, 30),
    "tiny": 1e-200 * matrix(30, 20),
    "bf16": matrix(48, 80).bfloat16(),
    "fp16": matrix(80, 48).half(),
    "transposed view": matrix(48, 80).float().T,
}


def adapted(factors: Factors, z: Tensor | None = None) -> Tensor:
    """W'(z) = U diag(s z) Vt, (out, in)."""
    s = factors.s if z is None else factors.s * z
    return (factors.U * s) @ factors.Vt


def relative(a: Tensor, b: Tensor) -> float:
    # Over the largest element, since the squares of the huge matrix overflow.
    scale = b.abs().max().item() or 1.0
    return ((a - b) / scale).norm().item() / max((b / scale).norm().item(), 1e-300)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MATRICES)
def test_factors_rebuild_the_weight(name: str, method: str) -> None:
    W = MATRICES[name]
    f = thin_svd(W, method)
    r = min(W.shape)
    assert (f.U.shape, f.s.shape, f.Vt.shape) == ((W.shape[0], r), (r,), (r, W.shape[1]))
    assert {f.U.dtype, f.s.dtype, f.Vt.dtype} == {torch.float64}
    assert f.U.is_contiguous()
    assert f.Vt.is_contiguous()
    assert (f.s >= 0).all()
    assert (f.s.diff() <= 0).all()
    if W.any():
        assert relative(adapted(f), W.double()) < 1e-12
    else:
        assert not adapted(f).any()


@pytest.mark.parametrize("name", [name for name in MATRICES if name != "zero"])
def test_methods_agree_on_the_adapted_weight(name: str) -> None:
    W = MATRICES[name]
    z = 0.5 + torch.rand(min(W.shape), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = adapted(thin_svd(W, "svd"), z)
    for method in ("auto", "gram"):
        assert relative(adapted(thin_svd(W, method), z), expected) < 1e-6


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (24, 24)])
def test_signs_are_those_of_the_weight(shape: tuple[int, int]) -> None:
    """Cores that mix singular directions depend on them: every method has the same, of rounded weights too."""
    W = matrix(*shape)
    factors = thin_svd(W, "gram")
    assert bool((factors.U.amax(0) >= -factors.U.amin(0)).all())
    for other in (thin_svd(W, "svd"), thin_svd(W.float())):
        assert bool(((factors.U * other.U).sum(0) > 0).all())
        assert bool(((factors.Vt * other.Vt).sum(1) > 0).all())


@pytest.mark.parametrize("method", METHODS)
def test_thread_counts_agree_on_the_adapted_weight(method: str) -> None:
    W = matrix(160, 256).float()
    z = 0.5 + torch.rand(160, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = adapted(thin_svd(W, method), z)
        torch.set_num_threads(2)
        two = adapted(thin_svd(W, method), z)
    finally:
        torch.set_num_threads(threads)
    assert relative(two, one) < 1e-6


@pytest.mark.parametrize("name", ["tall", "wide", "square", "zero", "rank 3", "ill-conditioned"])
def test_auto_gives_orthonormal_bases_for_any_rank(name: str) -> None:
    f = thin_svd(MATRICES[name])
    eye = torch.eye(len(f.s), dtype=torch.float64)
    torch.testing.assert_close(f.U.T @ f.U, eye, atol=1e-5, rtol=0)
    torch.testing.assert_close(f.Vt @ f.Vt.T, eye, atol=1e-5, rtol=0)


def test_gram_leaves_zero_columns_where_nothing_multiplies_them() -> None:
    f = thin_svd(torch.zeros(5, 3), "gram")
    assert not f.U.any()
    assert f.Vt.isfinite().all()


def test_storage_rounds_once_and_keeps_s_in_fp32() -> None:
    f = thin_svd(MATRICES["wide"])
    stored = f.to(torch.bfloat16)
    assert (stored.U.dtype, stored.s.dtype, stored.Vt.dtype) == (torch.bfloat16, torch.float32, torch.bfloat16)
    assert torch.equal(stored.U, f.U.bfloat16())
    assert torch.equal(stored.s, f.s.float())


def test_gradients_do_not_reach_the_weight() -> None:
    f = thin_svd(torch.nn.Parameter(torch.ones(3, 4)))
    assert not f.U.requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_weight_is_refused(bad: float) -> None:
    W = matrix(6, 5).bfloat16()
    W[2, 3] = bad
    with pytest.raises(SVFError, match="NaN or infinite"):
        thin_svd(W)


@pytest.mark.parametrize(
    "weight", [torch.zeros(0), torch.zeros(3), torch.zeros(2, 2, 2), torch.zeros(0, 4), torch.zeros(2, 2).int()]
)
def test_what_is_no_matrix_of_floats_is_refused(weight: Tensor) -> None:
    for function in (thin_svd, fingerprint):
        with pytest.raises(SVFError, match="floating-point matrix"):
            function(weight)


def test_a_weight_on_meta_is_refused() -> None:
    with pytest.raises(SVFError, match="meta"):
        fingerprint(torch.zeros(2, 2, device="meta"))


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(SVFError, match="auto, svd or gram"):
        thin_svd(torch.ones(2, 2), "qr")  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_fingerprint_survives_an_exact_upcast(dtype: torch.dtype) -> None:
    W = matrix(700, 900).to(dtype)  # more than one block
    assert fingerprint(W) == fingerprint(W.float()) == fingerprint(W.double())


def test_a_fingerprint_is_of_the_logical_matrix_and_not_of_its_strides() -> None:
    W = matrix(300, 1100).float()
    assert fingerprint(W.T.contiguous().T) == fingerprint(W)
    assert fingerprint(W.T) != fingerprint(W)


def test_a_fingerprint_tells_values_and_shapes_apart() -> None:
    W = matrix(700, 900).float()
    changed = W.clone()
    changed[699, 899] = torch.nextafter(changed[699, 899], torch.tensor(9.0))
    prints = {fingerprint(w) for w in (W, changed, W.reshape(900, 700), W.bfloat16())}
    assert len(prints) == 4


def test_a_fingerprint_sees_what_only_fp64_holds() -> None:
    W = matrix(4, 4)
    assert fingerprint(W) != fingerprint(W.float())


def test_a_fingerprint_does_not_depend_on_the_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    W = matrix(700, 900).float()
    prints = set()
    for cores in (1, 2, 5):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        prints.add(fingerprint(W))
    assert len(prints) == 1


def test_a_fingerprint_stays_what_it_was() -> None:
    W = torch.arange(6.0).reshape(2, 3)
    # Adapters on disk hold such values: a change of the algorithm must be on purpose.
    assert fingerprint(W) == "cd1aec68e80b97bdfbe7313802041351a1341f87687147e4eee75eca7dea8803"
