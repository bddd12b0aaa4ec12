"Ladders: training at once is training one by one, rescaling keeps the function, the script goes on and counts right."
import csv
import importlib.util
import itertools
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import somersd
from torch import nn

from conftest import HERE
from hessnb.boundary.curves import trace_boundary
from hessnb.curvature.objective import Objective
from hessnb.paper.data import ClassificationData
from hessnb.paper.ladders import (
    LADDERS,
    MERGES,
    ladder_data,
    ladder_network,
    rescale_layers,
    separated_pairs,
    train_ensemble,
)
from hessnb.paper.networks import cnn, mlp

SCRIPT = HERE.parent / "benchmarks" / "ladders.py"
RESULTS = HERE.parent / "nbs" / "results"


def imported(path):
    if not path.exists(): pytest.skip("no benchmarks folder")
    spec = importlib.util.spec_from_file_location(f"{path.stem}_script", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script(): return imported(SCRIPT)


@pytest.fixture(scope="module")
def cost(): return imported(SCRIPT.with_name("complexity_cost.py"))


def alone(data, init, activation, level):
    "Torch's Adam on one network until the level is passed, the last step shortened by regula falsi; float64."
    net = ladder_network(data, activation).double()
    X, y = data.X_train.double(), data.y_train
    with torch.no_grad():
        for p in net.parameters(): p.mul_(init)
    flat = lambda: torch.nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    optimizer, last, rate, before = torch.optim.Adam(net.parameters()), math.inf, 1e-3, flat()
    def loss_at(theta):
        torch.nn.utils.vector_to_parameters(theta, net.parameters())
        with torch.no_grad(): return F.cross_entropy(net(X), y).item()
    for t in itertools.count():
        optimizer.zero_grad()
        loss = F.cross_entropy(net(X), y)
        if loss.item() <= level: break
        loss.backward()
        rate = rate * .7 if loss.item() > 1.5 * last else min(rate * 1.002, 5e-3)
        optimizer.param_groups[0]["lr"], last, before = rate, loss.item(), flat()
        optimizer.step()
    after, low, high = flat(), 0., 1.
    for _ in range(40):
        s = (low + high) / 2
        low, high = (s, high) if loss_at(before + s * (after - before)) > level else (low, s)
    return before + high * (after - before), t


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_at_once_is_one_by_one(activation):
    sets = [ladder_data("ring8", 4, seed=s, embed=4) for s in (0, 3)]
    ensemble = train_ensemble(sets, inits=(1, 2), levels=(.3,), build=lambda d: ladder_network(d, activation))
    for s, data in enumerate(sets):
        for f, init in enumerate((1, 2)):
            theta, steps = alone(data, init, activation, .3)
            assert ensemble.steps[0, s, f] == steps
            found = ensemble.weights[0, s, f].double()
            assert (found - theta).norm() < 2e-3 * theta.norm()  # float32 along some twenty steps
            assert abs(ensemble.losses[0, s, f] / .3 - 1) < 1e-3


def test_a_finished_member_stays_as_it_was():
    sets = [ladder_data("ring8", 2, seed=s) for s in range(2)]
    few, many = (train_ensemble(sets, levels=levels) for levels in ((.2,), (.2, .02)))
    assert torch.allclose(few.weights[0], many.weights[0], rtol=1e-5, atol=1e-6)
    assert (many.steps[0] < many.steps[1]).all() and few.seeds == (0, 1)
    with pytest.raises(ValueError, match="level must be one of"): many.model(.1, 0, 1)


def test_images_and_odd_networks():
    generator = torch.Generator().manual_seed(0)
    plane = ladder_data("board", 2, n_train=30, n_test=20)
    images = torch.randn(30, 1, 28, 28, generator=generator)
    data = ClassificationData("images", images, plane.y_train, images[:20], plane.y_train[:20], 2, ("a", "b"))
    ensemble = train_ensemble([data], levels=(.6,), build=lambda d: cnn(2, seed=d.seed), chunk=1)
    net = ensemble.model(.6, 0, 1)
    with torch.no_grad(): assert abs(F.cross_entropy(net(images), data.y_train).item() - .6) < 1e-3
    for c in (.2, 5.):
        with torch.no_grad(): assert torch.allclose(rescale_layers(net, c)(images), net(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("c", [.2, 1., 5.])
def test_rescaling_keeps_the_function_and_moves_the_weights(layer, c):
    net, X = mlp(3, 4, (7, 6), seed=1).double(), torch.randn(20, 3, dtype=torch.float64)
    before = [p.clone() for p in net.parameters()]
    moved = rescale_layers(net, c, layer)
    assert torch.allclose(moved(X), net(X), rtol=1e-12, atol=1e-12)
    factors = {0: (c, c, 1 / c, 1, 1, 1), 1: (1, 1, c, c, 1 / c, 1)}[layer]
    for p, q, r, f in zip(net.parameters(), before, moved.parameters(), factors):
        assert torch.equal(p, q) and torch.allclose(r, f * q, rtol=1e-14)


def test_rescaling_refuses_what_is_not_homogeneous():
    for between in (nn.Tanh(), nn.GELU(), nn.BatchNorm1d(4), nn.Dropout(.5), nn.Softplus()):
        net = nn.Sequential(nn.Linear(3, 4), between, nn.Linear(4, 2))
        with pytest.raises(ValueError, match=type(between).__name__): rescale_layers(net, 2.)


def test_inputs_are_the_same_at_each_rung():
    for family in ("ring8", "ring10", "ring12", "ring12c3", "sectors", "nested"):
        sets = [ladder_data(family, q, seed=5) for q in LADDERS[family].rungs]
        assert all(torch.equal(s.X_train, sets[0].X_train) and torch.equal(s.X_test, sets[0].X_test) for s in sets)
        assert len({tuple(s.y_train.tolist()) for s in sets}) == len(sets)
        assert all(s.y_train.unique().tolist() == list(range(s.n_classes)) for s in sets)


@pytest.mark.parametrize("kind", MERGES)
def test_merged_pairs_counted_one_by_one(kind):
    for sizes in MERGES[kind]:
        group = [i for i, s in enumerate(sizes) for _ in range(s)]
        assert separated_pairs(sizes) == sum(a != b for a, b in itertools.combinations(group, 2))
    rungs = [separated_pairs(sizes) for sizes in MERGES[kind]]
    assert rungs == sorted(set(rungs))


@pytest.mark.parametrize("seed", range(3))
def test_tau_is_scipys(script, seed):
    rng = np.random.default_rng(seed)
    q, seeds = np.repeat([1, 2, 4, 6], 5), np.tile(np.arange(5), 4)
    x = q + rng.integers(0, 4, 20).astype(float)  # with ties
    ours = script.rung_tau(x, q, seeds, n_boot=200)
    assert ours.value == pytest.approx(somersd(q, x).statistic, abs=1e-12)
    counts = np.random.default_rng(0).multinomial(5, np.full(5, 1 / 5), 200)
    theirs = [somersd(np.repeat(q, c[seeds]), np.repeat(x, c[seeds])).statistic for c in counts]
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(theirs, [.025, .975])))
    right = sum(np.sign((x[i] - x[j]) * (q[i] - q[j])) for i, j in itertools.combinations(range(20), 2) if q[i] != q[j])
    assert ours.value == pytest.approx(right / (6 * 25))
    assert script.rung_tau(q + rng.uniform(0, .5, 20), q, seeds).value == 1  # no penalty for order within a rung
    assert math.isnan(script.rung_tau(x, np.ones(20), seeds).value)


class Circles(nn.Module):
    "Two logits that are equal on circles of these radii around the origin; the boundary is theirs alone."
    def __init__(self, *radii):
        super().__init__()
        self.radii = nn.Parameter(torch.tensor(radii, dtype=torch.float64))

    def forward(self, x):
        z = (x.square().sum(1, keepdim=True).sqrt() - self.radii).prod(1, keepdim=True)
        return torch.cat([z, -z], 1)


class Corner(nn.Module):
    "Class 0 in the quarter x > .013, y > .021."
    def __init__(self):
        super().__init__()
        self.at = nn.Parameter(torch.tensor([.013, .021], dtype=torch.float64))

    def forward(self, x):
        z = (x - self.at).amin(1, keepdim=True)
        return torch.cat([z, -z], 1)


class Line(nn.Module):
    "Class 0 where x > 2 y + shift."
    def __init__(self, shift):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(shift, dtype=torch.float64))

    def forward(self, x):
        z = x[:, :1] - 2 * x[:, 1:] - self.shift
        return torch.cat([z, -z], 1)


