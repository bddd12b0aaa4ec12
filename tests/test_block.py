"Products with many rows at a time: the same as one by one, and only where that is worth it."
import pytest
import torch
from test_replay import NETWORKS
from torch.testing import assert_close

from conftest import F64, blobs, mlp, quiet, randn, untouched
from hessnb.curvature import fast
from hessnb.curvature.fast import FastSum
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective

X, Y = blobs(45)
BATCHES = list(zip(X.split([20, 20, 5]), Y.split([20, 20, 5])))


def operator(name="dense", dtype=F64, **kwargs):
    make, inputs = NETWORKS[name]
    model = make()
    return model, HessianOperator(Objective(model, (inputs, torch.arange(len(inputs)) % 4), dtype=dtype), **kwargs)


def one_by_one(op, V): return torch.stack([op.matvec(v) for v in V])


def forbid_vmap(monkeypatch): monkeypatch.setattr(torch, "vmap", lambda *args: pytest.fail("a block was run"))


@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in ("residual", "LeNet-5", "convolutions")])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_block_is_the_loop(name, dtype):
    model, op = operator(name, dtype, product="replay")
    V = randn(101, op.shape[0]).to(dtype)
    expected, before = one_by_one(op, V), op.n_matvecs
    with untouched(model, tensors=[V]), quiet(): got = op.matmat(V), op.matmat(V[:70])
    assert op.n_matvecs == before + 171
    assert (op.kept.block_rows > 1) == (name != "embedding")  # one of its operations does not take blocks
    limit = 100 * torch.finfo(dtype).eps
    assert not got[0].requires_grad and got[0].dtype == dtype
    for rows in got:
        assert ((rows - expected[:len(rows)]).norm(dim=1) <= limit * expected[:len(rows)].norm(dim=1)).all()


@pytest.mark.parametrize("rows", [4, 64, 65, 66, 72, 128, 200])
def test_every_row_is_there(monkeypatch, rows):
    "Whatever the number of rows leaves over after whole blocks."
    _, op = operator(product="replay")
    cost = op.objective.cost
    monkeypatch.setattr(fast, "_BLOCK_BYTES", 7 * (cost.fixed + 45 * cost.per_example))
    for _ in range(2): assert_close(op.matmat(V := randn(rows, op.shape[0])), one_by_one(op, V), rtol=1e-12, atol=1e-14)
    assert op.kept.block_rows == (7 if rows >= 64 else None)


def test_batches_and_weights():
    weight = torch.tensor([1., 2., 5., .5])
    op = HessianOperator(Objective(mlp(), BATCHES, torch.nn.CrossEntropyLoss(weight=weight)), product="replay")
    V = randn(100, op.shape[0])
    assert_close(op.matmat(V), one_by_one(op, V), rtol=1e-12, atol=1e-14)
    assert op.kept.block_rows > 1 and len(op.kept.maps) == 3


def test_memory_bounds_a_block(monkeypatch):
    sizes, vmap = [], torch.vmap
    monkeypatch.setattr(torch, "vmap", lambda program: lambda V: (sizes.append(len(V)), vmap(program)(V))[1])
    objective = Objective(mlp(), BATCHES)
    most = objective.cost.fixed + 20 * objective.cost.per_example  # of the largest batch
    for budget, rows in ((10 * most, 10), (4 * most, 4), (4 * most - 1, 1), (10**9 * most, 256)):
        monkeypatch.setattr(fast, "_BLOCK_BYTES", budget)
        op, sizes[:] = HessianOperator(objective, product="replay"), []
        op.matmat(randn(600, op.shape[0]))
        assert op.kept.block_rows == rows and max(sizes, default=1) == rows


def test_few_rows_trace_nothing(monkeypatch):
    monkeypatch.setattr(fast, "trace", lambda *args: pytest.fail("traced"))
    _, op = operator()
    op.matmat(randn(63, op.shape[0]))
    assert op.product == "auto" and op.kept.block_rows is None


def test_rows_that_do_not_pay_trace_nothing(monkeypatch):
    monkeypatch.setattr(fast, "trace", lambda *args: pytest.fail("traced"))
    _, op = operator()
    op.matmat(randn(70, op.shape[0]))
    assert op.product == "auto" and op.kept.block_rows is None


def test_many_rows_trace_first():
    _, op = operator()
    V = randn(300, op.shape[0])
    got = op.matmat(V)
    assert op.kept.block_rows > 1 and op.product == "replay" and op.kept.done < 310
    assert_close(got, one_by_one(op, V), rtol=1e-12, atol=1e-14)


def test_rows_of_several_calls_add_up():
    "As in a search by blocks of 64 rows."
    _, op = operator()
    for _ in range(10): op.matmat(randn(64, op.shape[0]))
    assert op.kept.block_rows > 1


