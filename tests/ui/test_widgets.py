"Every explorer in JupyterLab: keys, drags, clicks change pictures; the read-out says what a computation beside says."
import json
import re
import time

import pytest

SETUP = """
import torch, warnings
from hessnb import HessianOperator, Objective, top_eigenpairs, compare_minima
from hessnb import BoundaryExplorer, EigenvectorSliders, MinimaComparer, SpectrumExplorer
from hessnb.paper.data import load_data
from hessnb.paper.zoo import find_minimum
from hessnb.show.closing import n_open
warnings.simplefilter("ignore")
data = load_data("gauss")
model = find_minimum("normal", data).model
objective = Objective(model, (data.X_train, data.y_train))
pairs = top_eigenpairs(HessianOperator(objective), 6, tol=1e-3)
state = {name: p.clone() for name, p in model.state_dict().items()}
"""


@pytest.fixture(scope="module")
def sliders(lab):
    lab.run("sliders", SETUP, """
sliders = EigenvectorSliders(objective, pairs, n=150, class_names=data.class_names)
sliders""", """
class Broken(EigenvectorSliders):
    def refresh(self):
        super().refresh()
        if any(self.amounts): raise RuntimeError("deliberately broken")
broken = Broken(objective, pairs, k=1, n=30)
broken.add_class("hessnb-broken")
broken""")
    lab.image("sliders").wait_for()
    return lab


def amounts(lab): return json.loads(lab.execute("import json; print(json.dumps(sliders.amounts))"))


def loss_of(lab):
    output = "sliders.perturbed()(data.X_train)"
    return float(lab.execute(f"print(torch.nn.functional.cross_entropy({output}, data.y_train).item())"))


