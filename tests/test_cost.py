"""What the search for eigenpairs costs, in things that can be counted: products, forward passes, bytes. Nothing is
timed, so a loss shows on any machine."""
import copy
import statistics
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from conftest import F64, build, prescribed, randn
from hessnb.curvature import tracing
from hessnb.curvature.gauss_newton import FisherOperator, GGNOperator
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.krylov import tridiagonalize
from hessnb.curvature.objective import Objective
from hessnb.curvature.top import top_eigenpairs
from hessnb.paper.networks import cnn

X, Y = randn(150, 2), torch.arange(150) % 3
DENSE = build(lambda: nn.Sequential(nn.Linear(2, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 3)))
IMAGES, DIGITS = randn(48, 1, 28, 28), torch.arange(48) % 3
CNN = cnn(3).double()


@contextmanager
def counted_passes(model):
    "A list that grows by the number of examples at each forward pass."
    passes = []
    handle = model.register_forward_hook(lambda module, args, out: passes.append(len(out)))
    try: yield passes
    finally: handle.remove()


def peak_bytes(fn):
    "Most bytes that tensors made inside `fn` held at one time on the host."
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record: fn()
    held = peak = 0
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def unrestarted(op, k, tol, most=100):
    "Steps of plain Lanczos, fully reorthogonalised, until the `k` largest pairs have residual estimates below tol."
    f = tridiagonalize(op, randn(op.shape[0]).to(op.dtype), most)
    beta = torch.cat([f.beta, torch.tensor([f.beta_last], dtype=F64)])
    for m in range(k, most):
        T = torch.diag(f.alpha[:m]) + torch.diag(beta[:m - 1], 1) + torch.diag(beta[:m - 1], -1)
        values, S = torch.linalg.eigh(T)
        if (beta[m - 1] * S[-1, -k:].abs() <= tol * values[-k:].abs()).all(): return m
    raise AssertionError(f"not converged in {most} steps")


