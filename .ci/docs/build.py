"Write the documentation site to _docs (or to the folder named): tutorials, literate reference, signatures, search. No network."
import ast
import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path
from shutil import copytree, rmtree
from tempfile import TemporaryDirectory

import nbformat
from fastcore.docments import docments
from sphinx.cmd.build import main as sphinx

root = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(root))
FOLDERS = ("tutorials", "recipes", "curvature", "boundary", "show", "training", "paper", "")  # reading order; "": the notebooks at the top
WIDGET = "application/vnd.jupyter.widget-view+json"


def cell_source(cell): return "\n".join(line for line in cell.source.split("\n") if not line.lstrip().startswith("#|")).strip("\n")


def directives(cell):
    found = [line.lstrip()[2:].strip() for line in cell.source.split("\n") if line.lstrip().startswith("#|")]
    return {d.split(":" if ":" in d else " ")[0].strip(): re.split(r"[:\s]\s*", d, maxsplit=1)[-1] for d in found}


# ---- signatures
def escape(text):
    "Text as Markdown for a table cell; what stands in backticks stays code."
    parts = re.split(r"(`[^`]*`)", " ".join(str(text).split()))
    return "".join(p.replace("|", r"\|") if p.startswith("`") else re.sub(r"([\\*_\[\]<>$|{}~#])", r"\\\1", p) for p in parts)


def code(text): return f"`{text}`".replace("|", r"\|") if text else ""


def syntax(obj): return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(obj)))).body[0]


def signature(node, method=False):
    "Arguments as they were written, the list (name, annotation, default) of them, and the annotation of what is returned."
    args = node.args
    if method: (args.posonlyargs or args.args).pop(0)  # self
    plain = args.posonlyargs + args.args
    rows = list(zip(plain, [None] * (len(plain) - len(args.defaults)) + args.defaults)) + list(zip(args.kwonlyargs, args.kw_defaults))
    returns = ast.unparse(node.returns) if node.returns else ""
    return f"({ast.unparse(args)})" + (f" -> {returns}" if returns else ""), [(a.arg, a.annotation, d) for a, d in rows], returns


def fields(node): return [(s.target.id, s.annotation, s.value) for s in node.body if isinstance(s, ast.AnnAssign) and s.target.id[0] != "_"]


def table(rows, comments, head, returns=""):
    "Names, types with defaults, and the comments beside them."
    def kind(annotation, default):
        shown = "" if default is None or ast.unparse(default).startswith("field(") else f" = {ast.unparse(default)}"
        return code((ast.unparse(annotation) if annotation else "") + shown)
    cells = [(code(n), kind(a, d), escape(comments.get(n) or "")) for n, a, d in rows]
    if returns and returns != "None": cells.append(("*returns*", code(returns), escape(comments.get("return") or "")))
    return "\n".join("| " + " | ".join(line) + " |" for line in [(head, "type", "meaning"), ("---",) * 3, *cells]) if cells else ""


def directive(kind, name, body, options="", ticks=3): return f"{'`' * ticks}{{py:{kind}}} {name}\n{options}\n{body}\n{'`' * ticks}"


def comments_of(obj): return {k: v["docment"] for k, v in docments(obj, full=True).items()}


def doc_line(obj): return escape(inspect.getdoc(obj) or "") if "__doc__" in vars(obj) or obj.__doc__ else ""


def members(cls, prefix="", options=""):
    "Directives of a class's own public methods and properties."
    for name, value in vars(cls).items():
        function = getattr(value, "fget", None) or getattr(value, "func", None) or getattr(value, "__func__", value)
        if name[0] == "_" or not inspect.isfunction(function): continue
        shown, rows, returns = signature(syntax(function), method=not isinstance(value, staticmethod))
        comments = comments_of(function)
        if function is value or isinstance(value, (classmethod, staticmethod)):
            yield name, directive("method", prefix + name + shown, "\n\n".join([doc_line(function), table(rows, comments, "parameter", returns)]), options)
        else:
            body = " ".join([doc_line(function), escape(comments.get("return") or "")])
            yield name, directive("property", prefix + name, body, options + (f":type: {returns}\n" if returns else ""))


