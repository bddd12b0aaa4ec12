"Percentiles of the examples' distances: closed forms, and distances on a dense grid."
import numpy as np
import pytest
import torch
from torch import nn

from conftest import F64, data_files, randn, seeded
from hessnb.boundary.margin_profile import margin_profile
from hessnb.paper.networks import mlp

LEVELS = (0., .05, .1, .25, .5, .9)


def linear(n_classes, D, N, dtype=F64, seed=0):
    "A linear model, inputs, and their distances: over the other classes, lead by the length of the weights' gap."
    model = nn.Linear(D, n_classes).to(F64)
    with torch.no_grad():
        model.weight.copy_(torch.randn(n_classes, D, generator=seeded(seed), dtype=F64))
        model.bias.copy_(.3 * torch.randn(n_classes, generator=seeded(seed + 1), dtype=F64))
    X = randn(N, D, seed=seed + 2)
    out = model(X).detach()
    y = out.argmax(1)
    lengths = (model.weight[y][:, None] - model.weight).norm(dim=2).detach()
    lead = out.gather(1, y[:, None]) - out
    distances = torch.where(lengths > 0, lead / lengths.clamp_min(1e-300), torch.inf).amin(1)
    return model.to(dtype), X.to(dtype), y, distances


@pytest.mark.parametrize("n_classes, D, N", [(2, 3, 80), (2, 3, 400), (5, 4, 300), (3, 20, 90)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_linear_models(n_classes, D, N, dtype):
    model, X, y, truth = linear(n_classes, D, N, dtype)
    profile = margin_profile(model, X, data=(X, y), levels=LEVELS)
    assert profile.exact == (N <= 100)
    for q, value, (low, high) in zip(LEVELS, profile.values.tolist(), profile.intervals.tolist()):
        assert value == pytest.approx(truth.quantile(q).item(), rel=.01, abs=1e-5), q
        assert low <= value * 1.0001 and value <= high * 1.0001
    assert profile[.5] == profile.values[4].item() and "examples searched" in repr(profile)


@pytest.mark.parametrize("name", [name for name in data_files() if "checkerboard" in name])
def test_reference_networks(name):
    "Distances of all training points on a dense grid, computed elsewhere."
    with np.load(data_files()[name]) as file: z = {k: file[k] for k in file.files}
    model = mlp(2, 2).double()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(z["params_flat"]).double(), model.parameters())
    X, y = torch.from_numpy(z["X_train"]).double(), torch.from_numpy(z["y_train"]).long()
    truth = torch.from_numpy(z["margin_true_dist"]).double()
    profile = margin_profile(model, X, data=(X, y), n_exact=10)
    assert not profile.exact
    for q, value in zip(profile.levels, profile.values.tolist()):
        assert value == pytest.approx(truth.quantile(q).item(), rel=.06), q


@pytest.mark.parametrize("n", [15, pytest.param(150, marks=pytest.mark.slow)])
def test_intervals_cover(n):
    "Over draws of 100 examples; the median and two percentiles of the distribution."
    model, X, y, truth = linear(3, 4, 30_000)
    inside = torch.zeros(3)
    for draw in torch.arange(100 * n).split(100):
        profile = margin_profile(model, X[draw], data=(X[draw], y[draw]), levels=(.1, .25, .5), n_exact=0, tol=1e-2,
                                 n_searched=10)
        for i, q in enumerate(profile.levels):
            inside[i] += bool(profile.intervals[i, 0] <= truth.quantile(q) <= profile.intervals[i, 1])
    assert (inside / n > .95 - .02 - 2.6 * (.95 * .05 / n) ** .5).all(), inside / n


@pytest.mark.parametrize("keywords, message", [(dict(levels=(1.,)), "levels must lie"), (dict(levels=()), "levels"),
                                               (dict(level=0.), "level must"), (dict(n_searched=9), "at least 10")])
def test_bad_arguments(keywords, message):
    model, X, y, _ = linear(2, 3, 20)
    with pytest.raises(ValueError, match=message): margin_profile(model, X, data=(X, y), **keywords)


def test_a_regression_has_none():
    X = randn(20, 3)
    with pytest.raises((TypeError, ValueError), match="class"):
        margin_profile(nn.Linear(3, 1).double(), X, data=(X, X[:, :1]), loss=nn.MSELoss())


@pytest.mark.parametrize("N", [20, 150])
def test_no_other_class_is_met(N):
    "A model that says the same everywhere: every distance is infinite, none is NaN."
    model = nn.Linear(2, 3).double()
    with torch.no_grad(): model.weight.zero_(); model.bias.copy_(torch.tensor([1., 0., 0.]))
    X = randn(N, 2)
    profile = margin_profile(model, X, data=(X, torch.zeros(N).long()))
    assert all(value > 1e300 for value in profile.values.tolist()), profile
