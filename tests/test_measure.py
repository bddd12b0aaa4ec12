"The measures against dense answers, under changes of precision and of parameters, and on minima of known kinds."
import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_reference import network  # noqa: F401
from torch.testing import assert_close

from conftest import F64, build, quiet, randn, untouched
from hessnb.boundary.alignment import Alignment, align
from hessnb.boundary.columns import COLUMNS
from hessnb.boundary.compare import compare_minima
from hessnb.boundary.directions import effective_directions, estimate_directions, resolve_measure
from hessnb.boundary.examine import examine
from hessnb.boundary.gradients import gradient_cosines
from hessnb.boundary.measure import generalization_measure, random_baseline
from hessnb.curvature.eigenpairs import dense_eigenpairs
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.operator import MatrixOperator
from hessnb.curvature.top import eigenpairs_until, top_eigenpairs
from hessnb.paper.data import load_data
from hessnb.paper.zoo import find_minimum

THRESHOLDS = (.02, .05, .1, .3)


def clouds(n, D, C, seed=0):
    "`n` points around `C` centres, and which."
    y = torch.arange(n) % C
    return 2 * randn(C, D, seed=seed + 1)[y] + .7 * randn(n, D, seed=seed), y


def relu_net(*sizes):
    layers = [part for a, b in zip(sizes, sizes[1:]) for part in (torch.nn.Linear(a, b), torch.nn.ReLU())]
    return torch.nn.Sequential(*layers[:-1]).double()


def briefly_trained(seed, steps, sizes, n=45, classes=3):
    "An objective in float64 at some point of a training run."
    X, y = clouds(n, sizes[0], classes, seed=seed)
    model = build(lambda: relu_net(*sizes, classes), seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=.02)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(X), y).backward()
        optimizer.step()
    model.zero_grad()
    return Objective(model, (X, y))


@pytest.mark.parametrize("seed,steps,sizes", [(s, n, sizes) for s,
                                              (n, sizes) in enumerate([(0, (2, 12)), (30, (2, 12)), (300, (2, 12)),
                                                                       (100, (5, 16)), (300, (5, 16)),
                                                                                              (1000, (3, 20)),
                                                                                              (100, (2, 10, 10)),
                                                                                              (600, (2, 10, 10)),
                                                                                              (50, (8, 20)),
                                                                                              (2000, (2, 16))])])
def test_intervals_hold_the_dense_answer(seed, steps, sizes):
    objective = briefly_trained(seed, steps, sizes)
    op, X = HessianOperator(objective), objective.examples()[0]
    with quiet("rounding floor"): everything = dense_eigenpairs(op, which="LM")
    full, K, P = align(objective, X, everything.vectors), gradient_cosines(objective, X), op.shape[0]
    truth = effective_directions(full)
    assert truth.coverage == pytest.approx(1, abs=1e-9)
    for k in (3, 10, 30):
        some = align(objective, X, everything.vectors[:k])
        for reduce in ("max", "mean"):
            for eps in THRESHOLDS:
                G = generalization_measure(some, threshold=eps, reduce=reduce)
                dense = generalization_measure(full, threshold=eps, reduce=reduce, n_params=P).count
                assert G.count <= dense <= G.upper and (not G.certified or G.count == dense)
        for cosines in (None, K):
            d = effective_directions(some, cosines=cosines)
            assert d.bounds[0] * (1 - 1e-9) <= truth.value <= d.bounds[1] * (1 + 1e-9)
            assert d.entropy_bounds[0] * (1 - 1e-9) <= truth.entropy <= d.entropy_bounds[1] * (1 + 1e-9)
    tight = resolve_measure(op, X, k=5, tol=.02)
    assert tight.certified
    assert tight.directions.bounds[0] * (1 - 1e-6) <= truth.value <= tight.directions.bounds[1] * (1 + 1e-6)


