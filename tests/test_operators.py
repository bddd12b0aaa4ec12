"One contract, run over every operator."
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import eigsh
from torch import nn
from torch.testing import assert_close

from conftest import F64, blobs, build, mlp, prescribed, quiet, randn, untouched
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.operator import MatrixOperator, SymmetricOperator

X, Y = blobs(45)
MODEL, WEIGHT = mlp(), torch.tensor([1., 2., 5., .5], dtype=F64)
BATCHES = list(zip(X.split([20, 20, 5]), Y.split([20, 20, 5])))


def hessian_op(budget, dtype=F64):
    objective = Objective(MODEL, BATCHES, nn.CrossEntropyLoss(weight=WEIGHT), dtype=dtype)
    some = objective.cost.fixed + 20 * objective.cost.per_example
    op = HessianOperator(objective, memory_budget=dict(all=None, some=some, none=0)[budget])
    assert op.n_kept == dict(all=45, some=20, none=0)[budget]
    return op


def true_hessian():
    outputs = lambda *params: torch.func.functional_call(MODEL, dict(zip(names, params)), X)
    def loss(*params): return F.cross_entropy(outputs(*params), Y, weight=WEIGHT)
    names, params = zip(*((n, p.detach()) for n, p in MODEL.named_parameters()))
    blocks = torch.autograd.functional.hessian(loss, params)
    return torch.cat([torch.cat([b.reshape(p.numel(), -1) for b in row], 1) for row, p in zip(blocks, params)])


HESSIAN = true_hessian()
SPECTRUM = np.r_[5., 5., 4., -3., np.linspace(-1, 1, 26), np.zeros(10)]
TYPES = {"float64": F64, "float32": torch.float32}
MAKERS = {f"hessian keeps {b}, {n}": (lambda b=b, d=d: hessian_op(b, d), HESSIAN)
          for b in ("all", "some", "none") for n, d in TYPES.items()}
MAKERS |= {f"matrix, {n}": (lambda d=d: prescribed(SPECTRUM, dtype=d), prescribed(SPECTRUM).A)
           for n, d in TYPES.items()}


@pytest.fixture(params=MAKERS, scope="module")
def case(request):
    make, A = MAKERS[request.param]
    op = make()
    return op, A, (1e-12 if op.dtype == F64 else 2e-5) * A.norm()


def rows(op, k, seed=0): return randn(k, op.shape[0], seed=seed).to(op.dtype)


def test_protocol(case):
    op, A, _ = case
    assert isinstance(op, SymmetricOperator) and op.shape == tuple(A.shape)
    assert op.dtype in (F64, torch.float32) and op.device == torch.device("cpu")
    assert f"{op.shape[0]} x {op.shape[0]}" in repr(op) and str(op.dtype)[6:] in repr(op)


def test_is_the_matrix(case):
    op, A, atol = case
    V = rows(op, 4)
    got = op.matmat(V)
    assert got.dtype == op.dtype and got.shape == V.shape and not got.requires_grad
    assert (got.double() - V.double() @ A).norm() <= 4 * atol


def test_rows_agree_with_vectors(case):
    op, _, atol = case
    V = rows(op, 3)
    assert (op.matmat(V) - torch.stack([op.matvec(v) for v in V])).norm() <= atol
    assert op.matmat(V[:0]).shape == (0, op.shape[0])
    assert op.matvec(V[0]).shape == (op.shape[0],) and op.matvec(V[0]).dtype == op.dtype


def test_linear(case):
    op, _, atol = case
    u, v = rows(op, 2)
    assert (op.matvec(2 * u - 3 * v) - 2 * op.matvec(u) + 3 * op.matvec(v)).norm() <= 10 * atol
    assert not op.matvec(torch.zeros_like(u)).any()


def test_symmetric(case):
    op, _, atol = case
    u, v = rows(op, 2)
    assert (u @ op.matvec(v) - v @ op.matvec(u)).abs() <= 10 * atol * u.norm() * v.norm()


def test_repeatable(case):
    op, _, _ = case
    v, = rows(op, 1)
    assert torch.equal(op.matvec(v), op.matvec(v))


