"The boundary of models of two features against closed forms, against a dense grid, and against what it must not do."
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from conftest import F64, Formula, build, data_files, quiet, randn, seeded, untouched
from hessnb.boundary import design
from hessnb.boundary.curves import BoundaryCurves, trace_boundary
from hessnb.boundary.design import design_input
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.top import top_eigenpairs

X = randn(60, 2)
Y = (X[:, 0] > 0).long()


def of(fn, x=X, y=Y): return Objective(Formula(fn).eval(), (x, y))


def circle(radius, centre=(0., 0.)):
    return of(lambda x: torch.stack([(x - x.new_tensor(centre)).square().sum(1), torch.full_like(x[:, 0], radius**2)],
                                    1))


def linear(W, b): return of(lambda x: x @ torch.tensor(W, dtype=x.dtype).T + torch.tensor(b, dtype=x.dtype))


def net(hidden=30, C=3, seed=0):
    return build(lambda: nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                                       nn.Linear(hidden, C)), seed)


@pytest.mark.parametrize("seed", range(3))
def test_circle(seed):
    radius = 1 + .3 * seed
    centre = (randn(2, seed=seed) * .1).tolist()
    curves = trace_boundary(circle(radius, centre), extent=(-2., 2.5, -2.2, 2.), n=100)
    assert curves.length == pytest.approx(2 * math.pi * radius, rel=2e-5) and curves.length < 2 * math.pi * radius
    points = randn(200, 2, seed=seed + 10)
    truth = ((points - torch.tensor(centre, dtype=F64)).norm(dim=1) - radius).abs()
    assert (curves.distance(points) - truth).abs().max() < curves.spacing**2 / 4 / radius + 1e-8
    on = curves.nearest(points) - torch.tensor(centre, dtype=F64)
    assert (on.norm(dim=1) - radius).abs().max() < curves.spacing**2 / 4 / radius + 1e-8
    assert (curves.segments.flatten(0, 1) - torch.tensor(centre,
                                                         # `tol` at every crossing
                                                         dtype=F64)).norm(dim=1).sub(radius).abs().max() < 2e-9
    assert (curves.classes == torch.tensor([0, 1])).all()


def test_error_falls_with_refinement():
    errors = [1 - trace_boundary(circle(1.), extent=(-1.7, 1.9, -1.6, 1.3), n=40, refine=r).length / (2 * math.pi)
              for r in range(4)]
    assert all(12 < a / b < 20 for a, b in zip(errors, errors[1:])), errors  # 4 times finer, 16 times closer
    assert errors[3] < 1e-7


def test_refinement_is_on_by_default():
    coarse, usual = (trace_boundary(circle(1.), extent=(-2., 2., -2., 2.), n=21, **options)
                     for options in ({"refine": 0}, {}))
    assert usual.spacing == pytest.approx(coarse.spacing / 4)
    assert abs(usual.length / (2 * math.pi) - 1) < 2e-4 < 1e-3 < abs(coarse.length / (2 * math.pi) - 1)


def test_line():
    curves = trace_boundary(linear([[1., 2.], [0., 0.]], [.3, 0.]), extent=(-1.7, 1.9, -1.6, 1.3), n=50)
    assert curves.length == pytest.approx(math.hypot(3.6, 1.8), rel=1e-8)
    points = randn(100, 2) * .3
    assert_close(curves.distance(points), (points @ torch.tensor([1., 2.], dtype=F64) + .3).abs() / 5**.5, rtol=0,
                 atol=1e-8)


def test_three_classes():
    angles = np.deg2rad([90, 210, 330])
    curves = trace_boundary(linear(np.stack([np.cos(angles), np.sin(angles)], 1).tolist(), [0., 0., 0.]),
                            extent=(-1., 1.1, -.9, 1.), n=100)
    truth = {(1, 2): .9, (0, 1): 1 / math.cos(math.pi / 6), (0, 2): 1.1 / math.cos(math.pi / 6)}
    for (a, b), length in truth.items(): assert curves.length_between(b, a) == pytest.approx(length, abs=curves.spacing)
    assert curves.length == pytest.approx(sum(truth.values()), abs=2 * curves.spacing)
    points = torch.rand(300, 2, generator=seeded(0), dtype=F64) - .5
    ends = {(1, 2): (0., -1.), (0, 1): (-math.cos(math.pi / 6), .5), (0, 2): (math.cos(math.pi / 6),
            .5)}  # the directions of the three rays
    rays = torch.tensor(list(ends.values()), dtype=F64)
    along = (points @ rays.T).clamp_min(0)
    expected = (points[:, None] - along[..., None] * rays).norm(dim=2).amin(1)
    assert (curves.distance(points) - expected).abs().max() < curves.spacing


