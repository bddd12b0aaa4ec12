"Write the documentation site to _docs (or the folder named): tutorials, chapters, public names, search. No network."
import ast
import base64
import html
import importlib
import inspect
import json
import re
import sys
import textwrap
from html.parser import HTMLParser
from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree
from tempfile import TemporaryDirectory

import nbformat
from fastcore.docments import docments
from sphinx.cmd.build import main as sphinx

root = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(root))
WINGS = {  # reading order of the folders, each with its caption; "": the notebooks at the top
    "curvature": "Curvature: how does the loss curve?",
    "boundary": "Boundary: where does the network change its mind?",
    "training": "Training: how does it change while the network learns?",
    "show": "Show: what does it look like?",
    "paper": "Paper: the experiments",
    "": "Use: names, report, command, workbook",
}
TOP = ("names", "analysis", "figures", "page", "report", "given", "cli", "main", "lab")  # reading order at the top
# in a page, below a picture for those who cannot have it: data set and kind of minimum
MOVING = re.compile(r"^(?:!\[.*\]\(.*\)\n)?<!-- moving: (\w+) (\w+) -->$", flags=re.M)
SLIDERS = {"start": "gauss normal", "show/08_sliders": "gauss normal"}  # pages whose sliders also move without a kernel
WIDGET = "application/vnd.jupyter.widget-view+json"


def cell_source(cell):
    return "\n".join(line for line in cell.source.split("\n") if not line.lstrip().startswith("#|")).strip("\n")


def directives(cell):
    found = [line.lstrip()[2:].strip() for line in cell.source.split("\n") if line.lstrip().startswith("#|")]
    return {d.split(":" if ":" in d else " ")[0].strip(): re.split(r"[:\s]\s*", d, maxsplit=1)[-1] for d in found}


# ---- what a cell is for
CHECK = re.compile(r"(?:test_\w+|expect_\w+|assert_\w+|\w*raises)$")


def is_check(node):
    "Does a statement check something, or only check inside?"
    if isinstance(node, ast.Assert): return True
    if isinstance(node, ast.Expr): node = node.value
    if isinstance(node, ast.Call):
        return bool(CHECK.match(getattr(node.func, "attr", "") or getattr(node.func, "id", "")))
    if isinstance(node, ast.With) and any(is_check(item.context_expr) for item in node.items): return True
    return isinstance(node, (ast.For, ast.With, ast.If)) and bool(node.body) and all(map(is_check, node.body))


def only_checks(cell, source):
    "A cell that shows nothing and checks something: what else it says prepares the check."
    if cell.outputs or cell.source.lstrip().startswith("%"): return False
    try: body = ast.parse(source).body
    except SyntaxError: return False
    quiet = (ast.Assign, ast.AnnAssign, ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.For, ast.With)
    return any(map(is_check, body)) and all(is_check(node) or isinstance(node, quiet) for node in body)


def wraps(cell):
    "Is what the cell prints text, whose long lines may be broken, and no table?"
    texts = [o.get("text") or o.get("data", {}).get("text/plain") or "" for o in cell.outputs]
    return any(texts) and not any(len(re.findall(r"\S {2,}\S", line)) > 1 for t in texts for line in t.split("\n"))


# ---- signatures
def escape(text):
    "Text as Markdown for a table cell; what stands in backticks stays code."
    def plain(part): return re.sub(r"([\\*_\[\]<>$|{}~#])", r"\\\1", part)
    parts = re.split(r"(`[^`]*`)", " ".join(str(text).split()))
    return "".join(p.replace("|", r"\|") if p.startswith("`") else plain(p) for p in parts)


def code(text): return f"`{text}`".replace("|", r"\|") if text else ""


def syntax(obj): return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))).body[0]


def signature(node, method=False):
    "Arguments as they were written, the list (name, annotation, default) of them, the annotation of what is returned."
    args = node.args
    if method: (args.posonlyargs or args.args).pop(0)  # self
    plain = args.posonlyargs + args.args
    rows = list(zip(plain, [None] * (len(plain) - len(args.defaults)) + args.defaults))
    rows = [(a.arg, a.annotation, d) for a, d in [*rows, *zip(args.kwonlyargs, args.kw_defaults)]]
    returns = ast.unparse(node.returns) if node.returns else ""
    return f"({ast.unparse(args)})" + (f" -> {returns}" if returns else ""), rows, returns


def fields(node):
    found = [s for s in node.body if isinstance(s, ast.AnnAssign) and s.target.id[0] != "_"]
    return [(s.target.id, s.annotation, s.value) for s in found]


