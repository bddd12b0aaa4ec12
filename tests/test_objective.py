"Value, gradient and Hessian products against plain torch on all data at once, for every form of model, data and loss."
import random
import threading
import time
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from conftest import F64, blobs, build, copy, mlp, quiet, randn, right_weight_norm, untouched
from hessnb.curvature.checks import all_finite, check_precision, restored_on_error, rounded_by
from hessnb.curvature.eigenpairs import dense_eigenpairs
from hessnb.curvature.example_grads import example_grads, example_vjps
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.krylov import tridiagonalize
from hessnb.curvature.objective import Objective
from hessnb.curvature.params import flatten, select_params
from hessnb.curvature.top import refine, top_eigenpairs

N, D, C = 200, 3, 4
SIZES = [64, 64, 64, 8]
X, Y = blobs(N, D, C)
LABELS = torch.where(torch.arange(N) % 7 == 0, -100, Y)
WEIGHT = torch.tensor([1., 2., 5., .5], dtype=F64)
ONE_HOT = F.one_hot(Y, C).double()
SOFT = randn(N, C, seed=5).softmax(1)


def oracle(model, loss, X, y, params=None):
    "Value, gradient and Hessian of `loss(model(X), y)` by plain autograd, over the chosen parameters."
    chosen = {n: p.detach().clone().requires_grad_() for n, p in select_params(model, params).items()}
    args, kwargs = (X if isinstance(X, tuple) else (X,), {}) if not isinstance(X, dict) else ((), X)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), right_weight_norm():
        out = functional_call(model, chosen, args, kwargs)
    value = loss(getattr(out, "logits", out), y)
    grad = flatten(torch.autograd.grad(value, list(chosen.values()), create_graph=True, materialize_grads=True))
    def product(v):
        return flatten(torch.autograd.grad(grad, list(chosen.values()), v, retain_graph=True, materialize_grads=True))
    return value.item(), grad.detach(), product


def close(a, b, rtol=1e-12):
    a, b = torch.as_tensor(a, dtype=F64), torch.as_tensor(b, dtype=F64)
    assert a.shape == b.shape
    off = (a - b).norm() / b.norm().clamp_min(1e-300)
    assert off <= rtol, f"off by {off.item():.2e}"


def agree(model, data, loss, reference, X, y, params=None, **kwargs):
    "Value, gradient and Hv of the objective are those of the oracle, with all, some and no graphs kept."
    with untouched(model): objective = Objective(model, data, loss, params=params, **kwargs)
    value, grad, product = oracle(model, reference, X, y, params)
    v = randn(objective.n_params, seed=9)
    with untouched(model, tensors=[v]):
        close(objective.value(), value)
        close(objective.value(objective.theta), value)
        close(objective.grad(), grad)
        close(objective.grad(objective.theta), grad)
        for budget in (None, objective.cost.fixed + 64 * objective.cost.per_example, 0):
            close(HessianOperator(objective, memory_budget=budget).matvec(v), product(v))
    return objective


def cut(*tensors, sizes=SIZES): return list(zip(*(t.split(sizes) for t in tensors)))


