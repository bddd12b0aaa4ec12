"Nothing may assume the CPU: a pretend device with strict placement, and a real GPU where there is one."
import pytest
import torch
from torch import nn

from conftest import F64, blobs, mlp, prescribed, quiet, seeded
from fakegpu import DEVICE, fake_gpu
from hessnb.alignment import class_structure
from hessnb.compare import examine
from hessnb.density import spectral_density
from hessnb.lanczos import dense_eigenpairs, top_eigenpairs, tridiagonalize
from hessnb.margin import estimate_margin, nearest_boundary
from hessnb.measure import estimate_directions, gradient_cosines, resolve_measure
from hessnb.objective import Objective, example_grads, example_vjps
from hessnb.operator import HessianOperator, MatrixOperator

X, Y = blobs(45)
BATCHES = list(zip(X.split([20, 20, 5]), Y.split([20, 20, 5])))
LOSS = nn.CrossEntropyLoss(weight=torch.tensor([1., 2., 5., .5]))


@pytest.fixture
def fake():
    with fake_gpu(): yield DEVICE


def on(device, **kwargs): return Objective(mlp().to(device), BATCHES, LOSS, **kwargs)


def same(a, b, atol=1e-12):
    assert a.device.type == DEVICE.type and b.device.type == "cpu"
    assert (a.cpu() - b).abs().max() <= atol


def test_the_device_is_strict(fake):
    x = torch.ones(3, device=fake)
    assert x.device == fake and (x + x).device == fake and torch.equal((x * 2).cpu(), torch.full((3,), 2.))
    with pytest.raises(RuntimeError, match="expected all tensors on fakegpu"): x + torch.ones(3)
    with pytest.raises(RuntimeError, match="expected all tensors on fakegpu"): torch.eye(3) @ x


def test_objective(fake):
    there, here = on(fake), on("cpu")
    assert there.device == fake and there.n_examples == 45 and "fakegpu" in repr(there)
    assert there.value() == pytest.approx(here.value(), rel=1e-14) and there.value(there.theta) == pytest.approx(here.value(), rel=1e-14)
    same(there.grad(), here.grad()), same(there.grad(there.theta), here.grad()), same(there.predict(X), here.predict(X))
    same(there.to(torch.float32).grad(), here.to(torch.float32).grad(), 1e-6)


def test_example_gradients(fake):
    there, here = on(fake), on("cpu")
    r = torch.ones(9, 4, dtype=F64)
    same(example_grads(there, X[:9], Y[:9]), example_grads(here, X[:9], Y[:9]))
    same(example_vjps(there, X[:9].to(fake), r.to(fake)), example_vjps(here, X[:9], r))


@pytest.mark.parametrize("budget", [None, 60_000, 0])
def test_hessian(fake, budget):
    there, here = HessianOperator(on(fake), memory_budget=budget), HessianOperator(on("cpu"))
    V = torch.randn(3, 44, generator=seeded(0), dtype=F64)
    same(there.matvec(V[0].to(fake)), here.matvec(V[0])), same(there.matmat(V.to(fake)), here.matmat(V)), same(there.to_dense(), here.to_dense())
    view = there.to_scipy()
    assert abs(view @ V[0].numpy() - here.matvec(V[0]).numpy()).max() <= 1e-12 and abs(view @ V.T.numpy() - here.matmat(V).T.numpy()).max() <= 1e-12
    with pytest.raises(ValueError, match=r"expected a vector on fakegpu:0, got cpu: call v.to\('fakegpu:0'\)"): there.matvec(V[0])
    with pytest.raises(ValueError, match="expected a vector on fakegpu:0"): there.objective.value(V[0])


@pytest.mark.parametrize("kwargs", [{}, dict(which="LM"), dict(which="BE"), dict(basis_bytes=20 * 44 * 8), dict(start=torch.eye(44)[:3])])
def test_eigenpairs(fake, kwargs):
    there, here = HessianOperator(on(fake)), HessianOperator(on("cpu"))
    with quiet("rounding floor", "miss_probability"): a, b = top_eigenpairs(there, 4, tol=1e-8, **kwargs), top_eigenpairs(here, 4, tol=1e-8, **kwargs)
    assert a.values.device.type == a.residuals.device.type == a.converged.device.type == "cpu" and a.vectors.device == fake
    assert (a.values - b.values).abs().max() <= 1e-10
    assert ((a.vectors.cpu() * b.vectors).sum(1).abs() - 1).abs().max() <= 1e-6
    assert a.refine(there).vectors.device == fake
    assert top_eigenpairs(here, 4, start=a.vectors).vectors.device.type == "cpu"