def table(rows, comments, head, returns=""):
    "Names, types with defaults, and the comments beside them; nothing where no comment says more than the signature."
    def kind(annotation, default):
        shown = "" if default is None or ast.unparse(default).startswith("field(") else f" = {ast.unparse(default)}"
        return code((ast.unparse(annotation) if annotation else "") + shown)
    cells = [(code(n), kind(a, d), escape(comments.get(n) or "")) for n, a, d in rows]
    if said := comments.get("return"): cells.append(("*returns*", code(returns), escape(said)))
    if not any(meaning for _, _, meaning in cells): return ""
    return "\n".join("| " + " | ".join(line) + " |" for line in [(head, "type", "meaning"), ("---",) * 3, *cells])


def directive(kind, name, body, options="", ticks=3):
    return f"{'`' * ticks}{{py:{kind}}} {name}\n{options}\n{body}\n{'`' * ticks}"


def comments_of(obj): return {k: v["docment"] for k, v in docments(obj, full=True).items()}


def doc_line(obj): return escape(inspect.getdoc(obj) or "") if "__doc__" in vars(obj) or obj.__doc__ else ""


def bases(cls): return [c for c in cls.__mro__ if c.__module__.startswith("hessnb")]


def members(cls, inherited=False, options=""):
    "Directives of a class's public methods and properties: its own, and if wanted those of our classes it extends."
    seen = {}
    for owner in bases(cls) if inherited else [cls]:
        for name, value in vars(owner).items(): seen.setdefault(name, value)
    for name, value in seen.items():
        function = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", value)
        if name[0] == "_" or not inspect.isfunction(function): continue
        shown, rows, returns = signature(syntax(function), method=not isinstance(value, staticmethod))
        comments = comments_of(function)
        if function is value or isinstance(value, (classmethod, staticmethod)):
            body = "\n\n".join([doc_line(function), table(rows, comments, "parameter", returns)])
            yield name, directive("method", name + shown, body, options)
        else:
            body = " ".join([doc_line(function), escape(comments.get("return") or "")])
            yield name, directive("property", name, body, options + (f":type: {returns}\n" if returns else ""))


def constructor(cls):
    "Signature and table of what makes an instance: `__init__` or the fields, its own or those of a class it extends."
    for owner in bases(cls):
        node = syntax(owner)
        init = next((s for s in node.body if isinstance(s, ast.FunctionDef) and s.name == "__init__"), None)
        comments = comments_of(owner)
        if init:
            shown, rows, _ = signature(init, method=True)
            return shown, table(rows, comments, "parameter")
        if "__dataclass_fields__" in vars(owner): return "", table(fields(node), comments, "field")
    return "", ""


def entry(obj, name, options="", tail="", example="", inherited=False):
    "One symbol: signature, its line of documentation, `tail`, table of parameters, example; the methods of a class."
    if inspect.isclass(obj): kind, (shown, text), methods = "class", constructor(obj), members(obj, inherited)
    else:
        kind, (shown, rows, returns), methods = "function", signature(syntax(obj)), ()
        text = table(rows, comments_of(obj), "parameter", returns)
    body = [doc_line(obj), tail, text, example, *(m for _, m in methods)]
    return directive(kind, name + shown, "\n\n".join(filter(None, body)), options, 5)


# ---- pages
def place(path): return path.relative_to(root / "nbs").with_suffix("").as_posix()  # of a notebook's page in the site


def title(path):
    cells = nbformat.read(path, as_version=4).cells
    return next(c.source for c in cells if c.source.startswith("# ")).splitlines()[0].strip("# ").replace("`", "")


def notebooks(folder): return sorted((root / "nbs" / folder).glob("*.ipynb"))


