"One list of columns for every table: the numbers by name, the texts by title, files that can be read back."
import csv
import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from conftest import build, randn
from hessnb.boundary.columns import COLUMNS, Column, for_json, numbers, texts
from hessnb.boundary.compare import Comparison, compare_minima
from hessnb.boundary.examine import accuracy, class_labels, examine, labelled_examples
from hessnb.curvature.objective import Objective

X, Y = randn(40, 2), torch.arange(40) % 3


@pytest.fixture(scope="module")
def examined():
    return examine(build(lambda: nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))), (X, Y), k=3, pairs=6)


def test_every_number_has_a_name_a_meaning_and_a_text(examined):
    e = examined
    row = numbers(e)
    assert list(row) == [c.name for c in COLUMNS] and all(c.help and c.better in ("lower", "higher", None)
                                                          for c in COLUMNS)
    assert row["effective_directions"] == e.directions.value and row["margin"] == e.margin.value
    assert row["active_upper"] == e.measure.upper
    assert (row["outliers_low"], row["outliers_high"]) == e.outliers.stability
    assert row["lambda_1"] == e.pairs.values[0].item()
    assert math.isnan(row["test_accuracy"]) and isinstance(row["outliers_truncated"], bool)
    assert texts(e)["test accuracy"] == "not given" and texts(e)["trace"].startswith(f"{e.trace.value:.3g} ± ")
    assert all(isinstance(c.text(e), str) and c.text(e) for c in COLUMNS)
    assert all(f"{title} {text}" in repr(e) for title, text in texts(e).items())


def test_what_is_known_from_below_is_said_in_one_way(examined):
    e = examined
    wide = replace(e, resolved=replace(e.resolved, directions=replace(e.directions, value=10., bounds=(5., 10.))))
    close = replace(e, resolved=replace(e.resolved, directions=replace(e.directions, value=10., bounds=(9.5, 10.))))
    assert texts(wide)["effective directions"] == "10 (at least 5)" and texts(close)["effective directions"] == "10"
    cut, free = (replace(e, outliers=replace(e.outliers, count=3, stability=(2, 5), truncated=t))
                 for t in (True, False))
    assert texts(cut)["outliers"] == "at least 3" and texts(free)["outliers"] == "3 (2 to 5)"
    some, all_ = (replace(e, measure=replace(e.measure, count=4, upper=upper)) for upper in (9, 4))
    assert texts(some)["active (paper)"] == "at least 4" and texts(all_)["active (paper)"] == "4"
    assert texts(replace(e, margin=replace(e.margin, value=math.nan)))["margin"] == "none met"


def test_files_are_read_back(examined, tmp_path):
    table = Comparison({"a": examined, "b, <i>": examined})
    with open(table.to_csv(tmp_path / "t.csv"), newline="") as f: rows = list(csv.DictReader(f))
    objects = json.loads(table.to_json(tmp_path / "t.json").read_text())
    assert [r["minimum"] for r in rows] == [o["minimum"] for o in objects] == ["a", "b, <i>"]
    for name, value in numbers(examined).items():
        if isinstance(value, float) and math.isnan(value): assert objects[0][name] is None and rows[0][name] == "nan"
        else:
            assert objects[0][name] == value and float(rows[0][name] == "True" if isinstance(value, bool)
                                                       else rows[0][name]) == value
    assert "b, &lt;i&gt;" in table._repr_html_() and "<i>" not in table._repr_html_()
    assert for_json([math.inf, (1, "x", True), {"a": -math.nan}]) == [None, [1, "x", True], {"a": None}]


def test_columns_of_ones_own(examined):
    mine = Column("n", None, "for files only", lambda e: len(e.pairs))
    table = Comparison({"a": examined}, [mine])
    assert table.rows() == [{"minimum": "a", "n": 3}] and table.table() == [["minimum"], ["a"]]
    with pytest.raises(ValueError, match="name of its own"): Comparison({"a": examined}, [*COLUMNS, COLUMNS[0]]).rows()
    with pytest.raises(TypeError, match="no argument 'colums': did you mean 'columns'"):
        compare_minima({"a": build(lambda: nn.Linear(2, 3))}, (X, Y), colums=[mine])


@pytest.mark.parametrize("loss, target", [("cross_entropy", Y), ("mse_loss", nn.functional.one_hot(Y, 3).double()),
                                          (nn.BCEWithLogitsLoss(), (Y > 0).double()[:, None]),
                                          ("nll_loss", Y),
                                          (lambda o, t: nn.functional.cross_entropy(o, t, reduction="none"), Y)])
def test_labels_in_the_form_of_the_loss(loss, target):
    n = 1 if target.ndim == 2 and target.shape[1] == 1 else 3
    objective = Objective(build(lambda: nn.Linear(2, n)), (X, target), loss)
    inputs, labels = labelled_examples(objective)
    wanted = Y if n == 3 else (Y > 0).long()
    assert torch.equal(inputs, X) and torch.equal(labels, wanted) and labels.dtype == torch.int64
    right = (objective.classes(X) == wanted).double().mean().item()
    assert accuracy(objective, (X, target)) == pytest.approx(right)
    assert accuracy(objective, [(X[:7], target[:7]),
                                (X[7:], target[7:])]) == pytest.approx(right)  # batches that are not alike


def test_no_labels():
    soft = nn.functional.softmax(randn(40, 3), 1)
    objective = Objective(build(lambda: nn.Linear(2, 3)), (X, soft))
    with pytest.raises(TypeError, match="stand for none"): labelled_examples(objective)
    with pytest.raises(TypeError, match="stand for none"): class_labels(objective, objective.predict(X), soft)
    e = examine(objective, k=3)  # all but the accuracy
    assert "stand for none" in e.missing["train_accuracy"] and e.margin.value > 0
