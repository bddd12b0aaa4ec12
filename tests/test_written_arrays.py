"Writes to arrays that are data: the old numbers, the new ones or an error, but no mixture, however small the write."
import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import Dataset

from conftest import F64, blobs, build, randn
from hessnb.curvature.checks import Unchanged, checksum
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective

Y = torch.arange(500) % 3


def net(): return build(lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)))


def table(): return randn(500, 5).numpy().copy()


class Rows(Dataset):
    def __init__(self, X, y): self.X, self.y = X, y
    def __len__(self): return len(self.X)
    def __getitem__(self, i): return self.X[i], self.y[i]


def one_entry(X): X[123, 2] += 1.
def two_rows(X): X[[10, 11]] = X[[11, 10]]
def one_sign(X): X[77, 1] *= -1
def everything(X): X *= 2


FORMS = {  # from array and labels
    "pair": lambda X: (X, Y.numpy()), "pair of a shared tensor": lambda X: (torch.from_numpy(X), Y),
    "view": lambda X: (torch.from_numpy(X)[:], Y), "batches": lambda X: [(X[:300], Y[:300]), (X[300:], Y[300:])],
    "batches of shared tensors": lambda X: [(torch.from_numpy(X[:300]), Y[:300]), (torch.from_numpy(X[300:]), Y[300:])],
    "data set": lambda X: Rows(X, Y), "data set of shared tensors": lambda X: Rows(torch.from_numpy(X), Y),
    "rows": lambda X: torch.utils.data.TensorDataset(torch.from_numpy(X), Y),
}


def old_new_or_error(compute, old, new):
    "Which of the three it was; fails if it is none of them."
    try: found = compute()
    except RuntimeError as e:
        assert "changed in place" in str(e)
        return "error"
    if (found - old).norm() <= 1e-12 * old.norm(): return "old"
    assert_close(found, new, rtol=1e-12, atol=1e-14)
    return "new"


@pytest.mark.parametrize("budget", [None, 0])
@pytest.mark.parametrize("write", [one_entry, two_rows, one_sign, everything])
@pytest.mark.parametrize("form", FORMS)
def test_no_mixture(form, write, budget):
    X = table()
    data = FORMS[form](X)
    objective = Objective(net(), data)
    op = HessianOperator(objective, memory_budget=budget)
    v = randn(op.shape[0])
    old, gradient, value = op.matvec(v), objective.grad(), objective.value()
    write(X)
    fresh = Objective(net(), FORMS[form](X.copy()))
    new = HessianOperator(fresh).matvec(v)
    found = old_new_or_error(lambda: op.matvec(v), old, new), old_new_or_error(objective.grad, gradient, fresh.grad())
    as_tensor = lambda: torch.tensor(objective.value(), dtype=F64)
    found += (old_new_or_error(as_tensor, torch.tensor(value, dtype=F64), torch.tensor(fresh.value(), dtype=F64)),)
    assert len(set(found) - {"error"}) <= 1, found


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool", "complex64", "float16"])
@pytest.mark.parametrize("size", [1, 7, 511, 512, 4096, 10_000])
def test_every_byte_counts(dtype, size):
    a = (np.random.default_rng(0).normal(size=size) * 9).astype(dtype)
    same = Unchanged(a)
    same.check(whole=True)
    for i in {0, size // 3, size - 1}:
        was = a[i]
        a[i] = not was if dtype == "bool" else was + 1
        with pytest.raises(RuntimeError, match="changed in place"): same.check(whole=True)
        a[i] = was
        same.check(whole=True)


def test_places_count():
    "Exchanged rows and shuffled entries have the same sums of all; not the same of rows and of columns."
    a = np.random.default_rng(1).normal(size=(4000, 6))
    before = checksum(a)
    for i, j in ((0, 1), (3, 2048), (100, 3999)):
        b = a.copy()
        b[[i, j]] = b[[j, i]]
        assert checksum(b) != before
    assert checksum(np.random.default_rng(2).permutation(a)) != before and checksum(a[:, ::-1]) != before
    assert checksum(a.copy()) == before and checksum(np.asfortranarray(a)) == before


def test_what_the_objective_holds_is_its_own():
    X = table()
    objective = Objective(net(), (X, Y))
    (inputs, _), = objective.micro_batches()
    assert not np.shares_memory(inputs.numpy(), X)
    X2, own = blobs(30)
    (inputs, _), = Objective(build(lambda: nn.Linear(3, 4)), (X2, own)).micro_batches()
    assert inputs.data_ptr() == X2.data_ptr()  # torch counts writes to its tensors: no copy