focal = lambda logits, y: F.cross_entropy(logits, y, reduction="none") ** 2
LOSSES = {
    "cross_entropy": ("cross_entropy", F.cross_entropy, Y),
    "functional": (F.cross_entropy, F.cross_entropy, Y),
    "reduction sum is the mean": (nn.CrossEntropyLoss(reduction="sum"), F.cross_entropy, Y),
    "weights": (nn.CrossEntropyLoss(weight=WEIGHT), nn.CrossEntropyLoss(weight=WEIGHT), Y),
    "float32 weights": (nn.CrossEntropyLoss(weight=WEIGHT.float()), nn.CrossEntropyLoss(weight=WEIGHT), Y),
    "ignored": (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(), LABELS),
    "ignore a class": (nn.CrossEntropyLoss(ignore_index=2), nn.CrossEntropyLoss(ignore_index=2), Y),
    "smoothing": (nn.CrossEntropyLoss(label_smoothing=.1), nn.CrossEntropyLoss(label_smoothing=.1), Y),
    "all three": (*[nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=.2, ignore_index=-100)] * 2, LABELS),
    "probabilities": (*[nn.CrossEntropyLoss(weight=WEIGHT)] * 2, SOFT),
    "focal": (focal, lambda o, y: focal(o, y).mean(), Y),
    "ignored by a function": (lambda o, y: F.cross_entropy(o, y, reduction="none"), F.cross_entropy, LABELS),
    "mse": (nn.MSELoss(), nn.MSELoss(), ONE_HOT),
    "mse by name, integers": ("mse_loss", lambda o, y: F.mse_loss(o, y.double()), F.one_hot(Y, C)),
    "mse sum": (nn.MSELoss(reduction="sum"), nn.MSELoss(), ONE_HOT),
    "smooth l1": (nn.SmoothL1Loss(), nn.SmoothL1Loss(), ONE_HOT),
    "bce": (*[nn.BCEWithLogitsLoss(pos_weight=WEIGHT)] * 2, ONE_HOT),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss(name):
    loss, reference, target = LOSSES[name]
    agree(mlp(), cut(X, target), loss, reference, X, target)


@pytest.mark.parametrize("loss", [nn.NLLLoss(), nn.NLLLoss(weight=WEIGHT), "nll_loss"])
def test_nll(loss):
    model = build(lambda: nn.Sequential(nn.Linear(D, C), nn.LogSoftmax(1)))
    reference = nn.NLLLoss() if isinstance(loss, str) else loss
    agree(model, cut(X, LABELS), loss, reference, X, LABELS)


class Pairs(Dataset):
    def __init__(self, as_dict): self.as_dict = as_dict
    def __len__(self): return N
    def __getitem__(self, i): return {"input": X[i], "label": Y[i]} if self.as_dict else (X[i].numpy(), int(Y[i]))


class Stream(IterableDataset):
    def __iter__(self): return iter(zip(X, Y))


class Loader:
    "Any object that can be iterated again and again."
    def __iter__(self): yield from cut(X, Y)


DATA = {
    "pair": ((X, Y), {}), "list pair": ([X, Y], {}), "numpy pair": ((X.numpy(), Y.numpy()), {}),
    "float32 inputs": ((X.float().double(), Y), {}),
    "pair in 64s": ((X, Y), dict(batch_size=64)), "numpy int size": ((X, Y), dict(batch_size=np.int64(7))),
    "batches": (cut(X, Y), {}),
    "two batches": (cut(X, Y, sizes=[150, 50]), {}), "list batches": ([list(b) for b in cut(X, Y)], {}),
    "numpy batches": ([(a.numpy(), b.numpy()) for a, b in cut(X, Y)], {}), "one by one": (cut(X, Y, sizes=[1] * N), {}),
    "empty batches": ([(X[:0], Y[:0]), *cut(X, Y), (X[:0], Y[:0])], {}),
    "dicts": ([dict(input=a, labels=b) for a, b in cut(X, Y)], {}), "TensorDataset": (TensorDataset(X, Y),
            dict(batch_size=64)),
    "Dataset": (Pairs(False), dict(batch_size=64)), "Dataset of dicts": (Pairs(True), dict(batch_size=64)),
    "DataLoader": (DataLoader(TensorDataset(X, Y), batch_size=64), {}),
    "DataLoader of dicts": (DataLoader(Pairs(True), batch_size=64), {}),
    "stream": (Stream(), dict(batch_size=64)), "own loader": (Loader(), {}),
    "unpack": ([(b, a, "note") for a, b in cut(X, Y)], dict(unpack=lambda batch: (batch[1], batch[0]))),
    "small memory": ((X, Y), dict(memory_budget=10_000)), "no memory": (cut(X, Y), dict(memory_budget=0)),
}


