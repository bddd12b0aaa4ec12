"""Where do the largest eigenvalue and the batch sharpness go while stochastic gradient descent trains?

    python benchmarks/batch_sharpness.py                         three seeds, about five minutes, to a CSV
    python benchmarks/batch_sharpness.py --seeds 1 --out /tmp/batch.csv

Data, network, loss and loop are those of `edge_of_stability.py`; the initial weights are half as large, so that the
first sharpness is below 2/eta. Batch sharpness is the mean over 16 random batches of g H g / |g|^2, where g and H are
the batch's own gradient and Hessian.
"""
import argparse
from collections.abc import Iterator
from pathlib import Path

from edge_of_stability import descend, half_squares, network, write

ETA, SMALL, SCALE = 1., .2, .5  # step size; one that is too small; of the initial weights
BATCHES, FEW = (16, 64, 1000), 8  # examples of a step; too few for this step size
TIME, RECORDS = 2000., 30  # steps times step size; rows of a run
HEADER = ("kind", "seed", "eta", "batch", "step", "loss", "sharpness", "batch_sharpness", "batch_sharpness_error")


def runs(seeds: int) -> Iterator[Iterator[dict]]:
    "Rows of all runs, run by run."
    kinds = [("squares", ETA, batch, seeds) for batch in BATCHES]
    for kind, eta, batch, n in [*kinds, ("few examples", ETA, FEW, seeds), ("small step", SMALL, FEW, min(2, seeds))]:
        for seed in range(n):
            yield descend(kind, seed, eta, half_squares, model=network(seed, scale=SCALE), batch=batch,
                          duration=TIME, records=RECORDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("nbs/results/batch_sharpness.csv"))
    options = parser.parse_args()
    write(options.out, HEADER, runs(options.seeds))


if __name__ == "__main__": main()
