"Records on disk: what is written is there after a kill, and what is damaged is said."
import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from conftest import HERE, blobs, randn
from hessnb.training.records import Record, Table, TrainingRecords
from hessnb.training.track import track

X, Y = blobs(60, 2, 3)
X = X.float()


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3))


def some(step, **more):
    arrays = {"values": randn(4, seed=step), "frame": torch.arange(step + 2)}
    return Record(step, {"loss": 1 / (step + 1), **more}, arrays)


def filled(folder, steps=(0, 10, 20, 30)):
    records = TrainingRecords(folder, {"k": 4})
    for step in steps: records.append(some(step))
    return records


def test_what_is_read_is_what_was_written(tmp_path):
    kinds = dict(a=torch.zeros(3, dtype=torch.bool), b=torch.rand(2, 2).half(), c=torch.arange(3, dtype=torch.uint8),
                 d=randn(5), e=torch.empty(0))
    numbers = dict(x=math.nan, y=math.inf, z=-math.inf, tiny=5e-324, third=1 / 3, whole=7)
    TrainingRecords(tmp_path).append(Record(3, numbers, kinds))
    for records in (TrainingRecords.load(tmp_path), TrainingRecords(tmp_path)):
        found = records[0]
        assert found.step == 3 and {n for n in found.arrays} == set(kinds)
        for name, t in kinds.items(): assert found[name].dtype == t.dtype and torch.equal(found[name], t)
        for name, x in numbers.items(): assert found[name] == x or math.isnan(x) and math.isnan(found[name])


def test_a_csv_for_others(tmp_path):
    records = filled(tmp_path)
    records.append(some(40, lr=.1))
    rows = list(csv.DictReader(open(tmp_path / "records.csv", encoding="utf-8")))
    assert [int(r["step"]) for r in rows] == records.steps == [0, 10, 20, 30, 40]
    assert [r["lr"] for r in rows] == ["", "", "", "", "0.1"] and float(rows[2]["loss"]) == 1 / 21
    assert (tmp_path / "records.csv").read_text() == records.to_csv()


def test_rewind_forgets_what_came_later(tmp_path):
    records = filled(tmp_path)
    records.rewind(15)
    assert records.steps == TrainingRecords.load(tmp_path).steps == [0, 10]
    with pytest.raises(ValueError, match="call rewind"): records.append(some(10))
    records.append(some(12))
    assert TrainingRecords.load(tmp_path).steps == [0, 10, 12]
    assert len((tmp_path / "records.csv").read_text().splitlines()) == 4
    records.rewind(-1)
    assert not records and not TrainingRecords.load(tmp_path)


