"The documentation site: built as `make docs` builds it, then every page is crawled as a browser without network would."
import importlib.util
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import nbformat
import pytest

import hessnb
from conftest import HERE

pytestmark = pytest.mark.slow
DOCS = HERE.parent / ".ci/docs"
NBS = HERE.parent / "nbs"
WINGS = ("tutorials", "recipes", "curvature", "boundary", "training", "show", "paper")  # reading order
TOP = ("names", "analysis", "figures", "page", "report", "given", "cli", "main", "lab")
NOTEBOOKS = [p.relative_to(NBS).with_suffix("").as_posix() for w in WINGS for p in sorted((NBS / w).glob("*.ipynb"))]
NOTEBOOKS += [name for name in TOP if (NBS / f"{name}.ipynb").exists()]
LOADS = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src",
         "audio": "src", "embed": "src", "object": "data", "form": "action"}


class Page(HTMLParser):
    "The ids of a page, what it links to and what it loads; the text of everything that is neither code nor formula."
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loads, self.tags, self.text, self.inside = set(), [], [], defaultdict(int), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags[tag] += 1
        self.ids |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        if tag == "a" and attrs.get("href"): self.links.append(attrs["href"])
        if tag in LOADS and attrs.get(LOADS[tag]): self.loads.append(attrs[LOADS[tag]])
        self.loads += re.findall(r"url\(([^)]*)\)", attrs.get("style") or "")
        if tag in ("pre", "code", "math", "script", "style", "svg"): self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1] == tag: self.inside.pop()

    def handle_data(self, data):
        if not self.inside: self.text.append(data)


def outside(address):
    return bool(re.match(r"(?:[a-z][a-z0-9+.-]*:)?//|(?!data:)[a-z][a-z0-9+.-]*:", address.strip("'\" ")))


