"Nothing may assume the CPU: a pretend device with strict placement, and a real GPU where there is one."
import copy
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
import torch
from torch import nn

from conftest import F64, blobs, build, mlp, prescribed, quiet, seeded
from hessnb.boundary.directions import estimate_directions, resolve_measure
from hessnb.boundary.distance import nearest_boundary
from hessnb.boundary.examine import examine
from hessnb.boundary.gradients import gradient_cosines
from hessnb.boundary.margin import estimate_margin
from hessnb.boundary.structure import class_structure
from hessnb.curvature import fast
from hessnb.curvature.density import spectral_density
from hessnb.curvature.eigenpairs import dense_eigenpairs
from hessnb.curvature.example_grads import example_grads, example_vjps
from hessnb.curvature.gauss_newton import FisherOperator, GGNOperator
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.krylov import tridiagonalize
from hessnb.curvature.objective import Objective
from hessnb.curvature.operator import MatrixOperator
from hessnb.curvature.top import refine, top_eigenpairs
from hessnb.paper.networks import cnn, lenet5

X, Y = blobs(45)
BATCHES = list(zip(X.split([20, 20, 5]), Y.split([20, 20, 5])))


def blob_images(n, n_classes=3):
    return torch.randn(n, 1, 28, 28, generator=seeded(3), dtype=F64), torch.arange(n) % n_classes


LOSS = nn.CrossEntropyLoss(weight=torch.tensor([1., 2., 5., .5]))


def on(device, **kwargs): return Objective(mlp().to(device), BATCHES, LOSS, **kwargs)


@cache
def hessian_on(device):
    "Of one batch: a product takes a tenth of a second for each where devices are pretended."
    return HessianOperator(Objective(mlp().to(device), (X, Y), LOSS))


def same(a, b, atol=1e-12):
    assert a.device.type != "cpu" and b.device.type == "cpu"
    assert (a.cpu() - b).abs().max() <= atol


def test_the_device_is_strict(gpu):
    x = torch.ones(3, device=gpu)
    assert x.device == gpu and (x + x).device == gpu and torch.equal((x * 2).cpu(), torch.full((3,), 2.))
    with pytest.raises(RuntimeError, match="[Ee]xpected all tensors"): x + torch.ones(3)
    with pytest.raises(RuntimeError, match="[Ee]xpected all tensors"): torch.eye(3) @ x


def test_objective(gpu):
    there, here = on(gpu), on("cpu")
    assert there.device == gpu and there.n_examples == 45 and str(gpu) in repr(there)
    for value in (there.value(), there.value(there.theta)): assert value == pytest.approx(here.value(), rel=1e-14)
    same(there.grad(), here.grad()), same(there.grad(there.theta), here.grad()), same(there.predict(X), here.predict(X))
    same(there.to(torch.float32).grad(), here.to(torch.float32).grad(), 1e-6)


def test_example_gradients(gpu):
    there, here = on(gpu), on("cpu")
    r = torch.ones(9, 4, dtype=F64)
    same(example_grads(there, X[:9], Y[:9]), example_grads(here, X[:9], Y[:9]))
    same(example_vjps(there, X[:9].to(gpu), r.to(gpu)), example_vjps(here, X[:9], r))


@pytest.mark.parametrize("budget", [None, 60_000, 0])
def test_hessian(gpu, budget):
    there, here = HessianOperator(on(gpu), memory_budget=budget), HessianOperator(on("cpu"))
    V = torch.randn(3, 44, generator=seeded(0), dtype=F64)
    same(there.matvec(V[0].to(gpu)), here.matvec(V[0]))
    same(there.matmat(V.to(gpu)), here.matmat(V)), same(there.to_dense(), here.to_dense())
    view = there.to_scipy()
    assert abs(view @ V[0].numpy() - here.matvec(V[0]).numpy()).max() <= 1e-12
    assert abs(view @ V.T.numpy() - here.matmat(V).T.numpy()).max() <= 1e-12
    message = rf"expected a vector on {gpu}, got cpu: call v.to\('{gpu}'\)"
    with pytest.raises(ValueError, match=message): there.matvec(V[0])
    with pytest.raises(ValueError, match=f"expected a vector on {gpu}"): there.objective.value(V[0])


