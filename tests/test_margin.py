"""Distances to the boundary against closed forms, a dense grid and a search over all examples; and what the search
must not do."""
import math
from collections import UserList

import pytest
import torch
from test_reference import network  # noqa: F401, a fixture
from torch import nn
from torch.testing import assert_close

from conftest import F64, Formula, build, quiet, randn, seeded, untouched
from hessnb.boundary import distance, search
from hessnb.boundary import margin as margin_module
from hessnb.boundary.alignment import align
from hessnb.boundary.curves import trace_boundary
from hessnb.boundary.distance import BoundaryDistances, nearest_boundary
from hessnb.boundary.margin import as_margin, estimate_margin, support_examples
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.top import top_eigenpairs
from hessnb.paper.zoo import find_minimum


def of(fn, X): return Objective(Formula(fn).eval(), (X, torch.zeros(len(X), dtype=torch.int64)))


def two(score):
    "Class 1 where `score(x)` `(N,)` is positive."
    return lambda x: torch.stack([torch.zeros_like(score(x)), score(x)], 1)


def distance_to_halfspace(x, w, b, norm, box):
    """Exact distance of one input to `w x + b = 0` within a box: the shortest way is cut off at the box, its length
    the root of a monotone function."""
    slope = (w @ x + b).sign() * w
    if box is None: return ((w @ x + b).abs() / (w.norm() if norm == "l2" else w.abs().sum())).item()
    at = lambda t: (x - t * (slope if norm == "l2" else slope.sign())).clamp(*box)
    low, high = 0., 1e3
    if (slope @ at(high) + b * (w @ x + b).sign()).item() > 0: return math.inf
    for _ in range(80):
        middle = (low + high) / 2
        if (slope @ at(middle) + b * (w @ x + b).sign()).item() > 0: low = middle
        else: high = middle
    step = at(high) - x
    return (step.norm() if norm == "l2" else step.abs().max()).item()


@pytest.mark.parametrize("D", [2, 20, 100])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("box", [None, (0., 1.)])
def test_halfspace(D, norm, box):
    w, X = randn(D, seed=D), torch.rand(25, D, generator=seeded(D + 1), dtype=F64)
    X[:, : D // 2] = X[:, : D // 2].round()  # many inputs begin at the box
    b = -(w @ X.mean(0)) + .1
    objective = of(two(lambda x: x @ w + b), X)
    found = nearest_boundary(objective, X, norm=norm, box=box)
    truth = torch.tensor([distance_to_halfspace(x, w, b, norm, box) for x in X], dtype=F64)
    if box is None or D > 2: assert truth.isfinite().all()
    assert found.verified.equal(truth.isfinite())
    reachable = truth.isfinite()
    excess = found.values[reachable] / truth[reachable] - 1
    assert excess.min() > -1e-9 and excess.max() < .01 and excess.median() < 2e-3, excess
    if D == 20:
        assert estimate_margin(objective, X, None, n_candidates=25, norm=norm,
                               box=box).value == pytest.approx(truth.min().item(), rel=.01)


@pytest.mark.parametrize("D", [2, 20])
def test_sphere(D):
    centre, X = randn(D, seed=1) * .3 / D**.5, randn(30, D, seed=2) * torch.linspace(.2, 2, 30, dtype=F64)[:,
            None] / D**.5
    objective = of(two(lambda x: (x - centre).square().sum(1) - 1), X)
    found = nearest_boundary(objective, X)
    truth = ((X - centre).norm(dim=1) - 1).abs()
    assert found.verified.all() and (found.values / truth - 1).abs().max() < 3e-3
    assert ((found.points - centre).norm(dim=1) - 1).abs().max() < 2e-3 and (objective.classes(X) == 0).sum() not in (0,
            30)


@pytest.mark.parametrize("D", [2, 20])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_three_linear_classes(D, norm):
    W, X = randn(3, D, seed=3), randn(30, D, seed=4)
    objective = of(lambda x: x @ W.T, X)
    logits = X @ W.T
    own = logits.argmax(1)
    dual = (W[own][:, None] - W).norm(dim=2) if norm == "l2" else (W[own][:, None] - W).abs().sum(2)
    all_three = ((logits.gather(1, own[:, None]) - logits) / dual).nan_to_num(nan=math.inf)
    truth, other = all_three.min(1)
    found = nearest_boundary(objective, X, norm=norm)
    assert (found.values / truth - 1).max() < 5e-3 and (found.values / truth - 1).min() > -1e-9
    clear = all_three.sort(1).values[:, 1] > 1.02 * truth
    assert clear.sum() > 20 and found.classes.equal(objective.predict(torch.stack([X, found.points], 1).flatten(0,
            1)).argmax(1).reshape(-1, 2))
    assert found.classes[clear].equal(torch.stack([own, other], 1)[clear])


def test_reference_checkerboards(network):
    op, data = network
    if "margin_true_dist" not in data: pytest.skip("no true distances for this network")
    X, truth = torch.tensor(data["X_train"]).double(), torch.tensor(data["margin_true_dist"]).double()
    with quiet(): pairs = top_eigenpairs(op, 3)
    margin = estimate_margin(op.objective, X, pairs)
    assert margin.value == pytest.approx(truth.min().item(), rel=.02) and margin.nearest == int(truth.argmin())
    assert len(margin.candidates) <= 10 and margin.verified and margin.source == "v1+" or margin.source == "v1-"
    assert (nearest_boundary(op.objective, X).values / truth - 1).abs().max() < .02
    assert margin.n_forward < 15_000


@pytest.fixture(scope="module")
def trained():
    "Three clouds in four dimensions and a network that has learnt them: `(objective, X, pairs)`."
    y = torch.arange(90) % 3
    X = randn(90, 4, seed=5) * .8 + 2.5 * torch.eye(4, dtype=F64)[y]
    net = build(lambda: nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 3)), 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X), y).backward()
        optimizer.step()
    net.zero_grad()
    objective = Objective(net, (X, y))
    return objective, X, top_eigenpairs(HessianOperator(objective), 4)


