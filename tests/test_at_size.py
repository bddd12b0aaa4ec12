"Measures at size: nothing as large as N x N, C x P or a second basis is made, and what is left out is said."
import gc
import os
import subprocess
import sys
import warnings
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from conftest import F64, build, randn, seeded
from hessnb.boundary import gradients
from hessnb.boundary.alignment import Alignment, align
from hessnb.boundary.directions import effective_directions, estimate_directions, resolve_measure, some_of
from hessnb.boundary.examine import examine
from hessnb.boundary.gradients import ReinforcingGradients, gradient_cosines
from hessnb.boundary.structure import class_structure
from hessnb.curvature.eigenpairs import dense_eigenpairs
from hessnb.curvature.gauss_newton import GGNOperator
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.layer_pairs import layer_eigenpairs
from hessnb.curvature.objective import Objective
from hessnb.curvature.top import top_eigenpairs
from hessnb.curvature.trace import trace

GIB = 2**30


class Largest(TorchDispatchMode):
    "Inside, the numbers of the largest tensor that an operation makes with a storage of its own."
    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in known:
                self.numbers = max(self.numbers, t.untyped_storage().nbytes() // t.element_size())
        return out


def made_by(fn):
    with Largest() as seen: result = fn()
    return result, seen.numbers


def points(N, D=2, C=3):
    X = randn(N, D, seed=1)
    return X, (X[:, 0] * X[:, 1] > 0).long() + (X[:, 0] > 1).long()


def trained(X, y, make, steps=60):
    model = build(make)
    optimiser = torch.optim.Adam(model.parameters(), .05)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        optimiser.step()
    return model


N = 4000
X, Y = points(N)
SMALL = trained(X[:400], Y[:400], lambda: nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)))


# --- freed at once ------------------------------------------------------------------------------------
@pytest.mark.parametrize("used", [
    lambda o: HessianOperator(o), lambda o: HessianOperator(o, product="replay"),
    lambda o: HessianOperator(o, memory_budget=0), lambda o: GGNOperator(o),
    lambda o: top_eigenpairs(HessianOperator(o), 2, progress=False), lambda o: layer_eigenpairs(o, 1, progress=False),
    lambda o: resolve_measure(HessianOperator(o), X[:60], k=4, max_pairs=8), lambda o: trace(HessianOperator(o)),
    lambda o: o.to(torch.float32).at(o.theta.float() + .1).value(),
], ids=["operator", "replay", "nothing kept", "gauss_newton", "search", "layers", "measure", "trace", "moved"])
def test_what_is_dropped_is_freed_without_waiting_for_the_collector(used):
    data = X[:60], Y[:60]
    used(Objective(SMALL, data))  # what is imported at the first use leaves frames behind
    gc.collect()
    gc.disable()
    try:
        objective = Objective(SMALL, data)
        alive = weakref.ref(objective)
        used(objective)
        del objective
        assert alive() is None
    finally: gc.enable()


# --- many examples -----------------------------------------------------------------------------------
def test_many_examples_are_not_compared_with_one_another():
    op = HessianOperator(Objective(SMALL, (X, Y)))
    found, numbers = made_by(lambda: resolve_measure(op, X, n_compared=300))
    assert numbers <= 2**22  # the bootstrap's block; N x N would be 16,000,000
    assert found.directions.n_compared == 300 and found.directions.n_examples == N
    assert "(bounds from 300 of 4,000 examples)" in repr(found.directions)
    pairs = dense_eigenpairs(op)
    curved = pairs.values.abs() > 64 * torch.finfo(F64).eps * pairs.values.abs().max()
    p = align(op.objective, X, pairs.vectors[curved]).cosines.square().mean(0)
    assert_close(1 / p.square().sum().item(), found.directions.value, rtol=.05, atol=0)


def test_bounds_from_a_part_hold_the_truth():
    "With few pairs the unseen part is bounded from the examples that are compared; the bounds hold, and are not wide."
    op = HessianOperator(Objective(SMALL, (X, Y)))
    pairs, some = dense_eigenpairs(op), some_of(N, 500)
    whole = align(op.objective, X, pairs.vectors)
    truth = 1 / whole.cosines.square().mean(0).square().sum().item()
    order = pairs.values.abs().argsort(descending=True)[:4]
    few = Alignment(whole.cosines[:, order], whole.labels, whole.grad_norms, "predicted", "nan", 0, whole.n_params)
    K = gradient_cosines(op.objective, X[some])
    close = effective_directions(few, cosines=K, compared=some)
    wide = effective_directions(few)
    assert close.bounds[0] <= truth <= close.bounds[1] and close.bounds[0] >= wide.bounds[0]
    with pytest.raises(ValueError, match=r"cosines must have shape \(500, 500\)"):
        effective_directions(few, cosines=K[1:, 1:], compared=some)


