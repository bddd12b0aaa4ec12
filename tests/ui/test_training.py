"A training run played in Chromium: in JupyterLab beside a kernel, and as a page without one."
import io
import json

import numpy as np
import pytest
from PIL import Image
from watched import watched

from .timing import record, timings, until

SETUP = """
import torch, warnings
from hessnb.show.training_explorer import TrainingExplorer
from hessnb.training.records import TrainingRecords
warnings.simplefilter("ignore")
runs = [TrainingRecords.load(folder) for folder in {folders}]
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "Two runs on disk."
    home = tmp_path_factory.mktemp("runs")
    watched(14, 6, lr=.5, rich=False, folder=home / "slow")
    watched(9, 12, lr=3., rich=False, seed=1, folder=home / "fast")
    return [str(home / "slow"), str(home / "fast")]


@pytest.fixture(scope="module")
def live(lab, folders):
    lab.run("training", SETUP.format(folders=folders), """
explorer = TrainingExplorer(*runs, names=["slow", "fast"])
explorer""")
    lab.widget("training").locator(".hessnb-frame").first.wait_for()
    return lab


@pytest.fixture(scope="module")
def pages(folders, tmp_path_factory):
    "Addresses of exported pages: one run, and two."
    from hessnb.show.training_explorer import TrainingExplorer
    from hessnb.training.records import TrainingRecords
    home, runs = tmp_path_factory.mktemp("pages"), list(map(TrainingRecords.load, folders))
    for name, shown in (("one", runs[:1]), ("two", runs)):
        explorer = TrainingExplorer(*shown)
        explorer.save_page(home / f"{name}.html")
        explorer.close()
    return {name: f"file://{home / name}.html" for name in ("one", "two")}


def shot(page, index=0):
    "A box of the player as the page shows it: boundary and curves of the first run, then of the second."
    box = page.locator(".hessnb-box").nth(index)
    box.scroll_into_view_if_needed()
    return np.asarray(Image.open(io.BytesIO(box.screenshot())).convert("RGB")).astype(int)


def changed(before, after): return (abs(after - before).max(2) > 8).mean()


def at(page): return int(page.locator(".hessnb-player").get_attribute("data-index"))


def told(page, head):
    "A row of the read-out."
    rows = page.locator(".hessnb-readout tr").all_inner_texts()
    return next(row.split("\t")[1:] for row in rows if row.startswith(head))


def presses(page, keys):
    "Milliseconds from each key press to the painted picture."
    press = lambda i: page.keyboard.press(keys[i])
    return timings(page, ".hessnb-player", press, len(keys), "data-index", settle=.06)  # set after all pictures


KEYS = ["ArrowLeft"] * 10 + ["ArrowRight"] * 10


class TestWidget:
    def test_a_key_moves_everything_together(self, live):
        page, before = live.page, [shot(live.page, i) for i in range(4)]
        last = at(page)
        for _ in range(8): page.locator(".hessnb-player").press("ArrowLeft")
        until(lambda: at(page) == last - 8)
        for i, was in enumerate(before): assert changed(was, shot(page, i)) > .001
        until(lambda: live.execute("print(explorer.index)") == str(last - 8))
        rows = json.loads(live.execute("import json; print(json.dumps(explorer.rows))"))
        for head, *texts in rows[1:]: assert told(page, head) == texts
        assert live.error("training") == ""
        live.screenshot("training_1300")

    def test_the_kernel_moves_it_too(self, live):
        live.execute("explorer.step = 0")
        until(lambda: at(live.page) == 0)
        assert told(live.page, "step") == ["0", "0"]

    def test_it_plays_while_the_kernel_is_busy(self, live, tmp_path):
        page, done = live.page, tmp_path / "done"
        page.evaluate("""code => {
            const kernel = window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
            kernel.requestExecute({ code });
        }""", f"import os, time\nwhile not os.path.exists({str(done)!r}): time.sleep(.05)")
        page.locator(".hessnb-play").click()
        until(lambda: at(page) >= 5, what="five steps")
        page.locator(".hessnb-play").click()
        done.touch()
        until(lambda: live.execute("print(explorer.index)") == str(at(page)), what="the kernel follows")

    def test_a_click_into_the_curves(self, live):
        box = live.page.locator(".hessnb-curves").first
        box.scroll_into_view_if_needed()
        place = box.bounding_box()
        x = float(live.execute("print(explorer.film.data['runs'][0]['x'][4])"))
        live.page.mouse.click(place["x"] + x * place["width"], place["y"] + place["height"] / 2)
        until(lambda: told(live.page, "step")[0] == live.execute("print(runs[0][4].step)"))

    @pytest.mark.slow
    def test_key_to_picture(self, live):
        last = int(live.execute("explorer.index = len(explorer.steps) - 1; print(explorer.index)"))
        until(lambda: at(live.page) == last, what="the last step")
        live.page.locator(".hessnb-player").focus()
        times = presses(live.page, KEYS)
        found = record("training explorer, two runs, beside a kernel", times)
        assert found["median_ms"] <= 100


class TestPage:
    @pytest.mark.parametrize("width", [1300, 390])
    @pytest.mark.parametrize("name", [pytest.param("one", marks=pytest.mark.slow), "two"])
    def test_it_plays_without_a_kernel(self, browser, pages, name, width):
        page, asked, errors = browser.new_page(viewport={"width": width, "height": 844}), [], []
        page.on("request", lambda r: asked.append(r.url))
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.goto(pages[name])
        page.locator(".hessnb-frame").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for i in range(page.locator(".hessnb-box").count()):
            box = page.locator(".hessnb-box").nth(i).bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["width"] > 330
        before, start = shot(page), told(page, "loss")
        for _ in range(6): page.keyboard.press("ArrowRight")  # nothing was clicked before
        until(lambda: at(page) == 6)
        assert changed(before, shot(page)) > .01 and told(page, "loss") != start
        page.keyboard.press("Home")
        until(lambda: at(page) == 0)
        assert changed(before, shot(page)) == 0 and told(page, "loss") == start
        page.locator(".hessnb-play").click()
        until(lambda: at(page) > 3)
        assert not errors and all(url.startswith(("file:", "data:")) for url in asked)
        page.close()

    @pytest.mark.slow
    def test_key_to_picture(self, browser, pages):
        page = browser.new_page(viewport={"width": 1300, "height": 900})
        page.goto(pages["two"])
        page.locator(".hessnb-frame").first.wait_for()
        page.keyboard.press("End")
        until(lambda: at(page) > 0, what="the last step")
        times = presses(page, KEYS)
        found = record("training page, two runs, without a kernel", times)
        assert found["median_ms"] <= 100
        page.close()
