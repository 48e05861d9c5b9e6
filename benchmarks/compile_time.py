# SPDX-License-Identifier: Apache-2.0
"""Time to compile a coupling flow with its depth: equal couplings are scanned over.

``python -m benchmarks.compile_time``: gradient of the loss, draws and densities, depths 4 and 12.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, random

from benchmarks.environment import ROOT, markdown, write
from numpyro_amortized.networks import CouplingFlow

DEPTHS, REPEATS = (4, 12), 5
SIZE, CONDITION_SIZE, BATCH_SIZE = 5, 32, 256
BOUND = 1.3


def programs(depth: int) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """:return: name to a function and its arguments, of a flow with this depth."""
    flow = CouplingFlow(SIZE, CONDITION_SIZE, depth=depth, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(flow)
    x, context = jnp.zeros((BATCH_SIZE, SIZE)), jnp.zeros((BATCH_SIZE, CONDITION_SIZE))

    def loss(state: nnx.State, key: Array, x: Array, context: Array) -> Array:
        return nnx.merge(graphdef, state).loss(key, x, context).mean()

    def draw(state: nnx.State, key: Array, context: Array) -> Array:
        return nnx.merge(graphdef, state).sample(key, context)

    def density(state: nnx.State, x: Array, context: Array) -> Array:
        return nnx.merge(graphdef, state).log_prob(x, context)

    key = random.key(0)
    return {
        "gradient": (jax.value_and_grad(loss), (state, key, x, context)),
        "draws": (draw, (state, key, context)),
        "densities": (density, (state, x, context)),
    }


def seconds(function: Callable[..., Any], arguments: tuple[Any, ...]) -> float:
    """:return: processor time to trace and compile, with empty caches."""
    jax.clear_caches()
    begin = time.process_time()
    jax.jit(partial(function)).lower(*arguments).compile()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results.json")
    options = parser.parse_args()
    cases = {depth: programs(depth) for depth in DEPTHS}
    rows = []
    for name in cases[DEPTHS[0]]:
        # depths take turns, so that a busy machine meets both alike
        runs = [[seconds(*cases[depth][name]) for depth in DEPTHS] for _ in range(REPEATS)]
        shallow, deep = map(statistics.median, zip(*runs, strict=True))
        rows.append({"program": name, "seconds": [shallow, deep], "ratio": deep / shallow})
    write(options.out, "compile_time", {"depths": DEPTHS, "rows": rows})
    cells = [[r["program"], *(f"{s:.2f}" for s in r["seconds"]), f"{r['ratio']:.2f}"] for r in rows]
    print(markdown(["program", *(f"depth {d}, s" for d in DEPTHS), "ratio"], cells))
    if max(row["ratio"] for row in rows) > BOUND:
        raise SystemExit(f"the greatest ratio is above {BOUND}")


if __name__ == "__main__":
    main()
