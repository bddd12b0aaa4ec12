"The parts of a search, one by one; whose operators every search takes, and what it leaves alone."
import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from conftest import F64, prescribed, quiet, randn, seeded
from hessnb.curvature import basis as basis_module
from hessnb.curvature.basis import Basis, free_bytes
from hessnb.curvature.completeness import Probe, ShortProbe, absorb, probe_block
from hessnb.curvature.density import spectral_density
from hessnb.curvature.eigenpairs import dense_eigenpairs
from hessnb.curvature.krylov import Krylov, tridiagonalize
from hessnb.curvature.lowrank import Range, nonzero_eigenpairs
from hessnb.curvature.operator import MatrixOperator
from hessnb.curvature.search import Budget, Search, Target, find, look, most_open, thick_restart
from hessnb.curvature.top import eigenpairs_until, refine, room_for, top_eigenpairs
from hessnb.curvature.trace import trace

VALUES = np.r_[[9., 7., 7., 5., 3., 2.8], np.linspace(-.5, 1, 94)]
EPS, F32 = torch.finfo(F64).eps, torch.float32


def identity_error(space):
    "How far the decomposition A Q^T = Q^T G + pending^T B is from being one, and the rows from orthonormal."
    rows = torch.cat([space.Q, space.pending])
    error = space.op.matmat(space.Q) - space.G.T @ space.Q - space.coupling.T @ space.pending
    return max(error.abs().max().item(), (rows @ rows.T - torch.eye(len(rows), dtype=F64)).abs().max().item())


@pytest.mark.parametrize("home", ["device", "disk"])
@pytest.mark.parametrize("seed", range(5))
def test_a_basis_does_what_a_list_does(seed, home):
    rng, rows = np.random.default_rng(seed), []
    basis = Basis(50, 20, F64, torch.device("cpu"), rows=int(rng.integers(1, 20)), home=home)
    for step in range(30):
        if rng.random() < .2 and len(rows) > 2:
            S = randn(len(rows), int(rng.integers(1, len(rows))), seed=step)
            rows = list(S.T @ torch.stack(rows))
            basis.replace(S)
        elif len(rows) < 20:
            rows.append(randn(50, seed=step))
            basis.append(rows[-1])
        w, S = randn(50, seed=-step - 1), randn(len(rows), 3, seed=99)
        assert_close(basis.rows, torch.stack(rows), rtol=1e-12, atol=1e-12)
        assert_close(basis.dot(w), torch.stack([q @ w for q in rows]))
        assert_close(basis.combine(S), S.T @ torch.stack(rows))
        assert_close(basis.subtract(w, S[:, 0]), w - S[:, 0] @ torch.stack(rows))
        assert_close(basis.subtract(w, S[1:, 0], first=1), w - S[1:, 0] @ torch.stack(rows)[1:] if len(rows) > 1 else w)
        assert home == "disk" or len(basis.storage) <= 20


@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_steps_keeps_the_decomposition(seed):
    op, rng = prescribed(VALUES, seed), np.random.default_rng(seed)
    krylov = Krylov(op, 60)
    krylov.add(randn(100, seed=seed))
    for step in range(60):
        move = rng.random()
        if krylov.room < 8: thick_restart(krylov, Target(4, "BE", 1e-6, EPS))
        elif move < .1: krylov.add(randn(100, seed=step))
        elif move < .2 and krylov.m > 2:
            sigma = krylov.ritz()[0][-2:].mean().item()
            probe = Probe(krylov, randn(100, seed=step), sigma, 1)
            probe.run(1e-6, 4)
            absorb(probe)
        elif len(krylov.pending): krylov.expand(int(rng.integers(len(krylov.pending))))
        if krylov.m: assert identity_error(krylov) < 1e-12, step
    assert krylov.m > 10


def test_a_chain_leaves_no_trace_when_it_is_forgotten():
    op = prescribed(VALUES)
    space = Range(op, 100)
    space.queue(torch.linalg.qr(randn(100, 8)).Q.T)
    for _ in range(2): space.expand()
    before, m = space.G.clone(), space.m
    Probe(space, randn(100, seed=1), 4., 1).run(1e-9, 9)
    space.forget(m)
    assert torch.equal(space.G, before) and identity_error(space) < 1e-12
    space.expand()
    assert identity_error(space) < 1e-12


def test_what_the_complement_of_everything_holds():
    "Where the whole space is explored, nothing is left, and both tests say so."
    op = prescribed(np.r_[3., 2., np.zeros(28)])
    krylov = Krylov(op, 30)
    for seed in range(3): krylov.add(randn(30, seed=seed))
    while len(krylov.pending): krylov.expand(0)
    values, _, ends = krylov.ritz()
    assert probe_block(krylov, values, ends, 1., randn(4, 30, seed=7))[0] < -50
    probe = Probe(krylov, randn(30, seed=8), 1., 1)
    probe.run(0., 5)
    assert not probe.found and probe.ended and 0 < probe.miss < 1e-9 and probe.steps < 5  # not proven, but nearly


