"Whatever one has, products of one's own or a model and its data, goes into the algorithms as it is."
import pytest
import torch
from torch import nn

from conftest import F64, blobs, build, mlp
from hessnb import HessianOperator, Objective, dense_eigenpairs, spectral_density, top_eigenpairs, trace
from hessnb.curvature.entry import as_operator


class Laplacian:
    "Differences of neighbours on a ring; its eigenvalues are known."
    dtype, device, calls = F64, torch.device("cpu"), 0
    def __init__(self, n): self.shape = (n, n)
    def matvec(self, v):
        self.calls += 1
        return 2 * v - v.roll(1) - v.roll(-1)


def test_products_of_ones_own():
    ring = Laplacian(60)
    pairs = top_eigenpairs(ring, 5, tol=1e-8)
    exact = (2 - 2 * (torch.arange(60, dtype=F64) * 2 * torch.pi / 60).cos()).sort(descending=True).values
    assert torch.allclose(pairs.values, exact[:5], atol=1e-8) and pairs.converged.all()
    assert ring.calls == pairs.n_matvecs + pairs.n_certify
    assert trace(ring, exact=True).value == pytest.approx(120)
    assert torch.allclose(dense_eigenpairs(ring, 3).values, exact[:3])
    assert abs(spectral_density(ring, n_steps=20, n_probes=5).trace.value - 120) < 30
    op = as_operator(ring)
    assert as_operator(op) is op
    diagonal = (op.shift(1.) - .5 * op).to_dense().diagonal()
    assert torch.allclose(diagonal, torch.full((60,), 2., dtype=F64))


def test_a_model_and_its_data():
    X, y = blobs(40)
    expected = top_eigenpairs(HessianOperator(Objective(mlp(), (X, y))), 3)
    for pairs in (top_eigenpairs(mlp(), 3, data=(X, y)), top_eigenpairs(Objective(mlp(), (X, y)), 3)):
        assert torch.equal(pairs.values, expected.values)
    regression = build(lambda: nn.Linear(3, 2)), (X, X[:, :2])
    H = torch.linalg.eigvalsh(as_operator(*regression, loss="mse_loss").to_dense())
    assert torch.allclose(dense_eigenpairs(regression[0], data=regression[1], loss="mse_loss").values, H.flip(0))
    ggn = as_operator(mlp(), (X, y), curvature="ggn")
    assert trace(ggn, exact=True).value == pytest.approx(ggn.to_dense().trace().item())


@pytest.mark.parametrize("args, kwargs, error, message", [
    ((mlp(),), {}, TypeError, "pass data= with a model"),
    ((Laplacian(3), blobs(40)), {}, TypeError, "data= belongs to a model"),
    ((Objective(mlp(), blobs(40)), blobs(40)), {}, TypeError, "leave out data="),
    ((mlp(), blobs(40)), dict(curvature="kfac"), ValueError, "curvature must be one of"),
    ((torch.eye(3),), {}, TypeError, "wrap a symmetric matrix in MatrixOperator"),
    ((None,), {}, TypeError, "expected an operator, got NoneType"),
])
def test_what_is_no_entry(args, kwargs, error, message):
    with pytest.raises(error, match=message): as_operator(*args, **kwargs)
