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
    assert (got <= want * (1 + 2e-3) + 1e-9).all()
    assert got.min().item() == pytest.approx(want.min().item(), rel=2e-3, abs=1e-9)


def random_linear(seed):
    "Weights, biases and inputs with up to 12 classes and 50 features: normal, of unequal sizes, or small integers."
    g, dtype = seeded(seed), (torch.float32, F64)[seed % 2]
    C, D, n = (int(torch.randint(low, high + 1, (1,), generator=g)) for low, high in ((2, 12), (1, 50), (2, 6)))
    if seed // 4 % 3 == 0: return [torch.randint(-2, 3, s, generator=g).to(dtype) for s in ((C, D), (C,), (n, D))]
    W, b, X = (torch.randn(s, generator=g, dtype=F64) for s in ((C, D), (C,), (n, D)))
    if seed // 4 % 3 == 1: W, b = W * torch.randn(C, 1, generator=g, dtype=F64).exp(), 2 * b
    return W.to(dtype), b.to(dtype), X.to(dtype)


@pytest.mark.parametrize("block", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 8))])
def test_the_nearest_class_is_met(block):
    "400 linear models, to the tolerance: no distance ends at another class than the nearest, nor does a margin."
    for seed in range(50 * block, 50 * block + 50):
        W, b, X = random_linear(seed)
        objective, norm = linear(W, b, X), ("l2", "linf")[seed // 2 % 2]
        want, near = distances(W, b, X, objective.classes(X), norm), 1e-5 * X.abs().max().item()  # on the boundary
        got = nearest_boundary(objective, X, norm=norm, n_starts=seed % 3).values.double()
        assert ((got <= want * (1 + 1.1e-3) + near) & (got >= want * (1 - 1e-5) - near)).all(), (seed, got / want)
        if seed % 5 == 0 and want.isfinite().any():
            few = estimate_margin(objective, X, None, norm=norm, n_candidates=1)  # the screen names the nearest
            assert few.value == pytest.approx(want.min().item(), rel=1.1e-3, abs=near), seed


@pytest.mark.parametrize("C", [30, 300])
def test_many_classes(C):
    "More than are started towards, and more than slopes are taken of: the nearest ones are found."
    g = seeded(C)
    W, b, X = (torch.randn(s, generator=g, dtype=F64) for s in ((C, 20), (C,), (400, 20)))
    W = W * torch.randn(C, 1, generator=g, dtype=F64).exp()
    objective = linear(W, b, X)
    want = distances(W, b, X, objective.classes(X), "l2")
    got = nearest_boundary(objective, X[:20], pool=X)
    assert (got.values / want[:20]).max() < 1 + 1.1e-3 and got.n_forward < 20 * 2500
    assert estimate_margin(objective, X, None).value == pytest.approx(want.min().item(), rel=1.1e-3)


def radii(model, x, angles, reach=6., n=600):
    "Where the class first changes in each direction of the plane: `n` equal steps, then bisection."
    d = torch.stack([angles.cos(), angles.sin()], 1)
    own = model(x[None]).argmax(1)
    t = torch.linspace(0, reach, n + 1, dtype=F64)[1:]
    changed = model((x + t[:, None, None] * d).reshape(-1, 2)).argmax(1).reshape(n, -1) != own
    first = torch.where(changed.any(0), t[changed.int().argmax(0)], math.inf)
    low, high = first - reach / n, first
    for _ in range(40):
        middle = (low + high) / 2
        beyond = model(x + middle[:, None] * d).argmax(1) != own
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return high


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(s, marks=pytest.mark.slow) for s in (3, 4, 5))])
def test_piecewise_linear(seed):
    "ReLU networks of the plane against every direction, the best ones in finer steps."
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        C = (2, 3, 5, 8, 10, 12)[seed]
        model = nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, C)).double()
    with torch.no_grad():
        for p in model.parameters(): p.mul_(2)
        X = torch.randn(12, 2, generator=seeded(seed), dtype=F64)
        want = []
        for x in X:
            angles, width = torch.linspace(-math.pi, math.pi, 721, dtype=F64)[1:], math.pi / 360
            for _ in range(3):
                r = radii(model, x, angles)
                best, width = angles[r.argsort()[:5]], width / 10
                angles = (best[:, None] + width * torch.arange(-10, 11)).flatten()
            want.append(r.min().item())
    got = nearest_boundary(Objective(model, (X, torch.arange(12) % C)), X).values
    assert ((got / torch.tensor(want, dtype=F64) - 1).abs() < 5e-3)[got < 6].all()


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
