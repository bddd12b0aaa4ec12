"Models as people write them, away from their own parameters: value, gradient, products against plain autograd."
import copy
import pickle
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from conftest import F64, build, randn, right_weight_norm, untouched
from hessnb.boundary.alignment import align
from hessnb.curvature.example_grads import example_grads, example_vjps_loop
from hessnb.curvature.gauss_newton import GGNOperator
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.params import bare_model

pytestmark = pytest.mark.filterwarnings("ignore:the loss does not reach", "ignore::DeprecationWarning")
X, Y, WORDS = randn(14, 4), torch.arange(14) % 3, torch.arange(28).reshape(14, 2) % 5


class Net(nn.Module):
    "Two layers with whatever a test puts between them."
    def __init__(self, fn=None, *, middle=None):
        super().__init__()
        self.a, self.b, self.c, self.fn = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3), fn
        if middle: self.middle = middle()
    def forward(self, x): return self.fn(self, x)


def through(between):
    "Forward with `between(block, h)` for `block(h)`."
    def fn(m, x): return m.c(between(lambda h: torch.tanh(m.b(h)), torch.tanh(m.a(x))))
    return fn


def oracle(model, params, x, y, v, loss=F.cross_entropy):
    "Value, gradient and product at `params` by plain autograd."
    params = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
    with right_weight_norm(): value = loss(functional_call(model, params, (x.clone(),)), y)
    options = dict(allow_unused=True, materialize_grads=True)
    grads = torch.autograd.grad(value, list(params.values()), create_graph=True, **options)
    grad = torch.cat([g.reshape(-1) for g in grads])
    product = torch.autograd.grad(grad, list(params.values()), v, **options)
    return value.item(), grad.detach(), torch.cat([g.reshape(-1) for g in product])


def agree(model, reference, x=X, rtol=1e-10, shift=.1, replay=True, **kwargs):
    "Moved away from the model's own parameters, the objective of `model` is that of `reference`."
    given = x.clone()
    with untouched(model, tensors=[x]):
        objective = Objective(model, (x, Y), **kwargs)
        moved = objective.at(objective.theta + shift)
        v = randn(moved.n_params, seed=3)
        value, grad, product = oracle(reference, moved.params, x.to(moved.dtype) if x.is_floating_point() else x, Y, v)
        tol = dict(rtol=rtol, atol=rtol * grad.norm().item())
        assert_close(moved.value(), value, rtol=rtol, atol=0)
        assert_close(objective.value(moved.theta), value, rtol=rtol, atol=0)
        assert_close(moved.grad(), grad, **tol)
        assert_close(objective.grad(moved.theta), grad, **tol)
        for budget in (None, 0): assert_close(HessianOperator(moved, memory_budget=budget).matvec(v), product, **tol)
        if replay: assert_close(HessianOperator(moved, product="replay").matvec(v), product, **tol)
        assert_close(example_grads(moved, x, Y).mean(0), grad, **tol)
    assert torch.equal(given, x) and not x.requires_grad
    return moved, v


CHECKPOINTED = {
    "one": through(lambda f, h: checkpoint(f, h, use_reentrant=False)),
    "nested": through(lambda f, h: checkpoint(lambda z: checkpoint(f, z, use_reentrant=False), h, use_reentrant=False)),
    "sequential": through(lambda f, h: checkpoint_sequential([f, lambda z: z], 2, h, use_reentrant=False)),
    "keyword": through(lambda f, h: checkpoint(lambda h: f(h), h=h, use_reentrant=False)),
    "all": lambda m, x: checkpoint(lambda z: m.c(torch.tanh(m.b(torch.tanh(m.a(z))))), x, use_reentrant=False),
    "attention": through(lambda f, h: checkpoint(lambda z: f(
        F.scaled_dot_product_attention(z[:, None], z[:, None], z[:, None])[:, 0]), h, use_reentrant=False)),
}


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_checkpointed(name):
    model, plain = build(lambda: Net(CHECKPOINTED[name])), build(lambda: Net(through(lambda f, h: f(h))))
    moved, v = agree(model, plain)
    other = Objective(plain, (X, Y)).at(moved.theta)
    assert_close(GGNOperator(moved).matvec(v), GGNOperator(other).matvec(v))
    assert_close(align(moved, X, v[None]).cosines, align(other, X, v[None]).cosines)
    assert moved.recomputes and not other.recomputes and moved.cost.per_example > other.cost.per_example / 2


