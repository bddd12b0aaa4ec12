"The documentation site: built as `make docs` builds it, then every page is crawled as a browser without network would."
import importlib.util
import re
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

import hessnb
from conftest import HERE

pytestmark = pytest.mark.slow
DOCS = HERE.parent / ".ci/docs"
NBS = HERE.parent / "nbs"
NOTEBOOKS = [p.relative_to(NBS).with_suffix("").as_posix() for folder in ("tutorials", "curvature", "boundary", "show", "paper", "") for p in sorted((NBS / folder).glob("*.ipynb")) if p.stem not in ("index", "start")]
LOADS = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src", "embed": "src", "object": "data", "form": "action"}


class Page(HTMLParser):
    "The ids of a page, what it links to and what it loads; the text of each formula, and of everything that is neither code nor formula."
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


def outside(address): return bool(re.match(r"(?:[a-z][a-z0-9+.-]*:)?//|(?!data:)[a-z][a-z0-9+.-]*:", address.strip("'\" ")))


def build(*args, cwd=HERE.parent):
    return subprocess.run([sys.executable, str(DOCS / "build.py"), *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("docs") / "site"
    done = build(out)
    assert done.returncode == 0 and not done.stderr, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def pages(site): return {p.relative_to(site).as_posix(): Page(p.read_text(encoding="utf-8")) for p in site.rglob("*.html")}


def broken(site, pages):
    "Links within the site that lead nowhere, by file or by anchor."
    for name, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc: continue
            target = (site / name).parent / unquote(parts.path) if parts.path else site / name
            if target.is_dir(): target = target / "index.html"
            if not target.is_file(): yield name, link
            elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in pages[target.resolve().relative_to(site.resolve()).as_posix()].ids: yield name, link


def requests(site, pages):
    "What pages and style sheets load from other hosts."
    for name, page in pages.items(): yield from ((name, address) for address in page.loads if outside(address))
    for sheet in site.rglob("*.css"):
        for address in re.findall(r"(?:url\(|@import\s+)['\"]?([^)'\"]+)", sheet.read_text(encoding="utf-8")):
            if outside(address) or not address.startswith(("data:", "#")) and not (sheet.parent / urlsplit(address).path).is_file(): yield sheet.name, address


def test_every_notebook_is_a_page(pages):
    assert len(NOTEBOOKS) == len(list(NBS.rglob("*.ipynb"))) - 2
    assert {f"{n}.html" for n in NOTEBOOKS} | {"start.html", "index.html", "api.html", "search.html"} <= set(pages)


def test_front_page_leads_everywhere_tutorials_first(pages):
    links = [link for link in pages["index.html"].links if re.match(r"(\w+/)?\w+\.html$", link) and not link.startswith("api/")]
    order = [link for link in dict.fromkeys(links) if link not in ("index.html", "search.html", "genindex.html")]
    assert order == [f"{n}.html" for n in ("start", *NOTEBOOKS, "api")]


def test_no_broken_link(site, pages):
    assert sum(len(p.links) for p in pages.values()) > 1000
    assert list(broken(site, pages)) == []


def test_no_request_to_another_host(site, pages): assert list(requests(site, pages)) == []


def test_formulas_are_drawn(pages):
    assert sum(p.tags["math"] for p in pages.values()) > 200
    left = {n: found for n, p in pages.items() if (found := re.findall(r"\$\$|\\(?:frac|sum|lambda|alpha|langle)\b|\{(?:ref|py:\w+|doc)\}", " ".join(p.text)))}
    assert not left


def test_public_names_have_an_anchor_a_signature_and_a_notebook(site, pages):
    ids = set().union(*(p.ids for n, p in pages.items() if n.startswith("api/")))
    assert {f"hessnb.{n}" for n in hessnb.__all__} <= ids
    lanczos = pages["api/curvature.lanczos.html"]
    assert {"../curvature/08_lanczos.html#nb-function-top-eigenpairs", "../curvature/08_lanczos.html#nb-class-eigenpairs"} <= set(lanczos.links)
    text = re.sub(r"<[^>]*>|\s", "", (site / "api/curvature.lanczos.html").read_text(encoding="utf-8"))
    assert "hessnb.top_eigenpairs(op:SymmetricOperator,k:int,*,which:Literal['LA','SA','LM','BE']='LA',tol:float=1e-06," in text
    assert "budgetofproductsforthesearch" in text and "hessnb.EigenPairs.refine" in lanczos.ids


def test_search_knows_the_names(site):
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert all(re.search(rf'["\s,{{]{n}["\s:]', index.replace("[[", "[ [")) for n in ("top_eigenpairs", "generalization_measure", "estimate_margin"))


def test_hidden_cells_stay_hidden_and_code_is_folded(site):
    text = (site / "curvature/08_lanczos.html").read_text(encoding="utf-8")
    assert "default_exp" not in text and "#| export" not in text and text.count("hide above-input") > 10


def test_crawler_finds_faults(site, pages, tmp_path):
    (tmp_path / "a.html").write_text('<a id="x" href="#y">.</a><a href="b.html">.</a><img src="https://host/a.png"><script src="//host/b.js"></script>', encoding="utf-8")
    (tmp_path / "s.css").write_text("@import 'https://host/c.css'; p { background: url(lost.png) }", encoding="utf-8")
    found = {"a.html": Page((tmp_path / "a.html").read_text(encoding="utf-8"))}
    assert [link for _, link in broken(tmp_path, found)] == ["#y", "b.html"]
    assert [link for _, link in requests(tmp_path, found)] == ["https://host/a.png", "//host/b.js", "https://host/c.css", "lost.png"]


def test_signature_comes_from_the_source():
    spec = importlib.util.spec_from_file_location("build_docs", DOCS / "build.py")
    docs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(docs)
    text = docs.entry(docs.textwrap.dedent, "dedent")
    assert "{py:function} dedent(text)" in text
    assert docs.escape("|a| * `b|c` <d> $e_f$") == r"\|a\| \* `b\|c` \<d\> \$e\_f\$"
    method = docs.ast.parse("def f(self: dict[str, int], a: int, *, b=2) -> int: ...").body[0]
    assert docs.signature(method, method=True)[0] == "(a: int, *, b=2) -> int"
    assert docs.signature(docs.ast.parse("def f(self): ...").body[0], method=True)[0] == "()"
    assert docs.signature(docs.ast.parse("def f(self, *, b=2): ...").body[0], method=True)[0] == "(*, b=2)"
