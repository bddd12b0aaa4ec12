"The recipes on the top space: what their scripts compute, and what their tables say."
import csv
import importlib.util
import sys
from collections import defaultdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import jensenshannon
from torch import nn
from torch.testing import assert_close

from conftest import F64, HERE, build, quiet, randn, seeded
from hessnb.curvature.eigenpairs import dense_eigenpairs
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective


def loaded(name):
    path = HERE.parent / "benchmarks" / f"{name}.py"
    if not path.exists(): pytest.skip("no benchmarks folder")
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(name):
    with open(HERE.parent / "nbs" / "results" / f"{name}.csv", newline="") as f: return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def space(): return loaded("top_space")


@pytest.fixture(scope="module")
def pairs(): return loaded("class_pairs")


@pytest.fixture(scope="module")
def balance(): return loaded("rebalance")


# --- inside and outside of the top space --------------------------------------------------------------
def test_updates_lie_where_they_should(space):
    "After the ways part: in the span of the ten largest dense eigenvectors at that place, orthogonal to it, or random."
    X, y = randn(120, 8, seed=1), torch.arange(120) % 10
    X[torch.arange(120), y % 8] += 2
    setup = space.Setup(1, .5, 3, 1, 1, 1, 1)
    moved = {}
    for run in space.RUNS:
        model = build(lambda: nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 10)))
        steps = [(theta.clone(), g) for _, theta, g in space.descend(model, X, y, setup, run, 0)]
        moved[run] = steps[-1][0] - steps[-2][0]
        assert_close(nn.utils.parameters_to_vector(model.parameters()).detach(), steps[-1][0], rtol=0, atol=0)
    theta, g = steps[-2]
    with quiet("rounding floor"):  # of the eigenvalues near zero
        V = dense_eigenpairs(HessianOperator(Objective(model, (X, y)).at(theta))).vectors
    part = lambda v, k: space.share(V[:k], v)
    assert_close(moved["sgd"], -.5 * g, rtol=1e-9, atol=1e-12)
    assert part(moved["top"], 14) > .999 and part(moved["bulk"], 6) < .001  # the space ends somewhere between them
    assert .1 < part(g, 6) and part(g, 14) < .99
    assert_close(moved["top"] + moved["bulk"], moved["sgd"], rtol=0, atol=1e-2 * moved["sgd"].norm().item())
    assert moved["random"].norm() < .8 * moved["sgd"].norm()
    cosines = F.cosine_similarity(V[:10], g[None])
    assert space.share(V[:10], g) == pytest.approx(cosines.square().sum().item())


def test_table_of_the_top_space(space):
    "More than half of the gradient in it, less than a quarter of the progress; outside of it three quarters or more."
    found = defaultdict(dict)
    for r in rows_of("top_space"):
        found[r["network"], r["run"], r["measure"], int(r["seed"])][int(r["step"])] = float(r["value"])
    for network, setup in space.SETUPS.items():
        fallen = {run: [] for run in space.RUNS}
        for seed in range(setup.seeds):
            late = [x for step, x in found[network, "sgd", "share", seed].items() if step >= setup.before]
            assert np.mean(late) > .5
            for run in space.RUNS:
                loss = found[network, run, "loss", seed]
                end = np.mean([loss[step] for step in sorted(loss)[-5:]])
                fallen[run].append(loss[setup.before] - end)
        relative = {run: np.array(x) / np.array(fallen["sgd"]) for run, x in fallen.items()}
        assert relative["top"].mean() < .25 and relative["bulk"].mean() > .75
        assert (relative["bulk"] > relative["top"]).all()
        start = [found[network, run, "loss", 0][setup.before] for run in space.RUNS]
        assert max(start) == min(start)  # they part from one place