class Site:
    "The notebooks, the module of each, and what every name links to."
    def __init__(self):
        import hessnb
        self.offered = {n: getattr(hessnb, n) for n in hessnb.__all__}
        self.tutorials = [root / "nbs/start.ipynb", *notebooks("tutorials"), *notebooks("recipes")]
        top = [p for p in notebooks("") if p.stem not in ("index", "start")]
        top.sort(key=lambda p: (TOP.index(p.stem) if p.stem in TOP else len(TOP), p.stem))
        self.wings = {wing: notebooks(wing) if wing else top for wing in WINGS}
        self.modules, self.links, self.home = {}, {}, {}
        self.chapters = [path for paths in self.wings.values() for path in paths]
        for path in [*self.tutorials, *self.chapters]:
            self.links[path.stem] = self.links[f"{path.stem}.ipynb"] = f"[`{path.stem}`](/{place(path)}.ipynb)"
            found = re.search(r'"#\| *default_exp ([\w.]+)', path.read_text(encoding="utf-8"))
            if found and found[1] != "__init__": self.add(path, importlib.import_module(f"hessnb.{found[1]}"))
        self.chapter = {re.sub(r"^\d+_", "", path.stem): self.links[path.stem].replace(path.stem, re.sub(
            r"^\d+_", "", path.stem), 1) for path in [*self.tutorials, *self.chapters]}
        self.examples, self.moving = dict(self.find_examples()), {}

    def add(self, path, module):
        "Take in the public functions and classes of a room."
        objects = {n: getattr(module, n) for n in module.__all__ if n[0] != "_"}
        objects = {n: o for n, o in objects.items() if inspect.isclass(o) or inspect.isfunction(inspect.unwrap(o))}
        self.modules[path] = objects
        for name, obj in objects.items():
            if self.is_offered(name, obj): self.home[name] = path
            elif name in self.offered: continue  # another thing of the same name: the public one is linked
            inner = [f"{name}.{m}" for m, _ in members(obj)] if inspect.isclass(obj) else []
            for shown in [name, *inner]:
                self.links[shown] = f"{{py:obj}}`{shown} <{self.full(name, obj).removesuffix(name)}{shown}>`"

    def is_offered(self, name, obj): return self.offered.get(name) is obj

    def full(self, name, obj): return f"hessnb.{name}" if self.is_offered(name, obj) else f"{obj.__module__}.{name}"

    def find_examples(self):
        "The first visible cell of the notebook of names that imports each of them."
        for cell in nbformat.read(root / "nbs/names.ipynb", as_version=4).cells:
            said = directives(cell) if cell.cell_type == "code" else {"hide": ""}
            if {"hide", "export", "exports"} & said.keys(): continue
            for name in re.findall(r"^from hessnb import (.+)$", cell.source, flags=re.M):
                for one in re.split(r",\s*", name): yield one, cell

    def link(self, markdown, path):
        "Names in backticks become links, outside code blocks, headings and links."
        parts = re.split(r"(^```.*?^```|^#.*?$|\[[^\]]*\]\([^)]*\)|<!--.*?-->)", markdown, flags=re.S | re.M)
        name = re.compile(r"(?<!`)`([A-Za-z0-9_.]+)(\(\))?`(?!`)")
        front = path.stem == "index"
        def linked(found, line):
            word, called = found[1], found[2]
            if front and line.startswith("|") and word in self.chapter: return self.chapter[word]  # the table of rooms
            plain = re.fullmatch("[a-z]+", word) and not called  # a word that is as likely a data set or a column
            if plain and word not in self.offered and word not in self.modules.get(path, ()): return found[0]
            return self.links.get(word, found[0])
        def within(part): return "\n".join(name.sub(lambda m: linked(m, line), line) for line in part.split("\n"))
        return "".join(part if i % 2 else within(part) for i, part in enumerate(parts))

    def documented(self, source, path):
        "The entry of each public name that an exported cell defines, to stand above the code."
        objects = self.modules.get(path, {})
        for node in ast.parse(source).body:
            name = getattr(node, "name", "")
            if name not in objects: continue
            obj, args = objects[name], getattr(node, "args", None)
            here = f"```{{py:currentmodule}} {obj.__module__}\n```\n\n"  # where names of types are looked up first
            if args and ast.dump(args) != ast.dump(syntax(obj).args): continue  # another function of that name
            if self.is_offered(name, obj):
                tail = f"With an example, and all methods: {{py:obj}}`hessnb.{name}`."
                yield f"{here}({self.anchor(name, obj)})=\n\n" + entry(obj, name, ":no-index:\n", tail)
            else:
                said = html.escape(re.sub("`", "", inspect.getdoc(obj) or ""))
                head = f'<details class="inside"><summary><code>{name}</code> {said}</summary>'
                yield f"```{{raw}} html\n{head}\n```\n\n{here}{entry(obj, name)}\n\n```{{raw}} html\n</details>\n```"

    def anchor(self, name, obj): return f"nb-{'class' if inspect.isclass(obj) else 'function'}-{name}"

    def contents(self, path):
        "The names of a room: those of the package first, then those that only its own rooms use."
        objects = self.modules.get(path, {})
        offered = [self.links[n] for n, o in objects.items() if self.is_offered(n, o)]
        inside = [self.links[n] for n, o in objects.items() if not self.is_offered(n, o) and n in self.links]
        lines = ["From `hessnb`: " + ", ".join(offered) + "."] if offered else []
        module = next((o.__module__ for o in objects.values()), "")
        if inside: lines.append(f"Of the module `{module}`: " + ", ".join(inside) + ".")
        return "\n\n".join(lines)

    def film(self, which):
        "The place of a moving picture, which is filled in when the page is written."
        name = which.replace(" ", "-")
        if which not in self.moving:
            from hessnb import HessianOperator, Objective, top_eigenpairs
            from hessnb.paper.data import load_data
            from hessnb.paper.zoo import find_minimum
            from hessnb.show.moving import MovingPictures
            dataset, kind = which.split()
            data = load_data(dataset)
            objective = Objective(find_minimum(kind, data).model, (data.X_train, data.y_train))
            pairs = top_eigenpairs(HessianOperator(objective), 5, tol=1e-3)
            self.moving[which] = MovingPictures(objective, pairs, class_names=data.class_names).html()
        return f"```{{raw}} html\n<div data-film=\"{name}\"></div>\n```"

    def fill(self, folder):
        "Moving pictures into the pages that have a place for them."
        films = {which.replace(" ", "-"): text for which, text in self.moving.items()}
        for path in folder.rglob("*.html"):
            text = path.read_text(encoding="utf-8")
            found = re.sub(r'<div data-film="([\w-]+)"></div>', lambda m: films[m[1]], text)
            if found != text: path.write_text(found, encoding="utf-8")

    def page(self, path):
        "The notebook as a page: hidden cells dropped, exported code folded under the signature of what it defines."
        nb, cells, sliders = nbformat.read(path, as_version=4), [], SLIDERS.get(place(path))
        tags = dict(hide_input="remove-input", hide_output="remove-output", export="hide-input", exports="hide-input")
        for cell in nb.cells:
            if cell.cell_type != "code":
                text = MOVING.sub(lambda m: self.film(f"{m[1]} {m[2]}"), self.link(cell.source, path))
                if cell.source.startswith("# "): text += "\n\n" + self.contents(path)
                cells.append(nbformat.v4.new_markdown_cell(text))
                continue
            said, cell.source = directives(cell), cell_source(cell)
            if {"hide", "default_exp"} & said.keys() or not cell.source.strip(): continue
            cell.outputs = [o for o in cell.outputs if o.get("data", {}).pop(WIDGET, None) is None or len(o.data) > 1]
            cell.metadata = nbformat.from_dict({"tags": [t for d, t in tags.items() if d in said]})
            if wraps(cell): cell.metadata.tags.append("wrap")
            if "fig-alt" in said: cell.metadata["mystnb"] = {"image": {"alt": said["fig-alt"]}}
            if "export" in said: cells += map(nbformat.v4.new_markdown_cell, self.documented(cell.source, path))
            elif only_checks(cell, cell.source):
                said = {"code_prompt_show": "Check", "code_prompt_hide": "Hide the check"}
                cell.metadata = nbformat.from_dict({"tags": ["hide-input", "check"], "mystnb": said})
            cells.append(cell)
            if sliders and "EigenvectorSliders(" in cell.source and "export" not in said:
                cell.outputs = []  # a picture that does not move
                cells.append(nbformat.v4.new_markdown_cell(self.film(sliders)))
                sliders = None
        nb.cells = cells
        nb.metadata = nbformat.from_dict({"kernelspec": nb.metadata.kernelspec, "language_info": {"name": "python"}})
        return nb

    def example(self, name, folder):
        "The example of a public name, with what it shows."
        cell = self.examples[name]
        shown = [f"```python\n{cell_source(cell)}\n```"]
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                (folder / f"api/{name}.png").write_bytes(base64.b64decode(data["image/png"]))
                shown.append(f"![What {name} shows]({name}.png)")
            elif text := output.get("text") or data.get("text/plain"): shown.append(f"```text\n{text.rstrip()}\n```")
        return "\n\n".join(["*Example*", *shown])

    def api(self, wing, folder):
        "The page of a wing's public names; those of the rooms at the top are called by the package's name."
        names = [n for p in self.wings[wing] for n in self.modules.get(p, ()) if self.home.get(n) == p]
        lines = [f"# {WINGS[wing]}", "Imported as `from hessnb import ...`."]
        for name in names:
            path, obj = self.home[name], self.modules[self.home[name]][name]
            tail = f"Explained in {{ref}}`{title(path)} <{self.anchor(name, obj)}>`."
            options, example = f":canonical: {obj.__module__}.{name}\n", self.example(name, folder)
            lines += [f"## {name}", entry(obj, f"hessnb.{name}", options, tail, example, inherited=True)]
        return names, "\n\n".join(lines) + "\n"

    def toctree(self, caption, pages):
        if not pages: return ""
        return f"```{{toctree}}\n:hidden:\n:caption: \"{caption}\"\n\n" + "\n".join(pages) + "\n```\n"

    def write(self, folder):
        (folder / "api").mkdir()
        copytree(root / "nbs/images", folder / "images", ignore=ignore_patterns("index_*"))
        for path in [*self.tutorials, *self.chapters]:
            page = folder / f"{place(path)}.ipynb"
            page.parent.mkdir(exist_ok=True)
            nbformat.write(self.page(path), page)
        lines, pages = ["# Public names",
                        "What `import hessnb` offers, by wing; each with its signature and an example. "
                        "Everything else is explained, with its signature, in the chapter of its room."], []
        for wing in WINGS:
            names, text = self.api(wing, folder)
            if not names: continue
            pages.append(f"api/{wing or 'top'}")
            (folder / f"{pages[-1]}.md").write_text(text, encoding="utf-8")
            rows = [f"| {{py:obj}}`hessnb.{n}` | {doc_line(self.modules[self.home[n]][n])} |" for n in names]
            lines += [f"## [{WINGS[wing]}]({pages[-1]}.md)", "\n".join(["| name | |", "| --- | --- |", *rows])]
        lines.append("```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n")
        (folder / "api.md").write_text("\n\n".join(lines), encoding="utf-8")
        trees = [self.toctree("Start", list(map(place, self.tutorials)))]
        trees += [self.toctree(WINGS[wing], list(map(place, paths))) for wing, paths in self.wings.items()]
        front = self.page(root / "nbs/index.ipynb")
        trees.append(self.toctree("Reference", ["api"]))
        front.cells.append(nbformat.v4.new_markdown_cell("\n".join(trees)))
        nbformat.write(front, folder / "index.ipynb")


