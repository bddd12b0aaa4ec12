"Residuals that the space knows, confirmed by a few products: no pair is called converged that is not."
import math
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from conftest import F64, prescribed, seeded
from hessnb.curvature.certify import certify, discrepancy
from hessnb.curvature.eigenpairs import EigenPairs
from hessnb.curvature.operator import MatrixOperator
from hessnb.curvature.search import Budget, Outcome, Search, Target, find
from hessnb.curvature.top import eigenpairs_until, top_eigenpairs

SPECTRUM = np.r_[[9., 7., 7., 5., 3., 2.8], np.linspace(-.5, 1, 194)]
COARSE = dict(tol=1e-3, miss_probability=1)


@contextmanager
def silent():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Changed(MatrixOperator):
    "A matrix that is another one after so many products."
    def __init__(self, A, other, after):
        super().__init__(A)
        self.other, self.after = other, after
    def apply(self, v): return super().apply(v) if self.n_matvecs <= self.after else v @ self.other


class Rough(MatrixOperator):
    "Products with a relative error, another one each time."
    def __init__(self, A, error):
        super().__init__(A)
        self.error, self.g = error, seeded(5)
    def apply(self, v):
        w, noise = super().apply(v), torch.randn(v.shape, generator=self.g, dtype=F64)
        return w + self.error * w.norm() * noise / noise.norm()


def true_residuals(A, pairs):
    V = pairs.vectors.double()
    return (V @ A - pairs.values[:, None] * V).norm(dim=1)


def searched(op, k, tol):
    "A search for the `k` largest that has converged, without a probe."
    search = Search(op, Target(k, "LA", tol, torch.finfo(op.dtype).eps), Budget(500), 200, seeded(0))
    assert find(search, None, 1).stopped == "converged"
    return search


@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("tol", [1e-3, 1e-8])
def test_one_product_for_all_pairs(which, tol):
    op = prescribed(SPECTRUM)
    pairs = top_eigenpairs(op, 6, which=which, tol=tol, miss_probability=1)
    true = true_residuals(op.A, pairs)
    assert pairs.n_certify == 1 and pairs.converged.all() and (true <= pairs.residuals + 1e-14).all()
    assert torch.allclose(true, pairs.residuals, rtol=1e-2, atol=1e-13)


@pytest.mark.parametrize("k", [2, 6, 20])
def test_single_precision(k):
    op, A = prescribed(SPECTRUM, dtype=torch.float32), prescribed(SPECTRUM).A
    pairs = top_eigenpairs(op, k, **COARSE)
    assert pairs.converged.all() and pairs.n_certify <= 3
    assert (true_residuals(A, pairs) <= 1.05 * pairs.residuals + 1e-7 * 9).all()


def test_values_that_change_are_sorted_anew():
    A = prescribed(SPECTRUM).A
    found = top_eigenpairs(MatrixOperator(A), 5, miss_probability=1)
    v = found.vectors[0]
    other = A - 5 * torch.outer(v, v)  # 9 becomes 4
    with silent(): pairs = top_eigenpairs(Changed(A, other, found.n_matvecs), 5, miss_probability=1)
    assert torch.allclose(pairs.values, torch.tensor([7., 5., 4., 3., 2.8], dtype=F64))
    assert (pairs.vectors[2] @ v).abs() > .999


def test_what_rounding_hides_gets_products_of_its_own():
    op = prescribed(SPECTRUM, dtype=torch.float32)
    with silent(): pairs = top_eigenpairs(op, 6, tol=1e-9)
    assert pairs.stopped == "precision" and pairs.n_certify >= 6 and not pairs.converged.any()
    assert (pairs.residuals > 1e-8).all() and (pairs.residuals < 1e-5).all()


@pytest.mark.parametrize("pair", range(5))
@pytest.mark.parametrize("size", [1e-2, 1e-5])
def test_an_error_in_one_pair_is_seen(pair, size):
    "The operator changes along one eigenvector after the search: that pair, and no other, is refused."
    A = prescribed(SPECTRUM).A
    with silent(): found = top_eigenpairs(MatrixOperator(A), 5, miss_probability=1)
    v, u = found.vectors[pair], found.vectors[pair].flip(0)
    other = A + size * (torch.outer(u, v) + torch.outer(v, u))
    op = Changed(A, other, found.n_matvecs)
    with silent(): pairs = top_eigenpairs(op, 5, miss_probability=1)
    true = true_residuals(other, pairs)
    assert not pairs.converged[pair] and torch.equal(pairs.converged, true <= 1e-6 * pairs.values)
    assert pairs.stopped == "precision"
    assert torch.allclose(pairs.residuals, true, rtol=1e-6)