def test_checkpointed_in_another_precision():
    net, plain = Net(CHECKPOINTED["one"]), build(lambda: Net(through(lambda f, h: f(h))))
    net.load_state_dict(plain.float().state_dict())
    agree(net, plain.double(), dtype=F64)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): ctx.save_for_backward(x); return x ** 2
    @staticmethod
    def backward(ctx, g): return 2 * ctx.saved_tensors[0] * g


@pytest.mark.parametrize("fn, message", [
    (through(lambda f, h: checkpoint(f, h, use_reentrant=True)), "use_reentrant=False"),
    (through(lambda f, h: checkpoint(lambda z: f(Square.apply(z)), h, use_reentrant=False)), "turn checkpointing off"),
])
@pytest.mark.filterwarnings("ignore")
def test_checkpoints_that_cannot_be_followed(fn, message):
    model = build(lambda: Net(fn))
    with untouched(model), pytest.raises(TypeError, match=message): Objective(model, (X, Y))


def grown(m, x): x += 1; return m.c(torch.tanh(m.a(x)))
def scaled(m, x): x.mul_(2); return m.c(torch.tanh(m.a(x)))
def behind(m, x): x.data[:, 0] = 0; return m.c(torch.tanh(m.a(x)))
def zeroed(m, x): return m.c(torch.tanh(m.a(x * torch.tensor([0., 1, 1, 1], dtype=x.dtype))))


@pytest.mark.parametrize("fn, same", [
    (grown, lambda m, x: m.c(torch.tanh(m.a(x + 1)))), (scaled, lambda m, x: m.c(torch.tanh(m.a(2 * x)))),
    (behind, zeroed)])
@pytest.mark.parametrize("batch_size", [None, 5])
def test_written_input(fn, same, batch_size):
    agree(build(lambda: Net(fn)), build(lambda: Net(same)), batch_size=batch_size)


def with_grad(m, x, of):
    x.requires_grad_()
    u = torch.tanh(m.a(x))
    return m.c(u) + of(u, x)


def first(u, x): return torch.autograd.grad(u.sum(), x, create_graph=True)[0].sum(1, keepdim=True)
def second(u, x):
    g, = torch.autograd.grad(u.sum(), x, create_graph=True)
    return torch.autograd.grad(g.square().sum(), x, create_graph=True)[0][:, :1]


@pytest.mark.parametrize("order", [first, second])
@pytest.mark.parametrize("enable", [False, True])
def test_derivative_inside(order, enable):
    def fn(m, x):
        if not enable: return with_grad(m, x, order)
        with torch.enable_grad(): return with_grad(m, x, order)
    model = build(lambda: Net(fn))
    moved, _ = agree(model, build(lambda: Net(lambda m, x: with_grad(m, x.detach().clone(), order))))
    assert not moved.predict(X).requires_grad and moved.differentiates != enable
    with torch.no_grad(): assert_close(moved.predict(X), moved.predict(X.numpy()))


@pytest.mark.parametrize("fn", [
    lambda m, x: m.c(torch.tanh(m.a(x))) + torch.vmap(torch.func.grad(lambda z: torch.tanh(m.a(z)).sum()))(x)[:, :1],
    lambda m, x: sum(torch.func.jvp(lambda z: m.c(torch.tanh(m.a(z))), (x,), (torch.ones_like(x),))),
    lambda m, x: torch.vmap(lambda z: m.c(torch.tanh(m.a(z))))(x),
    lambda m, x: m.c(torch.vmap(torch.func.jacrev(lambda z: torch.tanh(m.a(z))))(x).sum(2)),
], ids=["grad", "jvp", "vmap", "jacrev"])
def test_functional_transforms_inside(fn): agree(build(lambda: Net(fn)), build(lambda: Net(fn)))


