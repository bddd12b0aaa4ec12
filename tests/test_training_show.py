"Pictures of training runs: records that lack anything, long runs, two runs, pages."
import io
import json
import math
import re
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import traitlets
from PIL import Image
from torch import nn
from watched import watched

from conftest import quiet, randn
from hessnb.curvature.objective import Objective
from hessnb.show.closing import n_open
from hessnb.show.plots import class_color
from hessnb.show.training import MOST, PANELS, column, plot_training, readings, thinned
from hessnb.show.training_explorer import Film, TrainingExplorer, evenly, frame_png, page_html, still
from hessnb.training.records import Record, Table, TrainingRecords


@pytest.fixture(scope="module")
def rich(): return watched(4, 8, r=24)


@pytest.fixture(scope="module")
def plain(tmp_path_factory): return watched(5, 6, lr=2., seed=1, r=24, rich=False, folder=tmp_path_factory.mktemp("r"))


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def pixels(png): return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def records_of(rows, about=None):
    "Records with these (numbers, arrays), a step apart."
    records = TrainingRecords(about=about)
    for i, (numbers, arrays) in enumerate(rows): records.append(Record(i, numbers, arrays))
    return records


def long_run():
    "10,000 records with frames of noise, which no PNG makes small."
    noise = torch.Generator().manual_seed(0)
    frames = [torch.randint(0, 10, (64, 64), generator=noise).to(torch.uint8) for _ in range(7)]
    return records_of([({"loss": 1 + math.sin(i), "accuracy": .5, "sharpness": 2., "threshold": 3.},
                        {"values": torch.tensor([2., 1.]), "frame": frames[i % 7]}) for i in range(10_000)])


def drawn(figure):
    figure.draw_without_rendering()
    return figure


def labels(figure): return [ax.get_ylabel() for ax in figure.axes]


LACKING = {
    "one record": [({"loss": 1., "sharpness": 3.}, {"values": torch.tensor([3., 1.])})],
    "NaN": [({"loss": math.nan, "accuracy": math.nan, "sharpness": math.nan, "threshold": math.nan},
             {"values": torch.tensor([math.nan, 1.])}) for _ in range(3)],
    "infinity": [({"loss": x, "trace": -x}, {"values": torch.tensor([x])}) for x in (1., math.inf, -math.inf)],
    "k differs": [({}, {"values": torch.arange(k, 0., -1)}) for k in (3, 1, 5)],
    "only numbers": [({"loss": x, "margin": x}, {}) for x in (2., 1.)],
    "only frames": [({}, {"frame": torch.zeros(4, 4, dtype=torch.uint8)}) for _ in range(2)],
    "now and then": [({"loss": 1.} if i % 2 else {"trace": 4.}, {"errors": torch.ones(2)} if i == 3 else {"values":
                      torch.tensor([2., 1.])}) for i in range(6)],
    "zeros": [({"loss": 0., "accuracy": 0., "threshold": 0.}, {"values": torch.zeros(3)}) for _ in range(2)],
    "wide": [({"loss": 10. ** -i}, {"values": torch.tensor([10. ** (i - 9), -1e-9])}) for i in range(20)],
    "no class": [({}, {"frame": torch.full((3, 3), 255, dtype=torch.uint8),
                       "frame_margin": torch.full((3, 3), math.nan, dtype=torch.float16)})],
    "huge": [({"loss": 10. ** i, "trace": 1e90}, {"values": torch.tensor([10. ** i, 1.], dtype=torch.float64)})
             for i in (-300, -99, 99, 300)],
}


