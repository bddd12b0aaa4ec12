"The spectral density with its errors, and the count of outliers, on prescribed spectra and trained networks."
import math

import numpy as np
import pytest
import torch
from test_reference import network  # noqa: F401, a fixture
from torch import nn
from torch.testing import assert_close

from conftest import F64, blobs, build, prescribed, randn, seeded, untouched
from hessnb.curvature.density import spectral_density
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.outliers import count_outliers
from hessnb.curvature.top import top_eigenpairs

SPECTRA = {
    "uniform": np.linspace(-1, 2, 150),
    "clusters": np.repeat([-1., .5, .5001, 3.], [40, 50, 40, 20]),
    "low rank": np.concatenate([np.linspace(-.1, .1, 20), [1., 5.], np.zeros(128)]),
    "decay": np.concatenate([2. ** -np.arange(30), -np.linspace(0, .01, 120)]),
    "semicircle": np.sin(np.linspace(-math.pi / 2, math.pi / 2, 150)),
}


@pytest.mark.parametrize("n_deflated", [0, 3])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", SPECTRA)
def test_prescribed_spectra(name, seed, n_deflated):
    values, op = torch.tensor(SPECTRA[name]), prescribed(SPECTRA[name], seed)
    pairs = top_eigenpairs(op, n_deflated) if n_deflated else None
    before = op.n_matvecs
    density = spectral_density(op, pairs=pairs, n_steps=25, n_probes=10, generator=seeded(seed))
    assert density.n_matvecs == op.n_matvecs - before <= 250 and density.P == 150
    at = torch.linspace(values.min() - .1, values.max() + .1, 97, dtype=F64)
    truth = (values[:, None] <= at).double().mean(0)
    e = density.cdf(at)
    assert ((e.value - truth).abs() <= 5 * e.standard_error + e.resolution + 1e-9).all()
    assert_close(e.value[[0, -1]], torch.tensor([0., 1.], dtype=F64))
    assert (e.value.diff() >= -1e-12).all()
    for fn in (torch.square, lambda x: x ** 3 - x, torch.exp):
        m = density.integrate(fn)
        assert abs(m.value - fn(values).mean()) <= 5 * m.standard_error + 1e-9
    assert abs(density.trace.value - values.sum().item()) <= 5 * density.trace.standard_error + 1e-9


@pytest.mark.parametrize("n_deflated", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_standard_errors_are_right(n_deflated):
    "Over many runs the estimates scatter about the truth as their errors say (12 probes: deviation 1.11 is expected)."
    values = np.concatenate([[9., 4.], np.linspace(-1, 1, 58)])
    op = prescribed(values)
    pairs = top_eigenpairs(op, 2) if n_deflated else None
    fns = [lambda d: (d.integrate(torch.square), (values ** 2).mean()),
           lambda d: (d.integrate(torch.exp), np.exp(values).mean())]
    scores = []
    for seed in range(60):
        density = spectral_density(op, pairs=pairs, n_steps=12, n_probes=12, generator=seeded(seed))
        scores.append([((e.value - truth) / e.standard_error).item() for e, truth in (f(density) for f in fns)])
    scores = torch.tensor(scores)
    mean, deviation = scores.mean(0), scores.std(0)
    assert (mean.abs() < .6).all() and ((deviation > .75) & (deviation < 1.6)).all(), (mean, deviation)


def test_the_bound_on_the_quadrature_holds_for_every_probe():
    "Chebyshev-Markov-Stieltjes, one probe at a time: no noise is involved, so it must hold exactly."
    values = torch.tensor(SPECTRA["uniform"])
    Q = torch.linalg.qr(randn(150, 150)).Q
    op = prescribed(values)
    at, tight = torch.linspace(-1.2, 2.2, 301, dtype=F64), 0
    for seed in range(5):
        density = spectral_density(op, n_steps=15, n_probes=2, generator=seeded(seed))
        z = torch.randn(150, generator=seeded(seed), dtype=F64)  # the first probe
        masses = (Q.T @ (z / z.norm())).square()
        truth = (masses[:, None] * (values[:, None] <= at)).sum(0)
        w, t = density.weights[0], density.nodes[0]
        ours = (w[:, None] * (t[:, None] <= at)).sum(0)
        j = (t[:, None] <= at).sum(0)
        padded = torch.cat([w.new_zeros(1), w, w.new_zeros(1)])
        bound = torch.maximum(padded[j], padded[j + 1])
        assert ((ours - truth).abs() <= bound + 1e-12).all()
        tight = max(tight, ((ours - truth).abs() / bound.clamp_min(1e-12)).max().item())
    assert tight > .5, "the bound is idle: it would not notice a wrong quadrature"


@pytest.mark.parametrize("deflated", [0, 8])
def test_reference_networks(network, deflated):
    op, data = network
    P, nonzero = op.shape[0], torch.tensor(data["eigenvalues_all_nonzero"])
    values = torch.cat([nonzero, torch.zeros(P - len(nonzero), dtype=F64)])
    pairs = top_eigenpairs(op, deflated) if deflated else None
    density = spectral_density(op, pairs=pairs, n_steps=80, n_probes=8)
    edge = -nonzero.min().item()
    at = torch.tensor([-.8, -.5, -.2, .2, .5, .8, 1.1, 2., 5.], dtype=F64) * edge
    truth = (values[:, None] > at).sum(0)
    e = density.count_above(at)
    assert ((e.value - truth).abs() <= 4 * e.standard_error + e.resolution).all(), (truth, vars(e))
    assert abs(density.trace.value - float(data["trace"])) <= 4 * density.trace.standard_error
    frobenius = density.integrate(torch.square)
    assert abs(frobenius.value - values.square().mean()) <= 4 * frobenius.standard_error
    if deflated:
        assert (e.resolution[at.abs() > .4 * edge] < .01 * P).all()
        assert_close(density.known, pairs.values)
        assert density.nodes.max() < pairs.values[-1] * (1 + 1e-6), "an eigenvalue that was taken out has come back"


def test_leaves_everything_as_it_was():
    X, y = blobs()
    net = build(lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)))
    op = HessianOperator(Objective(net, (X, y)))
    pairs = top_eigenpairs(op, 3)
    with untouched(net, tensors=[X, pairs.vectors, pairs.values]):
        a, b = (spectral_density(op, pairs=pairs, n_steps=10, n_probes=3, generator=seeded(1)) for _ in range(2))
    assert torch.equal(a.nodes, b.nodes) and torch.equal(a.weights, b.weights)
    single = HessianOperator(op.objective.to(torch.float32))
    single = spectral_density(single, pairs=pairs, n_steps=10, n_probes=3, generator=seeded(1))
    assert single.nodes.dtype == single.weights.dtype == F64
    assert_close(single.integrate(torch.square).value, a.integrate(torch.square).value, rtol=1e-4, atol=1e-8)


