"Every control of the widgets without a browser: set a value, look at state, picture and read-out."
import gc
import html
import io
import re
import types
import warnings
import weakref
from dataclasses import replace

import ipywidgets
import numpy as np
import pytest
import torch
import traitlets
from PIL import Image
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from conftest import build, quiet, randn, untouched
from hessnb.boundary.alignment import align
from hessnb.boundary.compare import compare_minima
from hessnb.boundary.glossary import meaning
from hessnb.boundary.plane import plane_through
from hessnb.boundary.probe import curvature_lengths, perturb
from hessnb.curvature.eigenpairs import dense_eigenpairs
from hessnb.curvature.entry import as_operator
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.objective import Objective
from hessnb.curvature.top import top_eigenpairs
from hessnb.show.background import Progress
from hessnb.show.closing import family, n_open, open_boxes, running_cell
from hessnb.show.comparer import MinimaComparer
from hessnb.show.explorer import PLANES, BoundaryExplorer
from hessnb.show.layers import LayerExplorer
from hessnb.show.sliders import EigenvectorSliders
from hessnb.show.spectrum import SpectrumExplorer, kind_of_inputs
from hessnb.show.view import View
from hessnb.show.workbook import Workbook


def conv():
    layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(.3), nn.Linear(144, 3)
    return nn.Sequential(*layers)


def problem(kind):
    "(objective, pairs) of a small trained network on two features, on a table of five, or on images."
    if kind == "images": X, make = randn(24, 1, 8, 8, dtype=torch.float32), conv
    else:
        D = 2 if kind == "plane" else 5
        X = randn(30, D, dtype=torch.float32)
        make = lambda: nn.Sequential(nn.Linear(D, 12), nn.Tanh(), nn.Linear(12, 3))
    if kind == "plane": y = (X[:, 0] > 0).long() + (X[:, 1] > .3).long()
    else: y = X.flatten(1)[:, :3].argmax(1)
    model = build(make).float().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=.05)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the dropout
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), y).backward()
            optimizer.step()
    optimizer.zero_grad()
    objective = Objective(model.eval(), (X, y))
    return objective, top_eigenpairs(HessianOperator(objective), 4, tol=1e-3)


@pytest.fixture(scope="module", params=["plane", "rows", "images"])
def each(request): return request.param, *problem(request.param)


@pytest.fixture(scope="module")
def plane(): return problem("plane")


@pytest.fixture(scope="module", params=["plane", "rows"])
def one_logit(request):
    "(objective, pairs) of a network with a single logit, on two features or on a table of five."
    D = 2 if request.param == "plane" else 5
    X = randn(30, D, dtype=torch.float32)
    y = (X[:, 0] + X[:, 1] > 0).float()[:, None]
    model = build(lambda: nn.Sequential(nn.Linear(D, 12), nn.Tanh(), nn.Linear(12, 1))).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(X), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    objective = Objective(model, (X, y), nn.BCEWithLogitsLoss())
    return objective, top_eigenpairs(HessianOperator(objective), 3, tol=1e-3)


def pixels(png): return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def share_changed(a, b): return (abs(pixels(a) - pixels(b)).max(2) > 8).mean()


