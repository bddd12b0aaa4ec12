"How the eigenvectors' mass is spread over the layers."
import pytest
import torch
from torch.testing import assert_close

from conftest import F64, blobs, mlp, randn
from hessnb.curvature.layers import layer_mass
from hessnb.curvature.objective import Objective

X, Y = blobs()


def test_layer_mass():
    objective = Objective(mlp(), (X, Y))
    V = randn(3, objective.n_params)
    mass = layer_mass(objective, V)
    assert mass.names == ("0.weight", "0.bias", "2.weight", "2.bias") and mass.sizes.tolist() == [15, 5, 20, 4]
    expected = torch.stack([p.square().sum(1) for p in V.split([15, 5, 20, 4], 1)], 1)
    assert_close(mass.mass, expected / expected.sum(1, keepdim=True))
    assert_close(mass.mass.sum(1), torch.ones(3, dtype=F64))
    assert_close(mass.random.sum(), torch.ones((), dtype=F64))
    assert_close(layer_mass(objective, 5 * V).mass, mass.mass)
    single = layer_mass(Objective(mlp().float(), (X.float(), Y)), V.float())
    assert_close(single.mass.sum(1), torch.ones(3, dtype=F64))


def test_no_angle_with_nothing():
    objective = Objective(mlp(), (X, Y))
    with pytest.raises(ValueError, match="zero vector"):
        layer_mass(objective, torch.zeros(1, objective.n_params, dtype=F64))
