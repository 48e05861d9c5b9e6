# SPDX-License-Identifier: Apache-2.0
"""What each default gives: trainings that differ from the defaults in one thing.

``python -m benchmarks.defaults``: for every task and variant one training on the same 10,000
simulations, judged by the mean log density of the parameters of 20,000 others given their data, in
nats, in the space of the parameters. The difference from the defaults is told; greater is better.
``--depth 6 --epochs 98 --no-spread`` starts from the defaults of the first search instead.
"""

import argparse
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, random
from optax import contrib

import numpyro_amortized as npa
from benchmarks.environment import ROOT, markdown, write
from benchmarks.tasks import TASKS
from numpyro_amortized.networks import Affine, CouplingFlow, DeepSet, Spline
from numpyro_amortized.training import default_optimizer, default_schedule

NUM_SIMULATIONS, NUM_JUDGED = 10_000, 20_000
NUM_BATCHES = 36  # of one pass of `fit` over such a bank
FIRST = "the defaults"  # from which the others differ in one thing


class Variant(NamedTuple):
    """What is trained.

    :param flow: options of the coupling flow.
    :param fit: options of ``fit``.
    :param adapter: options of ``Adapter.for_posterior``.
    :param spread: whether spreads join averages in deep sets.
    :param seed: of the training.
    """

    flow: Mapping[str, Any]
    fit: Mapping[str, Any]
    adapter: Mapping[str, Any]
    spread: bool
    seed: int


def averaged(
    inner: optax.GradientTransformation, decay: float, num_steps: int
) -> optax.GradientTransformation:
    """:return: an optimizer whose last step leads to the mean of past parameters.

    :param inner: the optimizer that makes the steps.
    :param decay: of the weights of past parameters, per step.
    :param num_steps: how many there are.
    """

    def init(params: optax.Params) -> tuple[optax.OptState, optax.Params, Array]:
        return inner.init(params), params, jnp.zeros((), int)

    def update(
        grads: optax.Updates, state: tuple[optax.OptState, optax.Params, Array], params: Any
    ) -> tuple[optax.Updates, tuple[optax.OptState, optax.Params, Array]]:
        inner_state, mean, count = state
        updates, inner_state = inner.update(grads, inner_state, params)
        mean = optax.incremental_update(optax.apply_updates(params, updates), mean, 1 - decay)
        updates = jax.tree.map(
            lambda u, m, p: jnp.where(count + 1 == num_steps, m - p, u), updates, mean, params
        )
        return updates, (inner_state, mean, count + 1)

    return optax.GradientTransformation(init, update)


def muon(num_steps: int) -> optax.GradientTransformation:
    """:return: Muon, which makes the steps of matrices orthogonal, with AdamW's schedule."""

    def matrices(params: optax.Params) -> Any:
        """The last two axes; others are those of stacked layers."""
        return jax.tree.map(
            lambda x: contrib.MuonDimensionNumbers(x.ndim - 2, x.ndim - 1) if x.ndim > 1 else None,
            params,
        )

    steps = contrib.muon(
        default_schedule(num_steps, 2e-3),
        weight_decay=1e-4,
        adam_weight_decay=1e-4,
        muon_weight_dimension_numbers=matrices,
        consistent_rms=0.2,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), steps)