def test_the_row_that_carries_the_open_residuals_is_next():
    op = MatrixOperator(torch.diag(torch.tensor([9., 8.5, 1., .9, 0., 0.], dtype=F64)))
    krylov, e = Krylov(op, 6), torch.eye(6, dtype=F64)
    krylov.add(e[2] + .1 * e[3])
    krylov.add(e[0] + e[1])
    krylov.expand(0), krylov.expand(0)  # two chains, each with a pending row
    ritz = look(krylov, Target(1, "LA", 1e-9, EPS))
    assert ritz.open.all() and (krylov.pending[most_open(ritz)] @ (e[0] - e[1])).abs() > 1


def test_zeros_that_rounding_has_moved_are_not_chased():
    "Fourteen zeros, five of them wanted, and restarts: differences that rounding leaves are no eigenvalues."
    for seed in range(12):
        op = prescribed(np.repeat([0., 1., 6.], [14, 3, 3]), seed)
        with quiet("rounding floor"):
            pairs = top_eigenpairs(op, 5, which="SA", tol=1e-9, basis_bytes=17 * 20 * 8, generator=seeded(seed))
        assert op.n_matvecs < 36 and pairs.values.abs().max() < 1e-13 and pairs.miss_probability <= 1e-3


def test_start_vectors_of_a_search_in_single_precision():
    "They are given in double, and the coarse search takes them."
    class Offers(MatrixOperator):
        def in_single(self):
            coarse = MatrixOperator(self.A.float())
            coarse.noise = 1e-7
            return coarse
    op = Offers(prescribed(VALUES).A)
    cold = top_eigenpairs(op, 3, tol=1e-8)
    warm = top_eigenpairs(op, 3, tol=1e-8, start=cold.vectors)
    assert warm.n_single and warm.converged.all() and warm.n_matvecs < cold.n_matvecs
    assert_close(warm.values, torch.tensor([9., 7., 7.], dtype=F64))


def test_a_budget():
    seen = []
    with Budget(5, lambda *args: seen.append(args)) as budget:
        assert not budget.spend(2, 0) and budget.left == 3 and not budget.spend(3, 1) and budget.left == 0
    assert seen == [(2, 0), (5, 1)] and Budget().left == math.inf
    with Budget(5, lambda *args: True) as budget: assert budget.spend(1, 0) and budget.left == 0


def test_a_search_that_may_not_take_a_step():
    "One product is always made, so that there is something to return."
    search = Search(prescribed(VALUES), Target(2, "LA", 1e-6, EPS), Budget(0), 50, seeded(0))
    assert find(search, None, 1e-3).stopped == "budget" and search.budget.used == 1


@pytest.mark.parametrize("which", ["LA", "BE"])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_a_basis_on_disk_gives_the_same_pairs(which, dtype, monkeypatch):
    "Also in blocks of a few columns, with restarts, probes without rows and warm starts."
    monkeypatch.setattr(basis_module, "BLOCK", 2**11)
    op, tol = prescribed(VALUES, dtype=dtype), 1e-4 if dtype == F32 else 1e-9
    here = top_eigenpairs(op, 6, which=which, tol=tol)
    for kwargs in (dict(), dict(basis_bytes=18 * 100 * dtype.itemsize), dict(start=here.vectors[:2])):
        there = top_eigenpairs(op, 6, which=which, tol=tol, basis_on="disk", **kwargs)
        assert there.converged.all() and there.miss_probability <= 1e-3
        assert_close(there.values, here.values, rtol=tol, atol=tol)
    until = eigenpairs_until(op, lambda values, V: len(values) >= 6, k=2, which=which, tol=tol, basis_on="disk")
    assert until.converged.all() and until.stopped == "converged"


def test_too_little_memory_goes_to_disk_and_is_said():
    op = prescribed(VALUES)
    with pytest.warns(UserWarning, match="the basis of 20 vectors takes .* GiB and is kept in a file in"):
        pairs = top_eigenpairs(op, 8, basis_bytes=15 * 800)
    assert_close(pairs.values, torch.from_numpy(np.sort(VALUES)[:-9:-1].copy()), rtol=1e-6, atol=0)
    with pytest.warns(UserWarning, match="kept in a file"):
        eigenpairs_until(op, lambda *_: False, k=8, max_pairs=8, basis_bytes=15 * 800)


def test_no_room_at_all(monkeypatch):
    op = prescribed(VALUES)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=10_000))
    with pytest.raises(ValueError, match="k=8 pairs of 100 numbers need .* GiB for a basis of 20 vectors"):
        top_eigenpairs(op, 8, basis_bytes=15 * 800)
    assert op.n_matvecs == 0
    monkeypatch.setattr("hessnb.curvature.top._BYTES", 1000)
    assert room_for(op, 8, None, "auto") == (20, "device")  # of what is free in memory


