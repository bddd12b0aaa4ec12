"Sums, multiples, shifts, parts and complements of operators against their dense matrices, with every product counted."
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from conftest import F64, blobs, mlp, prescribed, randn, untouched
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.operator import MatrixOperator, Operator, SymmetricOperator, wrap_operator
from hessnb.curvature.top import top_eigenpairs

SPECTRUM = np.r_[5., 4., 3., np.linspace(-1, 1, 17)]
I = torch.eye(20, dtype=F64)


def two(dtype=F64): return prescribed(SPECTRUM, seed=1, dtype=dtype), prescribed(SPECTRUM, seed=2, dtype=dtype)


def rows(k, seed=0, dtype=F64): return torch.linalg.qr(randn(20, k, seed=seed)).Q.T.contiguous().to(dtype)


def complement(V): return torch.eye(V.shape[1], dtype=V.dtype) - V.T @ V


MASK, INDEX, V = torch.arange(20) % 3 == 0, torch.tensor([7, 0, 19]), rows(3)
FORMS = {  # operator and matrix from two operators; products of each of the two in a product
    "sum": (lambda A, B: A + B, lambda A, B: A + B, (1, 1)),
    "difference": (lambda A, B: A - B, lambda A, B: A - B, (1, 1)),
    "negative": (lambda A, B: -A, lambda A, B: -A, (1, 0)),
    "multiple": (lambda A, B: 2.5 * A, lambda A, B: 2.5 * A, (1, 0)),
    "multiple from the right": (lambda A, B: A * -3, lambda A, B: -3 * A, (1, 0)),
    "no multiple": (lambda A, B: 0 * A, lambda A, B: 0 * A, (1, 0)),
    "shift": (lambda A, B: A.shift(-.5), lambda A, B: A - .5 * I, (1, 0)),
    "mask": (lambda A, B: A.restrict(MASK), lambda A, B: A[MASK][:, MASK], (1, 0)),
    "index": (lambda A, B: A.restrict(INDEX), lambda A, B: A[INDEX][:, INDEX], (1, 0)),
    "list": (lambda A, B: A.restrict([3, 1]), lambda A, B: A[[3, 1]][:, [3, 1]], (1, 0)),
    "slice": (lambda A, B: A.restrict(slice(5, None, 2)), lambda A, B: A[5::2, 5::2], (1, 0)),
    "deflation": (lambda A, B: A.deflate(V), lambda A, B: complement(V) @ A @ complement(V), (1, 0)),
    "deflation of nothing": (lambda A, B: A.deflate(V[:0]), lambda A, B: A, (1, 0)),
    "nested": (lambda A, B: (2 * A - B.shift(1.)).restrict(MASK), lambda A, B: (2 * A - B - I)[MASK][:, MASK], (1, 1)),
    "twice": (lambda A, B: A + A, lambda A, B: 2 * A, (2, 0)),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_is_the_matrix(name, dtype):
    make, matrix, each = FORMS[name]
    A, B = two(dtype)
    op, M = make(A, B), matrix(A.A.double(), B.A.double())
    n, limit = len(M), (1e-12 if dtype == F64 else 1e-4) * (1 + M.norm())
    assert isinstance(op, Operator) and op.shape == (n, n) and op.dtype == dtype and op.device == A.device
    W = randn(5, n, seed=3).to(dtype)
    with untouched(tensors=[W, A.A, B.A]):
        assert (op.matmat(W).double() - W.double() @ M).norm() <= limit
        assert (op.matvec(W[0]).double() - M @ W[0].double()).norm() <= limit
    assert (op.to_dense().double() - M).norm() <= limit and op.matmat(W[:0]).shape == (0, n)
    assert op.n_matvecs == 6 + n and (A.n_matvecs, B.n_matvecs) == tuple(k * (6 + n) for k in each)


@pytest.mark.parametrize("name", FORMS)
def test_wrong_vectors_reach_no_part(name):
    A, B = two()
    op = FORMS[name][0](A, B)
    with pytest.raises(ValueError, match="expected shape"): op.matvec(randn(op.shape[0] + 1))
    with pytest.raises(TypeError, match="expected torch.float64"): op.matmat(randn(2, op.shape[0]).float())
    with pytest.raises(ValueError, match="NaN"): op.matvec(randn(op.shape[0]) * torch.nan)
    assert op.n_matvecs == A.n_matvecs == B.n_matvecs == 0


def test_what_is_announced_reaches_the_parts():
    A, B = two()
    seen = []
    A.expect, B.expect = (lambda n: seen.append(("A", n))), (lambda n: seen.append(("B", n)))
    (2 * A + B.shift(1)).restrict(MASK).deflate(rows(1)[:, MASK] / rows(1)[:, MASK].norm()).expect(9)
    assert seen == [("A", 9), ("B", 9)]
    A.resume = seen.append
    A.shift(1).resume(4)
    assert seen[2:] == [4]


A64, B64 = two()
SMALL, SINGLE = prescribed(np.r_[1., 2.]), prescribed(SPECTRUM, dtype=torch.float32)


@pytest.mark.parametrize("what, error, message", [
    (lambda: A64 + SMALL, ValueError, r"shapes \(20, 20\) and \(2, 2\) cannot be added"),
    (lambda: A64 - SINGLE, TypeError, "torch.float64 and torch.float32 cannot be added"),
    (lambda: A64 + 1, TypeError, "expected an operator, got int"),
    (lambda: A64 + I, TypeError, "expected an operator, got Tensor"),
    (lambda: A64 * B64, TypeError, "multiplied with a number, or shifted by one, got MatrixOperator"),
    (lambda: A64 * I, TypeError, "got Tensor"), (lambda: "2" * A64, TypeError, "got str"),
    (lambda: True * A64, TypeError, "got bool"),
    (lambda: 1j * A64, TypeError, "got complex"), (lambda: A64.shift(None), TypeError, "got NoneType"),
    (lambda: A64.restrict([]), ValueError, "empty"), (lambda: A64.restrict([1, 1]), ValueError, "twice"),
    (lambda: A64.restrict([20]), ValueError, r"0\.\.19"), (lambda: A64.restrict([-1]), ValueError, r"0\.\.19"),
    (lambda: A64.restrict(torch.zeros(20, dtype=torch.bool)), ValueError, "empty"),
    (lambda: A64.restrict(torch.ones(19, dtype=torch.bool)), TypeError, r"mask of shape \(20,\)"),
    (lambda: A64.restrict(torch.ones(3)), TypeError, "got torch.float32"),
    (lambda: A64.restrict(torch.zeros(1, 2, dtype=torch.int64)), TypeError, r"of shape \(1, 2\)"),
    (lambda: A64.deflate(I[:2] * 2), ValueError, "not orthonormal"),
    (lambda: A64.deflate(I[0]), ValueError, r"\(k, 20\)"),
    (lambda: A64.deflate(I[:, :3]), ValueError, r"expected rows of shape \(k, 20\), got \(20, 3\)"),
    (lambda: A64.deflate(None), ValueError, "expected rows"),
])
def test_wrong_requests(what, error, message):
    with pytest.raises(error, match=message): what()


def test_numbers_of_every_kind():
    v = randn(20)
    for two in (2, 2., np.float64(2), np.float32(2), np.int64(2), torch.tensor(2), torch.tensor(2.)):
        assert_close((two * A64).matvec(v), 2 * A64.A @ v)
        assert_close((A64 * two).shift(two).matvec(v), 2 * A64.A @ v + 2 * v)


def test_deflation_takes_eigenpairs_out():
    pairs = top_eigenpairs(A64, 3, tol=1e-10)
    rest = A64.deflate(pairs.vectors)
    assert rest.matvec(pairs.vectors[0]).abs().max() < 1e-9
    assert_close(top_eigenpairs(rest, 1, tol=1e-10).values, torch.tensor([1.], dtype=F64), rtol=1e-8, atol=0)
    assert_close(rest.project(pairs.vectors), torch.zeros_like(pairs.vectors), rtol=0, atol=1e-9)


def test_vectors_of_a_search_in_float32_are_orthonormal_enough():
    op = prescribed(SPECTRUM, dtype=torch.float32)
    pairs = top_eigenpairs(op, 4, tol=1e-3)
    op.deflate(pairs.vectors), A64.deflate(torch.linalg.qr(pairs.vectors.double().T).Q.T)


def test_weight_decay_is_a_shift():
    X, y = blobs(30)
    model, decay = mlp(), .25
    H = HessianOperator(Objective(model, (X, y)))
    theta = H.objective.theta
    def loss(theta):
        outputs = torch.func.functional_call(model, H.objective.named(theta), X)
        return torch.nn.functional.cross_entropy(outputs, y) + decay / 2 * theta @ theta
    assert_close(H.shift(decay).to_dense(), torch.autograd.functional.hessian(loss, theta), rtol=1e-10, atol=1e-12)
    layer = HessianOperator(Objective(model, (X, y), params="2.*"))
    assert_close(H.restrict(slice(20, None)).to_dense(), layer.to_dense())


class Own:
    "What a class of one's own needs, and no more."
    shape, dtype, device = (20, 20), F64, torch.device("cpu")
    def matvec(self, v): return A64.A @ v


def test_a_class_of_ones_own():
    own = Own()
    assert isinstance(own, SymmetricOperator)
    op, v = wrap_operator(own), randn(20)
    assert wrap_operator(op) is op and wrap_operator(A64) is A64
    assert_close(op.matvec(v), A64.A @ v)
    assert_close((A64 + own).matvec(v), 2 * A64.A @ v)  # wrapped on the way
    assert_close(op.to_dense(), A64.A)
    assert op.n_matvecs == 21 and op.in_single() is None and op.expect(3) is None and "Wrapped(20 x 20" in repr(op)
    assert_close(top_eigenpairs(op, 2).values, torch.tensor([5., 4.], dtype=F64))


def own(**changes): return type("Own", (Own,), {k: staticmethod(f) if callable(f) else f for k, f in changes.items()})()


@pytest.mark.parametrize("x, error, message", [
    (own(matvec=lambda v: v[1:]), ValueError, r"matvec of Own gave \(19,\)"),
    (own(matvec=lambda v: v.float()), ValueError, "torch.float32"),
    (own(matvec=lambda v: v.numpy()), TypeError, "matvec of Own gave ndarray"),
    (own(shape=(20, 19)), ValueError, "must be square"), (own(shape=(0, 0)), ValueError, "must be square"),
    (own(dtype=torch.float16), TypeError, "torch.float32 or torch.float64, got torch.float16"),
    (I, TypeError, "expected an operator, got Tensor: wrap a symmetric matrix in MatrixOperator"),
    (torch.nn.Linear(2, 2), TypeError, "expected an operator, got Linear"), (None, TypeError, "got NoneType"),
    (A64.to_scipy(), TypeError, "pass data= with a model, or give a class of your own shape, dtype, device and matvec"),
])
def test_what_is_no_operator(x, error, message):
    with pytest.raises(error, match=message): wrap_operator(x).matvec(randn(20))


def test_a_product_that_carries_a_graph():
    w = torch.ones(20, dtype=F64, requires_grad=True)
    assert not wrap_operator(own(matvec=lambda v: v * w)).matvec(randn(20)).requires_grad


def test_defaults_of_the_contract():
    "An algorithm may ask any operator."
    for op in (A64, A64 + B64, wrap_operator(Own())):
        assert op.expect(5) is None and op.in_single() is None and op.noise == 0
    with pytest.raises(NotImplementedError): Operator(3, F64, "cpu").matvec(randn(3))
    assert isinstance(MatrixOperator(I), SymmetricOperator)
