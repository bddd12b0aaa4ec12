"Each module alone, in a fresh process, quickly, and without the packages that only tutorials and tests need."
import json
import pkgutil
import statistics
import subprocess
import sys
import time

import pytest

import hessnb
from conftest import HERE

MODULES = sorted(m.name for m in pkgutil.walk_packages(hessnb.__path__, "hessnb."))
OPTIONAL = ["jupyterlab", "jupyter_server", "notebook", "nbdev", "execnb", "nbconvert", "nbformat", "sklearn",
            "mlxtend", "scipy", "pandas", "torchvision", "curvlinops", "hypothesis", "pytest"]
HIDE = f"""
import sys
class Hide:  # a finder that knows nothing of these packages
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {OPTIONAL!r} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Hide, sys.meta_path)
"""


def python(code):
    done = subprocess.run([sys.executable, "-W", "error::SyntaxWarning", "-c", code], cwd=HERE.parent,
                          capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_there_are_modules():
    assert {"hessnb.curvature.params", "hessnb.curvature.objective", "hessnb.boundary.alignment"} <= set(MODULES)


def core(module): return module.split(".")[1:2] in ([], ["curvature"], ["boundary"])


@pytest.fixture(scope="module")
def imported():
    """What importing each module alone gave: a process with torch, but nothing of ours, forks one child for each. What
    may need matplotlib and widgets finds these loaded; what must do without them comes before."""
    out = python(f"""
import json, os, sys, traceback
import torch
def alone(module, blocked):
    try:
        if blocked: exec({HIDE!r})
        __import__(module)
    except BaseException: return traceback.format_exc()
said = {{}}
for module, blocked in {sorted(((m, core(m)) for m in ("hessnb", *MODULES)), key=lambda found: not found[1])!r}:
    if not blocked: import matplotlib.pyplot, ipywidgets
    read, write = os.pipe()
    if os.fork() == 0:
        with open(write, "w") as f: f.write(alone(module, blocked) or "")
        os._exit(0)
    os.close(write)
    with open(read) as f: said[module] = f.read()
    os.wait()
assert not any(m.startswith("hessnb") for m in sys.modules)
print(json.dumps(said))
""")
    return json.loads(out)


@pytest.mark.parametrize("module", ["hessnb", *MODULES])
def test_import_alone(imported, module): assert imported[module] == ""


@pytest.mark.parametrize("module", ["hessnb", "hessnb.report"])
def test_import_in_a_fresh_process(module): python((HIDE if core(module) else "") + f"import {module}")


def test_hidden_is_not_found():
    with pytest.raises(AssertionError, match="No module named 'scipy'"): python(HIDE + "import scipy")
    look = "import importlib.util as u; print(u.find_spec('scipy'), u.find_spec('pytest'))"
    assert python(HIDE + look) == "None None\n"


def test_core_works_without_optional_packages():
    out = python(HIDE + """
import torch
from torch import nn
from hessnb import HessianOperator, Objective, top_eigenpairs
X, y = torch.randn(30, 2, dtype=torch.float64), torch.arange(30) % 3
op = HessianOperator(Objective(nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)).double(), (X, y)))
print(top_eigenpairs(op, 2))
try: op.to_scipy()
except ImportError as e: print(e)
""")
    assert "2/2 converged" in out and "pip install scipy" in out


def test_import_time():
    def seconds():
        start = time.perf_counter()
        python("import hessnb")
        return time.perf_counter() - start
    seconds()  # fills the caches
    assert statistics.median(seconds() for _ in range(3)) < 3


def test_all_names_exist():
    for name in filter(core, MODULES):
        module = __import__(name, fromlist=["_"])
        assert [n for n in getattr(module, "__all__", []) if not hasattr(module, n)] == []
