# SPDX-License-Identifier: Apache-2.0
"""Curves of cost: time against simulations, observations, parameters, data sets and devices.

``python -m benchmarks.cost``: independent normal observations, the default networks; compiling is
left out. Fails where the cost of a step or of draws grows faster than the number of observations.
``--picture FILE`` draws the curves. Devices are those of one CPU, each in a process of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpyro
import numpyro.distributions as dist
from jax import random
from jax.typing import ArrayLike
from matplotlib.figure import Figure

import numpyro_amortized as npa
from benchmarks.environment import ROOT, markdown, write

EPOCHS, NUM_BATCHES, NUM_SAMPLES, REPEATS = 6, 50, 1_000, 5
NOISE = 1.25  # of a time measured on a shared machine
Row = dict[str, float]


def normals(size: int, x: ArrayLike | None = None) -> None:
    """``size`` independent observations of a normal with unknown mean and scale."""
    location = numpyro.sample("location", dist.Normal(0, 1))
    scale = numpyro.sample("scale", dist.HalfNormal(1))
    with numpyro.plate("observations", size):
        numpyro.sample("x", dist.Normal(location, scale), obs=x)


def locations(size: int, x: ArrayLike | None = None) -> None:
    """``size`` unknown means, each seen once."""
    location = numpyro.sample("location", dist.Normal(0, 1).expand([size]).to_event(1))
    numpyro.sample("x", dist.Normal(location, 1).to_event(1), obs=x)


def seconds(call: Callable[[], Any]) -> float:
    """:return: duration of a call, until its arrays are ready."""
    begin = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begin


def steady(call: Callable[[], Any]) -> float:
    """:return: median duration of a call that has compiled, in milliseconds."""
    jax.block_until_ready(call())
    return 1e3 * statistics.median(seconds(call) for _ in range(REPEATS))


def trained(model: Callable[..., None]) -> tuple[npa.ContinuousApproximator, float]:
    """:return: an approximator after a short training online, and milliseconds of a step."""
    approximator = npa.ContinuousApproximator(npa.ModelSimulator(model, observed=("x",)))
    history = approximator.fit(
        random.key(0), epochs=EPOCHS, num_batches=NUM_BATCHES, progress_bar=False
    )
    return approximator, 1e3 * statistics.median(history.seconds[1:].tolist()) / NUM_BATCHES


def step_and_draws(model: Callable[..., None]) -> Row:
    """:return: milliseconds of a training step, and of 1,000 draws for one data set."""
    approximator, step = trained(model)
    observed = {"x": approximator.source.sample(random.key(1), ())["x"]}
    draw = partial(approximator.sample, random.key(2), NUM_SAMPLES, observed)
    return {"training step": step, "1,000 draws": steady(draw)}


def simulations(size: int) -> Row:
    """:return: milliseconds to simulate a bank, and of a pass over it."""
    simulator = npa.ModelSimulator(partial(normals, 10), observed=("x",))
    bank = simulator.sample(random.key(0), size)
    approximator = npa.ContinuousApproximator(simulator)
    history = approximator.fit(random.key(1), dataset=bank, epochs=EPOCHS, progress_bar=False)
    return {
        "simulation": steady(lambda: simulator.sample(random.key(2), size)),
        "a pass over the bank": 1e3 * statistics.median(history.seconds[1:].tolist()),
    }


def observations(size: int) -> Row:
    return step_and_draws(partial(normals, size))


def parameters(size: int) -> Row:
    return step_and_draws(partial(locations, size))


def datasets(size: int) -> Row:
    """:return: milliseconds of 1,000 draws for each of several data sets, ten at a time."""
    approximator, _ = trained(partial(normals, 10))
    observed = {"x": approximator.source.sample(random.key(1), size)["x"]}
    draw = partial(approximator.sample, random.key(2), NUM_SAMPLES, observed, batch_size=10)
    return {"1,000 draws for each": steady(draw)}


def devices(size: int) -> Row:
    """:return: milliseconds of a training step over several devices of this CPU."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={size}"
    command = [sys.executable, "-m", "benchmarks.cost", "--step"]
    environment = os.environ | {"XLA_FLAGS": flags}
    child = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(child.stdout.splitlines()[-1])


class Curve(NamedTuple):
    """What is measured at which sizes.

    :param measure: size to milliseconds.
    :param sizes: numbers of what the curve is named after.
    """

    measure: Callable[[int], Row]
    sizes: Sequence[int]


CURVES = {
    "simulations": Curve(simulations, (1_000, 10_000, 100_000)),
    "observations": Curve(observations, (10, 100, 1_000)),
    "parameters": Curve(parameters, (2, 10, 50, 200)),
    "data sets": Curve(datasets, (1, 10, 100, 1_000)),
    "devices": Curve(devices, (1, 2, 4, 8)),
}


def measured(rows: Sequence[Row]) -> list[str]:
    """:return: names of the costs of a curve."""
    return [key for key in rows[0] if key != "size"]


def growth(rows: Sequence[Row], key: str) -> float:
    """:return: largest growth of a cost from one size to the next, as a multiple of linear."""
    return max(b[key] / a[key] / (b["size"] / a["size"]) for a, b in pairwise(rows))


def table(name: str, rows: Sequence[Row]) -> str:
    """:return: a Markdown table of one curve."""
    costs = measured(rows)
    cells = [[f"{row['size']:,}", *(f"{row[key]:.3g}" for key in costs)] for row in rows]
    return markdown([name, *(f"{key}, ms" for key in costs)], cells)


def picture(found: Mapping[str, Sequence[Row]]) -> Figure:
    """:return: a panel for each curve, with logarithmic axes."""
    figure = Figure(figsize=(3.2 * len(found), 3), layout="constrained")
    for axes, (name, rows) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        sizes = [row["size"] for row in rows]
        costs = {key: [row[key] for row in rows] for key in measured(rows)}
        for key, values in costs.items():
            axes.loglog(sizes, values, "o-", label=key)
        highest = max(map(max, costs.values()))
        axes.set(xlabel=name, ylabel="milliseconds", ylim=(1, 3 * highest))
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.legend(frameon=False, fontsize="small")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--curves", nargs="+", default=list(CURVES), choices=list(CURVES))
    parser.add_argument("--step", action="store_true", help="only print a training step's cost")
    parser.add_argument("--picture", type=Path, help="where a picture of the curves goes")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results.json")
    options = parser.parse_args()
    if options.step:
        print(json.dumps({"training step": trained(partial(normals, 100))[1]}))
        return
    found = {
        name: [{"size": size} | CURVES[name].measure(size) for size in CURVES[name].sizes]
        for name in options.curves
    }
    write(options.out, "cost", found)
    for name, rows in found.items():
        print(table(name, rows), end="\n\n")
    if options.picture is not None:
        picture(found).savefig(options.picture, dpi=80)
    if "observations" in found:
        check(found["observations"])


def check(rows: Sequence[Row]) -> None:
    """See that costs grow no faster than the number of observations."""
    worst = max(growth(rows, key) for key in measured(rows))
    if worst > NOISE:
        raise SystemExit(f"cost grows {worst:.2f} times as fast as the number of observations")


if __name__ == "__main__":
    main()
