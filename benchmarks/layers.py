"""All blocks of a 12-layer encoder, in one pass and by the loop over `params=`: products, seconds, and agreement.

    python benchmarks/layers.py [--examples 32] [--tokens 8] [--width 64] [--by module] [-k 3] [--tol 1e-3]

One thread; both ways in one process, in turns, so that what else the machine does meets both. The loop is what a user
writes: for each layer an objective with `params=`, a `HessianOperator`, `top_eigenpairs`."""
import argparse
import time
import warnings

import torch
from torch import nn

from hessnb.curvature.hessian import HessianOperator
from hessnb.curvature.layer_pairs import layer_eigenpairs
from hessnb.curvature.layers import group_params
from hessnb.curvature.objective import Objective
from hessnb.curvature.top import top_eigenpairs


class Encoder(nn.Module):
    "Tokens `(N, T)` in, scores of four classes out."
    def __init__(self, width, tokens, layers=12):
        super().__init__()
        self.embed, self.position = nn.Embedding(50, width), nn.Parameter(.1 * torch.randn(tokens, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0., batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 4)
    def forward(self, x): return self.head(self.encoder(self.embed(x) + self.position).mean(1))


def trained(args):
    "The encoder after some steps on labels that hang on the first token."
    torch.manual_seed(0)
    model = Encoder(args.width, args.tokens)
    X = torch.randint(0, 50, (args.examples, args.tokens))
    y, adam = X[:, 0] % 4, torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(args.steps):
        adam.zero_grad()
        nn.functional.cross_entropy(model(X), y).backward()
        adam.step()
    model.zero_grad()
    return model.eval().to(getattr(torch, args.dtype)), (X, y)


def timed(work):
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, time.process_time() - cpu, time.perf_counter() - wall


def by_loop(model, data, layers, args, parts):
    found = {}
    for layer, names in layers.items():
        op, cpu, _ = timed(lambda: HessianOperator(Objective(model, data, params=names)))
        found[layer], search, _ = timed(lambda: top_eigenpairs(op, min(args.k, op.shape[0]), tol=args.tol))
        parts["setup"] += cpu
        parts["search"] += search
    return found


def main():
    parser = argparse.ArgumentParser()
    for name, default in dict(examples=32, tokens=8, width=64, k=3, tol=1e-3, steps=30, repeats=1).items():
        parser.add_argument("-k" if name == "k" else f"--{name}", type=type(default), default=default)
    parser.add_argument("--by", default="module")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, data = trained(args)
    by = [f"encoder.layers.{i}.*" for i in range(12)] if args.by == "layer" else args.by
    layers = group_params(dict(model.named_parameters()), by)
    print(args, len(layers), "blocks", flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(args.repeats):
            parts = dict(setup=0., search=0.)
            one, cpu, wall = timed(lambda: layer_eigenpairs(model, args.k, by=by, data=data, tol=args.tol))
            bare, bare_cpu, _ = timed(lambda: layer_eigenpairs(model, args.k, by=by, data=data, tol=args.tol,
                                                               n_probes=0, fisher=False))
            loop, loop_cpu, loop_wall = timed(lambda: by_loop(model, data, layers, args, parts))
            done = int(one.converged.sum()), int(sum(p.converged.all() for p in loop.values()))
            products = sum(p.n_matvecs + p.n_certify for p in loop.values())
            apart = max(((one[n].values - p.values).abs().max() / p.values.abs().max()).item() for n, p in loop.items())
            print(f"one pass {cpu:.1f} s ({wall:.1f} wall), without traces and gradients {bare_cpu:.1f} s; loop "
                  f"{loop_cpu:.1f} s ({loop_wall:.1f} wall: setup {parts['setup']:.1f}, search {parts['search']:.1f}); "
                  f"ratio {cpu / loop_cpu:.2f} ({wall / loop_wall:.2f} wall), without {bare_cpu / loop_cpu:.2f}; "
                  f"products {one.n_matvecs} and {products}; eigenvalues apart by {apart:.1e} of the largest; "
                  f"converged {done[0]} and {done[1]}", flush=True)
    print(one)


if __name__ == "__main__":
    main()
