"Products that are not what they should be: asymmetric, imprecise, too large or too small for their precision."
import math
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from conftest import F64, prescribed, quiet, randn, seeded
from hessnb.curvature.basis import norm
from hessnb.curvature.density import spectral_density
from hessnb.curvature.eigenpairs import dense_eigenpairs
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.krylov import tridiagonalize
from hessnb.curvature.lowrank import nonzero_eigenpairs
from hessnb.curvature.objective import Objective
from hessnb.curvature.operator import MatrixOperator, Operator, symmetrise, verification
from hessnb.curvature.top import eigenpairs_until, top_eigenpairs
from hessnb.curvature.trace import trace

F32 = torch.float32
VALUES = np.r_[[9., 7., 7., 5., 3.], np.linspace(-.5, .5, 115)]


class Skewed(Operator):
    "A matrix that is not symmetric, as the products of a wrong second derivative."
    def __init__(self, B):
        super().__init__(len(B), B.dtype, B.device)
        self.B = B
    def apply(self, v): return self.B @ v
    def apply_rows(self, V): return V @ self.B.T


@contextmanager
def silent():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def skewed(size, dtype=F64, values=VALUES):
    "A prescribed matrix with a skew part of this size, compared with its largest eigenvalue."
    A, K = prescribed(values).A, randn(len(values), len(values), seed=3)
    K = (K - K.T) / torch.linalg.matrix_norm(K - K.T, 2)
    return Skewed((A + size * np.abs(values).max() * K).to(dtype))


def ways(op, k=3, tol=1e-6):
    "Each way to eigenpairs."
    yield "dense", lambda: dense_eigenpairs(op, k, tol=tol)
    yield "dense, by the way", lambda: top_eigenpairs(op, op.shape[0] // 2, tol=tol)
    for which in ("LA", "SA", "LM", "BE"):
        yield which, lambda which=which: top_eigenpairs(op, k, which=which, tol=tol, max_matvecs=80)
    yield "restarted", lambda: top_eigenpairs(op, k, tol=tol, basis_bytes=20 * op.shape[0] * op.dtype.itemsize,
                                              max_matvecs=80)
    yield "until", lambda: eigenpairs_until(op, lambda values, V: len(values) >= k, k=k, tol=tol, max_matvecs=80)
    yield "nonzero", lambda: nonzero_eigenpairs(op, rtol=.05, tol=tol)


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("size", [.4, .05])
def test_an_operator_that_is_not_symmetric_is_not_certified(size, dtype):
    for name, find in ways(skewed(size, dtype), tol=1e-2):
        with pytest.warns(UserWarning, match="second derivative of the model is probably wrong"): pairs = find()
        assert not pairs.converged.any() and pairs.asymmetry > size / 60, name
        assert pairs.stopped in ("precision", "budget") and "not symmetric" in repr(pairs), name


@pytest.mark.parametrize("size", [1e-4, 1e-7, 1e-9])
def test_residuals_of_the_dense_way_are_those_of_the_products(size):
    op = skewed(size)
    with quiet("symmetric"): pairs = dense_eigenpairs(op, 5, tol=1e-6)
    true = norm(pairs.vectors @ op.B.T - pairs.values[:, None] * pairs.vectors)
    assert torch.allclose(pairs.residuals, true, rtol=1e-6, atol=1e-14)
    assert not pairs.converged.any() if size > 1e-5 else pairs.converged.all()


@pytest.mark.parametrize("dtype", [F64, F32])
def test_no_alarm_where_products_are_symmetric(dtype):
    for seed in range(3):
        op = prescribed(VALUES, seed, dtype=dtype)
        for name, find in ways(op, tol=1e-3):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                pairs = find()
            assert pairs.asymmetry < 100 * torch.finfo(dtype).eps and pairs.converged.all(), (name, pairs)


def test_symmetrise_says_what_it_has_taken_away():
    B = randn(700, 700)
    A = B.clone()
    gap = symmetrise(A, chunk=256)
    assert torch.equal(A, A.T) and torch.allclose(A, (B + B.T) / 2)
    assert gap == pytest.approx(((B - B.T).abs().max() / A.abs().max()).item())
    assert symmetrise(torch.zeros(3, 3)) == 0
    with pytest.warns(UserWarning, match="not symmetric"): skewed(.1).to_dense()


@pytest.mark.parametrize("make", [
    lambda: nn.Sequential(weight_norm(nn.Linear(4, 6)), nn.Tanh(), nn.Linear(6, 3)),
    lambda: nn.Sequential(nn.Linear(4, 6), nn.GELU(), weight_norm(nn.Linear(6, 3), dim=1))])
def test_a_layer_whose_second_derivative_is_wrong(make):
    "Right if the library has a derivative of its own for it, else no pair is certified; torch's own is wrong."
    X, y = randn(20, 4), torch.arange(20) % 3
    torch.manual_seed(0)
    net = make().double().eval()
    named = dict(net.named_parameters())
    h, flat = 1e-5, torch.cat([p.detach().flatten() for p in named.values()])
    def gradient(theta):
        parts = dict(zip(named, (t.view_as(p) for t, p in zip(theta.split([p.numel() for p in named.values()]),
                                                              named.values()))))
        loss = nn.functional.cross_entropy(torch.func.functional_call(net, parts, (X,)), y)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(parts.values()))])
    rows = []
    for e in torch.eye(len(flat), dtype=F64):
        up, down = ((flat + s * h * e).requires_grad_() for s in (1, -1))
        rows.append((gradient(up) - gradient(down)) / (2 * h))
    true = torch.linalg.eigvalsh((torch.stack(rows) + torch.stack(rows).T) / 2).flip(0)[:3]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try: found = [way(HessianOperator(Objective(net, (X, y))), 3) for way in (dense_eigenpairs, top_eigenpairs)]
        except ValueError as e: assert "derivative" in str(e)
        else:
            for pairs in found:
                right = torch.allclose(pairs.values, true, rtol=1e-4)
                assert right or not pairs.converged.any()
                assert right or any("derivative" in str(w.message) for w in caught)


