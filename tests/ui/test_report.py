"The report in a browser: it fits laptop and phone, is legible in light and dark, prints, and asks no host."
import pytest
import torch
from torch import nn

from hessnb import write_report

LUMINANCE = """() => {
    const light = text => {
        const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
        const [r, g, b] = text.match(/[\\d.]+/g).map(v => linear(v / 255));
        return .2126 * r + .7152 * g + .0722 * b;
    };
    const paper = light(getComputedStyle(document.body).backgroundColor);
    const ratio = e => {
        const ink = light(getComputedStyle(e).color);
        return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
    };
    const parts = ['p', 'td', 'th', 'figcaption', 'small', '.missed', '.caution', '.verdict em', 'a', 'dd', 'li'];
    const found = parts.map(name => [name, document.querySelector(name)]).filter(([, e]) => e);
    return found.map(([name, e]) => [name, ratio(e)]);
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(60) % 2
    X = torch.randn(60, 2, generator=generator, dtype=torch.float64) + 2. * y[:, None]
    nets = {}
    for name, seed in {"a network with a rather long name": 0, "other": 1}.items():
        generator.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        for p in net.parameters(): nn.init.normal_(p, std=.5, generator=generator)
        optimiser = torch.optim.Adam(net.parameters(), .05)
        for _ in range(60):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(X), y).backward()
            optimiser.step()
        nets[name] = net
    names = dict(class_names=["left", "right"], feature_names=["a long name of a feature (cm)", "width (mm)"])
    path = write_report(nets, (X, y), test=(X, y), **names, out=tmp_path_factory.mktemp("page") / "r", quick=True)
    return f"file://{path}"


@pytest.mark.parametrize("width", [1300, 1000, 390])
def test_it_fits(browser, address, width):
    page = browser.new_page(viewport={"width": width, "height": 800})
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.evaluate("""width => [...document.querySelectorAll('img, table, p, h2, .verdict')]
        .filter(e => !e.closest('.scroll, .wide, .hessnb-moving') && e.getBoundingClientRect().right > width + 1)
        .map(e => e.outerHTML.slice(0, 80))""", width)
    assert wide == [] and all(url.startswith(("file:", "data:")) for url in asked)
    used = page.evaluate("Math.max(...[...document.querySelectorAll('.numbers, .grid')].map(e => e.offsetWidth))")
    assert used > .9 * width  # the width of a laptop is not left empty
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_legible(browser, address, scheme):
    page = browser.new_page(viewport={"width": 1000, "height": 800}, color_scheme=scheme)
    page.goto(address)
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    faint = [(name, round(ratio, 1)) for name, ratio in page.evaluate(LUMINANCE) if ratio < 4.5]
    assert not faint
    page.close()


def test_it_prints_on_white_without_what_moves(browser, address):
    page = browser.new_page(viewport={"width": 1000, "height": 800}, color_scheme="dark")
    page.goto(address)
    assert page.locator(".hessnb-moving").first.is_visible() and page.locator("nav").is_visible()
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator(".hessnb-moving").first.is_visible() and not page.locator("nav").is_visible()
    assert page.locator(".verdict").is_visible() and page.locator(".numbers").is_visible()
    page.close()


def test_its_sliders_move(browser, address):
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    page.goto(address)
    first = page.locator(".hessnb-moving").first
    before = first.locator(".hessnb-frame").get_attribute("src")
    slider = first.locator("input[type=range]").first
    slider.evaluate("e => { e.value = e.max; e.dispatchEvent(new Event('input', {bubbles: true})) }")
    assert first.locator(".hessnb-frame").get_attribute("src") != before
    page.close()
