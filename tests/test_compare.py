"When a comparison decides, what it says, and what it warns of."
import csv
import itertools
import math
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from conftest import build, randn
from hessnb.boundary.columns import Missing
from hessnb.boundary.compare import Comparison, compare_minima, simpler, wider
from hessnb.boundary.complexity import boundary_complexity
from hessnb.boundary.examine import examine
from hessnb.curvature.objective import Objective

LADDERS = Path(__file__).parent.parent / "nbs" / "results" / "ladders.csv"
X, Y = randn(400, 2), (torch.arange(400) % 3)
Y = (X[:, 0] > 0).long() + (X[:, 1] > .3).long()


def network(width=8, seed=0, act=nn.Tanh):
    return build(lambda: nn.Sequential(nn.Linear(2, width), act(), nn.Linear(width, 3)), seed)


@pytest.fixture(scope="module")
def examined(): return examine(network(), (X[:60], Y[:60]), k=3, pairs=6)


def takes(dimension, low, high): return SimpleNamespace(dimension=dimension, interval=(low, high))


def minimum(e, dimension, reach, margin, **other):
    complexity = replace(e.complexity, dimension=dimension, interval=(dimension - reach, dimension + reach))
    return replace(e, complexity=complexity, margin=replace(e.margin, value=margin), **other)


def ladders():
    "Networks by family, level of the loss and initialisation, then by rung: their directions with the interval."
    groups = {}
    for row in csv.DictReader(LADDERS.open()):
        if row["network"] != "relu" or row["dim"] == "0": continue  # merged digits and signals, smooth networks
        if float(row["scale"]) != 1 or not row["complexity_low"]: continue
        place = groups.setdefault((row["family"], row["dim"], row["level"], row["init"]), {})
        numbers = (float(row[f"complexity_{name}"]) for name in ("dimension", "low", "high"))
        place.setdefault(int(row["q"]), []).append(takes(*numbers))
    return groups


def test_networks_of_one_complexity_are_rarely_told_apart():
    "Other seeds of one rung: at most 5% of the pairs in every family; intervals that are apart alone: far more."
    decided, apart = {}, []
    for (family, dim, *_), rungs in ladders().items():
        for same in rungs.values():
            pairs = list(itertools.combinations(same, 2))
            decided.setdefault((family, dim), []).extend(simpler(a, b) or simpler(b, a) for a, b in pairs)
            apart += [a.interval[1] < b.interval[0] or b.interval[1] < a.interval[0] for a, b in pairs]
    shares = {family: sum(each) / len(each) for family, each in decided.items()}
    assert len(shares) == 12 and max(shares.values()) < .055 and sorted(shares.values())[-2] < .05
    everything = list(itertools.chain(*decided.values()))
    assert sum(everything) / len(everything) < .025 and .25 < sum(apart) / len(apart) < .35


def test_neighbouring_rungs_are_told_apart_rightly():
    right, wrong, n = 0, 0, 0
    for rungs in ladders().values():
        for p, q in itertools.pairwise(sorted(rungs)):
            for a, b in itertools.product(rungs[p], rungs[q]):
                right, wrong, n = right + simpler(a, b), wrong + simpler(b, a), n + 1
    assert right > .7 * n and wrong < .001 * n and n > 25_000


def test_other_draws_of_the_points_are_not_told_apart():
    "One network, points from other seeds: the numbers differ, and no more than 5% of the pairs are decided."
    objective = Objective(network(30, act=nn.ReLU), (X, Y)).to(torch.float64)
    draws = [boundary_complexity(objective, X, n=40, generator=torch.Generator().manual_seed(s)) for s in range(12)]
    pairs = list(itertools.combinations(draws, 2))
    apart = sum(a.interval[1] < b.interval[0] or b.interval[1] < a.interval[0] for a, b in pairs)
    assert len({c.dimension for c in draws}) == 12 and apart <= .05 * len(pairs)
    assert not any(simpler(a, b) or simpler(b, a) for a, b in pairs)


def test_both_conditions():
    assert simpler(takes(4., 3.8, 4.2), takes(5., 4.3, 5.7)) and not simpler(takes(5., 4.3, 5.7), takes(4., 3.8, 4.2))
    assert not simpler(takes(8., 7., 9.), takes(9.9, 8.9, 10.9))  # the intervals overlap
    assert not simpler(takes(4., 3.9, 4.1), takes(4.9, 4.8, 5.)) and not simpler(takes(9., 8.9, 9.1),
                                                                                 takes(10.1, 10., 10.2))  # too near
    assert wider(SimpleNamespace(value=.511), SimpleNamespace(value=.5))
    assert not wider(SimpleNamespace(value=.509), SimpleNamespace(value=.5))


def test_simpler_and_wider_are_orders():
    "Nothing beats itself, never both, and what beats a winner beats the loser; some minimum is always undominated."
    draw = random.Random(0)
    some = [takes(d, d - r, d + r) for d, r in ((draw.uniform(2, 9), draw.uniform(0, .6)) for _ in range(25))]
    widths = [SimpleNamespace(value=1.02 ** draw.uniform(0, 4)) for _ in range(25)]
    for beats, found in ((simpler, some), (wider, widths)):
        won = {(i, j) for i, a in enumerate(found) for j, b in enumerate(found) if beats(a, b)}
        assert won and not any((j, i) in won for i, j in won)
        assert all((i, m) in won for i, j in won for k, m in won if j == k)