class TestFigure:
    def test_every_panel(self, rich):
        with quiet(): figure = drawn(plot_training(rich))
        shown = [panel for panel in PANELS if panel.shown(rich)]
        assert labels(figure) == [panel.label for panel in shown]
        names = {"spectrum", "loss", "accuracy", "accuracies", "trace", "outliers", "complexity", "margin", "angles",
                 "gradient", "layers", "participation"}
        assert names <= {panel.name for panel in shown}

    @pytest.mark.parametrize("kind", LACKING)
    def test_records_may_lack_anything(self, kind):
        records = records_of(LACKING[kind])
        with quiet():
            if kind in ("only frames", "no class"):
                with pytest.raises(ValueError, match="which no panel shows"): plot_training(records)
            else: drawn(plot_training(records))
            explorer = TrainingExplorer(records)
            for i in range(len(records)): explorer.index = i
            assert explorer.error.value == "" and explorer.png()
            page_html(explorer.film, "x")
            explorer.close()

    def test_lines_are_what_was_recorded(self, rich):
        spectrum, loss = plot_training(rich, panels=["spectrum", "loss"]).axes
        assert loss.lines[0].get_ydata().tolist() == rich.numbers("loss").tolist()
        rows = [line.get_ydata().tolist() for line in spectrum.lines]
        for row in [*rich.stacked("values").T.tolist(), rich.numbers("threshold").tolist()]: assert row in rows
        bars = [box.get_segments() for box in spectrum.collections]
        reach = 2 * rich.stacked("errors")[:, 0]
        assert any(np.allclose([s[1, 1] for s in segments], rich.stacked("values")[:, 0] + reach) for segments in bars)

    def test_what_did_not_converge_is_crossed_out(self):
        rows = [({}, {"values": torch.tensor([2., 1.]), "converged": torch.tensor([True, i != 1])}) for i in range(3)]
        ax, = plot_training(records_of(rows)).axes
        crosses = [line for line in ax.lines if line.get_marker() == "x"]
        assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in crosses] == [([1], [1.])]

    def test_missing_is_bridged_and_nan_is_a_gap(self):
        records = records_of([({"loss": 1.}, {}), ({}, {}), ({"loss": math.nan}, {}), ({"loss": 2.}, {})])
        line = plot_training(records).axes[0].lines[0]
        assert line.get_xdata().tolist() == [0, 2, 3] and np.isnan(line.get_ydata()).tolist() == [False, True, False]

    def test_several_runs(self, rich, plain):
        panels = ["spectrum", "loss", "accuracy", "layers"]
        on_top = drawn(plot_training(rich, plain, names=["_a$", "b"], panels=panels))
        beside = drawn(plot_training(rich, plain, side_by_side=True, panels=panels))
        assert len(on_top.axes[0].lines) > 8 and "accuracy" in labels(on_top)
        legend = on_top.axes[0].get_legend().get_texts()
        assert [text.get_text() for text in legend] == [r" _a\$", "b"]
        assert len(on_top.axes) == 4 and len(beside.axes) == 8
        shared = beside.axes[0].get_ylim() == beside.axes[1].get_ylim()
        assert shared and beside.axes[0].get_xlim() == beside.axes[1].get_xlim()

    @pytest.mark.parametrize("width", [3.6, 5, 9])
    def test_legends_are_above_the_axes(self, rich, width):
        figure = drawn(plot_training(rich, width=width))
        for ax in figure.axes:
            if ax.get_legend() is None: continue
            legend, box = ax.get_legend().get_window_extent(), ax.get_window_extent()
            assert legend.y0 >= box.y1 - 1 and legend.y1 <= figure.bbox.y1 + 1

    def test_scales(self):
        def scale(values):
            records = records_of([({"loss": v}, {}) for v in values])
            return plot_training(records).axes[0].get_yscale()
        assert [scale(v) for v in ([1, 2, 3], [1, 100], [-1, 100, .1])] == ["linear", "log", "asinh"]

    def test_layers_are_shares(self):
        about = {"layers": [f"layer_{j}" for j in range(10)]}
        rows = [({}, {"layers": torch.softmax(randn(2, 10, seed=i), 1)}) for i in range(3)]
        figure = drawn(plot_training(records_of(rows, about)))
        stacks = figure.axes[0].collections
        assert len(stacks) == 8
        assert max(p.vertices[:, 1].max() for s in stacks for p in s.get_paths()) == pytest.approx(1)
        texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert texts[-1] == "3 others" and all(text.startswith("layer_") for text in texts[:-1])

    def test_a_long_run_is_thinned_to_its_extremes(self):
        loss = np.random.default_rng(0).random(10_000)
        loss[1234], loss[4321] = 50, -50
        records = records_of([({"loss": x}, {}) for x in loss.tolist()])
        figure = drawn(plot_training(records))
        line = figure.axes[0].lines[0]
        assert len(line.get_xdata()) <= MOST and {50, -50} <= set(line.get_ydata().tolist())
        assert "10,000 records" in figure.axes[-1].get_xlabel()

    def test_thinning(self):
        for n in (1, 999, 1000, 1001, 5003):
            kept = thinned(np.arange(n) * 1.)
            assert len(kept) <= 1000 and kept[0] == 0 and kept[-1] == n - 1 and (np.diff(kept) > 0).all()
        assert len(thinned(np.full(5000, np.nan))) <= 1000

    def test_refusals(self, plain):
        for bad, said in (((TrainingRecords(),), "no records in run 1"), ((plain, TrainingRecords()), "in run 2")):
            with pytest.raises(ValueError, match=said): plot_training(*bad)
            with pytest.raises(ValueError, match=said): TrainingExplorer(*bad)
        with pytest.raises(ValueError, match="names has 1 names"): plot_training(plain, plain, names=["a"])
        with pytest.raises(ValueError, match="no panel 'loses'"): plot_training(plain, panels=["loses"])
        with pytest.raises(TypeError, match="got dict"): plot_training({})
        with pytest.raises(TypeError, match="got Objective"):
            TrainingExplorer(Objective(nn.Linear(2, 2), (torch.zeros(3, 2), torch.tensor([0, 1, 0]))))

    def test_nothing_is_changed(self, rich):
        before = dict(plt.rcParams)
        plot_training(rich)
        assert dict(plt.rcParams) == before
        assert Table(rich[:2]) and len(plot_training(Table(rich[:2]), panels=["loss"]).axes) == 1  # without `about`


