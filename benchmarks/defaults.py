# SPDX-License-Identifier: Apache-2.0
"""What each default gives: trainings that differ from the defaults in one thing.

``python -m benchmarks.defaults``: for every task and variant one training on the same 10,000
simulations, judged by the mean log density of the parameters of 20,000 others given their data, in
nats, in the space of the parameters. The difference from the defaults is told; greater is better.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array, random

import numpyro_amortized as npa
from benchmarks.environment import ROOT, markdown, write
from benchmarks.tasks import TASKS
from numpyro_amortized.networks import Affine, CouplingFlow, Spline
from numpyro_amortized.training import default_optimizer

NUM_SIMULATIONS, NUM_JUDGED = 10_000, 20_000
NUM_STEPS = 98 * 36  # what `fit` chooses for such a bank: passes, of batches


class Variant(NamedTuple):
    """What differs from the defaults.

    :param network: the inference network.
    :param fit: options of ``fit``.
    :param adapter: options of ``Adapter.for_posterior``.
    """

    network: Callable[..., nnx.Module] = CouplingFlow
    fit: Mapping[str, Any] = {}
    adapter: Mapping[str, Any] = {}


def optimizer(**options: float) -> Variant:
    """:return: the default optimizer with other options."""
    return Variant(fit={"optimizer": default_optimizer(NUM_STEPS, **options)})


def averaged(decay: float) -> Variant:
    """:return: the default optimizer, whose last step leads to the mean of past parameters.

    :param decay: of the weights of past parameters, per step.
    """
    inner = default_optimizer(NUM_STEPS)

    def init(params: optax.Params) -> tuple[optax.OptState, optax.Params, Array]:
        return inner.init(params), params, jnp.zeros((), int)

    def update(
        grads: optax.Updates, state: tuple[optax.OptState, optax.Params, Array], params: Any
    ) -> tuple[optax.Updates, tuple[optax.OptState, optax.Params, Array]]:
        inner_state, mean, count = state
        updates, inner_state = inner.update(grads, inner_state, params)
        mean = optax.incremental_update(optax.apply_updates(params, updates), mean, 1 - decay)
        updates = jax.tree.map(
            lambda u, m, p: jnp.where(count + 1 == NUM_STEPS, m - p, u), updates, mean, params
        )
        return updates, (inner_state, mean, count + 1)

    return Variant(fit={"optimizer": optax.GradientTransformation(init, update)})


def flow(**options: Any) -> Variant:
    """:return: a coupling flow with other options."""
    return Variant(network=partial(CouplingFlow, **options))


CONSTANT = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=1e-4))
UNCLIPPED = optax.adamw(optax.cosine_decay_schedule(2e-3, NUM_STEPS), weight_decay=1e-4)
VARIANTS = {
    "the defaults": Variant(),
    "the defaults, another seed": Variant(),
    "no rejuvenation": Variant(fit={"rejuvenation": 0}),
    "half the steps": Variant(fit={"epochs": 50}),
    "twice the steps": Variant(fit={"epochs": 200}),
    "batches of 64": Variant(fit={"batch_size": 64}),
    "batches of 1,024": Variant(fit={"batch_size": 1024}),
    "nothing held out, last parameters": Variant(fit={"validation": 0}),
    "learning rate 5e-4": optimizer(learning_rate=5e-4),
    "learning rate 5e-3": optimizer(learning_rate=5e-3),
    "constant learning rate 1e-3": Variant(fit={"optimizer": CONSTANT}),
    "gradients not clipped, no warm-up": Variant(fit={"optimizer": UNCLIPPED}),
    "no weight decay": optimizer(weight_decay=0.0),
    "weight decay 1e-2": optimizer(weight_decay=1e-2),
    "averaged weights, decay .99": averaged(0.99),
    "prior not mapped to normal": Variant(adapter={"prior_to_normal": False}),
    "affine couplings": flow(transform=Affine()),
    "splines of 4 bins": flow(transform=Spline(bins=4)),
    "splines of 16 bins": flow(transform=Spline(bins=16)),
    "3 couplings": flow(depth=3),
    "10 couplings": flow(depth=10),
    "widths 32, 32": flow(widths=(32, 32)),
    "widths 128, 128": flow(widths=(128, 128)),
    "one hidden layer of 64": flow(widths=(64,)),
    "ReLU": flow(activation=jax.nn.relu),
    "tanh": flow(activation=jax.nn.tanh),
}


def judge(task_name: str, name: str) -> dict[str, Any]:
    """Train once and judge the density.

    :param task_name: name of the task.
    :param name: of the variant.
    :return: log densities of the judged simulations, ``(NUM_JUDGED,)``, and seconds of training.
    """
    variant = VARIANTS[name]
    simulator = npa.ModelSimulator(TASKS[task_name].model, observed=("x",))
    bank_key, judged_key, fit_key = random.split(random.key(0), 3)
    if "seed" in name:
        fit_key = random.fold_in(fit_key, 1)
    adapter = npa.Adapter.for_posterior(simulator, **variant.adapter)
    approximator = npa.ContinuousApproximator(
        simulator, adapter=adapter, inference_network=variant.network
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


def compare(task_name: str, names: list[str]) -> dict[str, dict[str, float]]:
    """:return: variant to its difference from the defaults in nats, its error, and seconds."""
    reference = judge(task_name, "the defaults")
    found = {}
    for name in names:
        result = reference if name == "the defaults" else judge(task_name, name)
        difference = result["log_prob"] - reference["log_prob"]
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
        ratios = [
            found[task][name]["seconds"] / found[task]["the defaults"]["seconds"] for task in tasks
        ]
        rows.append([name, *cells, f"{np.median(ratios):.2f}"])
    return markdown(["variant", *(f"{task}, nats" for task in tasks), "time"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["two_moons", "slcp", "sir"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results.json")
    options = parser.parse_args()
    names = ["the defaults", *(name for name in options.variants if name != "the defaults")]
    found = {task: compare(task, names) for task in options.tasks}
    write(options.out, "defaults", found)
    print(table(found))


if __name__ == "__main__":
    main()
