"Networks without a boundary, a margin or classes: everything else is given, and why the rest is missing is said."
import json
import math
import re
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from conftest import F64, build, randn
from hessnb.boundary.columns import COLUMNS, Missing, for_json, numbers, texts
from hessnb.boundary.compare import compare_minima
from hessnb.boundary.examine import examine
from hessnb.curvature.objective import Objective
from hessnb.show.plots import plot_comparison
from hessnb.show.workbook import Workbook

OF_CLASSES = {"alignment", "resolved", "measure", "structure", "complexity"}


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 4), nn.Linear(4, 3)
    def forward(self, x): return self.head(self.embedding(x).mean(1).tanh())


class Pixels(nn.Module):
    def __init__(self): super().__init__(); self.layer = nn.Conv2d(1, 3, 1)
    def forward(self, x): return self.layer(x)


class Scalar(nn.Module):
    "One parameter without dimensions."
    def __init__(self): super().__init__(); self.w = nn.Parameter(torch.tensor(.5, dtype=F64))
    def forward(self, x): return torch.stack([0 * x[:, 0], self.w * x[:, 0]], 1)


class Constant(nn.Module):
    "The same scores for every input, so sure that the gradient is zero."
    def __init__(self): super().__init__(); self.b = nn.Parameter(torch.tensor([1e5, 0.], dtype=F64))
    def forward(self, x): return self.b.expand(len(x), 2) * 1e5


X, Y = randn(24, 3), torch.arange(24) % 3
CASES = {  # model, data, loss, what is missing, a word of the reason
    "regression": (lambda: nn.Linear(3, 2), (X, randn(24, 2, seed=1)), "mse_loss",
                   OF_CLASSES | {"margin", "train_accuracy"}, "no classes"),
    "several labels": (lambda: nn.Linear(3, 2), (X, (randn(24, 2, seed=1) > 0).double()), nn.BCEWithLogitsLoss(),
                       OF_CLASSES | {"margin", "train_accuracy"}, "no classes"),
    "pixels": (Pixels, (randn(6, 1, 3, 3), torch.randint(0, 3, (6, 3, 3), generator=torch.Generator().manual_seed(0))),
               "cross_entropy", OF_CLASSES | {"margin", "train_accuracy"}, "one class for each example"),
    "one class": (lambda: nn.Linear(3, 1), (X, 0 * Y), "cross_entropy",
                  OF_CLASSES | {"margin", "train_accuracy"}, "has one class"),
    "tokens": (Tokens, (torch.arange(120).reshape(24, 5) % 11, Y), "cross_entropy", {"margin", "complexity"},
               "floating"),
    "soft labels": (lambda: nn.Linear(3, 3), (X, randn(24, 3).softmax(1)), "cross_entropy", {"train_accuracy"},
                    "stand for none"),
    "one logit": (lambda: nn.Linear(3, 1), (X, (X[:, :1] > 0).double()), nn.BCEWithLogitsLoss(), set(), ""),
    "a scalar": (Scalar, (X, (X[:, 0] > 0).long()), "cross_entropy", set(), ""),
}


