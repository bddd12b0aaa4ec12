"The objective is what was written: penalties, stray tensors, losses over batches, weight decay, data written to."
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from conftest import F64, blobs, build, copy, mlp, quiet, randn, untouched
from hessnb.curvature.cross_entropy import ClassLoss
from hessnb.curvature.eigenpairs import dense_eigenpairs
from hessnb.curvature.example_grads import example_grads
from hessnb.curvature.gauss_newton import FisherOperator, GGNOperator
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.loss import as_loss
from hessnb.curvature.objective import Objective
from hessnb.curvature.params import flatten, select_params
from hessnb.curvature.top import top_eigenpairs

X, Y = blobs(40)
plain = lambda o, t: F.cross_entropy(o, t, reduction="none")


def refused(message, model, loss, **kwargs):
    with untouched(model), pytest.raises(ValueError, match=message): Objective(model, (X, Y), loss, **kwargs)


def penalties(net):
    listed, first = list(net.parameters()), net[0].weight
    return {
        "squares": lambda: sum(p.square().sum() for p in net.parameters()),
        "absolute": lambda: sum(p.abs().sum() for p in net.parameters()),
        "listed before": lambda: sum(p.norm() for p in listed),
        "one layer": lambda: first.square().mean(),
        "spectral": lambda: torch.linalg.matrix_norm(net[0].weight, 2),
        "distance": lambda: (net[2].bias - 1).square().sum(),
        "through a module": lambda: net[0](X[:1]).square().mean(),
    }


@pytest.mark.parametrize("name", penalties(mlp()))
@pytest.mark.parametrize("how", ["all", "subset", "double", "frozen"])
def test_a_penalty_inside_the_loss(name, how):
    net = mlp()
    penalty = penalties(net)[name]
    if how == "double": net.float() if name != "through a module" else None
    if how == "frozen": net.requires_grad_(False)
    chosen = {"subset": "2.bias", "frozen": "*"}.get(how)
    refused("the loss itself uses the parameter .* of the model.*pass weight_decay=wd", net,
            lambda o, t: plain(o, t) + penalty().to(o), params=chosen, dtype=F64)


def test_a_penalty_of_a_loss_module():
    class Penalised(nn.Module):
        def __init__(self, net): super().__init__(); self.net = net
        def forward(self, o, t): return plain(o, t) + .1 * sum(p.square().sum() for p in self.net.parameters())
    net = mlp()
    refused("parameter '0.weight' of the model|parameter '", net, Penalised(net))


def test_harmless_looks_at_parameters():
    net, seen = mlp(), []
    def noting(o, t):
        seen.append(sum(p.detach().square().sum() for p in net.parameters()))
        return plain(o, t)
    assert_close(Objective(net, (X, Y), noting).grad(), Objective(net, (X, Y)).grad())
    frozen = mlp()
    frozen[0].requires_grad_(False)
    assert_close(Objective(frozen, (X, Y)).grad(), Objective(mlp(), (X, Y), params="2.*").grad())


def test_trainable_tensors_of_the_loss():
    centres, temperature = randn(4, 4).requires_grad_(), torch.ones((), dtype=F64, requires_grad=True)
    head = nn.Linear(4, 4).double()
    for loss in (lambda o, t: plain(o, t) + (o - centres[t]).square().sum(1), lambda o, t: plain(o / temperature, t),
                 lambda o, t: plain(head(o), t)):
        refused(r"the loss uses a tensor of shape \(.*requires a gradient.*requires_grad_\(False\)", mlp(), loss)
    fixed = centres.detach()
    with quiet(): Objective(mlp(), (X, Y), lambda o, t: plain(o, t) + (o - fixed[t]).square().sum(1))


class Uses(nn.Module):
    "A layer and something that is no parameter of it."
    def __init__(self, fn):
        super().__init__()
        self.layer, self.fn = nn.Linear(3, 4), fn
    def forward(self, x): return self.fn(self, x)


def with_attribute(value):
    net = build(lambda: Uses(lambda m, x: m.layer(x) * m.gain))
    net.gain = value(net)
    return net


def computed_before():
    net = build(lambda: Uses(lambda m, x: F.linear(x, m.doubled, m.layer.bias)))
    net.doubled = 2 * net.layer.weight
    return net


