"Probes of the boundary in many dimensions against closed forms and the model itself, and what they must not do."
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from conftest import F64, blobs, build, mlp, quiet, randn, seeded, untouched
from hessnb.boundary.alignment import align
from hessnb.boundary.plane import Plane, PlaneScan, feature_plane, plane_through, scan_path, scan_plane
from hessnb.boundary.points import boundary_points, nearest_segments, random_segments
from hessnb.boundary.probe import boundary_map, contrasts, curvature_lengths, eigenvector_table, loss_lengths, perturb
from hessnb.curvature.eigenpairs import dense_eigenpairs
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.params import flatten
from hessnb.curvature.top import top_eigenpairs

X, Y = blobs(60)


def small_cnn():
    return build(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(),
                                       nn.Flatten(), nn.Linear(6 * 9, 3)))


def batch_norm():
    model = build(lambda: nn.Sequential(nn.Linear(3, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4)))
    model[1].running_mean.copy_(randn(12, seed=5)), model[1].running_var.copy_(randn(12, seed=6).square() + .1)
    return model


def relu_mlp():
    return build(lambda: nn.Sequential(nn.Linear(3, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 4)))


NETWORKS = {"mlp": (relu_mlp, X, Y), "batch norm": (batch_norm, X, Y),
            "cnn": (small_cnn, randn(40, 1, 12, 12, seed=2), torch.arange(40) % 3)}


def linear(W, b, x=X):
    model = nn.Linear(W.shape[1], len(W)).to(W)
    with torch.no_grad(): model.weight.copy_(W), model.bias.copy_(b)
    return Objective(model.eval(), (x.to(W), torch.arange(len(x)) % len(W)))


