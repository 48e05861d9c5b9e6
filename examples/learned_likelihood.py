# SPDX-License-Identifier: Apache-2.0
"""A decision model whose likelihood is learned: the linear ballistic accumulator [1].

In each trial two accumulators start somewhere and race for a threshold; the winner is the choice,
and the time of its arrival, after a delay, the response time. To simulate that takes four lines.
The likelihood of choice and time together is learned from simulations of single trials, and then
stands in a NumPyro model under NUTS. For this model it is known as well, which gives the reference.

1. Brown and Heathcote, *The simplest complete model of choice response time: Linear ballistic
   accumulation*, Cognitive Psychology (2008).
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array, random
from jax.scipy.stats import norm
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS

import numpyro_amortized as npa

START, NOISE = 0.5, 0.3  # greatest start, and spread of the speeds from trial to trial
TRUTH = {"drift": np.array([1.5, 1.1]), "caution": np.array(0.5), "delay": np.array(0.25)}
NUM_TRIALS = 120
Latents = dict[str, Array]


def prior() -> Latents:
    """Mean speeds of both accumulators, distance to the threshold, and what is no decision."""
    return {
        "drift": numpyro.sample("drift", dist.LogNormal(jnp.full(2, 0.2), 0.3).to_event(1)),
        "caution": numpyro.sample("caution", dist.LogNormal(-0.7, 0.4)),
        "delay": numpyro.sample("delay", dist.Uniform(0.1, 0.4)),
    }


class Implicit(dist.Delta):
    """A draw that was made outside: nothing is known of its distribution but the support."""

    def __init__(self, draw: Array, support: constraints.Constraint) -> None:
        self._implicit_support = support
        super().__init__(draw, validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> constraints.Constraint:
        """As it was given."""
        return self._implicit_support


def race(rng_key: Array, latents: Latents, num_trials: int) -> tuple[Array, Array]:
    """Choices, 0 or 1, and times of some trials."""
    start_key, speed_key = random.split(rng_key)
    start = random.uniform(start_key, (num_trials, 2), maxval=START)
    least = -latents["drift"] / NOISE  # speeds are positive
    speed = NOISE * random.truncated_normal(speed_key, least, jnp.inf, (num_trials, 2))
    times = (START + latents["caution"] - start) / (latents["drift"] + speed)
    return times.argmin(-1).astype(jnp.int32), latents["delay"] + times.min(-1)


def simulated(num_trials: int) -> None:
    """The model as a simulator."""
    latents = prior()
    choice, time = race(numpyro.prng_key(), latents, num_trials)
    with numpyro.plate("trial", num_trials):
        numpyro.sample("choice", Implicit(choice, constraints.boolean))
        numpyro.sample("time", Implicit(time, constraints.positive))


def learned(approximator: npa.ContinuousApproximator, choice: Array, time: Array) -> None:
    """The model with the learned likelihood."""
    latents = prior()
    with numpyro.plate("trial", len(choice)):
        numpyro.sample("choice", approximator.likelihood(latents), obs=choice)
        following = approximator.likelihood({**latents, "choice": choice})
        numpyro.sample("time", following, obs=time)


def log_likelihood(latents: Latents, choice: Array, time: Array) -> Array:
    """Log density of each trial, equations 1 to 3 of [1] with positive speeds."""
    t = jnp.maximum(time - latents["delay"], 1e-3)[:, None]
    v, far = latents["drift"], START + latents["caution"]
    near = far - START
    spread = t * NOISE
    low, high = (near - t * v) / spread, (far - t * v) / spread
    density = v * (norm.cdf(high) - norm.cdf(low)) + NOISE * (norm.pdf(low) - norm.pdf(high))
    share = (near - t * v) * norm.cdf(low) - (far - t * v) * norm.cdf(high)
    arrived = 1 + (share + spread * (norm.pdf(low) - norm.pdf(high))) / START
    positive = norm.cdf(v / NOISE)
    density = jnp.maximum(density / START / positive, 1e-20)
    waiting = jnp.maximum(1 - arrived / positive, 1e-20)
    each = jnp.log(density) + jnp.log(waiting[:, ::-1])
    log_density = jnp.take_along_axis(each, choice[:, None], axis=1)[:, 0]
    return jnp.where(time > latents["delay"], log_density, -jnp.inf)


def exact(choice: Array, time: Array) -> None:
    """The model with the likelihood that is known."""
    latents = prior()
    numpyro.factor("race", log_likelihood(latents, choice, time).sum())


def nuts(rng_key: Array, model: Callable[..., None], fast: bool, *data: Array) -> Latents:
    """Draws of four chains, shape ``(4, num_samples, *shape)``."""
    num_samples = 30 if fast else 500
    start = numpyro.infer.init_to_value(values=jax.tree.map(jnp.asarray, TRUTH))
    mcmc = MCMC(
        NUTS(model, init_strategy=start, max_tree_depth=3 if fast else 10),
        num_warmup=num_samples // 2,
        num_samples=num_samples,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(rng_key, *data)
    return mcmc.get_samples(group_by_chain=True)


def columns(draws: Latents) -> dict[str, np.ndarray]:
    """Draws of each number, by its label."""
    drift = np.asarray(draws["drift"])
    rest = {name: np.asarray(draws[name]).ravel() for name in ("caution", "delay")}
    return {f"drift[{i}]": drift[..., i].ravel() for i in range(2)} | rest


def picture(posteriors: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Marginal posteriors under both likelihoods."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(12, 3.2), layout="constrained")
    truth = columns(TRUTH)
    for axis, name in zip(axes, truth, strict=True):
        both = [draws[name] for draws in posteriors.values()]
        bins = np.linspace(*np.quantile(np.concatenate(both), [0.002, 0.998]), 40)
        for label, draws in zip(posteriors, both, strict=True):
            axis.hist(draws, bins, density=True, histtype="step", linewidth=1.5, label=label)
        axis.axvline(truth[name].item(), color="0.5", linestyle=":", label="truth")
        axis.set_xlabel(name)
        axis.set_yticks([])
    axes[0].legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Train, compare and write.

    :return: draws of each number under the ``learned`` and the ``exact`` likelihood.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="train and sample briefly")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    # brief runs take longer to compile than to compute
    jax.config.update("jax_disable_most_optimizations", options.fast)
    fit_key, learned_key, exact_key = random.split(random.key(options.seed), 3)

    simulator = npa.ModelSimulator(simulated, 8, observed=("choice", "time"))
    adapter = npa.Adapter.for_likelihood(simulator, sets={"choice": 0, "time": 0})
    # a time is one number: a smaller network than the default will do, and NUTS asks it often
    flow = partial(npa.networks.CouplingFlow, depth=3, widths=(64, 64))
    approximator = npa.ContinuousApproximator(simulator, adapter=adapter, inference_network=flow)
    print(approximator)
    epochs, num_batches = (1, 10) if options.fast else (25, 100)
    approximator.fit(fit_key, epochs=epochs, num_batches=num_batches)

    data = race(random.key(2008), jax.tree.map(jnp.asarray, TRUTH), NUM_TRIALS)
    draws = nuts(learned_key, learned, options.fast, approximator, *data)
    posteriors = {
        "learned": columns(draws),
        "exact": columns(nuts(exact_key, exact, options.fast, *data)),
    }
    print(f"{'':9s} {'learned':>14s} {'exact':>14s} {'truth':>8s}")
    for name, true in columns(TRUTH).items():
        pair = [f"{x[name].mean():7.3f} {x[name].std():6.3f}" for x in posteriors.values()]
        print(f"{name:9s} {pair[0]:>14s} {pair[1]:>14s} {true.item():8.3f}   (mean, sd)")

    options.output.mkdir(parents=True, exist_ok=True)
    picture(posteriors, options.output / "learned_likelihood.png")
    print(f"wrote learned_likelihood.png to {options.output}")
    return posteriors


if __name__ == "__main__":
    main()
