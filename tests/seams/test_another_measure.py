"A measure of one's own is a line in a list: it stands in the records, their file and their CSV, and fails alone."
import math

import pytest

from conftest import blobs, mlp
from hessnb import track
from hessnb.training.measures import DEFAULT, Measure
from hessnb.training.records import TrainingRecords

NORM = Measure("norm", "norm", "L2 norm of the parameters", lambda s: s.objective.theta.norm())
LARGEST = Measure("largest", "largest", "largest entry of v1", lambda s: s.pairs.vectors[0].abs().max())


def test_another_measure(tmp_path):
    model = mlp()
    tracker = track(model, blobs(), k=2, every=1, measures=(*DEFAULT, NORM, LARGEST), folder=tmp_path)
    for _ in range(2): tracker.step()
    found = TrainingRecords.load(tmp_path)
    norm = sum(p.square().sum() for p in model.parameters()).sqrt().item()
    assert found.numbers("norm").tolist() == pytest.approx([norm, norm])
    assert (found.numbers("largest") > 0).all() and "norm" in found.to_csv() and not math.isnan(found[0]["loss"])
