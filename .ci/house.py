"""The structure that the house keeps, as far as a parser can see it: `python .ci/house.py` prints sizes and faults.

Private names stay in their room; imports point down the list of wings and to lower numbers; nothing is changed for the
whole process; only show/ draws. What is allowed all the same stands in ALLOWED, with its reason."""
import ast
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

WINGS = ("curvature", "boundary", "training", "show", "paper", "")  # "": the rooms at the top
MODULE_LINES, CELL_LINES = 400, 80  # above these a reason is wanted; the guide is 300 and 15
DRAWING = {"matplotlib": ("show", "figures"), "mpl_toolkits": ("show", "figures"), "ipywidgets": ("show",),
           "anywidget": ("show",)}

_ERROR = "only where an exception leaves: model or data may have drawn, and the caller gets the stream back"
_DRAWS = "only for a model that was seen to draw random numbers in its forward pass"
ALLOWED = {  # (rule, room, what was found): the reason
    ("effects", "curvature.checks", "calls mallopt"): "keep_freed_memory, which is the caller's to call",
    ("effects", "curvature.checks", "calls numpy.random.set_state"): _ERROR,
    ("effects", "curvature.checks", "calls random.setstate"): _ERROR,
    ("effects", "curvature.checks", "calls torch.set_rng_state"): _ERROR,
    ("effects", "curvature.model", "calls torch.random.fork_rng"): _DRAWS,
    ("effects", "curvature.soundness", "calls torch.set_rng_state"): _DRAWS,
    ("sizes", "curvature.fast", "cell too long"): "FastSum: what is kept of a sum of maps, three rules by counts",
    ("effects", "paper.zoo", "calls torch.set_num_threads"): "build_zoo, a command run by hand in a process of its own",
}

GLOBAL = {  # calls that change something for every thread of the process, by the end of their dotted name
    "warnings.catch_warnings", "warnings.filterwarnings", "warnings.simplefilter", "warnings.resetwarnings",
    "torch.manual_seed", "random.manual_seed", "random.seed", "cuda.manual_seed", "cuda.manual_seed_all", "torch.seed",
    "set_rng_state", "random.set_state", "fork_rng", "random.setstate",
    "set_default_dtype", "set_default_device", "set_num_threads", "set_num_interop_threads",
          "set_deterministic_debug_mode",
    "use_deterministic_algorithms", "set_float32_matmul_precision", "sdpa_kernel", "enable_flash_sdp",
          "enable_math_sdp",
    "enable_mem_efficient_sdp", "enable_cudnn_sdp", "mallopt", "matplotlib.use", "set_start_method", "signal.signal",
    "environ.update", "environ.setdefault", "environ.pop", "putenv", "setrecursionlimit", "sys.setswitchinterval",
}
SETTINGS = re.compile(r"\bbackends\.[\w.]+$|\benviron\[|\brcParams\[|^warnings\.\w+$|^sys\.(stdout|stderr|excepthook)$")
COINED = {"twin": "mixed precision", "polish": "Rayleigh-Ritz", "audit": "check", "displace": "perturb",
          "lead": "logit margin"}


def dotted(node):
    "`a.b.c` as text; a question mark for what is not a name."
    if isinstance(node, ast.Name): return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


