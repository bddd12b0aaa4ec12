"""What do a product and a search take as a language model grows? Floating-point operations and memory, counted.

    python benchmarks/size.py                          every shape, each in a process of its own, to a CSV
    python benchmarks/size.py --shapes 12x768 --out /tmp/size.csv

The shapes are those of GPT-2 (layers x width, 50,257 tokens, tied embedding) with random weights; 8 sequences of 64
tokens, float32, on the host. Operations are counted by torch; memory is the process's own, after what torch itself
takes (Linux). The line of `search` is what is resident in the middle of a search without its basis.
"""
import argparse
import csv
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hessnb import HessianOperator, Objective
from hessnb.curvature.krylov import Krylov

SHAPES = ("2x128", "4x256", "6x384", "8x512", "12x768")
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "1048576"}  # glibc gives back what is free, so that what is held is seen
SEQUENCES, LENGTH, VOCABULARY = 8, 64, 50257
HEADER = ("shape", "parameters", "tokens", "flop_forward", "flop_product", "at_rest_mib", "training_step_mib",
          "construction_mib", "product_mib", "search_mib")


class Block(nn.Module):
    "Attention and a dense layer, each behind a norm and beside a residual connection."
    def __init__(self, width: int):
        super().__init__()
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        wide = 4 * width
        self.dense = nn.Sequential(nn.Linear(width, wide), nn.GELU(approximate="tanh"), nn.Linear(wide, width))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.before(x)).unflatten(-1, (3, -1, min(64, x.shape[-1]))).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.dense(self.between(x))


class LanguageModel(nn.Module):
    "GPT-2's shape: logits `(B, VOCABULARY, T)`."
    def __init__(self, layers: int, width: int):
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(1024, width)
        self.blocks, self.last = nn.Sequential(*(Block(width) for _ in range(layers))), nn.LayerNorm(width)
        for p in self.parameters():
            if p.ndim > 1: nn.init.normal_(p, std=.02)

    def forward(self, x: Tensor) -> Tensor:
        z = self.last(self.blocks(self.tokens(x) + self.places.weight[:x.shape[1]]))
        return (z @ self.tokens.weight.T).transpose(1, 2)


class Memory:
    "What the process holds beyond what it held at first, MiB; the largest since the last look."
    def __init__(self):
        self.first = self.largest = self.now()
        threading.Thread(target=self._watch, daemon=True).start()

    def now(self) -> float:
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1024

    def _watch(self) -> None:
        while True:
            self.largest = max(self.largest, self.now())
            time.sleep(.05)

    def look(self) -> int:
        "The largest since the last look."
        largest, self.largest = max(self.largest, self.now()), self.now()
        return round(largest - self.first)


def measured(shape: str) -> list:
    "One line of the table."
    layers, width = map(int, shape.split("x"))
    torch.manual_seed(0)
    x = torch.randint(0, VOCABULARY, (SEQUENCES, LENGTH + 1))
    memory = Memory()
    model = LanguageModel(layers, width)
    P = sum(p.numel() for p in model.parameters())
    with FlopCounterMode(display=False) as forward, torch.no_grad(): model(x[:, :-1])
    memory.look()
    F.cross_entropy(model(x[:, :-1]), x[:, 1:]).backward()
    step = memory.look()
    model.zero_grad()
    objective = Objective(model, (x[:, :-1], x[:, 1:]))
    op = HessianOperator(objective)
    construction, rest = memory.look(), round(memory.now() - memory.first)
    v = torch.randn(P)
    with FlopCounterMode(display=False) as product: op.matvec(v)
    single = memory.look()
    del v
    krylov = Krylov(op, 15, home="disk")
    krylov.add(torch.randn(P))
    memory.look()
    for _ in range(2): krylov.expand()
    return [shape, P, SEQUENCES * LENGTH, forward.get_total_flops(), product.get_total_flops(), rest, step,
            construction, single, memory.look()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="layers x width")
    parser.add_argument("--out", type=Path, default=Path("nbs/results/size.csv"))
    parser.add_argument("--one", help="measure this shape here and print its line")
    options = parser.parse_args()
    if options.one:
        csv.writer(sys.stdout).writerow(measured(options.one))
        return
    with options.out.open("w", newline="") as file:
        csv.writer(file).writerow(HEADER)
        for shape in options.shapes:
            call = [sys.executable, __file__, "--one", shape]
            environment = os.environ | ALLOCATOR
            line = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
            print(line.strip())
            file.write(line.replace("\r\n", "\n"))
            file.flush()


if __name__ == "__main__": main()