class TestEigenvectorSliders:
    def test_every_slider_moves_and_tells(self, each):
        kind, objective, pairs = each
        with untouched(objective.model):
            view = EigenvectorSliders(objective, pairs, k=4, n=30)
            X, y = next(objective.micro_batches())
            for i, slider in enumerate(view.sliders):
                before = view.picture.value
                slider.value = .7 * slider.max
                amounts = torch.tensor(view.amounts[:i + 1]) * curvature_lengths(pairs.values[:i + 1])
                moved = perturb(objective, pairs.vectors[:i + 1], amounts)
                out = moved(X).detach()
                assert_close(view.numbers["loss"], nn.functional.cross_entropy(out, y).item(), rtol=1e-4, atol=1e-7)
                assert view.numbers["accuracy"] == (out.argmax(1) == y).double().mean().item()
                assert view.numbers["changed"] == int((out.argmax(1) != objective.predict(X).argmax(1)).sum())
                assert view.error.value == "" and f"{view.numbers['loss']:.4g}" in view.readout.value
                assert view.picture.value != before
            view.close()

    def test_reset_sweep_and_save(self, plane, tmp_path):
        view = EigenvectorSliders(*plane, n=30, reach=2.)
        rest, view.play.playing = view.picture.value, True
        for phase, height in [(0, 0), (30, 2), (60, 0), (90, -2), (120, 0)]:
            view.play.value = phase
            assert view.amounts[0] == pytest.approx(height)
        view.choice.value, view.play.value = 2, 15
        assert view.sweep == 2 and view.amounts[2] == pytest.approx(1)
        assert view.state == {"amounts": view.amounts, "sweep": 2}
        view.path.value = str(tmp_path / "moved.pt")
        view.save_button.click()
        saved = torch.load(tmp_path / "moved.pt")
        assert all(torch.equal(saved[name], p) for name, p in view.perturbed().state_dict().items())
        view.save_button.click()
        assert "is there already and is not replaced" in view.error.value
        for path, said in [(tmp_path / "no" / "such" / "folder.pt", "make it first"), (tmp_path, "is there already"),
                           (" ", "give the file a name")]:
            view.path.value = str(path)
            view.save_button.click()
            assert said in view.error.value
        assert all(torch.equal(torch.load(tmp_path / "moved.pt")[name], p) for name, p in saved.items())
        view.reset_button.click()
        assert view.picture.value == rest and view.error.value == "" and view.amounts == (0.,) * 4
        view.close()

    def test_quadratic_prediction(self, plane):
        objective, pairs = plane
        view = EigenvectorSliders(objective.to(torch.float64), pairs, n=30)
        s = .01 * curvature_lengths(pairs.values).double()
        view.state = {"amounts": (.01,) * 4}
        exact = objective.to(torch.float64).value(objective.to(torch.float64).theta + s @ pairs.vectors.double())
        assert view.numbers["loss"] == pytest.approx(exact, rel=1e-12)
        assert view.numbers["expected_loss"] - objective.value() == pytest.approx(exact - objective.value(), rel=.05)
        view.close()

    def test_the_network_is_a_copy(self, plane):
        objective, pairs = plane
        for explorer in (EigenvectorSliders, SpectrumExplorer, BoundaryExplorer):
            view, theirs = explorer(objective, pairs, n=20), {p.data_ptr() for p in objective.model.parameters()}
            assert view.objective.model is not objective.model
            assert not any(p.data_ptr() in theirs for p in view.objective.model.parameters())
            view.close()

    def test_refused(self, plane):
        view = EigenvectorSliders(*plane, n=30)
        for bad, words in [((1., 2.), "expected 4 amounts"), ((9e3, 0., 0., 0.), "the amount of v1 must lie in"),
                           ((0., 0., 0., float("nan")), "the amount of v4 must lie in"),
                           ((-9e3, 0., 0., 0.), r"loss \+1 at .* reach= sets other ends")]:
            with pytest.raises(traitlets.TraitError, match=words): view.amounts = bad
        with pytest.raises(ValueError, match="has no state"): view.state = {"speed": 1}
        view.close()
        with pytest.raises(traitlets.TraitError, match=r"\[-2, 2\], got 3$"):
            EigenvectorSliders(*plane, n=30, k=1, reach=2.).amounts = (3.,)

    def test_numbers_off_the_grid(self, plane):
        view = EigenvectorSliders(*plane, n=20, reach=1.)
        for amounts in [(.333, -.1234567, 0., 1.), (.1 + .2, 0., -1., 1e-5)]:
            view.state = {"amounts": amounts}
            assert view.amounts == amounts == tuple(slider.value for slider in view.sliders)
        view.close()

    def test_the_ends_are_where_the_loss_has_risen(self, plane):
        objective, pairs = plane
        view = EigenvectorSliders(objective, pairs, n=20)
        for i, (slider, r) in enumerate(zip(view.sliders, view.reaches)):
            for end, (mark, label) in [(slider.min, r.marks[-2]), (slider.max, r.marks[-1])]:
                view.state = {"amounts": tuple(end if j == i else 0. for j in range(4))}
                assert 1 <= view.numbers["loss"] - objective.value() <= 1.06 and end == mark and label == "+1"
            for end in slider.band:
                view.state = {"amounts": tuple(.99 * end if j == i else 0. for j in range(4))}
                assert view.numbers["holds"] and "holds here" in view.readout.value
            assert slider.min < slider.band[0] < 0 < slider.band[1] < slider.max and "loss +1 at" in slider.tooltip
        assert "Ends: training loss +1," in view.legend.value and "Estimated" not in view.legend.value
        view.close()

    def test_fewer_examples_where_all_would_take_long(self, plane, monkeypatch):
        objective, pairs = plane
        monkeypatch.setattr("hessnb.show.sliders.operations_each", lambda *args: 10**12)
        X, y = randn(200, 2, dtype=torch.float32), torch.arange(200) % 3
        many = Objective(objective.model, (X, y))
        view = EigenvectorSliders(many, top_eigenpairs(HessianOperator(many), 2, tol=1e-3), n=20)
        assert "Estimated from 64 of 200 examples." in view.legend.value and view.far.n_examples == 64
        view.close()

    def test_flat_and_negative_eigenvalues(self, plane):
        "A direction without curvature has a slider, too; its unit is the norm of the parameters."
        objective, pairs = plane
        dead = torch.zeros(objective.n_params)  # along it nothing changes: both class biases and the third alike
        dead[-3:] = 3**-.5
        fields = {"values": torch.cat([pairs.values[:1], torch.tensor([0., -1e-3])]).to(pairs.values),
                  "vectors": torch.stack([pairs.vectors[0], dead.to(pairs.vectors), pairs.vectors[1]]),
                  "residuals": torch.full((3,), 1e-6).to(pairs.residuals), "converged": torch.ones(3, dtype=torch.bool)}
        view = EigenvectorSliders(objective, replace(pairs, **fields), n=20)
        flat, norm = view.sliders[1], objective.theta.norm().item()
        assert (flat.min, flat.max) == pytest.approx((-1, 1)) and "not yet risen" in flat.tooltip and not flat.marks
        assert f"one unit is {norm:.3g}" in flat.tooltip and "as far as it was looked for" in view.legend.value
        view.state = {"amounts": (0., .5, 0.)}
        assert view.numbers["loss"] == pytest.approx(objective.value(), rel=1e-4) and view.numbers["changed"] == 0
        assert view.error.value == "" and view.sliders[2].min < 0 < view.sliders[2].max
        view.close()

    def test_a_plane_of_ones_own(self):
        objective, pairs = problem("rows")
        X, _ = next(objective.micro_batches())
        view = EigenvectorSliders(objective, pairs, plane=plane_through(X), n=20)
        assert view.grid.plane.source == "principal axes"
        view.close()