def in_tuple():
    net = build(lambda: Uses(lambda m, x: F.linear(x, *m.pair)))
    net.pair = (net.layer.weight, net.layer.bias)
    return net


def in_closure():
    net = build(lambda: Uses(None))
    weight = net.layer.weight
    net.fn = lambda m, x: m.layer(x) + x @ weight.T
    return net


def hidden():
    net = build(lambda: Uses(lambda m, x: m.layer(x) + m.others[0](x)))
    net.others = [nn.Linear(3, 4).double()]
    return net


@pytest.mark.parametrize("make, message", [
    (lambda: with_attribute(lambda net: torch.ones(4, dtype=F64, requires_grad=True)), r"shape \(4,\).*'gain'"),
    (lambda: with_attribute(lambda net: net.layer.bias[0] * 2), "its parameter 'layer.bias' past its modules"),
    (computed_before, "its parameter 'layer.weight' past its modules"), (in_tuple, "its parameter 'layer.* past its"),
    (in_closure, "its parameter 'layer.weight' past"), (hidden, "requires a gradient and is no parameter.*register")])
def test_trainable_tensors_of_the_model(make, message): refused(message, make(), "cross_entropy")


def test_tensors_that_are_constants():
    net = with_attribute(lambda net: torch.full((4,), 2., dtype=F64))
    net.others = [nn.Linear(3, 4).double().requires_grad_(False)]
    net.fn = lambda m, x: m.layer(x) * m.gain + m.others[0](x)
    value = F.cross_entropy(net(X), Y)
    with quiet(): assert_close(Objective(net, (X, Y)).grad(), flatten(torch.autograd.grad(value, [*net.parameters()])))


def batch_mean(o, t): return plain(o - o.mean(0), t)
def pairs(o, t): return plain(o, t) + (o @ o.T).mean(1)
def ranks(o, t): return plain(o, t) * torch.arange(len(o))
def late(o, t): return plain(o, t) + (len(o) > 8) * o.square().sum(1)


@pytest.mark.parametrize("loss", [batch_mean, pairs, ranks, late])
def test_a_loss_that_uses_the_batch(loss): refused("depends on the other examples of its batch", mlp(), loss)


class OfBatch(ClassLoss):
    def total(self, outputs, target): return super().total(outputs - outputs.mean(0), target)


def test_what_torch_sums_over_is_not_inherited():
    "A loss of one's own is looked at, whatever it is made from."
    refused("depends on the other examples of its batch", mlp(), OfBatch(nn.CrossEntropyLoss()))


@pytest.mark.parametrize("loss, outputs, target", [
    (nn.CrossEntropyLoss(), randn(6, 4), Y[:6] % 4), (nn.CrossEntropyLoss(), randn(6, 4), randn(6, 4).softmax(1)),
    (nn.CrossEntropyLoss(torch.arange(4.), ignore_index=2, label_smoothing=.1), randn(6, 4), torch.arange(6) % 4),
    ("nll_loss", randn(6, 4).log_softmax(1), torch.arange(6) % 4),
    ("token_cross_entropy", randn(6, 5, 4), Y[:30].view(6, 5) % 4),
    ("causal_lm", randn(6, 5, 4), Y[:30].view(6, 5) % 4), ("mse_loss", randn(6, 4), randn(6, 4)),
    (nn.BCEWithLogitsLoss(pos_weight=torch.arange(4.)), randn(6, 4), randn(6, 4).sigmoid())])
def test_losses_that_are_known_to_add_up(loss, outputs, target):
    "The objective does not look whether they do."
    loss, given = as_loss(loss), (outputs.clone(), target.clone())
    assert loss.additive and loss.specialise(outputs, target).additive
    total = loss.total(outputs, target)
    assert_close(sum(map(loss.total, outputs.split(1), target.split(1))), total)
    assert total.equal(loss.total(outputs, target)) and outputs.equal(given[0]) and target.equal(given[1])


def shifting(o, t): t += 0; t[0] = 1; return plain(o, t)
def centring(o, t): o -= 1; return plain(o, t)


class Counting(nn.Module):
    def __init__(self): super().__init__(); self.n = 0
    def forward(self, o, t): self.n += 1; return self.n * plain(o, t)