def test_products_are_counted(case):
    op, A, _ = case
    n, V = op.n_matvecs, rows(op, 5)
    op.matvec(V[0]), op.matmat(V), op.matmat(V[:0])
    assert op.n_matvecs - n == 6
    op.to_dense()
    assert op.n_matvecs - n == 6 + len(A)
    op.to_scipy() @ V[0].numpy(), op.to_scipy() @ V.T.numpy(), op.to_scipy().rmatvec(V[0].numpy())
    assert op.n_matvecs - n == 6 + len(A) + 1 + 5 + 1


def test_a_new_operator_has_no_products(case):
    op, _, _ = case
    fresh = MatrixOperator(op.A) if isinstance(op, MatrixOperator) else HessianOperator(op.objective)
    assert fresh.n_matvecs == 0


@pytest.mark.parametrize("chunk", [1, 7, 256])
def test_dense(case, chunk):
    op, A, atol = case
    dense = op.to_dense(chunk=chunk)
    assert torch.equal(dense, dense.T) and dense.dtype == op.dtype
    assert (dense.double() - A).norm() <= 10 * atol
    dense.zero_()
    assert op.to_dense().any()  # not an alias of the operator's own storage


def test_dense_is_guarded(case):
    op, A, _ = case
    n, size = op.n_matvecs, len(A) ** 2 * (8 if op.dtype == F64 else 4)
    message = rf"dense {len(A)} x {len(A)} matrix in {op.dtype} takes .* GiB.*top_eigenpairs, or raise max_bytes"
    with pytest.raises(ValueError, match=message): op.to_dense(max_bytes=size - 1)
    assert op.n_matvecs == n
    op.to_dense(max_bytes=size)


def test_scipy(case):
    op, A, atol = case
    view, V = op.to_scipy(), rows(op, 3)
    assert view.shape == op.shape and view.dtype == V.numpy().dtype
    columns, expected = V.numpy().T, (V.double() @ A).numpy()
    for product in (view @ columns, view.rmatmat(columns), view.matmat(columns), view.T @ columns):
        assert np.linalg.norm(product.T - expected) <= 10 * atol
    assert np.linalg.norm(view @ V[0].numpy() - (A @ V[0].double()).numpy()) <= 10 * atol
    largest = eigsh(view, k=2, which="LA", v0=np.ones(len(A), dtype=view.dtype), return_eigenvectors=False)
    rtol = 1e-4 if op.dtype != F64 else 1e-9
    found, true = torch.from_numpy(np.sort(largest)).double(), torch.linalg.eigvalsh(A)
    assert_close(found[-1], true[-1], rtol=rtol, atol=0)  # a copy of a double one is seen by rounding only
    assert ((found[:, None] - true).abs().amin(1) <= rtol * true[-1]).all()


def test_nothing_is_touched(case, rng_draws):
    op, A, _ = case
    V = rows(op, 3)
    own = op.A if isinstance(op, MatrixOperator) else op.objective.theta
    for call in (lambda: op.matvec(V[0]), lambda: op.matmat(V), op.to_dense, lambda: op.to_scipy() @ V[0].numpy()):
        with untouched(MODEL, tensors=[V, X, Y, own]), quiet(): call()


def test_vector_that_requires_a_gradient(case, request):
    op, _, _ = case
    v = rows(op, 1)[0].requires_grad_()
    assert not op.matvec(v).requires_grad and v.grad is None


