"The workbook and the start page in JupyterLab: the page lives while it computes, Stop stops, errors are seen."
import time

import pytest

from hessnb.lab import START, copy_tutorials

SETUP = """
import time, warnings, torch
from torch import nn
import hessnb.show.findings as f
from hessnb import HessianOperator
from hessnb.paper.data import load_data
from hessnb.show.workbook import Workbook
warnings.simplefilter("ignore")
flowers = load_data("iris")
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Dropout(.2), nn.Linear(20, 3))
optimizer = torch.optim.Adam(net.parameters(), lr=.02)
for _ in range(100):
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(flowers.X_train), flowers.y_train).backward()
    optimizer.step()
train = flowers.X_train, flowers.y_train
class Slow(HessianOperator):
    def matvec(self, v):
        time.sleep(.2)
        return super().matvec(v)
"""


@pytest.fixture(scope="module")
def workbook(lab):
    lab.run("workbook", SETUP, "wrong = Workbook(net, train)\nwrong.add_class('hessnb-wrong')\nwrong",
            """
net.eval()
book = Workbook(net, train, k=5, test=(flowers.X_test, flowers.y_test), class_names=flowers.class_names)
book.add_class('hessnb-book')
book""")
    return lab


def test_a_refusal_says_what_to_do(workbook):
    workbook.until(lambda: "call model.eval() first" in workbook.error("wrong"), what="the refusal in the widget")


def test_tabs_appear_and_work(workbook):
    said = lambda: workbook.widget("book").inner_text()
    workbook.until(lambda: "done" in said(), seconds=90, what="the end of the computation")
    tabs, names = workbook.widget("book").get_by_role("tab"), ["sliders", "spectrum", "boundary", "layers", "numbers"]
    workbook.until(lambda: [t.strip() for t in tabs.all_inner_texts()] == names, what="five tabs")
    before = workbook.pixels("book")
    workbook.press(workbook.handle("book"), "ArrowRight", 20)
    workbook.until_changed("book", before)
    workbook.screenshot("workbook_sliders_1300")
    for i, text in [(1, "separates"), (2, "classes in view"), (3, "holds"), (4, "effective directions")]:
        tabs.nth(i).click()
        workbook.until(lambda text=text: text in said(), what=f"{text} in tab {i}")
        time.sleep(.3)
        workbook.screenshot(f"workbook_{i}_1300")


def test_the_export_button_writes_files(workbook):
    button = workbook.widget("book").get_by_role("button", name="Export numbers and figures")
    button.scroll_into_view_if_needed()
    button.click()
    workbook.until(lambda: "6 files" in workbook.widget("book").inner_text(), what="the number of files")
    written = {p.name for p in (workbook.folder / "hessnb_workbook").iterdir()}
    assert {"model_eigenpairs.npz", "model_eigenvectors.csv", "numbers.csv", "sliders.png"} <= written


def test_a_second_export_replaces_when_told(workbook):
    widget, file = workbook.widget("book"), workbook.folder / "hessnb_workbook" / "numbers.csv"
    file.write_text("mine")
    widget.get_by_role("button", name="Export numbers and figures").click()
    workbook.until(lambda: "already" in workbook.error("book"), what="the refusal in words")
    assert "hessnb_workbook holds" in workbook.error("book") and file.read_text() == "mine"
    workbook.screenshot("workbook_export_1300")
    widget.get_by_label("replace files of these names").check()
    widget.get_by_role("button", name="Export numbers and figures").click()
    workbook.until(lambda: file.read_text() != "mine", what="the file replaced")
    workbook.until(lambda: workbook.error("book").strip() == "", what="no error")


def test_layers_are_computed_when_asked_for(workbook):
    tabs, said = workbook.widget("book").get_by_role("tab"), lambda: workbook.widget("book").inner_text()
    tabs.nth(3).click()
    button = workbook.widget("book").get_by_role("button", name="Compute all layers")
    button.click()
    workbook.until(lambda: "of the whole" in said(), seconds=60, what="the curvature of a layer")
    time.sleep(.5)
    workbook.screenshot("workbook_layers_1300")
    workbook.page.set_viewport_size({"width": 390, "height": 900})
    time.sleep(1.)
    workbook.screenshot("workbook_layers_390")
    workbook.page.set_viewport_size({"width": 1300, "height": 900})
    assert workbook.error("book").strip() == ""


def test_the_page_lives_while_it_computes_and_stops_when_told(lab):
    lab.run("stopping", SETUP, """
net.eval()
f.as_operator = lambda objective, curvature: Slow(objective)
book = Workbook(net, train, k=12)
book.add_class('hessnb-book')
book""")
    said = lambda: lab.widget("book").inner_text()
    lab.until(lambda: "found" in said(), seconds=30, what="the progress")
    start = time.monotonic()
    assert lab.execute("print(book.wait(0))") == "False" and time.monotonic() - start < 5  # the kernel answers
    number = "text.split(': ')[-1].split(' of ')[0] if 'found' in text else 0"
    found = lambda: int(lab.execute(f"text = book.progress.text.value; print({number})"))
    lab.until(lambda: found() >= 1, seconds=60, what="the first pair")
    lab.widget("book").get_by_role("button", name="Stop").click()
    lab.until(lambda: "stopped" in said() or lab.error("book"), seconds=60, what="the end")
    assert lab.error("book") == ""
    n, ok = lab.execute("p = book.pairs['model']; print(len(p), bool(p.converged.all()))").split()
    assert 1 <= int(n) < 12 and ok == "True"
    lab.image("book").wait_for()
    before = lab.pixels("book")
    lab.press(lab.handle("book"), "ArrowRight", 20)
    lab.until_changed("book", before)
    lab.screenshot("stopped_1300")
    lab.execute("del Slow.matvec")  # no longer slow
    resume = lab.widget("book").get_by_role("button", name="Resume")
    assert resume.is_visible() and "Resume goes on from there" in said()
    resume.click()
    lab.until(lambda: "done" in said() or lab.error("book"), seconds=60, what="the end of the resumed computation")
    lab.until(lambda: not resume.is_visible(), what="nothing to resume")
    assert lab.error("book") == "" and lab.execute("print(len(book.pairs['model']))") == "12"


def test_the_start_page_shows_a_working_slider(lab):
    copy_tutorials(lab.folder / "tutorials")
    lab.open(f"tutorials/{START}")
    lab.run_all()
    lab.image("sliders").wait_for()  # how long it takes on a quiet machine: test_latency
    before = lab.pixels("sliders")
    lab.press(lab.handle("sliders"), "ArrowRight", 10)
    lab.until_changed("sliders", before)
    lab.screenshot("start_1300")