def test_intervals_hold_the_published_counts(network):
    op, data = network
    curve = {float(eps): value for eps, value in zip(data["G_eps"], data["G_f64_curve"]) if eps >= 1e-2}
    assert len(curve) >= 5
    for k in (12, 60):
        with quiet(): pairs = top_eigenpairs(op, k, tol=1e-8, which="LM")
        alignment = align(op.objective, data["X_train"], pairs.vectors)
        for eps, value in curve.items():
            G = generalization_measure(alignment, threshold=eps)
            assert G.count <= round(value * op.shape[0]) <= G.upper, (k, eps)


def test_resolved_on_published_networks(network):
    "The number that the few leading pairs give stays inside the bounds when many more are known."
    op, data = network
    few = resolve_measure(op, data["X_train"], tol=.1)
    many = resolve_measure(op, data["X_train"], k=150, tol=1e-9, max_pairs=250, max_matvecs=800)
    assert few.certified and not many.certified
    assert few.directions.bounds[0] * (1 - 1e-6) <= many.directions.bounds[0]
    assert many.directions.bounds[1] <= few.directions.bounds[1] * (1 + 1e-6)
    rough = estimate_directions(op, data["X_train"])
    assert rough.n_matvecs == 96
    assert rough.lumped <= many.directions.value * 1.05 and rough.spread_out >= many.directions.bounds[0] * .95
    assert rough.value == pytest.approx(many.directions.value, rel=.08)


def test_closed_forms():
    eye = torch.eye(8, dtype=F64)
    def as_alignment(cosines, P=50):
        return Alignment(cosines, torch.zeros(len(cosines), dtype=torch.int64), torch.ones(len(cosines)), "predicted",
                         "nan", 0, P)
    for n in (1, 3, 8):
        d = effective_directions(as_alignment(eye[torch.arange(24) % n]), n_bootstrap=50)
        assert d.value == pytest.approx(n) and d.bounds == pytest.approx((n, n)) and d.entropy == pytest.approx(n)
    half = effective_directions(as_alignment(eye[:4] * .5**.5,
                                             108))  # four directions hold half, 100 unseen ones the rest
    p = torch.tensor([.125] * 4 + [.5 / 100] * 100)
    assert half.coverage == pytest.approx(.5) and half.value == pytest.approx(1 / p[p > 0].square().sum().item(),
            rel=1e-2)
    assert half.bounds[0] == pytest.approx(1 / (4 * .125**2 + .25))
    with_nan = torch.cat([eye, torch.full((2, 8), torch.nan, dtype=F64)])
    assert effective_directions(as_alignment(with_nan)).n_examples == 8
    with pytest.raises(ValueError, match="zero"): effective_directions(as_alignment(with_nan[8:]))


def test_bootstrap_covers():
    "Resampling examples: 95% intervals hold the population's number in most of 60 draws."
    shares = torch.tensor([.4, .3, .2, .1], dtype=F64)
    truth, hits = 1 / shares.square().sum().item(), 0
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        cosines = torch.eye(4, dtype=F64)[torch.multinomial(shares, 200, replacement=True, generator=g)]
        alignment = Alignment(cosines, torch.zeros(200), torch.ones(200), "predicted", "nan", 0, n_params=4)
        d = effective_directions(alignment, generator=g)
        hits += d.interval[0] <= truth <= d.interval[1]
    assert 50 <= hits <= 60


def test_cosines_between_gradients(cuts=(1, 7, 100)):
    objective = briefly_trained(0, 100, (2, 12))
    X = objective.examples()[0]
    full = align(objective, X, torch.eye(objective.n_params, dtype=F64))
    for rows in cuts:
        K = gradient_cosines(objective, X, chunk_bytes=rows * 8 * objective.n_params)
        assert_close(K, full.cosines @ full.cosines.T, rtol=0, atol=1e-12)


def test_float32_agrees_with_float64():
    data = load_data("gauss")
    minimum = find_minimum("normal", data)
    double, single = (Objective(minimum.model, (data.X_train, data.y_train), dtype=d) for d in (F64, torch.float32))
    with quiet():
        fine, coarse = (resolve_measure(HessianOperator(o), data.X_train, pairs_tol=tol) for o,
                        tol in ((double, 1e-6), (single, 1e-4)))
    assert coarse.directions.value == pytest.approx(fine.directions.value, rel=.03)