class TestSpectrumExplorer:
    def test_every_control(self, each):
        kind, objective, pairs = each
        view = SpectrumExplorer(objective, pairs, n=20)
        X, y = next(objective.micro_batches())
        assert view.data.kind == kind == kind_of_inputs(X) and len(view.pictures) == (1 if kind == "rows" else 2)
        for i in (2, 1, 3, 0):
            view.slider.value = i
            assert f"v{i + 1} of 4" in view.readout.value and f"{pairs.values[i]:.4g}" in view.readout.value
            assert view.error.value == ""
            assert view.canvases["log"].nearest(*view.spectrum.pointer) == i
        if kind == "rows":
            extreme = align(objective, X, pairs.vectors[:1]).cosines[:, 0]
            for row in (extreme.argmax(), extreme.argmin()): assert f"example {int(row)}" in view.readout.value
        a = align(objective, X, pairs.vectors[:1]).cosines[:, 0]
        up, down = view.contents.extremes(0, 1)
        assert up[0] == a.argmax() and down[0] == a.argmin()
        before = view.spectrum.value
        view.toggle.value = "linear"
        assert view.scale == "linear" and share_changed(before, view.spectrum.value) > .002
        view.spectrum.pointer = view.canvases["linear"].place(3, pairs.values[2].item())
        assert view.index == view.slider.value == 2
        with pytest.raises(traitlets.TraitError): view.index = 4
        with pytest.raises(traitlets.TraitError): view.scale = "cubic"
        view.close()