@pytest.mark.parametrize("budget", [None, 0])
def test_gauss_newton_and_fisher(gpu, budget):
    for make in (GGNOperator, lambda o, **kw: FisherOperator(o, "empirical", **kw)):
        same(make(on(gpu), memory_budget=budget).to_dense(), make(on("cpu")).to_dense())
    drawn = FisherOperator(on(gpu), n_samples=3, memory_budget=budget)
    v = torch.randn(44, generator=seeded(0), dtype=F64).to(gpu)
    assert drawn.matvec(v).device == gpu and torch.equal(drawn.matvec(v), drawn.matvec(v))


SEARCHES = [{}, dict(which="LM"), dict(which="BE"), dict(basis_bytes=20 * 44 * 8), dict(basis_on="host"),
            dict(basis_on="disk"), dict(start=torch.eye(44)[:3])]


@pytest.mark.parametrize("kwargs", SEARCHES)
def test_eigenpairs(gpu, kwargs):
    there, here = hessian_on(gpu), hessian_on("cpu")
    with quiet("rounding floor", "miss_probability"):
        a, b = (top_eigenpairs(op, 4, tol=1e-8, **kwargs) for op in (there, here))
    assert a.values.device.type == a.residuals.device.type == a.converged.device.type == "cpu"
    assert a.vectors.device == gpu
    assert (a.values - b.values).abs().max() <= 1e-10
    assert ((a.vectors.cpu() * b.vectors).sum(1).abs() - 1).abs().max() <= 1e-6
    assert refine(a, there).vectors.device == gpu
    assert top_eigenpairs(here, 4, start=a.vectors).vectors.device.type == "cpu"


def test_dense_eigenpairs(gpu):
    with quiet("rounding floor"): a, b = (dense_eigenpairs(hessian_on(device)) for device in (gpu, "cpu"))
    assert a.values.device.type == "cpu" and (a.values - b.values).abs().max() <= 1e-10 and a.vectors.device == gpu


def test_matrix_and_tridiagonal(gpu):
    A = prescribed([5., 4., 4., *torch.linspace(-1, 1, 57)]).A
    op = MatrixOperator(A.to(gpu))
    f = tridiagonalize(op, torch.ones(60, dtype=F64, device=gpu), 10)
    assert f.basis.device == gpu and f.alpha.device.type == "cpu"
    assert (top_eigenpairs(op, 4).values - top_eigenpairs(MatrixOperator(A), 4).values).abs().max() <= 1e-10


@pytest.mark.slow
def test_measures(gpu):
    "Alignment, effective directions, class structure, density and margin give the host's numbers, on the host."
    results = []
    for device in (gpu, "cpu"):
        objective = on(device)
        op = HessianOperator(objective)
        with quiet("rounding floor", "miss_probability"): resolved = resolve_measure(op, X, k=5, pairs_tol=1e-8)
        structure, density = class_structure(objective, X, resolved.pairs), spectral_density(op, n_steps=10, n_probes=3)
        found = nearest_boundary(objective, X[:6], pool=X)
        margin = estimate_margin(objective, X, resolved.pairs, n_candidates=4)
        rough = estimate_directions(op, X, n_steps=12, n_principal=3)
        numbers = [resolved.directions.value, *resolved.directions.bounds, rough.lumped, rough.spread_out, margin.value,
                   density.trace.value, *found.values.cpu().tolist(), *structure.by_class.explained.cpu().tolist(),
                   *structure.by_pair.shuffled.cpu().tolist(), gradient_cosines(objective, X).sum().item()]
        results.append((numbers, found.points.device.type, margin.boundary_point.device.type))
    (there, *places), (here, *_) = results
    assert places == [gpu.type] * 2 and there == pytest.approx(here, rel=1e-3)


@pytest.mark.slow
def test_examine(gpu):
    with quiet("rounding floor", "miss_probability"):
        a, b = (examine(on(device), k=4, pairs=6, test=BATCHES[:2]) for device in (gpu, "cpu"))
    assert a.margin.value == pytest.approx(b.margin.value, rel=1e-3)
    assert a.test_accuracy == b.test_accuracy and a.outliers.count == b.outliers.count


