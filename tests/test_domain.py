"Inputs at which a model gives NaN have no class: no boundary, margin or probe counts them as one."
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from conftest import F64, Formula, randn
from hessnb.boundary.alignment import align
from hessnb.boundary.curves import trace_boundary
from hessnb.boundary.design import design_input
from hessnb.boundary.distance import nearest_boundary
from hessnb.boundary.gradients import ReinforcingGradients, gradient_cosines
from hessnb.boundary.margin import estimate_margin
from hessnb.boundary.plane import Plane, PlaneScan, scan_path, scan_plane
from hessnb.boundary.points import boundary_points
from hessnb.boundary.probe import boundary_map
from hessnb.boundary.search import differ, known_classes
from hessnb.boundary.structure import class_structure
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.top import top_eigenpairs
from hessnb.show.grid import boundary_lines
from hessnb.show.plane_plots import plot_line, plot_path, plot_plane


class Half(nn.Module):
    "Class 1 where x_0 > 1, class 0 where 0 < x_0 < 1, and not defined where x_0 < 0."
    def __init__(self, root=False): super().__init__(); self.w, self.root = nn.Parameter(torch.tensor([1.])), root
    def forward(self, x):
        score = x[:, 0].sqrt() - 1 if self.root else x[:, 0].log()
        return torch.stack([0 * score, self.w * score], 1)


RIGHT = torch.tensor([[.4, -1.], [.5, 1.], [1.5, 0.], [1.75, 1.]])


def half(root=False, dtype=F64): return Objective(Half(root).eval(), (RIGHT, torch.tensor([0, 0, 1, 1])), dtype=dtype)


def gap():
    "Class 0 where x_0 > 1, class 1 where x_0 < 0, and not defined between: there is no boundary at all."
    X = torch.tensor([[2., 0.], [1.5, 1.], [-.5, 0.], [-1., 1.]], dtype=F64)
    fn = lambda x: torch.stack([x[:, 0] - .5, (x[:, 0] * (x[:, 0] - 1)).sqrt() * 0], 1)
    return Objective(Formula(fn).eval(), (X, torch.tensor([0, 0, 1, 1]))), X


def test_classes_that_are_none():
    logits = torch.tensor([[0., 1.], [math.nan, 1.], [1., math.nan], [-math.inf, -1.], [math.inf, 2.]])
    assert known_classes(logits).tolist() == [1, -1, -1, 1, 0]
    a, b = torch.tensor([0, 0, -1, -1, 1]), torch.tensor([1, -1, 0, -1, 1])
    assert differ(a, b).tolist() == [True, False, False, False, False]


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_planes_and_curves(root, dtype):
    objective = half(root, dtype)
    window = dict(extent=(-2., 2., -2., 2.))
    scan = scan_plane(objective, RIGHT, torch.ones(1, 1), n=41, **window)
    assert scan.undefined == pytest.approx(20 / 41 + .5 / 41, abs=.5 / 41 + 1e-9) and "NaN at" in repr(scan)
    outside = scan.predictions < 0
    assert outside[:, :20].all() and not outside[:, 21:].any()
    assert scan.confidence[outside].isnan().all() and scan.cosines[0][outside].isnan().all()
    assert scan.confidence[:, 22:].isfinite().all()
    curves = trace_boundary(objective, n=40, **window)
    assert curves.length == pytest.approx(4., rel=1e-5) and (curves.segments[..., 0] - 1).abs().max() < 1e-6
    assert .45 < curves.undefined < .55 and "NaN in" in repr(curves)
    points = torch.stack([scan.u.repeat(41), scan.v.repeat_interleave(41)], 1)
    lines = boundary_lines(objective.logits(points).reshape(41, 41, 2), scan.u, scan.v)
    assert lines and all(line[:, 0].min() > .5 for line in lines)
    for index in (None, 0):
        ax = plot_plane(scan, index)
        drawn = [path.vertices for c in ax.collections for path in c.get_paths()]
        assert drawn and ("NaN" in ax.get_title()) == (index is None)
        ax.figure.canvas.draw()