# --- class means --------------------------------------------------------------------------------------
def test_means_of_logits_gradients(pairs):
    X, y = randn(60, 6, seed=2), torch.arange(60) % 10
    model = build(lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 10)))
    means = pairs.logit_means(model, X, y)
    params = dict(model.named_parameters())
    one = lambda p, x: torch.func.functional_call(model, p, x[None])[0]
    jacobian = torch.func.vmap(torch.func.jacrev(one), in_dims=(None, 0))(params, X)
    each = torch.cat([jacobian[name].flatten(2) for name in params], 2)  # (N, C, P)
    for c in range(10): assert_close(means[c], each[y == c].mean(0), rtol=1e-9, atol=1e-12)
    chosen = pairs.one_of_each(model, X, y, seeded(0))
    slopes = model(X).softmax(1) - F.one_hot(y, 10)
    losses = torch.einsum("nc,ncp->np", slopes.detach(), each)
    for c in range(10): assert (losses[y == c] - chosen[c]).norm(dim=1).min() < 1e-9


def test_shares_are_those_of_least_squares(pairs):
    A, V = randn(6, 40, seed=3), torch.linalg.qr(randn(40, 5, seed=4)).Q.T
    A[5] = A[0] - 1e3 * A[1]
    rank, shares = pairs.explained(A * torch.logspace(-6, 6, 6, dtype=F64)[:, None], V)
    residual = V.T - A[:5].T @ torch.linalg.lstsq(A[:5].T, V.T).solution
    assert rank == 5
    assert_close(shares, 1 - residual.square().sum(0), rtol=1e-6, atol=1e-9)


def test_table_of_class_means(pairs):
    "Class means hold nearly all of the first nine and nothing of the next ten; random groups and examples do not."
    found = defaultdict(list)
    for r in rows_of("class_pairs"):
        part = "top" if 1 <= int(r["pair"]) <= 9 else "below" if int(r["pair"]) > 10 else ""
        last = int(r["step"]) == pairs.SETUPS[r["network"]].steps[-1]
        if part and last: found[r["network"], r["span"], part].append(float(r["explained"]))
    for network, setup in pairs.SETUPS.items():
        mean = {key[1:]: np.mean(x) for key, x in found.items() if key[0] == network}
        assert len(found[network, "class", "top"]) == 9 * setup.seeds
        assert mean["class", "top"] > .95 and mean["class", "below"] < .05 and min(found[network, "class", "top"]) > .8
        assert mean["shuffled class", "top"] < .7 and mean["examples", "top"] < .85 and mean["random", "top"] < .01
        assert mean["pair", "top"] - mean["shuffled pair", "top"] < .05
        assert .02 < mean["pair", "below"] - mean["shuffled pair", "below"] < .15


# --- moves along the spikes ---------------------------------------------------------------------------
def test_moves_stay_in_the_ball_and_even_out(balance):
    X, y = randn(300, 4, seed=5).float(), torch.arange(300) % 3
    X[torch.arange(300), y] += 1.5
    model = build(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))).float()
    with torch.no_grad(): model[2].bias += torch.tensor([1., 0, -1])
    optimizer = torch.optim.SGD(model.parameters(), .05)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(model(X), y).backward()
        optimizer.step()
    mover = balance.Mover(model)
    start = mover.accuracies(mover.theta, (X, y))
    predicted = model(X).argmax(1)
    assert_close(start, torch.stack([(predicted[y == c] == c).double().mean() for c in range(3)]), rtol=1e-12, atol=0)
    biases = torch.eye(len(mover.theta))[-3:]
    for radius in (.3, 2.):
        a = balance.rebalanced(mover, biases, radius, (X, y))
        found = mover.accuracies(mover.theta + a @ biases, (X, y))
        assert a.norm() <= radius * (1 + 1e-6)
        assert balance.spread(found) < balance.spread(start) and found.mean() >= start.mean() - 1e-9
    assert not balance.rebalanced(mover, biases, 1e-9, (X, y)).any()


def test_splits_do_not_share_an_image(balance):
    data = balance.split(balance.sizes_of("unequal", 3), 3)
    n = torch.bincount(data.train[1])
    assert sorted(n.tolist())[0] == 10 and n.max() == 100 and len(data.search[1]) == len(data.judge[1]) == 2000
    images = {row.numpy().tobytes() for X, _ in (data.train, data.search, data.judge) for row in X}
    assert len(images) == len(data.train[1]) + 4000