def test_a_loss_that_writes_or_changes():
    labels = Y.clone()
    for loss in (shifting, centring):
        with pytest.raises(ValueError, match="the loss changes its outputs or targets in place"):
            Objective(mlp(), (X, labels), loss)
    assert torch.equal(labels, Y) and labels._version == 0
    for loss in (lambda o, t: plain(o, t) * torch.rand(len(o)), Counting()):
        with untouched(), pytest.raises(RuntimeError, match="different values for the same outputs.*draw at random"):
            Objective(mlp(), (X, Y), loss)


# --- weight decay -----------------------------------------------------------------------------------
def with_penalty(model, wd, params=None):
    "Gradient and Hessian of mean loss and penalty by plain autograd."
    chosen = select_params(model, params)
    value = F.cross_entropy(model(X), Y) + wd / 2 * sum(p.square().sum() for p in chosen.values())
    g = flatten(torch.autograd.grad(value, list(chosen.values()), create_graph=True))
    rows = [flatten(torch.autograd.grad(gi, list(chosen.values()), retain_graph=True)) for gi in g]
    return value.item(), g.detach(), torch.stack(rows)


@pytest.mark.parametrize("params", [None, "0.*", "*bias"])
@pytest.mark.parametrize("kwargs", [{}, dict(memory_budget=0), dict(product="replay"), dict(product="graph")])
def test_weight_decay(params, kwargs):
    model = mlp()
    objective = Objective(model, (X, Y), params=params, weight_decay=.3, batch_size=17)
    value, grad, H = with_penalty(model, .3, params)
    assert_close(objective.value(), value)
    assert_close(objective.value(objective.theta), value)
    assert_close(objective.grad(), grad)
    op, V = HessianOperator(objective, **kwargs), randn(70, objective.n_params)
    assert_close(op.matvec(V[0]), H @ V[0])
    assert_close(op.matmat(V), V @ H)
    assert_close(op.to_dense(), H)
    for kind in (GGNOperator, FisherOperator):
        without = kind(Objective(model, (X, Y), params=params, batch_size=17), **kwargs)
        assert_close(kind(objective, **kwargs).matmat(V), without.matmat(V) + .3 * V)


def test_weight_decay_elsewhere():
    model, theta = mlp(), randn(44, seed=7)
    objective, other = Objective(model, (X, Y), weight_decay=.3), mlp()
    torch.nn.utils.vector_to_parameters(theta, other.parameters())
    value, grad, H = with_penalty(other, .3)
    moved, v = objective.at(theta), randn(44)
    assert_close((moved.value(), objective.value(theta)), (value, value))
    assert_close(moved.grad(), grad)
    assert_close(HessianOperator(moved).matvec(v), H @ v)
    single = moved.to(torch.float32)
    assert_close(single.value(), value, rtol=1e-5, atol=0)
    assert_close(HessianOperator(single).matvec(v.float()), (H @ v).float(), rtol=1e-4, atol=1e-5)
    values = torch.linalg.eigvalsh(H).flip(0)
    assert_close(top_eigenpairs(HessianOperator(moved), 3).values, values[:3])
    assert_close(dense_eigenpairs(HessianOperator(moved)).values, values)
    assert_close(example_grads(moved, X, Y).mean(0), grad - .3 * theta)  # the penalty belongs to no example
    assert "0.15 |theta|^2" in repr(objective) and "theta" not in repr(Objective(model, (X, Y)))


def test_weight_decay_is_that_of_sgd():
    model, wd, lr = mlp(), .2, .1
    step = Objective(model, (X, Y), weight_decay=wd).grad()
    before = flatten(model.parameters()).detach()
    optimiser = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=wd)
    F.cross_entropy(model(X), Y).backward()
    optimiser.step()
    assert_close(flatten(model.parameters()).detach(), before - lr * step)


@pytest.mark.parametrize("name", ["weight_decay", "memory_budget"])
@pytest.mark.parametrize("value, error", [(-1, ValueError), (float("nan"), ValueError), (float("inf"), ValueError),
                                          (True, TypeError), ("1", TypeError), (None, TypeError)])
def test_settings(name, value, error):
    with pytest.raises(error, match=f"{name} must be"): Objective(mlp(), (X, Y), **{name: value})


