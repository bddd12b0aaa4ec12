"Arguments without a meaning are refused before any work; the caller's modes change no result."
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from conftest import F64, prescribed, randn
from hessnb.curvature.density import spectral_density
from hessnb.curvature.eigenpairs import dense_eigenpairs
from hessnb.curvature.krylov import tridiagonalize
from hessnb.curvature.lowrank import nonzero_eigenpairs
from hessnb.curvature.operator import MatrixOperator
from hessnb.curvature.outliers import count_outliers
from hessnb.curvature.top import eigenpairs_until, top_eigenpairs
from hessnb.curvature.trace import trace

A = prescribed(np.r_[9., 7., 5., np.linspace(-1, 1, 57)]).A


def enough(values, V): return len(values) > 2
def top(op, **kwargs): return top_eigenpairs(op, kwargs.pop("k", 2), **kwargs)
def until(op, **kwargs): return eigenpairs_until(op, kwargs.pop("enough", enough), **kwargs)
def chain(op, **kwargs): return tridiagonalize(op, kwargs.pop("start", torch.ones(60, dtype=F64)),
                                               kwargs.pop("n_steps", 5), **kwargs)


NAN, GPU = math.nan, torch.zeros(60, dtype=torch.complex128)
SEARCHES, EVERYWHERE = [top, until, nonzero_eigenpairs], [top, until, nonzero_eigenpairs, trace, spectral_density]
WRONG = [
    *((f, dict(miss_probability=x), ValueError, "miss_probability must be") for f in SEARCHES for x in (-1, 0, 2, NAN)),
    *((f, dict(miss_probability="1"), TypeError, "miss_probability must be") for f in SEARCHES),
    *((f, dict(basis_bytes=x), ValueError, "basis_bytes") for f in SEARCHES for x in (0, -5)),
    *((f, dict(basis_bytes=1e9), TypeError, "basis_bytes must be an int") for f in SEARCHES),
    *((f, dict(tol=x), ValueError, "tol must be") for f in (*SEARCHES, dense_eigenpairs) for x in (0, NAN, -1, 1, 2)),
    *((f, dict(tol="small"), TypeError, "tol must be a number") for f in (*SEARCHES, dense_eigenpairs)),
    *((f, dict(generator=3), TypeError, "generator must be a torch.Generator") for f in EVERYWHERE),
    *((f, dict(progress="yes"), TypeError, "progress must be") for f in SEARCHES),
    *((f, dict(max_matvecs=x), TypeError, "max_matvecs must be an int") for f in (top, until) for x in (10.5, "9")),
    *((until, dict(growth=x), ValueError, "growth must be above 1") for x in (1., .5, -2, NAN, math.inf)),
    *((until, dict(max_pairs=x), ValueError, "max_pairs must be at least 1") for x in (0, -3)),
    (until, dict(max_matvecs=0), ValueError, "max_matvecs must be at least 1"),
    (until, dict(k=0), ValueError, "k must be"), (until, dict(enough=3), TypeError, "enough must be a function"),
    (top, dict(k=0), ValueError, "between 1 and P=60"), (top, dict(k=-2), ValueError, "between 1 and P=60"),
    (top, dict(k=2.), TypeError, "k must be an int"), (top, dict(k=True), TypeError, "k must be an int"),
    (top, dict(max_matvecs=1), ValueError, "cannot give k=2"), (top, dict(which="la"), ValueError, "which must be"),
    (top, dict(start=[1., 2.]), TypeError, "start must be a tensor"), (top, dict(start=GPU), TypeError, "real numbers"),
    (top, dict(start=torch.ones(3)), ValueError, "start must have shape"),
    (top, dict(start=torch.ones(2, 2, 60)), ValueError, "start must have shape"),
    (top, dict(start=torch.zeros(0, 60)), ValueError, "not zero"),
    (top, dict(start=torch.full((60,), NAN)), ValueError, "finite"),
    *((nonzero_eigenpairs, dict(block_size=x), ValueError, "block_size must be at least 1") for x in (0, -1)),
    (nonzero_eigenpairs, dict(block_size=2.5), TypeError, "block_size must be an int"),
    *((nonzero_eigenpairs, dict(rtol=x), ValueError, "rtol must be") for x in (0, NAN, 1)),
    *((trace, dict(n_probes=x), ValueError, "n_probes must be at least 2") for x in (1, -4)),
    *((spectral_density, dict(n_probes=x), ValueError, "n_probes must be at least 2") for x in (1, -4)),
    *((spectral_density, dict(n_steps=x), ValueError, "n_steps must be at least 1") for x in (0, -4)),
    (spectral_density, dict(n_steps=3.5), TypeError, "n_steps must be an int"),
    *((f, dict(pairs=torch.eye(60)), TypeError, "pairs must be EigenPairs") for f in (trace, spectral_density)),
    *((f, dict(pairs=dense_eigenpairs(MatrixOperator(torch.eye(3)))), ValueError, "vectors of 3 numbers")
      for f in (trace, spectral_density)),
    *((chain, dict(n_steps=x), ValueError, "n_steps must be at least 1") for x in (0, -1)),
    (chain, dict(start=torch.full((60,), NAN, dtype=F64)), ValueError, "NaN or infinite"),
    (dense_eigenpairs, dict(max_bytes=-1), ValueError, "max_bytes"), (dense_eigenpairs, dict(k=61), ValueError, "P=60"),
]