class TestFrame:
    def test_colours_are_those_of_the_classes(self):
        classes = torch.arange(12).reshape(3, 4).to(torch.uint8)
        image = pixels(frame_png(classes, n=120))
        for i in range(3):
            for j in range(4):
                found = image[119 - (40 * i + 20), 30 * j + 15]  # rows go up
                full = np.array([int(class_color(int(classes[i, j]))[k:k + 2], 16) for k in (1, 3, 5)])
                assert abs(found - (255 + full) / 2).max() <= 1

    def test_the_boundary_lies_where_the_margin_is_zero(self):
        x = torch.linspace(-1, 1, 9)
        score = (x[None] + .5 * x[:, None] - .1)  # zero on a straight line
        image = np.asarray(Image.open(io.BytesIO(frame_png((score > 0).to(torch.uint8), score.abs(), n=201))))
        rows, columns = np.nonzero(image == 160)
        there = -1 + 2 * columns / 200, -1 + 2 * (200 - rows) / 200
        assert len(rows) > 150 and abs(there[0] + .5 * there[1] - .1).max() < .03

    def test_what_has_no_class_is_grey(self):
        classes = torch.tensor([[0, 255], [1, 1]], dtype=torch.uint8)
        margin = torch.tensor([[1., math.nan], [math.inf, 2.]]).half()
        image = pixels(frame_png(classes, margin, n=40))
        assert (image[30, 30] == 0x99).all() and not (image[10, 30] == 0x99).all()


class TestExplorer:
    def test_every_record_is_told(self, rich):
        explorer = TrainingExplorer(rich)
        assert explorer.steps == rich.steps and explorer.step == rich.steps[-1]
        for i, r in enumerate(rich):
            explorer.player.value = i  # as the page does
            said = dict(explorer.rows)
            assert explorer.index == i and said["loss"] == f"{r['loss']:.4g}" and said["step"] == f"{r.step}"
            assert said["accuracy"] == f"{r['accuracy']:.1%}" and f"{r['sharpness']:.4g}, " in said[
                "sharpness (of the edge)"]
            assert all(text in explorer.readout.value for text in said.values())
        assert explorer.error.value == ""
        explorer.close()

    def test_state(self, plain):
        explorer = TrainingExplorer(plain)
        explorer.state = {"index": 1}
        assert explorer.player.value == 1
        explorer.step = 13
        assert (explorer.index, explorer.step) == (2, 12)
        explorer.step = -5
        assert explorer.index == 0
        for bad in (-1, 5):
            with pytest.raises(traitlets.TraitError, match="0..4"): explorer.index = bad
        explorer.close()

    def test_two_runs_by_step(self, rich, plain):
        explorer = TrainingExplorer(rich, plain, names=["a", "b"])  # steps 0, 8, 16, 24 and 0, 6, 12, 18, 24
        assert explorer.steps == [0, 6, 8, 12, 16, 18, 24]
        explorer.step = 16
        assert explorer.rows[:2] == [("", "a", "b"), ("step", "16", "12")]
        late = TrainingExplorer(plain, Table(rich[2:]))
        late.step = 6
        assert late.rows[1] == ("step", "6", "not yet")
        assert late.png() and late.error.value == ""
        for each in (explorer, late): each.close()

    def test_dots_lie_on_the_curves(self, plain):
        film = Film({"r": plain})
        part, image = film.data["runs"][0], pixels(film.pngs[film.data["runs"][0]["curves"]["png"]])
        (h, w, _), dot = image.shape, part["dots"][0]
        for x, y in zip(part["x"], dot["y"]):
            patch = image[round(y * h) - 3:round(y * h) + 4, round(x * w) - 3:round(x * w) + 4]
            assert (abs(patch - [0xD5, 0x5E, 0]).max(2) < 60).any()  # the line of the largest eigenvalue
        assert part["x"] == sorted(part["x"]) and 0 < part["x"][0] < part["x"][-1] < 1

    def test_the_still_shows_the_frame_of_its_step(self, plain):
        film = Film({"r": plain})
        part = film.data["runs"][0]
        x, y, w, h = part["plane"]["box"]
        for i, r in enumerate(plain):
            image = pixels(still(film, i))
            W, H = film.size
            inside = image[round(y * H) + 4:round((y + h) * H) - 4, round(x * W) + 4:round((x + w) * W) - 4]
            frame = Image.open(io.BytesIO(film.frame("r", i))).convert("RGB").resize((round(w * W), round(h * H)))
            frame = np.asarray(frame).astype(int)[4:4 + inside.shape[0], 4:4 + inside.shape[1]]
            same = abs(inside[:frame.shape[0], :frame.shape[1]] - frame).max(2) < 30
            assert same.mean() > .85  # the rest is data, and the line

    def test_everything_is_closed(self, plain):
        before = n_open()
        explorer = TrainingExplorer(plain)
        assert n_open() > before
        explorer.close()
        assert n_open() == before

    def test_fallback(self, plain):
        explorer = TrainingExplorer(plain)
        data = explorer._repr_mimebundle_()
        assert "image/png" in data and "application/vnd.jupyter.widget-view+json" in data
        explorer.close()