def largest(model, X, target, loss):
    "Largest eigenvalue by plain double backward."
    params = list(model.parameters())
    module = {"mse_loss": F.mse_loss, "cross_entropy": F.cross_entropy}.get(loss, loss)
    g = torch.cat([t.flatten() for t in torch.autograd.grad(module(model(X), target), params, create_graph=True)])
    rows = [torch.autograd.grad(gi, params, retain_graph=True, materialize_grads=True) if gi.requires_grad else
            [torch.zeros_like(p) for p in params] for gi in g]
    return torch.linalg.eigvalsh(torch.stack([torch.cat([t.flatten() for t in r]) for r in rows]))[-1].item()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_what_there_is(name, tmp_path):
    make, (X, target), loss, missing, word = CASES[name]
    model = build(make)
    e = examine(model, (X, target), test=(X, target), loss=loss, k=5, max_matvecs=100)
    assert set(e.missing) - {"test_accuracy", "outliers"} == missing
    assert all(word in e.missing[each] for each in missing)
    if name != "one class":
        assert_close(e.pairs.values[0].item(), largest(model, X, target, loss), rtol=1e-6, atol=1e-12)
    assert math.isfinite(e.trace.value) and e.pairs.converged[:3].all() and (word in repr(e) or not missing)
    found = numbers(e)
    assert math.isnan(found["margin"]) == ("margin" in missing)
    assert math.isnan(found["effective_directions"]) == ("resolved" in missing)
    json.dumps(for_json(found), allow_nan=False)
    assert (texts(e)["margin"] == "not defined") == ("margin" in missing)
    both = compare_minima({"a": e, "b": e})
    assert word in repr(both) and word in both._repr_html_() and len(both.to_csv(tmp_path / "a.csv").read_text()) > 100
    assert (both.undominated == []) == bool({"margin", "resolved"} & missing)
    if {"margin", "resolved"} & missing:
        with pytest.raises(ValueError, match="nothing to compare"): plot_comparison(both)
    else: plot_comparison(both)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_a_workbook_of_it(name, tmp_path):
    make, data, loss, missing, word = CASES[name]
    book = Workbook(build(make), data, loss, k=2, background=False, test=data)
    assert book.error.value == "" and book.progress.text.value == "done"
    assert "spectrum" in book.tabs.titles and "numbers" in book.tabs.titles
    assert ("boundary" in book.tabs.titles) == (not {"margin", "resolved"} & missing or name == "one class") or \
        re.search("Tabs not shown: [^<]*boundary", book.numbers.value)
    assert word in book.numbers.value
    book.explorers["spectrum"].slider.value = min(1, len(book.pairs["model"]) - 1)
    assert book.explorers["spectrum"].error.value == ""
    files = [f.name for f in book.export(tmp_path)]
    assert {"model_eigenpairs.npz", "model_eigenvectors.csv", "numbers.csv", "spectrum.png"} <= set(files)
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(files)
    book.close()


@pytest.mark.filterwarnings("ignore")
def test_a_network_that_says_the_same_everywhere():
    X = randn(10, 2)
    sure = examine(Constant().eval(), (X, torch.zeros(10).long()), k=3)
    assert set(sure.missing) <= {"outliers", "complexity"} and math.isnan(sure.margin.value)
    assert sure.pairs.values.abs().max() == 0
    flat = build(lambda: nn.Linear(2, 3))
    with torch.no_grad(): flat.weight.zero_(); flat.bias.copy_(torch.tensor([1., 0., 0.]))
    unsure = examine(flat, (X, torch.arange(10) % 3), k=3)
    assert set(unsure.missing) <= {"outliers", "complexity"} and math.isnan(unsure.margin.value)
    assert unsure.measure.n_pairs == 3
    assert texts(unsure)["margin"] == "none met"


def test_the_reason_is_there_for_whoever_asks():
    e = examine(nn.Linear(3, 1), (X, X[:, :1]), loss="mse_loss", k=3)
    with pytest.raises(AttributeError, match="no classes"): print(e.margin.value)
    with pytest.raises(AttributeError, match="no classes"): print(e.directions)
    assert not e.margin and isinstance(e.structure, Missing) and COLUMNS[0].text(e) == "not defined"


def test_more_of_the_objective():
    "Parameters and unpacking go through; an objective is complete."
    rows = torch.utils.data.DataLoader([{"x": x, "t": t} for x, t in zip(X.float(), Y)], batch_size=7)
    options = dict(unpack=lambda b: (b["x"], b["t"]), params="weight", k=3)
    a = examine(nn.Linear(3, 3), rows, **options)
    assert a.objective.n_params == 9 and a.train_accuracy >= 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        book = Workbook(nn.Linear(3, 3), rows, unpack=options["unpack"], k=2, background=False, examine=False)
    assert book.error.value == "" and "spectrum" in book.tabs.titles
    book.close()
    with pytest.raises(TypeError, match="leave out"):
        examine(Objective(nn.Linear(3, 3), (X.float(), Y)), params="weight")