def test_few_examples_give_the_margin_of_all(trained):
    objective, X, pairs = trained
    every = nearest_boundary(objective, X)
    for options in ({}, {"n_directions": 2}, {"n_candidates": 6}):
        margin = estimate_margin(objective, X, pairs, **options)
        assert margin.nearest == int(every.values.argmin()) and margin.value == pytest.approx(every.values.min().item(),
                rel=5e-3)
        assert 8 * margin.n_forward < every.n_forward or len(margin.candidates) > 6
    assert (margin.boundary_point - X[margin.nearest]).norm().item() == pytest.approx(margin.value)
    own, beyond = objective.classes(torch.stack([X[margin.nearest], margin.boundary_point])).tolist()
    assert margin.classes == (own, beyond) and own != beyond


def test_no_random_direction_is_shorter(trained):
    "Rays of .99 of the distance in 400 random directions and towards every example: none is predicted otherwise."
    objective, X, _ = trained
    found = nearest_boundary(objective, X)
    own = objective.classes(X)
    for norm, lengths in (("l2", found.values), ("linf", nearest_boundary(objective, X, norm="linf").values)):
        for i in range(0, 90, 9):
            d = torch.cat([randn(400, 4, seed=i), X - X[i], X - X[i] + .3 * randn(90, 4, seed=i)])
            size = d.norm(dim=1, keepdim=True) if norm == "l2" else d.abs().amax(1, keepdim=True)
            ends = X[i] + .99 * lengths[i] * d / size.clamp_min(1e-12)
            assert (objective.predict(ends).argmax(1) == own[i]).all(), (norm, i)


def test_dense_grid_of_directions():
    """A random network in the plane with many pieces of boundary; 800 directions for each input, each bisected at
    its first crossing."""
    net = build(lambda: nn.Sequential(nn.Linear(2, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4)), 7)
    with torch.no_grad():
        for p in net.parameters(): p *= 3.
        net[-1].bias -= net(torch.zeros(1, 2, dtype=F64))[0]
    X = randn(30, 2, seed=8)
    objective = Objective(net, (X, torch.zeros(30, dtype=torch.int64)))
    found = nearest_boundary(objective, X)
    angle, own, truth = torch.arange(800) * (2 * math.pi / 800), objective.classes(X), []
    d = torch.stack([angle.cos(), angle.sin()], 1).double()
    for x, y, reach in zip(X, own, found.values):
        reach = min(reach.item() * 1.2, 5.)
        t = torch.linspace(0, reach, 41, dtype=F64)[1:]
        crossed = (objective.predict((x + t[:, None, None] * d).reshape(-1, 2)).argmax(1) != y).reshape(40, 800)
        first = torch.where(crossed.any(0), crossed.int().argmax(0), 40)
        high = t[first.clamp_max(39)]
        low = high - reach / 40
        for _ in range(20):
            middle = (low + high) / 2
            c = objective.predict(x + middle[:, None] * d).argmax(1) != y
            low, high = torch.where(c, low, middle), torch.where(c, middle, high)
        truth.append(high[first < 40].min())
    error = found.values / torch.stack(truth) - 1
    assert len(own.unique()) > 2 and found.verified.all() and (error.abs() < .02).all(), error


