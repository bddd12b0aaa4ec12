"Tables and a plot of what `peers.py` has measured."
import argparse
import json
import os
import platform
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from peer_problems import NETWORKS, Problem
from peer_solvers import SOLVERS


class Rows:
    "Finished runs, in a file with a line for each."
    def __init__(self, path: Path):
        self.path = path
        self.rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    def find(self, **key) -> list[dict]: return [r for r in self.rows if all(r.get(k) == v for k, v in key.items())]
    def add(self, **row) -> dict:
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as f: f.write(json.dumps(row) + "\n")
        return row


def medians(rows: Rows) -> Iterator[dict]:
    "For every problem and solver: median and spread of the repetitions."
    measured = rows.find(part="pairs")
    first = {r["problem"]: (list(NETWORKS).index(r["network"]), r["n"], r.get("curvature") == "ggn", r["dtype"],
                            -r["tol"], r["k"]) for r in measured}
    for problem, solver in sorted({(r["problem"], r["solver"]) for r in measured},
                                  key=lambda key: (first[key[0]], list(SOLVERS).index(key[1]))):
        found = rows.find(part="pairs", problem=problem, solver=solver)
        failed = [r["failed"] for r in found if "failed" in r]
        if failed:
            yield dict(problem=problem, solver=solver, failed=failed[0])
            continue
        p = Problem(**{k: found[0][k] for k in asdict(Problem("", 0)) if k in found[0]})
        seconds = [r["seconds"] for r in found]
        yield dict(problem=problem, solver=solver, **asdict(p), n_params=found[0]["n_params"], runs=len(found),
                   threads=found[0]["threads"], seconds=statistics.median(seconds), low=min(seconds), high=max(seconds),
                   cold=statistics.median(r["cold"] for r in found),
                   mib=statistics.median(r["mib"] for r in found),
                   products=statistics.median(r["products"] for r in found), residual=max(r["residual"] for r in found),
                   overlap=max(r["overlap"] for r in found),
                   reached=all(r["residual"] <= p.goal and r["overlap"] < .1 for r in found))


def table(rows: list[dict]) -> str:
    "Markdown: one line for each problem and solver; the last column compares solvers that reached the goal."
    lines = ["| problem | solver | runs | seconds, median (range) | cold | MiB | products | worst true residual | "
             "time against hessnb |", "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    base = {r["problem"]: r["seconds"] for r in rows if r["solver"] == "hessnb" and r.get("reached")}
    for r in rows:
        if "failed" in r:
            lines.append(f"| {r['problem']} | {r['solver']} | | {r['failed']} | | | | | |")
            continue
        compared = r["reached"] and r["problem"] in base
        against = f"{r['seconds'] / base[r['problem']]:.2f}" if compared else "goal not reached"
        lines.append(f"| {r['problem']} | {r['solver']} | {r['runs']} | {r['seconds']:.3g} ({r['low']:.3g} to "
                     f"{r['high']:.3g}) | {r['cold']:.3g} | {r['mib']:.0f} | {r['products']:.0f} | "
                     f"{r['residual']:.1e} | {against} |")
    return "\n".join(lines)


def exponent(points: list[dict]) -> float:
    return float(np.polyfit(np.log([p["x"] for p in points]), np.log([p["seconds"] for p in points]), 1)[0])


def summarise(args: argparse.Namespace, rows: Rows, axes: Iterable[str]) -> None:
    "Write `peers.md`, `peers.json` and `peers.png`."
    pairs, extras = list(medians(rows)), [r for r in rows.find(part="extra") if "failed" not in r]
    curves = {axis: sorted((r for r in extras if r["name"][:2] == ["scaling", axis]), key=lambda r: r["x"])
              for axis in axes}
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
                 platform.machine())
    machines = sorted({r["machine"] for r in rows.rows if "machine" in r})  # on a GPU the rows may come from elsewhere
    kernels = " and ".join(sorted({r["kernels"] for r in rows.rows if "kernels" in r}))
    used = f"kernels for {kernels}, " if kernels else ""  # rows of older versions do not say
    here = f"{os.cpu_count()} cores of {model}, {used}torch {torch.__version__}"
    where = "; ".join(machines) or here
    how = "All runs of a problem in one process" if machines else "Every run in a process of its own"
    lines = [f"Measured on {where}. {how}, interleaved. Threads: "
             f"{', '.join(sorted({str(r['threads']) for r in pairs if 'threads' in r}))}. Time limit: {args.limit} s.",
             "", table(pairs), ""]
    units = dict(products="seconds", all_pairs="seconds, pairs and products", alignments="seconds, largest difference",
                 start_up="seconds")
    for r in extras:
        if r["name"][0] not in ("scaling", "profile"):
            lines.append(f"- {' '.join(r['name'])} ({units[r['name'][0]]}): " +
                         ", ".join(f"{k} {v:.4g}" for k, v in r.items() if isinstance(v, (int, float))))
    lines += [f"- seconds grow as {axis}^{exponent(points):.2f} ({points[0]['x']} to {points[-1]['x']})"
              for axis, points in curves.items() if len(points) > 2]
    lines += ["", *profiles([r for r in extras if r["name"][0] == "profile"])]
    (args.out / "peers.md").write_text("\n".join(lines) + "\n")
    (args.out / "peers.json").write_text(json.dumps(dict(machine=where, pairs=pairs, extras=extras), indent=1) + "\n")
    plot(args.out / "peers.png", pairs, curves)
    print("\n".join(lines))