# ---- search
class Sections(HTMLParser):
    "The text of a page by sections, without code that is folded, scripts and marks beside headings."
    def __init__(self, text):
        super().__init__()
        self.found, self.at, self.inside, self.skipped = {"": []}, "", 0, 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "article" and attrs.get("role") == "main": self.inside = 1
        if tag == "section" and attrs.get("id"):
            self.at = attrs["id"]
            self.found[self.at] = []
        if tag in ("script", "style", "math") or attrs.get("class") == "headerlink": self.skipped += 1

    def handle_endtag(self, tag):
        if tag == "article": self.inside = 0
        if tag in ("script", "style", "math") or tag == "a" and self.skipped: self.skipped = max(0, self.skipped - 1)

    def handle_data(self, data):
        if self.inside and not self.skipped: self.found[self.at].append(data)


def excerpts(folder):
    "What the search shows of each page, in a script: a page that was opened as a file may not read others."
    texts = {}
    for path in sorted(folder.rglob("*.html")):
        found = Sections(path.read_text(encoding="utf-8")).found
        parts = [f'<section id="{html.escape(at)}">{html.escape(" ".join("".join(text).split()))}</section>'
                 for at, text in found.items() if "".join(text).strip()]
        texts[path.relative_to(folder).as_posix()] = f'<div role="main">{"".join(parts)}</div>'
    script = (Path(__file__).parent / "excerpts.js").read_text(encoding="utf-8")
    (folder / "_static/excerpts.js").write_text(script.replace("TEXTS", json.dumps(texts)), encoding="utf-8")


def build(out):
    "The site in the folder `out`, which is replaced; any warning is an error."
    with TemporaryDirectory() as work:
        pages, made = Path(work, "pages"), Path(work, "html")
        pages.mkdir()
        site = Site()
        site.write(pages)
        status = sphinx(["-b", "html", "-q", "-W", "--keep-going", "-c", str(Path(__file__).parent),
                         "-d", str(Path(work, "doctrees")), str(pages), str(made)])
        if status: return status
        excerpts(made)
        site.fill(made)
        # an earlier site, perhaps with pages of notebooks that are gone
        if (out / "searchindex.js").exists(): rmtree(out)
        copytree(made, out, dirs_exist_ok=True, ignore=lambda folder, names: {"_sources", ".buildinfo"})
        return 0


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else root / "_docs")
    status = build(out)
    if status == 0: print(f"{out}/index.html: {len(list(out.rglob('*.html')))} pages")
    sys.exit(status)
