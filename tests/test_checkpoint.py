"A search that is killed goes on where it was, to the same bits; and no state is taken for what it is not."
import copy
import json
import os
import signal
import subprocess
import sys
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from conftest import F64, HERE, blobs, mlp, prescribed, quiet, randn, seeded
from hessnb.curvature import checkpoint as room
from hessnb.curvature import fast, store
from hessnb.curvature.basis import FileRows
from hessnb.curvature.budget import Budget
from hessnb.curvature.checkpoint import Checkpoint, difference, digest, fingerprint
from hessnb.curvature.eigenpairs import EigenPairs
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.operator import MatrixOperator
from hessnb.curvature.search import Search, Target, find
from hessnb.curvature.store import TensorFile, write_tensors
from hessnb.curvature.top import top_eigenpairs

VALUES = np.r_[[9., 7., 7., 5., 3., 2.8], np.linspace(-.5, 1, 94)]
ROWS = 100 * 8  # bytes of one


def die(): os.kill(os.getpid(), signal.SIGKILL)


class Mortal(MatrixOperator):
    "Kills its process at a product, counted from 1."
    def __init__(self, A, at=None, coarse=None):
        super().__init__(A)
        self.at, self.done, self.coarse = at, 0, coarse

    def one(self, V):
        self.done += len(V)
        if self.at is not None and self.done >= self.at: die()

    def apply(self, v):
        self.one(v[None])
        return super().apply(v)

    def apply_rows(self, V):
        self.one(V)
        return super().apply_rows(V)

    def in_single(self):
        if self.coarse is None: return None
        outer, off = self, 0. if self.coarse == "fine" else 1e-4
        class Coarse(MatrixOperator):
            noise = 1e-7
            def apply(self, v):
                outer.one(v[None])
                return super().apply(v)
        return Coarse((self.A + off * self.A.diag().diag()).float())


