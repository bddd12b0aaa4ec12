"Wrong labels: scores on examples that are known, and the table's key numbers by a second way."
import collections
import csv
import importlib.util
import statistics
import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from conftest import HERE
from hessnb.paper.data import blobs

SCRIPT = HERE.parent / "benchmarks" / "wrong_labels.py"
TABLE = HERE.parent / "nbs" / "results" / "wrong_labels.csv"


@pytest.fixture(scope="module")
def script():
    if not SCRIPT.exists(): pytest.skip("no benchmarks folder")
    spec = importlib.util.spec_from_file_location("wrong_labels_script", SCRIPT)
    module = sys.modules["wrong_labels_script"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def table():
    found = collections.defaultdict(dict)
    with open(TABLE, newline="") as f:
        for row in csv.DictReader(f): found[row["score"], row["share"]][row["seed"]] = float(row["auc"])
    return found


def test_the_area_is_that_of_scikit_learn(script):
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        score, wrong = torch.randint(0, 9, (60,), generator=g).double(), torch.rand(60, generator=g) < .3
        assert script.auc(score, wrong) == pytest.approx(roc_auc_score(wrong.numpy(), score.numpy()), abs=1e-12)


def test_margins_and_losses_by_hand(script):
    logits, y = torch.randn(4, 7, 10, generator=torch.Generator().manual_seed(1)), torch.arange(7)
    for e in range(4):
        for i in range(7):
            z = logits[e, i].double().numpy()
            margin = z[y[i]] - np.delete(z, int(y[i])).max()
            assert script.given_margin(logits, y)[e, i].item() == pytest.approx(margin, abs=1e-6)
            loss = np.log(np.exp(z).sum()) - z[y[i]]
            assert script.losses(logits, y)[e, i].item() == pytest.approx(loss, abs=1e-5)


def test_confident_learning_prefers_a_label_that_another_class_explains(script):
    p, y = torch.full((20, 10), .02), torch.arange(10).repeat(2)
    p[torch.arange(20), y] = .82
    p[3] = torch.full((10,), .02)
    p[3, 7] = .82  # called 3, looks like 7
    assert script.confident(p, y).argmax() == 3


def test_neighbours_leave_out_the_example_itself(script):
    X, y = torch.cat([torch.zeros(12, 2), torch.ones(12, 2)]), torch.arange(2).repeat_interleave(12)
    y[0] = 1
    found = script.neighbours_disagree(-torch.cdist(X, X), y)
    assert found[0] == 1 and found[12:].max() == 0 and found[1:12].max() <= .1 + 1e-9


def test_the_table_is_whole_and_says_what_the_page_says(table):
    assert len(table) == 39 and all(len(seeds) == 8 for seeds in table.values())
    mean = lambda score, share: statistics.fmean(table[score, share].values())
    for share in ("0.05", "0.1", "0.2"):
        assert abs(mean("|alignment with v1|", share) - .5) < .05 and mean("projection on the top C", share) < .6
        wins = sum(table["loss over epochs", share][s] > table["AUM", share][s] for s in map(str, range(8)))
        assert wins >= 7 and mean("cosines of gradients", share) < mean("AUM", share)
    assert mean("cosines, stopped early", "0.2") > mean("AUM", "0.2")


def test_a_run_goes_on_where_it_stopped(script, tmp_path, monkeypatch):
    calls = []
    def scores(X, y, seed):
        calls.append((seed, len(y)))
        return {"one": ("end", torch.arange(len(y)).double())}
    monkeypatch.setattr(script, "scores", scores)
    monkeypatch.setattr(script, "mnist_digits", lambda digits, n_per_class, seed: blobs(3, seed=seed))
    out = tmp_path / "t.csv"
    for seeds in ("1", "1", "2"): script.main(["--out", str(out), "--seeds", seeds])
    assert [c[0] for c in calls] == [0, 0, 0, 1, 1, 1] and len(script.read(out)) == 6
