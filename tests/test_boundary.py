"The boundary of models of two features against closed forms, against a dense grid, and against what it must not do."
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from conftest import F64, Formula, build, data_files, quiet, randn, seeded, untouched
from hessnb.boundary import BoundaryCurves, trace_boundary
from hessnb.objective import Objective

X = randn(60, 2)
Y = (X[:, 0] > 0).long()


def of(fn, x=X, y=Y): return Objective(Formula(fn).eval(), (x, y))


def circle(radius, centre=(0., 0.)):
    return of(lambda x: torch.stack([(x - x.new_tensor(centre)).square().sum(1), torch.full_like(x[:, 0], radius**2)], 1))


def linear(W, b): return of(lambda x: x @ torch.tensor(W, dtype=x.dtype).T + torch.tensor(b, dtype=x.dtype))


def net(hidden=30, C=3, seed=0): return build(lambda: nn.Sequential(nn.Linear(2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, C)), seed)


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
    assert (curves.segments.flatten(0, 1) - torch.tensor(centre, dtype=F64)).norm(dim=1).sub(radius).abs().max() < 2e-9  # `tol` at every crossing
    assert (curves.classes == torch.tensor([0, 1])).all()


def test_error_falls_with_refinement():
    errors = [1 - trace_boundary(circle(1.), extent=(-1.7, 1.9, -1.6, 1.3), n=40, refine=r).length / (2 * math.pi) for r in range(4)]
    assert all(12 < a / b < 20 for a, b in zip(errors, errors[1:])), errors  # 4 times finer, 16 times closer
    assert errors[3] < 1e-7


def test_refinement_is_on_by_default():
    coarse, usual = (trace_boundary(circle(1.), extent=(-2., 2., -2., 2.), n=21, **options) for options in ({"refine": 0}, {}))
    assert usual.spacing == pytest.approx(coarse.spacing / 4) and abs(usual.length / (2 * math.pi) - 1) < 2e-4 < 1e-3 < abs(coarse.length / (2 * math.pi) - 1)


def test_line():
    curves = trace_boundary(linear([[1., 2.], [0., 0.]], [.3, 0.]), extent=(-1.7, 1.9, -1.6, 1.3), n=50)
    assert curves.length == pytest.approx(math.hypot(3.6, 1.8), rel=1e-8)
    points = randn(100, 2) * .3
    assert_close(curves.distance(points), (points @ torch.tensor([1., 2.], dtype=F64) + .3).abs() / 5**.5, rtol=0, atol=1e-8)


def test_three_classes():
    angles = np.deg2rad([90, 210, 330])
    curves = trace_boundary(linear(np.stack([np.cos(angles), np.sin(angles)], 1).tolist(), [0., 0., 0.]), extent=(-1., 1.1, -.9, 1.), n=100)
    truth = {(1, 2): .9, (0, 1): 1 / math.cos(math.pi / 6), (0, 2): 1.1 / math.cos(math.pi / 6)}
    for (a, b), length in truth.items(): assert curves.length_between(b, a) == pytest.approx(length, abs=curves.spacing)
    assert curves.length == pytest.approx(sum(truth.values()), abs=2 * curves.spacing)
    points = torch.rand(300, 2, generator=seeded(0), dtype=F64) - .5
    ends = {(1, 2): (0., -1.), (0, 1): (-math.cos(math.pi / 6), .5), (0, 2): (math.cos(math.pi / 6), .5)}  # the directions of the three rays
    rays = torch.tensor(list(ends.values()), dtype=F64)
    along = (points @ rays.T).clamp_min(0)
    expected = (points[:, None] - along[..., None] * rays).norm(dim=2).amin(1)
    assert (curves.distance(points) - expected).abs().max() < curves.spacing


@pytest.mark.parametrize("c", [.013, -.013])
def test_saddle_joins_the_right_corners(c):
    curves = trace_boundary(of(lambda x: torch.stack([x[:, 0] * x[:, 1], torch.full_like(x[:, 0], c)], 1)), extent=(-1., 1., -1., 1.), n=6, refine=0)
    nearest = curves.nearest(torch.zeros(1, 2))[0]
    assert nearest.prod().sign() == math.copysign(1, c)
    assert curves.distance(torch.zeros(1, 2)).item() == pytest.approx(math.sqrt(2 * abs(c)), abs=.08)