@pytest.mark.slow
def test_rank_of_the_kinds_of_minima():
    "Gaussian mixture, 10 seeds of training: normal < large-norm < adversarial."
    data, right, wide = load_data("gauss"), 0, 0
    for seed in range(10):
        values = []
        for kind in ("normal", "large_norm", "adversarial"):
            o = Objective(find_minimum(kind, data, seed=seed).model, (data.X_train, data.y_train), dtype=F64)
            d = resolve_measure(HessianOperator(o), data.X_train, max_matvecs=800, max_pairs=250).directions
            values.append(d.value)
            if kind == "normal": normal_upper = d.bounds[1]
            else: wide += d.bounds[0] > normal_upper
        right += values == sorted(values)
    assert right >= 9 and wide >= 14, (right, wide)  # most are apart by certified bounds


def test_rescaled_layers_and_inputs():
    """A ReLU network with one layer scaled up and the next down: the margin stays, curvature and directions do not.
    Inputs in other units: the margin follows."""
    data = load_data("gauss")
    model = find_minimum("normal", data).model.double()
    train, layers = (data.X_train.double(), data.y_train), [m for m in model.modules()
                                                            if isinstance(m, torch.nn.Linear)]
    scaled, units = copy.deepcopy(model), copy.deepcopy(model)
    first, second, _ = (m for m in scaled.modules() if isinstance(m, torch.nn.Linear))
    with torch.no_grad():
        for p in (first.weight, first.bias): p *= 3
        second.weight /= 3
        next(m for m in units.modules() if isinstance(m, torch.nn.Linear)).weight /= 5
    assert len(layers) == 3
    c = compare_minima({"as trained": model, "scaled": scaled}, train, k=10, pairs=30)
    c = {row["minimum"]: row for row in c.rows()}
    other = compare_minima({"units": units}, (5 * train[0], train[1]), k=10, pairs=30).rows()[0]
    base, after = c["as trained"], c["scaled"]
    assert after["margin"] == pytest.approx(base["margin"],
                                            rel=2e-3) and other["margin"] == pytest.approx(5 * base["margin"], rel=2e-3)
    assert after["train_loss"] == pytest.approx(base["train_loss"],
                                                rel=1e-9) and other["train_loss"] == pytest.approx(base["train_loss"],
                                                        rel=1e-6)
    for name in ("lambda_1", "trace", "effective_directions"):
        assert abs(after[name] / base[name] - 1) > .05 and abs(other[name] / base[name] - 1) > .05, name


@pytest.mark.parametrize("which", ["LM", "LA"])
def test_eigenpairs_until(which):
    spectrum = torch.cat([torch.tensor([9., 9., 9., -8., 5.]), .5 * torch.linspace(-1, 1, 195)]).to(F64)
    Q = torch.linalg.qr(randn(200, 200, dtype=F64))[0]
    op = MatrixOperator(Q @ torch.diag(spectrum) @ Q.T)
    seen = []
    def enough(values, V):
        seen.append(len(values))
        assert V.shape == (len(values), 200)
        return len(values) >= 6
    pairs = eigenpairs_until(op, enough, k=2, which=which)
    assert seen[0] == 2 and len(pairs) >= 6 and pairs.stopped == "converged" and pairs.converged.all()
    assert pairs.miss_probability <= 1e-3
    assert pairs.n_matvecs + pairs.n_certify == op.n_matvecs
    want = {"LM": torch.tensor([9, 9, 9, -8, 5.]), "LA": torch.tensor([9, 9, 9, 5.])}[which].to(F64)
    assert_close(pairs.values[:len(want)], want, rtol=1e-9, atol=0)
    first = eigenpairs_until(op, lambda values, V: True, k=1, which="LM")
    assert len(first) == 1
    short = eigenpairs_until(op, lambda values, V: False, k=3, max_matvecs=30)
    assert short.stopped == "budget" and short.n_matvecs <= 30
    with pytest.raises(ValueError, match="which"): eigenpairs_until(op, enough, which="XX")


