# SPDX-License-Identifier: Apache-2.0
"""Deaths by horse kick in the Prussian army [1]: a constant rate, a varying one, or a trend?

One classifier learns the posterior probabilities of three models for data sets of any counts. They
are put beside those from numerical integrals, for the twenty years that Bortkiewicz counted and for
data sets that the models simulate.

1. Bortkiewicz, *Das Gesetz der kleinen Zahlen* (1898); totals of 14 corps, 1875 to 1894.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array, random
from scipy import stats
from scipy.special import gammaln, logsumexp

import numpyro_amortized as npa

DEATHS = np.array([3, 5, 7, 9, 10, 18, 6, 14, 11, 9, 5, 11, 15, 6, 11, 17, 12, 15, 8, 4])
TIMES = np.linspace(-1, 1, len(DEATHS))
SHAPE, RATE = 2.0, 0.2  # of the gamma prior of a rate, whose mean is 10 deaths a year
CONCENTRATION = 10.0  # the median of its log-normal prior
SLOPE_SCALE = 0.5


def constant(times: Array, deaths: Array | None = None) -> None:
    """Every year has the same rate."""
    rate = numpyro.sample("rate", dist.Gamma(SHAPE, RATE))
    with numpyro.plate("year", len(times)):
        numpyro.sample("deaths", dist.Poisson(rate), obs=deaths)


def varying(times: Array, deaths: Array | None = None) -> None:
    """The rates of the years are independent draws of a gamma distribution."""
    rate = numpyro.sample("rate", dist.Gamma(SHAPE, RATE))
    concentration = numpyro.sample("concentration", dist.LogNormal(np.log(CONCENTRATION), 1))
    with numpyro.plate("year", len(times)):
        numpyro.sample("deaths", dist.NegativeBinomial2(rate, concentration), obs=deaths)


def trend(times: Array, deaths: Array | None = None) -> None:
    """The logarithm of the rate is linear in time."""
    rate = numpyro.sample("rate", dist.Gamma(SHAPE, RATE))
    slope = numpyro.sample("slope", dist.Normal(0, SLOPE_SCALE))
    with numpyro.plate("year", len(times)):
        numpyro.sample("deaths", dist.Poisson(rate * jnp.exp(slope * times)), obs=deaths)


def years(rng_key: Array) -> dict[str, Array]:
    """As context, the times make pairs with the deaths, and these are a set in all models."""
    return {"times": jnp.asarray(TIMES)}


MODELS = {
    model.__name__: npa.ModelSimulator(model, observed=("deaths",), context=years)
    for model in (constant, varying, trend)
}


def log_evidences(deaths: np.ndarray) -> np.ndarray:
    """Log evidence of each model, by integrals on grids.

    :param deaths: shape ``(num_datasets, num_years)``.
    :return: shape ``(num_datasets, 3)``.
    """
    rate, d_rate = midpoints(1e-3, 120, 1200)
    log_prior = stats.gamma.logpdf(rate, SHAPE, scale=1 / RATE) + np.log(d_rate)
    log_c, d_c = midpoints(np.log(CONCENTRATION) - 5, np.log(CONCENTRATION) + 5, 60)
    slope, d_slope = midpoints(-3, 3, 120)
    total = deaths.sum(-1)[:, None]
    factorials = gammaln(deaths + 1).sum(-1)[:, None]
    num_years = deaths.shape[-1]

    poisson = total * np.log(rate) - num_years * rate - factorials  # (num_datasets, num_rates)
    first = logsumexp(poisson + log_prior, axis=1)

    slices = []
    for c, log_weight in zip(
        np.exp(log_c), stats.norm.logpdf(log_c, np.log(CONCENTRATION), 1), strict=True
    ):
        terms = (gammaln(deaths + c) - gammaln(c)).sum(-1)[:, None] - factorials
        terms = terms + total * np.log(rate / (rate + c)) + num_years * c * np.log(c / (rate + c))
        slices.append(logsumexp(terms + log_prior, axis=1) + log_weight + np.log(d_c))
    second = logsumexp(slices, axis=0)

    slices = []
    for b, log_weight in zip(slope, stats.norm.logpdf(slope, 0, SLOPE_SCALE), strict=True):
        terms = total * np.log(rate) + b * (deaths @ TIMES)[:, None] - factorials
        terms = terms - rate * np.exp(b * TIMES).sum()
        slices.append(logsumexp(terms + log_prior, axis=1) + log_weight + np.log(d_slope))
    return np.stack([first, second, logsumexp(slices, axis=0)], axis=-1)


def midpoints(low: float, high: float, number: int) -> tuple[np.ndarray, float]:
    """Of equal cells, and their width."""
    width = (high - low) / number
    return low + width * (np.arange(number) + 0.5), width


def exact(deaths: np.ndarray) -> np.ndarray:
    """Posterior probabilities of equally likely models, shape ``(num_datasets, 3)``."""
    logs = log_evidences(deaths)
    return np.exp(logs - logsumexp(logs, axis=-1, keepdims=True))


def picture(amortized: np.ndarray, reference: np.ndarray, path: Path) -> None:
    """Probabilities of the simulated data sets: those learned, over the exact ones."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained", sharey=True)
    for axis, name, learned, true in zip(axes, MODELS, amortized.T, reference.T, strict=True):
        axis.plot([0, 1], [0, 1], color="0.7")
        axis.plot(true[1:], learned[1:], ".", alpha=0.4, label="simulated data")
        axis.plot(true[:1], learned[:1], "r*", markersize=12, label="the Prussian army")
        axis.set_title(name)
        axis.set_xlabel("exact probability")
    axes[0].set_ylabel("learned probability")
    axes[0].legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> dict[str, np.ndarray]:
    """Train, compare and write.

    :return: learned and exact probabilities of each model, ``(1 + num_datasets, 3)``; the first
        data set is the observed one.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="train briefly")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    # brief runs take longer to compile than to compute
    jax.config.update("jax_disable_most_optimizations", options.fast)
    fit_key, bank_key = random.split(random.key(options.seed))

    approximator = npa.ModelComparisonApproximator(MODELS)
    print(approximator)
    # counts are slow to draw, so each is seen more than once; 2,000 are the pilots' program
    bank = approximator.source.sample(bank_key, 2000 if options.fast else 60_000)
    num_held_out = 20 if options.fast else 300
    simulated = np.asarray(bank["deaths"][:num_held_out])
    rest = {name: value[num_held_out:] for name, value in bank.items()}
    approximator.fit(fit_key, dataset=rest, epochs=2 if options.fast else 15)

    deaths = np.concatenate([DEATHS[None], simulated])
    times = np.broadcast_to(TIMES, deaths.shape)
    learned = np.asarray(approximator.predict({"deaths": deaths, "times": times}))
    reference = exact(deaths)
    print(f"{'':10s} {'learned':>8s} {'exact':>8s}")
    for name, probability, true in zip(MODELS, learned[0], reference[0], strict=True):
        print(f"{name:10s} {probability:8.3f} {true:8.3f}")
    error = np.abs(learned - reference)[1:].mean()
    print(f"mean absolute error over {len(simulated)} simulated data sets: {error:.3f}")

    options.output.mkdir(parents=True, exist_ok=True)
    picture(learned, reference, options.output / "model_comparison.png")
    print(f"wrote model_comparison.png to {options.output}")
    return {"learned": learned, "exact": reference}


if __name__ == "__main__":
    main()
