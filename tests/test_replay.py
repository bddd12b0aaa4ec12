"A product that is replayed from its trace is the product by double backward, to the last bit or by patches."
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import F64, blobs, build, mlp, randn, untouched
from hessnb.curvature import fast
from hessnb.curvature.fast import FastSum
from hessnb.curvature.gauss_newton import GGNOperator
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.top import top_eigenpairs
from hessnb.curvature.tracing import CannotTrace, trace
from hessnb.paper.networks import cnn, lenet5, resnet18

X, Y = blobs(45)
IMAGES = randn(12, 1, 28, 28)
SEQUENCES = randn(12, 6, 8)


class Recurrent(nn.Module):
    def __init__(self): super().__init__(); self.rnn, self.out = nn.GRU(8, 5, batch_first=True), nn.Linear(5, 4)
    def forward(self, x): return self.out(self.rnn(x)[0][:, -1])


class Words(nn.Module):
    def __init__(self): super().__init__(); self.table, self.out = nn.Embedding(20, 6), nn.Linear(6, 4, bias=False)
    def forward(self, x): return self.out(F.silu(self.table(x)).mean(1))


def encoder(norm_first=False):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0., batch_first=True, activation="gelu", norm_first=norm_first)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.Linear(48, 4))


def layers(make):
    "A function that builds the sequence of the layers that `make` gives."
    return lambda: build(lambda: nn.Sequential(*make()))


def in_place(): return nn.Linear(3, 7), nn.ReLU(inplace=True), nn.Linear(7, 7), nn.ELU(), nn.Linear(7, 4)
def normed(): return nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Softplus(), nn.Linear(6, 4)
def pooled(): return nn.Conv2d(1, 3, 5, stride=2), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(108, 4)


NETWORKS = {
    "dense": (mlp, X), "deep, ReLU in place": (layers(in_place), X),
    "convolutions": (lambda: cnn(4).double(), IMAGES), "LeNet-5": (lambda: lenet5(4, 1, 28).double(), IMAGES),
    "residual": (lambda: resnet18(4).double().eval(), randn(2, 3, 8, 8)),
    "batch norm": (layers(normed), X), "average pooling": (layers(pooled), IMAGES),
    "encoder": (lambda: build(encoder), SEQUENCES),
    "encoder, norm first": (lambda: build(lambda: encoder(True)), SEQUENCES),
    "recurrent": (lambda: build(Recurrent), SEQUENCES),
    "embedding": (lambda: build(Words), torch.arange(36).view(12, 3) % 20),
}


def uses_patches(op): return any("bmm" in str(node.target) for part in op.kept.maps for node in part.graph.nodes) and \
    any(isinstance(m, nn.modules.conv._ConvNd) for m in op.objective.model.modules())


def near(a, b): return (a - b).norm() <= 100 * torch.finfo(a.dtype).eps * b.norm()


def naive(objective, inputs, targets, v):
    leaves = objective.leaves()
    loss = F.cross_entropy(objective.outputs(leaves, inputs), targets)
    g = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    flat = torch.cat([p.reshape(-1) for p in g])
    return torch.cat([h.reshape(-1) for h in torch.autograd.grad(flat, list(leaves.values()), v)])


@pytest.mark.parametrize("name, dtype", [
    pytest.param(name, dtype, marks=[pytest.mark.slow] if name == "residual" else [])
    for name in NETWORKS for dtype in (F64, torch.float32)])
def test_replay_is_double_backward(name, dtype):
    make, inputs = NETWORKS[name]
    model, targets = make(), torch.arange(len(inputs)) % 4
    objective = Objective(model, (inputs, targets), dtype=dtype)
    graph = HessianOperator(objective, product="graph")
    auto = HessianOperator(objective)
    v = randn(objective.n_params).to(dtype)
    expected = graph.matvec(v)
    with untouched(model, tensors=[v]):
        replay = HessianOperator(objective, product="replay")
        assert replay.product == "replay" and replay.n_kept == graph.n_kept == len(inputs)
        replayed = replay.matvec(v)
        assert torch.equal(replay.matvec(v), replayed)
        if uses_patches(replay): assert near(replayed, expected)
        else: assert torch.equal(replayed, expected)
    auto.kept.done = 10**9  # as after many products
    assert torch.equal(auto.matvec(v), replayed) and auto.product == "replay" and torch.equal(auto.matvec(v), replayed)
    placed = inputs.to(dtype) if inputs.is_floating_point() else inputs
    true = naive(objective, placed, targets, v)
    assert (expected - true).norm() <= (1e-10 if dtype == F64 else 1e-3) * true.norm()


