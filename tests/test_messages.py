"What is misspelt or given twice is refused in words that name what was found, what was expected and what to do."
import pytest
import torch
import traitlets
from torch import nn
from torch.utils.data import DataLoader

from conftest import seeded
from hessnb.boundary.columns import COLUMNS, as_columns, numbers, texts
from hessnb.boundary.compare import Comparison, compare_minima
from hessnb.boundary.examine import examine
from hessnb.curvature.objective import Objective
from hessnb.curvature.top import top_eigenpairs
from hessnb.show.spectrum import SpectrumExplorer
from hessnb.show.view import View
from hessnb.show.workbook import EXPLORERS, Workbook

X = torch.randn(30, 3, generator=seeded(0))
DATA = X, torch.arange(30) % 3


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(3, 3).eval()


class Level(View):
    title, names = "level", ("level", "point")
    level, point = traitlets.Float(.5), traitlets.Int(0)
    def __init__(self, objective=None, pairs=None):
        self.points = [1, 2]  # like the name of a trait, but an attribute of its own
        super().__init__()
    def refresh(self): pass


def titled(name, given):
    class Other(View):
        title = given
        def __init__(self, objective, pairs): super().__init__()
        def refresh(self): pass
    Other.__name__ = name
    return Other


@pytest.mark.parametrize("explorers, kind, words", [
    ([SpectrumExplorer, titled("Mine", "spectrum")], ValueError, ["'spectrum'", "SpectrumExplorer and Mine",
                                                                  "another title"]),
    ([titled("Same", "a"), titled("Same", "a")], ValueError, ["'a'", "Same and Same"]),
    ([*EXPLORERS, EXPLORERS[0]], ValueError, ["two explorers have the title 'sliders'"]),
    ([Level()], TypeError, ["classes derived from View", "object of Level"]),
    ([int], TypeError, ["classes derived from View", "got int"]),
    ([type("Needy", (Level,), {"needs": "pair"})], ValueError, ["Needy.needs", "'comparison'", "'pair'"]),
    ([type("Taker", (Level,), {"takes": ("classnames",)})], ValueError, ["Taker.takes", "classnames", "class_names"]),
])
def test_explorers(explorers, kind, words):
    with pytest.raises(kind) as refusal: Workbook(network(), DATA, explorers=explorers, background=False)
    assert all(word in str(refusal.value) for word in words), refusal.value


def test_explorers_of_different_titles_are_shown():
    book = Workbook(network(), DATA, explorers=[titled("Mine", "mine"), titled("Mine", "mine too")], examine=False, k=2,
                    background=False)
    assert book.error.value == "" and set(book.explorers) == {"mine", "mine too"}
    book.close()


@pytest.mark.parametrize("columns, kind, words", [
    (["marginn"], ValueError, ["'marginn'", "did you mean 'margin'?", "trace", "Column"]),
    (["?"], ValueError, ["no column '?'.", "margin"]),
    ([*COLUMNS, 3], TypeError, ["a Column or the name of one", "int"]),
    (["margin", "margin"], ValueError, ["a name of its own"]),
    (["trace", next(c for c in COLUMNS if c.name == "trace")], ValueError, ["a name of its own"]),
])
def test_columns(columns, kind, words):
    "Before anything is examined: the models are not even looked at."
    for call in (lambda: compare_minima({"a": network()}, DATA, columns=columns), lambda: as_columns(columns),
                 lambda: Comparison({}, columns), lambda: numbers(None, columns), lambda: texts(None, columns)):
        with pytest.raises(kind) as refusal: call()
        assert all(word in str(refusal.value) for word in words), refusal.value


def test_columns_by_name():
    found = compare_minima({"a": network()}, DATA, columns=["trace", "margin"], k=3)
    assert found.table()[0] == ["minimum", "trace", "margin"] and set(found.rows()[0]) == {"minimum", "trace", "margin"}
    assert compare_minima(found.examinations, columns="trace").table()[0] == ["minimum", "trace"]


@pytest.mark.parametrize("call, name, meant", [
    (lambda **options: examine(network(), DATA, **options), "n_candidate", "'n_candidates'"),
    (lambda **options: examine(network(), DATA, **options), "unpakc", "'unpack'"),
    (lambda **options: compare_minima({"a": network()}, DATA, **options), "colums", "'columns'"),
    (lambda **options: compare_minima({"a": network()}, DATA, **options), "curvture", "'curvature'"),
    (lambda **options: compare_minima({"a": network()}, DATA, **options), "weight_deccay", "'weight_decay'"),
])
def test_keywords(call, name, meant):
    with pytest.raises(TypeError, match=f"no argument '{name}': did you mean {meant}") as refusal: call(**{name: None})
    assert "It takes" in str(refusal.value)


