"Products with many rows at a time: the same as one by one, and only where that is faster."
import pytest
import torch
from torch.testing import assert_close

import hessnb.curvature.operator
from conftest import F64, blobs, mlp, quiet, randn, untouched
from hessnb.curvature.objective import Objective
from hessnb.curvature.operator import HessianOperator
from test_replay import NETWORKS

X, Y = blobs(45)
BATCHES = list(zip(X.split([20, 20, 5]), Y.split([20, 20, 5])))


def operator(name="dense", dtype=F64, **kwargs):
    make, inputs = NETWORKS[name]
    model = make()
    return model, HessianOperator(Objective(model, (inputs, torch.arange(len(inputs)) % 4), dtype=dtype), **kwargs)


def one_by_one(op, V): return torch.stack([op.matvec(v) for v in V])


def blocks(monkeypatch, faster=True):
    "Let a block be faster than a loop, or slower, whatever the clock says."
    times = iter([0., 1.] * 99 if faster else [1., 0.] * 99)
    monkeypatch.setattr(hessnb.curvature.operator, "_seconds", lambda fn, v, n=2: (fn(v), next(times))[1])
    monkeypatch.setattr(hessnb.curvature.operator, "_LONG", 1e9)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in ("residual", "LeNet-5", "convolutions")])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_block_is_the_loop(monkeypatch, name, dtype):
    blocks(monkeypatch)
    model, op = operator(name, dtype, product="replay")
    V = randn(101, op.shape[0]).to(dtype)
    expected, before = one_by_one(op, V), op.n_matvecs
    with untouched(model, tensors=[V]), quiet(): got = op.matmat(V), op.matmat(V[:70])
    assert op.n_matvecs == before + 171
    assert (op._block_rows > 1) == (name != "embedding")  # one of its operations has no rule for blocks
    limit = 100 * torch.finfo(dtype).eps
    assert not got[0].requires_grad and got[0].dtype == dtype
    for rows in got: assert ((rows - expected[:len(rows)]).norm(dim=1) <= limit * expected[:len(rows)].norm(dim=1)).all()


@pytest.mark.parametrize("rows", [4, 64, 65, 66, 72, 128, 200])
def test_every_row_is_there(monkeypatch, rows):
    "Whatever the number of rows leaves over after whole blocks."
    blocks(monkeypatch)
    _, op = operator(product="replay")
    monkeypatch.setattr(hessnb.curvature.operator, "_BLOCK_BYTES", 7 * (op.objective.cost.fixed + 45 * op.objective.cost.per_example))
    for _ in range(2): assert_close(op.matmat(V := randn(rows, op.shape[0])), one_by_one(op, V), rtol=1e-12, atol=1e-14)
    assert op._block_rows == (7 if rows >= 64 else None)


def test_batches_and_weights(monkeypatch):
    blocks(monkeypatch)
    op = HessianOperator(Objective(mlp(), BATCHES, torch.nn.CrossEntropyLoss(weight=torch.tensor([1., 2., 5., .5]))), product="replay")
    V = randn(100, op.shape[0])
    assert_close(op.matmat(V), one_by_one(op, V), rtol=1e-12, atol=1e-14)
    assert op._block_rows > 1 and len(op._records) == 3


def test_memory_bounds_a_block(monkeypatch):
    blocks(monkeypatch)
    sizes, products = [], HessianOperator._products
    monkeypatch.setattr(HessianOperator, "_products", lambda self, V: (sizes.append(len(V)), products(self, V))[1])
    objective = Objective(mlp(), BATCHES)
    most = objective.cost.fixed + 20 * objective.cost.per_example  # of the largest batch
    for budget, rows in ((10 * most, 10), (4 * most, 4), (4 * most - 1, 1), (10**9 * most, 256)):
        monkeypatch.setattr(hessnb.curvature.operator, "_BLOCK_BYTES", budget)
        op, sizes[:] = HessianOperator(objective, product="replay"), []
        op.matmat(randn(600, op.shape[0]))
        assert op._block_rows == rows and max(sizes, default=1) == rows


def test_few_rows_record_nothing(monkeypatch):
    monkeypatch.setattr(hessnb.curvature.operator, "_record", lambda *args: pytest.fail("recorded"))
    _, op = operator()
    op.matmat(randn(63, op.shape[0]))
    assert op.product == "auto" and op._block_rows is None


def test_rows_that_do_not_pay_record_nothing(monkeypatch):
    monkeypatch.setattr(hessnb.curvature.operator, "_RECORDING", 1e9)
    monkeypatch.setattr(hessnb.curvature.operator, "_record", lambda *args: pytest.fail("recorded"))
    _, op = operator()
    op.matmat(randn(200, op.shape[0]))
    assert op.product == "auto" and op._block_rows is None


