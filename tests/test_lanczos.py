"Eigenpairs of matrices whose spectrum is prescribed: right, complete, orthonormal, and honest about what is missing."
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import eigsh
from torch.testing import assert_close

from conftest import F64, prescribed, quiet, randn, seeded, untouched
from hessnb.curvature.basis import Basis
from hessnb.curvature.completeness import log_miss_probability
from hessnb.curvature.eigenpairs import EigenPairs, criterion, dense_eigenpairs, wanted
from hessnb.curvature.krylov import tridiagonalize
from hessnb.curvature.operator import MatrixOperator, Operator
from hessnb.curvature.top import eigenpairs_until, refine, top_eigenpairs

WHICH = ["LA", "SA", "LM", "BE"]
FLOOR = "rounding floor"  # exact zeros of a singular matrix cannot reach a relative tolerance


def diagonal(values, dtype=F64): return MatrixOperator(torch.diag(torch.as_tensor(np.asarray(values), dtype=dtype)))


def spectra(n, seed):
    rng = np.random.default_rng(seed)
    bulk = lambda m: rng.uniform(-1, 1, max(0, m))
    yield "gaps", np.r_[10. * 2. ** -np.arange(8), .01 * bulk(n - 8)][:n]
    yield "repeats", np.r_[[5.] * 5, [4.] * 3, [3.] * 2, bulk(n - 10)][:n]
    yield "clusters", np.r_[5 + 1e-8 * np.arange(5), 4 + 1e-4 * np.arange(4), bulk(n - 9)][:n]
    yield "all equal", np.full(n, -2.)
    yield "indefinite", 3 * bulk(n)
    yield "mirrored", np.r_[[3., -3., 2., -2., 2., -2.], bulk(n - 6)][:n]
    yield "rank deficient", np.r_[rng.normal(size=6), np.zeros(max(0, n - 6))][:n]
    yield "repeated bulk", np.r_[[2.] * 3, [1.] * (n // 2), [-1.] * max(0, n - 3 - n // 2)][:n]
    yield "bulk touches", np.r_[[1.05] * 5, bulk(n - 5)][:n]
    yield "negative repeats", -np.r_[[5.] * 5, [4.] * 3, bulk(n - 8)][:n]


def check(op, values, pairs, k, which, value_atol=1e-8, products=None):
    "Everything that a float64 result with tol 1e-9 promises."
    want = torch.as_tensor(np.asarray(values, dtype=float))
    want = want[wanted(want, k, which)]
    scale = float(np.abs(values).max()) or 1.
    size = torch.abs if which == "LM" else torch.clone  # +1 and -1 are a tie there
    assert len(pairs) == k and pairs.vectors.shape == (k, op.shape[0])
    assert pairs.values.dtype == pairs.residuals.dtype == F64
    assert ((size(pairs.values) - size(want)).abs() <= value_atol * scale).all(), (pairs.values, want)
    assert (pairs.vectors @ pairs.vectors.T - torch.eye(k, dtype=F64)).abs().max() <= 1e-10
    true = (pairs.vectors @ op.A - pairs.values[:, None] * pairs.vectors).norm(dim=1)
    goal = 1e-9 * pairs.values.abs().clamp_min(2.2e-16 ** (2 / 3) * scale)  # what the checks saw is added in its unit
    assert ((true - pairs.residuals).abs() <= 1e-3 * true + 1e-13 * scale + .01 * goal).all()
    eps = torch.finfo(F64).eps
    goal = criterion(pairs.values, max(scale, pairs.values.abs().max().item()), pairs.tol, eps)
    assert torch.equal(pairs.converged, pairs.residuals <= goal) or pairs.miss_probability == 0
    assert (pairs.converged | (pairs.residuals <= 1e-13 * scale)).all()
    assert pairs.which == which and 0 <= pairs.miss_probability <= 1
    if products is not None: assert products == pairs.n_matvecs + pairs.n_certify


def sweep(n, seed, ks, whichs=WHICH):
    for name, values in spectra(n, seed + n):
        op = prescribed(values, seed)
        for k in ks:
            for which in whichs:
                before = op.n_matvecs
                with quiet(FLOOR): pairs = top_eigenpairs(op, k, which=which, tol=1e-9, generator=seeded(seed))
                check(op, values, pairs, k, which, products=op.n_matvecs - before)
                assert pairs.miss_probability <= 1e-3, (name, pairs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [5, 8, 12, 30])
def test_small_spectra(n, seed): sweep(n, seed, sorted({1, 2, 3, n // 3 or 1, n - 1, n}))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_spectra(seed): sweep(100, seed, [1, 5, 12])


@pytest.mark.parametrize("which", WHICH)
def test_larger_spectra(which): sweep(400, 0, [6], [which])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [100, 400, 2000])
def test_large_sweep(n, seed):
    sweep(n, seed, {100: [1, 3, 10, 20, 33, 40, 100], 400: [1, 3, 10, 20], 2000: [10]}[n],
          WHICH if n < 2000 else ["LA", "BE"])


eigenvalue = st.one_of(st.sampled_from([0., 1., -1., 2., 5.]), st.floats(-10, 10).map(lambda v: round(v, 6)))
copies = st.lists(st.tuples(eigenvalue, st.integers(1, 5)), min_size=1, max_size=12)
spectrum = copies.map(lambda runs: np.repeat([v for v, _ in runs], [m for _, m in runs]))


@settings(max_examples=80)
@given(spectrum, st.data())
@example(np.repeat([1., 0.], [5, 30]), None)
def test_any_spectrum(values, data):
    n = len(values)
    request = st.tuples(st.integers(1, n), st.sampled_from(WHICH), st.integers(0, 99))
    k, which, seed = (3, "LA", 0) if data is None else data.draw(request)
    op = prescribed(values, seed)
    with quiet(FLOOR):
        pairs = top_eigenpairs(op, k, which=which, tol=1e-9, miss_probability=1e-6, generator=seeded(seed))
    check(op, values, pairs, k, which)


@settings(max_examples=60)
@given(spectrum.filter(lambda v: len(v) >= 20), st.data())
def test_any_spectrum_restarted(values, data):
    "With a basis that barely fits; where completeness was not certified, the bound has to say so."
    n = len(values)
    k, which, seed = data.draw(st.integers(1, n // 4)), data.draw(st.sampled_from(WHICH)), data.draw(st.integers(0, 99))
    capacity = data.draw(st.integers(min(n, k + 12), n))
    op = prescribed(values, seed)
    with quiet(FLOOR, "miss_probability"):
        pairs = top_eigenpairs(op, k, which=which, tol=1e-9, miss_probability=1e-6, basis_bytes=capacity * n * 8,
                               generator=seeded(seed))
    check(op, values, pairs, k, which, value_atol=1e-8 if pairs.miss_probability <= 1e-6 else math.inf)


def test_same_as_arpack():
    values = np.r_[[7., 6., 6., 5., 4.9], np.linspace(-2, 1, 295)]
    op = prescribed(values)
    for which in WHICH:
        theirs = np.sort(eigsh(op.to_scipy(), k=6, which=which, tol=1e-12, v0=np.ones(300), return_eigenvectors=False))
        assert_close(top_eigenpairs(op, 6, which=which, tol=1e-10).values.sort().values, torch.from_numpy(theirs),
                     rtol=1e-10, atol=1e-10)


def test_order_and_signs():
    values = torch.tensor([1., -5., 3., 2., -4.])
    expected = {"LA": [3, 2, 1, -4, -5], "SA": [-5, -4, 1, 2, 3], "LM": [-5, -4, 3, 2, 1]}
    for which, order in expected.items():
        for k in range(1, 6): assert values[wanted(values, k, which)].tolist() == order[:k]
    both = [[3], [3, -5], [3, 2, -5], [3, 2, -4, -5], [3, 2, 1, -4, -5]]
    assert [values[wanted(values, k, "BE")].tolist() for k in (1, 2, 3, 4, 5)] == both
    solved = {"LA": [3, 2, 1, .1], "SA": [-5, -4, .1, .1], "LM": [-5, -4, 3, 2], "BE": [3, 2, -4, -5]}
    for which, order in solved.items():
        pairs = top_eigenpairs(diagonal([1., -5., 3., 2., -4.] + [.1] * 30), 4, which=which)
        assert [round(v, 6) for v in pairs.values.tolist()] == order


def test_no_ghosts_after_many_steps():
    "An isolated eigenvalue converges early; without reorthogonalisation it would come back again and again."
    values = np.r_[1e4, 10., np.linspace(-1, 1, 298)]
    pairs = top_eigenpairs(prescribed(values), 12, tol=1e-11)
    check(prescribed(values), values, pairs, 12, "LA")
    assert (pairs.values > 5).sum() == 2


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("seed", range(3))
def test_thick_restart_gives_the_same(which, seed):
    values = np.r_[[7., 5., 4., -4.5, -6.], np.linspace(-1, 1, 195)]
    op = prescribed(values, seed)
    free = top_eigenpairs(op, 4, which=which, tol=1e-9)
    with quiet("miss_probability"):
        tight = top_eigenpairs(op, 4, which=which, tol=1e-9, basis_bytes=30 * 200 * 8, generator=seeded(seed))
    check(op, values, tight, 4, which)
    assert_close(tight.values, free.values, rtol=1e-12, atol=1e-12)
    assert_close((tight.vectors * free.vectors).sum(1).abs(), torch.ones(4, dtype=F64), rtol=0, atol=1e-8)


def test_basis_stays_within_its_bytes(monkeypatch):
    held, append = [], Basis.append
    monkeypatch.setattr(Basis, "append", lambda self, rows: (append(self, rows), held.append(len(self.storage)))[0])
    op = prescribed(np.r_[[7., 6., 6., 5.], np.linspace(-1, 1, 196)])
    with quiet("miss_probability"): pairs = top_eigenpairs(op, 4, basis_bytes=20 * 200 * 8)
    assert max(held) <= 20 and pairs.n_matvecs > 25


@pytest.mark.parametrize("seed", range(3))
def test_goal_that_was_not_reached_is_said(seed):
    op = diagonal(np.r_[[1.1] * 3, np.random.default_rng(0).uniform(-1, 1, 297)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pairs = top_eigenpairs(op, 3, tol=1e-4, basis_bytes=16 * 300 * 8, generator=seeded(seed))
    assert pairs.miss_probability <= 1e-3 or any("miss_probability" in str(w.message) for w in caught)
    assert pairs.miss_probability > 1e-3 or (pairs.values - 1.1).abs().max() < 1e-6


class TestStart:
    values = np.r_[9., 8., 7., np.linspace(-1, 1, 97)]

    def test_blind_start(self):
        op, e = diagonal(self.values), torch.eye(100, dtype=F64)
        for start in (e[0], e[:1], e[[0, 2]], e[5], e[[50, 2]]):
            assert_close(top_eigenpairs(op, 2, start=start).values, torch.tensor([9., 8.], dtype=F64))
            assert_close(top_eigenpairs(op, 3, start=start).values, torch.tensor([9., 8., 7.], dtype=F64))

    def test_good_start_is_cheaper(self):
        op = prescribed(np.r_[9., 8., 7., np.linspace(-6, 6, 297)])
        cold = top_eigenpairs(op, 3, tol=1e-8)
        warm = top_eigenpairs(op, 3, tol=1e-6, start=cold.vectors)
        assert warm.n_matvecs <= 6 < cold.n_matvecs and warm.converged.all()

    @pytest.mark.parametrize("start", [randn(100).half(), randn(100).float(), randn(100), randn(1, 100),
                                       torch.ones(60, 100), torch.ones(100).long(),
                                       torch.stack([torch.zeros(100), randn(100)]), torch.eye(100)])
    def test_shapes_and_dtypes(self, start):
        op = prescribed(self.values)
        with untouched(tensors=[start, op.A]): pairs = top_eigenpairs(op, 3, start=start, tol=1e-9)
        check(op, self.values, pairs, 3, "LA")

    @pytest.mark.parametrize("start, error, message", [
        (torch.zeros(100), ValueError, "start must be finite and not zero"),
        (torch.full((100,), float("nan")), ValueError, "finite"),
        (torch.ones(99), ValueError, "start must have shape (100,) or (j, 100), got (99,)"),
        (torch.ones(1, 1, 100), ValueError, "got (1, 1, 100)"),
        (np.ones(100), TypeError, "start must be a tensor, got ndarray; pass pairs.vectors"),
        ("random", TypeError, "got str")])
    def test_refused(self, start, error, message):
        op = prescribed(self.values)
        with pytest.raises(error) as e: top_eigenpairs(op, 3, start=start)
        assert message in str(e.value) and op.n_matvecs == 0

    def test_start_with_gradient(self):
        assert not top_eigenpairs(prescribed(self.values), 3, start=randn(100).requires_grad_()).vectors.requires_grad

    def test_checked_for_many_pairs_too(self):
        with pytest.raises(TypeError, match="start must be a tensor"):
            top_eigenpairs(prescribed(self.values), 50, start="random")
        op = prescribed(self.values)
        with pytest.warns(UserWarning, match="max_matvecs"): top_eigenpairs(op, 40, max_matvecs=50)
        assert op.n_matvecs <= 90


@pytest.mark.parametrize("budget", [8, 15, 30])
def test_budget(budget):
    values = np.r_[[10., 9., 9.], np.linspace(-8, 8, 297)]
    op = prescribed(values)
    message = rf"of 8 eigenpairs are above tol=1e-06.*ran out after {budget} products: raise it, or pass start=pairs"
    with pytest.warns(UserWarning, match=message) as caught:
        pairs = top_eigenpairs(op, 8, max_matvecs=budget)
    assert caught[0].filename == __file__ and len(caught) == 1
    assert pairs.stopped == "budget" and not pairs.converged.all() and pairs.n_matvecs == budget
    assert op.n_matvecs == budget + 1 and pairs.miss_probability == 1
    assert "stopped: budget" in repr(pairs) and f"{int(pairs.converged.sum())}/8 converged" in repr(pairs)
    again = top_eigenpairs(op, 8, start=pairs.vectors, tol=1e-9)
    check(op, values, again, 8, "LA")


def test_float32_floor_and_refinement():
    values = np.r_[[10., 9., 9., 4.], np.linspace(-1, 1, 196)]
    single, double = prescribed(values, dtype=torch.float32), prescribed(values)
    message = r"rounding floor of torch.float32; .*: hessnb.curvature.top.refine\(pairs, float64_operator\)"
    with pytest.warns(UserWarning, match=message):
        coarse = top_eigenpairs(single, 4, tol=1e-9)
    assert coarse.stopped == "precision" and not coarse.converged.any() and coarse.vectors.dtype == torch.float32
    assert coarse.values.dtype == F64
    assert (coarse.residuals / coarse.values < 1e-5).all() and "stopped: precision" in repr(coarse)
    fine = refine(coarse, double)
    check(double, values, fine, 4, "LA")
    assert fine.converged.all() and fine.tol == 1e-9 and fine.n_matvecs < top_eigenpairs(double, 4, tol=1e-9).n_matvecs
    assert refine(coarse, double, tol=1e-4).tol == 1e-4
    with quiet(): assert top_eigenpairs(single, 4, tol=1e-4).converged.all()


@pytest.mark.parametrize("which", ["SA", "LM", "BE"])
def test_refine_keeps_which(which):
    op = prescribed(np.r_[[10., 9.], np.linspace(-1, 1, 96), [-8., -9.5]])
    pairs = top_eigenpairs(op, 4, which=which, tol=1e-3)
    assert refine(pairs, op, tol=1e-10).which == which
    fine = top_eigenpairs(op, 4, which=which, tol=1e-10)
    assert_close(refine(pairs, op, tol=1e-10).values, fine.values, rtol=1e-9, atol=1e-9)


def test_repeatable_and_seeded():
    op = prescribed(np.r_[[10., 9., 9., 4.], np.linspace(-1, 1, 196)])
    with untouched(): a, b = top_eigenpairs(op, 4), top_eigenpairs(op, 4)
    assert torch.equal(a.vectors, b.vectors) and a.n_matvecs == b.n_matvecs
    one, two = top_eigenpairs(op, 4, generator=seeded(5)), top_eigenpairs(op, 4, generator=seeded(5))
    assert torch.equal(one.vectors, two.vectors) and not torch.equal(one.vectors, a.vectors)


def test_scale_does_not_matter():
    values = np.r_[[10., 9., 9., 4.], np.linspace(-1, 1, 96)]
    for scale in (1e-30, 1e-8, 1., 1e30):
        op = diagonal(values * scale)
        check(op, values * scale, top_eigenpairs(op, 5, tol=1e-9), 5, "LA")


@pytest.mark.parametrize("values", [[2.] * 40, [5.] + [0.] * 39, [0.] * 40, [3.], list(range(20)), [1e-300] * 10])
def test_degenerate(values):
    op = diagonal(values)
    for k in sorted({1, min(4, len(values)), len(values)}):
        with quiet(FLOOR): pairs = top_eigenpairs(op, k, tol=1e-10)
        assert_close(pairs.values, torch.tensor(sorted(values, reverse=True)[:k], dtype=F64), rtol=0, atol=1e-12)
        assert_close(pairs.vectors @ pairs.vectors.T, torch.eye(k, dtype=F64), rtol=0, atol=1e-12)


def test_dense_eigenpairs():
    values = np.r_[[3., 3., -5.], np.linspace(-1, 1.1, 37)]
    op = prescribed(values)
    for which in WHICH:
        for k in (None, 1, 7):
            pairs = dense_eigenpairs(op, k, which=which, tol=1e-9)
            check(op, values, pairs, k or 40, which)
            assert pairs.n_matvecs == 40 and pairs.n_certify == 0 and pairs.miss_probability == 0
    with pytest.raises(ValueError, match="dense 40 x 40 .* GiB, above max_bytes"): dense_eigenpairs(op, max_bytes=1000)


class Bare:
    "No more than the protocol."
    def __init__(self, A):
        self.A, self.shape, self.dtype, self.device, self.n_matvecs = A, tuple(A.shape), A.dtype, A.device, 0
    def matvec(self, v): self.n_matvecs += 1; return self.A @ v
    def matmat(self, V): return torch.stack([self.matvec(v) for v in V])


def test_an_operator_of_the_users():
    values = np.r_[[3., 3., -5.], np.linspace(-1, 1, 37)]
    check(prescribed(values), values, top_eigenpairs(Bare(prescribed(values).A), 5, tol=1e-9), 5, "LA")


def test_all_pairs_of_an_operator_of_the_users():
    values = np.linspace(-1, 1, 20)
    check(prescribed(values), values, top_eigenpairs(Bare(prescribed(values).A), 15, tol=1e-9), 15, "LA")


def test_products_that_are_not_finite():
    class Broken(Operator):
        def apply(self, v): return v / 0
    with pytest.raises(ValueError, match="product with the operator is NaN or infinite"):
        top_eigenpairs(Broken(50, F64, "cpu"), 3)


def test_results_are_frozen_and_short():
    pairs = top_eigenpairs(prescribed(np.arange(60.)), 10)
    with pytest.raises(AttributeError): pairs.tol = 1.
    assert isinstance(pairs, EigenPairs) and len(pairs) == 10 and len(repr(pairs)) < 300
    assert "10/10 converged" in repr(pairs)


class TestTridiagonalize:
    @pytest.mark.parametrize("m", [1, 5, 20, 60, 100])
    def test_factorisation(self, m):
        op = prescribed(np.linspace(-2, 3, 60))
        before = op.n_matvecs
        f = tridiagonalize(op, randn(60), m)
        steps = min(m, 60)
        assert op.n_matvecs - before == steps and f.alpha.shape == (steps,) and f.beta.shape == (steps - 1,)
        assert f.basis.shape == (steps, 60)
        assert_close(f.basis @ f.basis.T, torch.eye(steps, dtype=F64), rtol=0, atol=1e-12)
        T = torch.diag(f.alpha) + torch.diag(f.beta, 1) + torch.diag(f.beta, -1)
        rest = f.basis @ op.A - T @ f.basis
        assert rest[:-1].abs().max() < 1e-12 if steps > 1 else True
        assert abs(rest[-1].norm().item() - f.beta_last) < 1e-12 and (f.beta > 0).all()

    def test_breakdown_is_exact(self):
        f = tridiagonalize(diagonal(np.repeat([3., 1., -1.], 20)), randn(60), 30)
        assert f.alpha.shape == (3,) and f.beta_last == 0
        assert_close(torch.linalg.eigvalsh(torch.diag(f.alpha) + torch.diag(f.beta, 1) + torch.diag(f.beta, -1)),
                     torch.tensor([-1., 1., 3.], dtype=F64))

    def test_zero_start(self):
        with pytest.raises(ValueError, match="start vector is zero"):
            tridiagonalize(diagonal([1., 2.]), torch.zeros(2, dtype=F64), 2)

    @pytest.mark.parametrize("start, n_steps, error", [
        (torch.ones(60), 5, TypeError), (torch.ones(6, dtype=F64), 5, ValueError), (np.ones(60), 5, TypeError),
        (randn(60), -1, ValueError)])
    def test_refused(self, start, n_steps, error):
        with pytest.raises(error, match="start must|n_steps must"):
            tridiagonalize(prescribed(np.arange(60.)), start, n_steps)


def bulk(n): return np.random.default_rng(0).uniform(-1, 1, n)


class TestCompleteness:
    "What `miss_probability` claims."

    def test_bound_on_one_vector(self):
        "Hidden eigenvalue 2 above a bulk: the component of the start below the bound at most as often as said."
        values = torch.cat([torch.linspace(-1, 1, 199, dtype=F64), torch.tensor([2.], dtype=F64)])
        op, below, total = MatrixOperator(torch.diag(values)), 0, 0.
        for seed in range(150):
            w = randn(200, seed=seed)
            w[-1] *= 1e-3 if seed % 3 == 0 else 1  # some of them nearly blind
            f = tridiagonalize(op, w / w.norm(), 4)
            T = torch.diag(f.alpha) + torch.diag(f.beta, 1) + torch.diag(f.beta, -1)
            log_p = log_miss_probability(torch.linalg.eigvalsh(T), f.beta.log().sum().item() + math.log(f.beta_last),
                                         2., 1, 200)
            eta = math.exp(log_p - .5 * math.log(400 / math.pi))
            if log_p < 0: assert abs(w[-1] / w.norm()) <= eta * (1 + 1e-9)  # the algebra behind it is exact
            below, total = below + 1, total + math.exp(log_p)
        assert below == 150

    def test_reaching_beyond_sigma_is_no_proof(self):
        assert log_miss_probability(torch.tensor([1., 2.5], dtype=F64), -50., 2., 1, 100) == 0
        assert log_miss_probability(torch.tensor([-1., -2.5], dtype=F64), -50., -2., -1, 100) == 0

    def misses(self, values, k, which, goal, seeds, **kwargs):
        op, want = diagonal(values), torch.as_tensor(np.asarray(values))
        want, wrong = want[wanted(want, k, which)], 0
        for seed in seeds:
            pairs = top_eigenpairs(op, k, which=which, tol=1e-4, miss_probability=goal, generator=seeded(seed),
                                   **kwargs)
            assert pairs.converged.all() and pairs.miss_probability <= goal
            size = torch.abs if which == "LM" else torch.clone
            wrong += bool((size(pairs.values) - size(want)).abs().max() > 1e-2)
        return wrong

    @pytest.mark.parametrize("values, k, which, goal", [
        (np.r_[[2.] * 3, bulk(117)], 3, "LA", .1), (np.r_[2, 1.5, 1.5, bulk(117)], 4, "LA", .1),
        (np.r_[2, 2, -2, -2, bulk(116)], 4, "LM", .1), (np.r_[2, 2, -2, -2, bulk(116)], 4, "BE", .1)])
    def test_share_of_misses(self, values, k, which, goal):
        N = 60  # more of them, and other goals, below
        wrong = self.misses(values, k, which, goal, range(N))
        assert wrong <= goal * N + 3 * (goal * (1 - goal) * N) ** .5

    @pytest.mark.slow
    @pytest.mark.parametrize("goal", [.5, .1, .01])
    @pytest.mark.parametrize("values, k", [(np.r_[[2.] * 3, bulk(197)], 3), (np.r_[[1.1] * 3, bulk(197)], 3),
                                           (np.r_[np.repeat(2 + .1 * np.arange(10), 2), bulk(180)], 20)])
    def test_share_of_misses_many(self, values, k, goal):
        N = 600
        wrong = self.misses(values, k, "LA", goal, range(N))
        assert wrong <= goal * N + 3 * (goal * (1 - goal) * N) ** .5

    def test_without_the_probe_copies_are_missed(self):
        "The tests above would see a probe that does nothing."
        values, wrong = np.r_[[2.] * 3, bulk(117)], 0
        for seed in range(40):
            pairs = top_eigenpairs(diagonal(values), 3, tol=1e-4, miss_probability=1, generator=seeded(seed))
            assert pairs.miss_probability == 1
            wrong += bool(pairs.values.min() < 1.9)
        assert wrong > 20

    @pytest.mark.parametrize("gap", [1e-5, 3e-5, 1e-4])
    def test_single_eigenvalue_just_above_a_huge_multiplicity(self, gap):
        op = diagonal(np.r_[1 + gap, np.ones(2999)])
        for seed in range(5):
            assert abs(top_eigenpairs(op, 1, generator=seeded(seed)).values[0].item() - 1 - gap) <= 8e-6

    def test_values_are_as_good_as_tol_says(self):
        values = np.r_[[1.04] * 3, np.random.default_rng(0).uniform(-.8, 1., 1000)]
        for seed in range(5):
            pairs = top_eigenpairs(diagonal(values), 3, tol=1e-2, generator=seeded(seed))
            assert (pairs.values - 1.04).abs().max() <= 2e-2


@pytest.mark.gpu
def test_on_a_gpu():
    values = np.r_[[5.] * 3, [4., 3.], np.linspace(-1, 1, 395)]
    op = MatrixOperator(prescribed(values).A.cuda())
    pairs = top_eigenpairs(op, 6, tol=1e-9, generator=torch.Generator("cuda").manual_seed(0))
    assert pairs.vectors.is_cuda and pairs.values.device.type == "cpu"
    check(MatrixOperator(op.A.cpu()), values, EigenPairs(**{**vars(pairs), "vectors": pairs.vectors.cpu()}), 6, "LA")


class TestHalted:
    "A search that the caller ends by `progress`."
    VALUES = [9., 7., 7., 5., 3.] + [.01 * i for i in range(195)]

    def test_what_was_found_is_certified(self):
        op = prescribed(self.VALUES)
        pairs = top_eigenpairs(op, 5, progress=lambda products, found: found >= 2)
        assert pairs.stopped == "halted" and 2 <= len(pairs) < 5 and pairs.converged.all()
        assert pairs.miss_probability == 1
        assert (pairs.residuals <= 1e-6 * pairs.values).all()

    def test_nothing_found(self):
        with pytest.warns(UserWarning, match="was stopped after 1 products"):
            pairs = top_eigenpairs(prescribed(self.VALUES), 5, progress=lambda products, found: True)
        assert len(pairs) == 1 and pairs.stopped == "halted" and not pairs.converged.any() and pairs.n_matvecs == 1

    def test_during_the_probe(self):
        op = prescribed(self.VALUES)
        with quiet(): whole = top_eigenpairs(op, 5)
        last = whole.n_matvecs + 2
        with pytest.warns(UserWarning, match="completeness is not certified"):
            pairs = top_eigenpairs(op, 5, progress=lambda products, found: products >= last)
        assert len(pairs) == 5 and pairs.converged.all() and pairs.miss_probability > 1e-3
        assert pairs.n_matvecs + pairs.n_certify == last + 1

    def test_watching_changes_nothing(self):
        op, seen = prescribed(self.VALUES), []
        pairs = top_eigenpairs(op, 5, progress=lambda products, found: seen.append((products, found)))
        assert torch.equal(pairs.values, top_eigenpairs(op, 5).values) and pairs.stopped == "converged"
        assert [p for p, _ in seen] == list(range(1, pairs.n_matvecs + pairs.n_certify)) and seen[-1][1] == 5

    def test_as_many_as_it_takes(self):
        pairs = eigenpairs_until(prescribed(self.VALUES), lambda values, V: False, k=3,
                                 progress=lambda products, found: products >= 40)
        assert pairs.stopped == "halted" and pairs.n_matvecs == 40 and pairs.converged.all()
        assert pairs.miss_probability == 1
        with pytest.raises(KeyboardInterrupt):
            eigenpairs_until(prescribed(self.VALUES), lambda values, V: False,
                             progress=lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))


def test_a_dense_solver_that_gives_up_in_single_precision(monkeypatch):
    whole = torch.linalg.eigh
    def eigh(A):
        if A.dtype == torch.float32 and len(A) > 5: raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return whole(A)
    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    pairs = dense_eigenpairs(prescribed([5., 3., 2., 1., .5, .1], dtype=torch.float32), tol=1e-4)
    assert pairs.vectors.dtype == torch.float32 and pairs.converged.all() and "nothing missed" in repr(pairs)
    assert_close(pairs.values, torch.tensor([5., 3., 2., 1., .5, .1], dtype=F64), rtol=1e-5, atol=1e-5)