@pytest.mark.parametrize("what, error, message", [
    (lambda op, v: op.matvec(v.numpy()), TypeError, "expected a tensor of shape ({n},), got ndarray"),
    (lambda op, v: op.matvec(v.tolist()), TypeError, "got list"),
    (lambda op, v: op.matmat(v.numpy()[None]), TypeError, "expected a tensor of shape (k, {n}), got ndarray"),
    (lambda op, v: op.matvec(v[1:]), ValueError, "expected shape ({n},), got ({m},)"),
    (lambda op, v: op.matvec(v[None]), ValueError, "expected shape ({n},), got (1, {n})"),
    (lambda op, v: op.matvec(v[:, None]), ValueError, "got ({n}, 1)"),
    (lambda op, v: op.matvec(v[0]), ValueError, "got ()"),
    (lambda op, v: op.matmat(v), ValueError,
     "expected shape (k, {n}), got ({n},); vectors are rows, and one vector goes to matvec"),
    (lambda op, v: op.matmat(v[:, None]), ValueError, "got ({n}, 1); vectors are rows"),
    (lambda op, v: op.matvec(v.half()), TypeError, "expected {dtype}, got torch.float16: call v.to({dtype})"),
    (lambda op, v: op.matvec(v.to(torch.float32 if op.dtype == F64 else F64)), TypeError,
     "expected {dtype}, got torch.float"),
    (lambda op, v: op.matvec(v.to(torch.complex128)), TypeError, "got torch.complex128"),
    (lambda op, v: op.matvec(v.to("meta")), ValueError, "expected a vector on cpu, got meta: call v.to('cpu')"),
])
def test_wrong_vectors(case, what, error, message):
    op, A, _ = case
    n = op.n_matvecs
    with untouched(MODEL), pytest.raises(error) as e: what(op, rows(op, 1)[0])
    assert message.format(n=len(A), m=len(A) - 1, dtype=op.dtype) in str(e.value)
    assert op.n_matvecs == n


@pytest.mark.parametrize("A, error, message", [
    (np.eye(3), TypeError, "A must be a tensor, got ndarray; use torch.as_tensor"),
    (torch.eye(3)[:2], ValueError, "square matrix, got shape (2, 3)"),
    (torch.ones(3), ValueError, "square matrix, got shape (3,)"),
    (torch.zeros(0, 0), ValueError, "square matrix, got shape (0, 0)"),
    (torch.eye(3).long(), TypeError, "float32 or float64, got torch.int64"),
    (torch.eye(3).half(), TypeError, "float32 or float64, got torch.float16"),
    (torch.full((2, 2), float("nan")), ValueError, "NaN or infinite"),
    (torch.tensor([[1., float("inf")], [float("inf"), 1.]]), ValueError, "NaN or infinite"),
    (torch.triu(torch.ones(3, 3)), ValueError,
     "not symmetric: |A - A^T| reaches 1 with entries up to 1; use (A + A.T) / 2"),
])
def test_wrong_matrices(A, error, message):
    with pytest.raises(error) as e: MatrixOperator(A)
    assert message in str(e.value)


def test_matrix_symmetric_to_rounding_is_accepted():
    A = prescribed(SPECTRUM).A
    MatrixOperator(A + 1e-15 * randn(40, 40)), MatrixOperator(torch.zeros(3, 3)), MatrixOperator(torch.ones(1, 1))


def test_hessian_wants_an_objective():
    for thing in (MODEL, torch.eye(3), None):
        with pytest.raises(TypeError, match="expected an Objective, got"): HessianOperator(thing)


def test_closed_form_of_softmax_regression():
    linear = build(lambda: nn.Linear(3, 4, bias=False))
    p = linear(X).softmax(1).detach()
    M = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    closed = torch.einsum("ncd,ni,nj->cidj", M, X, X).reshape(12, 12) / len(X)
    assert_close(HessianOperator(Objective(linear, BATCHES)).to_dense(), closed, rtol=1e-12, atol=1e-15)


def test_closed_form_of_least_squares():
    linear, T = build(lambda: nn.Linear(3, 2, bias=False)), randn(45, 2)
    H = HessianOperator(Objective(linear, (X, T), "mse_loss")).to_dense()
    assert_close(H, torch.kron(torch.eye(2, dtype=F64), X.T @ X / len(X)), rtol=1e-12, atol=1e-15)


def test_a_linear_loss_has_no_curvature():
    H = HessianOperator(Objective(build(lambda: nn.Linear(3, 4)), (X, Y), lambda o, t: o.sum(1)))
    assert not H.to_dense().any()


