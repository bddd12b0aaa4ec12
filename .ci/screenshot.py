"Write nbs/images/workbook.png: the Workbook in JupyterLab and Chromium, on the network that the start page has."
import io
import sys
from pathlib import Path

import pytest
from PIL import Image

root = Path(__file__).resolve().parent.parent
PATH = root / "nbs/images/workbook.png"
SETUP = """
from hessnb import Workbook
from hessnb.paper.data import load_data
from hessnb.paper.zoo import find_minimum
data = load_data("gauss")
model = find_minimum("normal", data).model
book = Workbook(model, (data.X_train, data.y_train), k=5, test=(data.X_test, data.y_test),
                class_names=data.class_names)
book.add_class("hessnb-book")
book"""


def test_screenshot(lab):
    lab.page.set_viewport_size({"width": 1180, "height": 980})
    lab.run("shot", SETUP)
    lab.until(lambda: "done" in lab.widget("book").inner_text(), seconds=90, what="the end of the computation")
    before = lab.pixels("book")
    lab.handle("book").focus()
    for _ in range(7): lab.page.keyboard.press("ArrowRight")
    lab.until_changed("book", before)
    lab.page.wait_for_timeout(600)
    image = Image.open(io.BytesIO(lab.widget("book").screenshot())).convert("RGB")
    image.quantize(128, dither=Image.Dither.NONE).save(PATH, "png", optimize=True)


if __name__ == "__main__":
    sys.path[:0] = [str(root), str(root / "tests")]
    options = ["-q", "-p", "ui.conftest", "-p", "no:cacheprovider", f"--rootdir={root}"]
    sys.exit(pytest.main([__file__, *options]))