def variants(depth: int, epochs: int, spread: bool) -> dict[str, Variant]:
    """What is compared.

    :param depth: pairs of couplings of the first and of what differs from it in another way.
    :param epochs: passes over the bank, likewise.
    :param spread: whether spreads join averages in their deep sets.
    :return: name to variant.
    """
    num_steps = epochs * NUM_BATCHES
    first = Variant({"depth": depth}, {"epochs": epochs}, {}, spread, seed=0)

    def flow(**options: Any) -> Variant:
        return first._replace(flow={**first.flow, **options})

    def fit(**options: Any) -> Variant:
        return first._replace(fit={**first.fit, **options})

    adamw = partial(default_optimizer, num_steps)
    constant = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=1e-4))
    unclipped = optax.adamw(optax.cosine_decay_schedule(2e-3, num_steps), weight_decay=1e-4)
    return {
        FIRST: first,
        "another seed": first._replace(seed=1),
        "no rejuvenation": fit(rejuvenation=0),
        "half the steps": fit(epochs=epochs // 2),
        "twice the steps": fit(epochs=2 * epochs),
        "batches of 64": fit(batch_size=64, epochs=epochs // 4),
        "batches of 1,024": fit(batch_size=1024, epochs=4 * epochs),
        "nothing held out, last parameters": fit(validation=0),
        "learning rate 5e-4": fit(optimizer=adamw(learning_rate=5e-4)),
        "learning rate 5e-3": fit(optimizer=adamw(learning_rate=5e-3)),
        "constant learning rate 1e-3": fit(optimizer=constant),
        "gradients not clipped, no warm-up": fit(optimizer=unclipped),
        "no weight decay": fit(optimizer=adamw(weight_decay=0.0)),
        "weight decay 1e-2": fit(optimizer=adamw(weight_decay=1e-2)),
        "averaged weights, decay .99": fit(optimizer=averaged(adamw(), 0.99, num_steps)),
        "Muon": fit(optimizer=muon(num_steps)),
        "prior not mapped to normal": first._replace(adapter={"prior_to_normal": False}),
        "deep sets without spreads": first._replace(spread=False),
        "affine couplings": flow(transform=Affine()),
        "splines of 4 bins": flow(transform=Spline(bins=4)),
        "splines of 16 bins": flow(transform=Spline(bins=16)),
        "2 pairs of couplings": flow(depth=2),
        "3 pairs of couplings": flow(depth=3),
        "6 pairs of couplings": flow(depth=6),
        "10 pairs of couplings": flow(depth=10),
        "3 pairs of couplings, twice the steps": flow(depth=3)._replace(fit={"epochs": 2 * epochs}),
        "widths 32, 32": flow(widths=(32, 32)),
        "widths 128, 128": flow(widths=(128, 128)),
        "one hidden layer of 64": flow(widths=(64,)),
        "ReLU": flow(activation=jax.nn.relu),
        "tanh": flow(activation=jax.nn.tanh),
    }


def judge(task_name: str, variant: Variant) -> dict[str, Any]:
    """Train once and judge the density.

    :param task_name: name of the task.
    :param variant: what is trained.
    :return: log densities of the judged simulations, ``(NUM_JUDGED,)``, and seconds of training.
    """
    simulator = npa.ModelSimulator(TASKS[task_name].model, observed=("x",))
    bank_key, judged_key, fit_key = random.split(random.key(0), 3)
    if variant.seed:
        fit_key = random.fold_in(fit_key, variant.seed)
    adapter = npa.Adapter.for_posterior(simulator, **variant.adapter)
    approximator = npa.ContinuousApproximator(
        simulator,
        adapter=adapter,
        inference_network=partial(CouplingFlow, **variant.flow),
        summary_network=None if variant.spread else partial(DeepSet, spread=False),
    )
    bank = simulator.sample(bank_key, NUM_SIMULATIONS)
    begin = time.perf_counter()
    approximator.fit(fit_key, dataset=bank, progress_bar=False, **variant.fit)
    seconds = time.perf_counter() - begin
    judged = jax.device_get(simulator.sample(judged_key, NUM_JUDGED))
    return {"log_prob": log_densities(approximator, judged), "seconds": seconds}


def log_densities(approximator: npa.ContinuousApproximator, data: Mapping[str, Array]) -> Any:
    """:return: log densities of the latents given the data, ``(num,)``."""
    names = (*approximator.inferred_sites, "x")
    return np.asarray(approximator.log_prob({name: data[name] for name in names}))


def compare(task_name: str, compared: Mapping[str, Variant]) -> dict[str, dict[str, float]]:
    """:return: variant to its difference from the first in nats, its error, and seconds."""
    found, first = {}, None
    for name, variant in compared.items():
        result = judge(task_name, variant)
        first = result["log_prob"] if first is None else first
        difference = result["log_prob"] - first
        found[name] = {
            "log_density": float(result["log_prob"].mean()),
            "difference": float(difference.mean()),
            "standard_error": float(difference.std() / NUM_JUDGED**0.5),
            "seconds": result["seconds"],
        }
        print(task_name, name, found[name], flush=True)
    return found


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """:return: a Markdown table of the differences, with their errors, and of the times' ratio."""
    tasks = list(found)
    rows = []
    for name in found[tasks[0]]:
        cells = [
            f"{found[task][name]['difference']:+.3f} ({found[task][name]['standard_error']:.3f})"
            for task in tasks
        ]
        ratios = [found[task][name]["seconds"] / found[task][FIRST]["seconds"] for task in tasks]
        rows.append([name, *cells, f"{np.median(ratios):.2f}"])
    return markdown(["variant", *(f"{task}, nats" for task in tasks), "time"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["two_moons", "slcp", "sir"])
    parser.add_argument("--variants", nargs="+", help="names of some of them")
    parser.add_argument("--depth", type=int, default=3, help="pairs of couplings of the first")
    parser.add_argument("--epochs", type=int, default=195, help="passes over the bank of the first")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results.json")
    parser.add_argument("--no-spread", action="store_true", help="first: no spreads in deep sets")
    options = parser.parse_args()
    known = variants(options.depth, options.epochs, not options.no_spread)
    if unknown := set(options.variants or ()) - known.keys():
        parser.error(f"--variants: expected some of {list(known)}, got {sorted(unknown)}")
    compared = {n: v for n, v in known.items() if n in (FIRST, *(options.variants or known))}
    found = {task: compare(task, compared) for task in options.tasks}
    write(options.out, "defaults", found)
    print(table(found))


if __name__ == "__main__":
    main()
