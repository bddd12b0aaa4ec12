"The tools that every search for the boundary shares, against loops."
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from conftest import F64, Formula, build, randn, untouched
from hessnb.boundary.search import (
    Norm,
    Paths,
    between,
    bisect,
    check_box,
    check_inputs,
    logit_margin,
    margin_slopes,
    nearest_others,
)
from hessnb.curvature.objective import Objective

X = randn(40, 3)


def network(C=4):
    return Objective(build(lambda: nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, C))),
                     (X, torch.arange(40) % C))


@given(st.lists(st.lists(st.sampled_from([-1., 0., .5, 2., 1e300, -1e300]), min_size=3, max_size=3), min_size=1,
                max_size=6), st.integers(0, 2))
def test_logit_margin(rows, c):
    z = torch.tensor(rows, dtype=F64)
    assert logit_margin(z, c).tolist() == [row[c] - max(row[:c] + row[c + 1:]) for row in rows]
    assert (logit_margin(z) >= 0).all() and torch.equal(logit_margin(z), logit_margin(z, z.argmax(1)))


@pytest.mark.parametrize("budget", [2**31, 6_000])
def test_margin_slopes(budget):
    objective = network()
    small = Objective(objective.model, objective.data, memory_budget=budget)
    y = objective.classes(X)
    x = X.clone().requires_grad_()
    z = objective.model(x)
    expected = torch.stack([row[c] - torch.cat([row[:c], row[c + 1:]]).max() for row, c in zip(z, y)])
    slopes, = torch.autograd.grad(expected.sum(), x)
    with untouched(objective.model, tensors=[X]), torch.no_grad(): margin, slope, n = margin_slopes(small, X, y)
    assert_close(margin, expected.detach()), assert_close(slope, slopes)
    assert n == 40 and not slope.requires_grad and (small.micro_batch_size < 40) == (budget < 2**31)


def test_slopes_where_classes_are_alike():
    "Only the silent rows take another pass; where every class is alike the margin is infinite and the slope zero."
    objective = Objective(Formula(lambda x: torch.stack([x[:, 0], x[:, 0], x[:, 1]], 1)).eval(),
                          (X, torch.zeros(40).long()))
    y = objective.classes(X)
    margin, slope, n = margin_slopes(objective, X, y)
    assert n == 40 + (y == 0).sum()
    assert_close(margin, (X[:, 0] - X[:, 1]).abs())
    assert_close(slope.norm(dim=1), torch.full((40,), 2 ** .5, dtype=F64))
    alike = Objective(Formula(lambda x: x[:, :1].expand(-1, 3)).eval(), (X, torch.zeros(40).long()))
    margin, slope, n = margin_slopes(alike, X, torch.zeros(40).long())
    assert n == 80 and (margin > 1e300).all() and not slope.isnan().any()


def test_between_meets_its_ends():
    a, b = randn(50, 2, 3, seed=1) * 1e3, randn(50, 2, 3, seed=2) * 1e-3
    assert torch.equal(between(a, b, torch.zeros(50)), a) and torch.equal(between(a, b, torch.ones(50)), b)
    assert torch.equal(between(a, b, torch.full((50,), 7.)), b) and torch.equal(between(a, b, torch.full((50,), -7.)),
            a)
    t = torch.rand(50, dtype=F64)
    assert_close(between(a, b, t), a + t[:, None, None] * (b - a))


def test_bisect():
    roots = torch.tensor([.3, .5, 1 / 3, .999], dtype=F64)
    for n in (0, 1, 7, 60):
        low, high = bisect(lambda t: t >= roots, torch.zeros(4, dtype=F64), torch.ones(4, dtype=F64), n)
        assert (low < roots).all() and (high >= roots).all() and ((high - low) <= 2. ** -min(n, 52)).all()
    points = randn(5, 2), randn(5, 2) + 9
    low, high = bisect(lambda z: (z.sum(1) > 4)[:, None], *points, 50)  # along segments in the plane
    assert_close(low.sum(1), torch.full((5,), 4., dtype=F64)), assert_close(high, low)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_nearest_others(norm):
    x, y, pool, pool_y = X[:9].reshape(9, 1, 3), torch.arange(9) % 3, X.reshape(40, 1,
            3), torch.arange(40) % 4 - 1  # some of no class
    D = Norm(norm).distances(x, pool)
    assert_close(D, (X[:9, None] - X[None]).norm(dim=2, p=2 if norm == "l2" else math.inf))
    for n in (0, 1, 3, 7, 100):
        index, exists = nearest_others(x, y, pool, pool_y, n, norm=norm)
        for i in range(9):
            queues = [sorted((D[i, j].item(), j) for j in range(40) if pool_y[j] == c) for c in range(3) if c != y[i]]
            wanted = [j for turn in range(40) for _, j in sorted(q[turn] for q in queues if turn < len(q))]
            assert index[i][exists[i]].tolist() == wanted[:n]
    nothing = nearest_others(x, torch.zeros(9).long(), pool, torch.zeros(40).long(), 3)
    assert not nothing[1].any()


def test_first_crossing():
    "Class 1 on shells of radius 1 to 2 and beyond 3: of a path to 3.5 the first crossing at 1 counts, not that at 3."
    def score(x):
        r = x.norm(dim=1)
        return torch.stack([torch.zeros_like(r), .5 - (r - 1.5).abs().minimum((r - 3.5).abs())], 1)
    shells = Objective(Formula(score).eval(), (X, torch.zeros(40).long()))
    paths, origin, d = Paths(shells), torch.zeros(40, 3, dtype=F64), X / X.norm(dim=1, keepdim=True)
    low, high = paths.first_crossing(origin, torch.zeros(40).long(), d, torch.full((40,), 3.5, dtype=F64), n=20)
    assert ((low < 1) & (high >= 1) & (high - low < 1e-6)).all() and paths.n_forward <= 40 * 25
    assert paths.n_backward == 0


def test_refusals():
    objective = network()
    for bad, error, message in ((X[:0], ValueError, "N > 0"), (X[0], ValueError, r"\(N, ...\)"),
                                (torch.ones(3, 3, dtype=torch.int64), TypeError, "floating tensor"),
                                ((X, X), TypeError, "got tuple"), (torch.full((2, 3), math.nan), ValueError, "NaN")):
        with untouched(objective.model), pytest.raises(error, match=message): check_inputs(objective, bad)
    with pytest.raises(TypeError, match="has one class"):
        check_inputs(Objective(nn.Linear(3, 1).double(), (X, torch.zeros(40).long())), X)
    attached = X.clone().requires_grad_()
    assert not check_inputs(objective, attached).requires_grad
    for box in ((1., 0.), (1., 1.), (0., 1., 2.), (math.nan, 1.)):
        with pytest.raises(ValueError, match="box must be"): check_box(X, box)
    with pytest.raises(ValueError, match="outside box"): check_box(X, (0., .5))
    check_box(X, None), check_box(X, (X.min().item(), X.max().item()))
