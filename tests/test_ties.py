"Distances of linear models in closed form, where scores tie, examples coincide or one class is all there is."
import math

import pytest
import torch
from torch import nn

from conftest import F64, seeded
from hessnb.boundary.distance import nearest_boundary
from hessnb.boundary.margin import estimate_margin
from hessnb.curvature.objective import Objective


def linear(W, b, X):
    model = nn.Linear(*W.T.shape).to(X.dtype).eval()
    with torch.no_grad(): model.weight.copy_(W); model.bias.copy_(b)
    return Objective(model, (X, torch.arange(len(X)) % len(W)))


def distances(W, b, X, own, norm):
    "To the nearest plane between the predicted class and another one whose scores differ from its own."
    W, b, X, found = W.double(), b.double(), X.double(), []
    for x, p in zip(X, own.tolist()):
        each = [((W[p] - W[c]) @ x + b[p] - b[c]) / (W[p] - W[c]).norm(p=2 if norm == "l2" else 1)
                for c in range(len(W)) if (W[p] != W[c]).any()]
        found.append(max(0., min(each)) if each else math.inf)
    return torch.tensor(found, dtype=F64)


SQUARE = [[0., 0.], [0., 1.], [1., 0.], [1., 1.]]
CASES = {  # weights, biases, inputs
    "three classes tie": ([[1., 0.], [-.5, 1.], [-.5, -1.]], [0., 0., 0.], [[0., 0.], [1., 0.], [-1., 1.], [2., 3.]]),
    "a tie at some": ([[1., 0.], [-1., 0.]], [0., 0.], [[0., 2.], [1., 0.], [-2., 1.], [0., 0.]]),
    "blank, no biases": ([[1., 2.], [2., 1.], [0., -3.]], [0., 0., 0.], [[0., 0.], [0., 0.], [1., -1.]]),
    "corners of a square": ([[1., 1.], [-1., -1.]], [-1., 1.], SQUARE),
    "a logit of zero": ([[0., 0.], [1., -1.]], [0., 0.], SQUARE),
    "a class never predicted": ([[1., 0.], [-1., 0.], [0., 0.]], [0., 0., -1.], [[1., 0.], [-2., 1.], [.5, 3.]]),
    "all predicted alike": ([[0., 1.], [0., -1.]], [5., 0.], [[0., 0.], [1., 1.], [2., -1.]]),
    "the same example twice": ([[1., 0.], [0., 1.]], [0., .5], [[1., 0.], [1., 0.], [0., 1.]]),
    "equal rows": ([[1., 0.], [1., 0.], [-1., 0.]], [0., 0., 0.], [[.5, 1.], [-.25, 0.], [0., 1.]]),
    "one input": ([[1.], [-1.]], [0., 0.], [[0.], [2.], [-1.]]),
}


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", CASES)
def test_closed_form(name, dtype, norm):
    W, b, X = (torch.tensor(t, dtype=dtype) for t in CASES[name])
    objective = linear(W, b, X)
    want = distances(W, b, X, objective.classes(X), norm)
    got = nearest_boundary(objective, X, norm=norm)
    assert ((got.values.double() - want).abs() <= 2e-3 * want + 1e-6).all() and got.n_forward < 100_000
    assert estimate_margin(objective, X, None, norm=norm).value == pytest.approx(want.min().item(), rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("seed", range(24))
def test_small_integers(seed):
    "Ties and equal rows of every kind: no distance is too small, and the smallest one is right."
    g = seeded(seed)
    draw = lambda low, high, *shape: torch.randint(low, high + 1, shape, generator=g).to(F64)
    C, D = int(draw(2, 4, 1)), int(draw(1, 4, 1))
    W, b, X = draw(-2, 2, C, D), draw(-1, 1, C), draw(-2, 2, 8, D)
    objective, norm = linear(W, b, X), ("l2", "linf")[seed % 2]
    want = distances(W, b, X, objective.classes(X), norm)
    got = nearest_boundary(objective, X, norm=norm).values
    assert (got >= want * (1 - 1e-9)).all() and got.isinf().equal(want.isinf())
    assert (got <= 1.3 * want + 1e-9).all()  # a local search may end at another class than the nearest
    assert got.min().item() == pytest.approx(want.min().item(), rel=5e-3, abs=1e-9)


def test_stop_ends_a_search():
    "Asked in every round; what was found until then is a bound all the same."
    X, asked = torch.randn(40, 5, generator=seeded(0), dtype=F64), []
    objective = linear(torch.randn(3, 5, generator=seeded(1), dtype=F64), torch.zeros(3, dtype=F64), X)
    want = distances(objective.model.weight.detach(), torch.zeros(3), X, objective.classes(X), "l2")
    found = nearest_boundary(objective, X, progress=lambda passes, _: asked.append(passes) or True)
    assert asked and len(asked) < 3 and (found.values >= want * (1 - 1e-9)).all()
    assert found.verified.equal(found.values.isfinite())
    class Enough(Exception): pass
    def stop(*_): raise Enough
    with pytest.raises(Enough): estimate_margin(objective, X, None, progress=stop)
