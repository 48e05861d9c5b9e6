# SPDX-License-Identifier: Apache-2.0
"""Models after NumPyro's examples on their data: amortized with the defaults, refined, by NUTS.

``python -m benchmarks.zoo``: one training for each model, nothing else depends on it. Means are
compared in posterior standard deviations of NUTS, over all scalars of all latent sites.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro import handlers
from numpyro.diagnostics import gelman_rubin
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import LocScaleReparam, Reparam

import numpyro_amortized as npa
from benchmarks.environment import ROOT, markdown, write
from tests.zoo import ZOO, Example


class StepReparam(Reparam):
    """A random walk as the sum of its steps, which are standard normal."""

    def __call__(self, name: str, fn: Any, obs: Any) -> tuple[None, jax.Array]:
        assert obs is None
        normal = dist.Normal().expand(fn.event_shape).to_event(1)
        steps = numpyro.sample(f"{name}_steps", normal)
        return None, fn.scale * jnp.cumsum(steps)


MODELS = (
    "eight_schools",
    "partially_pooled_with_logit",
    "ucbadmit",
    "lynx_hare",
    "zero_inflated_poisson",
    "stochastic_volatility",
)
TOLD = ("step", "pareto_k", "importance_ess", "ess", "nested_rhat", "ood_p_value")
TOLD += ("num_divergences", "num_jumps", "missed_mass", "num_log_densities")
# Hierarchies whose funnel NUTS does not explore as they are written, so that it is no reference.
DECENTRED = {
    "eight_schools": {"theta": LocScaleReparam(0)},
    "partially_pooled_with_logit": {"alpha": LocScaleReparam(0)},
    "stochastic_volatility": {"s": StepReparam()},
}
Draws = dict[str, np.ndarray]


def nuts(rng_key: jax.Array, example: Example, *, num_samples: int) -> tuple[Draws, float]:
    """:return: reference draws ``(num, *shape)`` of each site, and the largest R-hat."""
    config = DECENTRED.get(example.model.__name__, {})
    model = handlers.reparam(example.model, config=config)
    kernel = NUTS(model, target_accept_prob=0.95)
    mcmc = MCMC(
        kernel,
        num_warmup=1000,
        num_samples=num_samples,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(rng_key, *example.args)
    chains = jax.device_get(mcmc.get_samples(group_by_chain=True))
    rhat = max(float(np.nanmax(gelman_rubin(np.asarray(x)))) for x in chains.values())
    return {name: x.reshape(-1, *x.shape[2:]) for name, x in chains.items()}, rhat


def compare(draws: Draws, reference: Draws) -> dict[str, Any]:
    """:return: largest difference of means in posterior sds, and the extreme ratios of sds."""
    shifts, ratios = [], []
    for name, x in draws.items():
        mean, sd = reference[name].mean(0), reference[name].std(0)
        varies = sd > 0  # the triangle of zeros of a Cholesky factor does not
        shifts.append((np.abs(x.mean(0) - mean) / np.where(varies, sd, 1))[varies].ravel())
        ratios.append((x.std(0) / np.where(varies, sd, 1))[varies].ravel())
    shift, ratio = np.concatenate(shifts), np.concatenate(ratios)
    result = {"mean_shift": shift.max(), "least_sd": ratio.min(), "greatest_sd": ratio.max()}
    return {name: float(value) for name, value in result.items()}


def evaluate(name: str, seed: int, *, num_samples: int) -> dict[str, Any]:
    """Train on simulations of one model and judge the posterior of its data.

    :param name: of the model.
    :param seed: of the training, the draws and NUTS.
    :param num_samples: draws of each chain of NUTS; four times as many of the approximator.
    """
    example = ZOO[name]
    fit_key, sample_key, nuts_key = random.split(random.key(seed), 3)
    refine_key = random.fold_in(sample_key, 1)
    begin = time.perf_counter()
    reference, rhat = nuts(nuts_key, example, num_samples=num_samples)
    sampled = time.perf_counter()
    simulator = npa.ModelSimulator(example.model, *example.args)
    approximator = npa.ContinuousApproximator(simulator)
    history = approximator.fit(fit_key, progress_bar=False)
    trained = time.perf_counter()
    draws = jax.device_get(approximator.sample(sample_key, 4 * num_samples, simulator.data))
    result = compare({n: draws[n] for n in approximator.inferred_sites}, reference)
    return {
        "model": name,
        "seed": seed,
        **result,
        "refined": refine(refine_key, approximator, reference, 4 * num_samples),
        "rhat": rhat,
        "nuts_seconds": sampled - begin,
        "fit_seconds": trained - sampled,
        "steps": history.num_steps,
    }


def refine(
    rng_key: jax.Array,
    approximator: npa.ContinuousApproximator,
    reference: Draws,
    num_samples: int,
) -> dict[str, Any]:
    """:return: how the refined draws compare, which step they needed, and seconds of two calls."""
    seconds = []
    for _ in range(2):
        begin = time.perf_counter()
        tree = npa.refine(rng_key, approximator, approximator.source.data, num_samples=num_samples)
        seconds.append(time.perf_counter() - begin)
    sites = {name: tree["posterior"][name].values for name in approximator.inferred_sites}
    draws = {name: x.reshape(-1, *x.shape[2:]) for name, x in sites.items()}
    stats = tree["sample_stats"].dataset
    told = {name: stats[name].item() for name in TOLD}
    return compare(draws, reference) | told | {"first_seconds": seconds[0], "seconds": seconds[1]}


def table(rows: list[dict[str, Any]]) -> str:
    """:return: a Markdown table."""
    header = ["model", "amortized: means differ by, sd", "ratios of sds", "k-hat"]
    header += ["refined by", "means differ by, sd", "ratios of sds", "first call, s", "second, s"]
    header += ["NUTS, s", "its R-hat", "training, s"]
    cells = [
        [
            row["model"],
            *_differences(row),
            f"{row['refined']['pareto_k']:.2f}",
            row["refined"]["step"],
            *_differences(row["refined"]),
            f"{row['refined']['first_seconds']:.1f}",
            f"{row['refined']['seconds']:.1f}",
            f"{row['nuts_seconds']:.0f}",
            f"{row['rhat']:.3f}",
            f"{row['fit_seconds']:.0f}",
        ]
        for row in rows
    ]
    return markdown(header, cells)


def _differences(row: dict[str, Any]) -> list[str]:
    return [f"{row['mean_shift']:.2f}", f"{row['least_sd']:.2f} to {row['greatest_sd']:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(ZOO))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-samples", type=int, default=2500)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results.json")
    options = parser.parse_args()
    rows = []
    for name in options.models:
        rows.append(evaluate(name, options.seed, num_samples=options.num_samples))
        print(rows[-1], flush=True)
    write(options.out, "zoo", {"runs": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