COUNTS = {"gauss_normal_training": (5, (4, 7)), "gauss_checkerboard_linear_normal_training_close": (4, (4, 5)),
          "gauss_checkerboard_linear_noisy_init_training_close": (6, (6, 8))}


def test_outliers_of_reference_networks(network, request):
    op, data = network
    name = request.node.callspec.params["network"]
    nonzero = torch.tensor(data["eigenvalues_all_nonzero"]).sort(descending=True).values
    found = count_outliers(nonzero[:25], negative=nonzero[-1])
    assert found.criterion == "mirror" and not found.truncated
    assert found.stability[0] <= found.count <= found.stability[1]
    assert found.edge == -nonzero[-1].item()
    if name in COUNTS: assert (found.count, found.stability) == COUNTS[name]
    gap = count_outliers(nonzero[:25])
    assert gap.criterion == "gap" and gap.threshold < nonzero[0]
    if name in COUNTS: assert gap.count == found.count
    assert count_outliers(nonzero, negative=nonzero[-1]).count == found.count  # all of them instead of 25


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e-3, 7., 1e12])
@pytest.mark.parametrize("negative", [None, -.25, -1e-12, .01])
def test_outliers_are_scale_invariant(scale, negative):
    values = torch.cat([torch.tensor([40., 11., 1.5, .7], dtype=F64), torch.linspace(.24, .1, 20, dtype=F64)])
    a = count_outliers(values, negative=negative)
    b = count_outliers(scale * values, negative=None if negative is None else scale * negative)
    assert (a.count, a.stability, a.criterion, a.truncated) == (b.count, b.stability, b.criterion, b.truncated)
    assert b.edge == pytest.approx(scale * a.edge) and b.threshold == pytest.approx(scale * a.threshold)
    assert b.ratio == pytest.approx(a.ratio)
    assert a.count == 4 and a.criterion == ("mirror" if negative == -.25 else "gap")


def test_outliers_do_not_depend_on_order_or_on_a_null_space():
    values = torch.cat([torch.tensor([9., 5.], dtype=F64), torch.linspace(1, .8, 10, dtype=F64)])
    noise = torch.cat([values, 1e-17 * randn(500).abs()])
    for v in (values, values.flip(0), values.float(), noise[torch.randperm(len(noise), generator=seeded(0))]):
        assert count_outliers(v).count == 2
    assert count_outliers(values, negative=-1.).count == 2 and count_outliers(values, negative=-1., factor=6).count == 1


def test_a_gap_in_the_lower_half_is_reported_and_not_used():
    found = count_outliers(torch.cat([torch.tensor([9., 5.]), torch.linspace(1, .9, 10), torch.tensor([.1])]))
    assert found.count == 2 and found.truncated and "at least 2" in repr(found)


def test_a_saddle_has_no_outliers(): assert count_outliers(torch.tensor([1., .9, .5]), negative=-4.).count == 0