def wedge(x):
    "Class 1 in a sliver of 9 degrees whose tip is .3 from the origin, and beyond x_1 = -1."
    return torch.maximum(60 * (.08 * (x[:, 0] - .3) - x[:, 1].abs()), -x[:, 0] - 1)


def test_a_sliver_between_the_starts_is_seen():
    X = torch.tensor([[0., 0.], [-2., .5], [-2., -.5], [-1.5, 0.]], dtype=F64)
    found = nearest_boundary(of(two(wedge), X), X[:1], pool=X)
    assert found.values.item() == pytest.approx(.3, rel=.02) and found.by_start[0, :5].min() > .99


def test_ends_of_other_searches_are_shared(monkeypatch):
    """In 20 dimensions, where nothing is looked around: a ball that the first input has no start towards, but its
    neighbour has."""
    def score(x): return torch.maximum(10 * (1 - (x - 3 * torch.eye(20, dtype=x.dtype)[0]).norm(dim=1)), x[:, 1] - 2.5)
    pool = torch.zeros(2, 20, dtype=F64)
    pool[0, 0], pool[1, 1] = 3., 2.6
    X = torch.zeros(2, 20, dtype=F64)
    X[1, 0] = 1.5
    objective = of(two(score), pool)
    alone, together = (nearest_boundary(objective, x, pool=pool, n_starts=1).values for x in (X[:1], X))
    assert_close(alone, torch.tensor([2.5], dtype=F64), rtol=2e-3, atol=0)
    assert_close(together, torch.tensor([2., .5], dtype=F64), rtol=2e-3, atol=0)
    for room in (search, distance): monkeypatch.setattr(room, "HELD_DISTANCES", 1)
    assert nearest_boundary(objective, X.flip(0), pool=pool, n_starts=1).values.equal(together.flip(0))


def test_every_class_is_started_towards():
    "The nearest examples are all of class 1; class 2 has one example farther away, whose boundary is nearer."
    def score(x):
        return torch.stack([torch.zeros_like(x[:, 0]), 5 * (x[:, 0] - 1),
                            3 * (x - 0).select(1, 1) - .9 * 3 + 0 * x[:, 0]], 1)
    pool = torch.zeros(7, 20, dtype=F64)
    pool[1:6, 0], pool[6, 1] = torch.linspace(1.1, 1.5, 5, dtype=F64), 4.
    found = nearest_boundary(of(score, pool), pool[:1], pool=pool, n_starts=4)
    assert found.values.item() == pytest.approx(.9, rel=2e-3) and found.classes.tolist() == [[0, 2]]
    assert found.by_start[0, 1].item() == pytest.approx(.9, rel=.02) and found.by_start[0,
            0].item() == pytest.approx(1., rel=.02)


@pytest.mark.parametrize("tol", [1e-2, 1e-3, 1e-6])
def test_both_sides_within_the_tolerance(trained, tol):
    objective, X, _ = trained
    found = nearest_boundary(objective, X[:20], pool=X, tol=tol)
    own, beyond = objective.predict(found.inside).argmax(1), objective.predict(found.points).argmax(1)
    assert found.verified.all() and own.equal(objective.predict(X[:20]).argmax(1)) and (beyond != own).all()
    assert found.classes.equal(torch.stack([own, beyond], 1))
    outer, inner = (found.points - X[:20]).norm(dim=1), (found.inside - X[:20]).norm(dim=1)
    assert_close(outer, found.values)
    assert ((outer - inner) <= tol * outer * (1 + 1e-6)).all() and (inner < outer).all()
    assert (found.by_start.amin(1) >= found.values * (1 - 1e-12)).all()
    assert (found.by_start.amin(1) <= found.values * 1.02).all()