def test_a_linear_loss_of_one_example():
    model = build(lambda: nn.Linear(3, 4))
    objective = Objective(model, (X[:1], Y[:1]), lambda o, t: o.sum(1), params="bias")
    assert not HessianOperator(objective).to_dense().any()


@pytest.mark.parametrize("rows_kept", [slice(0, 15), slice(20, 44)])
def test_chosen_parameters_give_the_diagonal_block(rows_kept):
    layer = {0: "0.weight", 20: "2.*"}[rows_kept.start]
    H = HessianOperator(Objective(MODEL, BATCHES, nn.CrossEntropyLoss(weight=WEIGHT), params=layer)).to_dense()
    assert_close(H, HESSIAN[rows_kept, rows_kept], rtol=1e-11, atol=1e-14)


def test_memory_is_bounded_by_the_budget():
    "Pieces and kept graphs follow the measured cost of an example."
    budget = 200_000
    objective = Objective(MODEL, (X.repeat(40, 1), Y.repeat(40)), memory_budget=budget)
    pieces = [len(t) for _, t in objective.micro_batches()]
    assert len(pieces) > 1 and sum(pieces) == 1800
    assert all(objective.cost.fixed + n * objective.cost.per_example <= budget for n in pieces)
    assert 0 <= HessianOperator(objective).n_kept * objective.cost.per_example <= budget
    whole = HessianOperator(Objective(MODEL, (X, Y))).to_dense()
    assert_close(HessianOperator(objective).to_dense(), whole, rtol=1e-11, atol=1e-14)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.clone()
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g): return g


class OnceNet(nn.Module):
    def __init__(self): super().__init__(); self.layer = nn.Linear(3, 4)
    def forward(self, x): return Once.apply(self.layer(x))


class Sometimes(OnceNet):
    "The dead end lies on the way of examples with a large first feature only."
    def forward(self, x):
        out, far = self.layer(x), x[:, 0] > 50
        return torch.where(far[:, None], Once.apply(out), out) if far.any() else out


@pytest.mark.parametrize("budget", [None, 0])
def test_a_dead_end_behind_later_examples(budget):
    "Its product is refused, kept or not, never a Hessian that lacks a part."
    inputs = X.clone()
    inputs[-1, 0] = 100.
    data = list(zip(inputs.split(20), Y.split(20)))
    with pytest.raises(NotImplementedError, match="Once"):
        op = HessianOperator(Objective(build(Sometimes), data), memory_budget=budget)
        assert budget == 0  # what is kept has been looked at before
        op.matvec(randn(op.shape[0]))


class Draws(nn.Module):
    "Draws a random number in each pass, and does not use it."
    def __init__(self): super().__init__(); self.layer = nn.Linear(3, 4)
    def forward(self, x):
        torch.rand(())
        return self.layer(x).tanh()


@pytest.mark.parametrize("budget", [None, 0])
def test_random_state_of_a_model_that_draws(budget):
    objective = Objective(build(Draws), (X, Y))
    before = torch.get_rng_state()
    op = HessianOperator(objective, memory_budget=budget)
    assert torch.equal(torch.get_rng_state(), before)
    op.matvec(randn(op.shape[0]))
    assert torch.equal(torch.get_rng_state(), before)


class NoSecond(nn.Module):
    "Sums over segments: torch differentiates them once only."
    def __init__(self): super().__init__(); self.layer = nn.Linear(3, 6)
    def forward(self, x):
        lengths = torch.tensor([1, 2, 1, 2]).expand(len(x), 4)
        return torch.segment_reduce(self.layer(x), "sum", lengths=lengths, axis=1)


def test_once_differentiable_is_named():
    model = build(OnceNet)
    message = "autograd.Function Once .*no second derivative.*drop the mark, or leave its parameters out"
    with untouched(model), pytest.raises(NotImplementedError, match=message):
        HessianOperator(Objective(model, (X, Y)))


def test_missing_second_derivative_is_named():
    model = build(NoSecond)
    message = "_segment_reduce_backward has no second derivative.*replace it by differentiable torch operations"
    with untouched(model), pytest.raises(NotImplementedError, match=message):
        HessianOperator(Objective(model, (X, Y)))
