"`unpack=` wherever a model and its data are taken, and modules that were not built to the end."
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import hessnb
from conftest import F64, build, randn
from hessnb.curvature.eigenpairs import dense_eigenpairs
from hessnb.curvature.krylov import tridiagonalize
from hessnb.curvature.layers import layer_mass
from hessnb.curvature.lowrank import nonzero_eigenpairs
from hessnb.curvature.objective import Objective
from hessnb.curvature.top import eigenpairs_until, top_eigenpairs

X, Y = randn(40, 3), torch.arange(40) % 4
BATCHES = [(("first", X[:25]), "of no use", Y[:25]), (("second", X[25:]), "of no use", Y[25:])]
def unpack(batch): return batch[0][1], batch[2]
def model(): return build(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4)))


def matrix(net):
    "The Hessian by autograd alone."
    params = list(net.parameters())
    def loss(theta):
        parts = [t.reshape(p.shape) for t, p in zip(theta.split([p.numel() for p in params]), params)]
        return F.cross_entropy(F.linear(F.linear(X, *parts[:2]).tanh(), *parts[2:]), Y)
    return torch.autograd.functional.hessian(loss, torch.cat([p.detach().reshape(-1) for p in params]))


def test_in_every_search():
    values = torch.linalg.eigvalsh(matrix(model())).flip(0)
    data = dict(data=BATCHES, unpack=unpack)
    assert_close(dense_eigenpairs(model(), **data).values, values, rtol=1e-8, atol=1e-12)
    assert_close(top_eigenpairs(model(), 3, **data).values, values[:3], rtol=1e-8, atol=1e-12)
    largest = values[values.abs().argsort(descending=True)]
    assert_close(nonzero_eigenpairs(model(), **data).values[:3], largest[:3], rtol=1e-6, atol=1e-10)
    found = eigenpairs_until(model(), lambda values, vectors: len(values) >= 4, k=4, **data)
    assert_close(found.values[:4], largest[:4], rtol=1e-6, atol=1e-10)
    T = tridiagonalize(model(), torch.ones(len(values), dtype=F64), 5, **data)
    assert T.alpha[0].item() == pytest.approx(matrix(model()).mean().item() * len(values), rel=1e-8)
    mass = layer_mass(model(), torch.eye(len(values), dtype=F64)[:2], **data)
    assert mass.mass[:, 0].tolist() == [1, 1]


def test_every_public_function_with_data_has_it():
    "Also those that will come."
    for name in hessnb.__all__:
        each = getattr(hessnb, name)
        if not inspect.isfunction(each) or not each.__module__.startswith("hessnb.curvature"): continue
        names = inspect.signature(each).parameters
        open_ended = any(p.kind == p.VAR_KEYWORD for p in names.values())
        assert "data" not in names or "unpack" in names or open_ended, name


class Unfinished(nn.Module):
    def __init__(self): self.width = 3
    def forward(self, x): return x


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.layer = nn.Sequential(nn.Tanh()), nn.Linear(3, 4)
        self.inner.append(Unfinished())
    def forward(self, x): return self.layer(self.inner(x))


@pytest.mark.parametrize("made, name", [(Unfinished, "the model"), (Outer, "submodule '1'")])
def test_a_module_without_its_constructor(made, name):
    with pytest.raises(TypeError, match=rf"{name} .Unfinished. is no complete module: its __init__ has to call "
                                        r"super\(\).__init__\(\) first"):
        Objective(made(), (X, Y))


def test_what_is_assigned_before_is_no_harm():
    class Early(nn.Module):
        def __init__(self):
            self.width = 4
            super().__init__()
            self.layer = nn.Linear(3, self.width)
        def forward(self, x): return self.layer(x)
    assert Objective(Early().double().eval(), (X, Y)).n_params == 16


def test_an_explorer_that_takes_what_there_is_not():
    pytest.importorskip("ipywidgets")
    from hessnb.show.view import View
    from hessnb.show.workbook import Workbook
    class Mine(View):
        title, takes = "mine", ("class_names", "colours")
    with pytest.raises(ValueError, match=r"Mine.takes names \['colours'\]; a workbook has class_names"):
        Workbook(model(), BATCHES, unpack=unpack, explorers=[Mine], background=False)
