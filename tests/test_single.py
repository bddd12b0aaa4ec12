"A search in float32 for a float64 operator gives the pairs, the residuals and the completeness of a search in float64."
import warnings

import numpy as np
import pytest
import torch
from test_replay import IMAGES, NETWORKS
from torch import nn

from conftest import F64, blobs, mlp, prescribed, randn
from hessnb.curvature import fast
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.krylov import Krylov
from hessnb.curvature.mixed import davidson_correction
from hessnb.curvature.objective import Objective
from hessnb.curvature.operator import MatrixOperator, Operator
from hessnb.curvature.top import top_eigenpairs
from hessnb.paper.networks import cnn

X, Y = blobs(45)


class Coarse(Operator):
    "Products with the coarse form of an operator's matrix, which count there, too."
    def __init__(self, owner, noise):
        self.owner, self.noise, self.A = owner, noise, (owner.coarse + owner.coarse.T) / 2
        super().__init__(len(self.A), self.A.dtype, self.A.device)
    def apply(self, v):
        self.owner.n_matvecs += 1
        return self.A @ v


class Rounded(MatrixOperator):
    "A matrix in float64 that offers its products in float32, which count here too."
    single_noise = 2e-7
    def __init__(self, A, coarse=None):
        super().__init__(A)
        self.coarse = A.float() if coarse is None else coarse.float()
    def in_single(self): return Coarse(self, self.single_noise)


