"Numbers of large models in single precision: rounding must not grow with the number of parameters."
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from conftest import F64, build, randn
from hessnb.boundary.alignment import align, cosines_by_example
from hessnb.boundary.gradients import ReinforcingGradients, gradient_cosines
from hessnb.boundary.probe import eigenvector_table
from hessnb.boundary.structure import class_structure
from hessnb.curvature.layers import inner, layer_mass, lengths
from hessnb.curvature.objective import Objective
from hessnb.curvature.operator import MatrixOperator
from hessnb.curvature.top import top_eigenpairs


def as_pairs(V):
    "Eigenpairs with these rows for vectors."
    some = top_eigenpairs(MatrixOperator(torch.diag(torch.arange(1., 9., dtype=F64))), len(V))
    return replace(some, vectors=V)


@pytest.mark.parametrize("P", [1, 4095, 4096, 4097, 9_000_000])
def test_sums_over_parameters(P):
    "Equal entries are where sums in single precision are worst."
    A = torch.cat([torch.full((1, P), .1), randn(1, P).float()])
    assert_close(lengths(A), A.double().norm(dim=1), rtol=1e-6, atol=0)
    size = A.double().norm(dim=1)
    assert ((inner(A, A) - A.double() @ A.double().T).abs() <= 1e-5 * size[:, None] * size).all()


class Padded(nn.Module):
    "A small network beside many parameters that the loss meets with factor zero."
    def __init__(self, pad):
        super().__init__()
        self.net = build(lambda: nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 3)))
        self.pad = nn.Parameter(torch.zeros(pad, dtype=F64))
    def forward(self, x): return self.net(x) + 0 * self.pad.sum()


@pytest.mark.slow
def test_zeros_beside_a_small_model_change_nothing():
    X, y, pad = 2 * randn(9, 3), torch.arange(9) % 3, 9_000_000
    small, large = (Objective(Padded(n), (X, y), dtype=d) for n, d in ((1, F64), (pad, torch.float32)))
    V = torch.linalg.qr(randn(small.n_params, 3, seed=1)).Q.T
    V[:, 0] = 0  # of the padding, which comes first
    wide = F.pad(V.float(), (pad - 1, 0))
    few, many = as_pairs(V), as_pairs(wide)
    assert_close(align(large, X, wide).cosines.double(), align(small, X, V).cosines, rtol=0, atol=1e-4)
    for raw in ("unit", "raw"):
        a, b = (class_structure(o, X, p, n_shuffles=0, weighting=raw) for o, p in ((small, few), (large, many)))
        for one, other in ((a.by_class, b.by_class), (a.by_pair, b.by_pair)):
            assert one.rank == other.rank == len(one.groups)
            assert_close(one.explained, other.explained.double(), rtol=0, atol=1e-3)
            assert torch.equal(one.opposed, other.opposed)
    a, b = eigenvector_table(small, X, few), eigenvector_table(large, X, many)
    assert torch.equal(a.class_pairs, b.class_pairs) and torch.equal(a.examples, b.examples)
    assert_close(a.contrasts, b.contrasts.double(), rtol=0, atol=1e-4)
    assert_close(layer_mass(large, wide).mass.sum(1), torch.ones(3, dtype=F64), rtol=1e-5, atol=0)


def test_a_wide_layer_in_closed_form():
    "Softmax regression on so many inputs: g = r x, of which all Gram matrices follow from those of r and x."
    D, N = 1_500_000, 9
    X, y = .1 + .02 * randn(N, D).float(), torch.arange(N) % 3  # nearly equal entries
    model = nn.Linear(D, 3, bias=False).eval()
    with torch.no_grad(): model.weight.copy_(1e-4 * randn(3, D, seed=2))
    objective = Objective(model, (X, y))
    logits = X.double() @ model.weight.detach().double().T
    labels = logits.argmax(1)
    r = logits.softmax(1) - F.one_hot(labels, 3)
    r, x = r / r.norm(dim=1, keepdim=True), X.double()
    x = x / x.norm(dim=1, keepdim=True)
    K = (r @ r.T) * (x @ x.T)  # cosines between gradients
    assert len(labels.unique()) > 1
    assert_close(gradient_cosines(objective, X), K, rtol=0, atol=1e-5)
    chosen = [0, 1, 2, 5]
    V = (r[chosen, :, None] * x[chosen, None]).flatten(1).float()  # gradients of four examples
    V = torch.cat([V[:3], torch.full((1, 3 * D), 1.) / (3 * D)**.5])
    expected = torch.cat([K[:, chosen[:3]], (r.sum(1) * x.sum(1) / (3 * D)**.5)[:, None]], 1)
    assert_close(align(objective, X, V).cosines.double(), expected, rtol=0, atol=1e-5)
    by_example, _ = cosines_by_example(ReinforcingGradients(objective, X), V)
    assert_close(by_example.double(), expected, rtol=0, atol=1e-5)
    found = class_structure(objective, X, as_pairs(V), n_shuffles=0).by_class
    classes = labels.unique()
    M = (labels == classes[:, None]).double()  # sums over the classes, in terms of the gradients
    T, G = M @ expected, M @ K @ M.T
    assert found.rank == len(classes)
    assert_close(found.explained.double(), (T * torch.linalg.solve(G, T)).sum(0), rtol=0, atol=1e-3)


def test_what_cancels_is_no_direction():
    "The mean of two opposite gradients is zero, and its rounding must not pass for a direction of class 0."
    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad(): model.weight.copy_(torch.tensor([[1., 0.], [-1., 0.]]))
    X = torch.tensor([[1e-9, 1.], [1e-9, -1.], [-1., .5], [-1., .25]], dtype=F64)  # first two: r (x) (~0, +-1)
    objective = Objective(model, (X, torch.tensor([0, 0, 1, 1])))
    V = torch.eye(4, dtype=F64)
    found = class_structure(objective, X, as_pairs(V), n_shuffles=0)
    assert found.by_class.rank == 2  # 1e-9 is well above the rounding of double precision
    X[:2, 0] = 1e-20
    found = class_structure(objective, X, as_pairs(V), n_shuffles=0)
    assert found.by_class.rank == 1
    M = torch.tensor([1., -1.], dtype=F64)[:, None] * torch.nn.functional.normalize(X[2:], dim=1).mean(0)
    M = M.flatten() / M.norm()
    assert_close(found.by_class.explained, M.square())


def test_opposed_groups_do_not_depend_on_the_sign():
    X, y = randn(30, 3), torch.arange(30) % 3
    objective = Objective(build(lambda: nn.Linear(3, 3)), (X, y))
    V = torch.linalg.qr(randn(12, 5, seed=3)).Q.T
    a, b = (class_structure(objective, X, as_pairs(s * V), n_shuffles=0) for s in (1, -1))
    assert torch.equal(a.by_pair.opposed, b.by_pair.opposed) and torch.equal(a.by_class.opposed, b.by_class.opposed)