@pytest.mark.parametrize("error", [1e-2, 1e-4, 1e-6, 1e-12])
def test_products_that_are_not_exact(error):
    "Errors of the products are part of the residuals: what is called converged is, against the exact matrix."
    A = prescribed(SPECTRUM).A
    for seed in range(5):
        with silent(): pairs = top_eigenpairs(Rough(A, error), 5, tol=1e-5, max_matvecs=100, generator=seeded(seed))
        true = true_residuals(A, pairs)
        assert (true[pairs.converged] <= 2e-5 * pairs.values[pairs.converged]).all()
        assert pairs.converged.all() if error < 1e-6 else not pairs.converged.any() if error > 1e-5 else True


def test_a_product_that_fails_in_the_end_is_not_certified():
    A = prescribed(SPECTRUM).A
    with silent():
        steps = top_eigenpairs(MatrixOperator(A), 5, miss_probability=1).n_matvecs
        pairs = top_eigenpairs(Changed(A, A * math.nan, steps), 5, miss_probability=1)
    assert not pairs.converged.any()


def test_a_check_that_fails_is_no_evidence():
    class Breaks(MatrixOperator):
        "NaN from the second product after the search on."
        def apply(self, v): return super().apply(v) * (math.nan if self.n_matvecs > self.last else 1.)
    A = prescribed(SPECTRUM, dtype=torch.float32).A
    op = Breaks(A)
    op.last = top_eigenpairs(MatrixOperator(A), 6, tol=3e-5, miss_probability=1).n_matvecs + 1
    with silent(): pairs = top_eigenpairs(op, 6, tol=3e-5, miss_probability=1)
    assert pairs.n_certify == 2 + 6 and not pairs.converged.any()


def test_the_bound_on_an_oversight():
    "How often the norm of a check falls short of its share of the error; a single error is the worst case."
    op = prescribed(SPECTRUM)
    search = searched(op, 5, 1e-6)
    V = search.krylov.combine(search.ritz.S[:, search.ritz.index])
    other, error = Changed(op.A, op.A + torch.outer(V[3], V[3].flip(0)), -1), 1.
    norms = torch.tensor([discrepancy(search, other, V, torch.ones(5)) for _ in range(4000)])
    for t in (.5, .1, .02):
        share, bound = (norms < t * error).double().mean().item(), .8 * t
        assert .5 * bound < share <= bound + 3 * math.sqrt(bound / 4000), (t, share)


def test_few_products_for_many_pairs():
    values = np.r_[np.geomspace(10, 1, 60), np.linspace(-.2, .5, 340)]
    op = prescribed(values)
    pairs = eigenpairs_until(op, lambda values, V: values[-1] < 1.2, k=30, tol=1e-6, miss_probability=1)
    assert isinstance(pairs, EigenPairs) and len(pairs) > 50 and pairs.converged.all() and pairs.n_certify <= 3
    assert (true_residuals(op.A, pairs) <= 1e-6 * pairs.values).all()


def test_a_pair_too_close_to_the_tolerance_to_tell():
    "It gets a product of its own, and value, residual and flag follow that; the others do not."
    op = prescribed(SPECTRUM, dtype=torch.float32)
    search = searched(op, 6, 1e-3)
    relative, used = search.ritz.estimates / search.ritz.theta, search.budget.used
    worst, others = relative.argmax().item(), relative.topk(2).values[1].item()
    assert others < .9 * relative[worst]
    pairs = certify(search, op, relative[worst].item(), Outcome("converged", 1., used))
    assert not search.krylov.basis.storage.numel()  # its products have the memory of the basis
    v = pairs.vectors[worst]
    w, v = op.matvec(v).double(), v.double()
    value = (v @ w / (v @ v)).item()
    assert pairs.n_certify <= 4 and pairs.values[worst].item() == value
    assert pairs.residuals[worst].item() == pytest.approx((w - value * v).norm().item(), rel=1e-12)
    assert all(pairs.values[i] == search.ritz.theta[i] and pairs.converged[i] for i in range(6) if i != worst)


def test_the_search_keeps_room_for_rounding():
    "A pair that is called done stays so when rounding has added its share; half of the tolerance at most."
    op = prescribed(np.r_[np.geomspace(9, 1, 12), np.linspace(-.3, .8, 188)], dtype=torch.float32)
    eps = torch.finfo(torch.float32).eps
    for tol in np.geomspace(1e-3, 1e-5, 60):
        ritz = searched(op, 12, tol).ritz
        goal = tol * ritz.theta
        room = torch.minimum(goal / 2, torch.tensor(100 * eps * ritz.scale, dtype=F64))
        assert (ritz.estimates <= (goal - room).clamp_min(eps * ritz.scale)).all(), tol
