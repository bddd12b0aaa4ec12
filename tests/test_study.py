"The study of the benchmarks folder: its list, its statistics, and that it goes on where it was stopped."
import importlib.util
import math
import sys

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from conftest import HERE

SCRIPT = HERE.parent / "benchmarks" / "study.py"
if not SCRIPT.exists(): pytest.skip("no benchmarks folder", allow_module_level=True)
spec = importlib.util.spec_from_file_location("study", SCRIPT)
study = sys.modules["study"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)


def test_list():
    runs = study.runs()
    assert len(runs) >= 70 and len({r.key for r in runs}) == len(runs)
    for name in {r.dataset for r in runs}:
        mine = [r for r in runs if r.dataset == name]
        assert len(mine) >= (7 if name in study.PLANE else 3) and {"normal", "adversarial"} <= {r.kind for r in mine}
    assert {r.width for r in runs} >= {30, 100, 300} and {r.label_noise for r in runs} == {0., .1}
    assert len({r.seed for r in runs}) > 5


@pytest.mark.parametrize("name", ["moons", "blobs5"])
def test_held_out_points(name):
    data, (X, y) = study.usual(name), study.held_out(name)
    assert len(X) == len(y) == study.N_TEST and torch.cdist(X, data.X_train).min() > 0
    assert y.bincount().min() > .9 * study.N_TEST / data.n_classes
    run = study.Run(name, label_noise=.1, seed=3)
    used = study.data_of(run)
    assert torch.equal(used.X_test, X) and torch.equal(used.y_test, y)
    assert (used.y_train != data.y_train).sum() == round(.1 * len(data.y_train))


@pytest.mark.parametrize("seed", range(3))
def test_tau_is_scipys(seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 6, 25).astype(float)  # with ties
    y = x + rng.integers(0, 8, 25)
    ours = study.kendall(x, y, n_boot=50, seed=seed)
    assert ours.value == pytest.approx(kendalltau(x, y).statistic, abs=1e-12)
    counts = np.random.default_rng(seed).multinomial(25, np.full(25, 1 / 25), 50)
    theirs = [kendalltau(np.repeat(x, c), np.repeat(y, c)).statistic for c in counts]
    assert np.allclose(study.taus(x, y, counts.astype(float)), theirs)
    assert (ours.low, ours.high) == pytest.approx(tuple(np.quantile(theirs, [.025, .975])))


def test_pooled_within_sets():
    rng = np.random.default_rng(0)
    groups = np.repeat(["a", "b", "c", "alone", "flat"], [5, 8, 3, 1, 4])
    x, y = rng.normal(size=21), rng.normal(size=21)
    x[groups == "flat"], x[2], y[7] = 1., np.nan, np.inf  # one of "a" and one of "b" drop out
    keep = {g: [i for i in np.flatnonzero(groups == g) if i not in (2, 7)] for g in "abc"}
    taus, pairs = zip(*((kendalltau(x[i], y[i]).statistic, len(i) * (len(i) - 1) / 2) for i in keep.values()))
    tau = study.kendall(x, y, groups)
    assert tau.value == pytest.approx(np.average(taus, weights=pairs)) and (tau.n, tau.n_groups) == (14, 3)
    shifted = study.kendall(x + 100 * (groups == "b"), y - 100 * (groups == "b"), groups)
    assert shifted == tau  # what differs between the sets does not enter


def test_interval_covers_the_truth():
    "Normal pairs with correlation .6 have tau 2/pi asin(.6) = .41; a 95% interval misses it in about 1 of 20 samples."
    truth, missed = 2 / math.pi * math.asin(.6), 0
    for seed in range(60):
        x, e = np.random.default_rng(seed).normal(size=(2, 50))
        tau = study.kendall(x, .6 * x + .8 * e, n_boot=300, seed=seed)
        missed += not tau.low <= truth <= tau.high
    assert missed <= 9


def test_nothing_to_compare():
    assert study.kendall([1, 1, 1], [1, 2, 3]).n_groups == 0 and math.isnan(study.kendall([1.], [2.]).value)
    with pytest.raises(ValueError, match="length"): study.kendall([1, 2], [1, 2, 3])


@pytest.fixture
def two(monkeypatch):
    runs = [study.Run("blobs2", width=8, n_per_class=10),
            study.Run("blobs2", width=8, seed=1, label_noise=.1, n_per_class=20)]
    monkeypatch.setattr(study, "runs", lambda: runs)
    return runs


def test_goes_on_where_it_stopped(tmp_path, two, monkeypatch, capsys):
    models, out = tmp_path / "models", tmp_path / "study.csv"
    options = ["--models", str(models), "--out", str(out)]
    study.main(["train", "--limit", "1", *options])
    assert [p.stem for p in models.iterdir()] == [two[0].key]
    study.main(["train", *options])
    monkeypatch.setattr(study, "train_one", lambda run: pytest.fail("trained again"))
    study.main(["measure", "--only", "noise0.1", *options])
    assert [row["run"] for row in study.read(out)] == [two[1].key]
    study.main(options)  # trains nothing, measures the other one, prints the statistics
    rows = study.read(out)
    assert [row["run"] for row in rows] == [two[1].key, two[0].key]
    written = out.read_text()
    monkeypatch.setattr(study, "measures", lambda *_: pytest.fail("measured again"))
    study.main(options)
    assert out.read_text() == written and "Kendall" in capsys.readouterr().out
    for row in rows:
        positive = ("lambda_1", "trace", "true_margin", "boundary_length", "param_norm")
        assert min(float(row[name]) for name in positive) > 0
        assert float(row["train_accuracy"]) == 1 and 0 <= float(row["test_error"]) < .5
    assert float(rows[0]["n_train"]) == 20 and rows[0]["label_noise"] == "0.1"


def test_what_fails_to_train_is_recorded(tmp_path, two, monkeypatch, capsys):
    def fail(run): raise RuntimeError("not a minimum: loss 3")
    monkeypatch.setattr(study, "train_one", fail)
    study.train_all(two, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{r.key}.failed" for r in two)
    assert "FAILED" in capsys.readouterr().out


def test_weights_come_back(tmp_path, two):
    minimum, seconds = study.train_one(two[1])
    study.save(tmp_path / "a.pt", two[1], minimum, seconds)
    run, again, data, record = study.load(tmp_path / "a.pt")
    assert run == two[1] and again.train_loss == minimum.train_loss and record["lr"] == minimum.stages[-1].recipe.lr
    a, b = minimum.model(data.X_train), again.model(data.X_train.double())
    assert torch.allclose(a.double(), b, atol=1e-5) and (b.argmax(1) == data.y_train).all()


def test_other_columns_are_refused(tmp_path):
    study.append(tmp_path / "a.csv", {"run": "x", "lambda_1": 1.})
    with pytest.raises(ValueError, match="lambda_2"): study.append(tmp_path / "a.csv", {"run": "y", "lambda_2": 1.})
    assert study.read(tmp_path / "a.csv") == [{"run": "x", "lambda_1": "1.0"}]


def test_unknown_run():
    with pytest.raises(SystemExit, match="nosuchset"): study.main(["list", "--only", "nosuchset"])
