"Tracking leaves the training bit for bit as it is, and records what is there."
import copy
import math
import os
import random
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from conftest import HERE, blobs, build, mlp, quiet, randn, untouched
from hessnb import HessianOperator, Objective, dense_eigenpairs, top_eigenpairs
from hessnb.training.measures import (
    DEFAULT,
    MEASURES,
    Measure,
    Snapshot,
    batch_sharpness,
    frame_of,
    principal_angles,
    read_optimizer,
)
from hessnb.training.track import track

pytestmark = pytest.mark.filterwarnings("ignore:.*could not be measured")
X, Y = blobs(60, 2, 3)
X = (X + 2 * F.one_hot(Y, 3)[:, :2]).float()


def plain(): return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 3))
def normed(): return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
def dropped(): return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(.5), nn.Linear(8, 3))


def sgd(model): return torch.optim.SGD(model.parameters(), lr=.1, momentum=.9)
def adam(model): return torch.optim.Adam(model.parameters(), lr=.02)


def rows(n):
    for _ in range(n):
        at = torch.randint(len(X), (20,))
        yield X[at], Y[at]


def workers(n):
    loader = DataLoader(TensorDataset(X, Y), 20, shuffle=True, num_workers=2)
    while n > 0:
        for batch in loader:
            n -= 1
            yield batch
        random.random(), np.random.rand()


CASES = {"sgd": (plain, sgd, rows, False), "adam": (plain, adam, rows, False), "dropout": (dropped, sgd, rows, False),
         "batch norm": (normed, adam, rows, False), "mixed precision": (normed, sgd, rows, True),
         "workers": (dropped, adam, workers, False)}


def train(case, how, n=24, every=6, **kwargs):
    "Everything that a training leaves behind, and its tracker."
    make, optimise, batches, mixed = CASES[case]
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    model = make()
    optimizer, tracker = optimise(model), None
    if how != "alone":
        measures = (*DEFAULT, "frame", "trace", "complexity")
        tracker = track(model, (X, Y), k=2, every=every, background="thread" in how, measures=measures, **kwargs)
        if "watch" in how: tracker.watch(optimizer)
    for i, (x, y) in enumerate(batches(n), 1):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed): loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        if "step" in how: tracker.step(i)
    if tracker is not None: tracker.close()
    state = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
    moments = [t for s in optimizer.state_dict()["state"].values() for t in s.values() if isinstance(t, torch.Tensor)]
    streams = torch.tensor(random.getstate()[1]), torch.as_tensor(np.random.get_state()[1].copy())
    modes = torch.tensor([m.training for m in model.modules()])
    return [*state, *moments, torch.get_rng_state(), *streams, modes], tracker