def test_dense_eigenpairs(fake):
    with quiet("rounding floor"): a, b = dense_eigenpairs(HessianOperator(on(fake))), dense_eigenpairs(HessianOperator(on("cpu")))
    assert a.values.device.type == "cpu" and (a.values - b.values).abs().max() <= 1e-10 and a.vectors.device == fake


def test_matrix_and_tridiagonal(fake):
    A = prescribed([5., 4., 4., *torch.linspace(-1, 1, 57)]).A
    op = MatrixOperator(A.to(fake))
    f = tridiagonalize(op, torch.ones(60, dtype=F64, device=fake), 10)
    assert f.basis.device == fake and f.alpha.device.type == "cpu"
    assert (top_eigenpairs(op, 4).values - top_eigenpairs(MatrixOperator(A), 4).values).abs().max() <= 1e-10


def test_measures(fake):
    "Alignment, effective directions, class structure, density and margin give the host's numbers, on the host where they are numbers."
    results = []
    for device in (fake, "cpu"):
        objective = on(device)
        op = HessianOperator(objective)
        with quiet("rounding floor", "miss_probability"): resolved = resolve_measure(op, X, k=5, pairs_tol=1e-8)
        structure, density = class_structure(objective, X, resolved.pairs), spectral_density(op, n_steps=10, n_probes=3)
        found, margin = nearest_boundary(objective, X[:6], pool=X), estimate_margin(objective, X, resolved.pairs, n_candidates=4)
        rough = estimate_directions(op, X, n_steps=12, n_principal=3)
        numbers = [resolved.directions.value, *resolved.directions.bounds, rough.lumped, rough.spread_out, margin.value, density.trace.value, *found.values.cpu().tolist(),
                   *structure.by_class.explained.cpu().tolist(), *structure.by_pair.shuffled.cpu().tolist(), gradient_cosines(objective, X).sum().item()]
        results.append((numbers, found.points.device.type, margin.boundary_point.device.type))
    (there, *places), (here, *_) = results
    assert places == [DEVICE.type] * 2 and there == pytest.approx(here, rel=1e-3)


def test_examine(fake):
    with quiet("rounding floor", "miss_probability"):
        a, b = (examine(on(device), k=4, pairs=6, test=BATCHES[:2]) for device in (fake, "cpu"))
    assert a.margin.value == pytest.approx(b.margin.value, rel=1e-3) and a.test_accuracy == b.test_accuracy and a.outliers.count == b.outliers.count


def test_meta_vectors_are_refused():
    op = HessianOperator(on("cpu"))
    with pytest.raises(ValueError, match="got meta"): op.matvec(torch.zeros(44, dtype=F64, device="meta"))


@pytest.mark.gpu
@pytest.mark.parametrize("budget", [None, 0])
def test_cuda_agrees(budget):
    there, here = HessianOperator(on("cuda"), memory_budget=budget), HessianOperator(on("cpu"))
    state = torch.cuda.get_rng_state()
    assert (there.to_dense().cpu() - here.to_dense()).abs().max() <= 1e-12
    a, b = top_eigenpairs(there, 5, tol=1e-9), top_eigenpairs(here, 5, tol=1e-9)
    assert a.vectors.is_cuda and (a.values - b.values).abs().max() <= 1e-10
    assert (example_grads(there.objective, X, Y).cpu() - example_grads(here.objective, X, Y)).abs().max() <= 1e-12
    assert torch.equal(state, torch.cuda.get_rng_state())


@pytest.mark.gpu
def test_cuda_as_default_device():
    with torch.device("cuda"): pairs = top_eigenpairs(HessianOperator(on("cuda")), 5)
    assert pairs.converged.all()
