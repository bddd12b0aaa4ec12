"All eigenpairs that are not zero: as many as the dense matrix has, with true residuals, and nothing overlooked."
import math
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import hessnb.curvature.lowrank as lowrank
from conftest import F64, build, prescribed, quiet, randn, seeded, untouched
from hessnb.curvature.basis import Basis
from hessnb.curvature.completeness import log_escape_probability
from hessnb.curvature.eigenpairs import EigenPairs, criterion, solve_dense
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.lowrank import RangeSearch, bound_by_block, bound_by_chains, nonzero_eigenpairs
from hessnb.curvature.objective import Objective
from hessnb.curvature.operator import MatrixOperator
from hessnb.curvature.search import Budget
from hessnb.paper.data import load_data


class Blocks(RangeSearch):
    "A search that never goes over to the dense matrix."
    def __init__(self, *args): super().__init__(*args[:-1], dense_fits=False)


@pytest.fixture
def blocks_only(monkeypatch): monkeypatch.setattr(lowrank, "RangeSearch", Blocks)


class Users:
    "An operator of the user's; counts on its own."
    def __init__(self, op):
        self.op, self.shape, self.dtype, self.device, self.n_matvecs = op, op.shape, op.dtype, op.device, 0
    def matvec(self, v): return self.matmat(v[None])[0]
    def matmat(self, V):
        self.n_matvecs += len(V)
        return self.op.matmat(V)


def check(op, values, pairs, rtol=1e-8, products=None, value_atol=1e-13, tol=1e-6):
    "Everything that a float64 result promises."
    values = torch.as_tensor(np.asarray(values, dtype=float))
    scale = values.abs().max().item() if len(values) else 0.
    want = values[values.abs() > rtol * scale]
    assert len(pairs) == len(want), (len(pairs), len(want), pairs)
    assert pairs.values.dtype == pairs.residuals.dtype == F64 and pairs.vectors.dtype == op.dtype
    assert pairs.vectors.shape == (len(want), op.shape[0])
    assert (pairs.values.sort().values - want.sort().values).abs().le(value_atol * scale).all()
    assert pairs.values.abs().diff().le(1e-13 * scale).all() and pairs.which == "LM" and pairs.tol == tol
    assert (pairs.vectors @ pairs.vectors.T - torch.eye(len(want), dtype=F64)).abs().le(1e-11).all()
    true = (op.matmat(pairs.vectors) - pairs.values[:, None] * pairs.vectors).norm(dim=1)
    assert (true - pairs.residuals).abs().le(1e-2 * true + 2e-14 * scale).all()
    assert torch.equal(pairs.converged, pairs.residuals <= criterion(pairs.values, scale, tol, torch.finfo(F64).eps))
    assert pairs.converged.all() and pairs.stopped == "converged"
    assert 0 <= pairs.miss_probability <= 1e-3
    if products is not None: assert products == pairs.n_matvecs + pairs.n_certify