@pytest.mark.parametrize("c", [.013, -.013])
def test_saddle_joins_the_right_corners(c):
    curves = trace_boundary(of(lambda x: torch.stack([x[:, 0] * x[:, 1], torch.full_like(x[:, 0], c)], 1)),
                            extent=(-1., 1., -1., 1.), n=6, refine=0)
    nearest = curves.nearest(torch.zeros(1, 2))[0]
    assert nearest.prod().sign() == math.copysign(1, c)
    assert curves.distance(torch.zeros(1, 2)).item() == pytest.approx(math.sqrt(2 * abs(c)), abs=.08)


def test_four_classes_that_meet():
    curves = trace_boundary(of(lambda x: torch.stack([x[:, 0] + x[:, 1], x[:, 0] - x[:, 1], -x[:, 0] + x[:, 1],
                                                      -x[:, 0] - x[:, 1]], 1)), extent=(-1., 1., -1., 1.), n=50)
    assert curves.length == pytest.approx(4., abs=curves.spacing) and len(curves.classes.unique(dim=0)) == 4


@pytest.mark.parametrize("slant", [0., .5, -.5])
@pytest.mark.parametrize("turned", [False, True])
def test_bulges_out_of_the_refined_squares_are_followed(slant, turned):
    """A thin tongue leaves the square in which the first grid sees the boundary; without following, the curve would
    end there."""
    x0, width = .05, .03
    def fn(x):
        if turned: x = -x.flip(1)
        inside = (x[:, 1] < -.437) | ((x[:, 0] - x0 - slant * x[:, 1]).abs() < width / 2) & (x[:, 1] < .713)
        return torch.stack([inside.to(x), .5 * torch.ones_like(x[:, 0])], 1)
    curves = trace_boundary(of(fn), extent=(-1., 1., -1., 1.), n=11, refine=2)  # squares of .2, then .0125
    assert curves.length == pytest.approx(2 + 2 * (.713 + .437) * math.hypot(1, slant), rel=.01)


@pytest.mark.parametrize("seed,C", [(0, 2), (1, 3), (2, 5)])
def test_against_pixels(seed, C):
    "Distances to all pairs of neighbours of different class on a dense grid, whose error is at most its spacing."
    model = net(C=C, seed=seed)
    with torch.no_grad(): model[-1].bias.zero_(), model[0].bias.mul_(3)
    objective = Objective(model, (X, torch.arange(60) % C))
    window, n = (-2., 2., -2., 2.), 1201
    curves = trace_boundary(objective, extent=window, n=200, refine=2)
    axis = torch.linspace(-2, 2, n, dtype=F64)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
    predicted = objective.predict(grid.reshape(-1, 2)).argmax(1).reshape(n, n)
    h = 4 / (n - 1)
    right, up = predicted[:, 1:] != predicted[:, :-1], predicted[1:] != predicted[:-1]
    pixels = torch.cat([(grid[:, 1:] + grid[:, :-1])[right], (grid[1:] + grid[:-1])[up]]) / 2
    assert len(pixels), "choose another network: no boundary"
    points = (torch.rand(200, 2, generator=seeded(seed), dtype=F64) - .5) * 3
    brute = torch.cat([torch.cdist(p, pixels).amin(1) for p in points.split(20)])
    assert (curves.distance(points) - brute).abs().max() < h
    pairs = set(map(tuple, torch.cat([torch.stack([predicted[:, 1:], predicted[:, :-1]], -1)[right],
                                      torch.stack([predicted[1:], predicted[:-1]], -1)[up]]).sort(1).values.tolist()))
    assert pairs == set(map(tuple, curves.classes.tolist()))


NAMES = [n for n in sorted({*data_files(), "gauss_checkerboard_linear_normal_training_close.npz",
                            "gauss_checkerboard_linear_noisy_init_training_close.npz"}) if "checkerboard" in n]