@pytest.mark.parametrize("case", range(len(WRONG)))
def test_refused_before_any_work(case):
    call, kwargs, kind, words = WRONG[case]
    op = MatrixOperator(A)
    with pytest.raises(kind, match=words): call(op, **kwargs)
    assert op.n_matvecs == 0


def test_numbers_of_numpy_are_numbers():
    op = MatrixOperator(A)
    assert len(top_eigenpairs(op, np.int64(2), tol=np.float64(1e-6), max_matvecs=np.int32(100))) == 2
    assert len(nonzero_eigenpairs(op, rtol=np.float32(.5), block_size=np.int64(8))) == 3
    assert trace(op, n_probes=np.int64(4)).n_matvecs == 4


class Own:
    "A class of a user's."
    shape, dtype, device = (60, 60), F64, torch.device("cpu")
    def matvec(self, v): return A @ v


RESULTS = {
    "product": lambda op: op.matvec(torch.ones(60, dtype=op.dtype)), "dense": lambda op: op.to_dense(),
    "rows": lambda op: op.matmat(torch.ones(3, 60, dtype=op.dtype)), "diagonal": lambda op: op.diagonal(),
    "deflated": lambda op: op.deflate(torch.eye(60, dtype=op.dtype)[:2]).matvec(torch.ones(60, dtype=op.dtype)),
    "top": lambda op: top_eigenpairs(op, 3, tol=1e-3).values, "own": lambda op: top_eigenpairs(Own(), 3).values,
    "until": lambda op: eigenpairs_until(op, enough, tol=1e-3).values,
    "nonzero": lambda op: nonzero_eigenpairs(op, rtol=.3, tol=1e-3).values,
    "chain": lambda op: tridiagonalize(op, randn(60, dtype=op.dtype), 9).alpha,
    "trace": lambda op: torch.tensor(trace(op).value, dtype=F64),
    "density": lambda op: spectral_density(op, n_steps=9).nodes}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", RESULTS)
def test_the_callers_modes_change_nothing(name, dtype):
    def result(mode):
        with mode: return RESULTS[name](MatrixOperator(A.to(dtype)))
    expected = result(nullcontext())
    modes = torch.no_grad(), torch.inference_mode(), torch.autocast("cpu"), torch.autocast("cpu", dtype=torch.float16)
    for mode in modes: assert torch.equal(result(mode), expected), mode
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(F64)
        assert torch.equal(result(nullcontext()), expected)
    finally: torch.set_default_dtype(default)


def test_a_search_can_be_ended_wherever_it_is():
    "Progress returning true ends each search within one more product of a chain, or one block."
    for call in (top, until, nonzero_eigenpairs):
        for last in (1, 9, 30):
            op, seen = MatrixOperator(A), []
            def progress(products, pairs): seen.append(products); return products >= last
            with pytest.warns(UserWarning) if last == 1 else nullcontext(): call(op, progress=progress)
            after = [n for n in seen if n >= last]
            assert len(after) <= 3, (call, last, seen)


@pytest.mark.parametrize("values", [[0., 0., 0., 0.], [1e-300, 0., 0.], [2., 1., 0., -1e-9], [3., 2.], [-1., -2., -3.]])
def test_too_few_for_outliers(values):
    found = count_outliers(torch.tensor(values, dtype=F64))
    assert found.count == 0 and "positive eigenvalues" in found.reason and "too few" in repr(found)
    assert found.truncated == (values == [3., 2.])