@pytest.mark.parametrize("seed", range(20))
def test_some_minimum_is_undominated(examined, seed):
    draw = random.Random(seed)
    names = "abcdefg"[:draw.randint(2, 7)]
    found = Comparison({name: minimum(examined, draw.uniform(2, 8), draw.uniform(0, 1), 1.02 ** draw.uniform(0, 4))
                        for name in names})
    assert found.undominated and found.simplest and found.widest
    backwards = Comparison(dict(reversed(found.examinations.items())))
    assert set(backwards.undominated) == set(found.undominated) and backwards.verdict == found.verdict
    if found.simplest == found.widest and len(found.simplest) == 1: assert found.undominated == found.simplest
    assert ("<b>" in found._repr_html_()) == (len(found.undominated) < len(names)) == ("Bold: " in found._repr_html_())


def test_what_is_said(examined):
    simple, bent, narrow, near = (minimum(examined, *numbers) for numbers in
                                  ((8., .9, .53), (14., 1.2, .23), (4., .1, .1), (8.5, .9, .531)))
    verdict = lambda *given: Comparison(dict(zip("abcdefgh", given))).verdict
    assert verdict(simple, bent) == ("a is simpler (8.0 [7.1, 8.9] against 14.0 [12.8, 15.2] boundary directions) and "
                                     "wider (margin 0.53 against 0.23)")
    assert verdict(simple, narrow) == ("b is simpler (4.0 [3.9, 4.1] against 8.0 [7.1, 8.9] boundary directions); a is "
                                       "wider (margin 0.53 against 0.1)")
    assert verdict(simple, near) == ("which is simpler is not decided between a and b (8.0 [7.1, 8.9] and 8.5 [7.6, "
                                     "9.4] boundary directions: the intervals overlap); which is wider is not decided "
                                     "between b and a (margin 0.531 and 0.53: within 2%)")
    assert verdict(simple, near, bent).startswith("which is simplest is not decided between a and b (8.0")
    assert verdict(simple, bent, narrow) == (
        "c is simplest (4.0 [3.9, 4.1], next 8.0 [7.1, 8.9] boundary directions); a is widest (margin 0.53, next 0.23)")
    assert "other seeds of one recipe differ as much" in verdict(narrow, minimum(examined, 4.5, .1, .2))
    assert "between a, b, c, d, e and 2 more (8.0" in verdict(*[simple] * 7)
    assert Comparison({"a": simple, "b": bent}).undominated == ["a"]
    assert Comparison({"a": simple, "b": narrow}).undominated == ["a", "b"]
    assert Comparison({"a": simple, "b": minimum(examined, 14., 1.2, .531)}).undominated == ["a"]  # as wide


def test_of_one_minimum_nothing_is_said(examined):
    alone = Comparison({"a": examined})
    assert alone.verdict == "" and alone.simplest == alone.widest == alone.undominated == alone.cautions == []
    assert repr(alone).count("\n") == 1 and "<p>" not in alone._repr_html_() and "<b>" not in alone._repr_html_()


def test_what_is_missing_is_left_out(examined):
    none, met = Missing("no boundary here"), replace(examined.margin, value=math.nan)
    a, b, c = (minimum(examined, d, .1, m) for d, m in ((3., .5), (6., .4), (9., .3)))
    assert Comparison({"a": a, "b": replace(b, complexity=none)}).verdict == "a is wider (margin 0.5 against 0.4)"
    assert Comparison({"a": a, "b": replace(b, margin=met)}).verdict.startswith("a is simpler (3.0")
    assert Comparison({"a": a, "b": replace(b, margin=none, complexity=none)}).verdict == ""
    three = Comparison({"a": replace(a, complexity=none), "b": b, "c": c})
    assert three.widest == ["a"] and three.simplest == three.undominated == ["b"]
    assert "a: no boundary here" in repr(three)


def test_cautions(examined):
    say = lambda e, **more: " ".join(Comparison({"a": examined, "b": e, **more}).cautions)
    other = lambda *args, **kwargs: replace(examined, op=SimpleNamespace(objective=Objective(*args, **kwargs)))
    data = examined.objective.data
    assert say(examined) == "" and say(replace(examined, train_loss=1.9 * examined.train_loss)) == ""
    assert "training losses differ" in say(replace(examined, train_loss=2.1 * examined.train_loss))
    assert say(other(network(seed=1), data)) == say(other(network(), (X[:60].clone(), Y[:60]))) == ""
    assert "networks differ (51 to 75 parameters)" in say(other(network(12), data))
    assert "networks differ: " in say(other(network(act=nn.Sigmoid), data))
    assert "networks differ (24 to 51 parameters)" in say(other(network(), data, params="2.weight"))
    assert "training data differ" in say(other(network(), (X[:50], Y[:50])))
    assert "training data differ" in say(other(network(), (X[60:120], Y[60:120])))
    assert "different functions" in say(other(network(), data, weight_decay=.1))
    with_caution = Comparison({"a": examined, "b": replace(examined, train_loss=9.)})
    assert "\nbut the training losses differ" in repr(with_caution)
    assert "<p>But the training losses differ" in with_caution._repr_html_()


def test_examinations_and_models_compare_alike(examined):
    a = compare_minima({"a": examined, "b": network(seed=3)}, (X[:60], Y[:60]), k=3, pairs=6)
    b = compare_minima({"a": network(), "b": network(seed=3)}, (X[:60], Y[:60]), k=3, pairs=6)
    assert a.verdict == b.verdict and a.cautions == b.cautions