class TestBoundaryExplorer:
    def test_every_plane_and_layer(self, each):
        kind, objective, pairs = each
        view = BoundaryExplorer(objective, pairs, n=24, k=3)
        images = [p for p in PLANES if p != "two features"]
        assert view.planes == {"plane": ["input space"], "rows": list(PLANES), "images": images}[kind]
        pictures = set()
        for plane in view.planes:
            view.plane_choice.value = plane
            assert view.error.value == "", (plane, view.error.value)
            for layer in (-1, 0, 2):
                view.layer_choice.value = layer
                pictures.add(view.picture.value)
                assert view.error.value == ""
        assert len(pictures) == 3 * len(view.planes)
        view.close()

    def test_what_lies_at_a_point(self, each):
        kind, objective, pairs = each
        view = BoundaryExplorer(objective, pairs, n=24)
        X, y = next(objective.micro_batches())
        detail = view.detail.value
        assert view.detail.layout.display == "none" and view.table.value == ""  # there is nothing to show yet
        u, v = (sum(view.shown.grid.extent[i:i + 2]) / 2 for i in (0, 2))
        view.picture.pointer = view.canvas.place(u, v)
        here = view.numbers
        assert_close(torch.tensor(view.point), torch.tensor((u, v)), rtol=1e-5, atol=1e-5)
        out = objective.model(here["input"][None]).softmax(1)[0]
        assert here["class"] == int(out.argmax()) and here["confidence"] == pytest.approx(out.max().item(), abs=1e-5)
        assert here["nearest"] == int((X - here["input"]).flatten(1).norm(dim=1).argmin())
        assert objective.predict(here["boundary"][None]).argmax().item() == here["beyond"] != here["class"]
        assert here["boundary_distance"] == pytest.approx((here["boundary"] - here["input"]).norm().item(), rel=1e-3)
        assert f"confidence {here['confidence']:.2%}" in view.readout.value
        assert (view.detail.value != detail) == (view.detail.layout.display == "") == (kind == "images")
        assert ("boundary point" in view.table.value) == (kind == "rows")
        if kind != "plane":  # another plane: the point is gone, and with it what was told about it
            view.plane_choice.value = "principal axes"
            assert view.table.value == "" and view.detail.layout.display == "none" and view.detail.value == b""
        view.close()

    def test_a_slice_says_that_it_is_one(self, each):
        kind, objective, pairs = each
        view, (X, _) = BoundaryExplorer(objective, pairs, n=24), next(objective.micro_batches())
        for plane in [p for p in view.planes if p != "designed inputs"]:
            view.plane_choice.value = plane
            there = view.shown.grid.plane
            drawn = objective.predict(there.at(there.project(X)[0])).argmax(1)  # the colours under the dots
            n = int((drawn != objective.predict(X).argmax(1)).sum())
            assert kind != "plane" or n == 0
            said = f"{n} of {len(X)} examples ({n / len(X):.0%}) lie on a colour that is not their own prediction"
            assert (said in view.readout.value) == (kind != "plane"), (plane, view.readout.value)
        view.close()

    def test_the_features_that_tell_most(self):
        X = randn(40, 30, dtype=torch.float32) * torch.logspace(-2, 2, 30)
        y = (X[:, 3] / X[:, 3].std() > 0).long()
        objective = Objective(build(lambda: nn.Linear(30, 2)).float(), (X, y))
        view = BoundaryExplorer(objective, top_eigenpairs(HessianOperator(objective), 2, tol=1e-3), n=20)
        view.point = .1, .2
        here, told = view.numbers, lambda: re.findall(r">(x\d+)<", view.table.value)
        shown = torch.stack([here["input"], X[here["nearest"]], here["boundary"]])
        apart = (shown.amax(0) - shown.amin(0)) / X.std(0)
        assert told() == [f"x{j + 1}" for j in apart.argsort(descending=True)[:12].tolist()] != [
            f"x{j + 1}" for j in range(12)]
        assert "12 of 30 features" in view.table.value and "standard deviations" in view.table.value
        view.every.value = True
        assert told() == [f"x{j + 1}" for j in range(30)] and "of 30 features" not in view.table.value
        assert view.numbers is here  # nothing was searched anew
        view.close()

    def test_slow_steps_are_announced_and_hold_the_controls(self, monkeypatch):
        view, seen = BoundaryExplorer(*problem("rows"), n=24), {}
        def watched(name):
            from hessnb.show import explorer
            inner = getattr(explorer, name)
            def call(*args, **kwargs):
                seen[name] = view.busy.what, "hessnb-working" in view.busy.line.value, [
                    c.disabled for c in (view.plane_choice, view.example_boxes[0])]
                return inner(*args, **kwargs | ({"n_steps": 4} if name == "design_input" else {}))
            monkeypatch.setattr(explorer, name, call)
        for name in ("design_input", "boundary_points", "align", "look_at"): watched(name)
        view.layer_choice.value = 0
        for plane in ("boundary points", "designed inputs"): view.plane_choice.value = plane
        view.point = 0., 0.
        said = {name: what for name, (what, *_) in seen.items()}
        assert said == {"align": "alignments on the plane", "boundary_points": "laying the plane: boundary points",
                        "design_input": "laying the plane: designed inputs",
                        "look_at": "searching the boundary nearest to this point"}
        assert all(shown for _, shown, _ in seen.values()) and view.error.value == ""
        assert all(all(held) for name, (*_, held) in seen.items() if name != "look_at")
        assert view.busy.line.value == "" and not any(c.disabled for c in view.controls)
        view.state = {"plane": "boundary points", "examples": (0, 0, 1)}  # ends by an error
        assert view.error.value and view.busy.line.value == "" and not any(c.disabled for c in view.controls)
        view.close()

    def test_boxes(self):
        view = BoundaryExplorer(*problem("rows"), n=24, feature_names=list("abcde"))
        before = view.picture.value
        for i, value in enumerate((5, 9, 17)): view.example_boxes[i].value = value
        assert view.examples == (5, 9, 17) and view.picture.value != before and view.error.value == ""
        for typed in (30, -1):
            view.example_boxes[0].value = typed
            assert f"no example {typed}: they are numbered 0 to 29; 5 is kept" in view.error.value
            assert view.examples == (5, 9, 17) and view.example_boxes[0].value == 5
        view.plane_choice.value = "two features"
        assert view.error.value == ""
        view.feature_boxes[0].value, view.feature_boxes[1].value = 3, 4
        assert view.features == (3, 4) and view.shown.grid.names == ("d", "e")
        view.feature_boxes[0].value = 4
        assert "two different features" in view.error.value
        view.plane_choice.value = "designed inputs"
        view.direction_boxes[0].value = 2
        assert view.directions == (2, 1) and view.error.value == ""
        assert [view.box_lines[name].layout.display for name in ("directions", "features")] == ["", "none"]
        for state, words in [({"plane": "a sphere"}, "plane must be one of"), ({"layer": 4}, "layer must be one of"),
                             ({"examples": (0, 1, 30)}, "3 numbers in 0..29"),
                             ({"features": (1,)}, "2 numbers in 0..4")]:
            before = view.state
            with pytest.raises(traitlets.TraitError, match=words): view.state = state
            assert view.state == before
        view.close()


