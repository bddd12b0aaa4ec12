"Standard errors over the draw of the examples: against one product for each example, the bootstrap, and fresh samples."
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import F64, prescribed, seeded
from hessnb.curvature.gauss_newton import FisherOperator, GGNOperator
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.sampling import sampling_error
from hessnb.curvature.top import top_eigenpairs


def drawn(n, seed, classes=3, d=2, spread=1.):
    g = seeded(seed)
    y = torch.randint(0, classes, (n,), generator=g)
    centres = 2 * torch.randn(classes, d, generator=seeded(7), dtype=F64)
    return centres[y] + spread * torch.randn(n, d, generator=g, dtype=F64), y


def trained(make, X, y, steps=200, loss=F.cross_entropy):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double()
    adam = torch.optim.Adam(model.parameters(), .01)
    for _ in range(steps):
        adam.zero_grad()
        loss(model(X), y).backward()
        adam.step()
    adam.zero_grad()
    return model


def mlp(act=nn.Tanh, d=2, c=3):
    return nn.Sequential(nn.Linear(d, 16), act(), nn.Linear(16, 16), act(), nn.Linear(16, c))


def conv():
    return nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4))


@pytest.mark.parametrize("operator", [HessianOperator, GGNOperator, partial(FisherOperator, kind="empirical")])
@pytest.mark.parametrize("weight", [None, [1., 3., .2]])
@pytest.mark.parametrize("batch", [None, 35])
def test_as_many_groups_as_examples(operator, weight, batch):
    "Then it is the spread of single examples, of a ratio of sums where classes have weights."
    X, y = drawn(60, 1)
    loss = nn.CrossEntropyLoss(None if weight is None else torch.tensor(weight, dtype=F64))
    model = trained(mlp, X, y)
    data = (X, y) if batch is None else [(X[:batch], y[:batch]), (X[batch:], y[batch:])]
    op = operator(Objective(model, data, loss))
    pairs = top_eigenpairs(op, 3)
    found = sampling_error(op, pairs, n_groups=60 if batch is None else 35)
    w = torch.ones(60, dtype=F64) if weight is None else torch.tensor(weight, dtype=F64)[y]
    single = [operator(Objective(model, (X[i:i + 1], y[i:i + 1]), loss), verify=False) for i in range(60)]
    q = torch.stack([torch.stack([v @ one.matvec(v) for v in pairs.vectors]) for one in single])
    influence = w[:, None] * (q - pairs.values) / w.mean()
    error = influence.std(0) / 60 ** .5
    torch.testing.assert_close(found.values, pairs.values, rtol=0, atol=0)
    torch.testing.assert_close(found.standard_error, error, rtol=1e-6 if batch is None else .35, atol=0)


def test_the_order_of_the_examples_is_no_matter():
    "Sorted by class, or in batches of one class each: the groups are dealt at random inside of the batches."
    X, y = drawn(300, 2)
    model, order = trained(mlp, X, y), y.argsort(stable=True)
    mixed, by_class = (HessianOperator(Objective(model, (X[i], y[i]))) for i in (torch.arange(300), order))
    pairs = top_eigenpairs(mixed, 2)
    errors = [sampling_error(op, pairs).standard_error for op in (mixed, by_class)]
    assert ((errors[0] / errors[1]).log().abs() < .4).all()