@pytest.mark.parametrize("name", DATA)
def test_data(name):
    data, kwargs = DATA[name]
    with quiet(): objective = agree(mlp(), data, nn.CrossEntropyLoss(weight=WEIGHT), nn.CrossEntropyLoss(weight=WEIGHT),
                                    X.float().double() if name.startswith("float32") else X, Y, **kwargs)
    assert objective.n_examples == N


class TwoInputs(nn.Module):
    def __init__(self): super().__init__(); self.a, self.b = nn.Linear(D, 6), nn.Linear(6, C)
    def forward(self, x, mask): return self.b(torch.tanh(self.a(x)) * mask[:, None])


def test_several_inputs():
    model, mask = build(TwoInputs), (torch.arange(N) % 3 > 0).long()
    agree(model, cut(X, mask, Y), "cross_entropy", F.cross_entropy, (X, mask), Y)
    agree(model, ((X, mask), Y), "cross_entropy", F.cross_entropy, (X, mask), Y, batch_size=64)
    agree(model, [dict(x=a, mask=m, labels=b) for a, m, b in cut(X, mask, Y)], "cross_entropy", F.cross_entropy,
          dict(x=X, mask=mask), Y)
    agree(model, TensorDataset(X, mask, Y), "cross_entropy", F.cross_entropy, (X, mask), Y, batch_size=64)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, C)
        self.b.weight = self.a.weight
    def forward(self, x): return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0., batch_first=True, norm_first=True)
        self.out = nn.Linear(8, C)
    def forward(self, ids): return self.out(self.layer(self.embed(ids)).mean(1))


class Recurrent(nn.Module):
    def __init__(self, kind): super().__init__(); self.rnn, self.out = kind(D, 4, batch_first=True), nn.Linear(4, C)
    def forward(self, x): return self.out(self.rnn(x)[0][:, -1])


class WithLogits(nn.Module):
    def __init__(self): super().__init__(); self.net = nn.Linear(D, C)
    def forward(self, x): return type("Out", (), {"logits": self.net(torch.tanh(x))})()


class Normed(nn.Module):
    "Batch norm with running statistics, layer norm, dropout; everything in evaluation mode."
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(D, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(.5), nn.LayerNorm(6),
                                 nn.Linear(6, C))
        self.net[1].running_mean.normal_(), self.net[1].running_var.uniform_(.5, 2)
    def forward(self, x): return self.net(x)


def conv():
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Softplus(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 2), nn.ReLU(),
                         nn.Flatten(), nn.Linear(16, C))


def parametrized():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(D, 6)), nn.Tanh(), nn.Linear(6, C))


MODELS = {"tied": (Tied, X), "attention": (Attention, torch.arange(N * 5).reshape(N, 5) % 11),
          "lstm": (lambda: Recurrent(nn.LSTM), randn(N, 5, D)),
          "gru": (lambda: Recurrent(nn.GRU), randn(N, 5, D)), "logits": (WithLogits, X), "norms": (Normed, X),
          "conv": (conv, randn(N, 1, 8, 8)),
          "parametrized": (parametrized, X), "linear": (lambda: nn.Linear(D, C, bias=False), X)}


@pytest.mark.parametrize("name", MODELS)
def test_model(name):
    make, inputs = MODELS[name]
    model = build(make)
    model.zero_grad()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    agree(model, cut(inputs, LABELS), nn.CrossEntropyLoss(weight=WEIGHT), nn.CrossEntropyLoss(weight=WEIGHT), inputs,
          LABELS)


def test_dense_outputs():
    "One label per pixel: the normaliser counts pixels."
    model, images, labels = build(lambda: nn.Conv2d(1, C, 3)), randn(30, 1, 5, 5), torch.randint(0, C, (30, 3, 3),
            generator=torch.Generator().manual_seed(0))
    labels[::3, 0] = -100
    objective = agree(model, cut(images, labels, sizes=[13, 13, 4]), "cross_entropy", F.cross_entropy, images, labels)
    assert objective.n_examples == 30


