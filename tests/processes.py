"""What `test_processes.py` runs in several processes: `torchrun --nproc-per-node 2 tests/processes.py TASK,TASK OUT`.

Each task is a function of a mesh, or of None for one process, whose numbers the tests compare."""
import copy
import dataclasses
import gc
import math
import os
import pickle
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import hessnb
from hessnb.boundary.alignment import align
from hessnb.boundary.directions import resolve_measure
from hessnb.curvature.entry import as_operator
from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.layer_pairs import layer_eigenpairs
from hessnb.curvature.layers import layer_mass
from hessnb.curvature.objective import Objective
from hessnb.curvature.parts import OwnShare
from hessnb.curvature.top import eigenpairs_until, refine, top_eigenpairs
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


def numbers(objective, k=3):
    "What the processes must agree on with one process."
    tol = 1e-6 if objective.dtype == F64 else 1e-4
    op, (X, y) = as_operator(objective), objective.examples()
    pairs = top_eigenpairs(op, k, tol=tol)
    resolved = resolve_measure(op, X, k=4, max_pairs=4, tol=.3, max_matvecs=60)
    return dict(
        value=objective.value(), grad=objective.grad(), n=objective.n_examples, labels=y,
        product=op.matvec(torch.linspace(-1, 1, op.shape[0], dtype=op.dtype)), values=pairs.values,
        cosines=align(objective, X, pairs.vectors).cosines.abs(), trace=trace(op, n_probes=6, n_steps=3).value,
        mass=layer_mass(objective, pairs.vectors).mass, measure=resolved.directions.value,
        logits=objective.predict(X), more=layers(objective),
    )


def layers(objective):
    "The spectra of the layers."
    return layer_eigenpairs(objective, 1, tol=1e-8, n_probes=2).values


def everything(mesh):
    "All networks in double precision, two of them in single."
    found = {}
    for name, dtype in [*((name, F64) for name in NETWORKS), ("gauss", F32), ("encoder", F32)]:
        model, data = NETWORKS[name]()
        found[f"{name} {str(dtype)[6:]}"] = numbers(Objective(model, data, dtype=dtype, mesh=mesh))
    return found


def refusal(fn, *args, **kwargs):
    "The error that a call gives, in words; empty if it gives none."
    try: fn(*args, **kwargs)
    except Exception as e: return f"{type(e).__name__}: {e}"
    return ""


def brief(objective):
    "Few numbers that tell whether model and data are the right ones."
    op = as_operator(objective)
    return dict(value=objective.value(), grad=objective.grad(), n=objective.n_examples,
                values=top_eigenpairs(op, 2, tol=1e-9).values)