@pytest.mark.parametrize("value", [True, 2.5, "8", torch.tensor(8)])
def test_batch_size(value):
    with pytest.raises(TypeError, match="batch_size must be a whole number"): Objective(mlp(), (X, Y), batch_size=value)


# --- data that are written to -----------------------------------------------------------------------
class Own(Dataset):
    def __init__(self, X, y): self.X, self.y, self.read = X, y, torch.zeros(1)
    def __len__(self): return len(self.X)
    def __getitem__(self, i):
        self.read += 1  # its own affair
        return self.X[i], self.y[i]


class Loader:
    def __init__(self, X, y): self.X, self.y = X, y
    def __iter__(self): yield self.X[:20], self.y[:20]; yield self.X[20:], self.y[20:]


FORMS = {
    "pair": lambda X, y: (X, y), "list": lambda X, y: [X, y],
    "batches": lambda X, y: [(X[:30], y[:30]), (X[30:], y[30:])],
    "dicts": lambda X, y: [{"input": X[:30], "labels": y[:30]}, {"input": X[30:], "labels": y[30:]}],
    "inputs": lambda X, y: [((X,), y)],
    "TensorDataset": TensorDataset, "loader": lambda X, y: DataLoader(TensorDataset(X, y), batch_size=16),
    "subset": lambda X, y: DataLoader(Subset(TensorDataset(X, y), range(35)), batch_size=16),
    "several": lambda X, y: ConcatDataset([TensorDataset(X[:9], y[:9]), TensorDataset(X[9:], y[9:])]),
    "own": Own, "own in a loader": lambda X, y: DataLoader(Own(X, y), batch_size=16), "own loader": Loader,
    "arrays": lambda X, y: (X.numpy(), y.numpy()),
}
WRITES = {"all": lambda X, y: X.mul_(2), "one number": lambda X, y: X[8].zero_(), "labels": lambda X, y: y[:9].zero_()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("write", WRITES)
def test_data_changed_in_place(form, write):
    inputs, labels = X.clone(), Y.clone()
    objective = Objective(mlp(), FORMS[form](inputs, labels))
    ops = [HessianOperator(objective), HessianOperator(objective, memory_budget=0),
           HessianOperator(objective, product="replay")]
    v = randn(objective.n_params)
    for op in ops: op.matvec(v)
    if (form, write) == ("arrays", "all"): np.copyto(inputs.numpy(), 2 * inputs.numpy())  # past torch
    else: WRITES[write](inputs, labels)
    calls = [objective.value, objective.grad, lambda: objective.to(torch.float32), lambda: HessianOperator(objective)]
    calls += [lambda op=op: op.matvec(v) for op in ops] + [lambda: ops[0].matmat(randn(3, objective.n_params))]
    calls += [lambda: top_eigenpairs(ops[0], 1), lambda: objective.at(objective.theta).value()]
    for call in calls:
        with pytest.raises(RuntimeError, match="changed in place after the objective was made.*make a new Objective"):
            call()
    assert Objective(mlp(), FORMS[form](inputs, labels)).value() > 0


def test_class_weights_changed_in_place():
    weight = torch.ones(4, dtype=F64)
    objective = Objective(mlp(), (X, Y), nn.CrossEntropyLoss(weight=weight))
    weight[0] = 3
    with pytest.raises(RuntimeError, match="changed in place"): objective.value()


def test_what_is_no_change():
    inputs, model = X.clone(), mlp()
    data = Own(inputs, Y)
    objective = Objective(model, DataLoader(data, batch_size=16))
    before, op = objective.grad(), HessianOperator(objective)
    more = copy.deepcopy(inputs).mul_(2)
    F.cross_entropy(model(more), Y).backward()
    torch.optim.SGD(model.parameters(), lr=1.).step()
    op.matvec(before)
    assert torch.equal(objective.grad(), before)
    with torch.inference_mode(): frozen = X.clone()
    with warnings.catch_warnings(): assert_close(Objective(mlp(), (frozen, Y)).grad(), before)
    asks = X.clone().requires_grad_()
    assert_close(Objective(mlp(), (asks, Y)).grad(), before)
    assert asks.grad is None and asks.is_leaf