def entry(obj, name, options="", tail="", patched=True):
    "One public symbol: signature, its line of documentation, table of parameters, methods (those that `patch` adds too, if wanted)."
    node = syntax(obj)
    if not inspect.isclass(obj):
        shown, rows, returns = signature(node)
        return directive("function", name + shown, "\n\n".join([doc_line(obj), tail, table(rows, comments_of(obj), "parameter", returns)]), options, 5)
    init = next((s for s in node.body if isinstance(s, ast.FunctionDef) and s.name == "__init__"), None)
    shown, rows, _ = signature(init, method=True) if init else ("", fields(node), "")
    text = table(rows, comments_of(obj), "parameter" if init else "field")
    own = {getattr(s, "name", "") for s in node.body}
    methods = [m for n, m in members(obj) if patched or n in own]
    return directive("class", name + shown, "\n\n".join([doc_line(obj), tail, text, *methods]), options, 5)


# ---- pages
def place(path): return path.relative_to(root / "nbs").with_suffix("").as_posix()  # of a notebook's page in the site


class Site:
    "The notebooks, the module of each, and what every public name links to."
    def __init__(self):
        import hessnb
        top = [p for p in sorted((root / "nbs").glob("*.ipynb")) if p.stem not in ("index", "start")]
        self.tutorials = [root / "nbs/start.ipynb", *(p for f in FOLDERS[:2] for p in sorted((root / "nbs" / f).glob("*.ipynb")))]
        self.notebooks = [*self.tutorials, *(p for f in FOLDERS[2:-1] for p in sorted((root / "nbs" / f).glob("*.ipynb"))), *top]
        self.modules, self.names, self.links = {}, {}, {}
        for path in self.notebooks:
            self.links[path.stem] = self.links[f"{path.stem}.ipynb"] = f"[`{path.stem}`](/{place(path)}.ipynb)"
            found = re.search(r'"#\| *default_exp ([\w.]+)', path.read_text(encoding="utf-8"))
            if found and found[1] != "__init__": self.add(path, importlib.import_module(f"hessnb.{found[1]}"), hessnb.__all__)

    def add(self, path, module, offered):
        short = module.__name__.removeprefix("hessnb.")
        objects = {n: getattr(module, n) for n in module.__all__ if n[0] != "_"}
        shown = sorted((n for n, o in objects.items() if inspect.isclass(o) or inspect.isfunction(inspect.unwrap(o))), key=lambda n: n not in offered)
        self.modules[short] = path, {n: objects[n] for n in shown}
        for name, obj in self.modules[short][1].items():
            full = f"hessnb.{name}" if name in offered else f"{module.__name__}.{name}"
            self.names[name] = full
            for shown in [name, *(f"{name}.{m}" for m, _ in (members(obj) if inspect.isclass(obj) else ()))]:
                self.links[shown] = f"{{py:obj}}`{shown} <{full.removesuffix(name)}{shown}>`"

    def link(self, markdown):
        "Names in backticks become links, outside code blocks, headings and links."
        parts = re.split(r"(^```.*?^```|^#.*?$|\[[^\]]*\]\([^)]*\))", markdown, flags=re.S | re.M)
        name = re.compile(r"(?<!`)`([A-Za-z0-9_.]+)(?:\(\))?`(?!`)")
        return "".join(p if i % 2 else name.sub(lambda m: self.links.get(m[1], m[0]), p) for i, p in enumerate(parts))

    def documented(self, source, path):
        "The entry of each public name that an exported cell defines, to stand above the code."
        objects = next((o for p, o in self.modules.values() if p == path), {})
        for node in ast.parse(source).body:
            name = getattr(node, "name", "_")
            if name[0] == "_": continue
            owner = self.owner(node)
            if owner in objects: yield from (d for m, d in members(objects[owner], f"{owner}.", ":no-index:\n") if m == name)
            elif owner is None and name in objects:
                place = f"In the list of signatures: {{py:obj}}`{self.names[name]}`."
                yield f"({self.anchor(name, objects)})=\n\n" + entry(objects[name], name, ":no-index:\n", place, patched=False)

    def owner(self, node):
        "The class that `patch` adds a method to, or None."
        if not any(ast.unparse(d).split("(")[0] == "patch" for d in node.decorator_list): return None
        return ast.unparse(node.args.args[0].annotation)

    def anchor(self, name, objects): return f"nb-{'class' if inspect.isclass(objects[name]) else 'function'}-{name}"

    def page(self, path):
        "The notebook as a page: hidden cells dropped, exported code folded under the signature of what it defines."
        nb, cells = nbformat.read(path, as_version=4), []
        for cell in nb.cells:
            if cell.cell_type != "code":
                cells.append(nbformat.v4.new_markdown_cell(self.link(cell.source)))
                continue
            said, cell.source = directives(cell), cell_source(cell)
            if {"hide", "default_exp"} & said.keys() or not cell.source.strip(): continue
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {}) or o.data.pop(WIDGET) and len(o.data) > 1]
            tags = {"hide_input": "remove-input", "hide_output": "remove-output", "export": "hide-input", "exports": "hide-input"}
            cell.metadata = nbformat.from_dict({"tags": [t for d, t in tags.items() if d in said]})
            if "fig-alt" in said: cell.metadata["mystnb"] = {"image": {"alt": said["fig-alt"]}}
            if "export" in said: cells += map(nbformat.v4.new_markdown_cell, self.documented(cell.source, path))
            cells.append(cell)
        nb.cells, nb.metadata = cells, nbformat.from_dict({"kernelspec": nb.metadata.kernelspec, "language_info": {"name": "python"}})
        return nb

    def toctree(self, caption, pages): return f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(pages) + "\n```\n" if pages else ""

    def api(self, short):
        path, objects = self.modules[short]
        entries = [entry(o, self.names[n], f":canonical: hessnb.{short}.{n}\n" if self.names[n] != f"hessnb.{short}.{n}" else "",
                         f"Explained in {{ref}}`{path.stem} <{self.anchor(n, objects)}>`.") for n, o in objects.items()]
        summary = escape(importlib.import_module(f"hessnb.{short}").__doc__ or "")
        return "\n\n".join([f"# hessnb.{short}", summary, f"Notebook: [{path.stem}](/{place(path)}.ipynb)", *entries]) + "\n"

    def overview(self):
        lines = ["# API", "Every public name, with the line that says what comes back."]
        for short, (path, objects) in self.modules.items():
            rows = [f"| {{py:obj}}`{self.names[n]}` | {doc_line(o)} |" for n, o in objects.items()]
            lines += [f"## [{short}](api/{short}.md)", "\n".join(["| name | |", "| --- | --- |", *rows])]
        return "\n\n".join([*lines, self.toctree("Modules", [f"api/{s}" for s in self.modules])])

    def write(self, folder):
        (folder / "api").mkdir()
        for path in self.notebooks:
            page = folder / f"{place(path)}.ipynb"
            page.parent.mkdir(exist_ok=True)
            nbformat.write(self.page(path), page)
        reference = [p for p in self.notebooks if p not in self.tutorials]
        front = self.page(root / "nbs/index.ipynb")
        trees = [("Tutorials", list(map(place, self.tutorials))), ("The library, explained", list(map(place, reference))), ("Signatures", ["api"])]
        front.cells.append(nbformat.v4.new_markdown_cell("\n".join(self.toctree(*t) for t in trees)))
        nbformat.write(front, folder / "index.ipynb")
        (folder / "api.md").write_text(self.overview(), encoding="utf-8")
        for short in self.modules: (folder / f"api/{short}.md").write_text(self.api(short), encoding="utf-8")


def build(out):
    "The site in the folder `out`, which is replaced; any warning is an error."
    with TemporaryDirectory() as work:
        pages, html = Path(work, "pages"), Path(work, "html")
        pages.mkdir()
        Site().write(pages)
        status = sphinx(["-b", "html", "-q", "-W", "--keep-going", "-c", str(Path(__file__).parent), "-d", str(Path(work, "doctrees")), str(pages), str(html)])
        if status: return status
        if (out / "searchindex.js").exists(): rmtree(out)  # an earlier site, perhaps with pages of notebooks that are gone
        copytree(html, out, dirs_exist_ok=True, ignore=lambda folder, names: {"_sources", ".buildinfo"})
        return 0


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else root / "_docs")
    status = build(out)
    if status == 0: print(f"{out}/index.html: {len(list(out.rglob('*.html')))} pages")
    sys.exit(status)