def check(op, pairs, k, which, tol):
    "Against the dense answer: values, residuals, orthogonality, counts."
    values, A = torch.linalg.eigvalsh(op.A), op.A
    by_size = values[values.abs().argsort(descending=True)]
    ends = values.flip(0)[:k - k // 2], values[:k // 2].flip(0)
    expected = {"LA": values.flip(0)[:k], "SA": values[:k], "LM": by_size[:k], "BE": torch.cat(ends)}[which]
    scale = values.abs().max()
    key = torch.abs if which == "LM" else torch.clone
    assert torch.allclose(key(pairs.values), key(expected), rtol=tol, atol=1e-9 * scale.item())
    V, theta = pairs.vectors, pairs.values
    assert V.dtype == F64 and (V @ V.T - torch.eye(k, dtype=F64)).abs().max() < 1e-10
    true = (V @ A - theta[:, None] * V).norm(dim=1)
    close = 1e-3 * (true + tol * theta.abs()) + 1e-13 * scale  # what the checks saw is added in units of the tolerance
    assert ((true - pairs.residuals).abs() <= close).all()
    assert pairs.converged.all() and (true <= 1.001 * tol * theta.abs().clamp_min(4e-11 * scale)).all()
    assert op.n_matvecs == pairs.n_matvecs + pairs.n_certify


SPECTRA = {
    "outliers": np.r_[np.geomspace(100, 1, 10), np.linspace(-.3, .3, 290)],
    "repeated": np.r_[9, 9, 9, 7, 7, 5, 4, 4, 3, 2.5, np.linspace(-2, 2, 290)],
    "slow decay": np.geomspace(1, 1e-3, 300) * np.where(np.arange(300) % 4 == 3, -1, 1),
    "fast decay": np.geomspace(1, 1e-12, 300),
    "positive and negative": np.r_[5, -5, 4, -4.5, 3, -3, 2, -2, np.linspace(-1, 1, 292)],
}


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("tol", [1e-3, 1e-6])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.filterwarnings("error")
def test_prescribed(name, tol, which):
    for k in (1, 5, 8):
        op = Rounded(prescribed(SPECTRA[name]).A)
        if which in ("SA", "BE") and "decay" in name and k > 1: continue  # zero to rounding has no relative residual
        if name == "fast decay" and which == "SA": continue
        check(op, top_eigenpairs(op, k, which=which, tol=tol), k, which, tol)


def test_single_is_used_and_counted():
    op = Rounded(prescribed(SPECTRA["outliers"]).A)
    pairs = top_eigenpairs(op, 5, tol=1e-3)
    assert 0 < pairs.n_single < op.n_matvecs == pairs.n_matvecs + pairs.n_certify
    plain = MatrixOperator(op.A)
    same = top_eigenpairs(plain, 5, tol=1e-3)
    assert same.n_single == 0 and pairs.n_matvecs <= same.n_matvecs + 4
    off = Rounded(op.A)
    assert top_eigenpairs(off, 5, tol=1e-3, single=False).n_single == 0


@pytest.mark.parametrize("gap", [1e-3, 1e-5, 1e-7, 1e-9])
@pytest.mark.parametrize("copies", [1, 2, 3])
def test_ties_at_the_end(gap, copies):
    "Values just above the last wanted one, in copies, nearer to it than float32 can see or not."
    top = [4., 3., 2.] + [1 + gap] * copies + [1.]
    op = Rounded(prescribed(np.r_[top, np.linspace(-.5, .9, 200)]).A)
    k = len(top)
    check(op, top_eigenpairs(op, k, tol=1e-6), k, "LA", 1e-6)


def test_a_coarse_operator_that_is_wrong():
    "Float32 products of another matrix cost time, not the answer."
    good, bad = prescribed(SPECTRA["outliers"]).A, prescribed(SPECTRA["repeated"], seed=5).A
    op = Rounded(good, bad)
    check(op, top_eigenpairs(op, 5, tol=1e-6), 5, "LA", 1e-6)


def test_a_coarse_operator_that_is_wrong_and_no_budget_left():
    "Then its vectors are returned, flagged, with their true residuals."
    good, bad = prescribed(SPECTRA["outliers"]).A, prescribed(SPECTRA["repeated"], seed=5).A
    stopped = []
    for budget in range(20, 120, 3):  # in the coarse search, between it and the next one, in the next one, enough
        op = Rounded(good, bad)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pairs = top_eigenpairs(op, 5, tol=1e-6, max_matvecs=budget)
        true = (pairs.vectors @ good - pairs.values[:, None] * pairs.vectors).norm(dim=1)
        assert torch.allclose(true, pairs.residuals, rtol=1e-5, atol=1e-9)
        assert pairs.converged.all() == (pairs.stopped == "converged")
        stopped.append(pairs.stopped)
    assert stopped[0] == "budget" and stopped[-1] == "converged"


@pytest.mark.parametrize("seed", range(6))
def test_random_spectra(seed):
    rng = np.random.default_rng(seed)
    values = np.r_[rng.choice(np.exp(rng.normal(0, 2, 12)), 20), rng.normal(0, .05, 180)]
    A = prescribed(values, seed=seed).A
    for k, tol in ((3, 1e-3), (8, 1e-4), (12, 1e-6)):
        op = Rounded(A)
        pairs = top_eigenpairs(op, k, tol=tol, generator=torch.Generator().manual_seed(seed))
        check(op, pairs, k, "LA", tol)


def test_stopped_early():
    "A stop or a budget in the float32 phase gives what is there, in float64, flagged."
    op = Rounded(prescribed(SPECTRA["slow decay"]).A)
    with pytest.warns(UserWarning, match="stopped after"):
        pairs = top_eigenpairs(op, 8, tol=1e-6, progress=lambda used, done: used >= 15)
    assert pairs.stopped == "halted" and pairs.vectors.dtype == F64
    op = Rounded(op.A)
    with pytest.warns(UserWarning, match="ran out"): pairs = top_eigenpairs(op, 8, tol=1e-6, max_matvecs=15)
    assert pairs.stopped == "budget" and len(pairs) == 8 and not pairs.converged.all()
    true = (pairs.vectors @ op.A - pairs.values[:, None] * pairs.vectors).norm(dim=1)
    assert torch.allclose(true, pairs.residuals, rtol=1e-6)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "residual")) for n in NETWORKS])
def test_rounded_trace(name, monkeypatch):
    monkeypatch.setattr(fast, "_ROUNDING_BYTES", 0)
    make, inputs = NETWORKS[name]
    objective = Objective(make(), (inputs, torch.arange(len(inputs)) % 4), dtype=F64)
    op = HessianOperator(objective)
    single, v = op.in_single(), randn(objective.n_params)
    assert single is not None and single is op.in_single() and single.dtype == torch.float32 and single.noise < 1e-4
    w, before = op.matvec(v), op.n_matvecs
    assert (single.matvec(v.float()) - w).norm() <= 1e-4 * w.norm() and op.n_matvecs == before + 1
    assert all(t.dtype != F64 for program in single.total.maps for t in program.constants.values())
    if objective.n_params > 10**6: return  # a search takes minutes here
    pairs, plain = top_eigenpairs(op, 3, tol=1e-5), top_eigenpairs(op, 3, tol=1e-5, single=False)
    assert pairs.n_single and not plain.n_single
    assert torch.allclose(pairs.values, plain.values, rtol=1e-8) and pairs.converged.all()