@pytest.mark.parametrize("name", NAMES)
def test_reference_networks(name):
    "The smallest and all other distances of the training points, found elsewhere on a dense grid."
    if name not in data_files(): pytest.skip(f"{name} is not here")
    data = dict(np.load(data_files()[name]))
    if "margin_true_dist" not in data: pytest.skip("no distances were computed for this network")
    weights = [torch.tensor(v) for k, v in data.items() if k.startswith("param_")]
    layers = [nn.Linear(w.shape[1], w.shape[0]) for w in weights[::2]]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).double().eval()
    with torch.no_grad():
        for p, w in zip(model.parameters(), weights): p.copy_(w)
    points = torch.tensor(data["X_train"])
    objective = Objective(model, (points, torch.tensor(data["y_train"])))
    curves = trace_boundary(objective, points)
    distance, theirs = curves.distance(points), torch.tensor(data["margin_true_dist"])
    apart = (curves.nearest(points) - torch.tensor(data["margin_nearest_boundary"])).norm(dim=1).max()
    print(f"{name}: smallest {distance.min():.6f}, theirs {theirs.min():.6f}; largest difference "
          f"{(distance - theirs).abs().max():.1e}, {apart:.1e} between the nearest points")
    assert (distance - theirs).abs().max() < 2e-3 and distance.argmin() == theirs.argmin()
    assert distance.min().item() == pytest.approx(theirs.min().item(), abs=1e-4)
    assert curves.within_reach(points).min() >= distance.min()
    wider = trace_boundary(objective, points, pad=2.)
    assert wider.distance(points).min().item() == pytest.approx(distance.min().item(),
                                                                abs=1e-4)  # the window does not decide


def test_outside_the_window():
    curves = trace_boundary(circle(1.), extent=(-3., 3., .5, 2.), n=60)
    points = torch.tensor([[0., .8], [2.5, .0], [2.5, .6], [9., 9.]], dtype=F64)
    reach, distance, truth = curves.within_reach(points), curves.distance(points), (points.norm(dim=1) - 1).abs()
    assert_close(reach, torch.tensor([.3, 0., .1, 0.], dtype=F64))
    certain = distance <= reach
    assert certain.tolist() == [True, False, False, False]
    assert_close(distance[certain], truth[certain], rtol=0, atol=1e-4)
    assert (distance >= truth - 1e-4).all() and distance[1] > truth[1] + .05


def test_default_window_holds_a_boundary_outside_the_data():
    "All points on one side, the line at .4 of the data's width from them."
    points = torch.rand(50, 2, generator=seeded(0), dtype=F64)
    objective = of(lambda x: torch.stack([x[:, 0], torch.full_like(x[:, 0], 1.4)], 1), points,
                   torch.ones(50, dtype=torch.long))
    assert_close(trace_boundary(objective, points).distance(points), 1.4 - points[:, 0], rtol=0, atol=1e-6)
    assert trace_boundary(objective, points, pad=.1).distance(points).isinf().all()


def test_no_boundary():
    curves = trace_boundary(linear([[0., 0.], [0., 0.]], [1., 0.]), X)
    assert len(curves.segments) == 0 and curves.length == 0 and curves.length_between(0,
            1) == 0 and "none" in repr(curves)
    assert curves.distance(X).isinf().all() and curves.nearest(X).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_nothing_is_touched_and_results_repeat(dtype):
    model = net().to(dtype)
    objective = Objective(model, (X.to(dtype), torch.arange(60) % 3))
    with untouched(model, tensors=(X,)), quiet():
        first, second = trace_boundary(objective, X), trace_boundary(objective, X)
        distance = first.distance(X)
    assert torch.equal(first.segments, second.segments) and first.segments.dtype == distance.dtype == dtype
    assert not first.segments.requires_grad
    with torch.inference_mode(): assert torch.equal(trace_boundary(objective, X).segments, first.segments)


def test_float32_is_as_near_as_it_can_be():
    model = net()
    fine, coarse = (trace_boundary(Objective(model.to(t), (X.to(t), torch.arange(60) % 3)), X)
                    for t in (F64, torch.float32))
    assert coarse.length == pytest.approx(fine.length, rel=1e-4)
    assert (coarse.distance(X).double() - fine.distance(X)).abs().max() < 1e-4


