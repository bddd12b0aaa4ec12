"""The peers on one GPU within a few minutes, the most telling problems first.

    python benchmarks/gpu.py                         8 minutes; rows and tables in benchmarks/results/<name of the card>
    python benchmarks/gpu.py --smallest              one small problem, on any device

The runs are those of `peers.py`, all in this process and interleaved: eager ones, `torch.compile` with SciPy, ours, and
ours with a search in TF32. Each problem may take 2.5 times its share of the time that is left, each solver half of that
(to compile takes most of a minute); a run that takes longer is cut and recorded as failed. Rows are written as they
come; what has rows is not measured again.
"""
import argparse
import re
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from peer_problems import Problem
from peer_solvers import LADDER, SOLVERS
from peer_tables import Rows, summarise
from peers import load_peers, together

ORDER = [("encoder", 256, 5), ("resnet", 256, 5), ("cnn", 450, 20), ("encoder", 256, 20), ("lenet", 5000, 5),
         ("resnet", 256, 20), ("lenet", 1000, 20), ("cnn", 450, 5), ("lenet", 1000, 5), ("mlp", 150, 5)]
ASKED = [s for s in SOLVERS if s not in ("hessnb, no probe", "PyHessian", *LADDER)] + list(LADDER)  # ladders take long


def card(device: str) -> str:
    "The name of the device, for a folder."
    return re.sub(r"\W+", "-", torch.cuda.get_device_name()) if device == "cuda" else device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smallest", action="store_true", help="the smallest problem alone")
    parser.add_argument("--solvers", nargs="*", default=ASKED, choices=ASKED)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--work", type=Path, default=Path(".bench/models"), help="weights of the networks")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    args.out, args.limit = args.out / card(args.device), 60 * args.minutes
    rows, order = Rows(args.out / "peers.jsonl"), ORDER[-1:] if args.smallest else ORDER
    load_peers()
    for i, what in enumerate(order):
        problem = replace(Problem(*what), device=args.device)
        share = min(1, 2.5 / (len(order) - i)) * (end - time.monotonic())
        new = [s for s in args.solvers if not rows.find(part="pairs", problem=problem.key, solver=s)]
        for result in together(problem, args.work, new, args.repetitions, share, share / 2) if new else ():
            where = dict(machine=args.device) | result  # on a GPU its name is in the result
            row = rows.add(part="pairs", problem=problem.key, **asdict(problem), **where)
            print(problem.key, {k: row[k] for k in ("solver", "seconds", "products", "residual", "failed") if k in row},
                  flush=True)
    summarise(args, rows, ())


if __name__ == "__main__": main()