class TestEigenvectorSliders:
    def test_a_key_moves_the_boundary(self, sliders):
        before = sliders.pixels("sliders")
        sliders.press(sliders.handle("sliders"), "ArrowRight", 10)
        ten = 10 * float(sliders.execute("print(sliders.sliders[0].step)"))
        sliders.until(lambda: amounts(sliders)[0] == pytest.approx(ten), what="ten steps to the right")
        sliders.until_changed("sliders", before)
        loss = loss_of(sliders)
        sliders.until(lambda: f"{loss:.4g}" in sliders.readout("sliders"), what=f"loss {loss:.4g} in the read-out")
        sliders.screenshot("sliders_1300")

    def test_a_drag_moves_it_on(self, sliders):
        before, handle = sliders.pixels("sliders"), sliders.handle("sliders", 1).bounding_box()
        x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
        sliders.page.mouse.move(x, y)
        sliders.page.mouse.down()
        for i in range(20): sliders.page.mouse.move(x + 3 * i, y)
        sliders.page.mouse.up()
        sliders.until_changed("sliders", before)
        sliders.until(lambda: amounts(sliders)[1] > .05, what="the second slider moved")
        time.sleep(.3)
        loss = loss_of(sliders)
        assert f"{loss:.4g}" in sliders.readout("sliders")

    def test_reset_by_click(self, sliders):
        before = sliders.pixels("sliders")
        sliders.widget("sliders").get_by_role("button", name="Reset").click()
        sliders.until(lambda: amounts(sliders) == [0.] * 5, what="sliders at zero")
        now = sliders.until_changed("sliders", before)
        sliders.execute("sliders.amounts = (.3, 0, 0, 0, 0)")
        sliders.until_changed("sliders", now)
        sliders.execute("sliders.state = {'amounts': (0.,) * 5}")

    def test_numbers_of_code_stay_what_they_are(self, sliders):
        "Off the grid of the sliders' steps; the browser answers nothing back, also when two come one after the other."
        for values in [(.333, -.0123, 0., 0., .0777), (0.,) * 5]:
            sliders.execute(f"sliders.state = {{'amounts': {values}}}")
            time.sleep(.5)
            assert amounts(sliders) == list(values)
        sliders.execute("sliders.state = {'amounts': (.3, 0, 0, 0, 0)}")
        sliders.execute("sliders.state = {'amounts': (0., 0, 0, 0, 0)}")
        time.sleep(.7)
        assert amounts(sliders) == [0.] * 5

    def test_what_a_slider_says(self, sliders):
        "Ends and marks from the true loss, whether the prediction holds, and what the words mean."
        widget = sliders.widget("sliders")
        first = widget.locator(".hessnb-slider").first
        assert {"+.01", "+.1", "+1"} == set(first.locator(".hessnb-mark span").all_text_contents())
        first.locator(".hessnb-handle").press("End")
        sliders.until(lambda: "does not hold here" in sliders.readout("sliders"), what="the end of the prediction")
        rise = float(sliders.execute("print(sliders.numbers['loss'] - objective.value())"))
        assert 1 <= rise <= 1.06
        first.locator(".hessnb-handle").press("Home")
        first.locator(".hessnb-number").fill("9")
        first.locator(".hessnb-number").press("Enter")
        sliders.until(lambda: "9 is outside of" in first.inner_text(), what="a refusal")
        first.locator(".hessnb-number").press("Escape")
        first.locator(".hessnb-handle").focus()  # the word is gone, and nothing moves below a click
        meaning = "What the training loss would be if it were a parabola"
        assert meaning in widget.locator("abbr", has_text="quadratic prediction").get_attribute("title")
        words = widget.locator("details.hessnb-meanings")
        words.locator("summary").click()
        assert words.get_by_text(meaning).is_visible()
        widget.get_by_role("button", name="Reset").click()
        sliders.until(lambda: amounts(sliders) == [0.] * 5, what="sliders at zero")
        assert words.get_by_text(meaning).is_visible()  # it stays open while numbers change
        words.locator("summary").click()

    def test_no_tooltip_says_null(self, sliders):
        found = sliders.page.evaluate("""() => [...document.querySelectorAll('.jp-OutputArea [title]')]
            .map(node => node.title).filter(title => ['null', 'undefined', 'None'].includes(title))""")
        assert found == []

    def test_play_sweeps(self, sliders):
        before = sliders.pixels("sliders")
        play = sliders.widget("sliders").locator(".widget-play button, .jupyter-widgets.widget-play button").first
        play.click()
        sliders.until_changed("sliders", before)
        sliders.widget("sliders").locator(".widget-play button").first.click()
        sliders.widget("sliders").get_by_role("button", name="Reset").click()
        sliders.until(lambda: amounts(sliders) == [0.] * 5, what="sliders at zero")
        time.sleep(1)
        assert amounts(sliders) == [0.] * 5  # no frame of the sweep comes late

    def test_reset_ends_a_sweep(self, sliders):
        before = sliders.pixels("sliders")
        sliders.widget("sliders").locator(".widget-play button").first.click()
        sliders.until_changed("sliders", before)
        sliders.widget("sliders").get_by_role("button", name="Reset").click()
        sliders.until(lambda: amounts(sliders) == [0.] * 5, what="sliders at zero")
        time.sleep(1)
        assert amounts(sliders) == [0.] * 5

    def test_a_broken_callback_is_seen(self, sliders):
        assert sliders.error("broken") == ""
        sliders.press(sliders.handle("broken"), "ArrowRight")
        said = "Something went wrong: deliberately broken (RuntimeError)"
        sliders.until(lambda: said in sliders.error("broken"), what="the error in the widget")
        message = sliders.widget("broken").get_by_role("alert")
        assert message.is_visible() and "change a control to try again" in message.inner_text()
        sliders.screenshot("broken_1300")
        sliders.widget("broken").get_by_title("close this message").click()
        sliders.until(lambda: sliders.error("broken") == "", what="the message closed")

    def test_the_model_is_where_it_was(self, sliders):
        same = "all(torch.equal(p, model.state_dict()[name]) for name, p in state.items())"
        assert sliders.execute(f"print({same})") == "True"


@pytest.fixture(scope="module")
def explorers(lab):
    lab.run("explorers", SETUP, """
spectrum = SpectrumExplorer(objective, pairs, class_names=data.class_names)
spectrum""", """
boundary = BoundaryExplorer(objective, pairs, class_names=data.class_names)
boundary""", """
minima = {f"seed {s}": find_minimum("normal", data, seed=s).model for s in (0, 1)}
comparison = compare_minima(minima, (data.X_train, data.y_train), k=5, pairs=10)
comparer = MinimaComparer(comparison, class_names=data.class_names)
comparer""", """
import time
import hessnb.show.explorer as room
random = torch.Generator().manual_seed(0)
weights = [torch.randn(shape, generator=random) for shape in [(8, 36), (3, 8)]]
tiny = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).eval()
for i, W in zip((1, 3), weights): tiny[i].weight.data = W
seen = Objective(tiny, (torch.rand(24, 1, 6, 6, generator=random), torch.arange(24) % 3))
images = BoundaryExplorer(seen, top_eigenpairs(HessianOperator(seen), 3), n=40)
images.add_class("hessnb-images")
images""")
    lab.image("minima", 1).wait_for()
    lab.image("images").wait_for()
    return lab


def click(lab, name, x, y, index=0):
    "Click at shares of the picture's width and height."
    lab.image(name, index).scroll_into_view_if_needed()
    box = lab.image(name, index).bounding_box()
    lab.page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