@pytest.mark.parametrize("params", ["2.*", "*.weight", ["0.bias", "2.bias"], lambda n, p: p.ndim == 2, "*"])
def test_params(params):
    model = mlp()
    model[0].weight.requires_grad_(False)
    agree(model, cut(X, Y), "cross_entropy", F.cross_entropy, X, Y, params)


def test_frozen_parameters_are_left_out():
    model = mlp()
    model[0].requires_grad_(False)
    assert agree(model, cut(X, Y), "cross_entropy", F.cross_entropy, X, Y).n_params == 24


def test_training_mode_without_random_layers_is_allowed():
    model = mlp().train()
    agree(model, cut(X, Y), "cross_entropy", F.cross_entropy, X, Y)
    assert model.training


def test_float32_and_back():
    single = mlp().float()
    with untouched(single):
        precise = Objective(single, (X, Y), dtype=F64)
        value, grad, _ = oracle(copy.deepcopy(single).double(), F.cross_entropy, X, Y)
        close(precise.value(), value), close(precise.grad(), grad)
        rough = Objective(single, (X, Y))
        assert rough.grad().dtype == torch.float32 and precise.grad().dtype == F64
        close(rough.grad().double(), grad, 1e-5)
        close(rough.to(F64).grad(), grad)
        assert rough.to(F64).predict(X).dtype == F64


def test_value_at_other_parameters():
    objective = Objective(mlp(), cut(X, Y))
    other = mlp(seed=3)
    theta = flatten(select_params(other)).detach()
    value, grad, _ = oracle(other, F.cross_entropy, X, Y)
    with untouched(other, tensors=[theta]): close(objective.value(theta), value), close(objective.grad(theta), grad)


def test_later_training_does_not_move_the_objective():
    model = mlp()
    objective = Objective(model, (X, Y))
    value, grad = objective.value(), objective.grad()
    with torch.no_grad():
        for p in model.parameters(): p.add_(1)
    assert objective.value(objective.theta) == value and torch.equal(objective.grad(), grad)


def test_to_keeps_the_point():
    model = mlp()
    objective = Objective(model, (X, Y))
    with torch.no_grad(): model[0].weight.mul_(2)
    assert objective.to(torch.float32).value() == pytest.approx(objective.value(), rel=1e-5)


@pytest.mark.parametrize("call", [lambda o, H: o.grad(), lambda o, H: o.predict(X), lambda o,
                                  H: H.matvec(randn(o.n_params)), lambda o, H: torch.tensor(o.value(o.theta)),
                                  lambda o, H: HessianOperator(o).matvec(randn(o.n_params)), lambda o,
                                  H: example_grads(o, X, Y)])
def test_mode_changed_afterwards(call):
    "Either refused, or still the deterministic function it was."
    model = build(Normed)
    objective = Objective(model, (X, Y))
    H = HessianOperator(objective, memory_budget=0)
    before = call(objective, H)
    model.train()
    with untouched(model):
        try: after = call(objective, H)
        except ValueError as e: assert "model.eval()" in str(e)
        else: assert_close(after, before)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("budget", [None, 0])
def test_callers_grad_mode_does_not_matter(context, budget):
    _, grad, product = oracle(mlp(), F.cross_entropy, X, Y)
    model, v = mlp(), randn(44)
    with context():
        objective = Objective(model, (X, Y))
        close(objective.grad(), grad)
        close(HessianOperator(objective, memory_budget=budget).matvec(v), product(v))


def test_default_device_does_not_matter():
    model, grad = mlp(), oracle(mlp(), F.cross_entropy, X, Y)[1]
    with torch.device("meta"):
        objective = Objective(model, (X, Y))
        g, pairs = objective.grad(), top_eigenpairs(HessianOperator(objective, memory_budget=0), 3)
    close(g, grad)
    assert pairs.converged.all()


@pytest.mark.parametrize("dtype", [F64, torch.float16, torch.bfloat16])
def test_default_dtype_does_not_matter(dtype):
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        agree(mlp(), cut(X.float(), Y), "cross_entropy", F.cross_entropy, X.float().double(), Y)
        assert top_eigenpairs(HessianOperator(Objective(mlp().float(), (X, Y))), 2, tol=1e-3).values.dtype == F64
    finally: torch.set_default_dtype(before)


