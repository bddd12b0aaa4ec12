"Trained networks whose spectrum was resolved in full by other means (see README.md beside the larger set)."
import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import nn
from torch.testing import assert_close

from conftest import F64, data_files, quiet, seeded
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.top import refine, top_eigenpairs

HERE_ALWAYS = ["gauss_normal_training", "gauss_checkerboard_linear_normal_training_close"]
ELSEWHERE = "gauss_checkerboard_linear_noisy_init_training_close"
FILES = data_files()
FIRST = [*HERE_ALWAYS, ELSEWHERE]
NAMES = [*FIRST, *(name for name in (f.removesuffix(".npz") for f in FILES) if name not in FIRST)]
FLOOR = "rounding floor"


@pytest.fixture(scope="module", params=NAMES)
def network(request):
    "`(operator, data)`: the Hessian of the network and the numbers to compare with."
    if f"{request.param}.npz" not in FILES:
        pytest.skip(f"{request.param}.npz is not here: only two of the reference networks are in the repository")
    data = dict(np.load(FILES[f"{request.param}.npz"]))
    weights = {k.removeprefix("param_"): torch.tensor(v) for k, v in data.items() if k.startswith("param_")}
    layers = [nn.Linear(w.shape[1], w.shape[0]) for n, w in weights.items() if n.endswith("weight")]
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).double().eval()
    with torch.no_grad():
        for p, w in zip(model.parameters(), weights.values()): p.copy_(w)
    op = HessianOperator(Objective(model, (torch.tensor(data["X_train"]), torch.tensor(data["y_train"]))))
    assert op.shape[0] == int(data["n_params"])
    assert_close(op.objective.theta, torch.tensor(data["params_flat"]), rtol=0, atol=0)
    return op, data


def top(data): return float(data["eigenvalues_top60"][0])


def test_logits_and_gradient(network):
    op, data = network
    assert_close(op.objective.predict(data["X_train"]), torch.tensor(data["logits_train"]), rtol=1e-10, atol=1e-10)
    assert op.objective.grad().norm().item() == pytest.approx(float(data["grad_loss_norm"]), rel=1e-8)


def test_top_60(network):
    op, data = network
    with quiet(): pairs = top_eigenpairs(op, 60, tol=1e-7)
    assert pairs.converged.all() and pairs.miss_probability <= 1e-3
    assert (pairs.values - torch.tensor(data["eigenvalues_top60"])).abs().max() <= 1e-9 * top(data)
    given = torch.tensor(data["eigvecs_top5"]).double()
    for i in range(5):
        near = (pairs.values - pairs.values[i]).abs() < 1e-4 * pairs.values[i]
        assert (pairs.vectors[near] @ given[i]).norm() > 1 - 1e-5  # in the span of its neighbours, for they may mix


@pytest.mark.parametrize("which", ["SA", "BE"])
def test_other_ends(network, which):
    op, data = network
    everything = torch.tensor(np.sort(data["eigenvalues_all_nonzero"]))
    with quiet(): values = top_eigenpairs(op, 6, which=which, tol=1e-7).values
    expected = everything[:6] if which == "SA" else torch.cat([everything[-3:].flip(0), everything[:3].flip(0)])
    assert (values - expected).abs().max() <= 1e-9 * top(data)


@pytest.mark.parametrize("seed", range(3))
def test_no_more_products_than_arpack(network, seed):
    op, data = network
    before = op.n_matvecs
    start = np.random.default_rng(seed).standard_normal(op.shape[0])
    theirs = eigsh(op.to_scipy(), k=10, which="LA", tol=1e-6, v0=start, return_eigenvectors=False)
    arpack = op.n_matvecs - before
    pairs = top_eigenpairs(op, 10, tol=1e-6, generator=seeded(seed))
    print(f"{pairs.n_matvecs}+{pairs.n_certify} products, ARPACK {arpack}")
    assert pairs.n_matvecs <= arpack
    assert_close(pairs.values, torch.from_numpy(np.sort(theirs)[::-1].copy()), rtol=1e-7, atol=1e-9 * top(data))


def test_float32_refined(network):
    op, data = network
    with quiet(FLOOR): coarse = top_eigenpairs(HessianOperator(op.objective.to(torch.float32)), 10)
    fine = refine(coarse, op)
    expected = torch.tensor(data["eigenvalues_top60"][:10])
    assert fine.converged.all() and (fine.values - expected).abs().max() <= 1e-9 * top(data)


@pytest.mark.slow
def test_every_nonzero_pair_and_the_trace(network):
    op, data = network
    k = len(data["eigenvalues_all_nonzero"])
    with quiet(FLOOR): pairs = top_eigenpairs(op, k, which="LM", tol=1e-6)
    assert pairs.residuals.max() <= 1e-12 * top(data)
    expected = torch.tensor(np.sort(data["eigenvalues_all_nonzero"]))
    assert (pairs.values.sort().values - expected).abs().max() <= 1e-9 * top(data)
    assert abs(pairs.values.sum().item() - float(data["trace"])) <= 1e-9 * top(data)
    assert (pairs.vectors @ pairs.vectors.T - torch.eye(k, dtype=F64)).abs().max() <= 1e-10


@pytest.mark.slow
def test_trace_of_the_dense_matrix(network):
    op, data = network
    assert abs(op.to_dense().diagonal().sum().item() - float(data["trace"])) <= 1e-9 * top(data)