def relu_pool(**kwargs): return nn.ReLU(), nn.MaxPool2d(2, **kwargs), nn.Conv2d(3, 2, 3)


CONVOLUTIONS = {  # layers, and the shape of an example
    "3 x 3": (lambda: (nn.Conv2d(1, 3, 3), *relu_pool()), (1, 12, 12)),
    "padding": (lambda: (nn.Conv2d(1, 3, 3, padding=(1, 2)), *relu_pool()), (1, 12, 9)),
    "stride, dilation": (lambda: (nn.Conv2d(2, 3, (2, 3), stride=(2, 1), dilation=(1, 2)), nn.GELU()), (2, 12, 12)),
    "without bias": (lambda: (nn.Conv2d(1, 3, 3, bias=False), *relu_pool()), (1, 12, 12)),
    "same, padding of zeros": (lambda: (nn.Conv2d(1, 3, 4, padding="same"), nn.SiLU()), (1, 9, 9)),
    "5 x 5": (lambda: (nn.Conv2d(1, 3, 5), *relu_pool()), (1, 12, 12)),
    "5 x 5, three colours": (lambda: (nn.Conv2d(3, 3, 5), nn.GELU(), nn.MaxPool2d(2)), (3, 12, 12)),
    "3 x 3, three colours": (lambda: (nn.Conv2d(3, 3, 3), *relu_pool()), (3, 12, 12)),
    "groups": (lambda: (nn.Conv2d(2, 4, 3, groups=2), nn.ReLU()), (2, 9, 9)),
    "transposed": (lambda: (nn.ConvTranspose2d(1, 3, 3), nn.ReLU()), (1, 9, 9)),
    "signals": (lambda: (nn.Conv1d(2, 3, 4, stride=2, padding=1), nn.Tanh(), nn.MaxPool1d(2)), (2, 30)),
    "volumes": (lambda: (nn.Conv3d(1, 3, 2), nn.ReLU(), nn.MaxPool3d(2)), (1, 7, 6, 5)),
    "patches of images": (lambda: (nn.Conv2d(4, 3, 2, stride=2), nn.GELU()), (4, 8, 8)),
    "overlapping": (lambda: (nn.Conv2d(1, 3, 3), nn.LeakyReLU(), nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)),
                    (1, 12, 12)),
    "dilated pooling": (lambda: (nn.Conv2d(1, 3, 3), nn.Hardtanh(), nn.MaxPool2d(2, dilation=2)), (1, 12, 12)),
    "adaptive pooling": (lambda: (nn.Conv2d(1, 3, 3), nn.Sigmoid(), nn.AdaptiveMaxPool2d(3)), (1, 12, 12)),
    "softplus": (lambda: (nn.Conv2d(1, 3, 3), nn.Softplus(), nn.MaxPool2d(2)), (1, 12, 12)),
    "rough GELU": (lambda: (nn.Conv2d(1, 3, 3), nn.GELU("tanh"), nn.MaxPool2d(2)), (1, 12, 12)),
    "rough GELU, adaptive": (lambda: (nn.Conv2d(1, 3, 3), nn.GELU("tanh"), nn.AdaptiveMaxPool2d(3)), (1, 12, 12)),
    "one number for both": (lambda: (OneNumber(), nn.ReLU()), (1, 12, 12)),
    "pooled first": (lambda: (nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(1, 3, 3), nn.ReLU()), (1, 16, 16)),
    "one kernel, twice": (lambda: (Twice(), *relu_pool()), (1, 12, 12)),
    "one image, twice": (lambda: (Again(), nn.ReLU()), (1, 12, 12)),
}
WITHOUT_PATCHES = {"5 x 5, three colours": (torch.float32, F64), "3 x 3, three colours": (torch.float32,),
                   "groups": (torch.float32, F64), "transposed": (torch.float32, F64)}


