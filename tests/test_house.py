"The structure that .ci/house.py looks after; each of its rules is seen to find a planted fault."
import importlib.util
import json
import re
import subprocess
import sys
from configparser import ConfigParser

import pytest
from packaging.version import Version

from conftest import HERE

spec = importlib.util.spec_from_file_location("house", HERE.parent / ".ci/house.py")
house = importlib.util.module_from_spec(spec)
spec.loader.exec_module(house)


@pytest.fixture
def planted(tmp_path):
    "A function that writes rooms `{'curvature/01_loss': code}` as notebooks and modules, and says what is wrong."
    def faults(rooms, allowed=(), cells=(), **files):
        for place, code in rooms.items():
            wing, _, stem = place.rpartition("/")
            room = ".".join(filter(None, [wing, stem.partition("_")[2] if stem[0].isdigit() else stem]))
            notebook, module = tmp_path / f"nbs/{place}.ipynb", tmp_path / f"hessnb/{room.replace('.', '/')}.py"
            sources = [f"#| default_exp {room}", f"#| export\n{code}", dict(cells).get(stem, "")]
            for path in (notebook, module): path.parent.mkdir(parents=True, exist_ok=True)
            notebook.write_text(json.dumps({"cells": [{"cell_type": "code", "source": [s]} for s in sources]}))
            module.write_text(code)
        for name, code in files.items():
            (tmp_path / "tests/seams").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"tests/seams/{name}.py").write_text(code)
        return house.House(tmp_path, dict.fromkeys(allowed, "a reason")).faults()
    return faults


LOSS = "class Loss:\n    def __init__(self): self._module = 1\ndef _take(): return 1\nSIZE = 3\n"


def test_the_house_is_kept():
    faults = house.House(HERE.parent).faults()
    assert not faults, "\n" + "\n".join(": ".join(f) for f in faults)


def test_every_allowance_has_its_reason():
    assert all(len(key) == 3 and len(reason) > 20 for key, reason in house.ALLOWED.items())


@pytest.mark.parametrize("code, what", [
    ("from .loss import _take", "import curvature.loss._take"),
    ("from hessnb.curvature.loss import Loss, _take as take", "import curvature.loss._take"),
    ("from . import loss\nx = loss._take()", "loss._take"),
    ("import hessnb.curvature.loss as other\nx = other._take()", "other._take"),
    ("from .loss import Loss\nx = Loss()._module", "?._module"),
    ("from .loss import Loss\ndef f(loss): return loss._module", "loss._module"),
    ("from .loss import Loss\nclass Mine(Loss):\n    def f(self): return self._module", "self._module"),
    ("def f(loss): return getattr(loss, '_module', None)", "loss._module"),
])
def test_private_names_stay_in_their_room(planted, code, what):
    assert planted({"curvature/01_loss": LOSS, "curvature/02_batches": code}) == [("privates", "curvature.batches",
        what)]


@pytest.mark.parametrize("code", [
    "from .loss import Loss\nclass B:\n    def __init__(self): self._own = 1\n    def f(self): return self._own, "
                                  "self.__class__",
    "import torch\nx = torch._C, torch.zeros(1)._version",
    "def _local(): pass\nx = _local()\nfor _ in range(3): pass",
    "class B:\n    def _repr_html_(self): return ''\ndef f(b): return b._repr_html_()",
    "class B:\n    def __init__(self): object.__setattr__(self, '_module', 1)\n    def f(self): return self._module",
])
def test_private_names_at_home(planted, code):
    assert planted({"curvature/01_loss": LOSS, "curvature/02_batches": code}) == []


def test_guests_use_no_private_name(planted):
    rooms = {"curvature/01_loss": LOSS, "curvature/02_batches": "#\nfrom .loss import Loss"}
    found = planted(rooms, mine="from hessnb.curvature.loss import Loss, _take\nx = Loss()._module\ny = x._own\n")
    assert found == [("guests", "tests.seams.mine", "_module"), ("guests", "tests.seams.mine", "_take")]


def test_notebooks_import_no_private_name_of_others(planted):
    code = "from hessnb.curvature.loss import SIZE, _take"
    found = planted({"curvature/01_loss": LOSS, "curvature/02_batches": "x = 1"},
                    cells={"02_batches": code, "01_loss": code})
    assert found == [("guests", "nbs/curvature/02_batches.ipynb", "import curvature.loss._take")]


def test_imports_point_down(planted):
    rooms = {"curvature/01_loss": LOSS, "curvature/02_batches": "from .loss import SIZE",
             "boundary/00_plane": "import hessnb.curvature.loss"}
    assert planted(rooms) == []
    assert planted({**rooms, "curvature/00_params": "from .loss import SIZE"}) == [
        ("directions", "curvature.params", "imports curvature.loss, number 1, into 0")]
    found = planted({**rooms, "curvature/00_params": "x = 1",
                     "curvature/03_checks": "def f():\n    from ..boundary import plane"})
    assert found == [("directions", "curvature.checks", "imports boundary.plane, of a later wing")]


def test_circles(planted):
    found = planted({"lab": "from .report import a", "report": "from .cli import b", "cli": "from .lab import c"})
    assert found == [("circles", "report", "circle: cli > lab > report > cli")]