def test_where_there_is_nothing_in_float32(monkeypatch):
    objective = Objective(mlp(), (X, Y))
    assert HessianOperator(objective).in_single() is None  # too small to be worth it
    monkeypatch.setattr(fast, "_ROUNDING_BYTES", 0)
    whole = objective.cost.fixed + 45 * objective.cost.per_example
    assert HessianOperator(objective).in_single() is not None
    assert HessianOperator(objective, product="graph").in_single() is None
    assert HessianOperator(objective, memory_budget=whole).in_single() is None
    assert HessianOperator(objective, memory_budget=whole // 2).in_single() is None
    assert HessianOperator(Objective(mlp(), (X, Y), dtype=torch.float32)).in_single() is None
    with torch.no_grad():  # constants beyond the range of float32
        huge = Objective(nn.Linear(3, 4).double(), (X * 1e60, Y), lambda out, t: out.square().sum(1))
    assert HessianOperator(huge).in_single() is None


def test_large_hessian_is_searched_in_mixed_precision():
    "Nothing is set by hand here: a network of convolutions on enough images."
    images = IMAGES.repeat(6, 1, 1, 1) + .1 * randn(72, 1, 28, 28)
    op = HessianOperator(Objective(cnn(4).double(), (images, torch.arange(72) % 4)))
    assert op.kept.n_bytes > 2**24
    pairs = top_eigenpairs(op, 4, tol=1e-3)
    assert pairs.n_single > len(pairs) and pairs.converged.all()
    assert "in float32" in repr(pairs)


class Perturbed(Rounded):
    """Its coarse form differs by a symmetric matrix as large as `noise` says; it is in float64, since rounding errors
    would bring copies of eigenvalues by themselves."""
    single_noise = 1e-6


def shifted(values, low, high, amount):
    "A matrix with these eigenvalues, and one in which two of them are moved towards and beyond each other."
    Q, values = torch.linalg.qr(randn(len(values), len(values))).Q, torch.tensor(values, dtype=F64)
    moved = values.clone()
    moved[low] += amount
    moved[high] -= amount
    return [(Q * v) @ Q.T for v in (values, moved)]


def test_an_order_that_the_noise_turns_round():
    "The coarse form has the fourth eigenvalue above the third; both are within its noise."
    values = np.r_[100., 50., 1., 1 - 2e-5, np.linspace(-.5, .5, 196)]
    A, coarse = shifted(values, 3, 2, 2e-5)
    op = Perturbed((A + A.T) / 2)
    op.coarse = coarse
    pairs = top_eigenpairs(op, 3, tol=1e-6)
    check(op, pairs, 3, "LA", 1e-6)


def test_copies_within_the_noise_of_the_last_value():
    """Where values differ by less than the noise, the coarse search does not look for copies of the better one; a
    search in float64 does."""
    A, _ = shifted(np.r_[100., 1 + 2e-5, 1 + 2e-5, 1., np.linspace(-.5, .5, 196)], 0, 0, 0.)
    op = Perturbed((A + A.T) / 2)
    op.coarse = op.A
    pairs = top_eigenpairs(op, 3, tol=1e-6)
    check(op, pairs, 3, "LA", 1e-6)


def test_correction_solves_in_the_basis():
    "With a basis of the whole space the correction is the solution of (A - theta) t = -r beside the wanted vectors."
    op = prescribed(np.r_[9., 5., 3., np.linspace(-1, 1, 27)])
    krylov = Krylov(op, 30)
    krylov.add(randn(30))
    while len(krylov.pending): krylov.expand()
    values, S, _ = krylov.ritz()
    skip = torch.tensor([29, 28])
    V, theta = krylov.combine(S[:, skip]), values[skip]
    R = randn(2, 30, seed=1)
    R = R - (R @ V.T) @ V
    T = davidson_correction(krylov, R, theta, skip)
    assert (T @ V.T).abs().max() < 1e-10 * T.norm()
    back = T @ op.A - theta[:, None] * T
    assert torch.allclose(back / back.norm(dim=1, keepdim=True), -R / R.norm(dim=1, keepdim=True), atol=1e-9)
    with_skipped = davidson_correction(krylov, R + V, theta + 1e-3, skip)  # along the wanted vectors nothing
    assert (with_skipped @ V.T).abs().max() < 1e-10 * with_skipped.norm()
