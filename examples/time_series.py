# SPDX-License-Identifier: Apache-2.0
"""Stochastic volatility [1]: the parameters of a latent process, from a hundred returns.

The states are marginalized by simulating them. NUTS on all hundred states is the reference.

1. Kim, Shephard and Chib, *Stochastic volatility: likelihood inference and comparison with ARCH
   models*, Review of Economic Studies (1998).
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array, lax, random
from numpyro.contrib.control_flow import scan
from numpyro.infer import MCMC, NUTS

import numpyro_amortized as npa

NUM_STEPS = 100
TRUTH = {"level": -0.5, "persistence": 0.9, "scale": 0.4}
NAMES = tuple(TRUTH)


def parameters() -> tuple[Array, Array, Array]:
    """Mean of the log variances, their autocorrelation, and the size of their changes."""
    level = numpyro.sample("level", dist.Normal(0, 1))
    persistence = numpyro.sample("persistence", dist.Beta(8, 2))
    scale = numpyro.sample("scale", dist.LogNormal(-1, 0.5))
    return level, persistence, scale


def volatility(returns: Array) -> None:
    """Log variances are an autoregressive process, and returns are normal given them."""
    level, persistence, scale = parameters()

    def step(state: Array, observed: Array) -> tuple[Array, None]:
        state = numpyro.sample("state", dist.Normal(persistence * state, scale))
        numpyro.sample("returns", dist.Normal(0, jnp.exp((level + state) / 2)), obs=observed)
        return state, None

    start = numpyro.sample("start", dist.Normal(0, scale / jnp.sqrt(1 - persistence**2)))
    scan(step, start, returns)


def non_centred(returns: Array) -> None:
    """The same model as NUTS needs it: by independent innovations."""
    level, persistence, scale = parameters()
    start = numpyro.sample("start", dist.Normal(0, 1))
    with numpyro.plate("step", len(returns)):
        innovations = numpyro.sample("innovations", dist.Normal(0, 1))

    def step(state: Array, innovation: Array) -> tuple[Array, Array]:
        state = persistence * state + scale * innovation
        return state, state

    _, states = lax.scan(step, scale / jnp.sqrt(1 - persistence**2) * start, innovations)
    with numpyro.plate("step", len(returns)):
        numpyro.sample("returns", dist.Normal(0, jnp.exp((level + states) / 2)), obs=returns)


def nuts(rng_key: Array, returns: Array, fast: bool) -> dict[str, np.ndarray]:
    """The reference: draws of four chains, shape ``(4, num_samples)``."""
    num_samples = 30 if fast else 1500
    mcmc = MCMC(
        NUTS(non_centred, target_accept_prob=0.9, max_tree_depth=3 if fast else 10),
        num_warmup=num_samples,
        num_samples=num_samples,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(rng_key, returns)
    draws = mcmc.get_samples(group_by_chain=True)
    return {name: np.asarray(draws[name]) for name in NAMES}


def picture(
    amortized: dict[str, np.ndarray], reference: dict[str, np.ndarray], returns: Array, path: Path
) -> None:
    """The series, and both marginal posteriors of each parameter."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
    axes[0].plot(returns, linewidth=0.8)
    axes[0].set_xlabel("step")
    axes[0].set_ylabel("return")
    for axis, name in zip(axes[1:], NAMES, strict=True):
        both = amortized[name], reference[name].ravel()
        bins = np.linspace(*np.quantile(np.concatenate(both), [0.002, 0.998]), 50)
        for draws, label in zip(both, ("amortized", "NUTS"), strict=True):
            axis.hist(draws, bins, density=True, histtype="step", linewidth=1.5, label=label)
        axis.axvline(TRUTH[name], color="0.5", linestyle=":", label="truth")
        axis.set_xlabel(name)
        axis.set_yticks([])
    axes[1].legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Train, compare and write.

    :return: ``amortized`` draws of the parameters and those of ``nuts``.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="train and sample briefly")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    # brief runs take longer to compile than to compute
    jax.config.update("jax_disable_most_optimizations", options.fast)
    fit_key, sample_key, nuts_key = random.split(random.key(options.seed), 3)

    simulator = npa.ModelSimulator(volatility, jnp.zeros(NUM_STEPS))
    truth = {name: jnp.asarray(value) for name, value in TRUTH.items()}
    returns = simulator.trace(random.key(1977), truth)["returns"]["value"]

    adapter = npa.Adapter.for_posterior(simulator, sites=NAMES)
    approximator = npa.ContinuousApproximator(simulator, adapter=adapter)
    print(approximator)
    epochs, num_batches = (1, 10) if options.fast else (35, 100)
    approximator.fit(fit_key, epochs=epochs, num_batches=num_batches, batch_size=128)
    num_draws = 500 if options.fast else 20_000
    draws = approximator.sample(sample_key, num_draws, {"returns": returns})
    amortized = {name: np.asarray(draws[name]) for name in NAMES}
    reference = nuts(nuts_key, returns, options.fast)

    print(f"{'':12s} {'amortized':>16s} {'NUTS':>16s} {'truth':>8s}")
    for name in NAMES:
        columns = [f"{x[name].mean():8.2f} {x[name].std():7.2f}" for x in (amortized, reference)]
        print(f"{name:12s} {columns[0]:>16s} {columns[1]:>16s} {TRUTH[name]:8.2f}   (mean, sd)")

    options.output.mkdir(parents=True, exist_ok=True)
    picture(amortized, reference, returns, options.output / "time_series.png")
    print(f"wrote time_series.png to {options.output}")
    return {"amortized": amortized, "nuts": reference}


if __name__ == "__main__":
    main()
