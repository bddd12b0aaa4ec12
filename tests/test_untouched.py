"Whatever a model is made of, looking at it changes nothing: not a value, not an identity, not how it trains on."
import random
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from conftest import F64
from hessnb.boundary.alignment import align
from hessnb.boundary.examine import examine
from hessnb.curvature.example_grads import example_grads
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.params import held_by
from hessnb.curvature.top import top_eigenpairs

D, C, N = 3, 3, 12


class Graph(nn.Module):
    "A random module: parts with an input and an output of size D, some of them shared, and a head."
    def __init__(self, seed):
        super().__init__()
        r = self.r = random.Random(seed)
        self.calls, self.history, self.last, self.notes = 0, [], None, {"n": 0}
        self.record = SimpleNamespace(h=None, seen=[])
        pool = [self.part(r) for _ in range(r.randint(1, 3))]
        self.body = nn.Sequential(*[r.choice(pool) for _ in range(r.randint(1, 4))])
        self.named = nn.ModuleDict({name: r.choice(pool) for name in ["one", "two"][:r.randint(0, 2)]})
        self.listed = nn.ModuleList([r.choice(pool)] * r.randint(0, 2))
        if r.random() < .5: self.again = self.body[0]
        self.head = nn.Linear(D, C)
        if r.random() < .4: self.tie(r)
        if r.random() < .3: self.aside = [self.head.weight]
        if r.random() < .3: self.register_buffer("scale", torch.full((1,), 1.5))
        if r.random() < .3: self.shift = torch.full((1,), .1)
        if r.random() < .3: self.head.register_forward_hook(lambda m, args, out: out + .1 * self.body(args[0])[:, :1])
        if r.random() < .3: self.unused = nn.Linear(2, 2)
        self.steps = [name for name in ("stash", "count", "remember", "register", "input", "buffer") if r.random() < .3]

    def part(self, r):
        linear = nn.Linear(D, D, bias=r.random() < .7)
        kind = r.choice(["plain"] * 4 + ["weight", "orthogonal", "spectral", "old weight", "norm", "residual"])
        if kind == "weight": linear = parametrizations.weight_norm(linear)
        if kind == "orthogonal": linear = parametrizations.orthogonal(linear)
        if kind == "spectral": linear = parametrizations.spectral_norm(linear)
        if kind == "old weight": linear = nn.utils.weight_norm(linear)
        if kind == "norm": return nn.Sequential(linear, nn.BatchNorm1d(D), nn.ReLU())
        if kind == "residual": return nn.Sequential(nn.LayerNorm(D), linear, nn.GELU(), linear)
        return nn.Sequential(linear, r.choice([nn.Tanh(), nn.ReLU(), nn.Identity()]))

    def tie(self, r):
        plain = [m for m in self.modules() if type(m) is nn.Linear and m is not self.head and "weight" in m._parameters
                 and m.weight.shape == self.head.weight.shape]
        if plain: r.choice(plain).weight = self.head.weight

    def forward(self, x):
        if "input" in self.steps: x += .01
        h = self.body(x)
        for m in [*self.named.values(), *self.listed]: h = h + .3 * m(h)
        if hasattr(self, "again"): h = h - .2 * self.again(h)
        out = self.head(h)
        if hasattr(self, "aside"): out = out + .1 * h @ self.aside[0].T
        out = (out + getattr(self, "shift", 0.)) * getattr(self, "scale", 1.)
        if "stash" in self.steps: self.last = h
        if "count" in self.steps: self.calls, self.notes["n"] = self.calls + 1, self.notes["n"] + 1
        if "remember" in self.steps: self.history.append(h); self.record.h = h; self.record.seen.append(h)
        if "register" in self.steps: self.made = nn.Parameter(h.detach()); self.body.kept = h
        if "buffer" in self.steps and hasattr(self, "scale"): self.scale.data.mul_(1)
        return out


def build(seed):
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = Graph(seed).double()
        for name, t in vars(model).items():
            if isinstance(t, torch.Tensor): setattr(model, name, t.double())
        with torch.no_grad():  # statistics of batch norm, power iterations of spectral norm
            for _ in range(2): model.train()(torch.randn(N, D, dtype=F64))
        return model.eval(), torch.randn(N, D, dtype=F64), torch.randint(0, C, (N,))