@pytest.mark.parametrize("kind", ["plane", "rows", "images"])
def test_one_eigenvector_is_enough(kind):
    objective, pairs = problem(kind)
    one = replace(pairs, **{name: getattr(pairs, name)[:1] for name in ("values", "vectors", "residuals", "converged")})
    for explorer in (EigenvectorSliders, SpectrumExplorer, BoundaryExplorer):
        view = explorer(objective, one, n=20)
        if isinstance(view, BoundaryExplorer):
            for plane in view.planes:
                view.plane = plane
                assert view.error.value == ""
            assert "designed inputs" not in view.planes
        assert view.error.value == "" and view.png()
        view.close()


class TestOneLogit:
    "A network with one logit has two classes like any other, and everything works with it."
    def test_sliders(self, one_logit):
        objective, pairs = one_logit
        X, y = next(objective.micro_batches())
        view = EigenvectorSliders(objective, pairs, n=24)
        view.sliders[0].value = .9 * view.sliders[0].max
        out = view.perturbed()(X).detach()
        assert view.error.value == "" and view.numbers["accuracy"] == ((out > 0) == (y > 0)).double().mean().item()
        loss = nn.functional.binary_cross_entropy_with_logits(out, y).item()
        assert view.numbers["loss"] == pytest.approx(loss, rel=1e-4)
        assert view.numbers["changed"] == int(((out > 0) != (objective.model(X) > 0)).sum())
        view.close()

    def test_spectrum(self, one_logit):
        view = SpectrumExplorer(*one_logit, n=20, class_names=["no", "yes"])
        view.slider.value = 1
        assert view.error.value == "" and "no against yes" in view.readout.value and view.png()
        view.close()

    def test_boundary(self, one_logit):
        objective, pairs = one_logit
        view = BoundaryExplorer(objective, pairs, n=24)
        for plane in view.planes:
            for layer in (-1, 0):
                view.state = {"plane": plane, "layer": layer}
                assert view.error.value == "", (plane, view.error.value)
        u, v = (sum(view.shown.grid.extent[i:i + 2]) / 2 for i in (0, 2))
        view.point = u, v
        here = view.numbers
        with torch.no_grad(): p = objective.model(here["input"][None]).sigmoid().item()
        assert here["class"] == int(p > .5) and here["confidence"] == pytest.approx(max(p, 1 - p), abs=1e-5)
        assert here["beyond"] == 1 - here["class"] == int(objective.model(here["boundary"][None]).item() > 0)
        view.close()

    def test_workbook(self, one_logit, tmp_path):
        objective, _ = one_logit
        X, y = next(objective.micro_batches())
        with quiet():
            book = Workbook({"a": objective, "b": objective}, test=(X, y), k=3, background=False)
        assert book.error.value == "", book.error.value
        assert book.tabs.titles[-2:] == ("minima", "numbers") and "test accuracy" in book.numbers.value
        book.explorers["minima"].slider.value = 1.
        assert book.explorers["minima"].error.value == "" and len(book.export(tmp_path)) == 12
        assert ("on another colour" in book.explorers["minima"].readout.value) == (X[0].numel() > 2)
        book.close()


