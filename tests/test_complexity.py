"How many directions the boundary takes: against plain autograd and closed forms, and what must not move it."
import math

import pytest
import torch
from torch import nn

from conftest import F64, build, seeded
from hessnb.boundary import complexity
from hessnb.boundary.complexity import balanced_cosines, boundary_complexity, effective_dimension
from hessnb.boundary.points import boundary_points
from hessnb.curvature.objective import Objective


def ring(q=4, n=8, per=15, n_classes=2, seed=0, dtype=F64):
    "Clusters on a ring with q changes of label."
    which = torch.arange(n).repeat_interleave(per)
    angle = which * 2 * math.pi / n
    X = n / 3 * torch.stack([angle.cos(), angle.sin()], 1) + .25 * torch.randn(len(which), 2, generator=seeded(seed))
    return X.to(dtype), (which * q // n) % n_classes


def trained(make, X, y, steps=400, loss=nn.functional.cross_entropy, seed=0, lr=5e-3):
    model = build(make, seed).to(X.dtype)
    adam = torch.optim.Adam(model.parameters(), lr)
    for _ in range(steps):
        adam.zero_grad()
        loss(model(X), y).backward()
        adam.step()
    adam.zero_grad()
    return model


def mlp(act=nn.ReLU, c=2):
    return nn.Sequential(nn.Linear(2, 40), act(), nn.Linear(40, 40), act(), nn.Linear(40, c))


def by_autograd(model, points, lead):
    "Mean over the tensors of the cosines between the gradients' parts, one backward pass for each point."
    rows = []
    for x in points:
        parts = torch.autograd.grad(lead(model(x[None])[0]), list(model.parameters()), allow_unused=True)
        parts = [torch.zeros(1, dtype=x.dtype) if g is None else g.flatten() for g in parts]
        alive = sum(bool(g.norm() > 0) for g in parts)
        rows.append(torch.cat([g / g.norm() if g.norm() > 0 else g for g in parts]) / math.sqrt(alive))
    G = torch.stack(rows)
    return G @ G.T


MODELS = {
    "relu": mlp, "gelu": lambda: mlp(nn.GELU), "tanh": lambda: mlp(nn.Tanh),
    "without biases": lambda: nn.Sequential(nn.Linear(2, 50, bias=False), nn.ReLU(), nn.Linear(50, 2, bias=False)),
    "layer norm": lambda: nn.Sequential(nn.Linear(2, 40), nn.LayerNorm(40), nn.ReLU(), nn.Linear(40, 2)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv1d(1, 20, 2), nn.ReLU(), nn.Flatten(),
                                         nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 2)),
}


@pytest.mark.parametrize("name", MODELS)
def test_cosines_equal_plain_autograd(name):
    X, y = ring()
    model = trained(MODELS[name], X, y)
    objective = Objective(model, (X, y))
    points = boundary_points(objective, X, n=20).points
    side = objective.predict(points).argmax(1) * 2. - 1  # the gradient is for the predicted label
    right = by_autograd(model, points, lambda o: o[0] - o[1]) * side[:, None] * side
    assert torch.allclose(balanced_cosines(objective, points), right, atol=1e-9)


def test_one_logit():
    X, y = ring()
    target = y[:, None].double()
    model = trained(lambda: mlp(c=1), X, target, loss=nn.functional.binary_cross_entropy_with_logits)
    found = boundary_complexity(model, X, data=(X, target), loss=nn.BCEWithLogitsLoss())
    K = by_autograd(model, found.points.points, lambda o: o[0])
    assert found.dimension == pytest.approx(effective_dimension(K), rel=1e-6)


def test_a_linear_model_in_closed_form():
    "The gradient of the lead is (x, 1) for one class and (-x, -1) for the other: cosines of inputs, and ones."
    X = torch.randn(80, 5, generator=seeded(1), dtype=F64)
    model = nn.Linear(5, 2).double()
    found = boundary_complexity(model, X, data=(X, model(X).argmax(1)))
    x = found.points.points
    cosines = nn.functional.normalize(x) @ nn.functional.normalize(x).T
    assert torch.allclose(found.cosines.abs(), ((cosines + 1) / 2).abs(), atol=1e-9)
    assert found.shares.sum().item() == pytest.approx(1, abs=1e-9) and (found.shares > 1e-9).sum() <= 6


