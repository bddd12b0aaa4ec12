"Our slider in JupyterLab: numbers of code stay what they are; keys, drags and typed numbers; words; marks."
import json
import time

import pytest

SETUP = """
import json
import ipywidgets
from hessnb.show.slider import MarkedIntSlider, MarkedSlider, NumberBox
heard = []
marks = [(-.9, "+.1"), (-.5, "+.01"), (.5, "+.01"), (.52, "+.011"), (1., "+.1"), (2.5, "+1")]
a = MarkedSlider(.333, -1, 3, .05, description="v1", tooltip="the first eigenvector", band=(-.4, .6), marks=marks)
late = MarkedSlider(0, -3, 3, .05, description="late", continuous_update=False)
count, box = MarkedIntSlider(2, 0, 9, description="count"), NumberBox(3, 0, 9, description="box")
for each in (a, late, count, box): each.observe(lambda change: heard.append(change["new"]), "value")
shown = ipywidgets.VBox([a, late, count, box])
shown.add_class("hessnb-trial")
shown"""


@pytest.fixture(scope="module")
def trial(lab):
    lab.run("slider", SETUP)
    lab.widget("trial").locator(".hessnb-handle").first.wait_for()
    return lab


def told(lab, what): return json.loads(lab.execute(f"print(json.dumps({what}))"))


def number(lab, i): return lab.widget("trial").locator(".hessnb-number").nth(i)


def type_number(lab, i, text):
    number(lab, i).fill(text)
    number(lab, i).press("Enter")


def word(lab, i): return lab.widget("trial").locator(".hessnb-word").nth(i).inner_text()


class TestNumbers:
    def test_code_is_never_answered_back(self, trial):
        "Numbers off the grid stay, and nothing comes back from the browser."
        trial.execute("heard.clear()")
        for value in (.333, .1 + .2, -.07, 0.):
            trial.execute(f"a.value = {value!r}")
            trial.until(lambda value=value: number(trial, 0).input_value() == f"{value:+.2f}", what=f"{value} shown")
        for value in (.3, 0.): trial.execute(f"a.value = {value!r}")
        time.sleep(.5)
        assert told(trial, "[a.value, heard]") == [0., [.1 + .2, -.07, 0., .3, 0.]]
        trial.execute("a.value = .333")
        time.sleep(.3)
        handle = trial.handle("trial", 0)
        assert told(trial, "a.value") == .333 and handle.get_attribute("aria-valuenow") == "0.333"
        handle.click()  # to touch it moves nothing
        handle.press("Tab")
        time.sleep(.3)
        assert told(trial, "a.value") == .333

    def test_keys(self, trial):
        trial.execute("a.value = .333")
        for key, value in [("ArrowRight", .35), ("ArrowLeft", .3), ("ArrowUp", .35), ("ArrowDown", .3),
                           ("PageUp", .8), ("PageDown", .3), ("Home", -1.), ("End", 3.), ("ArrowRight", 3.)]:
            trial.handle("trial", 0).press(key)
            trial.until(lambda value=value: told(trial, "a.value") == value, what=f"{value} after {key}")
        assert trial.handle("trial", 0).evaluate("node => node === document.activeElement")
        trial.execute("a.value = .333")
        trial.handle("trial", 0).press("ArrowLeft")
        trial.until(lambda: told(trial, "a.value") == .3, what="down to the grid")

    def test_typed(self, trial):
        type_number(trial, 0, "1.2345")
        trial.until(lambda: told(trial, "a.value") == 1.2345, what="the typed number")
        assert number(trial, 0).input_value() == "1.2345"
        number(trial, 0).press("Tab")
        assert number(trial, 0).input_value() == "+1.23" and told(trial, "a.value") == 1.2345
        for text, said in [("7", "7 is outside of -1 to 3; +1.23 is kept."), ("much", "“much” is not a number")]:
            type_number(trial, 0, text)
            trial.until(lambda said=said: said in word(trial, 0), what=said)
            assert told(trial, "a.value") == 1.2345
        type_number(trial, 0, "-.5")
        trial.until(lambda: told(trial, "a.value") == -.5, what="the typed number")
        assert word(trial, 0) == ""
        for i in (2, 3):
            type_number(trial, i, "2.5")
            trial.until(lambda i=i: "not a whole number" in word(trial, i), what="a refusal")
            type_number(trial, i, "12")
            trial.until(lambda i=i: "12 is outside of 0 to 9" in word(trial, i), what="a refusal")
            type_number(trial, i, "5")
        trial.until(lambda: told(trial, "[count.value, box.value]") == [5, 5], what="whole numbers")
        number(trial, 3).press("ArrowUp")
        trial.until(lambda: told(trial, "box.value") == 6, what="one more")

    def test_drags(self, trial):
        trial.execute("a.value = late.value = 0.\nheard.clear()")
        time.sleep(.3)
        for i, name in ((0, "a"), (1, "late")):
            handle = trial.handle("trial", i).bounding_box()
            x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
            trial.execute("heard.clear()")
            trial.page.mouse.move(x, y)
            trial.page.mouse.down()
            for j in range(30):
                trial.page.mouse.move(x + 2 * j, y)
                time.sleep(.01)
            before = told(trial, "heard")
            trial.page.mouse.up()
            value = trial.until(lambda name=name: told(trial, f"{name}.value") > .5 and told(trial, f"{name}.value"),
                                what=f"{name} dragged")
            assert value == pytest.approx(round(value / .05) * .05, abs=1e-12)  # on the grid
            assert len(before) >= 4 if name == "a" else before == [], before

    def test_for_readers_and_without_a_mouse(self, trial):
        handle = trial.handle("trial", 0)
        now = {name: handle.get_attribute(f"aria-{name}") for name in ("label", "valuemin", "valuemax", "valuetext")}
        assert handle.get_attribute("role") == "slider" and now.pop("valuetext").startswith("+")
        assert now == {"label": "v1", "valuemin": "-1", "valuemax": "3"}
        first = trial.widget("trial").locator(".hessnb-slider").first
        assert not first.get_by_text("the first eigenvector").is_visible()
        first.get_by_text("v1", exact=True).click()
        assert first.get_by_text("the first eigenvector").is_visible()
        first.get_by_text("v1", exact=True).click()
        boxes = first.locator(".hessnb-mark span").evaluate_all("""all =>
            all.filter(one => one.style.visibility !== 'hidden').map(one => one.getBoundingClientRect())""")
        assert 3 <= len(boxes) < 6  # labels that would lie on others are left out
        boxes.sort(key=lambda box: box["left"])
        assert all(one["right"] < two["left"] for one, two in zip(boxes, boxes[1:]))
        assert "null" not in first.evaluate("node => node.outerHTML")
        trial.screenshot("slider_1300")

    def test_ends_that_move(self, trial):
        trial.execute("with a.hold_trait_notifications(): a.min, a.max, a.value, a.marks = 0., 10., 5.43, [(2., '2')]")
        handle = trial.handle("trial", 0)
        trial.until(lambda: handle.get_attribute("aria-valuemax") == "10", what="another end")
        time.sleep(.3)
        assert told(trial, "a.value") == 5.43 and handle.evaluate("node => node.style.left") == "54.3%"