def zeros(m, x): h = torch.zeros(len(x), 5); return m.c(torch.tanh(m.a(x) + h @ torch.eye(5)))
def cast(m, x): h = m.a(x); return m.c((h.to(torch.float32) * h.float().pow(2).mean(1, True).rsqrt()).to(h.dtype))
def soft(m, x): return m.c(F.softmax(m.a(x), 1, dtype=torch.float32).to(x.dtype))
def held(m, x): return m.c(torch.tanh(m.a(x) @ m.table))


@pytest.mark.parametrize("fn, same", [
    (zeros, lambda m, x: m.c(torch.tanh(m.a(x)))),
    (cast, lambda m, x: m.c(m.a(x) * m.a(x).pow(2).mean(1, True).rsqrt())),
    (soft, lambda m, x: m.c(F.softmax(m.a(x), 1))),
    (held, lambda m, x: m.c(torch.tanh(m.a(x) @ m.table.double())))], ids=["zeros", "cast", "softmax", "attribute"])
def test_single_precision_inside_double(fn, same):
    model, reference = build(lambda: Net(fn)).float(), build(lambda: Net(same)).float().double()
    model.table = reference.table = randn(5, 5, dtype=torch.float32)
    agree(model, reference, dtype=F64)
    assert Objective(model, (X, Y)).to(F64).value() == Objective(model, (X, Y), dtype=F64).value()
    assert model.table.dtype == torch.float32


def test_mixed_dtypes_are_named():
    def fn(m, x): return m.c(torch.tanh(m.a(x) @ torch.from_numpy(np.eye(5, dtype="float32"))))
    model = build(lambda: Net(fn)).float()
    with pytest.raises(TypeError, match="mixes dtypes in an evaluation in torch.float64.*dtype=x.dtype"):
        Objective(model, (X, Y), dtype=F64)


def test_default_dtype_of_the_caller():
    model = build(lambda: Net(zeros)).float()
    before = Objective(model, (X, Y)).grad()
    torch.set_default_dtype(F64)
    try: assert torch.equal(Objective(model, (X, Y)).grad(), before)
    finally: torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("make, same", [
    (lambda: nn.Embedding(5, 4, sparse=True), lambda w, x: w[x].flatten(1)),
    (lambda: nn.Embedding(5, 4, scale_grad_by_freq=True), lambda w, x: w[x].flatten(1)),
    (lambda: nn.EmbeddingBag(5, 8, sparse=True, mode="sum"), lambda w, x: w[x].sum(1)),
    (lambda: nn.EmbeddingBag(5, 8, scale_grad_by_freq=True), lambda w, x: w[x].mean(1))],
    ids=["sparse", "frequencies", "sum", "mean"])
def test_embeddings(make, same):
    class Words(nn.Module):
        def __init__(self, plain):
            super().__init__()
            self.table, self.head, self.plain = make(), nn.Linear(8, 3), plain
        def forward(self, x):
            h = same(self.table.weight, x) if self.plain else self.table(x)
            return self.head(torch.tanh(h.flatten(1)))
    agree(build(lambda: Words(False)), build(lambda: Words(True)), WORDS)