def test_inputs_that_require_a_gradient():
    inputs = X.clone().requires_grad_()
    objective = agree(mlp(), (inputs, Y), "cross_entropy", F.cross_entropy, X, Y)
    assert inputs.grad is None and not objective.predict(inputs).requires_grad and not objective.grad().requires_grad


def test_example_grads():
    for name in ("weights", "ignored", "all three", "focal", "mse"):
        loss, reference, target = LOSSES[name]
        model = mlp()
        objective = Objective(model, (X, target), loss)
        with untouched(model): G = example_grads(objective, X, target)
        assert G.shape == (N, 44) and not G.requires_grad
        close(G.sum(0) / objective.normaliser, objective.grad())
        for i in (1, 3): close(G[i], objective.micro_batch_grad(objective.params, X[i:i + 1], target[i:i + 1]))
        assert G[0].any() == (name not in ("ignored", "all three"))


def test_example_vjps_without_batching_rule():
    class Routed(nn.Module):
        "Control flow that depends on data: vmap refuses it."
        def __init__(self): super().__init__(); self.a = nn.Linear(D, C)
        def forward(self, x): return self.a(x) if x.sum() > -1e9 else x
    model, r = build(Routed), randn(20, C)
    objective = Objective(model, (X, Y))
    J = torch.autograd.functional.jacobian(lambda w: F.linear(X[:20], w, model.a.bias.detach()),
                                           model.a.weight.detach())
    close(example_vjps(objective, X[:20], r)[:, :12], torch.einsum("nc,ncij->nij", r,
                                                                   J[torch.arange(20), :, :].reshape(20, C, C,
                                                                           D)).flatten(1))


def test_predict():
    objective = Objective(mlp(), (X, Y), memory_budget=20_000)
    expected = mlp()(X).detach()
    for inputs in (X, X.numpy()): close(objective.predict(inputs), expected)
    close(objective.predict(X.float()), mlp()(X.float().double()).detach())
    assert objective.predict(X[:0]).shape == (0, C) and objective.predict(X[:1]).shape == (1, C)


def test_nothing_is_touched_by_any_public_call(rng_draws):
    "One model with everything that could be disturbed, one list of calls."
    model = build(Normed)
    for p in model.parameters(): p.grad = randn(*p.shape)
    model.net[0].bias.requires_grad_(False)
    model.train(), model.net[1].eval(), model.net[3].eval()  # a mixed, allowed mode
    generator, loader, mine = torch.Generator().manual_seed(1), DataLoader(TensorDataset(X, Y), batch_size=64), [X, Y]
    with untouched(model, tensors=mine):
        objective = Objective(model, loader, nn.CrossEntropyLoss(weight=WEIGHT), memory_budget=100_000)
        H, recompute = HessianOperator(objective), HessianOperator(objective, memory_budget=0)
        theta = objective.theta
        V = randn(2, objective.n_params)
        for call in [lambda: repr(objective), objective.value, objective.grad, lambda: objective.value(theta),
                     lambda: objective.grad(theta), lambda: objective.predict(X),
                     lambda: objective.to(torch.float32), lambda: objective.named(theta),
                     lambda: example_grads(objective, X[:9], Y[:9]),
                     lambda: example_vjps(objective, X[:9], randn(9, C)), lambda: H.matvec(V[0]),
                     lambda: recompute.matvec(V[0]), lambda: H.matmat(V), H.to_dense,
                     lambda: H.to_scipy() @ V[0].numpy(), lambda: top_eigenpairs(H, 3, tol=1e-3),
                     lambda: top_eigenpairs(H, 3, tol=1e-3, generator=generator),
                     lambda: top_eigenpairs(H, 3, tol=1e-3, progress=True), lambda: dense_eigenpairs(H, 5),
                     lambda: tridiagonalize(H, V[0], 5),
                     lambda: refine(top_eigenpairs(H, 2, tol=1e-3), H), lambda: select_params(model, "*")]:
            with untouched(model, tensors=[*mine, V, theta]): call()