def looked_up(node):
    "(place, name) of `place.name`, `getattr(place, 'name')` and the like."
    if isinstance(node, ast.Attribute): return dotted(node.value), node.attr
    if isinstance(node, ast.Call) and dotted(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
        if len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
            return dotted(node.args[0]), str(node.args[1].value)


def private(name): return name[:1] == "_" and not re.fullmatch(r"__\w+__|_repr_\w+_|_ipython_display_|_+", name)


def exported(source): return re.search(r"^#\| *exports?\b", source, flags=re.M)


class Room:
    "One module: its tree, its place in the order, the notebook it comes from and the private names that it defines."
    def __init__(self, path, package, notebook=None):
        self.path, self.notebook = path, notebook
        self.name = path.relative_to(package).with_suffix("").as_posix().replace("/", ".")
        self.wing = self.name.split(".")[0] if "." in self.name else ""
        self.number = int(found[0]) if notebook and (found := re.match(r"\d+", notebook.name)) else None
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self.privates = set(self.defined())
        self.classes = {n.name for n in ast.walk(self.tree) if isinstance(n, ast.ClassDef)}

    def defined(self):
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and private(node.name):
                yield node.name
            elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
                name = node.id if isinstance(node, ast.Name) else node.attr
                if private(name) and (isinstance(node, ast.Name) or dotted(node.value) in ("self", "cls")): yield name
            elif isinstance(node, ast.Call) and dotted(node.func).endswith("__setattr__"):
                yield from (str(a.value) for a in node.args if isinstance(a, ast.Constant) and private(str(a.value)))

    def imports(self):
        "What it imports: (module, name in it or None, alias); relative ones resolved, `hessnb.` taken off our own."
        parts = self.name.split(".")[:-1]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for a in node.names: yield re.sub(r"^hessnb\.", "", a.name), None, a.asname or a.name
            elif isinstance(node, ast.ImportFrom):
                base = parts[:len(parts) - node.level + 1] if node.level else []
                module = re.sub(r"^hessnb(\.|$)", "", ".".join([*base, *filter(None, [node.module])]))
                for a in node.names: yield module, a.name, a.asname or a.name


class House:
    "All rooms under `root`, and what is wrong with them: `faults()` yields (rule, room, what was found)."
    def __init__(self, root, allowed=ALLOWED):
        self.root, self.allowed = Path(root), allowed
        package, homes = self.root / "hessnb", {}
        for path in sorted((self.root / "nbs").rglob("*.ipynb")):
            found = re.search(r'"#\| *default_exp ([\w.]+)', path.read_text(encoding="utf-8"))
            if found: homes[found[1]] = path
        self.rooms = {}
        for path in sorted(package.rglob("*.py")):
            if path.stem in ("__init__", "_modidx") or "tutorials" in path.parts: continue
            name = path.relative_to(package).with_suffix("").as_posix().replace("/", ".")
            self.rooms[name] = Room(path, package, homes.get(name))

    def faults(self):
        "Those without an allowance; an allowance that nothing needs is a fault too."
        found = set()
        for rule in (self.privates, self.guests, self.directions, self.circles, self.drawing, self.patches,
                     self.effects, self.kinds, self.words, self.sizes):
            found |= {(rule.__name__, room, what) for room, what in rule()}
        return sorted(found - set(self.allowed)) + [("allowance", *key) for key in sorted(set(self.allowed) - found)]

    def edges(self):
        for room in self.rooms.values():
            for module, name, _ in room.imports():
                for target in (module, f"{module}.{name}".lstrip(".")):
                    if target in self.rooms and target != room.name: yield room, self.rooms[target]

    def privates(self):
        "Private names imported, or looked up on modules or on objects of another room's class."
        owners = defaultdict(set)
        for room in self.rooms.values():
            for name in room.privates: owners[name].add(room.name)
        for room in self.rooms.values():
            modules = {alias for module, name, alias in room.imports() if f"{module}.{name}".lstrip(".") in self.rooms
                       or name is None and module in self.rooms}
            for module, name, _ in room.imports():
                if name and private(name) and (module in self.rooms or not module):
                    yield room.name, f"import {module}.{name}"
            for place, name in filter(None, map(looked_up, ast.walk(room.tree))):
                elsewhere = owners[name] - {room.name} and name not in room.privates
                if private(name) and (elsewhere or place in modules): yield room.name, f"{place}.{name}"

    def guests(self):
        "Private names in benchmarks and in the stand-ins of tests/seams, or imported by a notebook's cells that stay."
        ours = set().union(*(room.privates for room in self.rooms.values()))
        for path in sorted(p for folder in ("benchmarks", "tests/seams") for p in (self.root / folder).rglob("*.py")):
            guest = Room(path, self.root)
            for node in ast.walk(guest.tree):
                names = [a.name for a in getattr(node, "names", ())
                         if isinstance(node, ast.ImportFrom)] or [getattr(node, "attr", "")]
                yield from ((guest.name, n) for n in names if n in ours - guest.privates)
        for path in sorted((self.root / "nbs").rglob("*.ipynb")):
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
                source = "" if exported(text := "".join(cell["source"])) else text
                found = re.findall(r"^\s*from hessnb\.?([\w.]*) import ([^#\n]*)", source, flags=re.M)
                for module, name in [(m, n) for m, names in found for n in re.findall(r"\w+", names) if private(n)]:
                    if module not in self.rooms or self.rooms[module].notebook != path:
                        yield path.relative_to(self.root).as_posix(), f"import {module}.{name}"

    def directions(self):
        "Imports up the list of wings, or to a room of the same or a higher number."
        for room, target in self.edges():
            rank = WINGS.index(room.wing) - WINGS.index(target.wing) if {room.wing, target.wing} <= set(WINGS) else -1
            if rank < 0: yield room.name, f"imports {target.name}, of a later wing"
            if rank == 0 and room.wing and None not in (room.number, target.number) and room.number <= target.number:
                yield room.name, f"imports {target.name}, number {target.number}, into {room.number}"

    def circles(self):
        graph = defaultdict(set)
        for room, target in self.edges(): graph[room.name].add(target.name)
        done = {}  # 1: on the way, 2: left
        def visit(name, way):
            done[name] = 1
            for other in sorted(graph[name]):
                if done.get(other) == 1: yield name, "circle: " + " > ".join([*way[way.index(other):], other])
                elif other not in done: yield from visit(other, [*way, other])
            done[name] = 2
        for name in sorted(self.rooms):
            if name not in done: yield from visit(name, [name])

    def drawing(self):
        for room in self.rooms.values():
            for module, _, _ in room.imports():
                places = DRAWING.get(module.split(".")[0])
                if places and not {room.wing, room.name} & set(places): yield room.name, f"imports {module}"

    def patches(self):
        for room in self.rooms.values():
            for module, name, _ in room.imports():
                if module.startswith("fastcore") and name in ("patch", "patch_to", "patch_property"):
                    yield room.name, f"imports {name}"
            for node in ast.walk(room.tree):
                if isinstance(node, ast.Assign):
                    for target in node.targets:
                        if isinstance(target, ast.Attribute) and dotted(target.value) in self.class_names:
                            yield room.name, f"sets {dotted(target)}"

    @property
    def class_names(self): return set().union(*(r.classes for r in self.rooms.values()))

    def effects(self):
        "Calls and assignments that every thread of the process would notice."
        for room in self.rooms.values():
            names = {alias: f"{module}.{name}" if name else module for module, name, alias in room.imports()}
            for node in ast.walk(room.tree):
                if isinstance(node, ast.Call):
                    called = dotted(node.func)
                    first, _, rest = called.partition(".")
                    called = ".".join(filter(None, [names.get(first, first), rest]))
                    if any(called == g or called.endswith("." + g) for g in GLOBAL): yield room.name, f"calls {called}"
                elif isinstance(node, (ast.Assign, ast.AugAssign, ast.Delete)):
                    for target in getattr(node, "targets", None) or [node.target]:
                        if SETTINGS.search(ast.unparse(target).split("]")[0].rstrip()):
                            yield room.name, f"sets {ast.unparse(target)}"
                elif isinstance(node, ast.Global): yield room.name, f"global {', '.join(node.names)}"

    def kinds(self):
        "Questions about the kind of an operator, which the contract answers."
        for room in self.rooms.values():
            for node in ast.walk(room.tree):
                if isinstance(node, ast.Call) and dotted(node.func) in ("isinstance", "hasattr") and node.args \
                        and dotted(node.args[0]) in ("op", "operator", "self.op"):
                    yield room.name, ast.unparse(node)

    def words(self):
        "Coined words, where the field has its own."
        for room in self.rooms.values():
            for node in ast.walk(room.tree):
                name = next((v for f in ("name", "id", "arg", "attr") if isinstance(v := getattr(node, f, None), str)),
                            None)
                if name is None or isinstance(node, (ast.keyword, ast.alias)): continue
                parts = re.findall(r"[A-Z]?[a-z]+", name)
                yield from ((room.name, f"{name}: say {COINED[w.lower()]}") for w in parts if w.lower() in COINED)

    def cells(self, room):
        "Lines of every exported cell, without directives and empty lines."
        for cell in json.loads(room.notebook.read_text(encoding="utf-8"))["cells"] if room.notebook else ():
            source = "".join(cell["source"])
            if cell["cell_type"] == "code" and exported(source):
                yield sum(bool(line.strip()) and not line.startswith("#|") for line in source.split("\n"))

    def table(self):
        "Rooms with their lines, number of exported cells, and the median and longest of these."
        for name, room in sorted(self.rooms.items(), key=lambda r: (WINGS.index(r[1].wing) if r[1].wing in WINGS else 9,
            r[1].number or 0)):
            cells = sorted(self.cells(room)) or [0]
            yield name, len(room.text.splitlines()), len(cells), cells[len(cells) // 2], cells[-1]

    def sizes(self):
        for name, lines, _, _, longest in self.table():
            if lines > MODULE_LINES: yield name, "module too long"
            if longest > CELL_LINES: yield name, "cell too long"


if __name__ == "__main__":
    house = House(Path(__file__).resolve().parent.parent)
    if "--quiet" not in sys.argv:
        print(f"{'room':28} lines cells median longest")
        for row in house.table(): print("{:28} {:5} {:5} {:6} {:7}".format(*row))
    faults = house.faults()
    for rule, room, what in faults: print(f"{rule}: {room}: {what}")
    sys.exit(bool(faults))
