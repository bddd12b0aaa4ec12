"""Eigenpairs by several processes: `torchrun --nproc-per-node 2 cluster.py`. On GPUs each process takes one."""
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from hessnb import HessianOperator, Objective, top_eigenpairs, trace
def network():
    "A stand-in for a trained network: the same weights in every process."
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 5)).double().eval()


def data():
    "All of the data, in every process; each then takes its share of them."
    random = torch.Generator().manual_seed(1)
    X = torch.randn(1000, 20, generator=random, dtype=torch.float64)
    return X, X[:, :5].argmax(1)


def analyse(device):
    "What every process runs; when it returns, nothing holds the process group, and that can end."
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    X, y = data()
    objective = Objective(network().to(device), (X, y), mesh=mesh)
    op = HessianOperator(objective, memory_budget=0)  # nothing kept between products: parameters rest in shares
    pairs, total = top_eigenpairs(op, 5, tol=1e-4, progress=False), trace(op)
    if dist.get_rank() == 0:  # every process has the results, and one of them says so
        print(f"{mesh.size()} processes, {objective.n_examples:,} examples, {objective.n_own:,} of them here")
        print(pairs.values.tolist(), total)


def main():
    gpu = torch.cuda.is_available()
    if gpu: torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo", timeout=timedelta(minutes=10))
    try: analyse("cuda" if gpu else "cpu")
    finally: dist.destroy_process_group()


if __name__ == "__main__": main()