def spectra(n, seed):
    rng = np.random.default_rng(seed)
    zeros = lambda m: np.zeros(max(0, n - m))
    yield "low rank", np.r_[rng.normal(size=n // 5), zeros(n // 5)], {}
    yield "indefinite, mirrored", np.r_[3., -3., 3., -3., 1e-6, -1e-6, 1e-7, zeros(7)], {}
    yield "clusters", np.r_[5 + 1e-8 * np.arange(5), -5 + 1e-9 * np.arange(5), 1e-7 * (1 + 1e-4 * np.arange(20)),
                            zeros(30)], {}
    yield "repeats", np.r_[[2.] * (n // 6), [-1.] * (n // 6), [1e-7] * 5, zeros(n // 6 * 2 + 5)], {}
    yield "more copies than rows of a block", np.r_[[2.] * (n // 3), [1e-3] * 9, zeros(n // 3 + 9)], dict(block_size=4)
    yield "rank 0", np.zeros(n), {}
    yield "rank 1", np.r_[-3., zeros(1)], {}
    yield "full rank", rng.normal(size=n) + 3, {}
    yield "rank P/2", np.r_[rng.normal(size=n // 2) + 3, zeros(n // 2)], {}
    yield "geometric", 10. ** -np.linspace(0, 40, n), {}
    yield "through the threshold", 10. ** -np.linspace(0, 16, n) * rng.choice([-1, 1], n), {}
    yield "power law", 1 / np.arange(1, n + 1.) ** 3, dict(rtol=1e-4)
    yield "power law, small blocks", 1 / np.arange(1, n + 1.) ** 3, dict(rtol=1e-4, block_size=8)
    yield "edge", np.r_[1., [1.001e-8] * 5, [-1.001e-8] * 2, [.999e-8] * 5, zeros(13)], {}
    yield "flat tail", np.r_[rng.normal(size=9) + 4, np.full(n - 9, 4e-4)], dict(rtol=1e-3)
    yield "bulk below", np.r_[[7., -6., 5.], rng.uniform(-1, 1, n - 3) * 6e-3], dict(rtol=1e-3)
    yield "bulk across", np.r_[[7., -6., 5.], rng.uniform(-1, 1, n - 3) * 8e-3], dict(rtol=1e-3)
    yield "one by one", np.r_[rng.normal(size=12), zeros(12)], dict(block_size=1)
    yield "huge", 1e100 * np.r_[rng.normal(size=12), zeros(12)], {}
    yield "tiny", 1e-100 * np.r_[rng.normal(size=12), zeros(12)], {}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [60, 400])
def test_spectra(n, seed):
    for name, values, kwargs in spectra(n, seed):
        op = prescribed(values, seed)
        if name in ("huge", "tiny"): op = MatrixOperator(prescribed(values / values[0], seed).A * values[0])
        with quiet(): pairs = nonzero_eigenpairs(op, generator=seeded(seed), **kwargs)
        try: check(op, values, pairs, kwargs.get("rtol", 1e-8), op.n_matvecs)
        except AssertionError as e: raise AssertionError(name) from e


@pytest.mark.parametrize("seed", range(2))
def test_spectra_without_a_dense_form(seed, blocks_only):
    for name, values, kwargs in spectra(120, seed):
        if name in ("huge", "tiny"): continue
        op = Users(prescribed(values, seed))
        with quiet(): pairs = nonzero_eigenpairs(op, generator=seeded(seed), **kwargs)
        try: check(op, values, pairs, kwargs.get("rtol", 1e-8), op.n_matvecs)
        except AssertionError as e: raise AssertionError(name) from e


@pytest.mark.parametrize("users", [False, True])
def test_every_small_rank(users, monkeypatch):
    if users: monkeypatch.setattr(lowrank, "RangeSearch", Blocks)
    for n in range(1, 13):
        for rank in range(n + 1):
            values = np.r_[np.linspace(1, 2, rank) * (-1.) ** np.arange(rank), np.zeros(n - rank)]
            op = prescribed(values, n)
            op = Users(op) if users else op
            with quiet(): check(op, values, nonzero_eigenpairs(op), products=op.n_matvecs)


eigenvalue = st.one_of(st.sampled_from([0., 1., -1., 2., 5., 1e-6]), st.floats(-10, 10).map(lambda v: round(v, 6)))
copies = st.lists(st.tuples(eigenvalue, st.integers(1, 9)), min_size=1, max_size=15)
spectrum = copies.map(lambda runs: np.repeat([v for v, _ in runs], [m for _, m in runs]))


@settings(max_examples=80)
@given(spectrum, st.integers(0, 99), st.sampled_from([1, 2, 5, 64]), st.booleans())
def test_any_spectrum(values, seed, block_size, users):
    op = prescribed(values, seed)
    op = Users(op) if users else op
    with quiet(), mock.patch.object(lowrank, "RangeSearch", Blocks if users else RangeSearch):
        pairs = nonzero_eigenpairs(op, block_size=block_size, miss_probability=1e-6, generator=seeded(seed))
    check(op, values, pairs, products=op.n_matvecs)


def trained(data, layers, n, steps, seed=0):
    "The Hessian of a ReLU network after some steps on the first examples of a data set."
    d = load_data(data)
    X, y = d.X_train.double(), d.y_train
    pick = torch.randperm(len(y), generator=seeded(seed))[:n]
    sizes = [X.shape[1], *layers, int(y.max()) + 1]
    parts = [part for a, b in zip(sizes, sizes[1:]) for part in (nn.Linear(a, b), nn.ReLU())][:-1]
    model = build(lambda: nn.Sequential(*parts), seed)
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        adam.zero_grad()
        nn.functional.cross_entropy(model(X[pick]), y[pick]).backward()
        adam.step()
    adam.zero_grad(set_to_none=True)
    op = HessianOperator(Objective(model, (X[pick], y[pick])))
    op.objective_data = X[pick], y[pick]
    return model, op


@pytest.mark.parametrize("data, layers, n, steps, seed", [
    ("gauss", (20, 20), 12, 100, 0), ("gauss", (20, 20), 12, 300, 1), ("iris", (24, 24), 10, 200, 2),
    ("checkerboard", (30, 20), 16, 100, 3), ("moons", (40,), 15, 0, 4)])
def test_hessians(data, layers, n, steps, seed):
    model, op = trained(data, layers, n, steps, seed)
    dense = torch.linalg.eigvalsh(op.to_dense())
    before, rng = op.n_matvecs, torch.get_rng_state()
    with untouched(model), quiet("rounding floor"): pairs = nonzero_eigenpairs(op, generator=seeded(seed))
    rank = int((dense.abs() > 1e-8 * dense.abs().max()).sum())
    assert 10 < rank < op.shape[0] / 2  # a case for this function
    assert len(pairs) == rank and op.n_matvecs - before == pairs.n_matvecs + pairs.n_certify < 2 * rank + 100
    kept = dense[dense.abs() > 1e-8 * dense.abs().max()]
    assert (pairs.values.sort().values - kept).abs().max() <= 1e-12 * kept.abs().max()
    assert (pairs.converged | (pairs.residuals <= 1e-12 * kept.abs().max())).all() and (~pairs.converged).sum() <= 5
    assert pairs.miss_probability < 1e-3 and torch.equal(rng, torch.get_rng_state())
    true = (op.matmat(pairs.vectors) - pairs.values[:, None] * pairs.vectors).norm(dim=1)
    assert (true <= 1.1 * pairs.residuals + 1e-12 * kept.abs().max()).all()  # up to the rounding of the products
    A = op.to_dense()
    rebuilt = (pairs.vectors.T * pairs.values) @ pairs.vectors
    assert (rebuilt - A).norm() <= 1e-7 * A.norm()  # nothing of weight is missing


@pytest.mark.parametrize("seed", range(3))
def test_single_precision(seed):
    "What is rounding of the products is not taken for eigenvalues, and it is said where that begins."
    model, op = trained("gauss", (20, 20), 12, 100, seed)
    single = HessianOperator(Objective(model, op.objective_data, dtype=torch.float32))
    A = single.to_dense().double()  # in the precision of its products
    values = torch.linalg.eigvalsh(A)
    size, rtol = values.abs() / values.abs().max(), torch.finfo(torch.float32).eps ** (2 / 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pairs = nonzero_eigenpairs(single, generator=seeded(seed))
    said = [float(str(w.message).split("exact to ")[1].split()[0]) for w in caught if "exact to" in str(w.message)]
    cut = max([rtol, *said])
    assert (size > 1.5 * cut).sum() <= len(pairs) <= (size > cut / 1.5).sum() and pairs.vectors.dtype == torch.float32
    top = values[values.abs().argsort(descending=True)].abs()[:len(pairs)]
    assert ((pairs.values.abs() - top).abs() <= cut * top[0]).all()
    true = (pairs.vectors.double() @ A - pairs.values[:, None] * pairs.vectors.double()).norm(dim=1)
    assert (true <= 2 * pairs.residuals + cut * top[0]).all() and not pairs.converged.all()
    assert pairs.stopped == "precision"


@pytest.mark.parametrize("rank, tail", [(30, 0.), (30, 3e-9)])
def test_single_precision_spectra(rank, tail):
    values = np.r_[10. ** -np.linspace(0, 3, rank), np.full(500, tail)]
    for seed in range(3):
        with pytest.warns(UserWarning, match="rounding floor of torch.float32; refine in double precision"):
            pairs = nonzero_eigenpairs(prescribed(values, seed, torch.float32), generator=seeded(seed))
        assert len(pairs) == rank and (pairs.values - torch.as_tensor(values[:rank])).abs().max() < 1e-6
        assert pairs.miss_probability <= 1e-3
        with quiet():
            assert nonzero_eigenpairs(prescribed(values, seed, torch.float32), rtol=1e-4, tol=1e-2,
                                      generator=seeded(seed)).converged.all()


def test_seeds():
    values = np.r_[10. ** -np.linspace(0, 7, 40), np.zeros(300)]
    op = prescribed(values)
    a, b, c = (nonzero_eigenpairs(op, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(a.values, b.values) and torch.equal(a.vectors, b.vectors)
    assert not torch.equal(a.vectors, c.vectors)
    assert torch.equal(nonzero_eigenpairs(op).values, nonzero_eigenpairs(op, generator=seeded(0)).values)


def test_few_products():
    "A basis as large as the rank, one block to begin with and less than one of rounding, sixteen for the test."
    values = np.r_[np.linspace(1, 2, 150), np.zeros(850)]
    pairs = nonzero_eigenpairs(prescribed(values))
    assert pairs.n_matvecs <= 150 + 2 * 64 and pairs.n_certify == 16
    op = prescribed(10. ** -np.linspace(0, 40, 800))
    loose, sharp = (nonzero_eigenpairs(op, rtol=1e-4, tol=tol) for tol in (1e-2, 1e-9))
    assert len(loose) == len(sharp) == 80 and loose.n_matvecs < sharp.n_matvecs


# what may be missing


class Blind(Blocks):
    "The first block does not see the last eigenvector."
    hidden = None
    def gaussian(self, k):
        W = super().gaussian(k)
        return W - (W @ self.hidden)[:, None] * self.hidden if not self.budget.used else W


@pytest.mark.parametrize("size", [1., -1., 1e-7, -3e-8])
@pytest.mark.parametrize("tail", [0., 3e-9])
def test_what_the_start_does_not_see_is_found(monkeypatch, size, tail):
    values = np.r_[np.linspace(1, 2, 20), np.full(300, tail), size]
    A = torch.diag(torch.as_tensor(values))
    Blind.hidden = torch.eye(len(values), dtype=F64)[-1]
    monkeypatch.setattr(lowrank, "RangeSearch", Blind)
    for seed in range(5):
        op = Users(MatrixOperator(A))
        check(op, values, nonzero_eigenpairs(op, generator=seeded(seed)), products=op.n_matvecs)
    assert len(nonzero_eigenpairs(MatrixOperator(A), miss_probability=1)) == 20  # without the test it is not


def state(A, rows, rtol):
    "A search whose basis are these rows, multiplied."
    op = MatrixOperator(A)
    search = RangeSearch(op, rtol, 1e-6, 8, len(A), seeded(0), Budget())
    search.space.queue(rows)
    search.space.expand()
    search.space.scale = 1.
    search.look()
    return search


def test_a_value_below_the_threshold_may_be_above_it():
    "A Ritz value with a residual that reaches over the threshold keeps the search going."
    A, rows = torch.diag(torch.tensor([1., .6, 0., 0.], dtype=F64)), torch.eye(4, dtype=F64)[:2]
    rows[1, 1:3] = torch.tensor([.9, math.sqrt(.19)], dtype=F64)
    search = state(A, rows, .5)
    assert search.values[0] < .5 and not search.look()
    assert state(A, torch.eye(4, dtype=F64)[:2], .5).look()


def test_the_bound_is_a_bound():
    "One eigenvalue just beyond the threshold, outside of the basis: a bound below alpha is as rare as alpha."
    A = torch.diag(torch.tensor([1., .5001, .1, -.1, 0., 0.], dtype=F64))
    logs = []
    for seed in range(1500):
        search = state(A, torch.eye(6, dtype=F64)[:1], .5)
        search.generator = seeded(seed)
        logs.append(bound_by_block(search, 2)[0])
    p = torch.tensor(logs).exp()
    for alpha in (.02, .1, .3): assert (p <= alpha).double().mean() <= alpha + 3 * math.sqrt(alpha / 1500)
    assert (p <= .9).double().mean() > .5  # and it is not trivial


@pytest.mark.parametrize("sign", [1, -1])
def test_a_coupling_is_seen(sign):
    "The remainder is zero, and so is the projection, but together they have eigenvalues of size one."
    A = torch.zeros(6, 6, dtype=F64)
    A[0, 1] = A[1, 0] = 1.
    A[2, 2] = sign
    search = state(A, torch.eye(6, dtype=F64)[[0, 2]], .5)
    assert len(search.space.pending) == 1 and not search.values.abs().gt(2).any()
    assert bound_by_block(search, 4)[0] > math.log(1e-3)


def test_both_signs_are_tested():
    for sign in (1, -1):
        search = state(torch.diag(torch.tensor([1., sign * .9, 0., 0.], dtype=F64)), torch.eye(4, dtype=F64)[:1], .5)
        assert bound_by_block(search, 3)[0] > math.log(1e-3)
        assert bound_by_chains(search, 1e-3, 64) == 1
    nothing_left = state(torch.diag(torch.tensor([1., 0., 0., 0.], dtype=F64)), torch.eye(4, dtype=F64)[:1], .5)
    assert 0 < bound_by_chains(nothing_left, 1e-3, 64) < 1e-12  # a chain that ends at rounding does not claim certainty


def test_chains_certify_a_tail():
    "A flat tail of many eigenvalues is too long for norms; a chain sees that each is below the threshold."
    values = np.r_[np.linspace(1, 5, 12), np.linspace(-1, 1, 1500) * 4.5e-3]
    op = prescribed(values)
    with quiet(): pairs = nonzero_eigenpairs(op, rtol=1e-3)
    check(op, values, pairs, 1e-3, pairs.n_matvecs + pairs.n_certify)
    assert pairs.miss_probability > 0 and pairs.n_matvecs < 500


def test_attempts_share_the_goal(monkeypatch):
    "The j-th attempt counts j (j + 1) times."
    bounds = iter([6e-4, 1e-4, 1e-4])
    test = bound_by_block
    monkeypatch.setattr(lowrank, "bound_by_block", lambda search, k: (math.log(next(bounds)), test(search, k)[1]))
    op = prescribed(np.r_[np.linspace(1, 2, 9), np.zeros(200)])
    assert nonzero_eigenpairs(op).miss_probability == pytest.approx(6e-4)  # 1.2e-3 at first, which is above the goal
    assert nonzero_eigenpairs(op).miss_probability == pytest.approx(2e-4)


@pytest.mark.parametrize("norms, sigma, p", [([1., .2], 1., .6826894921 ** 2), ([0.], 1., 0.), ([3.], 1.5, .9544997361),
                                             ([1e9] * 5, 1., 1.)])
def test_escape_probability(norms, sigma, p):
    assert math.exp(log_escape_probability(torch.tensor(norms, dtype=F64), sigma)) == pytest.approx(p, rel=1e-8)


# what does not fit, and bad input


def test_too_little_memory():
    values = np.r_[np.linspace(1, 2, 150), np.zeros(600)]
    op = prescribed(values)
    message = (r"at least (\d+) of 750 eigenvalues are beyond rtol=1e-08, and basis_bytes=.* holds 100 vectors.*"
               "raise basis_bytes .*raise rtol, or ask top_eigenpairs")
    with pytest.raises(ValueError, match=message) as e:
        nonzero_eigenpairs(op, basis_bytes=2 * 100 * 750 * 8)
    assert 30 <= int(str(e.value).split()[2]) <= 100
    check(op, values, nonzero_eigenpairs(op, basis_bytes=2 * 200 * 750 * 8))
    with pytest.raises(ValueError,
                       match="holds 15 vectors of 750 numbers and their products; at least 16 are needed: raise it"):
        nonzero_eigenpairs(op, basis_bytes=2 * 16 * 750 * 8 - 1)


def test_memory_is_bounded(monkeypatch):
    held, append = [], Basis.append
    monkeypatch.setattr(Basis, "append", lambda self, rows: (append(self, rows), held.append(len(self.storage)))[0])
    values = np.r_[np.linspace(1, 2, 150), np.zeros(600)]
    nonzero_eigenpairs(prescribed(values), basis_bytes=2 * 200 * 750 * 8)
    assert 150 <= max(held) <= 200


def test_half_of_the_space_goes_dense(monkeypatch):
    values = np.r_[np.linspace(1, 2, 70), np.zeros(50)]
    op, calls = prescribed(values), []
    monkeypatch.setattr(lowrank, "solve_dense", lambda *args: (calls.append(1), solve_dense(*args))[1])
    check(op, values, nonzero_eigenpairs(op), products=op.n_matvecs)
    assert calls == [1]
    low = np.r_[np.linspace(1, 2, 20), np.zeros(100)]
    nonzero_eigenpairs(prescribed(low))
    assert calls == [1]
    op = prescribed(values)
    check(op, values, nonzero_eigenpairs(op, basis_bytes=2 * 120 * 120 * 8 - 2 * 120 * 8 * 10))  # the matrix fits
    assert calls == [1, 1]


@pytest.mark.parametrize("kwargs, message", [
    (dict(rtol=1e-15), r"rtol must be at least 2.2e-14 \(100 eps of torch.float64: smaller eigenvalues are rounding\) "
                       "and below 1, got 1e-15"),
    (dict(rtol=1.), "below 1, got 1.0"), (dict(rtol=math.nan), "got nan"), (dict(rtol=-1.), "got -1"),
    (dict(tol=0), "tol must be positive"), (dict(tol=1.), "tol must be below 1"),
    (dict(block_size=0), "block_size must be at least 1, got 0"),
])
def test_bad_arguments(kwargs, message):
    op = prescribed(np.ones(20))
    with pytest.raises(ValueError, match=message): nonzero_eigenpairs(op, **kwargs)
    assert op.n_matvecs == 0


def test_bad_operators():
    for wrong in (torch.eye(3), nn.Linear(2, 2), None, "H"):
        with pytest.raises(TypeError, match="expected an operator, got .*: wrap a symmetric matrix in MatrixOperator"):
            nonzero_eigenpairs(wrong)
    op = Users(prescribed(np.ones(40)))
    op.matmat = lambda V: V * math.nan
    with pytest.raises(ValueError, match="a product with the operator is NaN or infinite"): nonzero_eigenpairs(op)
    later, calls = Users(prescribed(np.r_[np.linspace(1, 2, 20), np.zeros(300)])), []
    later.matmat = lambda V: (calls.append(1), later.op.matmat(V) * (1 if len(calls) < 2 else math.inf))[1]
    with pytest.raises(ValueError, match="NaN or infinite"): nonzero_eigenpairs(later)


def test_progress():
    op, seen = prescribed(np.r_[np.linspace(1, 2, 150), np.zeros(600)]), []
    pairs = nonzero_eigenpairs(op, progress=lambda products, found: seen.append((products, found)))
    assert seen[-1][0] == pairs.n_matvecs + pairs.n_certify and seen[-1][1] == 150 and sorted(seen) == seen
    assert pairs.stopped == "converged"
    for stop in (1, 100, 200):
        with pytest.warns(UserWarning, match=r"the search was stopped after \d+ products: \d+ pairs are there"):
            pairs = nonzero_eigenpairs(op, progress=lambda products, found: products >= stop)
        assert isinstance(pairs, EigenPairs) and pairs.stopped == "halted" and pairs.miss_probability == 1
        assert len(pairs) < 151 and "halted" in repr(pairs)


def test_an_empty_result_is_a_result():
    pairs = nonzero_eigenpairs(MatrixOperator(torch.zeros(30, 30)))
    assert len(pairs) == 0 and pairs.vectors.shape == (0, 30) and pairs.relative_residuals.shape == (0,)
    assert "0/0" in repr(pairs)


def test_products_that_are_not_exact():
    "Noise in the products shows in their asymmetry; what lies below it is not returned, with a warning."
    class Noisy(Users):
        def matmat(self, V): return super().matmat(V) + 1e-6 * randn(*V.shape, seed=self.n_matvecs)
    values = np.r_[np.linspace(1, 2, 20), [1e-7] * 10, np.zeros(270)]
    for seed in range(3):
        op = Noisy(prescribed(values, seed))
        message = r"products are exact to \de-0[456] of the largest eigenvalue, so that takes the place of rtol=1e-08"
        with pytest.warns(UserWarning, match=message):
            pairs = nonzero_eigenpairs(op, generator=seeded(seed))
        assert len(pairs) == 20 and pairs.n_matvecs < 150


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_large_spectra(seed):
    for name, values, kwargs in spectra(2000, seed):
        if name in ("huge", "tiny", "full rank"): continue
        op = prescribed(values, seed)
        with quiet():
            check(op, values, nonzero_eigenpairs(op, generator=seeded(seed), **kwargs), kwargs.get("rtol", 1e-8),
                  value_atol=1e-12)
