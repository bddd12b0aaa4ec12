"Each module alone, in a fresh process, quickly, and without the packages that only tutorials and tests need."
import pkgutil
import statistics
import subprocess
import sys
import time

import pytest

import hessnb
from conftest import HERE

MODULES = sorted(m.name for m in pkgutil.walk_packages(hessnb.__path__, "hessnb."))
OPTIONAL = ["jupyterlab", "jupyter_server", "notebook", "nbdev", "execnb", "nbconvert", "nbformat", "sklearn", "mlxtend", "scipy", "pandas", "torchvision",
            "curvlinops", "hypothesis", "pytest"]
BLOCK = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}: raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
"""


def python(code):
    done = subprocess.run([sys.executable, "-W", "error::SyntaxWarning", "-c", code], cwd=HERE.parent, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_there_are_modules(): assert {"hessnb.curvature.params", "hessnb.curvature.objective", "hessnb.curvature.operator", "hessnb.curvature.lanczos"} <= set(MODULES)


def core(module): return module.split(".")[1:2] in ([], ["curvature"], ["boundary"])


@pytest.mark.parametrize("module", ["hessnb", *MODULES])
def test_import_alone(module): python((BLOCK if core(module) else "") + f"import {module}")


def test_block_blocks():
    with pytest.raises(AssertionError, match="blocked: scipy"): python(BLOCK + "import scipy")


def test_core_works_without_optional_packages():
    out = python(BLOCK + """
import torch
from torch import nn
from hessnb.curvature.objective import Objective
from hessnb.curvature.operator import HessianOperator
from hessnb.curvature.lanczos import top_eigenpairs
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