def test_only_show_draws(planted):
    rooms = {"show/00_plots": "import matplotlib.pyplot as plt", "figures": "from matplotlib.figure import Figure"}
    assert planted(rooms) == []
    found = planted({**rooms, "boundary/00_plane": "def f():\n    import matplotlib",
                     "training/00_track": "import ipywidgets"})
    assert found == [("drawing", "boundary.plane", "imports matplotlib"),
                     ("drawing", "training.track", "imports ipywidgets")]


def test_classes_stay_whole(planted):
    found = planted({"curvature/01_loss": "from fastcore.basics import patch\nclass Loss: pass",
                     "curvature/02_more": "from .loss import Loss\nLoss.x = 1"})
    assert found == [("patches", "curvature.loss", "imports patch"), ("patches", "curvature.more", "sets Loss.x")]


@pytest.mark.parametrize("code, what", [
    ("import warnings\nwith warnings.catch_warnings(): pass", "calls warnings.catch_warnings"),
    ("from warnings import filterwarnings as quiet\nquiet('ignore')", "calls warnings.filterwarnings"),
    ("import torch\ntorch.set_rng_state(x)", "calls torch.set_rng_state"),
    ("import torch\ntorch.manual_seed(0)", "calls torch.manual_seed"),
    ("import torch\nwith torch.random.fork_rng(): pass", "calls torch.random.fork_rng"),
    ("import numpy as np\nnp.random.seed(0)", "calls numpy.random.seed"),
    ("import ctypes\nctypes.CDLL(None).mallopt(-3, 1)", "calls ?.mallopt"),
    ("import torch\ntorch.set_float32_matmul_precision('high')", "calls torch.set_float32_matmul_precision"),
    ("from torch.nn.attention import sdpa_kernel\nwith sdpa_kernel([]): pass", "calls torch.nn.attention.sdpa_kernel"),
    ("import torch\ntorch.backends.cudnn.allow_tf32 = False", "sets torch.backends.cudnn.allow_tf32"),
    ("import os\nos.environ['A'] = 'b'", "sets os.environ['A']"),
    ("import matplotlib as mpl\nmpl.rcParams['a'] = 1", "sets mpl.rcParams['a']"),
    ("x = 1\ndef f():\n    global x\n    x = 2", "global x"),
])
def test_nothing_for_the_whole_process(planted, code, what):
    found = planted({"show/01_loss": code})
    assert found == [("effects", "show.loss", what)]
    assert planted({"show/01_loss": code}, allowed=found) == []


def test_effects_that_stay_at_home(planted):
    code = "import torch\ng = torch.Generator().manual_seed(3)\nwith torch.no_grad(): x = torch.rand(1, generator=g)\n"
    assert planted({"curvature/01_loss": code + "import warnings\nwarnings.warn('careful', stacklevel=2)"}) == []


def test_an_allowance_that_nothing_needs(planted):
    key = ("effects", "curvature.loss", "calls torch.manual_seed")
    assert planted({"curvature/01_loss": LOSS}, allowed=[key]) == [("allowance", *key)]


def test_no_questions_about_the_kind_of_operator(planted):
    found = planted({"curvature/12_krylov": "def f(op): return hasattr(op, 'expect') or isinstance(op, int)"})
    assert found == [("kinds", "curvature.krylov", "hasattr(op, 'expect')"),
                     ("kinds", "curvature.krylov", "isinstance(op, int)")]


def test_words_of_the_field(planted):
    found = planted({"curvature/12_krylov": "def polish(twin_op): return twin_op\nleading = f(twin=1)"})
    assert [(rule, what.split(":")[0]) for rule, _, what in found] == [("words", "polish"), ("words", "twin_op")]


def test_sizes(planted):
    long = "".join(f"x{i} = {i}\n" for i in range(81))
    assert planted({"curvature/01_loss": long}) == [("sizes", "curvature.loss", "cell too long")]
    found = planted({"curvature/01_loss": "\n" * 401 + "x = 1\n"})
    assert found == [("sizes", "curvature.loss", "module too long")]


def test_claims_are_said_once_or_alike():
    root = HERE.parent
    config = ConfigParser(delimiters=["="])
    config.read(root / "settings.ini", encoding="utf-8")
    cfg = config["DEFAULT"]
    workflow = (root / ".github/workflows/test.yml").read_text(encoding="utf-8")
    matrix = dict(re.findall(r'name: (\w+), python: "([\d.]+)"', workflow))
    assert list(matrix) == ["oldest", "newest"] and matrix["oldest"] == cfg["min_python"]
    contributing = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert all(f"Python {version}" in contributing for version in matrix.values())
    assert f"\nversion: {cfg['version']}\n" in (root / "CITATION.cff").read_text(encoding="utf-8")
    command = [sys.executable, str(root / ".ci/oldest.py")]
    oldest = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    needed = sum(len(cfg[key].split()) for key in ("requirements", "lab_requirements", "tutorials_requirements"))
    assert len(oldest) == needed and all(pin.partition("==")[2] for pin in oldest)
    pins = dict(line.split("==") for line in (root / "constraints.txt").read_text().split())
    for pin in oldest:
        name, _, bound = pin.partition("==")
        chosen = {n.lower().replace("_", "-"): v for n, v in pins.items()}[name.lower().replace("_", "-")]
        assert Version(chosen) >= Version(bound), pin