class TestMinimaComparer:
    def test_slider_and_choice(self, plane):
        objective, _ = plane
        X, y = next(objective.micro_batches())
        other = build(lambda: nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 3)), seed=5).float()
        with quiet(): comparison = compare_minima({"one": objective.model, "two": other}, (X, y), k=4, pairs=6)
        view = MinimaComparer(comparison, n=24)
        rest = [p.value for p in view.pictures]
        view.choice.value, view.slider.value = 1, 1.5
        assert view.index == 1 and view.amount == 1.5 and all(a != p.value for a, p in zip(rest, view.pictures))
        for name, e in comparison.examinations.items():
            theta = e.objective.theta + 1.5 * e.pairs.vectors[1] / e.pairs.values[1].abs().sqrt()
            assert view.numbers[name]["loss"] == pytest.approx(e.objective.value(theta), rel=1e-9)
            assert f"{e.objective.value(theta):.3g}" in view.readout.value
            low, high = e.complexity.interval
            assert f"{e.complexity.dimension:.1f} [{low:.1f}, {high:.1f}]" in view.readout.value
        heads = [view.readout.value.index(head) for head in ("boundary directions", "margin", "effective directions")]
        assert heads == sorted(heads)
        view.slider.value = 0
        assert [p.value for p in view.pictures] == rest
        view.close()
        with pytest.raises(ValueError, match="no minimum"): MinimaComparer({})


class Broken(View):
    title, names = "broken", ("number",)
    number = traitlets.Int(0)

    def __init__(self):
        self.slider = ipywidgets.IntSlider()
        super().__init__([self.slider])
        self.bind(self.slider, "number")

    def refresh(self): raise RuntimeError("<b>deliberately</b> broken")


def test_a_broken_callback_is_seen():
    view = Broken()
    view.slider.value = 3
    assert "RuntimeError" in view.error.value and "&lt;b&gt;deliberately" in view.error.value  # and escaped
    assert view.error.layout.display == ""
    view.error.button.click()
    assert view.error.value == "" and view.error.layout.display == "none"
    view.close()


def test_every_word_of_a_read_out_is_explained(each):
    kind, objective, pairs = each
    views = EigenvectorSliders(objective, pairs, n=20), SpectrumExplorer(objective, pairs, n=20)
    layers = LayerExplorer(objective, pairs, background=False)
    layers.button.click()
    for view in (*views, layers):
        names = [name for name in view.said if name and not re.fullmatch(r"x\d+", name)]  # the others are features
        assert names and all(meaning(name) for name in names), [name for name in names if not meaning(name)]
        for name in names:
            assert f"<abbr title='{html.escape(meaning(name))}'" in view.readout.value
            assert meaning(name) in view.meanings.value
        assert all(getattr(widget, "tooltip", "") is not None for widget in family(view))
        view.close()


class TestNothingGrows:
    def test_ten_runs_of_a_cell(self, plane, monkeypatch):
        "With the kernel's word on which cell runs, a second run closes what the first one made."
        run = {"n": 0}
        monkeypatch.setattr("hessnb.show.closing.running_cell", lambda: ("abc", str(run["n"])))
        made, counts, observers = [], [], []
        for run["n"] in range(10):
            made.append((EigenvectorSliders(*plane, k=2, n=24), BoundaryExplorer(*plane, n=24)))
            for amount in (.1, .2, .3): made[-1][0].amounts = (amount, 0.)
            gc.collect()
            counts.append(n_open())
            heard = [kinds for slider in made[-1][0].sliders for kinds in slider._trait_notifiers.values()]
            observers.append(sum(len(handlers) for kinds in heard for handlers in kinds.values()))
        assert len(set(counts)) == 1 and len(set(observers)) == 1
        # though something still refers to all of them
        assert [hasattr(a, "canvas") for a, _ in made] == [False] * 9 + [True]
        for view in made[-1]: view.close()
        open_boxes.made.clear()

    def test_two_views_of_one_run_stay(self, plane, monkeypatch):
        monkeypatch.setattr("hessnb.show.closing.running_cell", lambda: ("def", "1"))
        a, b = (EigenvectorSliders(*plane, k=1, n=24) for _ in range(2))
        assert hasattr(a, "canvas") and hasattr(b, "canvas")
        a.close()
        b.close()
        b.close()  # a second time does nothing
        open_boxes.made.clear()

    def test_which_cell_runs(self, monkeypatch):
        "The kernel is asked for it, as ipykernel names it."
        parent = {"metadata": {"cellId": "abc"}, "header": {"msg_id": "7"}}
        kernel = types.SimpleNamespace(get_parent=lambda channel: parent)
        monkeypatch.setattr("hessnb.show.closing.get_ipython", lambda: types.SimpleNamespace(kernel=kernel))
        assert running_cell() == ("abc", "7")

    def test_no_pyplot_figures(self, plane):
        import matplotlib.pyplot as plt
        before = plt.get_fignums()
        SpectrumExplorer(*plane, n=20).close()
        assert plt.get_fignums() == before

    def test_what_is_closed_is_freed(self, plane):
        view = EigenvectorSliders(*plane, k=2, n=24)
        canvas = weakref.ref(view.canvas)
        view.close()
        gc.collect()
        assert canvas() is None