def test_meta_vectors_are_refused():
    op = HessianOperator(on("cpu"))
    with pytest.raises(ValueError, match="got meta"): op.matvec(torch.zeros(44, dtype=F64, device="meta"))


@pytest.mark.gpu
@pytest.mark.parametrize("budget", [None, 0])
def test_cuda_agrees(budget):
    there, here = HessianOperator(on("cuda"), memory_budget=budget), HessianOperator(on("cpu"))
    state = torch.cuda.get_rng_state()
    assert (there.to_dense().cpu() - here.to_dense()).abs().max() <= 1e-12
    a, b = top_eigenpairs(there, 5, tol=1e-9), top_eigenpairs(here, 5, tol=1e-9)
    assert a.vectors.is_cuda and (a.values - b.values).abs().max() <= 1e-10
    assert (example_grads(there.objective, X, Y).cpu() - example_grads(here.objective, X, Y)).abs().max() <= 1e-12
    assert torch.equal(state, torch.cuda.get_rng_state())


@pytest.mark.gpu
def test_cuda_as_default_device():
    with torch.device("cuda"): pairs = top_eigenpairs(HessianOperator(on("cuda")), 5)
    assert pairs.converged.all()


class Selecting(nn.Module):
    "Scores from the positive entries alone: a selection by a mask waits for the host."
    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(3, 5).double(), nn.Linear(5, 4).double()
    def forward(self, x):
        h = self.layer(x)
        picked = torch.zeros_like(h).masked_scatter(h > 0, h[h > 0] ** 2)
        return self.out(picked)


@pytest.mark.gpu
@pytest.mark.parametrize("product", ["auto", "graph", "replay"])
def test_one_launch_gives_the_product(product):
    "Launched products are those of the host, on any stream and in any mode, and none overwrites another."
    there, here = HessianOperator(on("cuda"), product=product), HessianOperator(on("cpu"))
    V = torch.randn(6, 44, generator=seeded(1), dtype=F64)
    expected = torch.stack([here.matvec(v) for v in V])
    results = [there.matvec(v.cuda()) for v in V[:3]]
    assert there.kept.launched.launch is not None
    with torch.cuda.stream(torch.cuda.Stream()): results.append(there.matvec(V[3].cuda()).clone())
    torch.cuda.synchronize()
    with torch.no_grad(): results.append(there.matvec(V[4].cuda()))
    with torch.inference_mode(): last = there.matvec(V[5].cuda())
    assert not last.is_inference() and there.n_matvecs == 6
    assert not there.matvec(V[0].cuda().requires_grad_()).requires_grad
    assert (torch.stack([*results, last]).cpu() - expected).abs().max() <= 1e-12
    assert (there.matmat(V.cuda()).cpu() - expected).abs().max() <= 1e-12


@pytest.mark.gpu
@pytest.mark.parametrize("budget", [None, 60_000])
def test_what_waits_for_the_host_is_not_launched(budget):
    torch.manual_seed(0)
    model = Selecting()
    here = HessianOperator(Objective(model, BATCHES, LOSS))
    there = HessianOperator(Objective(copy.deepcopy(model).cuda(), BATCHES, LOSS), memory_budget=budget)
    V = torch.randn(5, here.shape[0], generator=seeded(1), dtype=F64)
    for v in V: assert (there.matvec(v.cuda()).cpu() - here.matvec(v)).abs().max() <= 1e-12
    assert there.kept.launched.launch is None and there.kept.launched.runs == 5
    assert torch.rand(1, device="cuda").item() < 1  # a failed capture would leave the generator unusable
    assert (top_eigenpairs(there, 3).values - top_eigenpairs(here, 3).values).abs().max() <= 1e-8