def test_inputs_of_another_shape():
    flat = net()
    shaped = nn.Sequential(nn.Flatten(), *flat)
    expected = trace_boundary(Objective(flat, (X, Y)), X, n=50)
    got = trace_boundary(Objective(shaped, (X.reshape(-1, 1, 2), Y)), X.reshape(-1, 1, 2), n=50)
    assert torch.equal(expected.segments, got.segments) and torch.equal(expected.distance(X),
            got.distance(X.reshape(-1, 1, 2)))


def test_bad_input():
    objective = Objective(net(), (X, Y))
    three = Objective(build(lambda: nn.Linear(3, 2)), (randn(20, 3), torch.arange(20) % 2))
    for call in (lambda: trace_boundary(three, randn(20, 3)), lambda: trace_boundary(three, extent=(-1, 1, -1, 1)),
                 lambda: trace_boundary(objective, randn(20, 3))):
        with pytest.raises(ValueError, match="two features.*scan_plane.*estimate_margin"): call()
    with pytest.raises(ValueError, match="extent="): trace_boundary(objective)
    with pytest.raises(ValueError, match="from < to"): trace_boundary(objective, extent=(0, 0, 1, 2))
    with pytest.raises(ValueError, match="finite"): trace_boundary(objective, torch.full((3, 2), math.nan))
    with pytest.raises(ValueError, match="at least 2"): trace_boundary(objective, X, n=1)
    for bad in ({"refine": -1}, {"tol": 0.}):
        with pytest.raises(ValueError, match="refine must not be negative"): trace_boundary(objective, X, **bad)
    curves = trace_boundary(objective, X, n=20)
    assert isinstance(curves, BoundaryCurves)
    for bad in (randn(4, 3), torch.tensor(1.)):
        with pytest.raises(ValueError, match=r"points \(N, 2\)"): curves.distance(bad)


class Halves:
    """Two classes split by `w x + c = 0` and the vector whose parallel gradient is at `x = q / q0`, in closed form.

    The gradient at x for the predicted label is a multiple of (1, -1) (x, 1), positive in class 1: with v along
    (1, -1) (q, q0) the alignment is the cosine of (x, 1) and (q, q0) in class 1, minus it in class 0. The starts are
    those where this cosine is positive."""
    def __init__(self, D=3, seed=0, dtype=F64):
        numbers = randn(2, D + 1, seed=seed)
        self.wall = numbers[0] / numbers[0].norm()  # (w, c)
        self.target = torch.cat([numbers[1, :D], torch.ones(1, dtype=F64)])
        if self.target @ self.wall > 0: self.wall = -self.wall  # the target is in class 1
        self.target = self.target / self.target.norm()
        model = nn.Linear(D, 2).double()
        with torch.no_grad():
            model.weight.copy_(torch.stack([self.wall[:D],
                                            -self.wall[:D]])), model.bias.copy_(torch.stack([self.wall[D],
                                                    -self.wall[D]]))
        self.v = torch.cat([torch.stack([self.target[:D], -self.target[:D]]).flatten(),
                            torch.stack([self.target[D], -self.target[D]])])
        X = randn(60, D, seed=seed + 100)
        self.X = X[X @ self.target[:D] + self.target[D] > .2][:12].to(dtype)
        self.objective = Objective(model.to(dtype).eval(), (self.X, torch.arange(12) % 2))

    def cosine(self, x):
        z = torch.cat([x.to(F64), torch.ones(len(x), 1, dtype=F64)], 1)
        return z @ self.target / z.norm(dim=1) * torch.where(z @ self.wall > 0, -1., 1.)

    def nearest_in_class_0(self):
        """The input on the wall whose (x, 1) has the smallest angle with the target, and the cosine that class 0
        comes as near to as it likes."""
        on = self.target - self.target @ self.wall * self.wall
        return on[:-1] / on[-1], on.norm().item()


FAST = dict(n_steps=150, step_size=.1)