def test_table_of_moves(balance):
    found, counts = defaultdict(dict), defaultdict(list)
    for r in rows_of("rebalance"):
        found[r["part"], r["directions"], float(r["radius"]), r["measure"]][int(r["seed"])] = float(r["value"])
        if r["measure"] == "gap rule": counts[int(r["classes"])].append(int(r["value"]))
    of = lambda *key: np.array([found[key][seed] for seed in range(balance.SEEDS)])
    assert len(counts[10]) == balance.SEEDS and set(counts[10]) == {9}
    assert all(np.mean(np.array(counts[c]) == c - 1) >= .75 for c in (3, 5, 7))
    rest = of("unequal", "none", 0., "spread judge")
    left = {name: (of("unequal", name, 1., "spread judge") / rest).mean()
            for name in ("top", "next", "further", "random", "biases")}
    assert left.pop("top") < .5 and min(left.values()) > .8
    assert of("unequal", "biases", 8., "spread judge").mean() < .5 * rest.mean()
    gained = of("unequal", "top", 1., "accuracy judge") - of("unequal", "none", 0., "accuracy judge")
    assert gained.mean() > 0 and (of("unequal", "top", 1., "distance") <= 1 + 1e-4).all()
    for part in ("unequal", "equal"):  # what is sought falls as the ball grows, at the mean accuracy that was there
        before = of(part, "none", 0., "spread search")
        for radius in balance.RADII:
            now = of(part, "top", radius, "spread search")
            assert (now <= before + 1e-9).all()
            assert (of(part, "top", radius, "accuracy search") >= of(part, "none", 0., "accuracy search") - 1e-5).all()
            before = now


# --- blocks -------------------------------------------------------------------------------------------
def test_distances_of_densities():
    "Those of SciPy; bins hold all the mass, the sign of an eigenvalue counts, and a smoothed density lies where it is."
    script = loaded("layers_alike")
    p, q = (randn(30, seed=i).exp() for i in (6, 7))
    p, q = p / p.sum(), q / q.sum()
    assert script.jensen_shannon(p, q) == pytest.approx(jensenshannon(p.numpy(), q.numpy(), 2))
    assert script.jensen_shannon(p, p) == pytest.approx(0, abs=1e-6)
    nodes, weights = torch.tensor([[-2., 0, 1e-12, .5, 2.]], dtype=F64), torch.tensor([[.1, .2, .1, .2, .4]], dtype=F64)
    bins, n = script.shares(nodes, weights, 2.), len(script.EDGES)
    assert bins.sum() == pytest.approx(1) and bins[n - 1] == pytest.approx(.3)
    assert bins[0] == pytest.approx(.1) and bins[-1] == pytest.approx(.4)
    assert_close(script.shares(-nodes, weights, 2.), bins.flip(0))
    smooth = script.smoothed(nodes, weights, 2.)
    assert (smooth * script.GRID).sum() == pytest.approx(.35, abs=1e-6)  # (-.1 2 + .2 .5 + .4 2) / 2


def test_table_of_blocks():
    "The largest eigenvalues of an encoder's blocks lie farther apart than a VGG's at the start, in every seed."
    found = defaultdict(list)
    for r in rows_of("layers_alike"):
        kind = "floor" if r["block"] == r["other"] else "pairs"
        found[r["network"], r["stage"], r["measure"], kind, r["seed"]].append(float(r["value"]))
    seeds = sorted({key[-1] for key in found})
    ratio = {n: [max(x) / min(x) for s in seeds for x in [found[n, "start", "largest", "pairs", s]]]
             for n in ("vgg", "encoder", "encoder on digits")}
    assert len(seeds) == 3 and min(ratio["encoder"] + ratio["encoder on digits"]) > 10 * max(ratio["vgg"])
    mean = lambda n, kind: np.mean([found[n, "start", "linear shape", kind, s] for s in seeds])
    assert mean("vgg", "floor") < mean("vgg", "pairs") < mean("encoder", "pairs")
    assert [len(found["vgg", "start", "log", kind, "0"]) for kind in ("pairs", "floor")] == [15, 6]