def test_a_failing_call_restores_the_random_state():
    class Failing(Dataset):
        def __len__(self): return 5
        def __getitem__(self, i): torch.rand(1), np.random.rand(), random.random(); raise KeyError("boom")
    with untouched(mlp()), pytest.raises(KeyError): Objective(mlp(), Failing())
    with pytest.raises(ZeroDivisionError), untouched():
        with restored_on_error(): torch.rand(1), np.random.rand(), random.random(), 1 / 0


def test_generator_of_the_loader_is_untouched():
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    Objective(mlp(), DataLoader(TensorDataset(X, Y), batch_size=64, generator=generator)).grad()
    assert torch.equal(before, generator.get_state())


class Experts(nn.Module):
    "Each example takes one of two ways."
    def __init__(self): super().__init__(); self.a, self.b = nn.Linear(D, C), nn.Linear(D, C)
    def forward(self, x):
        first, out = x[:, 0] > 0, x.new_zeros(len(x), C)
        if first.any(): out[first] = self.a(torch.tanh(x[first]))
        if (~first).any(): out[~first] = self.b(torch.tanh(x[~first]))
        return out


def test_parameters_used_by_some_examples_only():
    with quiet(): agree(build(Experts), cut(X, Y), "cross_entropy", F.cross_entropy, X, Y)


def test_parameters_out_of_reach_are_named_and_zero():
    class TwoHeads(nn.Module):
        def __init__(self): super().__init__(); self.used, self.idle = nn.Linear(D, C), nn.Linear(D, C)
        def forward(self, x): return self.used(torch.tanh(x))
    with pytest.warns(UserWarning, match=r"does not reach \['idle.weight', 'idle.bias'\].*zero"):
        objective = Objective(build(TwoHeads), (X, Y))
    bad = Y.repeat(4)
    bad[100] = C
    with pytest.raises(ValueError, match="labels must lie in"):
        Objective(build(TwoHeads), (X.repeat(4, 1), bad))  # the search for idle parameters meets it first
    H = HessianOperator(objective).to_dense()
    assert not objective.grad()[16:].any() and objective.grad()[:16].any() and not H[16:].any()
    assert not example_grads(objective, X, Y)[:, 16:].any()


@pytest.mark.parametrize("values, finite", [([1., 2.], True), ([3e38, 3e38], True), ([-3e38, 1., -3e38], True),
                                            ([], True),
                                            ([1., float("nan")], False), ([float("inf"), -float("inf")], False),
                                            ([3e38, 3e38, -float("inf")], False)])
def test_entries_are_finite_although_their_sum_is_not(values, finite):
    assert all_finite(torch.tensor(values, requires_grad=True)) is finite


BACKENDS = torch.backends
LATER = hasattr(BACKENDS.cuda.matmul, "fp32_precision")  # torch 2.9
DROPPING = {
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "high": lambda: torch.set_float32_matmul_precision("high"), "nothing": lambda: None,
    **({"oneDNN matmul": lambda: setattr(BACKENDS.mkldnn.matmul, "fp32_precision", "bf16"),
        "oneDNN conv": lambda: setattr(BACKENDS.mkldnn.conv, "fp32_precision", "bf16"),
        "cuBLAS": lambda: setattr(BACKENDS.cuda.matmul, "fp32_precision", "tf32"),
        "cuDNN": lambda: setattr(BACKENDS.cudnn.conv, "fp32_precision", "ieee")} if LATER else {}),
}  # the later ones contradict those of before


@pytest.fixture
def settings_of_torch():
    places = [getattr(b, n) for b in (BACKENDS.cudnn, BACKENDS.mkldnn) for n in ("matmul", "conv", "rnn")
              if hasattr(getattr(b, n, None), "fp32_precision")]
    before = [p.fp32_precision for p in places]
    yield
    if LATER: BACKENDS.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    for p, precision in zip(places, before): p.fp32_precision = precision


