"The paper's experiments: measures against plain formulas, and the committed table's key numbers by a second way."
import collections
import csv
import importlib.util
import statistics
import sys

import pytest
import torch
from torch import nn

from conftest import HERE
from hessnb.curvature.objective import Objective
from hessnb.paper.data import blobs
from hessnb.paper.networks import mlp

SCRIPT = HERE.parent / "benchmarks" / "coverage.py"
TABLE = HERE.parent / "nbs" / "results" / "coverage.csv"


@pytest.fixture(scope="module")
def script():
    if not SCRIPT.exists(): pytest.skip("no benchmarks folder")
    spec = importlib.util.spec_from_file_location("coverage_script", SCRIPT)
    module = sys.modules["coverage_script"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table():
    found = collections.defaultdict(list)
    with open(TABLE, newline="") as f:
        for r in csv.DictReader(f):
            found[r["experiment"], r["case"], int(r["step"]), r["measure"]].append(float(r["value"]))
    return found


def test_shares_are_squared_lengths_of_projections(script):
    V = torch.linalg.qr(torch.randn(40, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0].T
    g = torch.randn(9, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    g = g / g.norm(dim=1, keepdim=True)
    found = script.shares(g @ V.T, 3)
    for name, m in {"1": 1, "C-1": 2, "C": 3, "5": 5, "10": 10, "all": 12}.items():
        projector = V[:m].T @ V[:m]
        assert found[name] == pytest.approx(((g @ projector).norm(dim=1) ** 2).mean().item(), abs=1e-12)


def test_cosines_of_logits_by_autograd(script):
    model, X, y = mlp(2, 3, (5,), seed=0).double(), torch.randn(6, 2, dtype=torch.float64), torch.arange(3).repeat(2)
    rows = []
    for x in X:
        for c in range(3):
            g = torch.autograd.grad(model(x)[c], list(model.parameters()))
            rows.append(torch.cat([t.flatten() for t in g]))
    G = torch.stack([r / r.norm() for r in rows]).reshape(6, 3, -1)
    cases = collections.defaultdict(list)
    for i in range(6):
        for j in range(6):
            for a in range(3):
                for b in range(3):
                    if i != j: cases[a == b, bool(y[i] == y[j])].append((G[i, a] @ G[j, b]).item())
    found = script.logit_cosines(model, X, y, 3)
    for name, key in {"logit_class": (True, True), "logit_other": (True, False), "other_class": (False, True),
                      "other_other": (False, False)}.items():
        assert found[name] == pytest.approx(statistics.fmean(cases[key]), abs=1e-12)


def test_the_paper_s_sum_needs_the_changes_of_prediction(script):
    p = torch.tensor([[0, 0, 1, 1]] * 3)
    assert script.signed_recall(torch.tensor([[1., 1., -1., -1.]] * 3), p) == 1
    assert script.signed_recall(torch.tensor([[1., -1., -1., -1.]] * 3), p) == 0


@pytest.mark.parametrize("loss", ["ce", "mse", "nll", "bce"])
def test_each_loss_is_trained_and_measured(script, loss):
    data = blobs(3, n_per_class=30, seed=0)
    X, model = data.X_train.double(), mlp(2, 3, (8,), seed=0).double()
    if loss == "nll": model.append(nn.LogSoftmax(1))
    reached = script.fit(model, X, data.y_train, 3, loss=loss, adam=.01, goal=.05)
    row = script.judged(model, data, X, loss=loss, k=12)
    assert reached <= .05 and row["loss"] <= .06 and row["train_accuracy"] > .95
    assert 0 < row["boundary_1"] <= row["boundary_5"] <= row["boundary_all"] <= 1 + 1e-9
    assert ("two_sides" in row) == (loss != "bce") and row.get("two_sides", -1) < -.5


def test_thin_resnet_has_eighteen_layers_with_weights(script):
    model = script.thin_resnet18(3, seed=0, width=4)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    shortcuts = [m for m in layers if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(layers) - len(shortcuts) == 18 and model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_dimension_counts_directions(script):
    model = nn.Linear(3, 2, bias=False).double()
    with torch.no_grad(): model.weight.copy_(torch.tensor([[1., 0, 0], [-1., 0, 0]]))
    X = torch.tensor([[.1, 5, 0], [.1, 0, 5], [.1, -5, 0], [.1, 0, -5]], dtype=torch.float64)
    found = script.dimension(Objective(model, (X, torch.zeros(4, dtype=torch.long))), X)
    assert found == pytest.approx(2 / 1.02, rel=.02)  # two equal directions, a noise level of 1%


def test_the_table_says_what_the_page_says(table):
    median = lambda *which: statistics.median(table[which])
    for name in ("gauss", "circles", "moons"):
        names = ("ce", "mse", "bce", "sigmoid", "adam")
        shares = {w: median("variants", f"{name}/{w}", 0, "boundary_5") for w in names}
        assert min(shares, key=shares.get) == "mse" and shares["mse"] > .5
        assert table["variants", f"{name}/ce", 0, "lambda_1"] == pytest.approx(
            table["variants", f"{name}/nll", 0, "lambda_1"], rel=1e-4)
        assert median("rebuilt", name, 0, "true_random5") >= median("rebuilt", name, 0, "true_top5") - .02
    assert median("dynamics", "sgd", 10, "outliers_mirror") == 3 < 7 <= median("dynamics", "adam", 2000, "outliers_gap")
    assert median("subsets", "hierarchical/01", 0, "boundary_inside") > .8
    assert median("subsets", "hierarchical/03", 0, "boundary_inside") < .3
    normal, spoilt = (table["within", c, 0, "complexity"] for c in ("normal", "within"))
    assert all(b > a for a, b in zip(normal, spoilt)) and len(normal) == 4
    deep, shallow = (median("images", f"{n}/127", 0, "boundary_C") for n in ("resnet18", "lenet5"))
    assert deep < .6 < .85 < shallow
    keys = {(e, c) for e, c, *_ in table}
    assert len(keys) == 2 + 18 + 15 + 3 + 3 + 5 + 12 + 3


def test_a_run_goes_on_where_it_stopped(script, tmp_path, monkeypatch):
    calls = []
    def one(case, seed):
        calls.append((case, seed))
        yield 0, "x", 1.
    monkeypatch.setattr(script, "EXPERIMENTS", {"one": (one, ("a", "b"), 2)})
    out = tmp_path / "t.csv"
    for seeds in ("1", "1", "2"): script.main(["--experiments", "one", "--out", str(out), "--seeds", seeds])
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1)] and len(script.read(out)) == 4