@pytest.mark.parametrize("resolution", [1e-3, 1e-2, .1])
def test_the_effective_dimension_of_given_spectra(resolution):
    p = torch.tensor([.5, .3, .15, .05], dtype=F64)
    Q = torch.linalg.qr(torch.randn(30, 30, generator=seeded(0), dtype=F64)).Q
    K = (Q[:, :4] * p * 30) @ Q[:, :4].T
    assert effective_dimension(K, resolution) == pytest.approx((p / (p + resolution)).sum().item(), rel=1e-9)
    assert effective_dimension(torch.ones(7, 7, dtype=F64), 1e-6) == pytest.approx(1, rel=1e-5)
    assert effective_dimension(torch.eye(7, dtype=F64), 1e-6) == pytest.approx(7, rel=1e-4)


@pytest.mark.parametrize("q, n_classes", [(2, 2), (4, 2), (8, 2), (4, 4)])
def test_rungs_are_told_apart(q, n_classes):
    "Medians of three seeds; the same clusters, other labels."
    X, y = ring(q, n_classes=n_classes)
    found = [boundary_complexity(trained(lambda: mlp(c=n_classes), X, y, seed=s), X, data=(X, y)) for s in range(3)]
    middle = sorted(c.dimension for c in found)[1]
    low, high = {(2, 2): (1.5, 3.2), (4, 2): (3.3, 4.8), (8, 2): (5.5, 8.5), (4, 4): (3.3, 9)}[q, n_classes]
    assert low < middle < high, middle
    assert all(c.interval[0] <= c.dimension <= c.interval[1] and c.value == round(c.dimension) for c in found)


@pytest.mark.parametrize("c", [.2, 5., 100.])
def test_rescaling_a_layer_changes_nothing(c):
    X, y = ring(8)
    model = trained(mlp, X, y)
    before = boundary_complexity(model, X, data=(X, y))
    outputs = model(X)
    with torch.no_grad():
        for p in model[0].parameters(): p.mul_(c)
        model[2].weight.div_(c)
    assert torch.allclose(model(X), outputs)
    after = boundary_complexity(model, X, data=(X, y))
    assert after.dimension == pytest.approx(before.dimension, rel=1e-6) and after.value == before.value


def test_single_precision_and_more_points():
    X, y = ring(8)
    model = trained(mlp, X, y)
    before = boundary_complexity(model, X, data=(X, y))
    more = boundary_complexity(model, X, data=(X, y), n=300)
    assert more.dimension == pytest.approx(before.dimension, rel=.2)
    single = boundary_complexity(model.float(), X.float(), data=(X.float(), y))
    assert single.dimension == pytest.approx(before.dimension, rel=.03)


def test_hashed_tensors_keep_the_count():
    "A tensor of 400,000 numbers is hashed into 16,384; the count stays within .1."
    X, y = ring(6, n=12)
    make = lambda: nn.Sequential(nn.Linear(2, 200), nn.ReLU(), nn.Linear(200, 2000), nn.ReLU(), nn.Linear(2000, 2))
    objective = Objective(trained(make, X, y, steps=60, lr=2e-3), (X, y))
    points = boundary_points(objective, X, n=60).points
    exact, hashed = balanced_cosines(objective, points), balanced_cosines(objective, points, held_bytes=2**20)
    assert 0 < (exact - hashed).abs().max() < .05
    assert effective_dimension(hashed) == pytest.approx(effective_dimension(exact), abs=.2)
    assert balanced_cosines(objective, points, chunk_bytes=2**20).allclose(exact, atol=1e-12)


def test_what_it_tells_and_what_it_leaves_alone():
    X, y = ring(6, n=12, n_classes=3)
    model = trained(lambda: mlp(c=3), X, y)
    state, before = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    found = boundary_complexity(model, X, data=(X, y))
    assert torch.equal(state, torch.get_rng_state()) and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert len(found.directions) == found.value and found.unseen == ()
    assert sum(d.share for d in found.directions) > .9
    for d in found.directions:
        assert 0 < d.purity <= 1 and {tuple(sorted(y[e].tolist())) for e in d.examples[:1]} == {d.classes}
    assert "directions" in repr(found) and "between classes" in repr(found.directions[0])
    assert len(found.points) == 150 and found.points.class_pairs.unique(dim=0).shape == (3, 2)


def test_many_examples_are_sampled_everywhere():
    "Of many segments a random part is taken, not the shortest: all pieces are seen."
    X, y = ring(8, per=400)
    found = boundary_complexity(trained(mlp, X, y, steps=300), X, data=(X, y), n=80)
    angle = torch.atan2(*found.points.points.T.flip(0)) / (2 * math.pi) * 8
    assert len(angle.floor().unique()) == 8