@pytest.mark.parametrize("how", ["step", "watch in a thread"])
@pytest.mark.parametrize("case", CASES)
def test_training_is_the_same_bit_for_bit(case, how):
    alone, _ = train(case, "alone")
    found, tracker = train(case, how)
    assert len(tracker.records) >= (1 if how == "step in a thread" else 2), tracker
    assert {*tracker.missing} <= {"complexity"}, tracker  # a network may see one class only, for a while
    assert all(torch.equal(a, b) for a, b in zip(alone, found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["watch", "step in a thread"])
@pytest.mark.parametrize("case", CASES)
def test_the_other_two_ways(case, how): test_training_is_the_same_bit_for_bit(case, how)


def test_background_and_inline_record_the_same():
    "Of the same steps: a record that would come while another is made is left out."
    _, inline = train("batch norm", "step")
    _, thread = train("batch norm", "step in a thread")
    steps = dict(zip(inline.records.steps, inline.records))
    assert thread.records.steps[0] == inline.records.steps[0] == 1
    assert len(thread.records) + thread.n_skipped == len(inline.records)
    for r in thread.records:
        assert r["loss"] == steps[r.step]["loss"] and torch.equal(r["frame"], steps[r.step]["frame"])
        assert_close(r["values"], steps[r.step]["values"], rtol=1e-3, atol=1e-6)  # from another start


def test_live_model_and_settings_are_untouched():
    model = build(normed).train()
    F.cross_entropy(model(X.double()), Y).backward()
    tracker = None
    with untouched(model, tensors=(X, Y)):
        tracker = track(model, (X.double(), Y), k=2, every=1)
        tracker.step(0)
        tracker.step(1)
    assert len(tracker.records) == 2


def test_records_are_of_the_network_in_evaluation_mode():
    "Its statistics are those of the moment, and they matter."
    torch.manual_seed(0)
    model = normed()
    optimizer, kept = sgd(model), []
    tracker = track(model, (X, Y), k=3, every=5, tol=1e-4, dtype=torch.float64)
    for i, (x, y) in enumerate(rows(15), 1):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if tracker.step(i): kept.append(copy.deepcopy(model).eval())
    first = kept[0]
    for r, then in zip(tracker.records, kept, strict=True):
        dense = dense_eigenpairs(objective := Objective(then, (X, Y), dtype=torch.float64), tol=.1)
        assert_close(r["values"], dense.values[:3], rtol=1e-4, atol=0.)
        assert_close(r["loss"], objective.value())
    then[1].load_state_dict({**then[1].state_dict(), "running_mean": first[1].running_mean})
    assert abs(Objective(then, (X, Y), dtype=torch.float64).value() - r["loss"]) > 1e-6


def test_an_objective_says_over_which_parameters():
    model = mlp(D=2, C=3).float()
    objective = Objective(model, (X, Y), params="2.*", weight_decay=.1)
    tracker = track(objective, k=2, every=10)
    tracker.step(0)
    with torch.no_grad(): model[0].weight.mul_(2)  # not among them, and part of the function all the same
    tracker.step(10)
    assert tracker.records.about["n_params"] == objective.n_params and tracker.records.about["layers"] == ["2"]
    changed = Objective(model, (X, Y), params="2.*", weight_decay=.1)
    assert_close(tracker.records[1]["loss"], changed.value())
    assert_close(tracker.records[1]["values"], dense_eigenpairs(HessianOperator(changed), 2, tol=.01).values, rtol=1e-3,
                 atol=1e-6)
    assert abs(tracker.records[1]["loss"] - tracker.records[0]["loss"]) > 1e-4


def test_steps_and_what_is_due():
    model = plain()
    tracker = track(model, (X, Y), k=1, every=10, measures="loss")
    for i in (3, 4, 17, 18, 40, 41, 50): tracker.step(i)
    assert tracker.records.steps == [3, 17, 40, 50]
    with pytest.raises(ValueError, match="not of an epoch"): tracker.step(50)
    tracker.rewind(40)
    assert tracker.records.steps == [3, 17, 40]
    tracker.step(41)
    tracker.step(52)
    assert tracker.records.steps == [3, 17, 40, 52]
    assert tracker.record().step == 52
    tracker.step()  # 53
    assert tracker.record().step == 53 and tracker.record().step == 53
    for bad in (-1, 2.5, "7"):
        with pytest.raises((TypeError, ValueError)): tracker.step(bad)


@pytest.mark.parametrize("background", [False, True])
def test_errors_reach_the_training(background, tmp_path):
    "In the background, at the next step or when it is closed; what was recorded stays."
    model, seen = plain(), []
    def broken(record):
        seen.append(record.step)
        if record.step == 10: raise OSError("the log is full")
    tracker = track(model, (X, Y), k=1, every=10, background=background, on_record=broken, folder=tmp_path)
    with pytest.raises(OSError, match="log is full"):
        with tracker:
            for i in range(12):
                tracker.step(i)
                tracker.collect(wait=True)
    assert seen == [0, 10] and tracker.records.steps == [0, 10]


def test_an_error_of_the_thread_is_raised(tmp_path):
    tracker = track(plain(), (X, Y), k=1, every=1, background=True, folder=tmp_path / "run")
    tracker.step(0)
    tracker.collect(wait=True)
    for file in (tmp_path / "run" / "records").iterdir(): file.unlink()
    (tmp_path / "run" / "records").rmdir()
    tracker.step(1)
    with pytest.raises(FileNotFoundError): tracker.close()
    tracker.close()


def test_budget_spaces_the_records():
    "Shares are of time, so the claim is about sums with slack; each record's cost is its own."
    import time
    model, n = plain(), 0
    tracker = track(model, (X, Y), k=1, every=1, budget=.2, measures="loss")
    tracker.measures = (Measure("wait", "wait", "a hundredth of a second", lambda s: time.sleep(.01) or 1.),)
    for n in range(150):
        time.sleep(.002)
        tracker.step(n)
    assert tracker.n_skipped + len(tracker.records) == 150
    assert 2 <= len(tracker.records) <= 60 and tracker.share <= .3, tracker
    free = track(model, (X, Y), k=1, every=1, measures="loss")
    for n in range(30): free.step(n)
    assert len(free.records) == 30 and free.n_skipped == 0
    none = track(model, (X, Y), k=1, every=1, measures="loss", budget=0)
    for n in range(30): none.step(n)
    assert none.records.steps == [0]  # the first costs what it costs


def test_while_one_is_made_the_next_is_left_out():
    import threading
    go, model = threading.Event(), plain()
    tracker = track(model, (X, Y), k=1, every=1, background=True, measures="loss")
    tracker.measures = (Measure("wait", "wait", "until told", lambda s: go.wait(20) and 1.),)
    for i in range(5): assert tracker.step(i) is None
    go.set()
    tracker.close()
    assert tracker.records.steps == [0] and tracker.n_skipped == 4


def test_a_diverged_training_goes_on():
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    tracker = track(model, (X, Y), k=2, every=1, measures=(*DEFAULT, "trace", "margin", "frame"))
    tracker.step(0)
    names = set(tracker.records[0].numbers) - {"n_matvecs", "n_certify", "miss_probability"}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e30)
    for i in range(1, 6):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        tracker.step(i)
    last = tracker.records[-1]
    assert last.step == 5 and set(last.numbers) == names and not last.arrays
    assert all(math.isnan(last[name]) for name in names - {"seconds", "cost"})
    assert "NaN or infinite" in tracker.missing["loss"] and tracker.missing == tracker.records.about["missing"]
    with torch.no_grad():
        for p in model.parameters(): p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    tracker.step(6)
    assert tracker.records[-1]["sharpness"] > 0