def test_static_picture(plane):
    view = SpectrumExplorer(*plane, n=20)
    bundle = view._repr_mimebundle_()
    assert bundle["image/png"].startswith("iVBOR") and "application/vnd.jupyter.widget-view+json" in bundle
    wide = pixels(view.png()).shape
    assert wide[1] == sum(pixels(p.value).shape[1] for p in view.pictures)
    view.close()


class TestWorkbook:
    def test_done_is_said_when_all_is_there(self, monkeypatch):
        told = []
        def say(progress, text, share=None): told.append((text, len(book.tabs.titles) if book else 0))
        objective, book = problem("plane")[0], None
        book = Workbook(objective, k=2, examine=False, background=False)  # once, for its number of tabs
        n = len(book.tabs.titles)
        monkeypatch.setattr(Progress, "say", say)
        monkeypatch.setattr("hessnb.show.tabs.Computation", lambda work, background: None)
        book = Workbook(objective, k=2, examine=False)
        book.run()
        assert told[-1] == ("done", n) and book.tabs.titles[-1] == "numbers"

    @pytest.mark.parametrize("kind", ["plane", "rows", "images"])
    def test_on_a_users_model_and_loader(self, kind, tmp_path):
        objective, _ = problem(kind)
        model, (X, y) = objective.model, next(objective.micro_batches())
        loader = DataLoader(TensorDataset(X, y), batch_size=7)
        with untouched(model), quiet():
            book = Workbook(model, loader, k=3, test=(X, y), background=False)
            assert book.error.value == ""
            assert list(book.tabs.titles) == ["sliders", "spectrum", "boundary", "layers", "numbers"]
            book.explorers["sliders"].sliders[0].value = .1
            files = book.export(tmp_path)
        stored = np.load(tmp_path / "model_eigenpairs.npz")
        assert_close(torch.tensor(stored["values"]), book.pairs["model"].values)
        assert stored["sizes"].sum() == objective.n_params and len(files) == 6 and all(f.stat().st_size for f in files)
        book.close()

    def test_says_what_to_do(self):
        objective, _ = problem("images")
        (X, y), model = next(objective.micro_batches()), objective.model
        shuffling = DataLoader(TensorDataset(X, y), shuffle=True)
        cases = [(model, (X, y), "call model.eval"), (model, (X, y.float()), "int64 class indices"),
                 (model, shuffling, "shuffle=False"), ("a model", (X, y), "str")]
        for given, data, words in cases:
            model.train(words == "call model.eval")
            book = Workbook(given, data, background=False)
            assert words in book.error.value, (words, book.error.value)
            assert not book.tabs.children and "error" in book.progress.text.value
            with pytest.raises(RuntimeError, match="nothing to export"): book.export("nowhere")
            book.close()

    def test_a_module_that_holds_another_is_taken_whole(self):
        class Wrapped(nn.Module):
            def __init__(self, model):
                super().__init__()
                self.model, self.last = model, nn.Linear(3, 3)
            def forward(self, x): return self.last(self.model(x))
        objective, _ = problem("rows")
        wrapped = Wrapped(objective.model).eval()
        with quiet(): book = Workbook(wrapped, next(objective.micro_batches()), k=2, examine=False, background=False)
        assert book.error.value == "" and book.objectives["model"].n_params == objective.n_params + 12
        book.close()

    def test_stop_before_anything(self):
        objective, _ = problem("rows")
        class Impatient(Workbook):
            def find_pairs(self, name):
                self.progress.button.click()
                super().find_pairs(name)
        with pytest.warns(UserWarning, match="was stopped after 1 products"):
            book = Impatient(objective, background=False)
        assert "stopped" in book.progress.text.value and book.error.value == "", book.error.value
        assert len(book.pairs["model"]) == 1 and not book.pairs["model"].converged.any()  # it is shown
        assert "none of 10 eigenpairs has converged yet" in book.readout.value and not book.examinations
        assert list(book.tabs.titles) == ["sliders", "spectrum", "boundary", "layers", "numbers"]
        assert "(not converged)" in book.explorers["spectrum"].readout.value
        kept = [*book.found.states.values()]
        assert all(folder.exists() for folder in kept)
        book.close()
        assert kept and not any(folder.exists() for folder in kept)

    def test_stopped_again_and_again_it_ends_as_if_it_had_not_been(self):
        objective, _ = problem("rows")
        class Hesitant(Workbook):
            "Stopped after 2, 6 and 13 products, once more in the examination, and then left alone."
            after, strict = [2, 6, 13], False
            def pause(self, products, strict):
                if self.after and products >= self.after[0]: self.after = self.after[1:]
                elif strict and not self.strict: self.strict = True
                else: return
                self.progress.button.click()
            def stages(self):
                inner = type(self.progress).watch
                def watch(what, k, strict=False):
                    each = inner(self.progress, what, k, strict)
                    return lambda products, found: (self.pause(products, strict), each(products, found))[1]
                self.progress.watch = watch
                super().stages()
        with warnings.catch_warnings(action="ignore"):
            book, plain = Hesitant(objective, k=6, background=False), Workbook(objective, k=6, background=False)
            assert book.error.value == "", book.error.value
            views, said = [book.explorers["spectrum"]], []
            while book.resume_button.layout.display == "" and len(said) < 9:
                said.append(len(book.pairs["model"]))
                book.resume_button.click()
                assert book.error.value == ""
                views.append(book.explorers["spectrum"])
        assert said == sorted(said) and len(said) == 4 and 1 <= said[0] < 6 == said[-1]
        assert book.progress.text.value == "done" and book.progress.bar.value == 1 and book.readout.value == ""
        assert torch.equal(book.pairs["model"].vectors, plain.pairs["model"].vectors)
        assert book.pairs["model"].n_matvecs == plain.pairs["model"].n_matvecs
        assert book.tabs.titles == plain.tabs.titles and book.examinations.keys() == plain.examinations.keys()
        assert views[0].is_closed and not views[-1].is_closed and views[-1] is views[-2]  # once is enough
        assert not book.found.states
        for each in (book, plain): each.close()

    @pytest.mark.parametrize("curvature", ["ggn", "fisher"])
    @pytest.mark.filterwarnings("ignore:.*rounding floor")
    def test_another_curvature(self, curvature):
        objective, _ = problem("plane")
        with quiet(): book = Workbook(objective, k=3, curvature=curvature, background=False)
        assert book.error.value == "" and book.examinations["model"].curvature == curvature
        dense = dense_eigenpairs(as_operator(objective, curvature=curvature))
        assert_close(book.pairs["model"].values, dense.values[:3], rtol=1e-3, atol=0)
        book.close()

    def test_in_a_thread(self):
        objective, _ = problem("rows")
        book = Workbook(objective, k=3, examine=False, background=True)
        assert book.wait(120) and book.error.value == "" and len(book.explorers) == 4
        book.close()


class TestLayerExplorer:
    def test_computed_when_asked_for(self, plane):
        objective, pairs = plane
        view = LayerExplorer(objective, pairs, background=False)
        assert view.png() == b"" and "holds" in view.readout.value and view.picture.layout.display == "none"
        view.button.click()
        assert view.error.value == "" and view.progress.text.value == "done" and view.png()
        before = view.picture.value
        view.choice.value = 1
        alone = Objective(objective.model, objective.data, params=f"{view.choice.label}.*")
        own = top_eigenpairs(HessianOperator(alone), 3, tol=1e-2)
        assert f"{own.values[0]:.4g}" in view.readout.value and share_changed(before, view.picture.value) > .001
        view.state = {"by": "parameter"}
        assert view.layer == 0 and view.png() == b"" and len(view.choice.options) == len(objective.params)
        with pytest.raises(traitlets.TraitError, match="layer must lie in"): view.layer = len(objective.params)
        view.close()

    def test_in_a_thread(self, plane):
        objective, pairs = plane
        view = LayerExplorer(objective, pairs, background=True)
        view.button.click()
        view.button.click()  # once is enough
        assert view.computation.wait(60) and view.error.value == "" and list(view.found) == ["module"]
        assert not view.button.disabled
        view.close()