def test_mappings_are_dealt_like_tensors():
    class Reads(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
        def forward(self, x): return self.inner(x)
    X, y = drawn(64, 6)
    inner = trained(mlp, X, y)
    plain, op = HessianOperator(Objective(inner, (X, y))), HessianOperator(Objective(Reads(inner), [({"x": X}, y)]))
    errors = [sampling_error(o, top_eigenpairs(o, 2)).standard_error for o in (plain, op)]
    torch.testing.assert_close(*errors, rtol=1e-5, atol=0)


def test_weight_decay_moves_the_eigenvalue_and_not_its_error():
    X, y = drawn(100, 3)
    model = trained(mlp, X, y)
    plain, decayed = (HessianOperator(Objective(model, (X, y), weight_decay=wd)) for wd in (0., .5))
    a, b = (sampling_error(op, top_eigenpairs(op, 2)) for op in (plain, decayed))
    torch.testing.assert_close(b.values - a.values, torch.full((2,), .5, dtype=F64), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(a.standard_error, b.standard_error, rtol=1e-5, atol=0)


def test_what_it_says_of_more_examples():
    X, y = drawn(200, 4)
    op = HessianOperator(Objective(trained(mlp, X, y), (X, y)))
    found = sampling_error(op, top_eigenpairs(op, 2))
    n = found.examples_for(.01)
    torch.testing.assert_close(found.standard_error * (200 / n).sqrt() / found.values, torch.full((2,), .01, dtype=F64),
                               rtol=1e-3, atol=0)
    assert (found.interval(.99)[:, 0] < found.interval(.5)[:, 0]).all() and "200 examples" in repr(found)


def test_a_model_with_data_and_what_is_refused():
    X, y = drawn(60, 5)
    model = trained(mlp, X, y)
    op = HessianOperator(Objective(model, (X, y)))
    pairs = top_eigenpairs(op, 2)
    torch.testing.assert_close(sampling_error(model, pairs, data=(X, y)).standard_error,
                               sampling_error(op, pairs).standard_error)
    matrix = prescribed(np.linspace(0, 1, op.shape[0]))
    with pytest.raises(TypeError, match="needs the curvature of an objective"): sampling_error(matrix, pairs)
    other = prescribed(np.linspace(0, 1, 40))
    with pytest.raises(ValueError, match="the pairs are of 40 parameters"):
        sampling_error(op, top_eigenpairs(other, 2))
    one = HessianOperator(Objective(model, (X[:1], y[:1])))
    with pytest.raises(ValueError, match="one group of examples only"): sampling_error(one, pairs)
    with pytest.raises(ValueError, match="n_groups"): sampling_error(op, pairs, n_groups=1)


NETWORKS = {"tanh": (mlp, 2, 3, 1.), "relu": (lambda: mlp(nn.ReLU, 8, 5), 8, 5, 1.5), "conv": (conv, 16, 4, 1.5)}

@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_intervals_cover_in_200_samples(name):
    "Nominal 95% intervals hold the eigenvalue of the population in 86% of the samples or more; the spread is right."
    make, d, c, spread = NETWORKS[name]
    draw = lambda n, seed: drawn(n, seed, c, d, spread)
    model, k, N = trained(make, *draw(400, 0)), 3, 600
    truth = top_eigenpairs(HessianOperator(Objective(model, draw(30_000, 1))), k, tol=1e-4).values
    values, errors, covered = [], [], []
    for seed in range(200):
        op = HessianOperator(Objective(model, draw(N, 100 + seed)), verify=False)
        found = sampling_error(op, top_eigenpairs(op, k + 2, tol=1e-4))
        low, high = found.interval()[:k].T
        covered.append((low < truth) & (truth < high))
        values.append(found.values[:k])
        errors.append(found.standard_error[:k])
    share = torch.stack(covered).double().mean(0)
    ratio = torch.stack(errors).square().mean(0).sqrt() / torch.stack(values).std(0)
    assert (share >= .84).all() and share[0] >= .9 and ((ratio > .8) & (ratio < 1.5)).all(), (share, ratio)

def test_a_matrix_that_draws_its_labels_has_no_shares_and_pairs_of_another_matrix_are_refused():
    "Groups of examples would draw other labels than all of them together."
    X, y = drawn(60, 3)
    objective = Objective(trained(mlp, X, y, 30), (X, y))
    fisher = FisherOperator(objective)
    with pytest.raises(ValueError, match="draws at random"):
        sampling_error(fisher, top_eigenpairs(fisher, 2, tol=1e-3))
    with pytest.raises(ValueError, match="of another matrix"):
        sampling_error(HessianOperator(objective), top_eigenpairs(2 * GGNOperator(objective), 2, tol=1e-3))