def test_a_failure_is_said_once_and_the_others_go_on():
    model = Objective(mlp(D=2, C=3).float(), (X, Y))
    def never(s): raise KeyError("nothing there")
    tracker = track(model, k=2, every=1, measures=("loss", Measure("never", "never", "fails", never)))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for i in range(3): tracker.step(i)
    said = [w for w in said if "could not be measured" in str(w.message)]
    assert len(said) == 1 and "nothing there" in str(said[0].message)
    assert tracker.records.numbers("never").isnan().all() and not tracker.records.numbers("loss").isnan().any()


def test_warm_starts_and_one_check_of_the_derivatives(monkeypatch):
    from hessnb.curvature.verify import SelfChecking
    from hessnb.training import measures
    checked, started, check = [], [], SelfChecking.check
    monkeypatch.setattr(SelfChecking, "check", lambda self: checked.append(1) or check(self))
    search = measures.warm_eigenpairs
    monkeypatch.setattr(measures, "warm_eigenpairs",
                        lambda op, k, *, before, **kw: started.append(before) or search(op, k, before=before, **kw))
    model = plain()
    tracker = track(model, (X, Y), k=2, every=1)
    optimizer = sgd(model)
    for i, (x, y) in enumerate(rows(4)):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        tracker.step(i)
    assert len(checked) == 1 and len(started) == 4
    assert started[0] is None and all(b is not None for b in started[1:])


def test_what_warm_starts_save_is_counted():
    model = build(lambda: nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 3)))
    tracker, takes = track(model, (X.double(), Y), k=1, every=1, tol=1e-2, measures=("values", "n_cold")), []
    for _ in range(4):
        tracker.step()
        op = HessianOperator(Objective(copy.deepcopy(model), (X.double(), Y)), verify=False)
        cold = top_eigenpairs(op, 1, tol=1e-2)
        takes.append(cold.n_matvecs + cold.n_certify)
        with torch.no_grad():
            for p in model.parameters(): p.mul_(1.0001)
    assert tracker.records.numbers("n_cold").tolist() == takes
    warm = tracker.records.numbers("n_matvecs") + tracker.records.numbers("n_certify")
    assert tracker.saved == pytest.approx(1 - warm[1:].sum().item() / sum(takes[1:])) and tracker.saved > .2
    assert math.isnan(track(model, (X, Y)).saved)