def test_first_crossing_on_the_way():
    "The start lies beyond a slab: what counts is where its near face is crossed."
    X = torch.tensor([[0., 0.], [4., 0.]], dtype=F64)
    slab = two(lambda x: torch.maximum(.3 - (x[:, 0] - 1.5).abs(), x[:, 0] - 3))
    found = nearest_boundary(of(slab, X), X[:1], pool=X, n_starts=1)
    assert found.values.item() == pytest.approx(1.2, rel=2e-3)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_box_is_respected(trained, norm):
    objective, X, pairs = trained
    box = X.min().item(), X.max().item()
    free, found = nearest_boundary(objective, X, norm=norm), nearest_boundary(objective, X, norm=norm, box=box)
    for z in (found.points, found.inside): assert z.min() >= box[0] and z.max() <= box[1]
    assert (found.values >= free.values * .995).all() and found.verified.all()
    edge = ((X <= box[0]) | (X >= box[1])).any(1)
    assert edge.any() and ((free.points < box[0]) | (free.points > box[1])).any()
    margin = estimate_margin(objective, X, pairs, norm=norm, box=box)
    assert margin.boundary_point.min() >= box[0] and margin.boundary_point.max() <= box[1] and margin.norm == norm


def test_norms_bound_each_other(trained):
    objective, X, pairs = trained
    l2, linf = (nearest_boundary(objective, X, norm=norm).values for norm in ("l2", "linf"))
    assert (linf <= l2 * 1.005).all() and (l2 <= 2 * linf * 1.005).all()
    assert estimate_margin(objective, X, pairs, norm="linf").value == pytest.approx(linf.min().item(), rel=5e-3)


def test_single_precision(trained):
    objective, X, pairs = trained
    fine, coarse = nearest_boundary(objective, X), nearest_boundary(objective.to(torch.float32), X.float())
    assert coarse.values.dtype == coarse.points.dtype == torch.float32 and coarse.verified.all()
    assert (coarse.values.double() / fine.values - 1).abs().max() < .01
    assert estimate_margin(objective.to(torch.float32), X, pairs).value == pytest.approx(fine.values.min().item(),
            rel=5e-3)


def test_pieces_and_batches_do_not_matter(trained):
    objective, X, pairs = trained
    y = objective.classes(X)
    small = Objective(objective.model, [(X[:50], y[:50]), (X[50:83], y[50:83]), (X[83:], y[83:])], memory_budget=8_000)
    assert 1 <= small.micro_batch_size < 10
    a, b = (nearest_boundary(o, X[:12], pool=X) for o in (objective, small))
    assert_close(a.values, b.values, rtol=1e-9, atol=0)
    assert (a.n_forward, a.n_backward) == (b.n_forward, b.n_backward)
    assert estimate_margin(small, X, pairs).value == pytest.approx(estimate_margin(objective, X, pairs).value, rel=1e-6)


def test_matrices_of_distances_in_rows(trained, monkeypatch):
    objective, X, _ = trained
    whole = nearest_boundary(objective, X[:20], pool=X)
    for room in (search, distance): monkeypatch.setattr(room, "HELD_DISTANCES", 7 * len(X))
    rows = nearest_boundary(objective, X[:20], pool=X)
    assert rows.values.equal(whole.values) and rows.by_start.equal(whole.by_start) and rows.n_forward == whole.n_forward


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_images(norm):
    net = build(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)),
                3)
    X = torch.rand(12, 1, 8, 8, generator=seeded(0), dtype=F64)
    with torch.no_grad(): net[-1].bias -= net(X).mean(0)
    objective = Objective(net, (X, torch.arange(12) % 3))
    found = nearest_boundary(objective, X, norm=norm, box=(0., 1.))
    assert found.points.shape == X.shape and found.verified.all() and found.points.min() >= 0
    assert found.points.max() <= 1
    step = (found.points - X).flatten(1)
    assert_close(step.norm(dim=1) if norm == "l2" else step.abs().amax(1), found.values)
    flat = Objective(nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *net), (X.flatten(1), torch.arange(12) % 3))
    assert_close(nearest_boundary(flat, X.flatten(1), norm=norm, box=(0., 1.)).values, found.values, rtol=1e-9, atol=0)