@pytest.mark.parametrize("model, angle", [(Circles(1.), 2), (Circles(.5, 1.3), 4), (Corner(), .5)])
def test_total_turning_in_closed_form(script, model, angle):
    X = torch.tensor([[0., 0.], [2., 2.], [-2., 2.], [1., -2.]], dtype=torch.float64)
    y = torch.tensor([0, 1, 0, 1])
    curves = trace_boundary(Objective(model, (X, y)), extent=(-2, 2.1, -2.2, 2), n=150)
    assert script.turning(curves) == pytest.approx(angle * math.pi, rel=1e-3)


@pytest.mark.parametrize("shift", [.1234, 1e-7, 3e-9])
def test_a_line_along_corners_of_the_grid_does_not_turn(script, shift):
    X, y = torch.tensor([[1., 0.], [0., 1.]], dtype=torch.float64), torch.tensor([0, 1])
    curves = trace_boundary(Objective(Line(shift), (X, y)), extent=(-2, 2, -2, 2), n=101)
    assert curves.length == pytest.approx(20 ** .5) and script.turning(curves) < 1e-3


def test_script_goes_on_where_it_stopped(script, tmp_path, capsys):
    options = ["--families", "ring8", "--seeds", "1", "--models", str(tmp_path / "m"), "--out", str(tmp_path / "t.csv"),
               "--levels", ".05", "--inits", "1"]
    script.LEVELS, script.INITS, usual = (.05,), (1.,), (script.LEVELS, script.INITS)
    try: script.main(["train", *options])
    finally: script.LEVELS, script.INITS = usual
    cheap = ["measure", *options, "--groups", "basics,points"]
    script.main([*cheap, "--limit", "3"])
    first = script.read(tmp_path / "t.csv")
    assert len(first) == 3 and all(r["lambda_1"] == "" and r["param_norm"] for r in first.values())
    script.main(cheap)
    rows = script.read(tmp_path / "t.csv")
    assert {k: rows[k] for k in first} == first and [int(r["q"]) for r in rows.values()] == [2, 4, 6, 8]
    capsys.readouterr()
    script.main(cheap)
    assert capsys.readouterr().out == "" and not list(tmp_path.glob("*.part"))
    script.main([*cheap, "--scales", ".2"])
    moved = [r for r in script.read(tmp_path / "t.csv").values() if r["scale"] == "0.2"]
    for row in moved:
        usual_row = rows[row["key"].replace("c0.2", "c1")]
        assert row["test_accuracy"] == usual_row["test_accuracy"] and row["linkage_0.1"] == usual_row["linkage_0.1"]
        assert row["param_norm"] != usual_row["param_norm"]
    script.main(["statistics", *options])
    assert "ring8         param_norm" in capsys.readouterr().out