def test_four_classes_that_meet():
    curves = trace_boundary(of(lambda x: torch.stack([x[:, 0] + x[:, 1], x[:, 0] - x[:, 1], -x[:, 0] + x[:, 1], -x[:, 0] - x[:, 1]], 1)), extent=(-1., 1., -1., 1.), n=50)
    assert curves.length == pytest.approx(4., abs=curves.spacing) and len(curves.classes.unique(dim=0)) == 4


@pytest.mark.parametrize("slant", [0., .5, -.5])
@pytest.mark.parametrize("turned", [False, True])
def test_bulges_out_of_the_refined_squares_are_followed(slant, turned):
    "A thin tongue leaves the square in which the first grid sees the boundary; without following, the curve would end there."
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
    pairs = set(map(tuple, torch.cat([torch.stack([predicted[:, 1:], predicted[:, :-1]], -1)[right], torch.stack([predicted[1:], predicted[:-1]], -1)[up]]).sort(1).values.tolist()))
    assert pairs == set(map(tuple, curves.classes.tolist()))


NAMES = [n for n in sorted({*data_files(), "gauss_checkerboard_linear_normal_training_close.npz", "gauss_checkerboard_linear_noisy_init_training_close.npz"}) if "checkerboard" in n]


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
    print(f"{name}: smallest {distance.min():.6f}, theirs {theirs.min():.6f}; largest difference {(distance - theirs).abs().max():.1e}, "
          f"{(curves.nearest(points) - torch.tensor(data['margin_nearest_boundary'])).norm(dim=1).max():.1e} between the nearest points")
    assert (distance - theirs).abs().max() < 2e-3 and distance.argmin() == theirs.argmin()
    assert distance.min().item() == pytest.approx(theirs.min().item(), abs=1e-4)
    assert curves.within_reach(points).min() >= distance.min()
    wider = trace_boundary(objective, points, pad=2.)
    assert wider.distance(points).min().item() == pytest.approx(distance.min().item(), abs=1e-4)  # the window does not decide


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
    objective = of(lambda x: torch.stack([x[:, 0], torch.full_like(x[:, 0], 1.4)], 1), points, torch.ones(50, dtype=torch.long))
    assert_close(trace_boundary(objective, points).distance(points), 1.4 - points[:, 0], rtol=0, atol=1e-6)
    assert trace_boundary(objective, points, pad=.1).distance(points).isinf().all()


def test_no_boundary():
    curves = trace_boundary(linear([[0., 0.], [0., 0.]], [1., 0.]), X)
    assert len(curves.segments) == 0 and curves.length == 0 and curves.length_between(0, 1) == 0 and "none" in repr(curves)
    assert curves.distance(X).isinf().all() and curves.nearest(X).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_nothing_is_touched_and_results_repeat(dtype):
    model = net().to(dtype)
    objective = Objective(model, (X.to(dtype), torch.arange(60) % 3))
    with untouched(model, tensors=(X,)), quiet():
        first, second = trace_boundary(objective, X), trace_boundary(objective, X)
        distance = first.distance(X)
    assert torch.equal(first.segments, second.segments) and first.segments.dtype == distance.dtype == dtype and not first.segments.requires_grad
    with torch.inference_mode(): assert torch.equal(trace_boundary(objective, X).segments, first.segments)


def test_float32_is_as_near_as_it_can_be():
    model = net()
    fine, coarse = (trace_boundary(Objective(model.to(t), (X.to(t), torch.arange(60) % 3)), X) for t in (F64, torch.float32))
    assert coarse.length == pytest.approx(fine.length, rel=1e-4)
    assert (coarse.distance(X).double() - fine.distance(X)).abs().max() < 1e-4


def test_inputs_of_another_shape():
    flat = net()
    shaped = nn.Sequential(nn.Flatten(), *flat)
    expected = trace_boundary(Objective(flat, (X, Y)), X, n=50)
    got = trace_boundary(Objective(shaped, (X.reshape(-1, 1, 2), Y)), X.reshape(-1, 1, 2), n=50)
    assert torch.equal(expected.segments, got.segments) and torch.equal(expected.distance(X), got.distance(X.reshape(-1, 1, 2)))


def test_bad_input():
    objective = Objective(net(), (X, Y))
    three = Objective(build(lambda: nn.Linear(3, 2)), (randn(20, 3), torch.arange(20) % 2))
    for call in (lambda: trace_boundary(three, randn(20, 3)), lambda: trace_boundary(three, extent=(-1, 1, -1, 1)), lambda: trace_boundary(objective, randn(20, 3))):
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