class TestSpectrumExplorer:
    def test_a_click_chooses_an_eigenvalue(self, explorers):
        spectrum, detail = explorers.pixels("spectrum"), explorers.pixels("spectrum", 1)
        place = "spectrum.canvases['log'].place(3, pairs.values[2].item())"
        x, y = json.loads(explorers.execute(f"import json; print(json.dumps({place}))"))
        click(explorers, "spectrum", x, y)
        explorers.until_changed("spectrum", spectrum, share=.001)
        explorers.until_changed("spectrum", detail, 1)
        value = explorers.execute("print(f'{pairs.values[2]:.4g}')")
        told = lambda: explorers.readout("spectrum")
        explorers.until(lambda: "v3 of 6" in told() and value in told(), what=f"v3 and {value} in the read-out")
        explorers.screenshot("spectrum_1300")

    def test_arrow_keys(self, explorers):
        detail = explorers.pixels("spectrum", 1)
        explorers.image("spectrum").press("ArrowRight")
        explorers.until(lambda: "v4 of 6" in explorers.readout("spectrum"), what="v4 in the read-out")
        explorers.until_changed("spectrum", detail, 1)
        explorers.press(explorers.handle("spectrum"), "ArrowLeft")
        explorers.until(lambda: "v3 of 6" in explorers.readout("spectrum"), what="v3 in the read-out")

    def test_scale(self, explorers):
        before = explorers.pixels("spectrum")
        explorers.widget("spectrum").get_by_role("button", name="linear").click()
        explorers.until_changed("spectrum", before)
        assert explorers.error("spectrum") == ""


class TestBoundaryExplorer:
    def test_a_click_says_what_lies_there(self, explorers):
        before = explorers.pixels("boundary")
        x, y = json.loads(explorers.execute("print(json.dumps(boundary.canvas.place(-2., 1.)))"))
        click(explorers, "boundary", x, y)
        explorers.until(lambda: "nearest example" in explorers.readout("boundary"), what="the point in the read-out")
        explorers.until_changed("boundary", before, share=.0005)
        u, v = json.loads(explorers.execute("print(json.dumps(boundary.point))"))
        assert u == pytest.approx(-2, abs=.05) and v == pytest.approx(1, abs=.05)
        nearest, confidence = "int((data.X_train - x).norm(dim=1).argmin())", "f'{model(x).softmax(1).max():.2%}'"
        told = explorers.execute(f"x = torch.tensor([[{u}, {v}]]); print({nearest}, {confidence})")
        example, confidence = told.split()
        text = explorers.readout("boundary")
        assert re.search(rf"nearest example\s+{example} ", text) and confidence in text

    def test_keys_and_drags_move_the_point(self, explorers):
        point = lambda: json.loads(explorers.execute("print(json.dumps(boundary.point))"))
        start = point()
        for _ in range(5): explorers.image("boundary").press("ArrowRight")
        explorers.until(lambda: point()[0] > start[0] + .1, what="the point to the right")
        box, (u, v) = explorers.image("boundary").bounding_box(), point()
        x, y = json.loads(explorers.execute(f"print(json.dumps(boundary.canvas.place({u}, {v})))"))
        x, y = box["x"] + x * box["width"], box["y"] + y * box["height"]
        explorers.page.mouse.move(x, y)
        explorers.page.mouse.down()
        for i in range(20): explorers.page.mouse.move(x + 2 * i, y - 2 * i)
        explorers.page.mouse.up()
        explorers.until(lambda: point()[1] > v + .2, what="the point above")

    def test_alignments(self, explorers):
        before = explorers.pixels("boundary")
        explorers.widget("boundary").locator("select:visible").last.select_option(label="alignment with v2")
        explorers.until_changed("boundary", before, share=.1)
        explorers.screenshot("boundary_1300")
        assert explorers.error("boundary") == ""