def test_resamples_in_blocks_are_those_in_one():
    n, k = 9000, 5
    a = Alignment(.3 * randn(n, k).clamp(-1, 1), torch.zeros(n), torch.ones(n), "predicted", "nan", 0, 50)
    (found, numbers), squares = made_by(lambda: effective_directions(a, n_bootstrap=1000)), a.cosines.square()
    assert numbers <= 2**22
    picks = torch.randint(0, n, (1000, n), generator=seeded(0))
    p = torch.stack([squares[pick].mean(0) for pick in picks])
    u = (1 - p.sum(1)).clamp_min(0)
    values = 1 / (p.square().sum(1) + u * u / (50 - k))
    assert_close(torch.tensor(found.interval, dtype=F64), values.quantile(torch.tensor([.025, .975], dtype=F64)))


def test_estimated_directions_of_many_examples():
    op = HessianOperator(Objective(SMALL, (X, Y)))
    found, numbers = made_by(lambda: estimate_directions(op, X, n_steps=12, n_compared=200))
    assert numbers <= N * op.shape[0] * 2
    exact = estimate_directions(op, X, n_steps=12, n_compared=600)
    assert found.value == pytest.approx(exact.value, rel=.2)


def test_cosines_that_do_not_fit(monkeypatch):
    monkeypatch.setattr(gradients, "free_bytes", lambda device: 10**6)
    with pytest.raises(ValueError, match=r"4,000 examples take 0.119 GiB.*give a part of the examples"):
        gradient_cosines(Objective(SMALL, (X, Y)), X)


# --- many parameters ---------------------------------------------------------------------------------
IMAGES, MARKS = randn(12, 3, 8, 8, seed=2), torch.arange(12) % 4
def convolution(): return nn.Sequential(nn.Conv2d(3, 40, 8), nn.Flatten(), nn.Tanh(), nn.Linear(40, 4))
def linear(): return nn.Sequential(nn.Flatten(), nn.Linear(192, 40), nn.Tanh(), nn.Linear(40, 4))


@pytest.mark.parametrize("make", [convolution, linear])
def test_vectors_of_length_one_are_not_copied(make):
    objective = Objective(build(make), (IMAGES, MARKS))
    V = torch.linalg.qr(randn(objective.n_params, 30)).Q.T.contiguous()
    expected = align(objective, IMAGES, 3 * V).cosines
    found, numbers = made_by(lambda: align(objective, IMAGES, V, chunk_bytes=10**5))
    assert numbers < 4 * objective.n_params  # thirty times as many would be a copy
    assert_close(found.cosines, expected, rtol=1e-10, atol=1e-12)


def test_sums_of_gradients_need_no_gradient_of_one_example():
    objective = Objective(build(convolution), (IMAGES, MARKS))
    each, rows = ReinforcingGradients(objective, IMAGES), torch.tensor([1, 4, 5, 11])
    w = randn(4, seed=3)
    assert_close(each.combined(rows, w), w @ each[[1, 4, 5, 11]], rtol=1e-10, atol=1e-12)
    assert not each.combined(rows[:0], w[:0]).any()