def test_the_same_calls_give_the_same_bits():
    results = []
    for _ in range(2):
        _, op = operator()
        results.append(torch.cat([op.matmat(randn(k, op.shape[0], seed=k)) for k in (64, 100, 200, 64)]))
    assert torch.equal(*results)


def test_the_decision_is_made_once(monkeypatch):
    for most in (2**23, 0):
        monkeypatch.setattr(fast, "_BLOCK_BYTES", most)
        _, op = operator(product="replay")
        op.matmat(randn(100, op.shape[0]))
        with monkeypatch.context() as patched:
            patched.setattr(FastSum, "_consider_blocks", lambda *args: pytest.fail("considered again"))
            op.matmat(randn(100, op.shape[0]))


@pytest.mark.parametrize("wrong", [
    lambda fn: lambda V: fn(V) * (1 + 1e-9),
    lambda fn: lambda V: torch.cat([fn(V[:-1]), torch.zeros_like(V[-1:])]),
    lambda fn: lambda V: fn(V) * torch.nan,
])
def test_a_block_that_differs_is_not_used(monkeypatch, wrong):
    _, op = operator(product="replay")
    V = randn(100, op.shape[0])
    expected, vmap = one_by_one(op, V), torch.vmap
    monkeypatch.setattr(torch, "vmap", lambda fn: wrong(vmap(fn)))
    assert torch.equal(op.matmat(V), expected) and op.kept.block_rows == 1


def test_rows_of_zero_products_hide_nothing(monkeypatch):
    "The comparison has vectors of its own."
    _, op = operator(product="replay")
    vmap = torch.vmap
    monkeypatch.setattr(torch, "vmap", lambda fn: lambda V: 2 * vmap(fn)(V))
    op.matmat(torch.zeros(100, op.shape[0], dtype=F64))
    assert op.kept.block_rows == 1


def test_an_operation_that_fails_on_blocks(monkeypatch):
    def fails(fn): raise RuntimeError("no rule")
    monkeypatch.setattr(torch, "vmap", fails)
    _, op = operator(product="replay")
    op.matmat(randn(100, op.shape[0]))
    assert op.kept.block_rows == 1


def test_an_operation_without_a_rule_for_blocks(monkeypatch):
    "It is known before: torch would run it in a loop, and warn for the whole process."
    _, op = operator(product="replay")
    monkeypatch.setattr(torch._ops.OpOverload, "has_kernel_for_dispatch_key", lambda self, key: "mm" not in str(self))
    forbid_vmap(monkeypatch)
    V = randn(100, op.shape[0])
    with quiet(): assert torch.equal(op.matmat(V), one_by_one(op, V))
    assert op.kept.block_rows == 1


def test_what_torch_would_run_in_a_loop_has_no_rule():
    "What we ask torch for is what it warns of."
    key = torch._C.DispatchKey.FuncTorchBatched
    assert torch.ops.aten.mm.default.has_kernel_for_dispatch_key(key)
    lacking = torch.ops.aten._segment_reduce_backward.default
    assert not lacking.has_kernel_for_dispatch_key(key)


@pytest.mark.parametrize("product", ["graph", "auto"])
def test_the_choice_of_the_caller_stands(monkeypatch, product):
    if product == "graph": _, op = operator(product="graph")
    else: op = HessianOperator(Objective(mlp(), BATCHES), memory_budget=0)
    forbid_vmap(monkeypatch)
    V = randn(300, op.shape[0])
    assert torch.equal(op.matmat(V), one_by_one(op, V))


def test_bad_rows():
    _, op = operator(product="replay")
    V = randn(100, op.shape[0])
    op.matmat(V)
    n = op.n_matvecs
    V[77, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite entries"): op.matmat(V)
    with pytest.raises(TypeError, match="expected torch.float64, got torch.float32"): op.matmat(V.float())
    assert op.n_matvecs == n and op.matmat(V[:0]).shape == (0, op.shape[0])


def test_dense_uses_blocks():
    _, op = operator("average pooling", product="replay")
    dense = op.to_dense()
    assert op.kept.block_rows > 1 and op.n_matvecs == op.shape[0]
    assert_close(dense, HessianOperator(op.objective, product="graph").to_dense(), rtol=1e-10, atol=1e-13)


def test_inside_other_modes():
    _, op = operator(product="replay")
    V = randn(100, op.shape[0])
    expected = op.matmat(V)
    with torch.no_grad(): assert_close(op.matmat(V), expected)
    with torch.autocast("cpu"): assert_close(op.matmat(V), expected)
    with torch.inference_mode(): assert_close(op.matmat(V.clone()), expected)
    assert not op.matmat(V.clone().requires_grad_()).requires_grad