class Checked(MatrixOperator):
    "A matrix with a check of its products."
    def __init__(self, A, error, passed=True):
        super().__init__(A)
        self.verified = type("Found", (), {"passed": passed, "product_error": error})()


@pytest.mark.parametrize("make", [lambda op: op, lambda op: 2 * op, lambda op: op + MatrixOperator(op.A),
                                  lambda op: op.restrict(slice(0, 100)), lambda op: op.shift(1.),
                                  lambda op: op.deflate(torch.eye(120, dtype=F64)[:2])])
def test_products_known_to_be_imprecise(make):
    A = prescribed(VALUES).A
    for name, find in ways(make(Checked(A, .38)), tol=1e-3):
        with pytest.warns(UserWarning, match="off by 0.38.*dtype=torch.float64"): pairs = find()
        assert not pairs.converged.any() and pairs.stopped in ("precision", "budget"), name
    with quiet():
        assert top_eigenpairs(make(Checked(A, 1e-6)), 3).converged.all()
        assert top_eigenpairs(make(Checked(A, None)), 3).converged.all()
        assert top_eigenpairs(make(Checked(A, .01)), 3, tol=.1).converged.all()
    assert "derivatives verified" in repr(top_eigenpairs(make(Checked(A, 1e-6)), 3))


def test_what_the_check_found_travels_with_the_pairs():
    A = prescribed(VALUES).A
    for name, find in ways(Checked(A, 1e-9)): assert find().verified.passed, name
    for name, find in ways(MatrixOperator(A)): assert find().verified is None and "verified" not in repr(find()), name
    with pytest.warns(UserWarning, match="check of the operator's derivatives has failed"):
        pairs = top_eigenpairs(Checked(A, None, passed=False), 3)
    assert not pairs.converged.any() and "derivatives wrong" in repr(pairs)
    off = MatrixOperator(A)
    off.verified, off.objective = None, object()
    assert verification(off) is False and "not verified" in repr(top_eigenpairs(off, 2))
    assert verification(off + Checked(A, 1e-9)) is False
    assert verification(Checked(A, 1e-9) + Checked(A, .5)).product_error == .5


SCALES = [*((F64, s) for s in (1e-300, 1e-160, 1e160, 1e300)), *((F32, s) for s in (1e-30, 1e-22, 1e22, 1e35))]


@pytest.mark.parametrize("dtype, scale", SCALES)
def test_curvature_of_any_size(dtype, scale):
    "The answer for c A is c times the answer for A, or it says that it has not the precision."
    A, tol = prescribed(VALUES).A, 1e-3
    op = MatrixOperator((A * scale).to(dtype))
    plain = MatrixOperator(A.to(dtype))
    for (name, find), (_, other) in zip(ways(op, tol=tol), ways(plain, tol=tol), strict=True):
        with silent(): pairs, expected = find(), other()
        assert len(pairs) == len(expected), name
        assert torch.allclose(pairs.values.abs() / scale, expected.values.abs(), rtol=1e-3, atol=1e-5), name
        assert pairs.converged.all() and abs(pairs.miss_probability - expected.miss_probability) < 1e-2, name
        true = norm(pairs.vectors.double() @ (op.A.double() / scale) - pairs.values[:, None] / scale * pairs.vectors)
        assert (true <= 1.1 * pairs.residuals / scale + 1e-5).all(), name
    exact, some = trace(op, exact=True).value / scale, trace(op)
    assert exact == pytest.approx(VALUES.sum(), rel=1e-4)
    assert some.standard_error / scale == pytest.approx(trace(plain).standard_error, rel=1e-3)
    density = spectral_density(op, n_steps=20, n_probes=3)
    assert torch.allclose(density.nodes / scale, spectral_density(plain, n_steps=20, n_probes=3).nodes, atol=1e-3)