PROBLEMS = {  # operator, pairs, tolerance, products that certify: the probe begins just beyond the last pair
    "prescribed": (lambda: prescribed(np.r_[np.geomspace(10, 1, 8), np.linspace(-.5, .5, 292)]), 8, 1e-6, 10),
    "dense": (lambda: HessianOperator(Objective(DENSE, (X, Y))), 10, 1e-6, 9),
    "dense, coarse": (lambda: HessianOperator(Objective(DENSE, (X, Y))), 10, 1e-3, 11),
    "dense, one pair": (lambda: HessianOperator(Objective(DENSE, (X, Y))), 1, 1e-3, 7),
    # the sixth eigenvalue is 98.6% of the fifth
    "convolutions": (lambda: HessianOperator(Objective(CNN, (IMAGES, DIGITS))), 5, 1e-3, 34),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_products(name):
    """The search takes no more products than Lanczos without restarts, but for the step between two looks at the pairs;
    certifying them takes a few for all of them together, and a probe. The middle one of three starts counts."""
    make, k, tol, n_certify = PROBLEMS[name]
    op, found = make(), []
    for seed in range(3):
        before = op.n_matvecs
        found.append(top_eigenpairs(op, k, tol=tol, generator=torch.Generator().manual_seed(seed)))
        assert found[-1].converged.all() and op.n_matvecs - before == found[-1].n_matvecs + found[-1].n_certify
    steps = max(k + 4, unrestarted(make(), k, tol))
    assert statistics.median(p.n_matvecs for p in found) <= steps + max(2, steps // 20)
    assert statistics.median(p.n_certify for p in found) <= n_certify


@pytest.mark.slow
def test_products_in_double_precision():
    "Of a search in float32, only the certificate takes products in float64: one for each pair, if that is precise."
    op = HessianOperator(Objective(CNN, (IMAGES.repeat(3, 1, 1, 1) + .1 * randn(144, 1, 28, 28), DIGITS.repeat(3))))
    pairs, steps = top_eigenpairs(op, 5, tol=1e-3), unrestarted(HessianOperator(op.objective), 5, 1e-3)
    assert op.n_matvecs - pairs.n_single == 5 and pairs.n_matvecs <= steps + 4
    fine = top_eigenpairs(op, 5, tol=1e-6)
    assert fine.n_single and fine.n_matvecs + fine.n_certify - fine.n_single <= 10


def test_forward_passes_of_an_objective():
    "Two of the first batch, to see that they are the same, and one of all; a few of one example or two besides."
    with counted_passes(CNN) as passes: Objective(CNN, (IMAGES, DIGITS))
    assert passes == [2, 2, 48, 48, 1, 1, 1, 1, 2, 1, 2, 48]


@pytest.mark.parametrize("product", ["graph", "replay"])
def test_forward_passes_with_everything_kept(product):
    "One of a single example to try a product and one to build the operator, none to use it."
    objective = Objective(CNN, (IMAGES, DIGITS))
    with counted_passes(CNN) as passes:
        op = HessianOperator(objective, product=product, verify=False)
        assert passes == [1, 48]
        top_eigenpairs(op, 3, tol=1e-3)
        assert passes == [1, 48] and op.n_matvecs > 15


@pytest.mark.parametrize("curvature", [HessianOperator, GGNOperator, FisherOperator])
def test_forward_passes_with_nothing_kept(curvature):
    "One for each product, and one of a single example to look for dead ends and to try a product."
    objective = Objective(CNN, (IMAGES, DIGITS))
    with counted_passes(CNN) as passes:
        op = curvature(objective, memory_budget=0, verify=False)
        assert passes == [1]
        top_eigenpairs(op, 3, tol=1e-3)
        assert passes == [1] + [48] * op.n_matvecs


def test_forward_passes_of_the_check():
    "Of an eighth of the examples: a product in either precision, a gradient from both sides; none again."
    objective = Objective(copy.deepcopy(CNN).float(), (IMAGES.float(), DIGITS))
    with counted_passes(objective.model) as passes:
        HessianOperator(objective, memory_budget=0)
        assert passes == [6] * 4
        HessianOperator(objective, memory_budget=0)
        assert passes == [6] * 4


def test_bytes_of_a_trace():
    "A trace holds less than was allowed for, and no more than a graph does."
    objective = Objective(CNN, (IMAGES, DIGITS))
    graph, replay = (HessianOperator(objective, product=p) for p in ("graph", "replay"))
    v, allowed = randn(objective.n_params), objective.cost.fixed + 48 * objective.cost.per_example
    held = [t for program in replay.kept.maps for t in program.constants.values()]
    assert sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values()) <= allowed
    assert peak_bytes(lambda: replay.matvec(v)) <= min(peak_bytes(lambda: graph.matvec(v)), allowed)


def test_a_trace_writes_in_place(monkeypatch):
    "Where an operand is not needed any more, its memory holds the result."
    objective = Objective(build(lambda: nn.Sequential(nn.Linear(2, 400), nn.Tanh(), nn.Linear(400, 3))), (X, Y))
    memory = lambda record: [e.nbytes() for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    bytes_made = []
    for in_place in (True, False):
        if not in_place: monkeypatch.setattr(tracing, "write_in_place", lambda graph: None)
        op, v = HessianOperator(objective, product="replay"), randn(objective.n_params)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record: op.matvec(v)
        bytes_made.append(sum(b for b in memory(record) if b > 0))
    assert bytes_made[0] < .8 * bytes_made[1]


@pytest.mark.parametrize("product", ["graph", "replay"])
def test_bytes_of_a_search(product):
    "A search adds to a product its basis, which grows by doubling, and the vectors that it returns."
    objective = Objective(CNN, (IMAGES, DIGITS))
    op, row = HessianOperator(objective, product=product), objective.n_params * 8
    one, pairs = peak_bytes(lambda: op.matvec(randn(objective.n_params))), []
    first = peak_bytes(lambda: pairs.append(top_eigenpairs(op, 3, tol=1e-3)))
    assert first <= one + (2 * pairs[0].n_matvecs + 16) * row
    second = peak_bytes(lambda: pairs.append(top_eigenpairs(op, 4, tol=1e-6)))
    assert second <= one + (2 * pairs[1].n_matvecs + 40) * row and 32 < pairs[1].n_matvecs < 80
    allowed = objective.cost.fixed + 48 * objective.cost.per_example
    assert peak_bytes(lambda: HessianOperator(objective, product=product)) <= 3 * allowed


def test_passes_over_the_basis():
    "Nearly every step of the search goes over its basis once: what a product has along the basis is known before."
    class Count(TorchDispatchMode):
        n = 0
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            by_a_matrix = func is torch.ops.aten.mv.default and args[0].ndim == 2
            self.n += by_a_matrix and 4 < args[0].shape[0] < args[0].shape[1] == 300
            return func(*args, **kwargs or {})
    op = prescribed(np.r_[np.geomspace(10, 1, 8), np.linspace(-.5, .5, 292)])
    with Count() as count: pairs = top_eigenpairs(op, 8, tol=1e-9, miss_probability=1)
    assert pairs.converged.all() and .7 * pairs.n_matvecs < count.n < 1.5 * pairs.n_matvecs


@pytest.mark.slow
def test_a_quarter_of_the_budget():
    "Pieces that do not fit are computed anew, in less memory, and the pairs are the same."
    data = (IMAGES[:32].repeat(4, 1, 1, 1), DIGITS[:32].repeat(4))
    whole = Objective(CNN, data)
    budget = (whole.cost.fixed + 128 * whole.cost.per_example) // 4
    quarter = Objective(CNN, data, memory_budget=budget)
    ops = [HessianOperator(o) for o in (whole, quarter)]
    assert ops[0].n_kept == 128 and ops[1].n_kept <= 32
    v = randn(whole.n_params)
    peaks = [peak_bytes(lambda op=op: op.matvec(v)) for op in ops]
    assert peaks[1] <= 2.5 * budget
    a, b = (top_eigenpairs(op, 3, tol=1e-3, miss_probability=1, single=False) for op in ops)
    assert torch.allclose(a.values, b.values, rtol=1e-5) and a.n_matvecs == b.n_matvecs


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_convolutions_go_through_in_small_micro_batches(dtype):
    "Larger buffers cost as much as arithmetic: a product of many images is one of a few at a time, with the same sum."
    cut, whole = (Objective(CNN, (randn(600, 1, 28, 28), torch.arange(600) % 3), dtype=dtype) for _ in range(2))
    whole.micro_batch_size = 600
    sizes = [len(t) for _, t in cut.micro_batches()]
    assert len(sizes) > 2 and max(sizes) - min(sizes) < len(sizes) and sum(sizes) == 600
    op, v = HessianOperator(cut), randn(cut.n_params).to(dtype)
    w = op.matvec(v)
    assert peak_bytes(lambda: op.matvec(v)) < 2**25  # as a whole: 80 and 190 MiB
    torch.testing.assert_close(w, HessianOperator(whole, verify=False).matvec(v))


def test_micro_batches_of_large_examples_are_not_too_small():
    wide = lambda: nn.Sequential(nn.Conv2d(1, 160, 5, padding=2), nn.Tanh(), nn.Flatten(), nn.Linear(160 * 784, 3))
    model = build(wide)  # 24 MiB hold fewer than 24
    assert [len(t) for _, t in Objective(model, (IMAGES, DIGITS)).micro_batches()] == [24, 24]
    assert [len(t) for _, t in Objective(model, (IMAGES, DIGITS), memory_budget=2**24).micro_batches()] != [24, 24]


CUTS = dict(whole=lambda X, y: (X, y), batches=lambda X, y: list(zip(X.split(150), y.split(150))))


@pytest.mark.parametrize("batches", CUTS.values(), ids=CUTS)
def test_data_and_parameters_are_not_charged_to_every_micro_batch(batches):
    data = batches(randn(600, 1, 28, 28), torch.arange(600) % 3)
    objective = Objective(CNN, data)
    op = HessianOperator(objective, memory_budget=int(1.01 * 600 * objective.cost.per_example))
    assert len(op.kept.maps) > 2 and op.n_kept == 600 and op.n_kept * 8 * 784 < op.kept.n_bytes
    assert HessianOperator(objective, memory_budget=int(.9 * 600 * objective.cost.per_example)).n_kept < 600