@pytest.mark.slow
def test_memory_stays_flat():
    "Of python and of tensors: what is kept of a record is a few kilobytes."
    model = plain()
    tracker = track(model, (X, Y), k=2, every=10, measures=(*DEFAULT, "frame"), frame=16)
    optimizer, sizes = sgd(model), []
    live = lambda: sum(t.numel() for t in map_gc())
    tracemalloc.start()
    try:
        for i, (x, y) in enumerate(rows(400)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            tracker.step(i)
            if i in (195, 395): sizes.append((live(), tracemalloc.get_traced_memory()[0]))
    finally: tracemalloc.stop()
    grown = [b - a for a, b in zip(*sizes)]
    records = 20
    assert grown[0] < records * 700 + 2000, grown  # numbers in tensors: 256 of each frame, 80 of the rest
    assert grown[1] < records * 20_000, grown  # bytes of python


def map_gc():
    import gc
    return [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter)]


@pytest.mark.slow
def test_ten_thousand_steps_take_no_more_memory():
    code = """
import resource, sys, torch
from torch import nn
from hessnb.training.track import track
torch.set_num_threads(1)
X = torch.randn(100, 10); y = torch.arange(100) % 3
model = nn.Sequential(nn.Linear(10, 64), nn.Tanh(), nn.Linear(64, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=.05)
tracker = track(model, (X, y), k=3, every=100, folder=sys.argv[1]).watch(optimizer)
def resident(): return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
for i in range(10_000):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(X), y).backward()
    optimizer.step()
    if i in (3000, 9999): print(resident())
print(len(tracker.records))
"""
    if sys.platform != "linux": pytest.skip("reads /proc")
    import tempfile
    out = subprocess.run([sys.executable, "-c", code, tempfile.mkdtemp()], capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(HERE.parent)}, timeout=500)
    assert out.returncode == 0, out.stderr[-2000:]
    early, late, n = map(int, out.stdout.split())
    assert n == 101 and late - early < 20e6, (early, late)


# ---- measures ----

def test_every_measure_is_found_and_finite():
    model = build(plain)
    objective = Objective(model, (X.double(), Y))
    tracker = track(objective, k=4, every=1, minibatch=20, measures=[m.name for m in MEASURES], frame=20)
    tracker.optimizer = torch.optim.SGD(model.parameters(), lr=.1)
    with torch.no_grad():
        for _ in range(2):
            tracker.step()
            for p in model.parameters(): p.mul_(1.01)
    assert not tracker.missing, tracker.missing
    last, P = tracker.records[-1], objective.n_params
    assert {m.name for m in MEASURES} <= {*last.numbers, *last.arrays}
    assert all(math.isfinite(x) for x in last.numbers.values()), last.numbers
    shapes = {name: tuple(t.shape) for name, t in last.arrays.items()}
    assert shapes == dict(values=(4,), residuals=(4,), converged=(4,), errors=(4,), angles=(4,), participation=(4,),
                          layers=(4, 2), gradient=(4,), accuracies=(3,), margins=(5,), frame=(20, 20),
                          frame_margin=(20, 20), vectors=(4, P))
    assert last["frame"].dtype == torch.uint8 and last["frame_margin"].dtype == torch.float16
    assert last["lr"] == .1 and last["threshold"] == 20
    assert (last["participation"] > 1).all() and (last["participation"] <= P).all()
    about = tracker.records.about
    assert about["classes"] == ["0", "1", "2"] and about["layers"] == ["0", "2"] and about["frame_kind"] == "input"
    assert len(about["frame_points"]) == 60 and about["optimizer"] == "SGD"