def wrapped(mesh):
    "Models and loaders that data-parallel training has wrapped."
    net, batches = cnn()
    X, y = torch.cat([X for X, _ in batches]), torch.cat([y for _, y in batches])
    if mesh is None: return {name: brief(Objective(net, (X, y))) for name in ("ddp", "sampler", "fsdp", "uneven")}
    found, rank, size = {}, mesh.get_local_rank(), mesh.size()
    ddp = nn.parallel.DistributedDataParallel(net)
    sampler = DistributedSampler(TensorDataset(X, y), shuffle=False)
    loader = DataLoader(TensorDataset(X, y), batch_size=4, sampler=sampler)
    refused = dict(ddp=refusal(Objective, ddp, (X, y)), sampler=refusal(Objective, net, loader),
                   mesh=refusal(Objective, net, (X, y), mesh="cpu"))
    found["ddp"] = brief(Objective(ddp, (X, y), mesh=mesh))
    found["sampler"] = brief(Objective(net, loader, mesh=mesh))
    order = Objective(net, loader, mesh=mesh).examples()
    refused["order"] = "" if torch.equal(order[0], X) and torch.equal(order[1], y) else "another order"
    sharded, plain = copy.deepcopy(net), net(X).detach()
    fully_shard(sharded[0], mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    refused["fsdp"] = refusal(Objective, sharded, (X, y))
    for _ in range(2):  # before and after a forward pass of the user's, which leaves it whole
        found["fsdp"] = brief(Objective(sharded, batches, mesh=mesh))
        assert torch.allclose(sharded(X), plain, rtol=1e-12)
    mine = (X[:3], y[:3]) if rank == 0 else (X[3:], y[3:]) if rank == size - 1 else (X[:0], y[:0])
    found["uneven"] = brief(Objective(net, OwnShare(mine), mesh=mesh))
    refused["alone"] = refusal(Objective, net, OwnShare(mine))
    return {**found, "refused": refused}


def idle(mesh):
    "The first process has all of the data, or there are fewer examples than processes; errors of one process only."
    net, (X, y) = encoder()
    if mesh is None: return dict(first=brief(Objective(net, (X, y))), few=brief(Objective(net, (X[:1], y[:1]))))
    rank, bad, refused = mesh.get_local_rank(), X.clone(), {}
    bad[0] = math.nan
    found = dict(first=brief(Objective(net, OwnShare((X, y) if rank == 0 else []), mesh=mesh)),
                 few=brief(Objective(net, (X[:1], y[:1]), mesh=mesh)))
    refused["data"] = refusal(Objective, net, (X + rank, y), mesh=mesh)
    refused["nan"] = refusal(Objective, net, OwnShare((bad if rank == 1 else X, y)), mesh=mesh)
    refused["none"] = refusal(Objective, net, OwnShare([]), mesh=mesh)
    refused["parameters"] = refusal(Objective, built(Encoder, seed=rank), (X, y), mesh=mesh)
    objective = Objective(net, (X, y), mesh=mesh)
    def alone(inputs, target):
        if rank == 1: raise ZeroDivisionError("of one process")
        return target.sum()
    refused["sum"] = refusal(objective.sum, alone)
    refused["calls"] = refusal(objective.sum, lambda inputs, target: torch.zeros(2 + rank))
    refused["after"] = "" if objective.sum(lambda inputs, target: torch.tensor(len(target))) == len(y) else "wrong"
    return {**found, "refused": refused}


def held(mesh):
    "Bytes of basis and parameters that a search holds in this process, with nothing kept between products."
    net = built(lambda: nn.Sequential(nn.Linear(4, 200), nn.Tanh(), nn.Linear(200, 100), nn.Tanh(), nn.Linear(100, 3)))
    P = sum(p.numel() for p in net.parameters())
    def sizes():
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names of torch that are about to go
            big = [t for t in gc.get_objects() if isinstance(t, torch.Tensor) and not t.is_meta and t.numel() > P // 10]
        return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in big}
    before, found = sizes(), []
    objective = Objective(net, (randn(12, 4), torch.arange(12) % 3), mesh=mesh)
    op = HessianOperator(objective, memory_budget=0)
    def look(done, *_):
        if done != 7: return
        found.append(sum(size for at, size in sizes().items() if at not in before))
    top_eigenpairs(op, 2, tol=1e-3, progress=look)
    return dict(bytes=found[0], vector=8 * P)


def dies(mesh):
    "The last process ends in the middle of a search."
    objective, rank = Objective(*encoder(), mesh=mesh), mesh.get_local_rank()
    def leave(done, *_):
        if done == 4 and rank == mesh.size() - 1: os._exit(3)
    start = time.perf_counter()
    said = refusal(top_eigenpairs, as_operator(objective), 4, tol=1e-9, progress=leave)
    print(f"{time.perf_counter() - start:.1f} s: {said}", flush=True)
    os._exit(0)


def plain_net(): return built(lambda: nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)), seed=3)