class Twice(nn.Module):
    "The same kernel for the image and for its mirror image."
    def __init__(self): super().__init__(); self.of = nn.Conv2d(1, 3, 3)
    def forward(self, x): return self.of(x) * self.of(x.flip(-1))


class OneNumber(nn.Module):
    "Stride and padding as tuples of one number."
    def __init__(self): super().__init__(); self.of = nn.Conv2d(1, 3, 3)
    def forward(self, x): return F.conv2d(x, self.of.weight, self.of.bias, (2,), (1,))


class Again(nn.Module):
    "Two convolutions of one image, and what the first gives is pooled and used as it is."
    def __init__(self): super().__init__(); self.a, self.b = nn.Conv2d(1, 3, 3), nn.Conv2d(1, 3, 3)
    def forward(self, x):
        y, z = F.relu(self.a(x)), F.gelu(self.b(x))
        return torch.cat([y.flatten(1), F.max_pool2d(y, 2).flatten(1), F.max_pool2d(z, 2).flatten(1)], 1)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, kind, dtype):
    make, shape = CONVOLUTIONS[name]
    inputs, targets = randn(9, *shape), torch.arange(9) % 4
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(*make(), nn.Flatten(), nn.LazyLinear(4)).double()
        model(inputs)
    objective = Objective(model, list(zip(inputs.split([5, 4]), targets.split([5, 4]))), dtype=dtype)
    graph, replay = (kind(objective, product=product) for product in ("graph", "replay"))
    V = randn(3, objective.n_params).to(dtype)
    for v in V: assert near(replay.matvec(v), graph.matvec(v))
    if all(part.takes_blocks for part in replay.kept.maps):
        assert near(sum(torch.vmap(part)(V) for part in replay.kept.maps), graph.matmat(V))
    assert uses_patches(replay) == (dtype not in WITHOUT_PATCHES.get(name, ()))
    tight = kind(objective, product="replay", memory_budget=sum(replay.kept.sizes))
    assert near(tight.matvec(V[0]), graph.matvec(V[0]))
    for part, size in zip(tight.kept.maps, tight.kept.sizes): assert not uses_patches(tight) or part.n_bytes <= size


@pytest.mark.parametrize("micro_batches", [0, 1, 2, 3])
def test_budget(micro_batches):
    batches = list(zip(X.split([20, 20, 5]), Y.split([20, 20, 5])))
    objective = Objective(mlp(), batches, nn.CrossEntropyLoss(weight=torch.tensor([1., 2., 5., .5])))
    budget = micro_batches * (objective.cost.fixed + 20 * objective.cost.per_example)
    graph, replay = (HessianOperator(objective, memory_budget=budget, product=p) for p in ("graph", "replay"))
    v = randn(44)
    assert replay.n_kept == graph.n_kept == [0, 20, 40, 45][micro_batches]
    assert torch.equal(replay.matvec(v), graph.matvec(v))


@pytest.mark.parametrize("params", ["0.*", "*.bias", lambda n, p: p.ndim == 2])
def test_chosen_parameters(params):
    objective = Objective(mlp(), (X, Y), params=params)
    v = randn(objective.n_params)
    graph, replay = (HessianOperator(objective, product=p).matvec(v) for p in ("graph", "replay"))
    assert torch.equal(replay, graph)


def first_traced(op, most=2000):
    "The number of the product that is traced."
    v = randn(op.shape[0]).to(op.dtype)
    return next(n for n in range(1, most) if (op.matvec(v), op.product)[1] == "replay")


def test_the_choice_waits_until_it_pays():
    "It hangs on the number of products alone, whatever the time they take, so it falls in the same place in every run."
    objective = Objective(mlp(), (X, Y))
    after = first_traced(HessianOperator(objective))
    assert 80 < after < 250 and first_traced(HessianOperator(objective)) == after
    large = HessianOperator(Objective(cnn(4).double(), (IMAGES, torch.arange(12) % 4)))
    assert first_traced(large) < after / 4  # a product that keeps much is worth a trace sooner
    op = HessianOperator(objective, product="graph")
    op.kept.done = 10**9
    op.matvec(randn(44))
    assert op.product == "graph"