def test_nothing_of_the_user_is_touched(trained):
    objective, X, pairs = trained
    objective.model[0].weight.grad = torch.ones_like(objective.model[0].weight)
    with untouched(objective.model, tensors=[X, pairs.vectors]), quiet():
        estimate_margin(objective, X, pairs, designed=True)
        nearest_boundary(objective, X[:5], pool=X, norm="linf", box=(-9., 9.))
        with pytest.raises(ValueError): nearest_boundary(objective, X, norm="l7")
    objective.model.zero_grad()


def test_modes_of_the_caller_do_not_matter(trained):
    objective, X, pairs = trained
    plain = estimate_margin(objective, X, pairs)
    wants_grad = X.clone().requires_grad_()
    with torch.inference_mode(): inside = estimate_margin(objective, X * 1, pairs)
    with torch.no_grad(): without = estimate_margin(objective, X, pairs)
    with torch.autocast("cpu", dtype=torch.bfloat16): cast = estimate_margin(objective, X, pairs)
    attached = estimate_margin(objective, wants_grad, pairs)
    for other in (inside, without, cast, attached):
        assert other.value == plain.value and other.candidates == plain.candidates
        assert not other.boundary_point.requires_grad
    with torch.inference_mode(): inside = nearest_boundary(objective, X[:3] * 1, pool=X * 1)
    assert inside.values.equal(nearest_boundary(objective, X[:3], pool=X).values) and wants_grad.grad is None


def test_the_same_twice(trained):
    objective, X, pairs = trained
    torch.rand(7)
    first, second = estimate_margin(objective, X, pairs), estimate_margin(objective, X, pairs)
    assert first.value == second.value and first.distances.equal(second.distances)
    assert first.n_forward == second.n_forward
    other = estimate_margin(objective, X, pairs, generator=seeded(5))
    assert other.value == pytest.approx(first.value, rel=5e-3)
    a, b = (nearest_boundary(objective, X[order], pool=X).values for order in (torch.arange(20),
            torch.arange(20).flip(0)))
    assert_close(a, b.flip(0), rtol=5e-3, atol=0)  # the order of the inputs decides no answer