def test_nothing_of_the_user_changes():
    X, y = clouds(40, 2, 3)
    model = build(lambda: relu_net(2, 10, 3))
    with untouched(model), quiet():
        e = examine(model, (X, y), test=(X, y), k=5, pairs=8)
        estimate_directions(HessianOperator(e.objective), X, n_steps=12, n_principal=3)
    assert e.test_accuracy == e.train_accuracy


def test_kinds_of_input():
    "Labels and inputs that a comparison cannot use are refused, a constant network is said to have no margin."
    X, y = clouds(30, 2, 3)
    model = build(lambda: relu_net(2, 10, 3))
    for wrong in (3, "model", [model]):
        with pytest.raises(TypeError): compare_minima({"a": wrong}, (X, y))
    with pytest.raises(ValueError, match="k must"): examine(model, (X, y), k=2)
    with pytest.raises(ValueError, match="tol"): examine(model, (X, y), k=5, tol=0)
    with pytest.raises(ValueError, match="threshold"):
        generalization_measure(examine(model, (X, y), k=5, pairs=5).alignment, threshold=2.)
    assert random_baseline(Objective(model, (X, y)), X).min > 0


def test_a_budget_that_ends_leaves_certified_pairs():
    "An examination whose measure is not settled in time still rests on pairs that were probed for missed copies."
    X, y = clouds(40, 2, 3)
    objective = Objective(build(lambda: relu_net(2, 20, 20, 3)), (X, y))
    op = HessianOperator(objective)
    resolved = resolve_measure(op, X, tol=1e-12, k=10, max_pairs=12)
    assert not resolved.certified and resolved.pairs.stopped == "budget" and resolved.pairs.miss_probability <= 1e-3
    assert resolved.pairs.converged.all()
    e = examine(objective, k=5, tol=1e-12, max_matvecs=60)
    assert e.pairs.miss_probability <= 1e-3
    assert_close(e.pairs.values, top_eigenpairs(op, 5).values, rtol=1e-6, atol=1e-9)
    assert e.most_negative == pytest.approx(top_eigenpairs(op, 1, which="SA").values[0].item(), rel=1e-3)


def test_minima_without_a_margin_and_truncated_outliers():
    X, y = clouds(40, 2, 3)
    model, constant = build(lambda: relu_net(2, 10, 3)), build(lambda: relu_net(2, 10, 3))
    with torch.no_grad():
        constant[-1].weight.zero_()
        constant[-1].bias.copy_(torch.tensor([9., 0., 0.]))
    with pytest.warns(UserWarning, match="no margin"):
        c = compare_minima({"constant": constant, "usual": model}, (X, y), k=3, pairs=6)
    assert np.isnan(c["constant"].margin.value) and "none met" in repr(c) and "nan" not in repr(c)
    assert "nan" not in c._repr_html_() and "nan" not in repr(c["usual"])
    assert c.verdict == "" and c.undominated == []  # a network of one class has no boundary
    assert c.rows()[1]["outliers_truncated"] == c["usual"].outliers.truncated
    column = next(column for column in COLUMNS if column.name == "outliers")
    cut_off = {truncated: replace(c["usual"], outliers=replace(c["usual"].outliers, truncated=truncated))
               for truncated in (True, False)}
    assert "at least" in column.text(cut_off[True]) and "at least" not in column.text(cut_off[False])


def test_test_data_in_the_form_of_the_training_data():
    X, y = clouds(30, 2, 3)
    rows = lambda X, y: [{"id": torch.arange(len(X)), "x": X, "y": y}]
    objective = Objective(build(lambda: relu_net(2, 10, 3)), rows(X, y), unpack=lambda batch: (batch["x"], batch["y"]))
    e = examine(objective, k=3, pairs=5, test=rows(X, y))
    assert e.test_accuracy == e.train_accuracy