def centred(model, x):
    "The network with its outputs centred on the data, so that several classes are predicted."
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad(): last.bias.sub_(model(x).mean(0))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("how", ["nearest", "random"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_millionth_to_either_side_flips(name, how, dtype):
    make, x, y = NETWORKS[name]
    model, x = centred(make(), x).to(dtype), x.to(dtype)
    with quiet(), untouched(model, tensors=[x]): found = boundary_points(Objective(model, (x, y)), x, n=40, pairs=how)
    assert len(found) + found.n_dropped == 40 and found.n_dropped <= (8 if dtype == torch.float32 else 0)
    a, b = x[found.examples[:, 0]], x[found.examples[:, 1]]
    with torch.no_grad():
        at = lambda t: model(a + t.reshape(-1, *[1] * (a.ndim - 1)) * (b - a)).argmax(1)
        before, after, start, end = at(found.t - 1e-6), at(found.t + 1e-6), model(a).argmax(1), model(b).argmax(1)
    assert (before != after).all() and (before == start).all() and (start == found.classes[:, 0]).all()
    assert (start != end).all()
    assert found.points.dtype == dtype and (found.width <= torch.finfo(dtype).eps).all() and (found.width > 0).all()
    assert_close(found.inside, found.points, rtol=0, atol=20 * torch.finfo(dtype).eps * x.abs().max().item())
    assert_close(found.points, a + found.t.reshape(-1, *[1] * (a.ndim - 1)) * (b - a))
    assert len({tuple(sorted(e)) for e in found.examples.tolist()}) == len(found)


@pytest.mark.parametrize("seed", range(3))
def test_crossing_of_a_hyperplane(seed):
    w, c = randn(3, seed=seed), .2
    objective = linear(torch.stack([w, -w]), torch.tensor([c, -c], dtype=F64))
    found = boundary_points(objective, X, n=30, pairs="random", generator=seeded(seed))
    a, b = X[found.examples[:, 0]], X[found.examples[:, 1]]
    assert len(found) == 30
    assert_close(found.t, -(a @ w + c) / ((b - a) @ w), rtol=1e-12, atol=1e-14)
    assert ((found.points @ w + c).abs() < 1e-14 * 20).all()
    assert_close(found.distances.sum(0), (b - a).norm(dim=1))
    assert (found.class_pairs == torch.tensor([0, 1])).all()


def test_a_third_class_between():
    # scores 0, x - 1, 4x - 10 on a line: 0 | 1 at 1, 1 | 2 at 3; from 0 to 4 the first halving lands beyond class 1
    x = torch.tensor([[0.], [4.], [.5]], dtype=F64)
    objective = linear(torch.tensor([[0.], [1.], [4.]], dtype=F64), torch.tensor([0., -1., -10.], dtype=F64), x=x)
    found = boundary_points(objective, x, pairs=torch.tensor([[0, 1], [1, 0]]))
    assert_close(found.points[:, 0], torch.tensor([1., 3.], dtype=F64), rtol=1e-14, atol=0)
    assert found.classes.tolist() == [[0, 1], [2, 1]]


def test_slivers_are_dropped_and_counted():
    # class 1 leads only within 1e-7 of x = .5, where both sides belong to class 0: its edges lie closer than two steps
    class Sliver(nn.Module):
        def __init__(self): super().__init__(); self.s = nn.Parameter(torch.ones(1, dtype=F64))
        def forward(self, x): return torch.cat([torch.zeros_like(x), 1e-7 - (x - .5).abs()], 1) * self.s
    x = torch.tensor([[0.], [.5]], dtype=F64)
    objective = Objective(Sliver().eval(), (x, torch.tensor([0, 1])))
    found = boundary_points(objective, x)
    # towards the example itself the step is cut off at the end of the segment
    assert len(found) == 1 and found.t.item() == pytest.approx(1 - 2e-7, abs=1e-12)
    past = boundary_points(objective, torch.tensor([[0.], [.5], [1.]], dtype=F64), pairs=torch.tensor([[0, 1], [2, 1]]))
    assert len(past) == 2
    thin = Objective(Sliver().eval(), (x, torch.tensor([0, 1])))
    thin.model.s.data.fill_(1.)
    wide = boundary_points(thin, x, step=.3)
    assert len(wide) == 1 and wide.step == .3


def testnearest_segments_are_the_nearest():
    y = torch.arange(60) % 3
    ends = nearest_segments(X, y, 1000)
    length = (X[:, None] - X[None]).norm(dim=2)
    for i in range(60):
        for c in {0, 1, 2} - {int(y[i])}:
            j = torch.where(y == c, length[i], math.inf).argmin().item()
            assert any(set(e) == {i, j} for e in ends.tolist())
    few = nearest_segments(X, y, 9)
    kinds = [tuple(sorted(y[e].tolist())) for e in few]
    assert sorted(kinds) == sorted([(0, 1), (0, 2), (1, 2)] * 3)
    for pair in set(kinds):
        lengths = [length[i, j].item() for (i, j), kind in zip(few.tolist(), kinds) if kind == pair]
        assert lengths == sorted(lengths)
        assert lengths[0] == pytest.approx(length[y == pair[0]][:, y == pair[1]].min().item(), rel=1e-12)


def testrandom_segments_are_fair():
    y = torch.tensor([0] * 10 + [1] * 5 + [2] * 5)
    ends = random_segments(y, 50, seeded(0))
    assert (y[ends[:, 0]] != y[ends[:, 1]]).all() and len({tuple(sorted(e)) for e in ends.tolist()}) == 50
    assert torch.equal(ends, random_segments(y, 50, seeded(0)))
    assert not torch.equal(ends, random_segments(y, 50, seeded(1)))
    counts = torch.zeros(20)
    for seed in range(200):
        for e in random_segments(y, 5, seeded(seed)).flatten().tolist(): counts[e] += 1
    expected = torch.zeros(20, dtype=F64)
    for i in range(20):
        others = (y != y[i]).nonzero()[:, 0]
        expected[i] += 1 / 20
        expected[others] += 1 / 20 / len(others)
    assert (counts / counts.sum() - expected / 2).abs().max() < .01


@pytest.mark.parametrize("call, error, message", [
    (lambda o: boundary_points(o, X, n=0), ValueError, "at least 1"),
    (lambda o: boundary_points(o, X, step=0.), ValueError, "share of the segment"),
    (lambda o: boundary_points(o, X, pairs="every"), ValueError, "'nearest', 'random'"),
    (lambda o: boundary_points(o, X, pairs=torch.tensor([[0., 1.]])), ValueError, "int64"),
    (lambda o: boundary_points(o, X, pairs=torch.tensor([[0, 99]])), ValueError, r"0\.\.59"),
    (lambda o: boundary_points(o, X, pairs=torch.tensor([[0, 0]])), ValueError, "predicted alike"),
    (lambda o: boundary_points(o, X[:1]), ValueError, "all 1 examples"),
    (lambda o: boundary_points(o, X[:0]), ValueError, "N > 0"),
    (lambda o: boundary_points(o, torch.full_like(X, math.nan)), ValueError, "NaN"),
    (lambda o: boundary_points(o, torch.ones(4, 3, dtype=torch.int64)), TypeError, "floating tensor"),
    (lambda o: plane_through([X[0], X[1], X[2]]), TypeError, "got list"),
    (lambda o: plane_through(X[:2]), ValueError, "three or more"),
    (lambda o: plane_through(X[:3, :1]), ValueError, "two or more features"),
    (lambda o: plane_through(torch.stack([X[0], X[1], X[0]])), ValueError, "on a line"),
    (lambda o: plane_through(torch.stack([X[0], X[0], X[1]])), ValueError, "on a line"),
    (lambda o: plane_through(X[:1] * torch.arange(5., dtype=F64)[:, None]), ValueError, "on a line"),
    (lambda o: plane_through(torch.full((3, 3), math.inf)), ValueError, "infinite"),
    (lambda o: plane_through(X).project(X[:, :2]), ValueError, r"\(N, 3\)"),
    (lambda o: scan_path(o, X[0], X[0]), ValueError, "same input"),
    (lambda o: scan_path(o, X[0], X[1], n=1), ValueError, "at least 2"),
    (lambda o: scan_path(o, X[0], X[1:2]), ValueError, "one shape"),
    (lambda o: scan_path(o, X[0], X[1], label=4), ValueError, r"0\.\.3"),
    (lambda o: scan_path(o, X[0], X[1], torch.ones(2, 5)), ValueError, "vectors must have shape"),
    (lambda o: perturb(o, torch.ones(2, o.n_params), [1.]), ValueError, "one amount for each"),
    (lambda o: perturb(o, torch.ones(o.n_params), math.nan), ValueError, "amounts"),
    (lambda o: perturb(o, torch.ones(o.n_params + 1), 1.), ValueError, "vectors must have shape"),
    (lambda o: perturb(o, [1.], 1.), TypeError, "tensor"),
])
def test_bad_input(call, error, message):
    objective = Objective(mlp(), (X, Y))
    with untouched(objective.model, tensors=[X]), pytest.raises(error, match=message): call(objective)


@pytest.mark.parametrize("shape", [(3,), (1, 4, 4)])
def test_plane_through_three(shape):
    points = randn(3, *shape, seed=1)
    plane = plane_through(points)
    flat = plane.axes.flatten(1)
    assert_close(flat @ flat.T, torch.eye(2, dtype=F64))
    coordinates, distance = plane.project(points)
    assert distance.max() < 1e-13 and coordinates[0].abs().max() < 1e-13 and coordinates[1, 1].abs() < 1e-13
    assert coordinates[1, 0] > 0 and coordinates[2, 1] > 0
    assert_close(plane.at(coordinates), points)
    off = randn(9, *shape, seed=2)
    coordinates, distance = plane.project(off)
    assert_close((off - plane.at(coordinates)).flatten(1).norm(dim=1), distance)
    grid = plane.at(coordinates[:, None, :].expand(9, 20, 2).reshape(-1, 2) + .1 * randn(180, 2))
    # nothing in the plane is nearer
    assert ((off.repeat_interleave(20, 0) - grid).flatten(1).norm(dim=1) >= distance.repeat_interleave(20)).all()


def test_one_plane_for_all():
    "A grid's lines, its inputs, the window of some inputs, and the way back."
    plane = plane_through(randn(3, 1, 4, 4, seed=1))
    data = randn(30, 1, 4, 4, seed=2)
    seen = plane.project(data)[0]
    a, b, c, d = plane.window(data, pad=.1)
    low, high = seen.amin(0), seen.amax(0)
    assert_close(torch.tensor([a, c, b, d], dtype=F64), torch.cat([low - .1 * (high - low), high + .1 * (high - low)]))
    u, v = plane.lines((a, b, c, d), 7)
    assert len(u) == len(v) == 7 and (u[0], u[-1], v[0], v[-1]) == (a, b, c, d)
    places = torch.cartesian_prod(u, v)
    back, off = plane.project(plane.at(places))
    assert_close(back, places) and off.max() < 1e-12
    single = plane.to(torch.float32)
    assert single.axes.dtype == single.inputs.dtype == single.at(places).dtype == torch.float32
    assert single.source == "three inputs"
    with pytest.raises(ValueError, match="at least 2"): plane.lines((a, b, c, d), 1)


def test_feature_plane():
    origin = randn(5, seed=3)
    plane = feature_plane(origin, 3, 1)
    x = plane.at(torch.tensor([[7., 8.]]))[0]
    assert x[3] == 7 and x[1] == 8 and torch.equal(x[[0, 2, 4]], origin[[0, 2, 4]]) and plane.source == "two features"
    assert torch.equal(feature_plane(X[0, :2]).at(X[:, :2]), X[:, :2])
    for i, j in ((0, 0), (0, 5), (-1, 2)):
        with pytest.raises(ValueError, match="two different features"): feature_plane(origin, i, j)


def test_principal_plane():
    cloud = randn(500, 4) * torch.tensor([3., .1, 2., .1], dtype=F64) + 7
    plane = plane_through(cloud)
    assert_close(plane.axes.abs(), torch.tensor([[1., 0, 0, 0], [0, 0, 1, 0]], dtype=F64), rtol=0, atol=.15)
    U = torch.linalg.svd(cloud - cloud.mean(0), full_matrices=False).Vh[:2]
    assert_close((plane.axes @ U.T).abs(), torch.eye(2, dtype=F64))
    assert .99 < plane.explained < 1 and plane.source == "principal axes"
    assert plane_through(cloud.float()).axes.dtype == torch.float32


def test_a_plane_scan_is_what_the_model_says():
    objective = Objective(relu_mlp(), (X, Y))
    plane, V = plane_through(X[:3]), randn(2, objective.n_params)
    scan = scan_plane(objective, X, V, plane=plane, n=41)  # more points than one block, and not a multiple
    places = torch.stack(torch.meshgrid(scan.v, scan.u, indexing="ij")[::-1], -1).reshape(-1, 2)
    inputs = plane.at(places)
    assert torch.equal(scan.predictions.flatten(), objective.predict(inputs).argmax(1))
    assert_close(scan.cosines.flatten(1).T, align(objective, inputs, V).cosines)
    assert_close(scan.confidence.flatten(), objective.predict(inputs).softmax(1).amax(1))


def test_path_in_closed_form():
    W, b = torch.tensor([[1., 0, 0], [-1., 0, 0]], dtype=F64), torch.zeros(2, dtype=F64)
    objective = linear(W, b)
    start, end = torch.tensor([-1., 2, 3], dtype=F64), torch.tensor([3., 2, 0], dtype=F64)
    path = scan_path(objective, start, end, torch.eye(8, dtype=F64)[[0]], n=401, label=0)
    x = -1 + 4 * path.t
    assert_close(path.distance, 5 * path.t)
    assert_close(path.logit_margin, 2 * x.abs(), atol=1e-14, rtol=1e-12)
    assert_close(path.loss, torch.log1p(torch.exp(-2 * x.abs())))
    assert_close(path.label_loss, torch.log1p(torch.exp(-2 * x)))
    assert_close(path.confidence, torch.sigmoid(2 * x.abs()))
    # of the gradient with respect to (W, b), up to p
    norm = (2 * ((start + path.t[:, None] * (end - start)).square().sum(1) + 1)).sqrt()
    keep = x.abs() > 1e-12
    assert_close(path.cosines[keep, 0], (-x.sign() * x / norm)[keep])
    assert path.changes.tolist() == [99] or path.changes.tolist() == [100]


WEIGHTED = nn.CrossEntropyLoss(weight=torch.tensor([1., 2., 5., .5], dtype=F64))


@pytest.mark.parametrize("loss", [WEIGHTED, nn.CrossEntropyLoss(label_smoothing=.1), nn.MSELoss()])
def test_path_uses_the_objectives_own_loss(loss):
    y = F.one_hot(Y, 4).double() if isinstance(loss, nn.MSELoss) else Y
    model = mlp()
    path = scan_path(Objective(model, (X, y), loss), X[0], X[1], n=15, label=2)
    out = model(X[0] + path.t[:, None] * (X[1] - X[0])).detach()
    target = torch.full((15,), 2)
    if isinstance(loss, nn.MSELoss): each = [(o - F.one_hot(t, 4)).square().sum() for o, t in zip(out, target)]
    else:
        options = dict(weight=loss.weight, reduction="sum", label_smoothing=loss.label_smoothing)
        each = [F.cross_entropy(o[None], t[None], **options) for o, t in zip(out, target)]
    assert_close(path.label_loss, torch.stack(each))


def test_losses_of_saturated_networks_keep_their_digits():
    objective = linear(torch.tensor([[100., 0, 0], [-100., 0, 0]]), torch.zeros(2))
    path = scan_path(objective, torch.tensor([.5, 0, 0]), torch.tensor([1., 0, 0]), n=3)
    assert_close(path.loss.log(), torch.tensor([-100., -150., -200.], dtype=F64), rtol=1e-6, atol=0)


def fake_scan(cosines, predictions):
    n = predictions.shape[0]
    line = torch.arange(n, dtype=F64)
    return PlaneScan(line, line, predictions, torch.ones(n, n), cosines, Plane(torch.zeros(2), torch.eye(2)))


def test_boundary_map_in_closed_form():
    n = 6
    side = torch.where(torch.arange(n) < 3, 1., -1.).double().expand(n, n)
    turn = torch.linspace(.2, .8, n, dtype=F64)[:, None].expand(n, n)
    scan = fake_scan(torch.stack([side * turn, side * .5, .3 * torch.ones(n, n, dtype=F64)]), (side < 0).long())
    values = torch.tensor([4., 1., -2.], dtype=F64)
    rebuilt = boundary_map(scan, values)
    assert rebuilt.n_used == 2 and rebuilt.found == rebuilt.true == 1 and rebuilt.n_changes == n
    assert_close(rebuilt.curvature, 4 * turn.square() + .25)
    assert_close(rebuilt.across_u[:, 2], -torch.ones(n, dtype=F64))
    assert_close(rebuilt.across_u[:, 0], torch.ones(n, dtype=F64))
    t = turn[:, 0]
    cosine = (4 * t[1:] * t[:-1] + .25) / ((4 * t[1:]**2 + .25) * (4 * t[:-1]**2 + .25)).sqrt()
    assert_close(rebuilt.across_v, cosine[:, None].expand(n - 1, n))
    signed = 4 * side * turn + side * .5 - .6
    assert_close(rebuilt.signed, signed / signed.abs().max())
    assert rebuilt.reversal.shape == (n - 1, n - 1) and (rebuilt.reversal[:, 2] < -.999).all()
    assert (rebuilt.reversal[:, [0, 1, 3, 4]] > 0).all()
    signs = torch.tensor([-1., 1., -1.])[:, None, None]
    flipped = boundary_map(fake_scan(scan.cosines * signs, scan.predictions), values)
    assert torch.equal(flipped.across_u, rebuilt.across_u) and not torch.equal(flipped.signed, rebuilt.signed)


def test_boundary_map_bad_input():
    scan = fake_scan(None, torch.zeros(4, 4).long())
    with pytest.raises(ValueError, match="no alignments"): boundary_map(scan, torch.ones(1))
    scan = fake_scan(torch.ones(2, 4, 4, dtype=F64), torch.zeros(4, 4).long())
    with pytest.raises(ValueError, match="one eigenvalue for each of the 2"): boundary_map(scan, torch.ones(3))
    with pytest.raises(ValueError, match="no eigenvalue is positive"): boundary_map(scan, -torch.ones(2))
    assert math.isnan(boundary_map(scan, torch.ones(2)).found)


def testcontrasts():
    groups = torch.tensor([[0, 1], [1, 0], [0, 2], [2, 1]])
    means = torch.tensor([[.8, -.6, .1, math.nan], [.1, .1, -.5, .2]], dtype=F64)
    pairs, _, contrast = contrasts(groups, means)
    assert pairs.tolist() == [[0, 1], [0, 2], [1, 2]]
    assert_close(contrast, torch.tensor([[.7, .05, 0.], [0., -.25, -.1]], dtype=F64))


def test_eigenvector_table():
    objective = Objective(centred(relu_mlp(), X), (X, Y))
    pairs = top_eigenpairs(HessianOperator(objective), 4)
    table = eigenvector_table(objective, X, pairs, n_examples=7)
    a = align(objective, X, pairs.vectors)
    assert_close(table.cosines, a.cosines.T.gather(1, table.examples))
    order = a.cosines.abs().sort(0, descending=True).values[:7].T
    assert_close(table.cosines.abs(), order)
    assert torch.equal(table.labels, a.labels[table.examples])
    assert_close(table.contrasts, table.contrast_of.abs().amax(1))
    assert [r["classes"] for r in table.rows()] == [tuple(p) for p in table.class_pairs.tolist()]
    assert len(repr(table).splitlines()) == 5
    assert (table.class_pairs[:, 0] < table.class_pairs[:, 1]).all()
    top = objective.predict(X).topk(2).indices.tolist()
    assert table.sizes.tolist() == [[top.count([c, d]), top.count([d, c])] for c, d in table.pairs.tolist()]
    assert table.sizes.sum() == len(X)
    assert eigenvector_table(objective, X, pairs, n_examples=500).examples.shape == (4, 60)


def test_perturb():
    model = batch_norm()
    for p in model.parameters(): p.grad = torch.ones_like(p)
    objective = Objective(model, (X, Y), params="3.*")
    V = torch.linalg.qr(randn(objective.n_params, 2)).Q.T
    with untouched(model): moved = perturb(objective, 3 * V, torch.tensor([.5, -2.]))
    theta = flatten([p for n, p in moved.named_parameters() if n.startswith("3")])
    assert_close(theta, objective.theta + .5 * V[0] - 2 * V[1])
    for (n, p), q in zip(model.named_parameters(), moved.parameters()):
        assert n.startswith("3") or torch.equal(p, q)
        assert q.grad is None and q.requires_grad == p.requires_grad and q.is_leaf and q.data_ptr() != p.data_ptr()
    assert torch.equal(moved[1].running_var, model[1].running_var) and not moved.training
    there = objective.value(objective.theta + .5 * V[0] - 2 * V[1])
    assert Objective(moved, (X, Y)).value() == pytest.approx(there, rel=1e-14)


def test_perturb_starts_from_the_objective_not_from_a_model_trained_on():
    model = mlp()
    objective = Objective(model, (X, Y), params="2.*")
    before = objective.value()
    with torch.no_grad():
        for p in model.parameters(): p.add_(1.)
    unmoved = perturb(objective, torch.ones(1, objective.n_params, dtype=F64), 0.)
    assert Objective(unmoved, (X, Y)).value() == pytest.approx(before, rel=1e-14)


def test_what_does_not_move_keeps_its_digits():
    "A float32 objective of a float64 model: the copy has the model's own numbers wherever nothing moved."
    model = mlp()
    objective = Objective(model, (X, Y), params="2.*", dtype=torch.float32)
    direction = torch.zeros(1, objective.n_params)
    direction[0, 0] = 1.
    moved = perturb(objective, direction, .5)
    assert torch.equal(moved[0].weight, model[0].weight) and (moved[2].weight != model[2].weight).sum() == 1
    assert torch.equal(moved[2].bias, model[2].bias)
    assert moved[2].weight[0, 0].item() == pytest.approx(model[2].weight[0, 0].item() + .5, rel=1e-6)


def test_perturbed_precision_and_ties():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight
        def forward(self, x): return self.b(torch.tanh(self.a(x)))
    model = build(Tied).float()
    objective = Objective(model, (X, Y % 3), dtype=F64)
    moved = perturb(objective, torch.ones(1, objective.n_params, dtype=F64), 1.)
    assert moved.a.weight is moved.b.weight and moved.a.weight.dtype == torch.float32
    assert_close(moved.a.weight, model.a.weight + objective.n_params ** -.5)


def test_curvature_lengths():
    op = HessianOperator(Objective(mlp(), (X, Y)))
    with quiet("rounding floor"): pairs = dense_eigenpairs(op)
    v, unit = pairs.vectors[0], curvature_lengths(pairs.values)[0]
    objective = op.objective
    rise = sum(objective.value(objective.theta + s * unit * v) - objective.value() for s in (.01, -.01)) / 2
    assert rise == pytest.approx(.5e-4, rel=1e-3)
    assert curvature_lengths(torch.tensor([4., -.25, 0.])).tolist() == [.5, 2., math.inf]


def test_no_side_effects(rng_draws):
    model, x = relu_mlp(), X.clone()
    centred(model, x)
    objective = Objective(model, (x, Y))
    pairs = top_eigenpairs(HessianOperator(objective), 3)
    with untouched(model, tensors=[x, pairs.vectors]), torch.inference_mode():
        found = boundary_points(objective, x, n=10, pairs="random")
        plane = plane_through(torch.stack([found.points[0], found.points[1], x[0]]))
        scan = scan_plane(objective, x, pairs.vectors, plane=plane, n=10)
        boundary_map(scan, pairs.values), scan_path(objective, x[0], x[1], pairs.vectors, n=10)
        eigenvector_table(objective, x, pairs)
        perturb(objective, pairs.vectors, [.1, .2, .3])
    assert len(found) == 10 and not found.points.requires_grad


@pytest.mark.pretended
def test_device():
    from fakegpu import DEVICE, fake_gpu
    with fake_gpu():
        loss = nn.CrossEntropyLoss(weight=torch.tensor([1., 2., 5., .5]))
        here, there = (Objective(centred(relu_mlp(), X).to(device), (X, Y), loss) for device in ("cpu", DEVICE))
        V = randn(2, here.n_params)
        near = lambda a, b: a.device == DEVICE and torch.allclose(a.cpu().double(), b.double(), atol=1e-10)
        for how in ("nearest", "random"):
            a, b = boundary_points(there, X, n=15, pairs=how), boundary_points(here, X, n=15, pairs=how)
            assert near(a.points, b.points) and near(a.t, b.t) and near(a.examples, b.examples)
            assert near(a.class_pairs, b.class_pairs)
        p, q = plane_through(a.points[:3]), plane_through(b.points[:3])
        assert near(p.axes, q.axes) and near(p.project(X)[1], q.project(X)[1]) and near(p.at(p.inputs), q.at(q.inputs))
        window = dict(n=5, extent=(-1., 1., -1., 1.))
        s, t = (scan_plane(o, vectors=V, plane=plane, **window) for o, plane in ((there, p), (here, q)))
        m, k = (boundary_map(scan, torch.tensor([2., 1.])) for scan in (s, t))
        assert near(m.across_u, k.across_u) and near(m.reversal, k.reversal) and m.found == k.found
        c, d = (scan_path(o, X[0], X[1], V, n=5, label=1) for o in (there, here))
        assert near(c.loss, d.loss) and near(c.cosines, d.cosines) and near(c.label_loss, d.label_loss)
        assert repr(c) == repr(d)
        moved = perturb(there, V, [.1, .2])
        assert all(near(x, y) for x, y in zip(moved.parameters(), perturb(here, V, [.1, .2]).parameters()))


class Curve(nn.Module):
    "A network of two parameters whose loss is a function of the first."
    def __init__(self, function):
        super().__init__()
        self.p, self.function = nn.Parameter(torch.zeros(2, dtype=torch.float64)), function

    def forward(self, x): return self.function(self.p[0]) + 0 * self.p[1] + 0 * x[:, 0]


def along(function, *args, **kwargs):
    "What `loss_lengths` says of a function of one number, at 0."
    data = torch.zeros(3, 1, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    objective = Objective(Curve(function), data, lambda outputs, target: outputs)
    first = torch.tensor([[1., 0.]], dtype=torch.float64)
    return loss_lengths(objective, first, *args, **{"longest": 10., "rtol": 1e-3} | kwargs)


class TestLossLengths:
    def test_a_quadratic_loss(self):
        "Linear regression: lengths by the formula, and the prediction holds as far as the walk went."
        X, y = randn(30, 4), randn(30, 1)
        model = build(lambda: nn.Linear(4, 1))
        objective = Objective(model, (X, y), nn.MSELoss())
        pairs = dense_eigenpairs(HessianOperator(objective))
        found = loss_lengths(objective, 3 * pairs.vectors, (.01, .5), longest=100., rtol=1e-4)
        for v, value, lengths, ends in zip(pairs.vectors, pairs.values, found.lengths, found.quadratic):
            for sign, (small, large), end in zip((-1, 1), lengths, ends):
                slope = sign * (objective.grad() @ v)
                for rise, length in ((.01, small), (.5, large)):
                    exact = (-slope + (slope**2 + 2 * value * rise).sqrt()) / value
                    assert_close(length, exact, rtol=1e-3, atol=0)
                assert end >= large
        assert found.n_examples == 30 and found.n_values <= 2 * 5 * 30 and "30 examples" in repr(found)

    @pytest.mark.parametrize("function, value, minus, plus", [
        (lambda p: p**4, 0., (.01**.25, 1.), (.01**.25, 1.)),  # flat: no curvature at all
        (lambda p: -p**2 + p**4, -2., (1.005, 1.272), (1.005, 1.272)),  # negative: it falls before it rises
        (lambda p: p**2 + p**3, 2., (.1059, math.inf), (.0954, .7549)),  # along -v it never rises by 1
        (lambda p: torch.tanh(p**2) / 2, 1., (.1414, math.inf), (.1414, math.inf)),  # it saturates
        (lambda p: 0 * p, 0., (math.inf, math.inf), (math.inf, math.inf)),  # constant
        (lambda p: p**2 + 0 * torch.sqrt(.5 - p), 2., (.1, 1.), (.1, math.inf)),  # NaN beyond .5
        (lambda p: p**2 / (p > -.3), 2., (.1, math.inf), (.1, 1.)),  # infinite beyond -.3
    ])
    def test_every_shape(self, function, value, minus, plus):
        for curvature in (None, torch.tensor([value])):
            found = along(function, (.01, 1.), curvatures=curvature)
            expected = torch.tensor([[minus, plus]], dtype=torch.float64)
            assert_close(found.lengths, expected, rtol=1e-3, atol=1e-4)
            assert found.n_values <= 120
            for sign, end in zip((-1, 1), found.walked[0]):  # as far as the loss is finite, or to the largest rise
                assert function(sign * end).isfinite() and end <= 10
                if not found.lengths[0, (sign + 1) // 2].isinf().any(): assert function(sign * end) >= 1
                elif end < 10: assert not function(1.01 * sign * end).isfinite()

    def test_where_the_prediction_holds(self):
        "`p**2 + p**3` leaves `p**2` by a tenth of it at .1."
        found = along(lambda p: p**2 + p**3, (1e-5, 1.), rtol=1e-3)
        assert_close(found.quadratic, torch.full((1, 2), .1, dtype=torch.float64), rtol=2e-3, atol=0)
        wider = along(lambda p: p**2 + p**3, (1e-5, 1.), rtol=1e-3, tolerance=.2)
        assert_close(wider.quadratic, torch.full((1, 2), .2, dtype=torch.float64), rtol=2e-3, atol=0)
        small = along(lambda p: p**2 + p**3, (.1, 1.))  # an error of .01 is allowed everywhere
        assert_close(small.quadratic[0, 1], torch.tensor(.01**(1 / 3), dtype=torch.float64), rtol=2e-3, atol=0)

    def test_it_is_the_first_rise(self):
        "Behind a hump the loss falls again; the length is that of the hump's near side."
        found = along(lambda p: torch.sin(p)**2 + 0 * p, (.5,))
        assert_close(found.lengths.flatten(), torch.full((2,), math.pi / 4, dtype=torch.float64), rtol=1e-3, atol=0)

    def test_refused(self):
        for bad, words in [(dict(rises=()), "ascending"), (dict(rises=(.1, .1)), "ascending"),
                           (dict(rises=(-1.,)), "positive"), (dict(tolerance=0.), "tolerance"),
                           (dict(longest=0.), "longest"), (dict(curvatures=torch.ones(2)), "expected 1 curvatures")]:
            with pytest.raises(ValueError, match=words): along(lambda p: p**2, **bad)

    def test_nothing_is_changed(self):
        model = build(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)))
        X = randn(20, 3)
        with untouched(model): loss_lengths(model, torch.eye(38)[:2], data=(X, X.argmax(1)))
