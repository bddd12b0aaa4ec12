"Ordinary minima: the committed table is what it says, and a second implementation finds the same numbers in it."
import csv
import itertools
import math

import numpy as np
import pytest
from scipy.stats import binom, kendalltau, mannwhitneyu

from conftest import HERE
from hessnb.paper.ordinary import (
    MEASURES,
    Minima,
    Resampled,
    decided,
    labels_right,
    leave_one_out,
    over,
    pairs_right,
    sound_from_spoilt,
    tau,
)

TABLE = HERE.parent / "nbs" / "results" / "ordinary.csv"
SETS = ("gauss", "moons", "checkerboard", "mnist1d")


@pytest.fixture(scope="module")
def rows():
    if not TABLE.exists(): pytest.skip("no table")
    with open(TABLE, newline="") as f: return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def sets(rows): return [Resampled(Minima([r for r in rows if r["set"] == s], seed=i)) for i, s in enumerate(SETS)]


@pytest.fixture(scope="module")
def plain(rows):
    "Rows of each set, and its significant pairs (better, worse) of ordinary minima: by loops over the rows."
    found = {}
    for name in SETS:
        mine = [r for r in rows if r["set"] == name]
        pairs = []
        for j, i in itertools.combinations(range(len(mine)), 2):
            if mine[i]["spoilt"] == "1" or mine[j]["spoilt"] == "1": continue
            apart, lead = int(mine[i]["discordant"].split()[j]), int(mine[i]["n_right"]) - int(mine[j]["n_right"])
            b, c = (apart + lead) / 2, (apart - lead) / 2
            assert b >= 0 and c >= 0 and b == int(b)
            if apart and (b - c) ** 2 / (b + c) > 1.96 ** 2: pairs.append((i, j) if lead > 0 else (j, i))
        found[name] = mine, pairs
    return found


def value(row, name): return MEASURES[name][1] * float(row[name] or math.nan)


def test_table_is_complete(rows):
    assert TABLE.stat().st_size < 300_000
    for name in SETS:
        mine = [r for r in rows if r["set"] == name]
        assert sum(r["spoilt"] == "0" for r in mine) >= 60
        assert all(int(r["n_test"]) >= 8000 and abs(float(r["loss"]) / .03 - 1) < .01 for r in mine)
        assert len({r["n_test"] for r in mine}) == 1 and len({r["key"] for r in mine}) == len(mine)


@pytest.mark.parametrize("name", MEASURES)
def test_values_again(name, sets, plain):
    for s in sets:
        mine, pairs = plain[s.minima.name]
        sound = [r for r in mine if r["spoilt"] == "0" and r[name]]
        if not sound: continue
        x, y = [value(r, name) for r in sound], [int(r["n_right"]) for r in sound]
        assert tau(s, name)[0] == pytest.approx(kendalltau(x, y).statistic, abs=1e-12, nan_ok=True)
        votes = [np.sign(value(mine[i], name) - value(mine[j], name)) for i, j in pairs]
        assert pairs_right(s, name)[0] == pytest.approx(np.nanmean([(v + 1) / 2 for v in votes]), abs=1e-12)
        spoilt = [value(r, name) for r in mine if r["spoilt"] == "1" and r[name]]
        if not spoilt: continue
        area = mannwhitneyu(x, spoilt).statistic / len(x) / len(spoilt)
        assert sound_from_spoilt(s, name)[0] == pytest.approx(area, abs=1e-12)


@pytest.mark.parametrize("name", ["complexity_dimension", "margin_10", "param_norm"])
def test_intervals_again(name, sets, plain):
    "Sets are drawn, then rows by their numbers; pairs are found anew in every sample."
    draw, means = np.random.default_rng(5), {"tau": [], "right": [], "spoilt": []}
    known = {}
    for s in sets:
        mine, pairs = plain[s.minima.name]
        better = np.zeros((len(mine),) * 2)
        for i, j in pairs: better[i, j] = 1
        known[s.minima.name] = (np.array([value(r, name) for r in mine]), np.array([int(r["n_right"]) for r in mine]),
                                np.array([r["spoilt"] == "1" for r in mine]), better)
    for _ in range(300):
        got = {key: [] for key in means}
        for pick in draw.choice(SETS, len(SETS)):
            x, y, spoilt, better = known[pick]
            index = draw.choice(np.flatnonzero(~spoilt), (~spoilt).sum())
            other = draw.choice(np.flatnonzero(spoilt), spoilt.sum())
            got["tau"].append(kendalltau(x[index], y[index]).statistic)
            some, sign = better[index][:, index], np.sign(x[index][:, None] - x[index][None])
            got["right"].append(((sign + 1) / 2)[some > 0].mean())
            got["spoilt"].append(mannwhitneyu(x[index], x[other]).statistic / len(index) / len(other))
        for key in means: means[key].append(np.mean(got[key]))
    for key, statistic in (("tau", tau), ("right", pairs_right), ("spoilt", sound_from_spoilt)):
        e, (low, high) = over(sets, statistic, name), np.quantile(means[key], [.025, .975])
        slack = .15 * (high - low) + .01  # of quantiles of 300 samples
        assert abs(e.low - low) < slack and abs(e.high - high) < slack, (key, str(e), low, high)


def test_labels_again(sets, plain):
    "Every number of labels that can tell a pair apart, by SciPy's distributions."
    for s in sets:
        mine, pairs = plain[s.minima.name]
        shares = []
        for i, j in pairs:
            older, younger = min(i, j), max(i, j)
            apart = int(mine[younger]["discordant"].split()[older])
            lead, n = int(mine[i]["n_right"]) - int(mine[j]["n_right"]), int(mine[i]["n_test"])
            D = np.arange(33)
            won = binom.sf(D / 2, D, (apart + lead) / 2 / apart) + binom.pmf(D / 2, D, (apart + lead) / 2 / apart) / 2
            shares.append((binom.pmf(D, 32, apart / n) * won).sum())
        assert labels_right(s.minima, [32])[0] == pytest.approx(np.mean(shares), abs=1e-9)


def test_left_out_again(sets, plain):
    names = ("complexity_dimension", "margin_10", "param_norm", "loss")
    def share(which, name, sign):
        mine, pairs = plain[which]
        return np.mean([(1 + sign * np.sign(value(mine[i], name) - value(mine[j], name))) / 2 for i, j in pairs])
    table = {(w, n, sign): share(w, n, sign) for w in SETS for n in names for sign in (1, -1)}
    found, _ = leave_one_out(sets, names)
    for out in SETS:
        others = lambda case: sum(table[w, *case] for w in SETS if w != out)
        best = max(itertools.product(names, (1, -1)), key=others)
        assert found.each[out] == pytest.approx(table[out, *best])


def test_decisions_again(sets, plain):
    for s in sets:
        mine, pairs = plain[s.minima.name]
        n = right = 0
        for i, j in pairs:
            a, b = ({k: float(mine[k0][f"complexity_{k}"]) for k in ("dimension", "low", "high")} for k0 in (i, j))
            simpler = lambda p, q: (p["high"] < q["low"]
                                    and q["dimension"] >= max(p["dimension"] + 1, 1.15 * p["dimension"]))
            n, right = n + (simpler(a, b) or simpler(b, a)), right + simpler(a, b)
        made, good = decided(s, ["complexity_dimension"])
        assert made[0] == pytest.approx(n / len(pairs))
        assert (math.isnan(good[0]) and not n) or good[0] == pytest.approx(right / n)