def damage(how, file):
    raw = file.read_bytes()
    if how == "cut": file.write_bytes(raw[:len(raw) // 2])
    if how == "empty": file.write_bytes(b"")
    if how == "header": file.write_bytes(b"\xff" * 8 + raw[8:])
    if how == "another file": file.write_text("step,loss\n1,2\n")
    if how == "another kind": torch.save({"a": 1}, file)


@pytest.mark.parametrize("how", ["cut", "empty", "header", "another file", "another kind"])
def test_a_damaged_file_is_named(how, tmp_path):
    filled(tmp_path)
    file = tmp_path / "records" / f"{20:012d}.safetensors"
    damage(how, file)
    with pytest.raises((ValueError, OSError), match=file.name): TrainingRecords.load(tmp_path)
    file.unlink()
    assert TrainingRecords.load(tmp_path).steps == [0, 10, 30]


def test_what_is_half_written_is_not_read(tmp_path):
    "Files that a kill leaves between a write and its renaming have another name."
    filled(tmp_path)
    whole = tmp_path / "records" / f"{20:012d}.safetensors"
    for name in (f"{40:012d}.safetensors.tmp", f".{40:012d}.safetensors.x7"):
        shutil.copy(whole, tmp_path / "records" / name)
    assert TrainingRecords.load(tmp_path).steps == [0, 10, 20, 30]


def test_a_csv_that_is_lost_or_cut_is_made_anew(tmp_path):
    records = filled(tmp_path)
    (tmp_path / "records.csv").unlink()
    records.append(some(40))
    assert (tmp_path / "records.csv").read_text() == records.to_csv()
    (tmp_path / "records.csv").write_text("step,lo")
    records.append(some(50))
    assert (tmp_path / "records.csv").read_text() == records.to_csv()


@pytest.mark.parametrize("left", ["", "30,0.03"])
def test_a_row_that_a_kill_took_is_there_again(left, tmp_path):
    "Between the file of a record and its row, or in the middle of that."
    filled(tmp_path)
    file = tmp_path / "records.csv"
    rows = file.read_text().splitlines(keepends=True)
    file.write_text("".join(rows[:-1]) + left)
    records = TrainingRecords.load(tmp_path)
    records.append(some(40))
    assert file.read_text() == records.to_csv()


def test_no_records_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="no training records"): TrainingRecords.load(tmp_path)
    with pytest.raises(KeyError, match="only loss"): filled(tmp_path).numbers("sharpness")
    assert "no records" in repr(Table())


def test_about_is_kept(tmp_path):
    filled(tmp_path).describe(optimizer="SGD")
    assert TrainingRecords.load(tmp_path).about == {"k": 4, "optimizer": "SGD"}
    assert json.loads((tmp_path / "about.json").read_text()) == {"k": 4, "optimizer": "SGD"}


# ---- a run that goes on ----

def learn(model, optimizer, tracker, first, last):
    for i in range(first, last + 1):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        tracker.step(i)


def start(folder, **kwargs):
    model = net()
    tracker = track(model, (X, Y), k=2, every=10, folder=folder, **kwargs)
    return model, torch.optim.SGD(model.parameters(), lr=.1), tracker


def test_a_run_goes_on_where_its_checkpoint_was(tmp_path):
    "Records after the checkpoint are made anew; all are those of a run without a break."
    model, optimizer, tracker = start(tmp_path / "a")
    learn(model, optimizer, tracker, 1, 27)
    saved = {n: t.clone() for n, t in model.state_dict().items()}
    learn(model, optimizer, tracker, 28, 45)
    assert TrainingRecords.load(tmp_path / "a").steps == [1, 10, 20, 30, 40]
    made = []
    model, optimizer, tracker = start(tmp_path / "a", on_record=lambda record: made.append(record.step))
    model.load_state_dict(saved)
    learn(model, optimizer, tracker, 28, 60)
    assert made == [30, 40, 50, 60]
    other, optimizer, whole = start(tmp_path / "b")
    learn(other, optimizer, whole, 1, 60)
    assert tracker.records.steps == whole.records.steps == [1, 10, 20, 30, 40, 50, 60]
    found = TrainingRecords.load(tmp_path / "a")
    assert torch.equal(found.numbers("loss"), whole.records.numbers("loss"))
    assert_close(found.numbers("sharpness"), whole.records.numbers("sharpness"), rtol=1e-3, atol=1e-6)
    seconds = found.numbers("seconds")
    assert (seconds.diff() > 0).all()


def test_watching_goes_on_from_the_last_record(tmp_path):
    model, optimizer, tracker = start(tmp_path)
    def steps(n):
        for _ in range(n):
            F.cross_entropy(model(X), Y).backward()
            optimizer.step()
    with tracker.watch(optimizer): steps(20)
    for begin, expected in ((None, [0, 10, 20, 30]), (13, [0, 10, 20]), (0, [0, 10])):
        with track(model, (X, Y), k=2, every=10, folder=tmp_path).watch(optimizer, begin) as again: steps(10)
        assert again.records.steps == TrainingRecords.load(tmp_path).steps == expected


@pytest.mark.parametrize("other", [dict(k=3), dict(search=dict(which="LM")), dict(curvature="ggn")])
def test_another_run_is_refused(other, tmp_path):
    model, optimizer, tracker = start(tmp_path)
    learn(model, optimizer, tracker, 1, 10)
    with pytest.raises(ValueError, match="another run"):
        track(model, (X, Y), **dict(k=2, every=10, folder=tmp_path) | other)
    with pytest.raises(ValueError, match="n_params"):
        track(nn.Sequential(nn.Linear(2, 3)), (X, Y), k=2, every=10, folder=tmp_path)


KILLED = """
import sys, torch
from torch import nn
from hessnb.training.track import track
torch.manual_seed(0)
X, y = torch.randn(60, 2), torch.arange(60) % 3
model = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3))
optimizer = torch.optim.SGD(model.parameters(), lr=.1)
report = lambda record: print(record.step, flush=True)
tracker = track(model, (X, y), k=2, every=3, folder=sys.argv[1], on_record=report, background=sys.argv[2] == "thread",
                measures=("loss", "values", "frame"))
tracker.watch(optimizer)
while True:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(X), y).backward()
    optimizer.step()
"""


@pytest.mark.parametrize("where", [pytest.param("inline", marks=pytest.mark.slow), "thread"])
def test_records_are_there_after_a_kill(where, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path, where], stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"})
    try:
        said = [int(process.stdout.readline()) for _ in range(12)]
        time.sleep(.013)
        process.send_signal(signal.SIGKILL)
        said += [int(line) for line in process.communicate()[0].splitlines()]
    finally: process.kill()
    assert process.returncode == -signal.SIGKILL
    records = TrainingRecords.load(tmp_path)
    assert records.steps[:len(said)] == said and len(records) - len(said) <= 1
    for r in records: assert math.isfinite(r["loss"]) and r["values"].shape == (2,) and r["frame"].shape == (64, 64)
    assert records.about["k"] == 2
    last = records.steps[-1]
    records.append(some(last + 1))
    assert (tmp_path / "records.csv").read_text() == records.to_csv()
