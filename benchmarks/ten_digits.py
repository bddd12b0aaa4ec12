"""What the top eigenvectors of a network for all ten digits contrast: the result that the tutorial on digits reads.

    python benchmarks/ten_digits.py                    computes, writes nbs/results/ten_digits.npz
    python benchmarks/ten_digits.py --k 10 --out few.npz

The paper's convolutional network, trained on 1,500 images of the ten digits to a loss of .001 (seed 0: from the zoo, so
that everyone gets this file); its top eigenpairs in float64; the alignments of the training images. About six minutes
of processor time on one core and 1.5 GB of memory; the seconds are printed and written, with the seed and the versions.
"""
import argparse
import platform
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

import hessnb
from hessnb import (
    HessianOperator,
    Objective,
    align,
    count_outliers,
    effective_directions,
    eigenvector_table,
    gradient_cosines,
    top_eigenpairs,
)
from hessnb.curvature.layers import layer_mass
from hessnb.paper.data import load_data
from hessnb.paper.zoo import find_minimum

RANDOM = 9  # vectors drawn at random to compare with


def compute(k: int, seed: int) -> dict[str, np.ndarray]:
    "All that the tutorial shows, as arrays."
    began = time.process_time()
    data = load_data("mnist10")
    minimum = find_minimum("normal", data, seed=seed)
    print(f"{minimum}, {time.process_time() - began:.0f} s", flush=True)
    objective = Objective(minimum.model, (data.X_train, data.y_train)).to(torch.float64)
    op = HessianOperator(objective)
    pairs = top_eigenpairs(op, k)
    print(f"{pairs}, {time.process_time() - began:.0f} s", flush=True)
    if not pairs.converged.all(): raise RuntimeError(f"not all pairs converged: {pairs}")
    most_negative = top_eigenpairs(op, 1, which="SA", tol=1e-3).values[0].item()
    draw = torch.Generator().manual_seed(seed)
    random = torch.randn(RANDOM, objective.n_params, generator=draw, dtype=torch.float64)
    alignment, by_chance = (align(objective, data.X_train, vectors) for vectors in (pairs.vectors, random))
    table, mass = eigenvector_table(objective, data.X_train, pairs), layer_mass(objective, pairs.vectors)
    cosines = gradient_cosines(objective, data.X_train)
    directions = effective_directions(alignment, n_params=objective.n_params, cosines=cosines)
    outliers = count_outliers(pairs.values, negative=most_negative)
    scores = objective.predict(data.X_train)
    predictions, runner_up = scores.topk(2).indices.T
    print(f"{directions}\n{outliers}\n{table}", flush=True)
    small = lambda t: t.numpy().astype(np.int8)
    single = lambda t: t.numpy().astype(np.float32)
    versions = [f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in ("torch", "mlxtend"))]
    return dict(values=pairs.values.numpy(), residuals=pairs.residuals.numpy(), most_negative=most_negative,
                n_params=objective.n_params, cosines=single(alignment.cosines),
                random_cosines=single(by_chance.cosines), labels=small(data.y_train),
                predictions=small(predictions), runner_up=small(runner_up),
                pairs=small(table.pairs), contrast_of=single(table.contrast_of), explained=single(table.explained),
                layers=np.array(mass.names), layer_mass=single(mass.mass), layer_sizes=mass.sizes.numpy(),
                directions=np.array([directions.value, *directions.bounds]), coverage=directions.coverage,
                outliers=np.array([outliers.count, *outliers.stability]), outlier_threshold=outliers.threshold,
                train_loss=minimum.train_loss, train_accuracy=minimum.train_accuracy, seed=seed,
                test_accuracy=minimum.test_accuracy, versions=np.array([*versions, f"hessnb {hessnb.__version__}"]),
                cpu_seconds=time.process_time() - began)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, default=24, help="eigenpairs")
    parser.add_argument("--seed", type=int, default=0, help="of the initialisation and the batches")
    parser.add_argument("--threads", type=int, default=1)
    usual = Path(__file__).resolve().parent.parent / "nbs" / "results" / "ten_digits.npz"
    parser.add_argument("--out", type=Path, default=usual)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    result = compute(args.k, args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out, **result)
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB; {result['cpu_seconds']:.0f} s of processor time")


if __name__ == "__main__": main()