def test_unit_gradients_are_put_together_from_slices(monkeypatch):
    objective = Objective(build(convolution), (IMAGES, MARKS))
    each = ReinforcingGradients(objective, IMAGES)
    whole, K = each.units(slice(2, 11)), gradient_cosines(objective, IMAGES)
    monkeypatch.setattr(gradients, "_AT_ONCE", 8 * 2 * objective.n_params)
    assert_close(each.units(slice(2, 11)), whole, rtol=1e-10, atol=1e-14)
    assert_close(gradient_cosines(objective, IMAGES), K, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("weighting", ["unit", "raw"])
@pytest.mark.parametrize("held", [0, 500_000])
def test_regroupings_in_turn(weighting, held):
    "One at a time in memory, or from a file: the same structure, and never all sums at once."
    some, marks = randn(40, 60, seed=4), torch.arange(40) % 4
    objective = Objective(build(lambda: nn.Sequential(nn.Linear(60, 30), nn.Tanh(), nn.Linear(30, 4))), (some, marks))
    P = objective.n_params
    pairs = SimpleNamespace(vectors=torch.linalg.qr(objective.grad()[:, None] + randn(P, 6)).Q.T.contiguous())
    whole = class_structure(objective, some, pairs, weighting=weighting)
    found, numbers = made_by(lambda: class_structure(objective, some, pairs, weighting=weighting, held_bytes=held,
                                                     chunk_bytes=8 * 2 * P))
    g = len(whole.by_pair.groups)
    assert g >= 8 and numbers <= (g + 6) * P < 5 * g * P
    for kind in ("by_class", "by_pair"):
        a, b = getattr(found, kind), getattr(whole, kind)
        assert a.rank == b.rank and torch.equal(a.groups, b.groups) and torch.equal(a.sizes, b.sizes)
        for name in ("explained", "cosines", "shuffled"):
            assert_close(getattr(a, name), getattr(b, name), rtol=1e-8, atol=1e-9)


def test_an_examination_whose_basis_is_a_file():
    objective = Objective(SMALL, (X[:60], Y[:60]))
    whole, P = examine(objective, k=4, n_candidates=1), objective.n_params
    with pytest.warns(UserWarning, match="is kept in a file"):
        found = examine(objective, k=4, n_candidates=1, basis_bytes=15 * 8 * P)
    assert_close(found.pairs.values, whole.pairs.values, rtol=1e-5, atol=1e-9)
    assert found.structure.by_class.rank == whole.structure.by_class.rank
    assert len(found.resolved.pairs) == 3  # fifteen rows hold three pairs and twelve of the search
    assert found.directions.bounds[0] <= whole.directions.value <= found.directions.bounds[1] * 1.05


# --- as large as they come ---------------------------------------------------------------------------
class Residual(nn.Module):
    "Two convolutions and a way around them."
    def __init__(self, i, o, stride):
        super().__init__()
        self.f = nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(),
                               nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o))
        around = nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)
        self.around = nn.Identity() if stride == 1 and i == o else nn.Sequential(*around)
    def forward(self, x): return torch.relu(self.f(x) + self.around(x))


def resnet18():
    "11,173,962 parameters, for images 3 x 32 x 32 of ten classes."
    shapes = [(64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2), (256, 256, 1), (256, 512, 2),
              (512, 512, 1)]
    return nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
                         *(Residual(*shape) for shape in shapes), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(512, 10))


class Encoder(nn.Module):
    "Four layers, width 256, sequences of 32 tokens."
    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(1000, 256), nn.Parameter(torch.randn(32, 256) * .02)
        layer = nn.TransformerEncoderLayer(256, 4, 1024, batch_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), nn.Linear(256, 10)
    def forward(self, x): return self.head(self.layers(self.words(x) + self.places).mean(1))


def look(kind, n, **options):
    "In a process of its own: one examination, and the largest memory that it took."
    torch.manual_seed(0)
    model = (resnet18() if kind == "resnet" else Encoder()).eval()
    inputs = torch.randn(n, 3, 32, 32) if kind == "resnet" else torch.randint(0, 1000, (n, 32))
    with torch.no_grad():  # different predictions
        out = model(inputs)
        (model[-1] if kind == "resnet" else model.head).bias.sub_(out.mean(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = examine(model, (inputs, torch.arange(n) % 10), **options)
    print(found)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print("GiB", int(peak.split()[1]) / 2**20)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
@pytest.mark.parametrize("kind, n", [("resnet", 8), ("encoder", 32)])
def test_an_examination_at_size(kind, n):
    here = Path(__file__).resolve().parent
    code = f"import test_at_size; test_at_size.look({kind!r}, {n}, max_matvecs=60)"
    paths = os.pathsep.join([str(here), str(here.parent)])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    assert float(done.stdout.split("GiB")[1]) < 8


def test_the_budget_of_an_examination_bounds_the_search_for_the_largest():
    X = randn(60, 10, seed=1)
    model = build(lambda: nn.Sequential(nn.Linear(10, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 3)))
    with pytest.warns(UserWarning, match="max_matvecs ran out after 12 products"):
        few = examine(model, (X, X[:, :3].argmax(1)), k=10, n_candidates=2, max_matvecs=12)
    assert few.pairs.n_matvecs <= 12 and few.pairs.stopped == "budget"