class TestPage:
    def test_it_holds_everything(self, rich, plain, tmp_path):
        explorer = TrainingExplorer(rich, plain, names=["FILM </script>", "SCRIPT"])
        path = explorer.save_page(tmp_path / "p.html", title="TITLE </title> & SCRIPT")
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(src|href)\s*=|https?:|@import|\burl\(", text)
        data = json.loads(re.search(r'id="film">(.*?)</script>', text, re.S)[1])
        assert data["runs"][0]["name"] == "FILM </script>"
        assert "<title>TITLE &lt;/title&gt; &amp; SCRIPT</title>" in text
        assert data["steps"] == explorer.steps and len(data["pngs"]) == len(explorer.film.pngs)
        assert data | {"pngs": 0} == json.loads(json.dumps(explorer.film.data | {"pngs": 0}))
        with pytest.raises(FileNotFoundError): explorer.save_page(tmp_path / "no" / "p.html")
        with pytest.raises(FileExistsError, match="p.html is there already"): explorer.save_page(path, "another")
        assert path.read_text(encoding="utf-8") == text
        assert "<title>another</title>" in explorer.save_page(path, "another", force=True).read_text(encoding="utf-8")
        explorer.close()

    @pytest.mark.slow
    def test_a_long_run_is_thinned(self):
        film = Film({"r": long_run()}, most=60, most_bytes=300_000)
        assert sum(map(len, filter(None, (film.frame("r", i) for i in film.kept["r"])))) <= 300_000
        assert film.steps[0] == 0 and film.steps[-1] == 9999 and 20 < len(film.steps) < 60
        assert f"Shown are {len(film.steps)} of 10,000 records" in film.data["note"]

    @pytest.mark.slow
    def test_ten_thousand_records(self):
        film = Film({"a": long_run(), "b": long_run()})
        assert len(page_html(film, "x")) < 10e6 and len(film.steps) > 50

    def test_evenly(self):
        assert evenly(5, 10) == [0, 1, 2, 3, 4] and evenly(1, 300) == [0] and evenly(10_000, 2) == [0, 9999]
        assert len(evenly(10_000, 300)) == 300


def test_readings_of_what_failed():
    rows = readings([records_of([({"loss": math.nan, "sharpness": 2.}, {"values": torch.tensor([2., 1.]),
                                  "converged": torch.tensor([True, False])})])])
    record = Record(0, {"loss": math.nan, "sharpness": 2., "threshold": math.nan}, {})
    assert rows["loss"](record) == "not defined" and rows["sharpness (of the edge)"](record) == "2"
    assert rows["eigenvalues"](record) == "not measured"
    odd = Record(0, {}, {"gradient": torch.tensor([math.nan, .5]), "angles": torch.tensor([0., math.pi / 4])})
    told = readings([records_of([({}, odd.arrays)])])
    assert told["gradient in the top space"](odd) == "not defined" and told["turn of the top space"](odd) == "45.0°"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(column(records_of([({}, {})]), "loss")[0]) == 0