@pytest.mark.parametrize("dtype, scale", [(F32, 1e-40), (F32, 1e-44), (F64, 1e-320)])
def test_curvature_below_the_smallest_number(dtype, scale):
    "Most digits have underflowed: no pair is certified to six digits, and nothing fails."
    op = MatrixOperator((prescribed(VALUES).A * scale).to(dtype))
    for name, find in ways(op):
        with silent(): pairs = find()
        assert not pairs.converged.any(), name


@pytest.mark.parametrize("dtype", [F32, F64])
def test_a_matrix_that_is_zero(dtype):
    for name, find in ways(MatrixOperator(torch.zeros(60, 60, dtype=dtype))):
        with silent(): pairs = find()
        assert not pairs.values.any() and pairs.converged.all() and pairs.miss_probability <= 1e-3, name


@pytest.mark.parametrize("size", [1e-40, 1e-30, 1e30, 1e37])
def test_vectors_of_any_length(size):
    op = prescribed(VALUES, dtype=F32)
    v = randn(120, dtype=F32) * size
    assert torch.allclose(op.matvec(v) / size, op.matvec(v / size), rtol=1e-3, atol=1e-3)
    plain = tridiagonalize(op, v / v.abs().max(), 10)
    assert torch.allclose(tridiagonalize(op, v, 10).alpha, plain.alpha, rtol=1e-3, atol=1e-3)
    found = top_eigenpairs(op, 2, tol=1e-3, start=v)
    assert found.converged.all() and found.values.tolist() == pytest.approx([9., 7.], rel=1e-3)


def test_a_float32_twin_that_overflows_is_left():
    class Twin(MatrixOperator):
        def in_single(self):
            coarse = MatrixOperator(torch.zeros(120, 120))
            coarse.A, coarse.noise = self.A.float(), 1e-7
            return coarse
    for scale in (1e60, 1e-60):
        pairs = top_eigenpairs(Twin(prescribed(VALUES).A * scale), 3)
        assert pairs.converged.all() and (pairs.values / scale).tolist() == pytest.approx([9., 7., 7.])


@pytest.mark.parametrize("layers", [(5, 3), (5, 8, 3)])
@pytest.mark.parametrize("dead", [.3, .9])
def test_nonzero_pairs_of_a_network_with_dead_parameters(layers, dead):
    "Inputs that are always zero and units that are always off: as many pairs as autograd's dense matrix has."
    torch.manual_seed(0)
    parts = [p for a, b in zip(layers, layers[1:]) for p in (nn.Linear(a + 12, b + 12), nn.ReLU())][:-1]
    net, X, y = nn.Sequential(*parts).double().eval(), randn(30, layers[0] + 12), torch.arange(30) % 3
    X[:, int((1 - dead) * X.shape[1]):] = 0
    if len(parts) > 1:
        with torch.no_grad(): parts[0].bias[5:] = -100.
    params = list(net.parameters())
    grad = torch.cat([g.flatten() for g in torch.autograd.grad(nn.functional.cross_entropy(net(X), y), params,
                                                               create_graph=True)])
    H = torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(x, params, retain_graph=True,
                                                                         materialize_grads=True)]) for x in grad])
    values = torch.linalg.eigvalsh((H + H.T) / 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pairs = nonzero_eigenpairs(HessianOperator(Objective(net, (X, y))), generator=seeded(1))
    wanted = values[values.abs() > 1e-8 * values.abs().max()]
    assert len(pairs) == len(wanted) and torch.allclose(pairs.values.sort().values, wanted, rtol=1e-6)
    assert not any("double" in str(w.message) for w in caught) and math.isfinite(pairs.miss_probability)


@pytest.mark.parametrize("dtype, lead", [(torch.float32, 9.), (torch.float32, 16.5), (torch.float32, 55.), (F64, 33.),
                                         (F64, 45.)])
def test_a_network_that_is_sure_keeps_its_curvature(dtype, lead):
    "Linear softmax, in closed form: 1 - p of the label is the sum of the others, never a difference."
    X, net = randn(40, 5), nn.Linear(5, 3).to(dtype)
    with torch.no_grad():
        net.weight.mul_(.02)
        net.bias.copy_(torch.tensor([lead, 0., 0.]))
    inputs, z = torch.cat([X, torch.ones(40, 1, dtype=F64)], 1), net.double()(X).detach()
    p = z.softmax(1)
    curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    curvature[:, 0, 0] = p[:, 0] * p[:, 1:].sum(1)
    H = torch.einsum("ncd,ni,nj->cidj", curvature, inputs, inputs).reshape(18, 18) / 40
    objective = Objective(net.to(dtype).eval(), (X.to(dtype), torch.zeros(40).long()))
    pairs = top_eigenpairs(HessianOperator(objective), 1, tol=1e-3)
    assert abs(pairs.values[0].item() / torch.linalg.eigvalsh(H)[-1].item() - 1) < 1e-3