@pytest.mark.gpu
def test_products_in_float32_are_launched():
    objective = Objective(build(lambda: cnn(3)).cuda(), blob_images(96), memory_budget=2**33)
    op = HessianOperator(objective)
    single, v = op.in_single(), torch.randn(objective.n_params, dtype=F64, device="cuda")
    results = [single.matvec(v.float()) for _ in range(4)]
    assert single.total.launch is not None
    assert all((r - results[0]).norm() <= 1e-5 * results[0].norm() for r in results[1:])
    assert (results[0].double() - op.matvec(v)).norm() <= 1e-4 * op.matvec(v).norm()


@pytest.mark.gpu
def test_float32_products_and_tensor_float_32():
    "In full precision they have all their bits; where torch may drop some, the objective says so, and changes nothing."
    layers = lambda: nn.Sequential(nn.Linear(256, 512), nn.Tanh(), nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 4))
    data, model = tuple(t.cuda() for t in blobs(512, D=256)), build(layers).cuda()
    exact = HessianOperator(Objective(model, data))
    v = torch.randn(exact.shape[0], dtype=F64, device="cuda")
    w = exact.matvec(v)
    error = lambda op: max(((op.matvec(v.float()).double() - w).norm() / w.norm()).item() for _ in range(4))
    assert error(HessianOperator(Objective(model.float(), data))) < 2e-6
    torch.set_float32_matmul_precision("high")
    try:
        with pytest.warns(UserWarning, match="torch may round"): rounded = Objective(model, data)
        assert error(HessianOperator(rounded)) > 1e-5 and torch.get_float32_matmul_precision() == "high"
    finally: torch.set_float32_matmul_precision("highest")


@pytest.mark.gpu
def test_float32_pairs_on_a_gpu():
    model, data = build(lambda: lenet5(4, 1, 28)).float(), blob_images(200, 4)
    pairs = top_eigenpairs(HessianOperator(Objective(model.cuda(), data)), 5, tol=1e-3)
    exact = top_eigenpairs(HessianOperator(Objective(model.cpu().double(), data)), 5, tol=1e-6)
    assert pairs.converged.all() and pairs.vectors.is_cuda and (pairs.values / exact.values - 1).abs().max() <= 1e-4


@pytest.mark.gpu
def test_a_capture_that_fails_leaves_no_trace():
    "Something that waits for the host, and that could not be known before."
    there, here = HessianOperator(on("cuda")), HessianOperator(on("cpu"))
    run, state, v = there.kept.launched.run, torch.cuda.get_rng_state(), torch.randn(44, generator=seeded(1), dtype=F64)
    def waits(u):
        if torch.cuda.is_current_stream_capturing(): torch.cuda.synchronize()
        return run(u)
    there.kept.launched.run = waits
    for _ in range(4): assert (there.matvec(v.cuda()).cpu() - here.matvec(v)).abs().max() <= 1e-12
    assert there.kept.launched.launch is None and torch.equal(state, torch.cuda.get_rng_state())
    assert torch.rand(1, device="cuda").item() < 1
    torch.cuda.empty_cache()
    later = HessianOperator(on("cuda"))
    for _ in range(4): assert (later.matvec(v.cuda()).cpu() - here.matvec(v)).abs().max() <= 1e-12


@pytest.mark.gpu
def test_where_the_device_is_what_takes_the_time(monkeypatch):
    "Nothing is noted where much is kept for each operation."
    monkeypatch.setattr(fast, "_LAUNCH_BYTES", 0)
    there, v = HessianOperator(on("cuda")), torch.randn(44, generator=seeded(1), dtype=F64).cuda()
    results = [there.matvec(v) for _ in range(4)]
    assert there.kept.launched.launch is None and all((r - results[0]).abs().max() <= 1e-14 for r in results)


@pytest.mark.gpu
def test_threads_do_not_mix_their_vectors():
    "A launch has one place for its vector and one for its result."
    there, V = HessianOperator(on("cuda")), torch.randn(2, 44, generator=seeded(1), dtype=F64).cuda()
    expected = [there.matvec(v) for v in V]
    assert there.kept.launched.launch is not None
    with ThreadPoolExecutor(2) as pool: found = list(pool.map(lambda i: (i % 2, there.matvec(V[i % 2])), range(200)))
    assert all((w - expected[i]).abs().max() <= 1e-12 for i, w in found)