def test_announced_products_are_traced_before_they_are_made():
    "Many of them pay for a trace at once, a few do not; the eigensolver announces its own."
    objective, v = Objective(mlp(), (X, Y)), randn(44)
    for n, product in [(0, "auto"), (6, "auto"), (10**9, "replay")]:
        op = HessianOperator(objective)
        op.expect(n)
        op.matvec(v)
        assert op.product == product, n
    op = HessianOperator(objective)
    op.expect(8)
    for _ in range(4): op.matvec(v)
    assert op.kept.ahead == 4
    op.kept.n_bytes = 10**12  # however much they cost
    op.kept.done = 0
    op.matvec(v)
    assert op.product == "auto"  # four are left, which do not pay for it
    announced = []
    op = HessianOperator(objective)
    op.expect = announced.append
    top_eigenpairs(op, 3, tol=1e-3)
    assert announced and announced[0] >= 3


def test_the_product_that_is_traced_counts_every_micro_batch():
    objective = Objective(mlp(), list(zip(X.split([20, 20, 5]), Y.split([20, 20, 5]))))
    graph, auto, v = HessianOperator(objective, product="graph"), HessianOperator(objective), randn(44)
    auto.kept.done = 10**9
    assert torch.equal(auto.matvec(v), graph.matvec(v)) and auto.product == "replay"


def test_products_are_counted_and_pairs_agree():
    objective = Objective(mlp(), (X, Y))
    a, b = (top_eigenpairs(HessianOperator(objective, product=p), 4) for p in ("graph", "replay"))
    assert torch.equal(a.values, b.values) and torch.equal(a.vectors, b.vectors)
    assert (a.n_matvecs, a.n_certify) == (b.n_matvecs, b.n_certify)


def test_a_trace_does_not_hold_the_graph():
    "Only constants are kept: no tensor of the trace has a graph behind it, and together they fit what was allowed for."
    objective = Objective(lenet5(4, 1, 28).double(), (IMAGES, torch.arange(12) % 4))
    allowed = objective.cost.fixed + 12 * objective.cost.per_example
    op = HessianOperator(objective, product="replay", memory_budget=allowed)
    constants = [t for program in op.kept.maps for t in program.constants.values()]
    assert constants and not any(t.requires_grad for t in constants)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in constants}
    held = sum(p.numel() * p.element_size() for p in objective.params.values())  # is not charged
    assert sum(storages.values()) <= allowed + held


@pytest.mark.parametrize("data, params", [((X, Y), None), ((X[:1], Y[:1]), "bias")])
def test_a_linear_loss_has_no_curvature(data, params):
    objective = Objective(build(lambda: nn.Linear(3, 4)), data, lambda o, t: o.sum(1), params=params)
    for product in ("graph", "replay"):
        assert not HessianOperator(objective, product=product).matvec(randn(objective.n_params)).any()


class Chooses(torch.autograd.Function):
    "Identity whose backward writes into a tensor made for it."
    @staticmethod
    def forward(ctx, x): return x.clone()
    @staticmethod
    def backward(ctx, g): return Spread.apply(g)


class Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, g): return g.clone()
    @staticmethod
    def backward(ctx, h): return torch.zeros(h.shape, dtype=h.dtype).copy_(h)


class Custom(nn.Module):
    def __init__(self): super().__init__(); self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 4)
    def forward(self, x): return self.second(Chooses.apply(self.first(x).tanh()))


def test_what_cannot_be_traced_stays_with_the_graph():
    objective = Objective(build(Custom), (X, Y))
    op, v = HessianOperator(objective), randn(objective.n_params)
    expected = HessianOperator(objective, product="graph").matvec(v)
    op.kept.done = 10**9
    assert torch.equal(op.matvec(v), expected) and op.product == "graph" and torch.equal(op.matvec(v), expected)
    message = "cannot be traced .*writes to a constant.*: use product='auto' or 'graph'"
    with pytest.raises(RuntimeError, match=message): HessianOperator(objective, product="replay")