def everything(model):
    "All that can be reached from a model: containers with what they hold, by identity; tensors with their values."
    containers, _ = held_by(model)
    held = [(c, list(c.items()) if isinstance(c, dict) else list(c)) for c in containers]
    tensors = {id(v): v for _, items in held for v in (x[1] if isinstance(x, tuple) else x for x in items)
               if isinstance(v, torch.Tensor)}
    return held, [(t, t.detach().clone(), t._version, t.requires_grad, t.grad, t.grad_fn) for t in tensors.values()]


def same_as(before):
    held, tensors = before
    for c, items in held:
        now = list(c.items()) if isinstance(c, dict) else list(c)
        assert len(now) == len(items), f"{len(items)} entries became {len(now)}: {now}"
        for old, new in zip(items, now):
            pairs = zip(old, new) if isinstance(old, tuple) else [(old, new)]
            assert all(a is b or isinstance(a, (str, int, float)) and a == b for a, b in pairs), f"{old} became {new}"
    for t, value, version, flag, grad, grad_fn in tensors:
        assert torch.equal(t.detach(), value) and t._version == version and t.requires_grad == flag
        assert t.grad is grad and t.grad_fn is grad_fn


def train_on(model, X, y, steps=3):
    torch.manual_seed(0)
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), lr=.01)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(X.clone()), y).backward()
        optimiser.step()
    return [t.detach().clone() for t in (*model.parameters(), *model.buffers())]


def looks(objective, X, y, everywhere):
    "Every kind of call that evaluates the model, one after the other."
    op, theta, v = HessianOperator(objective), objective.theta, torch.ones(objective.n_params, dtype=F64)
    yield "operator"
    op.matvec(v), op.matmat(v[None])
    yield "products"
    objective.value(theta + .1), objective.grad(), objective.predict(X)
    yield "value, grad, predict"
    moved = objective.at(theta + .1)
    moved.value(), HessianOperator(moved).matvec(v), objective.to(torch.float32).grad()
    yield "at, to"
    example_grads(objective, X, y), align(objective, X, v[None])
    yield "example_grads, align"
    if not everywhere: return
    top_eigenpairs(op, 1, tol=1e-2)
    yield "top_eigenpairs"
    examine(objective, k=3)
    yield "examine"


def look_and_compare(seed, everywhere=False):
    (model, X, y), (control, _, _) = build(seed), build(seed)
    before, data = everything(model), (X.clone(), y.clone())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        objective = Objective(model, (X, y), batch_size=N // 2)
        same_as(before)
        for what in looks(objective, X, y, everywhere):
            try: same_as(before)
            except AssertionError as e: raise AssertionError(f"seed {seed}, after {what}: {e}") from e
        assert torch.equal(X, data[0]) and X._version == 0 and not X.requires_grad
        # derivatives are those of a copy whose parameters are set, by plain autograd
        theta = objective.theta + .05
        other = build(seed)[0]
        parameters = [p for p in other.parameters() if p.requires_grad]
        with torch.no_grad():
            for p, value in zip(parameters, theta.split([p.numel() for p in parameters])): p.copy_(value.view_as(p))
        loss = F.cross_entropy(other(X.clone()), y)
        grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        assert_close(objective.grad(theta), torch.cat([g.reshape(-1) for g in grads]), rtol=1e-9, atol=1e-12)
    for a, b in zip(train_on(model, X, y), train_on(control, X, y), strict=True): assert torch.equal(a, b)


@pytest.mark.parametrize("start", [0, 20, *(pytest.param(n, marks=pytest.mark.slow) for n in (40, 60, 80))])
def test_random_graphs(start):
    for seed in range(start, start + 20): look_and_compare(seed, everywhere=seed % 20 == 0)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(100, 500, 50))
def test_more_random_graphs(start):
    for seed in range(start, start + 50): look_and_compare(seed, everywhere=seed % 25 == 0)