def test_memory_that_a_container_allows(monkeypatch):
    texts = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    1000 kB\n", "/sys/fs/cgroup/memory.max": "500000\n",
             "/sys/fs/cgroup/memory.current": "300000\n",
             "/sys/fs/cgroup/memory.stat": "anon 7\ninactive_file 100000\n"}
    monkeypatch.setattr(Path, "read_text", lambda self: texts[str(self)])
    assert free_bytes("cpu") == 300_000
    texts["/sys/fs/cgroup/memory.max"] = "max\n"
    assert free_bytes("cpu") == 1_024_000


def test_a_probe_of_three_rows_sees_what_a_chain_sees():
    "In the complement of a space that is coupled to its pending rows; and the vector that it finds."
    op = prescribed(VALUES)
    krylov = Krylov(op, 80)
    krylov.add(randn(100, seed=0))
    for _ in range(12): krylov.expand()
    m, start = krylov.m, randn(100, seed=1)
    long, short = Probe(krylov, start, 9.5, 1), ShortProbe(krylov, start, 9.5, 1)
    long.run(1e-12, 15)
    krylov.forget(m)
    short.run(1e-12, 15)
    assert krylov.m == m and long.along.abs().max() > 1e-3
    assert_close(short.T, long.T, rtol=0, atol=1e-8)
    short = ShortProbe(krylov, start, 1.5, 1)
    short.run(1e-3, 60)
    v = short.vector()
    assert short.found and v @ op.matvec(v) > 1.5 * v @ v and (krylov.Q @ v).abs().max() < 1e-10
    assert_close(v @ short.image(v)[1], torch.linalg.eigvalsh(short.T)[-1], rtol=1e-9, atol=0)


def test_certified_with_few_rows():
    "Copies that a basis of k + 12 rows may miss: a certificate that was given holds."
    draw, certified = np.random.default_rng(0), 0
    for seed in range(25):
        k = int(draw.integers(1, 6))
        tops = np.repeat(draw.uniform(1.05, 3, k + 2), draw.integers(1, 4, k + 2))
        values = np.r_[tops, draw.uniform(-1, 1, 300 - len(tops))]
        with quiet("miss_probability"):
            pairs = top_eigenpairs(prescribed(values, seed), k, tol=1e-4, basis_bytes=(k + 12) * 300 * 8)
        if pairs.converged.all() and pairs.miss_probability <= 1e-3:
            certified += 1
            assert abs(pairs.values.numpy() - np.sort(values)[::-1][:k]).max() < 1e-3
    assert certified >= 22


class Users:
    "As little as a user may write."
    def __init__(self, A): self.A, self.shape, self.dtype, self.device = A, A.shape, A.dtype, A.device
    def matvec(self, v): return self.A @ v


EVERY = [
    lambda op: top_eigenpairs(op, 3), lambda op: top_eigenpairs(op, 60), lambda op: dense_eigenpairs(op, 4),
    lambda op: eigenpairs_until(op, lambda values, V: len(values) > 3, k=2), lambda op: nonzero_eigenpairs(op, rtol=.2),
    lambda op: nonzero_eigenpairs(op), lambda op: refine(top_eigenpairs(op, 2, tol=1e-2), op), trace,
    lambda op: trace(op, exact=True), lambda op: spectral_density(op, n_steps=5, n_probes=2),
    lambda op: spectral_density(op, n_steps=5, n_probes=2, pairs=top_eigenpairs(op, 2)),
    lambda op: tridiagonalize(op, torch.ones(100, dtype=F64), 4)]


@pytest.mark.parametrize("call", EVERY)
def test_every_function_takes_an_operator_of_the_users(call):
    "The same answer as for ours, whose products of a block may round otherwise."
    A = prescribed(VALUES).A
    ours, theirs = vars(call(MatrixOperator(A))), vars(call(Users(A)))
    numbers = {"values", "value", "nodes", "alpha", "n_matvecs"} & set(ours)
    for name in numbers: assert_close(theirs[name], ours[name], rtol=1e-9, atol=1e-11)
    assert numbers and theirs.get("stopped") == ours.get("stopped")


@pytest.mark.parametrize("call", EVERY)
def test_warnings_and_threads_are_left_alone(call, monkeypatch):
    "No filter of warnings is touched, and no bar is made, which would start a thread, by a call that shows none."
    def forbidden(*args, **kwargs): raise AssertionError("an effect on the process")
    for name in ("catch_warnings", "filterwarnings", "simplefilter"): monkeypatch.setattr(warnings, name, forbidden)
    monkeypatch.setattr("hessnb.curvature.budget.tqdm", forbidden)
    call(prescribed(VALUES))