@pytest.mark.parametrize("seed", [0, 1, 6])
def test_designed_inputs_of_both_signs(seed):
    halves = Halves(seed=seed)
    assert {True, False} == set((halves.cosine(halves.X) > 0).tolist())  # starts on both sides
    limit = halves.nearest_in_class_0()[1]
    for side in (1, -1):
        d = design_input(halves.objective, halves.v, halves.X, side=side, **FAST)
        assert_close(d.cosines, halves.cosine(d.inputs))
        assert_close(d.start_cosines, halves.cosine(halves.X))
        assert (side * d.cosines > 0).all() and d.converged.all()
        assert (halves.objective.predict(d.inputs).argmax(1) == (side > 0)).all()
        best, reached = (1. if side > 0 else limit), side * d.cosines
        assert reached.max() <= best + 1e-9 and reached.max() > best - 1e-3 and reached.min() > best - .02
        truth = halves.target[:-1] / halves.target[-1] if side > 0 else halves.nearest_in_class_0()[0]
        assert (d.inputs[reached.argmax()] - truth).norm() < .1 * (1 + truth.norm())


def test_the_square_takes_either_sign_and_the_best():
    halves = Halves()
    either = design_input(halves.objective, halves.v, halves.X, **FAST)
    assert either.cosines.square().min() > .999 and either.converged.all()
    wide = design_input(halves.objective, halves.v, halves.X, box=(-math.inf, math.inf), **FAST)
    assert torch.equal(either.inputs, wide.inputs) and torch.equal(either.cosines, wide.cosines)


@pytest.mark.parametrize("side", [1, -1, None])
def test_box_is_respected_and_tight(side):
    """In two dimensions, where the free optimum is outside: the largest cosine in the box, on a fine grid, and it
    is on the edge."""
    halves = Halves(D=2, seed=4)
    target = halves.target[:-1] / halves.target[-1]
    box = (-1.5, target.max().item() - .5)
    starts = halves.X[((halves.X > box[0]) & (halves.X < box[1])).all(1)]
    d = design_input(halves.objective, halves.v, starts, side=side, box=box, **FAST)
    assert (d.inputs >= box[0]).all() and (d.inputs <= box[1]).all() and len(d.inputs) > 4
    axis = torch.linspace(*box, 1001, dtype=F64)
    grid = halves.cosine(torch.cartesian_prod(axis, axis))
    climbed = (lambda a: a.abs()) if side is None else (lambda a: side * a)
    assert climbed(d.cosines).max() == pytest.approx(climbed(grid).max().item(), abs=2e-3)
    best = climbed(d.cosines).argmax()
    assert ((d.inputs[best] == box[0]) | (d.inputs[best] == box[1])).any()
    free = climbed(design_input(halves.objective, halves.v, starts, side=side, **FAST).cosines).max()
    assert free > climbed(d.cosines).max() + .01


@pytest.mark.parametrize("side", [1, -1, None])
def test_no_iterate_leaves_the_box(side, monkeypatch):
    model, images = build(lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(),
                                                nn.Linear(48, 3))), torch.rand(6, 1, 6, 6, generator=seeded(0),
                                                        dtype=F64)
    objective, seen = Objective(model, (images, torch.arange(6) % 3)), []
    vmap, align = design.vmap, design.align
    def watched_vmap(fn):
        inner = vmap(fn)
        return lambda x: seen.append(x.clone()) or inner(x)
    def watched_align(objective, x, *args, **options):
        seen.append(x.clone())
        return align(objective, x, *args, **options)
    monkeypatch.setattr(design, "vmap", watched_vmap), monkeypatch.setattr(design, "align", watched_align)
    d = design_input(objective, randn(objective.n_params), images, side=side, box=(0, 1), n_steps=60, step_size=.1)
    steps = torch.cat([x.flatten() for x in seen])
    assert len(seen) >= 60 and steps.min() == 0 and steps.max() == 1  # it touched both ends and went beyond neither
    assert (d.cosines.abs() >= d.start_cosines.abs()).all() if side is None else (side * d.cosines > 0).all()


@pytest.mark.parametrize("box", [None, (-1., .6)])
def test_starts_of_the_wrong_sign_are_carried_over(box):
    "Without the crossing, no start of the wrong sign gets to the other side."
    model = net(seed=1)
    with torch.no_grad(): model[-1].bias.zero_(), model[0].bias.mul_(3)
    objective = Objective(model, (X, torch.arange(60) % 3))
    v = top_eigenpairs(HessianOperator(objective), 1).vectors[0]
    starts = X if box is None else X[((X >= box[0]) & (X <= box[1])).all(1)]
    for side in (1, -1):
        d = design_input(objective, v, starts, side=side, box=box, n_steps=40)
        wrong = side * d.start_cosines < 0
        assert wrong.sum() >= 5 and ((side * d.cosines)[wrong] > 0).double().mean() > .8
        assert (side * d.cosines >= side * d.start_cosines)[~wrong].all()