def test_a_line_through_both():
    objective = half()
    path = scan_path(objective, RIGHT[2], torch.tensor([-2., 0.]), torch.ones(1, 1), n=36, label=0)
    assert len(path.changes) == 1 and "1 > 0 > NaN" in repr(path)
    undefined = path.predictions < 0
    for each in (path.confidence, path.logit_margin, path.loss, path.label_loss):
        assert torch.equal(each.isnan(), undefined)
    assert path.cosines[undefined].isnan().all() and path.cosines[~undefined].isnan().sum() == 1  # x_0 = 1 has no slope
    ax = plot_path(path)
    ax.figure.canvas.draw()
    x = torch.linspace(-1, 2, 31, dtype=F64)[:, None]
    inputs = torch.cat([x, 0 * x], 1)
    ax = plot_line(x[:, 0], align(objective, inputs, torch.ones(1, 1)).cosines, known_classes(objective.logits(inputs)))
    assert sum(line.get_linestyle() == "--" for line in ax.lines) == 1


def test_distances_and_points():
    objective = half()
    found = nearest_boundary(objective, RIGHT)
    assert_close(found.values, (RIGHT[:, 0].double() - 1).abs(), rtol=2e-3, atol=0)
    assert found.verified.all() and (found.points[:, 0] > 0).all()
    assert estimate_margin(objective, RIGHT, None).value == pytest.approx(.5, rel=2e-3)
    points = boundary_points(objective, RIGHT).points
    assert len(points) and (points[:, 0] - 1).abs().max() < 1e-9
    for call in (nearest_boundary, boundary_points, lambda o, x: estimate_margin(o, x, None)):
        with pytest.raises(ValueError, match="NaN at 1 of 5 inputs"):
            call(objective, torch.cat([RIGHT, -RIGHT[:1]]))


def test_no_boundary_across_a_gap():
    objective, X = gap()
    assert len(trace_boundary(objective, extent=(-2., 3., -2., 2.), n=60).segments) == 0
    found = boundary_points(objective, X)
    assert len(found) == 0 and found.n_dropped > 0
    distances = nearest_boundary(objective, X)
    assert not distances.verified.any()
    assert "not confirmed" in repr(estimate_margin(objective, X, None))


def test_maps_and_gradients():
    objective = half()
    X = torch.cat([RIGHT.double(), torch.tensor([[-1., 0.], [-2., 1.]], dtype=F64)])
    found = align(objective, X, torch.ones(1, 1))
    assert found.n_undefined == 2 and found.cosines[:4].isfinite().all() and found.cosines[4:].isnan().all()
    assert gradient_cosines(objective, X)[:4, :4].isfinite().all()
    assert gradient_cosines(objective, X)[4:].isnan().all()
    assert ReinforcingGradients(objective, X)[[0, 4]].isnan().all(1).tolist() == [False, True]
    structure = class_structure(objective, X, top_eigenpairs(HessianOperator(objective), 1))
    assert structure.n_undefined == 2 and structure.by_class.sizes.sum() == 4
    p = torch.tensor([[-1, -1, 0, 0, 1]] * 3)
    a = torch.tensor([math.nan, math.nan, 1., 1., -1.], dtype=F64).expand(1, 3, 5)
    line = torch.arange(5.)
    found = boundary_map(PlaneScan(line, line[:3], p, torch.ones(3, 5), a, Plane(torch.zeros(2), torch.eye(2))),
                         torch.ones(1))
    assert found.n_changes == 3 and found.found == 1 and found.true == 1


def test_a_designed_input_that_leaves_the_domain_ends():
    found = design_input(half(), torch.ones(1, dtype=F64), RIGHT * .05, n_steps=30, step_size=.5)
    assert found.inputs.isfinite().all() and np.isfinite(found.cosines[found.converged].numpy()).all()


def test_an_ordinary_model_has_no_such_place():
    X = randn(20, 2)
    objective = Objective(nn.Linear(2, 2).double().eval(), (X, torch.arange(20) % 2))
    assert scan_plane(objective, X, n=8).undefined == 0 and "NaN" not in repr(scan_plane(objective, X, n=8))
    assert trace_boundary(objective, X, n=8).undefined == 0