def test_the_measure_of_the_library_is_filled_in(script, tmp_path):
    setting = script.Setting("ring8", 2)
    script.save(tmp_path / "ring8-2-relu-d2.pt", setting, script.train(setting, range(1), (1.,), (.05,)), 0.)
    options = ["measure", "--families", "ring8", "--models", str(tmp_path), "--out", str(tmp_path / "t.csv")]
    script.main([*options, "--groups", "basics"])
    row, = script.read(tmp_path / "t.csv").values()
    assert row["complexity"] == "" and float(row["test_accuracy"]) > .9
    script.main([*options, "--groups", "basics,complexity"])
    filled, = script.read(tmp_path / "t.csv").values()
    value, dimension, low, high = (float(filled[name]) for name in script.COLUMNS["complexity"])
    assert 1 < low <= dimension <= high < 5 and value == round(dimension)
    assert filled == row | {name: filled[name] for name in script.COLUMNS["complexity"]}


def test_a_retrained_network_is_measured_anew(script, tmp_path):
    setting, path, out = script.Setting("ring8", 2), tmp_path / "ring8-2-relu-d2.pt", tmp_path / "t.csv"
    options = ["measure", "--families", "ring8", "--models", str(tmp_path), "--out", str(out), "--groups", "basics"]
    norms = []
    for factor in (1., 1.01):
        ensemble = script.train(setting, range(1), (1.,), (.05,))
        script.save(path, setting, script.replace(ensemble, weights=factor * ensemble.weights,
                                                  losses=factor * ensemble.losses), 0.)
        script.main(options)
        row, = script.read(out).values()
        norms.append(float(row["param_norm"]))
    assert norms[1] == pytest.approx(1.01 * norms[0])