@pytest.mark.parametrize("name", DROPPING)
def test_settings_that_drop_bits_are_said_and_left_alone(name, settings_of_torch):
    model = mlp().float()
    DROPPING[name]()
    with untouched():
        if name in ("nothing", "cuBLAS", "cuDNN"):  # on the host, the devices' settings do not matter
            with quiet(): op = HessianOperator(Objective(model, (X[:40].float(), Y[:40])))
        else:
            with pytest.warns(UserWarning, match=r"may round the operands.*dtype=torch\.float64"):
                op = HessianOperator(Objective(model, (X[:40].float(), Y[:40])))
        with quiet(): top_eigenpairs(op, 2, tol=1e-2), Objective(model, (X[:40], Y[:40]), dtype=F64)


def test_the_default_of_cudnn_matters_to_convolutions_only(settings_of_torch):
    cuda = torch.device("cuda")
    assert rounded_by(cuda) == (["torch.backends.cudnn.conv.fp32_precision", "torch.backends.cudnn.rnn.fp32_precision"]
                                if LATER
                                else ["torch.backends.cudnn.allow_tf32"])
    with pytest.warns(UserWarning, match="cudnn"):
        check_precision(nn.Sequential(nn.Conv2d(1, 1, 1)), torch.float32, cuda)
    with quiet(): check_precision(nn.Linear(2, 2), torch.float32, cuda)


def test_training_beside_a_search_is_what_it_is_alone():
    "Losses bit for bit, random numbers, settings and warnings: dropout, a shuffling loader, attention."
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.TransformerEncoderLayer(8, 2, 16, dropout=.2, batch_first=True)
            self.head = nn.Linear(8, C)
        def forward(self, x): return self.head(self.attend(x.reshape(-1, 2, 8)).mean(1))
    def train():
        torch.manual_seed(3)
        net, losses = Net(), []
        optimizer = torch.optim.SGD(net.parameters(), lr=.1, momentum=.9)
        loader = DataLoader(TensorDataset(randn(60, 16, dtype=torch.float32), torch.arange(60) % C), batch_size=20,
                            shuffle=True)
        for _ in range(30):
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(net(x), y)
                loss.backward()
                optimizer.step()
                losses.append((loss.item(), np.random.rand(), random.random()))
                assert torch.backends.cuda.flash_sdp_enabled() and torch.backends.cuda.mem_efficient_sdp_enabled()
                assert list(warnings.filters) == filters
        return losses
    def search():
        data = DataLoader(TensorDataset(randn(30, 16), torch.arange(30) % C), batch_size=10)
        while not stop.is_set():
            top_eigenpairs(HessianOperator(Objective(net, data)), 2, tol=1e-2)
            done.append(1)
    filters, stop, done, runs = list(warnings.filters), threading.Event(), [], []
    net = build(Net)
    for beside in (False, True):
        np.random.seed(0), random.seed(0)
        thread = threading.Thread(target=search)
        if beside: thread.start()
        runs.append(train())
        if beside:
            while not done: time.sleep(.01)
            stop.set()
            thread.join()
    assert runs[0] == runs[1] and done


def test_a_model_may_set_flags_of_cudnn(settings_of_torch):
    class Flagged(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp().float()
        def forward(self, x):
            with torch.backends.cudnn.flags(enabled=False): return self.net(x)
    with untouched():
        assert HessianOperator(Objective(Flagged(), (X[:40].float(), Y[:40]))).matvec(torch.ones(44)).isfinite().all()


def test_a_model_that_draws_in_vain_leaves_the_stream_alone():
    class Draws(nn.Module):
        def __init__(self): super().__init__(); self.net = mlp()
        def forward(self, x): return self.net(x) + 0 * torch.rand(())
    model, before = Draws(), torch.get_rng_state()
    objective = Objective(model, (X, Y), batch_size=50)
    objective.grad(), objective.predict(X), objective.value(objective.theta)
    assert objective.draws and not Objective(mlp(), (X, Y)).draws and torch.equal(before, torch.get_rng_state())