def in_a_child(run):
    "Run it in a copy of this process; the signal that ended that, 0 if it came to its end."
    child = os.fork()
    if not child:
        try:
            warnings.simplefilter("ignore")
            run()
            os._exit(0)
        except BaseException as e:
            print(repr(e), file=sys.stderr)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, "the child failed"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def same(a, b):
    assert repr(a) == repr(b)
    for name in ("values", "vectors", "residuals", "converged"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert (a.n_matvecs, a.n_certify, a.n_single) == (b.n_matvecs, b.n_certify, b.n_single)
    assert a.miss_probability == pytest.approx(b.miss_probability, rel=1e-9)  # some kernels depend on alignment


@pytest.fixture
def always(monkeypatch):
    "The state is written wherever it can be, but not brought to the disk: a process is killed here, not the machine."
    monkeypatch.setattr(room, "LONGEST", 0.)
    monkeypatch.setattr(store.os, "fsync", lambda fd: None)


A = prescribed(VALUES).A
WAYS = {
    "one chain": dict(k=4),
    "restarts, short probes": dict(k=4, basis_bytes=16 * ROWS),
    "restarts, long probes": dict(k=2, basis_bytes=60 * ROWS),
    "both ends": dict(k=4, which="BE", basis_bytes=18 * ROWS),
    "magnitude": dict(k=3, which="LM"),
    "start": dict(k=4, start=randn(5, 100)),
    "start, restarts": dict(k=4, start=randn(5, 100), basis_bytes=16 * ROWS),
    "on disk": dict(k=4, basis_bytes=16 * ROWS, basis_on="disk"),
    "no probe": dict(k=4, miss_probability=1.),
    "mixed": dict(k=4, coarse="fine"),
    "mixed, restarts": dict(k=4, coarse="fine", basis_bytes=70 * ROWS),
    "mixed, in vain": dict(k=4, coarse="bad"),
    "float32": dict(k=3, tol=1e-3, single_precision=True),
    "another stream": dict(k=4, seed=7),
}


def search(way, at=None, checkpoint=None, **more):
    options = {**WAYS[way], **more}
    coarse, seed, k = options.pop("coarse", None), options.pop("seed", None), options.pop("k")
    op = Mortal(A.float() if options.pop("single_precision", False) else A, at, coarse)
    if seed is not None: options["generator"] = seeded(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return top_eigenpairs(op, k, checkpoint=checkpoint, **options), op


@pytest.mark.parametrize("way", WAYS)
def test_killed_at_any_product_it_ends_the_same(tmp_path, always, way):
    undisturbed, op = search(way)
    total = op.done
    for i, at in enumerate(np.linspace(2, total + 1, 3).astype(int).tolist()):
        folder = tmp_path / str(i)
        assert in_a_child(lambda at=at, folder=folder: search(way, at, folder)) == signal.SIGKILL
        pairs, op = search(way, None, folder)
        same(pairs, undisturbed)
        lost = op.done + at - 1 - total  # products that were made twice: the fingerprint, and what was not kept
        assert lost <= 2 + (at > undisturbed.n_matvecs) * 60, (at, lost)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_killed_at_every_product_it_ends_the_same(tmp_path, always, way):
    undisturbed, op = search(way)
    for at in range(1, op.done + 2):
        folder = tmp_path / str(at)
        assert in_a_child(lambda at=at, folder=folder: search(way, at, folder)) == signal.SIGKILL
        same(search(way, None, folder)[0], undisturbed)


@pytest.mark.parametrize("way", ["restarts, short probes", "restarts, long probes", "mixed"])
def test_killed_again_and_again(tmp_path, always, way):
    undisturbed, _ = search(way)
    for _ in range(40):
        if in_a_child(lambda: search(way, 9, tmp_path)) == 0: break
    else: pytest.fail("no end is reached")
    same(search(way, None, tmp_path)[0], undisturbed)


@pytest.mark.parametrize("call", ["replace", "fsync", "write"])
@pytest.mark.parametrize("before", [True, False])
def test_killed_while_it_is_written(tmp_path, always, call, before):
    undisturbed, _ = search("restarts, short probes")

    def run(folder, at):
        calls = [0]
        def mortal(original):
            def wrapped(*args, **kwargs):
                calls[0] += 1
                if calls[0] == at and before: die()
                out = original(*args, **kwargs)
                if calls[0] == at: die()
                return out
            return wrapped
        if call == "write": store.pieces = mortal(store.pieces)
        else: setattr(store.os, call, mortal(getattr(os, call)))
        search("restarts, short probes", None, folder)

    for at in (1, 3, 24):
        folder = tmp_path / str(at)
        assert in_a_child(lambda folder=folder, at=at: run(folder, at)) == signal.SIGKILL
        same(search("restarts, short probes", None, folder)[0], undisturbed)
        assert sorted(os.listdir(folder)) == ["lock", "pairs.safetensors", "search.safetensors"]


SCRIPT = """
import os, signal, sys
sys.path.insert(0, os.path.dirname({tests!r}))
sys.path.insert(0, {tests!r})
import torch
from test_checkpoint import curvature, die
from hessnb.curvature.top import top_eigenpairs
die_at = int(sys.argv[2])
pairs = top_eigenpairs(curvature(sys.argv[3]), 3, checkpoint=sys.argv[1], basis_bytes=20 * 8 * 443,
                       progress=lambda products, found: die() if products == die_at else None)
"""


def curvature(dtype):
    model = mlp(D=8, C=3, hidden=40).to(getattr(torch, dtype))
    return HessianOperator(Objective(model, blobs(N=60, D=8, C=3), "cross_entropy", dtype=getattr(torch, dtype)))


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
def test_a_model_in_another_process(tmp_path, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        undisturbed = top_eigenpairs(curvature(dtype), 3, basis_bytes=20 * 8 * 443)
        total = undisturbed.n_matvecs + undisturbed.n_certify
        script = SCRIPT.format(tests=str(HERE))
        for at in (15, total - 4) if dtype == "float32" else (total - 4,):
            command = [sys.executable, "-c", script, tmp_path, str(at), dtype]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == -signal.SIGKILL, done.stderr
        same(top_eigenpairs(curvature(dtype), 3, checkpoint=tmp_path, basis_bytes=20 * 8 * 443), undisturbed)


@pytest.mark.parametrize("products", [4, 11, 12, 13])
def test_a_trace_that_rounds_otherwise_comes_at_the_same_product(tmp_path, monkeypatch, products):
    "Graph and trace of a convolution of images differ by rounding; here it comes after twelve products."
    monkeypatch.setattr(fast, "_TRACING", (12, 0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(75, 4))
    objective = Objective(model, (randn(40, 1, 12, 12).float(), torch.arange(40) % 4))
    halt = lambda n, found: n == products
    def ask(**kwargs): return top_eigenpairs(HessianOperator(objective), 3, tol=1e-5, **kwargs)
    whole = ask(checkpoint=tmp_path / "whole")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it was stopped
        ask(checkpoint=tmp_path / "halted", progress=halt)
    again = ask(checkpoint=tmp_path / "halted")
    same(again, whole)
    assert whole.n_matvecs > 12
    monkeypatch.setattr(fast, "_TRACING", (10**9, 0))
    never = ask()
    assert not torch.equal(never.vectors, whole.vectors) and (never.values - whole.values).abs().max() < 1e-4


def equal(a, b):
    if isinstance(a, torch.Tensor): return a.dtype == b.dtype and torch.equal(a, b)
    return all(equal(vars(a)[n], vars(b)[n]) for n in vars(a)) if hasattr(a, "__dict__") else a == b


@pytest.mark.parametrize("way", ["both ends", "start, restarts", "restarts, long probes", "restarts, short probes"])
def test_all_that_a_search_knows_comes_back(tmp_path, always, monkeypatch, way):
    write, seen = Checkpoint.write, []

    def checked(self, search):
        write(self, search)
        other, krylov = copy.copy(self), search.krylov
        other.look()
        new = Search(search.op, Target(1, "LM", .1, .1), Budget(), krylov.capacity, seeded(9), krylov.basis.home)
        assert other.restore(new)
        elsewhere = {"op", "budget", "generator", "keeper", "ritz", "krylov", "probe", "probe_goal"}
        for name in set(vars(search)) - elsewhere:
            assert equal(getattr(search, name), getattr(new, name)), name
        for name in ("m", "Q", "pending", "coupling", "G", "scale", "skew", "capacity"):
            assert equal(getattr(krylov, name), getattr(new.krylov, name)), name
        assert new.budget.used == search.budget.used
        assert torch.equal(new.generator.get_state(), search.generator.get_state())
        if search.probe is not None:
            assert type(new.probe) is type(search.probe) and new.probe.space is new.krylov
            assert all(equal(x, vars(new.probe)[name]) for name, x in vars(search.probe).items() if name != "space")
        seen.append((search.row, search.probe is None))

    monkeypatch.setattr(Checkpoint, "write", checked)
    search(way, None, tmp_path)
    assert len(set(seen)) >= 3


def test_rows_that_a_probe_has_left_behind_are_not_kept(tmp_path, always):
    op = MatrixOperator(A)
    def make(keeper): return Search(op, Target(2, "LA", 1e-6, 2e-16), Budget(), 100, seeded(0), keeper=keeper)
    with Checkpoint(tmp_path, op, {}, seeded(0)) as keeper:
        one = make(keeper)
        find(one, None, 1e-3)
        rows = one.krylov.m
        assert sum(n for _, n in keeper.segments) > rows  # those of the probe were written
        one.krylov.add(randn(100))
        for _ in range(3):
            one.expand(-1)
            one.save()
        assert sum(n for _, n in keeper.segments) == rows + 3
    with Checkpoint(tmp_path, op, {}, seeded(0)) as keeper:
        two = make(keeper)
        assert keeper.restore(two) and torch.equal(one.krylov.Q, two.krylov.Q)


def test_what_has_ended_is_returned_after_one_product(tmp_path):
    for way in ("one chain", "another stream", "mixed"):
        folder = tmp_path / way
        undisturbed, _ = search(way)
        same(search(way, None, folder)[0], undisturbed)
        pairs, op = search(way, None, folder)
        same(pairs, undisturbed)
        assert op.done == 1
        same(EigenPairs.load(folder / "pairs.safetensors"), undisturbed)


def test_the_random_stream_is_left_where_it_would_be(tmp_path):
    streams = [seeded(3) for _ in range(3)]
    search("one chain", generator=streams[0])
    search("one chain", None, tmp_path, generator=streams[1], progress=lambda products, found: products == 9)
    assert torch.equal(streams[1].get_state(), seeded(3).get_state())  # so that this is the same call:
    search("one chain", None, tmp_path, generator=streams[1])
    search("one chain", None, tmp_path, generator=streams[2])
    assert all(torch.equal(g.get_state(), streams[0].get_state()) for g in streams)


def test_an_exception_is_an_interruption(tmp_path, always):
    def interrupt(products, found):
        if products == 13: raise KeyboardInterrupt
    undisturbed, stream = search("one chain", generator=seeded(3))[0], seeded(3)
    with pytest.raises(KeyboardInterrupt): search("one chain", None, tmp_path, generator=stream, progress=interrupt)
    pairs, op = search("one chain", None, tmp_path, generator=stream)
    same(pairs, undisturbed)
    assert op.done <= undisturbed.n_matvecs + undisturbed.n_certify - 10


def test_a_small_matrix_is_kept_when_it_is_done(tmp_path):
    op = prescribed(range(9))
    pairs = top_eigenpairs(op, 5, checkpoint=tmp_path)
    before = op.n_matvecs
    same(top_eigenpairs(op, 5, checkpoint=tmp_path), pairs)
    assert op.n_matvecs == before + 1


@pytest.mark.parametrize("way", ["one chain", "restarts, short probes", "start"])
def test_a_budget_that_ends_can_be_raised(tmp_path, way):
    undisturbed, op = search(way)
    for i, most in enumerate((5, 12, undisturbed.n_matvecs + 3)):
        folder = tmp_path / str(i)
        short, _ = search(way, None, folder, max_matvecs=most)
        again, _ = search(way, None, folder, max_matvecs=most)
        assert repr(short) == repr(again)
        same(search(way, None, folder)[0], undisturbed)


def test_another_home_of_the_basis_is_the_same_call(tmp_path):
    stop = lambda products, found: products == 30
    search("on disk", None, tmp_path, progress=stop)
    pairs, _ = search("on disk", None, tmp_path, basis_on="device")
    undisturbed, _ = search("on disk")
    torch.testing.assert_close(pairs.values, undisturbed.values, rtol=1e-12, atol=0)
    assert pairs.converged.all()


def test_progress_counts_from_where_it_was(tmp_path):
    seen = []
    search("one chain", None, tmp_path, progress=lambda products, found: products == 9)
    search("one chain", None, tmp_path, progress=lambda products, found: seen.append(products))
    assert seen == list(range(10, 10 + len(seen))) and len(seen) > 5


CHANGES = {
    "k": dict(k=5), "which": dict(which="SA"), "tol": dict(tol=1e-5), "miss_probability": dict(miss_probability=1e-2),
    "basis_bytes": dict(basis_bytes=50 * ROWS), "start": dict(start=randn(1, 100)), "generator": dict(seed=1),
    "single": dict(single=False),
}


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("name", CHANGES)
def test_another_request_is_refused(tmp_path, name, ended):
    search("one chain", None, tmp_path, progress=False if ended else lambda *_: True)
    with pytest.raises(ValueError, match=f"another request: {name} was .* delete the folder"):
        search("one chain", None, tmp_path, **CHANGES[name])


@pytest.mark.parametrize("change", ["values", "size", "sign", "dtype", "one entry"])
def test_another_operator_is_refused(tmp_path, change):
    search("one chain", None, tmp_path)
    other = {"values": A + 1e-6 * torch.eye(100, dtype=F64), "size": A[:99, :99], "sign": -A, "dtype": A.float(),
             "one entry": A.clone()}[change]
    message = "another request: p" if change in ("size", "dtype") else "another operator: a product differs by"
    if change == "one entry": other[3, 3] += 1e-4
    op = MatrixOperator(other)
    with pytest.raises(ValueError, match=message):
        top_eigenpairs(op, 4, checkpoint=tmp_path)
    assert op.n_matvecs == 1


def test_rounding_makes_no_other_operator():
    a, b = fingerprint(MatrixOperator(A)), fingerprint(MatrixOperator(A * (1 + 1e-13)))
    assert 0 < difference(a, b) < 1e-9 and difference(a, a) == 0
    c, d = fingerprint(MatrixOperator(A.float())), fingerprint(MatrixOperator(A))
    assert 0 < difference(c, d) < 1e-5
    assert difference(fingerprint(MatrixOperator(0 * A)), fingerprint(MatrixOperator(0 * A))) == 0
    assert fingerprint(MatrixOperator(A[:3, :3])).shape[0] == 2
    assert digest(A) == digest(A.T.contiguous().T.clone()) != digest(A.float())


def halted(folder, way="one chain"):
    search(way, None, folder, progress=lambda products, found: products == 25)
    return sorted(folder.glob("rows-*"))


def test_damage_is_an_error_and_no_new_start(tmp_path, always):
    rows = halted(tmp_path)
    assert len(rows) > 1
    state = tmp_path / "search.safetensors"
    whole = {file: file.read_bytes() for file in [*rows, state]}

    def refused(message):
        with pytest.raises(ValueError, match=message) as error: search("one chain", None, tmp_path)
        assert str(tmp_path) in str(error.value) and "delete the folder to begin anew" in str(error.value)
        for file, content in whole.items(): file.write_bytes(content)

    for file in (rows[0], rows[-1]):
        file.write_bytes(whole[file][:-8])
        refused("is damaged: .*is it cut")
        file.unlink()
        refused("is damaged: .*No such file")
        file.write_bytes(whole[file][:-8] + b"\x7f" * 8)
        refused("is damaged: .*row 0 .* norm|is damaged: .*not")
        write_tensors(file, {"rows": randn(1, 99)})
        refused("is damaged: .*shape")
    for n in (0, 7, 100, len(whole[state]) // 2, len(whole[state]) - 1):
        state.write_bytes(whole[state][:n])
        refused("cannot be read")
    with TensorFile(state) as file: tensors, texts = {name: file.read(name) for name in file}, file.texts
    for change, message in [({"version": "2"}, "is of version 2, expected 1"), ({"kind": "x"}, "it holds x"),
                            ({"state": "{"}, "cannot be read"), ({"state": "{}"}, "cannot be read"),
                            ({"request": "[]"}, "cannot be read|another request")]:
        write_tensors(state, tensors, {**texts, **change})
        refused(message)
    values = json.loads(texts["state"])
    for change, message in [({"m": 7}, "rows, expected 7"), ({"segments": values["segments"][1:]}, "is damaged"),
                            ({"dtype": "torch.float16"}, "was left in torch.float16"),
                            ({"target": {"k": 4}}, "is damaged")]:
        write_tensors(state, tensors, {**texts, "state": json.dumps({**values, **change})})
        refused(message)
    for name in ("pending", "G", "coupling", "generator"):
        write_tensors(state, {n: x for n, x in tensors.items() if n != name}, texts)
        refused("is damaged")
    write_tensors(state, {**tensors, "pending": 2 * tensors["pending"]}, texts)
    refused("row 0 of pending")
    same(search("one chain", None, tmp_path)[0], search("one chain")[0])  # it is whole again


def test_damaged_pairs(tmp_path):
    search("one chain", None, tmp_path)
    path = tmp_path / "pairs.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="is damaged"): search("one chain", None, tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="is damaged"): search("one chain", None, tmp_path)


def test_folders_that_are_none(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file, expected a folder"): search("one chain", None, tmp_path / "file")
    with pytest.raises(ValueError, match="other files .file."): search("one chain", None, tmp_path)
    assert (tmp_path / "file").read_text() == "mine" and os.listdir(tmp_path) == ["file"]
    with pytest.raises(OSError): search("one chain", None, tmp_path / "file" / "below")


def test_one_process_at_a_time(tmp_path):
    op = MatrixOperator(A)
    with Checkpoint(tmp_path, op, {}, seeded(0)):
        with pytest.raises(ValueError, match="in use"): search("one chain", None, tmp_path)
    search("one chain", None, tmp_path)  # and then it is free


DEVICES = [pytest.param("pretended", marks=pytest.mark.pretended), pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("name", DEVICES)
def test_vectors_on_a_device_go_to_the_folder_and_back(tmp_path, always, name):
    place, device = nullcontext(), torch.device("cuda")
    if name == "pretended":
        from fakegpu import DEVICE, fake_gpu
        place, device = fake_gpu(), DEVICE
    with place:
        op = MatrixOperator(A.to(device))
        for i, home in enumerate(("device", "disk")):
            more = dict(basis_bytes=16 * ROWS, basis_on=home, generator=seeded(0))
            undisturbed = top_eigenpairs(op, 4, **more)
            for at in (10, 33):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    more["generator"] = seeded(0)
                    more["checkpoint"] = tmp_path / f"{i}{at}"
                    top_eigenpairs(op, 4, progress=lambda n, _, at=at: n == at, **more)
                pairs = top_eigenpairs(op, 4, **more)
                assert pairs.vectors.device == op.device and repr(pairs) == repr(undisturbed)
                for name in ("values", "vectors"):
                    assert torch.equal(getattr(pairs, name).cpu(), getattr(undisturbed, name).cpu())
            kept = top_eigenpairs(op, 4, **{**more, "generator": seeded(0)})
            assert kept.vectors.device == op.device


def test_several_processes_are_refused(tmp_path):
    op = MatrixOperator(A)
    op.processes = object()
    with pytest.raises(ValueError, match="in one process"): Checkpoint(tmp_path / "a", op, {}, seeded(0)).__enter__()
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_said_once_and_ends_nothing(tmp_path, always, monkeypatch):
    undisturbed, real, calls = search("restarts, short probes")[0], store.pieces, [0]
    def full(x):
        calls[0] += 1
        if 20 < calls[0] < 40: raise OSError(28, "No space left on device")
        return real(x)
    monkeypatch.setattr(store, "pieces", full)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pairs = top_eigenpairs(MatrixOperator(A), 4, basis_bytes=16 * ROWS, checkpoint=tmp_path)
    same(pairs, undisturbed)
    said = [w for w in caught if "No space left" in str(w.message)]
    assert calls[0] > 40 and len(said) == 1 and "the search goes on" in str(said[0].message)
    assert sorted(os.listdir(tmp_path)) == ["lock", "pairs.safetensors", "search.safetensors"]


def test_writing_takes_little_of_the_time(tmp_path, monkeypatch):
    clock, writes = [0.], []
    monkeypatch.setattr(room.time, "monotonic", lambda: clock[0])
    def slow(self, search):
        writes.append(clock[0])
        clock[0] += 1.
    monkeypatch.setattr(Checkpoint, "write", slow)
    class Slow(MatrixOperator):
        seconds = 5.
        def apply(self, v):
            clock[0] += self.seconds
            return super().apply(v)
    top_eigenpairs(Slow(A), 4, basis_bytes=16 * ROWS, checkpoint=tmp_path / "a")
    assert 4 <= len(writes) <= 1 + clock[0] / 20, (len(writes), clock)
    Slow.seconds, before = 700., clock[0]
    writes.clear()
    top_eigenpairs(Slow(A), 4, checkpoint=tmp_path / "b")
    assert len(writes) > 10 and clock[0] - before > 7000  # after ten minutes in any case


def test_rows_are_written_once_and_in_pieces(tmp_path, always, monkeypatch):
    written, real = [], room.write_tensors
    def counting(path, tensors, texts=None):
        if "rows" in tensors: written.append(tensors["rows"].shape[0])
        return real(path, tensors, texts)
    monkeypatch.setattr(room, "write_tensors", counting)
    largest, read = [0], FileRows.read
    def watched(self, first, last, columns):
        part = read(self, first, last, columns)
        largest[0] = max(largest[0], part.numel())
        return part
    monkeypatch.setattr(FileRows, "read", watched)
    pairs, _ = search("one chain", None, tmp_path)
    assert sum(written) <= 100 and set(written) == {1}
    search("on disk", None, tmp_path / "d")
    assert largest[0] <= 16 * 100 and pairs.converged.all()


def test_without_a_checkpoint_nothing_is_done(monkeypatch):
    monkeypatch.setattr(room, "fingerprint", None)
    monkeypatch.setattr(store, "replacing", None)
    with quiet(): assert top_eigenpairs(MatrixOperator(A), 4).converged.all()
