"What `test_processes.py` runs in several processes: `python tests/processes.py TASK OUT`, started by torchrun or alone."
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from hessnb.boundary.alignment import align
from hessnb.boundary.directions import resolve_measure
from hessnb.curvature.entry import as_operator
from hessnb.curvature.layers import layer_mass
from hessnb.curvature.objective import Objective
from hessnb.curvature.top import top_eigenpairs
from hessnb.curvature.trace import trace

torch.set_num_threads(1)
HERE = Path(__file__).resolve().parent
F32, F64 = torch.float32, torch.float64


def randn(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def built(make, seed=0):
    torch.manual_seed(seed)
    return make().double().eval()


class Encoder(nn.Module):
    "A small transformer: two layers over five tokens."
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0., batch_first=True)
        self.embed, self.body = nn.Linear(3, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)
    def forward(self, x): return self.head(self.body(self.embed(x)).mean(1))


def reference(name):
    "A network of the authors and its training data."
    data = np.load(HERE / "data" / f"{name}.npz")
    state = {k[6:]: torch.as_tensor(v) for k, v in data.items() if k.startswith("param_")}
    sizes = [2, 100, 100, len(state["fc3.bias"])]
    net = nn.Sequential(*[m for a, b in zip(sizes, sizes[1:]) for m in (nn.Linear(a, b), nn.ReLU())][:-1]).double()
    net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=True)))
    return net.eval(), (torch.as_tensor(data["X_train"]), torch.as_tensor(data["y_train"]))


def cnn():
    net = built(lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)))
    X, y = randn(23, 1, 8, 8, seed=1), torch.arange(23) % 3
    return net, list(zip(X.split([7, 1, 1, 9, 5]), y.split([7, 1, 1, 9, 5]), strict=True))


def encoder():
    return built(Encoder), (randn(17, 5, 3, seed=2), torch.arange(17) % 3)


NETWORKS = {
    "gauss": lambda: reference("gauss_normal_training"), "cnn": cnn, "encoder": encoder,
    "checkerboard": lambda: reference("gauss_checkerboard_linear_normal_training_close"),
}


def numbers(objective, k=4):
    "What the processes must agree on with one process."
    tol = 1e-9 if objective.dtype == F64 else 1e-4
    op, (X, y) = as_operator(objective), objective.examples()
    pairs = top_eigenpairs(op, k, tol=tol)
    resolved = resolve_measure(op, X, k=8, max_pairs=40, tol=.3, max_matvecs=200)
    return dict(
        value=objective.value(), grad=objective.grad(), n=objective.n_examples, labels=y,
        product=op.matvec(torch.linspace(-1, 1, op.shape[0], dtype=op.dtype)), values=pairs.values,
        cosines=align(objective, X, pairs.vectors).cosines.abs(), trace=trace(op, n_probes=8, n_steps=3).value,
        mass=layer_mass(objective, pairs.vectors).mass, measure=resolved.directions.value,
        logits=objective.predict(X), more=layers(objective),
    )


def layers(objective): return torch.zeros(())  # the spectra of the layers: layer_eigenpairs(objective, ...).values


def everything(mesh):
    found = {}
    for name, make in NETWORKS.items():
        for dtype in (F64, F32):
            model, data = make()
            found[f"{name} {str(dtype)[6:]}"] = numbers(Objective(model, data, dtype=dtype, mesh=mesh))
    return found


def main(task, out):
    dist.init_process_group("gloo", timeout=timedelta(seconds=50))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    found = globals()[task](mesh)
    torch.save(found, f"{out}.{dist.get_rank()}")
    dist.destroy_process_group()


if __name__ == "__main__": main(*sys.argv[1:])