@pytest.mark.parametrize("make", [parametrizations.weight_norm, parametrizations.orthogonal,
                                  parametrizations.spectral_norm, nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore")
def test_parametrised(make):
    def model():
        net = nn.Sequential(make(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3)).double()
        net(X), net(X)
        return net
    agree(build(model), build(model), shift=.01, replay=make is not parametrizations.orthogonal)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_backward_hooks_do_not_run():
    model, seen = plain(), []
    model.a.register_full_backward_hook(lambda m, given, out: seen.append(m))
    model.b.register_full_backward_pre_hook(lambda m, out: tuple(2 * g for g in out))
    agree(model, plain())
    assert not seen
    model(X).sum().backward()
    assert seen == [model.a]


class Aliased(nn.Module):
    "One tensor under several names: two parameters, a buffer, a list, a dict."
    def __init__(self, plain):
        super().__init__()
        self.w, self.plain = nn.Parameter(torch.ones(4, 3)), plain
        if not plain:
            self.again, self.listed, self.noted = self.w, [self.w], {"deep": [{"w": self.w}]}
            self.register_buffer("buffer", self.w)
    def forward(self, x):
        if self.plain: return torch.tanh(x @ self.w) * self.w.sum() ** 4
        noted = self.noted["deep"][0]["w"]
        return torch.tanh(x @ self.again) * self.buffer.sum() * self.listed[0].sum() * noted.sum() * self.w.sum()


def test_one_tensor_under_many_names(): agree(build(lambda: Aliased(False)), build(lambda: Aliased(True)))


def test_inference_mode_inside():
    def fn(m, x):
        with torch.inference_mode(): h = torch.tanh(m.a(x))
        return m.c(h)
    with pytest.raises(ValueError, match="use torch.no_grad"): Objective(build(lambda: Net(fn)), (X, Y))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent(kind):
    class Sequence(nn.Module):
        def __init__(self): super().__init__(); self.rnn, self.out = kind(4, 5, 2, batch_first=True), nn.Linear(5, 3)
        def forward(self, x): return self.out(self.rnn(torch.stack([x, -x], 1))[0][:, -1])
    model = build(Sequence)
    agree(model, build(Sequence))
    assert all(a is b for a, b in zip(model.rnn._flat_weights, model.rnn.parameters(), strict=True))


def plain(): return build(lambda: Net(through(lambda f, h: f(h))))


@pytest.mark.parametrize("kind", [nn.DataParallel, nn.parallel.DistributedDataParallel])
def test_wrapped_models(kind):
    inner, outer = plain(), kind.__new__(kind)
    nn.Module.__init__(outer)  # its own looks for devices and processes
    outer.module = inner
    assert bare_model(outer) is inner and Objective(outer.eval(), (X, Y)).model is inner
    with pytest.raises(ValueError, match="names are 'a.weight'"): Objective(outer, (X, Y), params="module.a.*")
    agree(outer, plain())


@pytest.mark.slow
def test_compiled():
    agree(torch.compile(plain()), plain())
    part = plain()
    part.b = torch.compile(part.b)
    kept, other = part.b, plain()
    moved = Objective(part, (X, Y)).at(Objective(other, (X, Y)).theta + .1)
    assert torch.equal(moved.grad(), Objective(other, (X, Y)).at(moved.theta).grad()) and part.b is kept
    other.compile()
    compiled = other._compiled_call_impl
    assert torch.equal(Objective(other, (X, Y)).at(moved.theta).grad(), moved.grad())
    assert other._compiled_call_impl is compiled


class Clamped(nn.Linear):
    def forward(self, x): self.weight.data.clamp_(-.1, .1); return super().forward(x)


class InPlace(nn.Linear):
    def forward(self, x): self.weight.clamp_(-.1, .1); return super().forward(x)


def sharded():
    model = plain()
    model.a.weight.full_tensor = None  # what a DTensor has
    return model


@pytest.mark.parametrize("make, error, message", [
    (lambda: nn.Sequential(nn.LazyLinear(3)), TypeError, r"0.weight has no shape yet.*run one batch"),
    (lambda: torch.jit.trace(plain(), X), TypeError, "TorchScript.*pass the module that was scripted"),
    (lambda: nn.Sequential(torch.jit.script(nn.Linear(4, 3))), TypeError, "0 is TorchScript"),
    (lambda: nn.Linear(4, 3, device="meta"), TypeError, "meta device and has no values: load the weights"),
    (sharded, TypeError, "of which each process has a part.*full state_dict"),
    (lambda: build(lambda: Clamped(4, 3)), ValueError, r"changes its parameters \['weight'\] in its forward pass"),
    (lambda: build(lambda: InPlace(4, 3)), ValueError, "changes a parameter in place"),
    (lambda: build(lambda: nn.Sequential(nn.Embedding(5, 4, max_norm=1.), nn.Flatten(), nn.Linear(8, 3))), ValueError,
     "max_norm=None"),
])
def test_models_that_are_refused(make, error, message):
    model = make()
    x = WORDS if "max_norm" in message else X
    with warnings.catch_warnings(), pytest.raises(error, match=message):
        warnings.simplefilter("ignore")
        Objective(model, (x, Y))


def test_what_forward_does_not_take():
    for batch in ({"x": X, "extra": X, "labels": Y}, (X, X, Y)):
        with pytest.raises(TypeError, match="does not take what a batch has.*unpack="): Objective(plain(), [batch])


def test_a_model_that_was_rebuilt():
    model = plain()
    objective = Objective(model, (X, Y))
    before = objective.grad()
    model.load_state_dict({n: 2 * t for n, t in model.state_dict().items()}, assign=True)
    model.float()
    model.extra = nn.Linear(2, 2)
    assert torch.equal(objective.grad(), before) and torch.equal(copy.deepcopy(objective).grad(), before)
    small = Objective(nn.Sequential(model.c), (X[:, :1].expand(-1, 5), Y))
    assert torch.equal(pickle.loads(pickle.dumps(small)).grad(), small.grad())
    other = copy.copy(objective)
    other.model = copy.deepcopy(model)
    assert torch.equal(other.grad(), before)
    model.b = nn.Linear(5, 5).double()
    with pytest.raises(RuntimeError, match="replaced modules since this objective was made.*make a new one"):
        objective.grad()


def test_threads_take_turns():
    objective, wrong = Objective(plain(), (X, Y)), []
    thetas = [objective.theta + .1 * i for i in range(4)]
    right = [objective.grad(theta) for theta in thetas]
    def work(i): wrong.extend(1 for _ in range(40) if not torch.equal(objective.grad(thetas[i]), right[i]))
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert not wrong


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_exception_in_forward(error):
    def fn(m, x):
        m.last, m.a.seen = x, 1
        m.made = nn.Linear(2, 2)
        if m.now: raise error
        return m.c(torch.tanh(m.a(x)))
    model = build(lambda: Net(fn))
    model.now = False
    objective = Objective(model, (X, Y))
    model.now = True
    with untouched(model):
        for call in (objective.grad, lambda: objective.predict(X), lambda: example_grads(objective, X, Y)):
            with pytest.raises(error): call()
    assert not hasattr(model, "made") and not hasattr(model.a, "seen")


def test_holding():
    model = plain()
    objective = Objective(model, (X, Y))
    moved = objective.at(objective.theta + .1)
    leaves = moved.leaves()
    own = dict(model.named_parameters())
    with moved.holding(leaves):
        value = F.cross_entropy(model(X), Y)
        grads = torch.autograd.grad(value, list(leaves.values()))
        assert all(model.get_parameter(n) is p if isinstance(p, nn.Parameter) else True for n, p in leaves.items())
    assert_close(torch.cat([g.reshape(-1) for g in grads]), moved.grad())
    assert all(p is own[n] for n, p in model.named_parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu"),
                                  lambda: torch.autocast("cpu", dtype=torch.float16), lambda: torch.device("meta")])
def test_modes_of_the_caller(mode):
    model = plain()
    objective = Objective(model, (X, Y))
    r, v = randn(14, 3), randn(objective.n_params)
    def results():
        o = Objective(model, (X, Y))
        return [o.grad(), o.predict(X), example_grads(o, X, Y), example_vjps_loop(o, X, r), o.at(o.theta + 1).grad(),
                o.to(torch.float32).grad(), HessianOperator(objective).matvec(v)]
    plainly = results()
    with mode(): inside = results()
    for a, b in zip(plainly, inside, strict=True): assert torch.equal(a, b)
