"Several processes give what one gives: the same numbers, or an error in words, and never a wait without end."
import os
import re
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import processes
import pytest
import torch
from torch.testing import assert_close

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")
WORKER = str(Path(processes.__file__).resolve())
TASKS = {2: "held,everything,idle,wrapped,public,examined", 3: "held,everything,idle"}
FEW = dict(os.environ, OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore", PYTHONPATH=str(Path(WORKER).parent.parent))


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def many(request, tmp_path_factory):
    "World size, and what each of so many processes, started by torchrun, has found."
    n, out = request.param, tmp_path_factory.mktemp("processes") / "found"
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), WORKER]
    done = subprocess.run([*start, TASKS[n], out], env=FEW, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return n, [torch.load(f"{out}.{rank}") for rank in range(n)]


@cache
def alone(task): return processes.TASKS[task](None)


def close(found, expected, rtol):
    "Each number, relative to the largest of its tensor."
    found, expected = (torch.as_tensor(t).double() for t in (found, expected))
    size = expected.abs().max().item() if expected.numel() else 0.
    assert_close(found, expected, rtol=0, atol=rtol * size, equal_nan=True)


def compared(many, task, rtol=1e-12):
    for rank in many[1]:
        for case, numbers in alone(task).items():
            if case == "said": continue
            for name, expected in numbers.items() if isinstance(numbers, dict) else [(case, numbers)]:
                found = rank[task][case]
                close(found[name] if isinstance(numbers, dict) else found, expected, rtol)


def test_the_same_numbers(many):
    "Of the authors' networks, a CNN with uneven batches and a transformer."
    for rank in many[1]:
        assert len(rank["everything"]) == 6
        for case, expected in alone("everything").items():
            for name, number in expected.items():
                try: close(rank["everything"][case][name], number, 1e-12 if "64" in case else 1e-5)
                except AssertionError as e: raise AssertionError(f"{case}, {name}: {e}") from e


def test_all_processes_have_the_same_numbers(many):
    first, *others = (rank["everything"] for rank in many[1])
    for other in others:
        for case in first:
            assert torch.equal(first[case]["values"], other[case]["values"])
            assert torch.equal(first[case]["product"], other[case]["product"])


def test_uneven_shares_and_none(many):
    "One process has all of the data; there is one example for all; an error of one is one of all, without a wait."
    compared(many, "idle")
    for i, rank in enumerate(many[1]):
        said = rank["idle"]["refused"]
        for name, words in dict(data="different data", nan="15 of 255 values are NaN", none="data is empty",
                                parameters="different parameters", calls="do not make the same call",
                                sum="ZeroDivisionError: of one process").items():
            assert words in said[name], said
        assert said["after"] == ""  # and on they go
        assert ("process 1" in said["nan"]) == ("process 1" in said["sum"]) == (i != 1)


def test_what_a_process_holds(many):
    "Basis and parameters in shares; the caller's model is whole in each process."
    n, one = many[0], alone("held")
    for rank in many[1]:
        assert rank["held"]["bytes"] <= 1.2 / n * one["bytes"], (rank["held"], one)
        assert one["bytes"] > 30 * one["vector"]  # something was measured


def test_wrapped_models_and_loaders(many):
    "DistributedDataParallel, DistributedSampler with an example too many, fully_shard; refused without a mesh."
    if "wrapped" not in many[1][0]: pytest.skip("with two processes")
    compared(many, "wrapped")
    for rank in many[1]:
        said = rank["wrapped"]["refused"]
        for name in ("ddp", "fsdp", "sampler", "alone"): assert "pass mesh=" in said[name], said
        assert "init_device_mesh" in said["mesh"]
        assert said["order"] == ""


def test_every_public_function(many):
    "Each gives what it gives in one process, or says why it does not."
    if "public" not in many[1][0]: pytest.skip("with two processes")
    expected, loose = dict(alone("public")), {"fisher": .1, "single": 1e-5, "design": 1e-9, "points": 1e-9}
    assert not expected.pop("said")
    for rank in many[1]:
        found, said = rank["public"], rank["public"]["said"]
        for name in ("Workbook", "SpectrumExplorer", "BoundaryExplorer", "EigenvectorSliders"):
            assert said.pop(name).startswith("TypeError: explorers and the workbook work in one process")
        assert "cannot be pickled" in said.pop("pickle")
        assert not said
        for name, number in expected.items():
            try: close(found[name], number, loose.get(name, 1e-10))
            except AssertionError as e: raise AssertionError(f"{name}: {e}") from e


def test_an_examination(many):
    if "examined" not in many[1][0]: pytest.skip("with two processes")
    compared(many, "examined", 1e-9)


def test_a_process_that_ends():
    "The others say so at once."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    place = dict(FEW, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2")
    ranks = [subprocess.Popen([sys.executable, WORKER, "dies", "-"], env=dict(place, RANK=str(rank)), text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for rank in range(2)]
    start, (said, _) = time.perf_counter(), ranks[0].communicate(timeout=100)
    assert ranks[1].wait(timeout=60) == 3
    found = re.search(r"^([\d.]+) s: (.*)", said, flags=re.M)
    assert found and "ProcessLost: process 0 of 2 cannot reach another one" in found[2], said
    assert float(found[1]) < 60 and time.perf_counter() - start < 100