def test_script_lists(script, capsys):
    script.main(["list", "--families", ",".join(script.FAMILIES), "--dims", "2,50", "--networks",
                 "relu,gelu,cnn,cnn1d"])
    keys = capsys.readouterr().out.split()
    plane = sum(len(ladder.rungs) for ladder in LADDERS.values())
    assert len(set(keys)) == len(keys) == 4 * plane + 11 + 3 * 11
    with pytest.raises(SystemExit, match="no families"): script.main(["list", "--families", "rings"])


def stored(name="ladders.csv"):
    "A committed table, row by row."
    with open(RESULTS / name, newline="") as f: return list(csv.DictReader(f))


def counted(x, q):
    "Somers' D given the rung, by counting pairs: a second implementation."
    right = pairs = 0
    for a, p in zip(x, q):
        for b, r in zip(x, q):
            if p < r: right, pairs = right + (a < b) - (a > b), pairs + 1
    return right / pairs


def test_taus_of_the_stored_table(script):
    "Every family, loss and initialisation in the plane: the statistic twice, and what the page promises."
    rows = [r for r in stored() if r["dim"] == "2" and float(r["scale"]) == 1 and r["complexity_dimension"]
            and r["network"] == "relu"]
    cells = {}
    for r in rows: cells.setdefault((r["family"], float(r["level"]), float(r["init"])), []).append(r)
    assert len({family for family, _, _ in cells}) == 8
    for key, mine in cells.items():
        q, x = ([float(r[name]) for r in mine] for name in ("q", "complexity_dimension"))
        tau = script.rung_tau(x, q, [r["seed"] for r in mine])
        assert tau.value == pytest.approx(counted(x, q), abs=1e-12) and tau.value > .9, (key, tau)
        assert len(mine) == 10 * len(set(q)), key
        assert all(float(r["complexity_low"]) <= a <= float(r["complexity_high"]) for a, r in zip(x, mine))
        assert all(float(r["complexity"]) == round(a) for a, r in zip(x, mine))


def test_rescaled_networks_in_the_stored_table():
    "A layer times 1/5 and 5: the same count, to the last digit that rounding leaves."
    names = ("family", "q", "network", "dim", "seed", "level", "init", "scale")
    rows = {tuple(r[k] for k in names): r for r in stored()}
    found = 0
    for key, r in rows.items():
        if float(r["scale"]) == 1: continue
        usual = rows[(*key[:-1], next(s for *_, s in rows if float(s) == 1))]
        assert float(r["complexity_dimension"]) == pytest.approx(float(usual["complexity_dimension"]), rel=1e-4)
        found += 1
    assert found > 100


def test_one_at_a_time_is_together():
    "Members in a loop, as for CNNs, and in one batched product."
    sets = [ladder_data("ring8", 4, seed=s) for s in range(2)]
    loop, together = (train_ensemble(sets, levels=(.3,), chunk=chunk) for chunk in (1, None))
    assert torch.equal(loop.steps, together.steps)
    assert torch.allclose(loop.weights, together.weights, rtol=1e-3, atol=1e-4)


def test_twins_are_one_training(script, tmp_path, monkeypatch):
    "The same merge as a rung of both kinds: its networks are taken over."
    a, b = script.Setting("digits-many", 25, "cnn", 0), script.Setting("digits-two", 25, "cnn", 0)
    assert a.twins == [b] and b.twins == [a] and a.sizes == b.sizes == (5, 5)
    assert not script.Setting("digits-two", 16, "cnn", 0).twins and not script.Setting("ring8", 2).twins
    ensemble = script.train(script.Setting("ring8", 2), range(1), (1.,), (.3,))
    script.save(tmp_path / f"{a.key}.pt", a, ensemble, 0.)
    monkeypatch.setattr(script, "load", lambda path: (a, ensemble))
    script.train_all([b], script.argparse.Namespace(models=tmp_path, seeds=1))
    record = torch.load(tmp_path / f"{b.key}.pt", weights_only=True)
    assert record["setting"]["family"] == "digits-two" and torch.equal(record["weights"], ensemble.weights)