@pytest.mark.parametrize("fn, message", [
    (lambda v: torch.zeros(6, dtype=F64).copy_(v), "writes to a constant or to shared memory"),
    (lambda v: v.clone()[:3].mul_(2).repeat(2), "writes to a constant or to shared memory"),
    (lambda v: torch.ones(6, dtype=F64), "does not depend on the vector"),
    (lambda v: torch.mul(v, 2 * v.detach(), out=torch.empty(6, dtype=F64)), "writes to another argument"),
    (lambda v: torch.add(v.clone(), 1, out=torch.empty(6, dtype=F64)), "writes to another argument"),
])
def test_what_cannot_be_traced(fn, message):
    with pytest.raises(CannotTrace, match=message): trace(fn, randn(6))


def behind_its_back(v):
    "Three times the vector, in a way that no operation tells of."
    out = v * 1
    out.data = out.data * 3
    return out


@pytest.mark.parametrize("v", [randn(6), torch.zeros(6, dtype=F64), torch.eye(6, dtype=F64)[2]])
def test_a_trace_is_compared_where_it_was_not_made(v):
    "A value of the vector that became a constant is not seen at that vector, and nothing is seen at zero."
    with pytest.raises(RuntimeError, match="gives something else"):
        FastSum([behind_its_back], lambda: v, [0], 3, product="replay")
    auto = FastSum([lambda v: 2 * v.flip(0), behind_its_back], lambda: v, [0, 0], 6)
    auto.expect(10**9)
    assert torch.equal(auto(v), 2 * v.flip(0) + 3 * v) and auto.product == "graph"


class Magnitudes(nn.Module):
    "Sizes of complex numbers: complex constants in the trace."
    def __init__(self): super().__init__(); self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 4)
    def forward(self, x): return self.second(torch.complex(self.first(x), x).abs())


def test_complex_constants_in_single_precision(monkeypatch):
    monkeypatch.setattr(fast, "_ROUNDING_BYTES", 0)
    objective = Objective(build(Magnitudes), (X, Y))
    op = GGNOperator(objective, product="replay")
    single, v = op.in_single(), randn(objective.n_params)
    assert (single.matvec(v.float()).double() - op.matvec(v)).norm() <= 1e-5 * op.matvec(v).norm()


@pytest.mark.parametrize("fn", [
    lambda v: (v + 1 * v).mul_(3), lambda v: v + torch.zeros(6, dtype=F64), lambda v: (v * 2) + (v * 2),
    lambda v: v.view(2, 3).t().reshape(6) * 2 + v, lambda v: torch.zeros_like(v) + v,
    lambda v: torch.zeros_like(v) + torch.zeros_like(v) + v * 3, lambda v: (a := v * 2) * 3 + a,
    lambda v: (a := v * 2).view(2, 3).sum(0).repeat(2) + a, lambda v: v.expand(2, 6).sum(0) - v / 3,
    lambda v: (a := v * 2, a.add_(v), a * 5)[2], lambda v: v[:3].repeat(2) + v[:3].sum(),
    lambda v: torch.add(v * 2, v * 3, alpha=4), lambda v: v.sum() - v, lambda v: torch.cat([v[3:] * 2, v[:3]]),
    lambda v: v.clone(), lambda v: v, lambda v: v.flip(0), lambda v: torch.stack(v.chunk(2)).sum(0).repeat(2),
])
def test_traces_of_linear_maps(fn):
    "Sums written in place, dropped zeros and views never change a value, nor the vector."
    (program, _), v = trace(fn, randn(6)), randn(6, seed=1)
    before = v.clone()
    for _ in range(2): assert torch.equal(program(v), fn(before.clone())) and torch.equal(v, before)


def test_wrong_choice():
    with pytest.raises(ValueError, match="product must be 'auto', 'graph' or 'replay', got 'fast'"):
        HessianOperator(Objective(mlp(), (X, Y)), product="fast")