def public(mesh):
    "A number from every public function that takes an operator or an objective; of explorers, what they say."
    h, net, X, y = hessnb, plain_net(), 2 * randn(25, 2, seed=4), torch.arange(25) % 3
    batches = list(zip(X.split([10, 10, 5]), y.split([10, 10, 5]), strict=True))
    o = Objective(net, batches, mesh=mesh, weight_decay=.01)
    op, P = h.HessianOperator(o, memory_budget=0), o.n_params
    pairs, V = h.top_eigenpairs(op, 4, tol=1e-8), torch.eye(3, P, dtype=F64)
    pairs = dataclasses.replace(pairs, vectors=pairs.vectors * pairs.vectors[:, :1].sign())
    a, u = h.align(o, X, pairs.vectors), torch.linspace(-1, 1, P, dtype=F64)
    numbers = dict(
        ggn=lambda: h.GGNOperator(o).matvec(u), empirical=lambda: h.FisherOperator(o, "empirical").matvec(u),
        fisher=lambda: h.FisherOperator(o, n_samples=300).matvec(u), rows=lambda: op.matmat(V),
        dense=lambda: op.to_dense(), all=lambda: h.dense_eigenpairs(op).values, top=lambda: pairs.values,
        refine=lambda: refine(pairs, op).values, both=lambda: h.top_eigenpairs(op, 4, which="BE").values,
        few=lambda: h.top_eigenpairs(op, 3, tol=1e-8, basis_bytes=P * 8 * 15 // (1 if mesh is None else mesh.size())
                                     ).values,
        nonzero=lambda: h.nonzero_eigenpairs(op, tol=1e-8).values, trace=lambda: h.trace(op).value,
        shifted=lambda: h.top_eigenpairs(op + h.GGNOperator(o).shift(.1), 2, tol=1e-9).values,
        exact=lambda: h.trace(op, exact=True).value, density=lambda: h.spectral_density(op, n_steps=9, n_probes=3
            ).nodes,
        until=lambda: eigenpairs_until(op, lambda v, W: len(v) >= 5 and W.shape[1] == P, k=3, tol=1e-8).values,
        cosines=lambda: h.gradient_cosines(o, X), align=lambda: a.cosines, structure=lambda: h.class_structure(
            o, X, pairs).by_class.explained, plane=lambda: h.scan_plane(o, X, pairs.vectors, n=5).predictions,
        curves=lambda: sum(map(len, h.trace_boundary(o, X, n=12, refine=0).segments)),
        design=lambda: h.design_input(o, pairs.vectors[0], X[:2], n_steps=5).inputs,
        points=lambda: h.boundary_points(o, X, n=5).points,
        baseline=lambda: h.random_baseline(o, X).mean, measure=lambda: h.generalization_measure(a, threshold=.3).value,
        directions=lambda: h.effective_directions(a, n_bootstrap=5).value, resolved=lambda: h.resolve_measure(
            op, X, k=4, max_pairs=9).directions.value, complexity=lambda: h.boundary_complexity(o, X, n=20).value,
        margin=lambda: h.estimate_margin(o, X, pairs, n_candidates=2).value, profile=lambda: h.margin_profile(
            o, X[:10], n_searched=10).values, table=lambda: h.eigenvector_table(o, X, pairs).examples,
        moved=lambda: o.at(o.theta + .1).value(), single=lambda: o.to(F32).grad(), decayed=lambda: o.value(),
    )
    found, said = {}, {}
    for name, fn in numbers.items():
        try: found[name] = torch.as_tensor(fn()).double()
        except Exception as e: said[name] = f"{type(e).__name__}: {e}"
    error = h.sampling_error(op, pairs, n_groups=5)
    found["sampling"] = torch.cat([error.values, (error.standard_error > 0).double()])
    explorers = dict(Workbook=lambda: h.Workbook(o), SpectrumExplorer=lambda: h.SpectrumExplorer(o, pairs),
                     BoundaryExplorer=lambda: h.BoundaryExplorer(o, pairs),
                     EigenvectorSliders=lambda: h.EigenvectorSliders(o, pairs))
    if mesh is not None: said |= {name: refusal(fn) for name, fn in explorers.items()}
    if mesh is not None: said["pickle"] = refusal(pickle.dumps, o)
    return dict(found, said=said)


def examined(mesh):
    "The whole examination of one network, and a comparison."
    X, y = 2 * randn(25, 2, seed=4), torch.arange(25) % 3
    more = {} if mesh is None else dict(mesh=mesh)
    e = hessnb.examine(plain_net(), (X, y), k=5, pairs=6, n_candidates=3, **more)
    return {name: torch.as_tensor(value).double() for name, value in dict(
        loss=e.train_loss, accuracy=e.train_accuracy, norm=e.param_norm, values=e.pairs.values, trace=e.trace.value,
        negative=e.most_negative, margin=e.margin.value, complexity=e.complexity.value, measure=e.measure.value,
        directions=e.directions.value).items()}


TASKS = dict(everything=everything, idle=idle, held=held, wrapped=wrapped, public=public, examined=examined)


def run(tasks, out):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if tasks == "dies": dies(mesh)
    torch.save({task: TASKS[task](mesh) for task in tasks.split(",")}, f"{out}.{dist.get_rank()}")


def main(tasks, out):
    dist.init_process_group("gloo", timeout=timedelta(seconds=50))
    run(tasks, out)
    gc.collect()  # a process group that something holds keeps its threads, and may abort the interpreter at its end
    dist.destroy_process_group()


if __name__ == "__main__": main(*sys.argv[1:])