class Counted(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.seen = model, UserList([0, 0])  # a list of its own would be as before afterwards
    def forward(self, x):
        self.seen[0] += len(x)
        if x.requires_grad: x.register_hook(lambda g: self.seen.__setitem__(1, self.seen[1] + len(g)))
        return self.model(x)


def test_passes_are_counted(trained):
    objective, X, pairs = trained
    counted = Counted(objective.model)
    mine = Objective(counted, (X, objective.classes(X)))
    for call in (lambda: nearest_boundary(mine, X[:9], pool=X), lambda: nearest_boundary(mine, X[:9], pool=X,
            starts=X[:3] + 5, norm="linf", box=(-9., 9.)), lambda: estimate_margin(mine, X, None)):
        counted.seen[:] = 0, 0
        found = call()
        assert [found.n_forward, found.n_backward] == counted.seen and found.n_backward > 0
    led = estimate_margin(objective, X, pairs)
    search = nearest_boundary(objective, X[list(led.candidates)], pool=X)
    # beside the search and two looks at the outputs: alignment predicts, then differentiates; so does the screen, whose
    # second differentiation is for each of the two other classes
    assert (led.n_forward, led.n_backward) == (search.n_forward + 2 + 6 * 90, search.n_backward + 4 * 90)
    assert estimate_margin(objective, X, pairs, n_directions=1, designed=True).n_backward > led.n_backward + 200


def test_candidates_are_the_extremes_then_the_first_order_ones(trained):
    objective, X, pairs = trained
    cosines = align(objective, X, pairs.vectors).cosines
    chosen = support_examples(objective, X, cosines, n_candidates=9, n_screened=2)
    names, order = {}, [(int(a.argmax()), int(a.argmin())) for a in cosines.T]
    for j, (high, low) in enumerate(order):
        for i, name in ((high, f"v{j + 1}+"), (low, f"v{j + 1}-")):
            if len(names) < 7: names.setdefault(i, name)
    assert {i: s for i, s in chosen.items() if s != "first order"} == names and len(chosen) == 9
    x = X.clone().requires_grad_()
    top = objective.model(x).topk(3, dim=1).values
    first = {"l2": [], "linf": []}
    for other in (1, 2):
        lead = top[:, 0] - top[:, other]
        slope, = torch.autograd.grad(lead.sum(), x, retain_graph=True)
        for norm, dual in (("l2", slope.norm(dim=1)), ("linf", slope.abs().sum(1))): first[norm].append(lead / dual)
    for norm, each in first.items():
        assert list(support_examples(objective, X, cosines[:, :0], n_candidates=90,
                                     norm=norm)) == torch.stack(each).amin(0).argsort().tolist()
    assert list(support_examples(objective, X, cosines, n_candidates=1, n_screened=0)) == [order[0][0]]
    undefined = cosines.clone()
    undefined[order[0][0]] = math.nan
    assert order[0][0] not in list(support_examples(objective, X, undefined[:, :1], n_candidates=2, n_screened=0))


def test_what_a_margin_says(trained):
    objective, X, pairs = trained
    margin = estimate_margin(objective, X, pairs, n_directions=2)
    every = dict(zip(margin.candidates, margin.distances.tolist()))
    assert len(margin.directions) == 2 and margin.n_examples == 90
    for d in margin.directions:
        assert d.value == min(every[i] for i in d.examples) and every[d.nearest] == d.value and d.nearest in d.examples
        assert set(d.examples) <= set(margin.candidates)
    best = nearest_boundary(objective, X[[margin.nearest]], pool=X)
    assert margin.value == min(every.values())
    assert margin.sources[margin.candidates.index(margin.nearest)] == margin.source
    ends = best.by_start[0][best.by_start[0].isfinite()]
    assert margin.spread == pytest.approx((ends.max() - ends.min()).item(),
                                          abs=.02 * margin.value + 1e-6) and 0 < margin.agreement <= 1


def test_what_is_reported_of_the_searches():
    "Spread and agreement are of the best example's starts, a direction's margin is the smaller of its two."
    values = torch.tensor([2., 1., 3.], dtype=F64)
    by_start = torch.tensor([[2., 2., 9., math.inf], [1., 1.01, 1.5, math.inf], [3., 3., 3., 3.]], dtype=F64)
    found = BoundaryDistances(values, torch.zeros(3, 2), torch.zeros(3, 2), torch.tensor([[0, 1], [1, 2], [2, 0]]),
                              by_start, torch.ones(3, dtype=torch.bool), "l2", 1e-3, 10, 5)
    cosines = torch.tensor([[.9, -.1], [-.8, .7], [0., -.9]], dtype=F64)
    margin = as_margin(found, {0: "v1+", 1: "v1-", 2: "v2-"}, cosines, 7, 100, 50)
    assert (margin.value, margin.nearest, margin.source, margin.classes) == (1., 1, "v1-",
            (1, 2)) and margin.spread == .5 and margin.agreement == pytest.approx(2 / 3)
    assert [(d.value, d.nearest, d.examples) for d in margin.directions] == [(1., 1, (0, 1)), (1., 1, (1, 2))]
    assert (margin.n_examples, margin.n_forward, margin.n_backward) == (7, 100, 50)


def test_spread_and_agreement_tell_two_pieces():
    "Faces at 1 and at -1.5, an example beyond each, no start else: half of the ends agree."
    X = torch.zeros(3, 20, dtype=F64)
    X[1, 0], X[2, 0] = 1.1, -1.6
    objective = of(two(lambda x: torch.maximum(x[:, 0] - 1, -x[:, 0] - 1.5)), X)
    margin = estimate_margin(objective, X[[0, 0, 0, 1, 2]], None, n_candidates=1)
    found = nearest_boundary(objective, X[:1], pool=X)
    assert found.values.item() == pytest.approx(1., rel=2e-3) and found.by_start[0].isfinite().sum() == 3
    assert (found.by_start[0][:2].max() - 1.5).abs() < .01 and margin.n_examples == 5 and 0 <= margin.spread < .01


def test_not_a_number_is_no_other_class():
    "log x is NaN below 0: the boundary is at 1, and nothing beyond 0 counts as crossed, though .3 is nearer to 0."
    X = torch.tensor([[3., 0.], [2., 1.], [.3, 0.]], dtype=F64)
    objective = of(lambda x: torch.stack([x[:, 0].log(), torch.zeros_like(x[:, 0])], 1), X)
    found = nearest_boundary(objective, X)
    assert_close(found.values, torch.tensor([2., 1., .7], dtype=F64), rtol=5e-3, atol=0)
    assert (found.points[:, 0] > 0).all() and found.verified.all()
    with pytest.raises(ValueError, match="NaN at 1 of 2"):
        nearest_boundary(objective, torch.tensor([[3., 0.], [-1., 0.]], dtype=F64))


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("box", [None, (-2., 2.)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_an_input_on_the_boundary_has_distance_0(norm, box, dtype):
    "Scores w x and -w x, and inputs with w x = 0, some at the origin: with examples of both classes, of one, or alone."
    w = torch.tensor([1., -1., 2.], dtype=dtype)
    on = torch.tensor([[0., 0., 0.], [1., 1., 0.], [0., 2., 1.], [-1., 1., 1.]], dtype=dtype)
    X = torch.cat([on, randn(20, 3, seed=1, dtype=dtype).clamp(-2, 2)])
    model = nn.Linear(3, 2, bias=False).to(dtype).eval()
    with torch.no_grad(): model.weight.copy_(torch.stack([w, -w]))
    objective = Objective(model, (X, torch.zeros(24, dtype=torch.int64)))
    assert (objective.logits(on) == 0).all()
    for pool in (X, X[X @ w >= 0], on, None):
        found = nearest_boundary(objective, on, pool=pool, norm=norm, box=box)
        assert (found.values == 0).all() and found.verified.all() and (found.by_start.amin(1) == 0).all()
        assert all((z - on).abs().max() <= 64 * torch.finfo(dtype).eps for z in (found.inside, found.points))
    assert (nearest_boundary(objective, X[4:], pool=X, norm=norm, box=box).values > 0).all()
    margin = estimate_margin(objective, X, None, norm=norm, box=box)
    assert margin.value == 0 and margin.nearest < 4 and margin.verified and margin.n_forward < 20_000


def test_a_jump_without_a_tie():
    """Class 1 for every positive number, class 0 at zero, and no scores that are equal: the distance of zero is 0,
    of the others what it is."""
    X = torch.tensor([[0.], [-.5], [1.]], dtype=F64)
    found = nearest_boundary(of(lambda x: torch.stack([(x[:, 0] <= 0).to(x), .5 + 0 * x[:, 0]], 1), X), X)
    assert_close(found.values, torch.tensor([0., .5, 1.], dtype=F64), rtol=1e-3, atol=0)


def test_classes_with_the_same_logits():
    """Rows 0 and 1 of the last layer are equal: nothing changes between them, and the distance is that to class 2,
    for every example and for the margin."""
    X = randn(40, 2, seed=6)
    objective = of(lambda x: torch.stack([x[:, 0], x[:, 0], -x[:, 0]], 1), X)
    for norm in ("l2", "linf"):
        assert_close(nearest_boundary(objective, X, norm=norm).values, X[:, 0].abs(), rtol=1e-3, atol=0)
        first = [i for i in X[:, 0].abs().argsort().tolist()]
        assert list(support_examples(objective, X, torch.empty(40, 0), n_candidates=40, norm=norm)) == first
        assert estimate_margin(objective, X, None, norm=norm).value == pytest.approx(X[:, 0].abs().min().item(),
                rel=1e-3)
    everywhere = of(lambda x: torch.stack([x[:, 0], x[:, 0]], 1), X)  # no other class at all
    with pytest.warns(UserWarning, match="no margin"): assert math.isnan(estimate_margin(everywhere, X, None).value)


def test_no_boundary():
    X = randn(6, 3)
    objective = of(two(lambda x: x[:, 0] * 0 - 1), X)
    found = nearest_boundary(objective, X)
    assert found.values.isinf().all() and not found.verified.any() and found.points.equal(X)
    assert found.by_start.isinf().all()
    with pytest.warns(UserWarning, match="no margin") as seen: margin = estimate_margin(objective, X, None)
    assert math.isnan(margin.value) and not margin.verified and margin.agreement == 0 and seen[0].filename == __file__


@pytest.mark.parametrize("options, error, contains", [
    (dict(norm="l1"), ValueError, "norm must be"), (dict(tol=0.), ValueError, "tol"), (dict(tol=.5), ValueError, "tol"),
    (dict(tol=1e-16), ValueError, "tol"),
    (dict(n_starts=-1), ValueError, "n_starts"), (dict(box=(1., 0.)), ValueError, "box must be"),
    (dict(box=(0., .1)), ValueError, "outside box"),
    (dict(pool=torch.zeros(3, 5, dtype=F64)), ValueError, "pool must"),
    (dict(X=torch.zeros(0, 4, dtype=F64)), ValueError, "at least one"),
    (dict(X=torch.zeros(3, 4, dtype=torch.int64)), TypeError, "floating"),
    (dict(X=torch.full((3, 4), math.nan, dtype=F64)), ValueError, "NaN or infinite"),
])
def test_bad_input(trained, options, error, contains):
    objective, X, pairs = trained
    with pytest.raises(error, match=contains): nearest_boundary(objective, **({"X": X} | options))
    if "pool" in options: return
    with pytest.raises(error, match=contains): estimate_margin(objective, **({"X": X, "pairs": pairs} | options))


def test_bad_requests(trained):
    objective, X, pairs = trained
    with pytest.raises(ValueError, match="n_directions"): estimate_margin(objective, X, pairs, n_directions=0)
    with pytest.raises(ValueError, match="n_candidates"): estimate_margin(objective, X, pairs, n_candidates=0)
    with pytest.raises(TypeError, match="no classes"):
        nearest_boundary(Objective(nn.Linear(4, 1).double(), (X, X[:, :1]), "mse_loss"), X)
    with pytest.raises(TypeError, match="has one class"):
        nearest_boundary(Objective(nn.Linear(4, 1).double(), (X, torch.zeros(90).long())), X)


@pytest.mark.slow
def test_order_of_the_pairs_in_the_zoo():
    """Minima from a usual and from a noisy start on the checkerboard: the wider one is named for each of the three
    pairs on file, and both margins are within 2%."""
    from hessnb.paper.data import load_data
    data, ratios, right = load_data("checkerboard"), [], 0
    for seed in range(3):
        ours, truth = [], []
        for kind in ("normal", "noisy_init"):
            minimum = find_minimum(kind, data, seed=seed)
            assert minimum.zoo, "a claim about one network takes it from the zoo"
            objective = Objective(minimum.model.double(), (data.X_train, data.y_train))
            X = data.X_train.double()
            truth.append(trace_boundary(objective, X, n=600).distance(X).min().item())
            ours.append(estimate_margin(objective, X, top_eigenpairs(HessianOperator(objective), 3,
                                                                     miss_probability=1)).value)
        ratios += [a / b for a, b in zip(ours, truth)]
        right += (ours[0] < ours[1]) == (truth[0] < truth[1])
    print(right, min(ratios), max(ratios))
    assert right == 3 and max(abs(r - 1) for r in ratios) < .02


@pytest.mark.slow
def test_no_attack_is_nearer(trained):
    attacks = pytest.importorskip("foolbox.attacks",
                                  reason="foolbox is not here: see benchmarks/requirements-margin.txt")
    from foolbox import PyTorchModel
    objective, X, _ = trained
    box = X.min().item() - .5, X.max().item() + .5
    own, found = objective.classes(X), nearest_boundary(objective, X, box=box)
    for attack in (attacks.DDNAttack(steps=300), attacks.L2DeepFoolAttack(steps=50)):
        theirs = attack(PyTorchModel(objective.model, bounds=box, device="cpu"), X, own, epsilons=None)[0]
        met = objective.predict(theirs).argmax(1) != own
        assert met.float().mean() > .9 and (found.values[met] <= 1.02 * (theirs - X).norm(dim=1)[met]).all()


def test_designed_starts_stay_in_the_box(monkeypatch):
    seen = []
    whole = margin_module.design_input
    def spy(*args, **kwargs):
        found = whole(*args, **kwargs)
        seen.append((kwargs.get("box"), found.inputs))
        return found
    monkeypatch.setattr(margin_module, "design_input", spy)
    model = build(lambda: nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 3)))
    X = randn(30, 3).sigmoid()
    box = (X.min().item(), X.max().item())
    objective = Objective(model, (X, torch.arange(30) % 3))
    with quiet():
        estimate_margin(objective, X, top_eigenpairs(HessianOperator(objective), 2), n_directions=2, designed=True,
                        box=box)
    assert len(seen) == 2 and all(b == box and (x >= box[0]).all() and (x <= box[1]).all() for b, x in seen)
