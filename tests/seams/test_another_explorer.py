"Another explorer: a subclass of `View` in 25 lines; the workbook takes it as it is, and shows it in a tab."
import inspect
import re

import ipywidgets
import pytest
import torch
import traitlets
from torch import nn

from conftest import build, quiet, randn
from hessnb.boundary.alignment import align
from hessnb.show.canvas import BoundaryCanvas
from hessnb.show.grid import view_grid
from hessnb.show.picture import Picture
from hessnb.show.view import View, network_and_examples
from hessnb.show.workbook import EXPLORERS, Workbook


class Level(View):
    "Where on the plane the alignment with the first eigenvector exceeds a level that a slider sets."
    title, names, takes = "level", ("level",), ("class_names",)
    level = traitlets.Float(.5)

    def __init__(self, objective, pairs, *, class_names=None):
        own, X, y = network_and_examples(objective)
        grid = view_grid(own, X, n=40)
        self.cosines = align(own, grid.inputs, pairs.vectors[:1]).cosines.reshape(40, 40)
        self.canvas = BoundaryCanvas(grid, X, y, kind="cosine", class_names=class_names)
        self.slider, self.picture = ipywidgets.FloatSlider(min=-1, max=1), Picture()
        super().__init__([self.slider], [self.picture])
        self.bind(self.slider, "level")
        self.refresh()

    def refresh(self):
        above = (self.cosines > self.level).float()
        self.picture.value = self.canvas.draw_cosines(above, title=f"above {self.level:.2f}")
        self.say([("share of the plane", f"{above.mean():.0%}")])


class Best(View):
    "Which of several models has the wider margin."
    title, needs = "best", "comparison"

    def __init__(self, comparison):
        super().__init__()
        self.say([(name, f"margin {e.margin.value:.3g}") for name, e in comparison.examinations.items()])


@pytest.fixture(scope="module")
def problem():
    X = randn(40, 2, dtype=torch.float32)
    model = build(lambda: nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 2))).float()
    return model, (X, (X[:, 0] > 0).long())


def test_it_is_short_and_touches_nothing_private():
    source = inspect.getsource(Level)
    assert len(source.splitlines()) <= 25 and not re.search(r"(\.|\b)_[^_]", source)


def test_it_stands_in_a_tab_beside_ours(problem, tmp_path):
    with quiet():
        book = Workbook(*problem, k=3, explorers=[Level, *EXPLORERS], class_names=["a", "b"], background=False)
    assert book.error.value == ""
    assert book.tabs.titles == ("level", "sliders", "spectrum", "boundary", "layers", "numbers")
    level = book.explorers["level"]
    before, told = level.png(), level.readout.value
    level.slider.value = .9
    assert level.error.value == "" and level.png() != before and level.readout.value != told
    level.state = {"level": .5}
    assert (level.png(), level.readout.value, level.slider.value) == (before, told, .5)
    assert tmp_path / "level.png" in book.export(tmp_path)
    book.close()


def test_it_can_stand_alone(problem):
    with quiet(): book = Workbook(*problem, k=3, explorers=[Level], examine=False, background=False)
    assert book.tabs.titles == ("level", "numbers") and book.shown_view is book.explorers["level"]
    book.close()


def test_one_that_compares(problem):
    model, data = problem
    with quiet():
        book = Workbook({"one": model, "two": model}, data, k=3, explorers=[Best], background=False)
    assert book.error.value == "" and book.tabs.titles == ("best", "numbers")
    assert "two" in book.explorers["best"].readout.value
    book.close()


def test_its_errors_are_seen(problem):
    class Broken(Level):
        def refresh(self):
            super().refresh()
            if self.level > .8: raise RuntimeError("deliberately broken")
    with quiet(): book = Workbook(*problem, k=3, explorers=[Broken], examine=False, background=False)
    view = book.explorers["level"]
    view.slider.value = .9
    assert "deliberately broken" in view.error.value
    view.slider.value = .2
    assert view.error.value == ""
    book.close()
