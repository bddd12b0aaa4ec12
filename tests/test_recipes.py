"The recipes' tables hold what their pages say, and a small run of the same kind does as well."
import csv
import sys
from statistics import median

import pytest
import torch

from conftest import HERE

BENCHMARKS, RESULTS = HERE.parent / "benchmarks", HERE.parent / "nbs/results"


@pytest.fixture
def edge(monkeypatch):
    "The module that trains at the edge of stability."
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(BENCHMARKS)
    import edge_of_stability
    yield edge_of_stability
    del sys.modules["edge_of_stability"]


def table(name, **of):
    "The rows of a table with these entries."
    with (RESULTS / name).open() as file:
        return [row for row in csv.DictReader(file) if all(row[k] == str(v) for k, v in of.items())]


def late(rows, name="sharpness"):
    "The median over the last third of a run, in units of 2 / step size."
    return median(float(row[name]) * float(row["eta"]) / 2 for row in rows[2 * len(rows) // 3:])


def by_run(rows):
    found = {}
    for row in rows: found.setdefault((row["eta"], row.get("batch"), row["seed"]), []).append(row)
    return found


# edge of stability

def test_table_of_the_edge():
    runs = by_run(table("edge_of_stability.csv", kind="squares"))
    etas = {eta for eta, *_ in runs}
    assert len(etas) == 3 and all(len({seed for e, _, seed in runs if e == eta}) >= 3 for eta in etas)
    assert all(.95 < late(rows) < 1.15 for rows in runs.values())
    small = by_run(table("edge_of_stability.csv", kind="small step"))
    assert small and all(late(rows) < .8 for rows in small.values())
    beyond = min(max(float(row["sharpness"]) for row in rows) for rows in small.values())
    assert all(beyond > 2 / float(eta) for eta in etas)  # where the sharpness would go without an edge


def test_table_of_the_quadratic_model():
    runs = by_run(table("edge_of_stability.csv", kind="quadratic"))
    assert len(runs) >= 9
    assert all(float(rows[-1]["loss"]) > 1e3 * float(rows[0]["loss"]) for rows in runs.values())


def test_sharpness_comes_to_the_edge(edge):
    "Of a small network over three seeds; with a tenth of the step it stays below."
    X, y = edge.digits(100)
    def ratio(seed, eta, duration):
        rows = list(edge.descend("squares", seed, eta, edge.half_squares, data=(X, y), duration=duration,
                                 model=edge.network(seed, width=8), records=6))
        assert rows[-1]["loss"] < rows[0]["loss"]
        return median(row["sharpness"] / row["threshold"] for row in rows[-3:])
    assert .85 < median(ratio(seed, .8, 160.) for seed in range(3)) < 1.3
    assert ratio(0, .08, 20.) < .5


def test_descent_on_the_quadratic_model_is_that_of_the_matrix(edge):
    "Value for value, with a dense Hessian; and it grows as its largest eigenvalue says."
    X, y = edge.digits(50)
    objective, eta = edge.Objective(edge.network(0, width=3), (X, y), edge.half_squares), 1.5
    H, g, d = edge.HessianOperator(objective).to_dense(), objective.grad(), torch.zeros(objective.n_params).double()
    for found in edge.on_the_quadratic(objective, eta):
        assert found == pytest.approx(float(objective.value() + g @ d + d @ H @ d / 2), rel=1e-8)
        d = d - eta * (g + H @ d)


# batch sharpness

def test_table_of_batch_sharpness():
    runs = by_run(table("batch_sharpness.csv", kind="squares"))
    sizes = sorted({int(size) for _, size, _ in runs})
    top = [median(late(rows) for (_, size, _), rows in runs.items() if int(size) == n) for n in sizes]
    along = [median(late(rows, "batch_sharpness") for (_, size, _), rows in runs.items() if int(size) == n)
             for n in sizes]
    assert len(sizes) >= 3 and top == sorted(top) and top[0] < .85 < top[-1]
    assert all(.75 < value < 1.25 for value in along)