class TestImages:
    def test_the_detail_is_there_when_there_is_something_to_see(self, explorers):
        "No sign of a broken picture before the first click; afterwards it stands by the plane."
        whole = "img => img.offsetParent === null || img.naturalWidth > 0"
        assert explorers.image("images", 1).evaluate(whole) and not explorers.image("images", 1).is_visible()
        click(explorers, "images", .4, .6)
        explorers.until(lambda: "nearest example" in explorers.readout("images"), what="the point in the read-out")
        explorers.image("images", 1).wait_for()
        explorers.until(lambda: explorers.image("images", 1).evaluate("img => img.naturalWidth > 0"), what="a picture")
        plane, detail = (explorers.image("images", i).bounding_box() for i in range(2))
        beside = detail["x"] - plane["x"] - plane["width"]
        assert 0 <= max(beside, detail["y"] - plane["y"] - plane["height"]) <= 40
        explorers.screenshot("images_1300")

    def test_a_number_that_stands_for_nothing(self, explorers):
        box = explorers.widget("images").locator("input[type=number]:visible").first
        before = box.input_value()
        box.fill("99")
        box.press("Enter")
        said = f"there is no example 99: they are numbered 0 to 23; {before} is kept"
        explorers.until(lambda: said in explorers.error("images"), what="the refusal in the widget")
        explorers.until(lambda: box.input_value() == before, what="the number put back")

    def test_a_slow_plane_is_announced(self, explorers):
        "The line is painted, and the controls are disabled, while the old picture still stands."
        explorers.execute("""
lay = room.lay_plane
def slowly(*args, **options):
    time.sleep(1.5)
    return lay(*args, **options)
room.lay_plane = slowly""")
        widget = explorers.widget("images")
        look = """root => ({
            said: [...root.querySelectorAll('.hessnb-busy .hessnb-working')].filter(node => node.offsetParent
                && getComputedStyle(node).opacity > .9).map(node => node.innerText)[0],
            disabled: [...root.querySelectorAll('select')].every(node => node.disabled),
            readout: root.querySelector('.hessnb-readout').innerText})"""
        def state(): return widget.evaluate(look)
        assert not state()["said"] and not state()["disabled"]
        widget.locator("select").first.select_option(label="designed inputs")
        busy = explorers.until(lambda: (s := state())["said"] and s, what="the busy line")
        assert "laying the plane: designed inputs" in busy["said"] and busy["disabled"]
        assert "designed inputs" not in busy["readout"]
        explorers.screenshot("images_busy_1300")
        explorers.until(lambda: "designed inputs" in state()["readout"], what="the plane in the read-out")
        explorers.until(lambda: not state()["said"], what="the end of the busy line")
        assert not state()["disabled"] and explorers.error("images") == ""
        explorers.execute("room.lay_plane = lay")


class TestMinimaComparer:
    def test_pictures_stand_side_by_side(self, explorers):
        explorers.image("minima").scroll_into_view_if_needed()
        left, right = (explorers.image("minima", i).bounding_box() for i in range(2))
        assert abs(left["y"] - right["y"]) <= 5 and right["x"] >= left["x"] + left["width"]

    def test_one_slider_moves_all(self, explorers):
        before = [explorers.pixels("minima", i) for i in range(2)]
        explorers.press(explorers.handle("minima"), "ArrowRight", 20)
        for i in range(2): explorers.until_changed("minima", before[i], i)
        explorers.until(lambda: explorers.execute("print(comparer.amount)") == "1.0", what="one curvature length")
        time.sleep(.5)
        for name in ("seed 0", "seed 1"):
            there = "e.objective.theta + e.pairs.vectors[0] / e.pairs.values[0].sqrt()"
            value = f"f'{{e.objective.value({there}):.3g}}'"
            loss = explorers.execute(f"e = comparer.examinations['{name}']; print({value})")
            assert loss in explorers.readout("minima")
        explorers.screenshot("minima_1300")


class TestNarrow:
    def test_at_800_pixels_nothing_is_cut_off(self, explorers):
        explorers.page.set_viewport_size({"width": 800, "height": 900})
        time.sleep(1)
        for name in ("spectrum", "boundary", "minima"):
            explorers.image(name).scroll_into_view_if_needed()
            time.sleep(.2)
            box = explorers.image(name).bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= 800
            explorers.screenshot(f"{name}_800")
        explorers.page.set_viewport_size({"width": 1300, "height": 900})


class TestRerun:
    def test_a_cell_that_runs_again_leaves_nothing(self, lab):
        lab.run("rerun", SETUP, "view = EigenvectorSliders(objective, pairs, k=3, n=40)\nview")
        lab.image("sliders").wait_for()
        counts = []
        lab.execute("import gc")
        for _ in range(10):
            lab.page.evaluate("""async () => {
                const app = window.jupyterapp;
                await app.commands.execute('notebook:move-cursor-down');
                const notebook = app.shell.currentWidget.content;
                notebook.activeCellIndex = 1;
                await app.commands.execute('notebook:run-cell');
            }""")
            counts.append(int(lab.execute("gc.collect(); print(n_open())")))
        assert len(set(counts[1:])) == 1 and counts[0] <= counts[1], counts
        assert lab.execute("import matplotlib._pylab_helpers as h; print(len(h.Gcf.figs))") == "0"
        count = "sum(isinstance(o, kind) for o in gc.get_objects()) for kind in (BoundaryCanvas, Objective)"
        kept = lab.execute(f"from hessnb.show.canvas import BoundaryCanvas; print(*({count}))")
        assert kept == "1 2", kept  # the notebook's own objective, and the copy of the widget that is open