def test_the_crossing_goes_along_the_edges_of_the_box():
    "The boundary `x1 + .1 x2 = .02`, from an edge that its normal leaves: only the way along the edge leads over it."
    model = nn.Linear(2, 2).double().eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1., .1], [-1., -.1]])), model.bias.copy_(torch.tensor([-.02, .02]))
    starts = torch.tensor([[0., .5], [0., 1.], [.1, .9]], dtype=F64)
    d = design_input(Objective(model, (starts, torch.zeros(3, dtype=torch.long))),
                     torch.tensor([0., 0., 0., 0., 1., -1.], dtype=F64), starts, side=1, box=(0, 1), n_steps=5)
    assert (d.start_cosines < 0).all() and (d.cosines > 0).all() and (d.inputs @ torch.tensor([1., .1],
            dtype=F64) < .02).all()


class Flat(nn.Module):
    "Class 1 for negative inputs, class 0 for positive ones; scores that do not change beyond -1 and 1."
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(1, 2).double()
        with torch.no_grad(): self.last.weight.copy_(torch.tensor([[1.], [-1.]])), self.last.bias.zero_()
    def forward(self, x): return self.last(x.clamp(-1, 1))


def test_steps_that_cannot_be_brought_back_are_not_taken():
    "The first steps lead over the boundary to where nothing has a slope."
    starts = torch.tensor([[-.5], [-.9]], dtype=F64)
    objective = Objective(Flat().eval(), (starts, torch.ones(2, dtype=torch.long)))
    d = design_input(objective, torch.tensor([0., 0., 1., -1.], dtype=F64), starts, side=1, n_steps=60, step_size=2.)
    assert (d.start_cosines < .9).all() and (d.cosines > .99).all() and (d.inputs < 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_side_that_is_out_of_reach_is_said(dtype):
    "The box holds class 0 only: nothing there has a positive alignment."
    halves = Halves(D=2, dtype=dtype)
    halves.objective.params["bias"][:] = torch.tensor([9., -9.], dtype=dtype)
    starts = halves.X.clamp(-.1, .1)
    found = {side: design_input(halves.objective, halves.v.to(dtype), starts, side=side, box=(-.1, .1), n_steps=30)
             for side in (1, -1)}
    assert (found[1].start_cosines < 0).all() and (found[1].cosines < 0).all() and not found[1].converged.any()
    assert (found[-1].cosines < 0).all() and found[-1].converged.all()
    assert all((d.inputs.abs() <= starts.new_tensor(.1)).all() for d in found.values())


@pytest.mark.parametrize("side", [1, -1, None])
def test_designing_touches_nothing(side):
    model, starts = net(), X[:5].clone()
    objective = Objective(model, (X, torch.arange(60) % 3))
    v = randn(objective.n_params)
    design = lambda: design_input(objective, v, starts, side=side, box=(-3, 3), n_steps=20)
    with untouched(model, tensors=(starts, v)), quiet(): first, second = design(), design()
    assert torch.equal(first.inputs, second.inputs) and not first.inputs.requires_grad
    with torch.inference_mode(): assert torch.equal(design().inputs, first.inputs)
    with torch.no_grad(): assert torch.equal(design().inputs, first.inputs)


def test_bad_sides_and_boxes():
    objective = Objective(net(), (X, torch.arange(60) % 3))
    v = randn(objective.n_params)
    for side in (0, 2, "+", -1.5):
        with pytest.raises(ValueError, match="side must be 1 .*-1 .*None.*got"):
            design_input(objective, v, X[:2], side=side)
    for box in ((1, 0), (1, 1), (0, 1, 2), (math.nan, 1)):
        with pytest.raises(ValueError, match=r"box must be \(low, high\), got"):
            design_input(objective, v, X[:2], box=box)
    with pytest.raises(ValueError, match=r"inputs reach from .* to .*, outside box=\(0, 1\)"):
        design_input(objective, v, X[:9], box=(0, 1))
