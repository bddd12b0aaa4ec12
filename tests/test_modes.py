"Whatever the caller has set around a call, the numbers are the same."
import contextlib

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from conftest import build, randn
from hessnb.boundary.alignment import align
from hessnb.boundary.curves import trace_boundary
from hessnb.boundary.examine import examine
from hessnb.boundary.margin import estimate_margin
from hessnb.boundary.plane import scan_path, scan_plane
from hessnb.boundary.points import boundary_points
from hessnb.curvature.objective import Objective
from hessnb.show.workbook import Workbook


@contextlib.contextmanager
def double():
    torch.set_default_dtype(torch.float64)
    try: yield
    finally: torch.set_default_dtype(torch.float32)


MODES = {"no_grad": torch.no_grad, "inference": torch.inference_mode, "double": double,
         "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16)}
X, Y = randn(30, 2).float(), torch.arange(30) % 3
MODEL = build(lambda: nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3))).float()


def numbers():
    objective, V = Objective(MODEL, (X, Y)), torch.eye(39)[:2]
    e, scan = examine(MODEL, (X, Y), k=3, pairs=3), scan_plane(objective, X, V, n=8)
    found = [e.margin.value, e.directions.value, e.trace.value, e.pairs.values, align(objective, X, V).cosines,
             estimate_margin(objective, X, None).value, scan.cosines, scan.confidence, scan.u,
             scan_path(objective, X[0], X[1], n=9).loss, trace_boundary(objective, X, n=20).length,
             boundary_points(objective, X, n=5).points.sum()]
    book = Workbook(MODEL, (X, Y), k=2, background=False, examine=False)
    assert book.error.value == ""
    book.explorers["sliders"].sliders[0].value = .5
    found += [book.explorers["sliders"].numbers["loss"], book.pairs["model"].values]
    book.close()
    return [torch.as_tensor(n).detach().double().clone() for n in found]


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode):
    plain = numbers()
    with MODES[mode](): other = numbers()
    for a, b in zip(plain, other): assert_close(a, b, rtol=2e-4, atol=2e-5)