def profiles(rows: list[dict]) -> list[str]:
    "Markdown: for every profiled search, the seconds of each part, with its number of products."
    if not rows: return []
    parts = ("set-up", "recording", "search products", "probe products", "checks products")
    lines = ["Where the time of a search goes (mean; in brackets the number of products; algebra is all that is not "
             "in another column):", "",
             "| search | seconds | " + " | ".join(p.replace("checks products", "products of the certificate")
                                                  for p in parts) + " | algebra | product / gradient |",
             "| --- " * (len(parts) + 4) + "|"]
    for r in rows:
        r = r | dict(recording=r.get("recording", 0.) + r.get("recording products", 0.))  # of earlier rows
        shown = [f"{r.get(p, 0.):.3g}" + (f" ({r[f'n {p}']:.3g})" if r.get(f"n {p}") else "") for p in parts]
        n, took = (sum(r.get(key + p, 0.) for p in parts[2:]) for key in ("n ", ""))
        network, size, k, tol, dtype = r["name"][1:]
        lines.append(f"| {network}, N={int(size):,}, k={k}, tol={tol}, {dtype} | {r['total']:.3g} | "
                     f"{' | '.join(shown)} | {r['total'] - sum(r.get(p, 0.) for p in parts):.3g} | "
                     f"{took / n / r['gradient']:.3g} |")
    return [*lines, ""]


def plot(path: Path, rows: list[dict], curves: dict[str, list[dict]]) -> None:
    "Left: every solver's time over hessnb's where both reached the goal. Right: seconds over N, P, k, with exponents."
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import matplotlib.ticker
    base = {r["problem"]: r for r in rows if r["solver"] == "hessnb" and r.get("reached")}
    if not base: return
    names, solvers = list(base), [s for s in SOLVERS if s != "hessnb"
                                  and any(r["solver"] == s and r.get("reached") for r in rows)]
    shown = {axis: points for axis, points in curves.items() if len(points) > 2}
    fig = plt.figure(figsize=(10 if shown else 7, 1.4 + .27 * len(names)), layout="constrained")
    left, *right = fig.subfigures(1, 2, width_ratios=[2.6, 1]) if shown else [fig]
    ax = left.subplots()
    ax.axvline(1, color="k", lw=1)
    for solver, marker in zip(solvers, "|osD^vP*X"):
        mine = [r for r in rows if r["solver"] == solver and r.get("reached") and r["problem"] in base]
        ax.plot([r["seconds"] / base[r["problem"]]["seconds"] for r in mine], [names.index(r["problem"]) for r in mine],
                marker, ms=7 if marker == "|" else 5, alpha=.8, label=solver)
    labels = []
    for name in names:
        p = Problem(**{k: base[name][k] for k in asdict(Problem("", 0))})
        kind = ", GGN" if p.curvature == "ggn" else ""
        labels.append(f"{p.network}{kind}, N={p.n:,}, k={p.k}, tol={p.tol:g}, {p.dtype}: {base[name]['seconds']:.3g} s")
    ax.set(yticks=range(len(names)), yticklabels=labels, xscale="log",
           xlabel="time relative to hessnb (left of the line: faster)",
           title="The same eigenpairs, at equal true residual")
    ax.set_xticks([t for t in (.25, .5, 1, 2, 3, 4, 6, 10, 20, 50) if ax.get_xlim()[0] < t < ax.get_xlim()[1]])
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    ax.tick_params(axis="y", labelsize=8)
    ax.grid(axis="x", alpha=.3)
    ax.invert_yaxis()
    left.legend(fontsize=8, loc="outside lower center", ncols=3)
    for ax, (axis, points) in zip(right[0].subplots(len(shown), 1) if shown else [], shown.items()):
        ax.loglog([p["x"] for p in points], [p["seconds"] for p in points], "o-", ms=4)
        ax.set(xlabel=dict(N="examples N", P="parameters P", k="pairs k")[axis], ylabel="seconds",
               title=f"{'search' if axis == 'k' else 'product'}: {axis}$^{{{exponent(points):.2f}}}$")
        for side in (ax.xaxis, ax.yaxis): side.set_minor_formatter(matplotlib.ticker.NullFormatter())
    fig.savefig(path, dpi=100)
    plt.close(fig)