def test_traits():
    with pytest.raises(TypeError, match="'levle', which is no trait of it: did you mean 'level'"):
        type("Wrong", (Level,), {"names": ("levle",)})()
    view = Level()
    with pytest.raises(AttributeError, match="no 'levl': did you mean 'level'"): view.levl = .3
    with pytest.raises(ValueError, match="no state 'levl': did you mean 'level'"): view.state = {"levl": .3}
    view.level, view.points, view.anything = .3, [3], 1  # what it has, and what looks like nothing that it has
    assert view.state == {"level": .3, "point": 0} and view.points == [3]
    view.close()
    objective = Objective(network(), DATA)
    explorer = SpectrumExplorer(objective, top_eigenpairs(objective, 2))
    with pytest.raises(AttributeError, match="no 'indx': did you mean 'index'"): explorer.indx = 1
    with pytest.raises(TypeError, match="indx"): SpectrumExplorer(objective, explorer.pairs, indx=1)
    explorer.close()


def rows(n=30):
    "A loader of dict batches with more than is needed."
    return DataLoader([{"x": x, "t": t, "name": str(i)} for i, (x, t) in enumerate(zip(*DATA))][:n], batch_size=7)


UNPACK = {"unpack": lambda batch: (batch["x"], batch["t"])}


def test_unpack_in_examine_compare_and_workbook(tmp_path):
    plain = examine(network(), DATA, test=DATA, k=3)
    for got in (examine(network(), rows(), test=rows(), k=3, **UNPACK),
                compare_minima({"a": network()}, rows(), test=rows(), k=3, **UNPACK)["a"]):
        assert torch.allclose(got.pairs.values, plain.pairs.values, rtol=1e-6)
        assert got.margin.value == pytest.approx(plain.margin.value, rel=1e-6)
        assert (got.train_accuracy, got.test_accuracy) == (plain.train_accuracy, plain.test_accuracy)
    book = Workbook(network(), rows(), test=rows(), k=3, background=False, **UNPACK)
    assert book.error.value == "" and book.examinations["model"].test_accuracy == plain.test_accuracy
    assert "numbers.csv" in {f.name for f in book.export(tmp_path)}
    book.close()


def test_unpack_wherever_a_model_and_its_data_are_taken():
    from hessnb.boundary import (
        alignment,
        curves,
        design,
        directions,
        distance,
        gradients,
        margin,
        measure,
        paper_margin,
        plane,
        points,
        probe,
        structure,
    )
    objective = Objective(network(), DATA)
    pairs = top_eigenpairs(objective, 3)
    V = pairs.vectors
    with torch.random.fork_rng():
        torch.manual_seed(1)
        flat = nn.Linear(2, 3).eval()
    two = DataLoader([{"x": x[:2], "t": t} for x, t in zip(*DATA)], batch_size=7)
    calls = [(alignment.align, (X, V), {}), (structure.class_structure, (X, pairs), {}),
             (design.design_input, (V[0], X[:2]),
             {"n_steps": 3}), (directions.resolve_measure, (X,), {"max_pairs": 5}),
             (directions.estimate_directions, (X,), {"n_steps": 10, "n_principal": 2}),
             (distance.nearest_boundary, (X[:3],), {}),
             (gradients.gradient_cosines, (X,), {}), (margin.estimate_margin, (X, pairs), {"n_candidates": 2}),
             (margin.support_examples, (X, torch.zeros(30, 1)), {}), (measure.random_baseline, (X,), {}),
             (paper_margin.paper_margin, (X, pairs), {"n_steps": 3, "n_starts": 1}),
             (plane.scan_plane, (X,), {"n": 5, "plane": plane.plane_through(X)}),
             (plane.scan_path, (X[0], X[1]), {"n": 5}), (points.boundary_points, (X,), {"n": 5}),
             (probe.eigenvector_table, (X, pairs), {}), (probe.perturb, (V[0], .1), {})]
    for fn, given, options in calls: fn(network(), *given, data=rows(), **options, **UNPACK)
    curves.trace_boundary(flat, X[:, :2], n=8, data=two, **UNPACK)
    expected, got = (distance.nearest_boundary(network(), X[:3], data=data, **more).values
                     for data, more in ((DATA, {}), (rows(), UNPACK)))
    assert torch.equal(expected, got)
