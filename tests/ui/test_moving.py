"The page of pictures drawn beforehand, in a browser."
import pytest
import torch

from hessnb import HessianOperator, Objective, top_eigenpairs
from hessnb.paper.networks import mlp
from hessnb.show.moving import MovingPictures, page_around


def made():
    "Frames along two eigenvectors of a network as it was drawn."
    torch.manual_seed(0)
    X, y = torch.randn(30, 2), torch.arange(30) % 3
    objective = Objective(mlp(2, 3).eval(), (X, y), dtype=torch.float64)
    pairs = top_eigenpairs(HessianOperator(objective), 2)
    return MovingPictures(objective, pairs, n_frames=5, class_names=["a <b>", "</script>", "$c_1$"])


def test_sliders_move_in_a_browser(browser, tmp_path):
    "Two on one page, by key and by touch, each its own; no request; it fits a phone, light and dark."
    expect, small = pytest.importorskip("playwright.sync_api").expect, made()
    path = tmp_path / "two.html"
    path.write_text(page_around("two", small.html() + small.html()), encoding="utf-8")
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark", has_touch=True)
    page, asked, said = context.new_page(), [], []
    page.on("request", lambda r: asked.append(r.url) if not r.url.startswith("data:") else None)
    page.on("pageerror", lambda e: said.append(e))
    page.goto(path.as_uri())
    first, second = page.locator(".hessnb-moving").all()
    changed, before = first.locator("td").nth(0), second.screenshot()
    rest, picture = changed.inner_text(), first.locator(".hessnb-frame").get_attribute("src")
    first.locator("input").nth(1).press("End")
    expect(first).to_have_attribute("data-at", "1 4")
    expect(changed).to_have_text(f"{small.frames[1][4].loss:.3g}")
    assert first.locator(".hessnb-frame").get_attribute("src") != picture
    first.locator("input").nth(0).tap(position={"x": 3, "y": 13})  # a finger at the left end
    expect(first).to_have_attribute("data-at", "0 0")
    expect(first.locator("output").nth(1)).to_have_text("0")
    assert second.screenshot() == before
    first.get_by_text("Reset").click()
    expect(changed).to_have_text(rest)
    first.get_by_text("Play").click()
    expect(first).to_have_attribute("data-at", "0 3")
    first.get_by_text("Pause").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert asked == [path.as_uri()] and not said
    context.close()