def test_frame_of_more_features_is_a_plane_through_three_classes():
    x, y = blobs(30, 6, 4)
    objective = Objective(mlp(D=6, C=4), (x, y))
    frame = frame_of(objective, 21)
    assert frame.kind == "plane" and [c for *_, c in frame.points] == [0, 1, 2]
    at = torch.tensor([p[:2] for p in frame.points], dtype=torch.float64)
    assert_close(frame.plane.at(at), x[:3])
    again = frame_of(Objective(mlp(seed=5, D=6, C=4), (x, y)), 21)  # of the data alone
    assert again.box == frame.box and again.points == frame.points
    two = frame_of(Objective(mlp(D=6, C=2), (x, y % 2)), 5)
    assert sorted(c for *_, c in two.points) == [0, 0, 1]
    with quiet():
        tracker = track(mlp(D=6, C=4), (x, y), k=2, measures=("frame", "loss"), frame=21)
        tracker.step(0)
    u, v = frame.plane.lines(frame.box, 21)
    expected = mlp(D=6, C=4)(frame.plane.at(torch.stack([u[3:4], v[11:12]], 1))).argmax(1).item()
    assert tracker.records[0]["frame"][11, 3].item() == expected


def test_no_frame_where_there_are_no_points_between_inputs():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.out = nn.Embedding(9, 4), nn.Linear(4, 3)
        def forward(self, x): return self.out(self.words(x).mean(1))
    x = torch.randint(0, 9, (30, 5), generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="frame could not be measured"):
        tracker = track(Words(), (x, torch.arange(30) % 3), k=2, measures=("loss", "frame", "complexity"))
    tracker.step(0)
    assert set(tracker.missing) == {"frame", "complexity"} and math.isnan(tracker.records[0]["complexity"])


def test_regression_has_no_accuracy():
    net = build(lambda: nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)))
    tracker = track(net, (X.double(), randn(60, 1)), loss=nn.MSELoss(), k=2, every=1)
    tracker.step(0)
    assert set(tracker.missing) == {"accuracy", "accuracies"} and math.isnan(tracker.records[0]["accuracy"])
    assert "classes" not in tracker.records.about and tracker.records[0]["sharpness"] > 0


def test_batch_sharpness_is_that_of_the_batches():
    "Against a Hessian of the mini-batch's own loss by autograd."
    model = mlp(D=2, C=3)
    for decay in (0., .3):
        objective = Objective(model, (X.double(), Y), weight_decay=decay)
        found = batch_sharpness(objective, 7, 3, torch.Generator().manual_seed(5))
        draws, leaves = torch.Generator().manual_seed(5), objective.leaves()
        for value in found:
            at = torch.randperm(60, generator=draws)[:7]
            def loss(theta):
                out = torch.func.functional_call(model, split(theta), X[at].double())
                return F.cross_entropy(out, Y[at]) + decay / 2 * theta.square().sum()
            def split(theta):
                sizes = [p.numel() for p in leaves.values()]
                return {n: t.view_as(p) for (n, p), t in zip(leaves.items(), theta.split(sizes))}
            g = torch.func.grad(loss)(objective.theta)
            H = torch.func.hessian(loss)(objective.theta)
            assert_close(value, g @ H @ g / (g @ g), rtol=1e-8, atol=0.)
    for bad in (0, 61):
        with pytest.raises(ValueError, match="1 to 60 examples"): batch_sharpness(objective, bad)


def test_angles_of_turned_spaces():
    Q = torch.linalg.qr(randn(9, 9)).Q
    for angle in (0., 1e-9, 1e-5, .4, 1.2, math.pi / 2):
        turned = torch.stack([Q[0], math.cos(angle) * Q[1] + math.sin(angle) * Q[2]])
        found = principal_angles(Q[:2], turned)
        assert_close(found, torch.tensor([0., angle], dtype=torch.float64), rtol=1e-6, atol=2e-15 ** .5)
        mixed = torch.linalg.qr(randn(2, 2, seed=1)).Q @ turned
        assert_close(principal_angles(Q[:2], mixed), found, rtol=1e-6, atol=1e-7)


