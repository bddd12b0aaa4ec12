"The benchmark against the peers: it can be imported, its plain products are right, and its smallest setting runs."
import importlib
import json
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import torch
from torch import nn

from conftest import HERE, randn
from hessnb import GGNOperator, HessianOperator, Objective

BENCH = HERE.parent / "benchmarks"
pytest.importorskip("scipy")


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCH))
    try: return [importlib.import_module(name) for name in ("peer_problems", "peer_solvers", "peer_tables", "peers")]
    finally: sys.path.remove(str(BENCH))


@pytest.mark.parametrize("curvature,kind", [("hessian", HessianOperator), ("ggn", GGNOperator)])
def test_the_plain_product_is_ours(bench, curvature, kind):
    problems, *_ = bench
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double().eval()
    X, y = randn(9, 3), torch.arange(9) % 4
    product, n = problems.kept_product(problems.Problem("mlp", 9, curvature=curvature), model, X, y)
    v = randn(n, seed=1)
    torch.testing.assert_close(product(v), kind(Objective(model, (X, y))).matvec(v))


def test_solvers_without_peers_agree(bench):
    problems, solvers, *_ = bench
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double().eval()
    X, y = randn(9, 3), torch.arange(9) % 4
    for curvature in ("hessian", "ggn"):
        problem = problems.Problem("mlp", 9, 3, 1e-6, "float64", curvature=curvature)
        product, n = problems.kept_product(problem, model, X, y)
        A = torch.stack([product(e) for e in torch.eye(n, dtype=torch.float64)])
        expected = torch.linalg.eigvalsh(A).flip(0)[:3]
        for name in ("hessnb", "hessnb, TF32 search", "plain ARPACK", "plain Lanczos"):
            V, n_products = solvers.SOLVERS[name](problem, model, X, y, 0)
            values = torch.linalg.eigvalsh(V @ A @ V.T).flip(0)
            torch.testing.assert_close(values, expected, msg=lambda text, name=name: f"{name}, {curvature}: {text}")
            assert 3 <= n_products <= 2 * n


def test_rows_of_a_problem_stand_together(bench, tmp_path):
    problems, _, tables, _ = bench
    rows = tables.Rows(tmp_path / "peers.jsonl")
    asked = [problems.Problem("mlp", 9, curvature=c) for c in ("ggn", "hessian")]
    told = dict.fromkeys(("seconds", "cold", "mib", "products", "residual", "overlap", "n_params", "threads"), 0.)
    for solver in ("plain Lanczos", "hessnb"):
        for p in asked: rows.add(part="pairs", problem=p.key, solver=solver, repetition=0, **asdict(p), **told)
    found = [(r["problem"], r["solver"]) for r in tables.medians(rows)]
    assert found == [(p.key, solver) for p in asked[::-1] for solver in ("hessnb", "plain Lanczos")]


def test_a_run_is_cut_and_the_others_go_on(bench, monkeypatch, tmp_path):
    problems, solvers, _, peers = bench
    def slow(*args): time.sleep(300)
    torch.manual_seed(0)
    data = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)), randn(9, 3).float(), torch.arange(9) % 4
    monkeypatch.setattr(peers, "ready", lambda *args: data)
    monkeypatch.setitem(solvers.SOLVERS, "plain ARPACK", slow)
    problem, asked = problems.Problem("mlp", 9, 2), ["plain ARPACK", "plain Lanczos"]
    start = time.monotonic()
    found = list(peers.together(problem, tmp_path, asked, 2, 60, 4))
    assert time.monotonic() - start < 200 and ["failed" in r for r in found] == [True, False, False]
    assert "TimeoutError" in found[0]["failed"] and [r["solver"] for r in found[1:]] == asked[1:] * 2
    assert not list(peers.together(problem, tmp_path, asked, 2, -1))


@pytest.mark.slow
def test_the_smallest_setting_of_the_script_for_a_gpu(tmp_path):
    asked = ["hessnb", "hessnb, TF32 search", "plain Lanczos"]
    command = [sys.executable, BENCH / "gpu.py", "--smallest", "--device", "cpu", "--minutes", "1", "--repetitions",
               "1", "--out", tmp_path, "--work", tmp_path, "--solvers", *asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "cpu" / "peers.json").read_text())["pairs"]
    assert {r["solver"] for r in found} == set(asked) and all(r["reached"] for r in found)
    assert "Measured on cpu. All runs of a problem in one process" in (tmp_path / "cpu" / "peers.md").read_text()


@pytest.mark.slow
def test_the_smallest_setting(tmp_path):
    command = [sys.executable, BENCH / "peers.py", "--quick", "--repetitions", "1", "--threads", "1", "--out", tmp_path,
               "--work", tmp_path, "--only", "mlp-N150-k5-tol0.001-float32", "--solvers", "hessnb", "plain Lanczos"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "peers.json").read_text())["pairs"]
    assert {r["solver"] for r in found} == {"hessnb", "plain Lanczos"} and all(r["reached"] for r in found)
    assert "time against hessnb" in (tmp_path / "peers.md").read_text()