def test_many_rows_record_first(monkeypatch):
    "Also where the record of a single product is slower than the graph."
    for choice in ("replay", "graph"):
        with monkeypatch.context() as patched:
            blocks(patched)
            patched.setattr(hessnb.curvature.operator, "_RECORDING", 1e-9)
            choose = HessianOperator._choose
            patched.setattr(HessianOperator, "_choose", lambda self, v: (setattr(self, "product", choice), choose(self, v) if choice == "replay" else None)[1])
            singles, product = [], HessianOperator._product
            _, op = operator()
            patched.setattr(HessianOperator, "_product", lambda self, v: (singles.append(1), setattr(self, "_spent", 0.), product(self, v))[2])  # single products do not record
            V = randn(200, op.shape[0])
            got = op.matmat(V)
            assert op._block_rows > 1 and op.product == choice and len(singles) < 30
            assert_close(got, one_by_one(op, V), rtol=1e-12, atol=1e-14)


def test_a_slower_block_is_not_used(monkeypatch):
    blocks(monkeypatch, faster=False)
    _, op = operator(product="replay")
    V = randn(100, op.shape[0])
    assert torch.equal(op.matmat(V), one_by_one(op, V)) and op._block_rows == 1


def test_the_comparison_is_made_once(monkeypatch):
    for faster in (True, False):
        blocks(monkeypatch, faster)
        _, op = operator(product="replay")
        op.matmat(randn(100, op.shape[0]))
        with monkeypatch.context() as patched:
            patched.setattr(HessianOperator, "_consider_block", lambda *args: pytest.fail("compared again"))
            op.matmat(randn(100, op.shape[0]))


@pytest.mark.parametrize("wrong", [lambda fn: lambda V: fn(V) * (1 + 1e-9), lambda fn: lambda V: torch.cat([fn(V[:-1]), torch.zeros_like(V[-1:])]), lambda fn: lambda V: fn(V) * torch.nan])
def test_a_block_that_differs_is_not_used(monkeypatch, wrong):
    blocks(monkeypatch)
    _, op = operator(product="replay")
    V = randn(100, op.shape[0])
    expected, vmap = one_by_one(op, V), torch.vmap
    monkeypatch.setattr(torch, "vmap", lambda fn: wrong(vmap(fn)))
    assert torch.equal(op.matmat(V), expected) and op._block_rows == 1


def test_rows_of_zero_products_hide_nothing(monkeypatch):
    "The comparison has vectors of its own."
    blocks(monkeypatch)
    _, op = operator(product="replay")
    vmap = torch.vmap
    monkeypatch.setattr(torch, "vmap", lambda fn: lambda V: 2 * vmap(fn)(V))
    op.matmat(torch.zeros(100, op.shape[0], dtype=F64))
    assert op._block_rows == 1


def test_an_operation_that_warns_or_fails_is_not_used(monkeypatch):
    import warnings
    def fails(fn): raise RuntimeError("no rule")
    def warns(fn): return lambda V: (warnings.warn("There is a performance drop"), torch.stack([fn(v) for v in V]))[1]
    for vmap in (fails, warns):
        with monkeypatch.context() as patched:
            blocks(patched)
            patched.setattr(torch, "vmap", vmap)
            _, op = operator(product="replay")
            with quiet(): op.matmat(randn(100, op.shape[0]))
            assert op._block_rows == 1


@pytest.mark.parametrize("product", ["graph", "auto"])
def test_the_choice_of_the_caller_stands(monkeypatch, product):
    blocks(monkeypatch)
    _, op = operator(product="graph") if product == "graph" else (None, HessianOperator(Objective(mlp(), BATCHES), memory_budget=0))
    monkeypatch.setattr(torch, "vmap", lambda *args: pytest.fail("a block was run"))
    V = randn(100, op.shape[0])
    assert torch.equal(op.matmat(V), one_by_one(op, V))


def test_long_products_are_not_compared(monkeypatch):
    blocks(monkeypatch)
    monkeypatch.setattr(hessnb.curvature.operator, "_LONG", 0.)
    monkeypatch.setattr(torch, "vmap", lambda *args: pytest.fail("a block was run"))
    _, op = operator(product="replay")
    op.matmat(randn(100, op.shape[0]))
    assert op._block_rows == 1


def test_bad_rows(monkeypatch):
    blocks(monkeypatch)
    _, op = operator(product="replay")
    V = randn(100, op.shape[0])
    op.matmat(V)
    n = op.n_matvecs
    V[77, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite entries"): op.matmat(V)
    with pytest.raises(TypeError, match="expected torch.float64, got torch.float32"): op.matmat(V.float())
    assert op.n_matvecs == n and op.matmat(V[:0]).shape == (0, op.shape[0])


def test_dense_uses_blocks(monkeypatch):
    blocks(monkeypatch)
    _, op = operator("average pooling", product="replay")
    dense = op.to_dense()
    assert op._block_rows > 1 and op.n_matvecs == op.shape[0]
    assert_close(dense, HessianOperator(op.objective, product="graph").to_dense(), rtol=1e-10, atol=1e-13)


def test_inside_other_modes(monkeypatch):
    blocks(monkeypatch)
    _, op = operator(product="replay")
    V = randn(100, op.shape[0])
    expected = op.matmat(V)
    with torch.no_grad(): assert_close(op.matmat(V), expected)
    with torch.autocast("cpu"): assert_close(op.matmat(V), expected)
    with torch.inference_mode(): assert_close(op.matmat(V.clone()), expected)
    assert not op.matmat(V.clone().requires_grad_()).requires_grad