def test_what_is_read_of_an_optimiser():
    weights, more = [nn.Parameter(torch.ones(2))], [nn.Parameter(torch.ones(2))]
    two = torch.optim.SGD([dict(params=weights), dict(params=more, lr=.5)], lr=.1)
    assert math.isnan(read_optimizer(two).lr) and math.isnan(read_optimizer(two).threshold)
    adam = read_optimizer(torch.optim.Adam(weights, lr=.25))
    assert adam.name == "Adam" and adam.lr == .25 and math.isnan(adam.threshold)
    decayed = torch.optim.SGD(weights, lr=.1, weight_decay=.5)
    assert_close(read_optimizer(decayed).threshold, 19.5)
    assert_close(read_optimizer(decayed, .5).threshold, 20.)  # the objective has it
    assert read_optimizer(None) is None


def test_a_snapshot_computes_what_is_asked_for_once():
    calls = []
    objective = Objective(mlp(D=2, C=3), (X.double(), Y))
    s = Snapshot(0, lambda: calls.append(1) or objective)
    assert s.pairs is s.pairs and s.gradient is s.gradient and calls == [1]
    bad = Snapshot(0, lambda: calls.append(2) or 1 / 0)
    for _ in range(2):
        with pytest.raises(AttributeError, match="division"): bad.pairs  # noqa: B018
    assert calls == [1, 2]


@pytest.mark.parametrize("arguments,error,words", [
    (dict(measures=("sharpnes",)), ValueError, "there is no measure"),
    (dict(every=0), ValueError, "every"),
    (dict(every=2.5), TypeError, "every"),
    (dict(k=0), ValueError, "k must be between"),
    (dict(tol=2.), ValueError, "tol must be below"),
    (dict(budget=-1), ValueError, "budget"),
    (dict(curvature="hesian"), ValueError, "curvature must be one of"),
    (dict(measures=("batch_sharpness",)), ValueError, "minibatch="),
    (dict(dtype=torch.float16), TypeError, "float32 or float64"),
    (dict(frame=1, measures="frame"), ValueError, "frame"),
])
def test_what_is_refused(arguments, error, words):
    if arguments.get("frame"):
        tracker = track(plain(), (X, Y), **arguments)
        assert words in tracker.missing
        return
    with pytest.raises(error, match=words): track(plain(), (X, Y), **arguments)


def test_a_model_that_keeps_results_of_a_forward_pass():
    "As the older weight norm does; what cannot be copied is said."
    class Keeps(nn.Linear):
        def forward(self, x):
            self.kept = super().forward(x)
            return self.kept
    model = Keeps(2, 3)
    F.cross_entropy(model(X), Y).backward()
    kept = model.kept
    tracker = track(model, (X, Y), k=2, every=1)
    tracker.step(0)
    assert model.kept is kept and kept.grad_fn is not None and not tracker.missing
    model.lock = __import__("threading").Lock()
    with pytest.raises(TypeError, match="cannot be copied"): track(model, (X, Y))


def test_a_wrapped_forward_is_not_that_of_the_live_model():
    "As accelerate wraps it for mixed precision; the copy would call the live model."
    import functools
    model, calls = plain().double(), []
    inner = model.forward
    @functools.wraps(inner)
    def wrapped(*args):
        calls.append(1)
        return inner(*args).half()
    model.forward = wrapped
    tracker = track(model, (X.double(), Y), k=2, every=1, tol=1e-5)
    tracker.step(0)
    assert not calls and not tracker.missing and "forward" in vars(model)
    assert tracker.records[0]["loss"] == Objective(plain_copy(model), (X.double(), Y)).value()


def plain_copy(model):
    other = plain().double()
    other.load_state_dict(model.state_dict())
    return other.eval()


def test_a_model_that_is_another_one_is_said():
    model = plain()
    tracker = track(model, (X, Y), k=1, every=1)
    tracker.step(0)
    del model[2]
    with pytest.raises(RuntimeError, match="lost"): tracker.step(1)


def test_watch_counts_and_lets_go():
    model = plain()
    optimizer = sgd(model)
    with track(model, (X, Y), k=1, every=3, measures=("loss", "threshold")).watch(optimizer, 5) as tracker:
        for x, y in rows(4):
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    optimizer.step()
    assert tracker.records.steps == [5, 6, 9] and tracker.records[0]["threshold"] == pytest.approx(38.)
    assert not optimizer._optimizer_step_post_hooks
