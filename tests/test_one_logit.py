"""One logit z for two classes against the logits 0 and z: the same planes, points, margins and measures; no
classes, no answer."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from conftest import F64, build, quiet, randn, untouched
from hessnb.boundary.alignment import align
from hessnb.boundary.curves import trace_boundary
from hessnb.boundary.design import design_input
from hessnb.boundary.directions import estimate_directions, resolve_measure
from hessnb.boundary.distance import nearest_boundary
from hessnb.boundary.examine import examine, labelled_examples
from hessnb.boundary.gradients import gradient_cosines
from hessnb.boundary.margin import estimate_margin, support_examples
from hessnb.boundary.measure import random_baseline
from hessnb.boundary.paper_margin import paper_margin
from hessnb.boundary.plane import feature_plane, plane_through, scan_path, scan_plane
from hessnb.boundary.points import boundary_points
from hessnb.boundary.probe import eigenvector_table, perturb
from hessnb.boundary.structure import class_structure
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.top import top_eigenpairs

X = randn(50, 2, seed=3)
Y = (X.sum(1) + .4 * randn(50, seed=4) > 0)


class ZeroAndZ(nn.Sequential):
    def forward(self, x): return F.pad(super().forward(x), (1, 0))


def layers():
    net = build(lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)))
    with torch.no_grad():
        net[0].weight.mul_(3)
        net[-1].bias.sub_(net(X).flatten().sort().values[24:26].mean())  # half of each class, none on the boundary
    return list(net)


@pytest.fixture(scope="module", params=["(N, 1)", "(N,)"])
def both(request):
    "`(one, two, pairs)`: objectives of one logit, as a column or flat, and of two; the leading eigenpairs."
    parts = layers()
    if request.param == "(N, 1)": one, target = nn.Sequential(*parts), Y.double()[:, None]
    else: one, target = nn.Sequential(*parts, nn.Flatten(0)), Y.double()
    two = Objective(ZeroAndZ(*parts), (X, Y.long()))
    return Objective(one.eval(), (X, target), nn.BCEWithLogitsLoss()), two, top_eigenpairs(HessianOperator(two), 4)


def plain_cosines(objective, vectors):
    "By autograd of torch's own loss for the predicted label, an example at a time."
    rows = []
    for x in X:
        z = objective.model(x[None])
        loss = F.binary_cross_entropy_with_logits(z, (z > 0).to(z))
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(objective.model.parameters()))]))
    G = torch.stack(rows)
    return G @ vectors.T / G.norm(dim=1, keepdim=True), G.norm(dim=1)


def test_predictions_and_cosines(both):
    one, two, pairs = both
    assert one.value() == pytest.approx(two.value(), rel=1e-14) and 5 < one.classes(X).sum() < 45
    assert torch.equal(one.classes(X), two.classes(X)) and torch.equal(one.logits(X), two.logits(X))
    V = randn(3, one.n_params)
    a, b = align(one, X, V), align(two, X, V)
    V = V / V.norm(dim=1, keepdim=True)
    expected, norms = plain_cosines(one, V)
    for found in (a, b):
        assert_close(found.cosines, expected)
        assert_close(found.grad_norms, norms, rtol=1e-6, atol=0)
    assert torch.equal(a.labels, b.labels) and a.n_params == one.n_params
    for labels in (0, 1, Y.long()):
        assert_close(align(one, X, V, labels=labels).cosines, align(two, X, V, labels=labels).cosines)
    assert_close(gradient_cosines(one, X), gradient_cosines(two, X))


def test_saturated():
    "z = 200: the plain gradient is zero, its direction is known."
    parts = layers()
    with torch.no_grad(): parts[-1].weight.mul_(1e4), parts[-1].bias.mul_(1e4)
    one = Objective(nn.Sequential(*parts).eval(), (X, Y.double()[:, None]), nn.BCEWithLogitsLoss())
    two = Objective(ZeroAndZ(*parts), (X, Y.long()))
    V = randn(3, one.n_params)
    a, b = align(one, X, V), align(two, X, V)
    assert a.n_undefined == b.n_undefined == 0 and (a.grad_norms < 1e-30).any()
    assert_close(a.cosines, b.cosines)
    path = [scan_path(o, X[0], X[1], n=9, label=1) for o in (one, two)]
    assert_close(path[0].label_loss, path[1].label_loss, rtol=1e-9, atol=1e-300)


def test_planes_and_paths(both):
    one, two, pairs = both
    for plane in (None, feature_plane(X[0]), plane_through(torch.cat([X[:2], X[9:10]]))):
        a, b = (scan_plane(o, X, pairs.vectors, plane=plane, n=25) for o in (one, two))
        assert torch.equal(a.predictions, b.predictions) and len(a.predictions.unique()) == 2
        assert_close(a.confidence, b.confidence), assert_close(a.cosines, b.cosines)
    a, b = (scan_path(o, X[0], X[1], pairs.vectors, n=40, label=0) for o in (one, two))
    for name in ("predictions", "confidence", "logit_margin", "loss", "label_loss", "cosines"):
        assert_close(getattr(a, name), getattr(b, name), rtol=1e-9, atol=1e-14)
    a, b = (trace_boundary(o, X, n=60) for o in (one, two))
    assert len(a.segments) > 20 and torch.equal(a.segments, b.segments) and torch.equal(a.classes, b.classes)


def test_points_and_distances(both):
    one, two, pairs = both
    for how in ("nearest", "random"):
        a, b = (boundary_points(o, X, n=30, pairs=how) for o in (one, two))
        assert len(a) == 30 and torch.equal(a.examples, b.examples) and torch.equal(a.classes, b.classes)
        assert_close(a.points, b.points, rtol=0, atol=1e-13)
        z = one.predict(a.points).flatten()
        assert z.abs().max() < 1e-12
    for norm in ("l2", "linf"):
        a, b = (nearest_boundary(o, X[:9], pool=X, norm=norm) for o in (one, two))
        assert a.verified.all() and (a.n_forward, a.n_backward) == (b.n_forward, b.n_backward)
        assert_close(a.values, b.values), assert_close(a.points, b.points)
    a, b = (estimate_margin(o, X, pairs, n_directions=2) for o in (one, two))
    assert a.value == pytest.approx(b.value) and (a.candidates, a.sources, a.n_forward) == (b.candidates, b.sources,
            b.n_forward)
    cosines = align(two, X, pairs.vectors).cosines
    assert support_examples(one, X, cosines) == support_examples(two, X, cosines)


def test_designed_inputs(both):
    one, two, pairs = both
    for side in (None, 1, -1):
        a, b = (design_input(o, pairs.vectors[0], X[:6], side=side, n_steps=30) for o in (one, two))
        assert_close(a.inputs, b.inputs), assert_close(a.cosines, b.cosines)
    assert paper_margin(one, X, pairs, n_starts=2, n_steps=20).value == pytest.approx(paper_margin(two, X, pairs,
            n_starts=2, n_steps=20).value, nan_ok=True)


def test_structure_and_measures(both):
    one, two, pairs = both
    a, b = (class_structure(o, X, pairs) for o in (one, two))
    for x, y in ((a.by_class, b.by_class), (a.by_pair, b.by_pair)):
        assert torch.equal(x.groups, y.groups) and torch.equal(x.sizes, y.sizes)
        assert_close(x.explained, y.explained), assert_close(x.cosines, y.cosines)
    assert repr(eigenvector_table(one, X, pairs)) == repr(eigenvector_table(two, X, pairs))
    assert random_baseline(one, X).mean == pytest.approx(random_baseline(two, X).mean)
    a, b = (resolve_measure(HessianOperator(o), X, k=4) for o in (one, two))
    assert a.directions.value == pytest.approx(b.directions.value, rel=1e-5) and a.certified == b.certified
    a, b = (estimate_directions(HessianOperator(o), X, n_steps=10, n_principal=2) for o in (one, two))
    assert a.value == pytest.approx(b.value, rel=1e-5)
    moved = [perturb(o, pairs.vectors[0], .1) for o in (one, two)]
    assert all(torch.equal(p, q) for p, q in zip(moved[0].parameters(), moved[1].parameters()))


def test_examined(both):
    one, two, _ = both
    with untouched(one.model), quiet():
        a, b = (examine(o, k=4, pairs=8, test=(X[:20], t[:20])) for o, t in ((one, one.data[1]), (two, two.data[1])))
    for name in ("train_accuracy", "test_accuracy", "train_loss"):
        assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-12)
    assert a.margin.value == pytest.approx(b.margin.value) and a.directions.value == pytest.approx(b.directions.value,
            rel=1e-5)
    assert torch.equal(labelled_examples(one)[1], Y.long())


NO_CLASSES = {  # targets and loss that name no class
    "regression": (randn(50, 3, seed=7), "mse_loss"), "one number": (randn(50, 1, seed=7), "mse_loss"),
    "several labels": ((randn(50, 3, seed=7) > 0).double(), nn.BCEWithLogitsLoss()),
    "huber": (randn(50, 3, seed=7), nn.HuberLoss()),
}


@pytest.mark.parametrize("name", NO_CLASSES)
def test_what_has_no_classes_is_refused(name):
    target, loss = NO_CLASSES[name]
    model = build(lambda: nn.Linear(2, target.shape[1]))
    objective, V = Objective(model, (X, target), loss), torch.ones(1, sum(p.numel() for p in model.parameters()),
                                                                   dtype=F64)
    op = HessianOperator(objective)
    pairs = top_eigenpairs(op, 1)
    calls = [lambda: align(objective, X, V), lambda: gradient_cosines(objective, X),
             lambda: random_baseline(objective, X), lambda: class_structure(objective, X, pairs),
             lambda: scan_plane(objective, X, n=5), lambda: scan_path(objective, X[0], X[1]),
             lambda: trace_boundary(objective, X), lambda: boundary_points(objective, X),
             lambda: nearest_boundary(objective, X), lambda: estimate_margin(objective, X, None),
             lambda: support_examples(objective, X, torch.empty(50, 0)),
             lambda: design_input(objective, V[0], X), lambda: eigenvector_table(objective, X, pairs),
             lambda: resolve_measure(op, X)]
    for call in calls:
        with untouched(model, tensors=[X]), pytest.raises(TypeError, match="no classes"): call()
    assert all("no classes" in why for why in examine(objective, k=3).missing.values() if "eigenvalues" not in why)


def test_entry_by_model_and_data():
    "A model with its data, its loss beside it, in the place of an objective."
    parts, target, loss = layers(), Y.double()[:, None], nn.BCEWithLogitsLoss()
    model, given = nn.Sequential(*parts).eval(), dict(data=(X, target), loss=loss)
    objective = Objective(model, (X, target), loss)
    pairs = top_eigenpairs(HessianOperator(objective), 3)
    same = lambda fn, *args, **options: (fn(objective, *args, **options), fn(model, *args, **given, **options))
    for fn, args, name in ((align, (X, pairs.vectors), "cosines"), (scan_plane, (X,), "confidence"),
                           (scan_path, (X[0], X[1]), "loss"), (trace_boundary, (X,), "segments"),
                           (boundary_points, (X,), "points"), (nearest_boundary, (X[:4],), "values"),
                           (estimate_margin, (X, pairs), "distances"), (random_baseline, (X,), "maxima"),
                           (eigenvector_table, (X, pairs), "contrasts"),
                           (design_input, (pairs.vectors[0], X[:2]), "inputs")):
        options = {"n_steps": 5} if fn is design_input else {}
        a, b = same(fn, *args, **options)
        assert torch.equal(getattr(a, name), getattr(b, name)), fn.__name__
    assert torch.equal(*same(gradient_cosines, X)) and support_examples(model, X, torch.empty(50, 0),
            **given) == support_examples(objective, X, torch.empty(50, 0))
    assert resolve_measure(model, X, k=3,
                           **given).directions.value == pytest.approx(resolve_measure(HessianOperator(objective), X,
                                   k=3).directions.value)
    assert class_structure(model, X, pairs, **given).by_pair.explained.equal(class_structure(objective, X,
            pairs).by_pair.explained)
    for call in (lambda: align(model, X, pairs.vectors), lambda: nearest_boundary(model, X),
                 lambda: resolve_measure(model, X)):
        with pytest.raises(TypeError, match="data"): call()
    with pytest.raises(TypeError, match="has its data"): align(objective, X, pairs.vectors, **given)