def build(*args, cwd=HERE.parent):
    return subprocess.run([sys.executable, str(DOCS / "build.py"), *map(str, args)], cwd=cwd,
                          capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("docs") / "site"
    done = build(out)
    assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def pages(site):
    return {p.relative_to(site).as_posix(): Page(p.read_text(encoding="utf-8")) for p in site.rglob("*.html")}


def broken(site, pages):
    "Links within the site that lead nowhere, by file or by anchor."
    for name, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc: continue
            target = (site / name).parent / unquote(parts.path) if parts.path else site / name
            if target.is_dir(): target = target / "index.html"
            if not target.is_file(): yield name, link
            elif parts.fragment and target.suffix == ".html":
                page = pages[target.resolve().relative_to(site.resolve()).as_posix()]
                if unquote(parts.fragment) not in page.ids: yield name, link


def requests(site, pages):
    "What pages and style sheets load from other hosts."
    for name, page in pages.items(): yield from ((name, address) for address in page.loads if outside(address))
    for sheet in site.rglob("*.css"):
        for address in re.findall(r"(?:url\(|@import\s+)['\"]?([^)'\"]+)", sheet.read_text(encoding="utf-8")):
            beside = sheet.parent / urlsplit(address).path
            if outside(address) or not address.startswith(("data:", "#")) and not beside.is_file():
                yield sheet.name, address


def test_every_notebook_is_a_page(pages):
    assert len(NOTEBOOKS) == len(list(NBS.rglob("*.ipynb"))) - 2
    assert {f"{n}.html" for n in NOTEBOOKS} | {"start.html", "index.html", "api.html", "search.html"} <= set(pages)


def test_front_page_leads_everywhere_in_reading_order(pages):
    links = [link for link in pages["index.html"].links if re.match(r"(\w+/)?\w+\.html$", link)]
    order = [n for n in dict.fromkeys(links) if n not in ("index.html", "search.html", "genindex.html")]
    assert [n for n in order if not n.startswith("api/")] == [f"{n}.html" for n in ("start", *NOTEBOOKS, "api")]


def test_a_caption_for_every_wing(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    captions = re.findall(r'<p class="caption"[^>]*><span class="caption-text">([^<:]*)', text)
    wings = [w.capitalize() for w in WINGS[2:] if (NBS / w).exists()]
    assert captions == ["Start", *wings, "Use", "Reference"]


def test_no_broken_link(site, pages):
    assert sum(len(p.links) for p in pages.values()) > 1000
    assert list(broken(site, pages)) == []


def test_no_request_to_another_host(site, pages): assert list(requests(site, pages)) == []


def test_formulas_are_drawn(pages):
    assert sum(p.tags["math"] for p in pages.values()) > 200
    undrawn = re.compile(r"\$\$|\\(?:frac|sum|lambda|alpha|langle)\b|\{(?:ref|py:\w+|doc)\}")
    assert not {n: found for n, p in pages.items() if (found := undrawn.findall(" ".join(p.text)))}


def test_public_names_and_no_others_stand_in_the_reference(site, pages):
    reference = {n: p for n, p in pages.items() if n.startswith("api/")}
    ids = {i for p in reference.values() for i in p.ids if re.fullmatch(r"hessnb\.\w+", i)}
    assert ids == {f"hessnb.{n}" for n in hessnb.__all__}
    every = set().union(*(p.ids for p in pages.values()))
    assert {"hessnb.curvature.params.flatten", "nb-function-top-eigenpairs", "nb-class-eigenpairs"} <= every
    text = "".join(re.sub(r"<[^>]*>|\s", "", (site / n).read_text(encoding="utf-8")) for n in reference)
    assert re.search(r"hessnb\.top_eigenpairs\(op:[^,]*,k:int,\*,.*which:Literal\['LA','SA','LM','BE'\]='LA',", text)
    assert {"hessnb.Objective.value", "hessnb.HessianOperator.matvec", "hessnb.EigenvectorSliders.close"} <= every


def test_every_public_name_has_an_example_and_no_table_is_empty(site, pages):
    for name in (n for n in pages if n.startswith("api/")):
        text = (site / name).read_text(encoding="utf-8")
        sections = re.split(r'<section id="[^"]*">', text)[1:]
        assert sections and all("<em>Example</em>" in s and "highlight-python" in s for s in sections), name
        for shown in re.findall(r"<table.*?</table>", text, flags=re.S):
            meanings = re.findall(r"<tr[^>]*>(?:\s*<td>.*?</td>){2}\s*<td>(.*?)</td>", shown, flags=re.S)
            assert any(re.sub(r"<[^>]*>|\s", "", m) for m in meanings), shown


def test_search_knows_the_names(site):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert all(re.search(rf'["\s,{{]{n}["\s:]', index.replace("[[", "[ ["))
               for n in ("top_eigenpairs", "generalization_measure", "estimate_margin"))


def test_hidden_cells_stay_hidden_and_code_is_folded(site):
    text = "".join(p.read_text(encoding="utf-8") for p in (site / "curvature").glob("*.html"))
    assert "default_exp" not in text and "#| export" not in text and text.count("hide above-input") > 50


def test_nothing_shows_markdown_that_was_not_rendered(site, pages):
    assert "<td><p>MLP of the paper</p></td>" in (site / "index.html").read_text(encoding="utf-8")
    for path in site.rglob("*.html"):
        shown = re.sub(r"<(script|style|pre)\b.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.S)
        assert not re.search(r"\|\s*---\s*\|", re.sub(r"<[^>]*>", "", shown)), path.name


def test_moving_pictures_stand_where_sliders_do(site):
    for name in ("index", "start", "show/08_sliders"):
        text = (site / f"{name}.html").read_text(encoding="utf-8")
        assert text.count('class="hessnb-moving"') == 1 and "data-film" not in text, name
        assert len(re.search(r'<div class="hessnb-moving".*?</script></div>', text, flags=re.S)[0]) < 400_000
    assert not [p for p in site.rglob("*.html") if "data-film" in p.read_text(encoding="utf-8")]


def test_internals_and_checks_are_folded(site):
    text = (site / "curvature/35_top.html").read_text(encoding="utf-8")
    folded = " ".join(re.findall(r'<details class="inside">.*?</details>', text, flags=re.S))
    assert 'id="hessnb.curvature.top.room_for"' in folded and "top_eigenpairs" in text
    assert "nb-function-top-eigenpairs" not in folded and "From <code" in text
    every = "".join(p.read_text(encoding="utf-8") for p in (site / "curvature").glob("*.html"))
    assert every.count("tag_check") > 20 and "Check" in every


def test_names_of_data_sets_lead_to_no_function(site):
    said = re.compile(r'(<a [^>]*>)?(?:<span[^>]*>)?<code[^>]*><span class="pre">(NAMES)</span></code>'.replace(
        "NAMES", "circles|moons|checkerboard|hierarchical|iris|gauss|complete|distance"))
    found = [m for path in site.rglob("*.html") if path.name != "00_data.html" and path.parent.name != "api"
             for m in said.findall(path.read_text(encoding="utf-8"))]
    assert found and not [m for m in found if ".html#hessnb." in m[0]]  # but in its own room
    text = (site / "index.html").read_text(encoding="utf-8")
    assert re.search(r'<a [^>]*href="curvature/37_trace.html[^>]*>(?:<[^>]*>)*trace<', text)


def test_search_shows_excerpts_from_a_file(site):
    sync, chromium = pytest.importorskip("playwright.sync_api"), shutil.which("chromium")
    if chromium is None: pytest.skip("no Chromium on this machine")
    with sync.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto((site / "search.html").as_uri() + "?q=margin")
        page.locator("#search-results p.context").nth(3).wait_for(timeout=20_000)
        assert "margin" in page.locator("#search-results p.context").nth(3).inner_text().lower()
        browser.close()


def test_cells_that_only_check():
    docs = loaded()
    def cell(source, outputs=()): return nbformat.v4.new_code_cell(source, outputs=list(outputs))
    printed = [nbformat.v4.new_output("stream", text="x")]
    for source, outputs, expected in [("assert a", (), True), ("x = f(1)\ntest_eq(x, 2)", (), True),
                                      ("with expect_fail(ValueError): f()", (), True), ("x = f(1)", (), False),
                                      ("for a in b: assert a", (), True), ("f(x)\nassert x", (), False),
                                      ("print(x)\nassert x", printed, False), ("testing.assert_close(a, b)", (), True)]:
        assert docs.only_checks(cell(source, outputs), source) is expected, source
    assert docs.wraps(cell("x", printed)) and not docs.wraps(cell("x"))
    table = [nbformat.v4.new_output("stream", text="a   b   c\n1   2   3")]
    assert not docs.wraps(cell("x", table))


def test_crawler_finds_faults(site, pages, tmp_path):
    (tmp_path / "a.html").write_text('<a id="x" href="#y">.</a><a href="b.html">.</a><img '
                                     'src="https://host/a.png"><script src="//host/b.js"></script>', encoding="utf-8")
    (tmp_path / "s.css").write_text("@import 'https://host/c.css'; p { background: url(lost.png) }", encoding="utf-8")
    found = {"a.html": Page((tmp_path / "a.html").read_text(encoding="utf-8"))}
    assert [link for _, link in broken(tmp_path, found)] == ["#y", "b.html"]
    assert [link for _, link in requests(tmp_path, found)] == ["https://host/a.png", "//host/b.js",
                                                               "https://host/c.css", "lost.png"]


def loaded():
    spec = importlib.util.spec_from_file_location("build_docs", DOCS / "build.py")
    docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docs)
    return docs


def test_signature_comes_from_the_source():
    docs = loaded()
    text = docs.entry(docs.textwrap.dedent, "dedent")
    assert "{py:function} dedent(text)" in text
    assert docs.escape("|a| * `b|c` <d> $e_f$") == r"\|a\| \* `b\|c` \<d\> \$e\_f\$"
    method = docs.ast.parse("def f(self: dict[str, int], a: int, *, b=2) -> int: ...").body[0]
    assert docs.signature(method, method=True)[0] == "(a: int, *, b=2) -> int"
    assert docs.signature(docs.ast.parse("def f(self): ...").body[0], method=True)[0] == "()"
    assert docs.signature(docs.ast.parse("def f(self, *, b=2): ...").body[0], method=True)[0] == "(*, b=2)"