def complete(rows, column, seeds=3):
    "Cells (family, network, dim, level, init) of the table in which every rung has the column for some seeds."
    cells = {}
    for r in rows:
        if r[column] and float(r["scale"]) == 1:
            cells.setdefault((r["family"], r["network"], r["dim"], float(r["level"]), float(r["init"])), []).append(r)
    whole = lambda family, mine: all(sum(int(r["q"]) == q for r in mine) >= seeds for q in rungs(family))
    return {key: mine for key, mine in cells.items() if whole(key[0], mine)}


def rungs(family):
    return LADDERS[family].rungs if family in LADDERS else [separated_pairs(s) for s in MERGES[family.split("-")[1]]]


@pytest.mark.parametrize("column", ["complexity_dimension", "outliers_mirror", "outliers_gap", "lambda_1", "trace",
                                    "linkage_0.1"])
def test_every_tau_of_the_stored_table_twice(script, column):
    "Also of smooth networks, images and signals: the statistic of the page against pairs counted one by one."
    cells = complete(stored(), column)
    assert len(cells) >= 8
    for key, mine in cells.items():
        q, x = ([float(r[name]) for r in mine] for name in ("q", column))
        tau = script.rung_tau(x, q, [r["seed"] for r in mine], n_boot=50)
        assert tau.value == pytest.approx(counted(x, q), abs=1e-12) and tau.low - 1e-9 <= tau.value <= tau.high + 1e-9


def test_outliers_of_the_stored_table():
    "The claim is there for every family; a count that could be higher says so, and more pairs were tried for it."
    rows = [r for r in stored() if r["outliers_mirror"]]
    cells = complete(rows, "outliers_mirror")
    assert {family for family, _, dim, level, init in cells if (dim, level, init) == ("2", .005, 1)} == set(LADDERS)
    for r in rows:
        assert int(r["outliers_mirror"]) <= int(r["n_pairs"]) and int(r["n_converged"]) <= int(r["n_pairs"])
        assert int(r["mirror_truncated"]) == (r["outliers_mirror"] == r["n_pairs"])
        if r["mirror_truncated"] == "1" and (r["level"], r["init"]) == ("0.005", "1.0"): assert int(r["n_pairs"]) > 40


def test_counts_of_the_cost_script(cost):
    "Predictions and gradients, against a count inside of the network."
    plane, seen = ladder_data("ring8", 4), dict(predictions=0)
    class Counting(nn.Sequential):
        def forward(self, x):
            if not torch._C._functorch.is_functorch_wrapped_tensor(x): seen["predictions"] += len(x)
            return super().forward(x)
    objective = Objective(Counting(*ladder_network(plane)), (plane.X_train, plane.y_train))
    seen["predictions"] = 0
    with cost.counting(objective) as counts: found = cost.boundary_complexity(objective, plane.X_train, n=20)
    assert counts == dict(predictions=seen["predictions"], gradients=len(found.points)) and len(found.points) > 10


def test_stored_costs(cost):
    "At most three passes for 5,000 examples, however they are counted; no more memory for 10,000 than for 5,000."
    rows = {r["case"]: r for r in stored("complexity_cost.csv")}
    assert tuple(rows) == cost.CASES and tuple(rows["5000"]) == cost.HEADER
    for r in rows.values():
        n, predicted, taken = (int(r[name]) for name in ("examples", "predictions", "gradients"))
        for name, passes in (("predicted", predicted), ("forward", predicted + taken), ("all", predicted + 3 * taken)):
            assert float(r[f"passes_{name}"]) == pytest.approx(passes / n, abs=1e-3)
    assert all(float(rows[case]["passes_all"]) <= 3 for case in ("5000", "5000-float64", "10000"))
    assert float(rows["10000"]["memory_mib"]) < 1.2 * float(rows["5000"]["memory_mib"])
    assert int(rows["resnet18"]["parameters"]) > 11e6