def test_more_than_five_thousand_examples():
    X, y = ring(4, per=700)
    assert 3.2 < boundary_complexity(trained(mlp, X, y, steps=200), X, data=(X, y)).dimension < 4.8


@pytest.mark.parametrize("keywords, message", [
    (dict(n=3), "at least 4 boundary points"), (dict(resolution=0.), "share in"), (dict(resolution=1.), "share in"),
    (dict(level=1.), "level must lie"), (dict(X=0), "both sides"),
])
def test_what_has_no_complexity_is_refused(keywords, message):
    X, y = ring()
    model = trained(mlp, X, y)
    inputs = X[y == 0][:5] if keywords.pop("X", None) == 0 else X
    with pytest.raises(ValueError, match=message): boundary_complexity(model, inputs, data=(X, y), **keywords)


def test_a_regression_has_no_boundary():
    X, y = ring()
    with pytest.raises((TypeError, ValueError), match="class"):
        boundary_complexity(mlp(c=1).double(), X, data=(X, y[:, None].double()), loss=nn.MSELoss())


def test_no_parameter_moves_the_boundary():
    "Only a bias that all logits share is open: every gradient is zero."
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros((), dtype=F64))
        def forward(self, x): return torch.stack([x[:, 0], -x[:, 0]], 1) + self.shift
    X, y = ring()
    with pytest.raises(ValueError, match="no parameter moves the boundary"):
        boundary_complexity(Shared(), X, data=(X, y))


def test_hashing_keeps_what_is_orthogonal_orthogonal():
    "Two rows of ones that share no entry: without random signs, entries that meet in a bucket would all add up."
    rows = torch.zeros(2, 100_000, dtype=F64)
    rows[0, :50_000] = rows[1, 50_000:] = 1
    hashed = complexity._hashed(rows, 0)
    sizes, cosine = hashed.norm(dim=1) / rows.norm(dim=1), hashed[0] @ hashed[1] / 50_000
    assert hashed.shape == (2, 2**14) and ((sizes - 1).abs() < .05).all() and abs(cosine) < .05


@pytest.mark.parametrize("groups", [2, 3, 5])
def test_varimax_finds_the_groups(groups):
    "Points that load on one column each, turned at random; and two groups that straddle a column, a saddle."
    which = torch.arange(60) % groups
    sparse = nn.functional.one_hot(which).to(F64) * (1 + which[:, None])
    for seed in range(3):
        turn = torch.linalg.qr(torch.randn(groups, groups, generator=seeded(seed), dtype=F64)).Q
        found = complexity.varimax(sparse @ turn).abs()
        found = found[:, found.square().sum(0).argsort()]
        torch.testing.assert_close(found, sparse, rtol=1e-4, atol=1e-4)
    straddling = torch.tensor([[.9, .4], [.9, -.4]], dtype=F64).repeat(20, 1)
    assert complexity.varimax(straddling).square().var(0).sum() > 10 * straddling.square().var(0).sum() + .1


def test_each_direction_is_a_piece_that_eigenvectors_carry():
    "Three classes around the middle: three pieces, one for each pair; what carries them, by plain autograd."
    X, y = ring(q=3, n=3, per=25, n_classes=3)
    model = trained(lambda: mlp(c=3), X, y)
    found = boundary_complexity(model, X, data=(X, y))
    first = found.directions[:3]
    assert sorted(d.classes for d in first) == [(0, 1), (0, 2), (1, 2)] and min(d.purity for d in first) > .7
    assert math.isclose(sum(d.share for d in found.directions), found.shares[:found.value].sum().item(), rel_tol=1e-9)
    V = torch.linalg.qr(torch.randn(sum(p.numel() for p in model.parameters()), 4, generator=seeded(2), dtype=F64)).Q.T
    rows = []
    for point, label in zip(found.points.points, model(found.points.points).argmax(1)):  # one by one, ties turn over
        loss = nn.functional.cross_entropy(model(point[None]), label[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    squares = nn.functional.normalize(torch.stack(rows), dim=1) @ V.T
    expected = found.loadings.T.square() / found.loadings.square().sum(0)[:, None] @ squares.square()
    torch.testing.assert_close(found.carried_by(Objective(model, (X, y)), V), expected, rtol=1e-6, atol=1e-9)
