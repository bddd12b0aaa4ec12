"Choosing parameters, and one vector for all of them."
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from conftest import F64, mlp, randn, untouched
from hessnb.curvature.params import flatten, select_params, unflatten

NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize("params, expected", [
    (None, NAMES), ("*", NAMES), ("2.*", NAMES[2:]), ("*.weight", NAMES[::2]),
    (["*.bias", "0.weight"], ["0.weight", "0.bias", "2.bias"]),
    (("2.bias", "0.bias"), ["0.bias", "2.bias"]), (lambda n, p: p.ndim == 1, NAMES[1::2]), (iter(["0.*"]), NAMES[:2]),
    ("[02].weight", NAMES[::2]),
])
def test_patterns(params, expected):
    model = mlp()
    with untouched(model): chosen = select_params(model, params)
    assert list(chosen) == expected
    assert all(chosen[n] is p for n, p in model.named_parameters() if n in chosen)


def test_frozen_only_by_name():
    model = mlp()
    model[0].requires_grad_(False)
    assert list(select_params(model)) == NAMES[2:]
    assert list(select_params(model, "*")) == NAMES


def test_tied_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    assert list(select_params(model)) == ["0.weight", "0.bias", "1.bias"]


class Many(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(1, 1) for _ in range(20))


@pytest.mark.parametrize("model, params, error, message", [
    (mlp(), "layer1.*", ValueError, "'layer1.*' matches no parameter; names are '0.weight'"),
    (mlp(), ["0.*", "3.*"], ValueError, "'3.*' matches no parameter"),
    (mlp(), [], ValueError, "no parameters selected by params=[]"),
    (mlp(), lambda n, p: False, ValueError, "no parameters selected"),
    (mlp().requires_grad_(False), None, ValueError, "set requires_grad on some of them, or select by name"),
    (nn.ReLU(), None, ValueError, "no parameters selected"),
    (Many(), "x", ValueError, "(40 in all)"),
    (nn.ParameterList([torch.ones(2, dtype=torch.complex64)]), None, TypeError, "complex64; curvature needs float32 or "
     "float64, and weights in bfloat16 or float16 are taken to float32: call model.float()"),
    (nn.Sequential(nn.Linear(2, 2).half(), nn.Linear(2, 2).double()), None, TypeError, "different dtypes or devices"),
    (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), None, TypeError, "different dtypes or devices"),
    (lambda x: x, None, TypeError, "model must be a torch.nn.Module, got function"),
    (torch.zeros(3), None, TypeError, "got Tensor"),
    (nn.Linear, None, TypeError, "got type"),
])
def test_refused(model, params, error, message):
    with pytest.raises(error) as e: select_params(model, params)
    assert message in str(e.value)


@pytest.mark.parametrize("params", [5, list(mlp().parameters()), mlp()[0].weight])
def test_wrong_kind_of_params(params):
    with pytest.raises(TypeError, match="params must be"): select_params(mlp(), params)


@given(st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=6))
def test_flatten_and_unflatten_are_inverse(shapes):
    like = {str(i): torch.empty(s, dtype=F64) for i, s in enumerate(shapes)}
    P = sum(t.numel() for t in like.values())
    v = torch.arange(P, dtype=F64)
    parts = unflatten(v, like)
    assert {n: p.shape for n, p in parts.items()} == {n: t.shape for n, t in like.items()}
    assert_close(flatten(parts), v, rtol=0, atol=0)
    assert_close(flatten(list(parts.values())), v, rtol=0, atol=0)
    with pytest.raises(ValueError, match=rf"\({P},\)"): unflatten(torch.zeros(P + 1), like)


def test_unflatten_is_a_view_and_differentiable():
    like, v = select_params(mlp()), randn(44).requires_grad_()
    parts = unflatten(v, like)
    assert all(p.untyped_storage().data_ptr() == v.untyped_storage().data_ptr() for p in parts.values())
    flatten(parts).square().sum().backward()
    assert_close(v.grad, 2 * v.detach())


def test_order_is_that_of_the_state_dict():
    model = mlp()
    assert_close(flatten(select_params(model)), torch.cat([t.reshape(-1) for t in model.state_dict().values()]))


def test_wrong_shape_of_vector():
    like = select_params(mlp())
    for bad in (torch.zeros(44, 1), torch.zeros(43), torch.zeros(())):
        with pytest.raises(ValueError, match=r"expected a vector of shape \(44,\)"): unflatten(bad, like)
