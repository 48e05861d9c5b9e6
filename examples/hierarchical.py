# SPDX-License-Identifier: Apache-2.0
"""Mortality in many hospitals, partially pooled: one posterior for any number of hospitals.

Deaths are binomial, and the log odds of the hospitals are normal around a common mean [1]. The
number of hospitals and of their patients are drawn for every simulation, so that one training
serves for all: the posterior is that of the common mean and spread given all hospitals, times that
of each hospital given these and its own patients. It is compared with NUTS.

1. Goldstein and Spiegelhalter, *League tables and their limitations: statistical issues in
   comparisons of institutional performance*, Journal of the Royal Statistical Society A (1996).
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array, random
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import LocScaleReparam

import numpyro_amortized as npa

FEWEST, MOST = 20, 200


def mortality(num_hospitals: int, patients: Array, deaths: Array | None = None) -> None:
    """Log odds of dying in each hospital, around those of an average one."""
    mean = numpyro.sample("mean", dist.Normal(-2, 1))
    spread = numpyro.sample("spread", dist.HalfNormal(1))
    with numpyro.plate("hospital", num_hospitals):
        log_odds = numpyro.sample("log_odds", dist.Normal(mean, spread))
        numpyro.sample("deaths", dist.Binomial(patients, logits=log_odds), obs=deaths)


def patients_of(rng_key: Array, num_hospitals: int = MOST) -> dict[str, Array]:
    """Numbers of patients, from tens to a thousand."""
    scale = random.uniform(rng_key, (num_hospitals,), minval=jnp.log(20), maxval=jnp.log(1000))
    return {"patients": jnp.round(jnp.exp(scale)).astype(int)}


def observed(rng_key: Array, num_hospitals: int) -> tuple[dict[str, Array], Array]:
    """A league table, and the log odds behind it."""
    patients_key, odds_key, deaths_key = random.split(rng_key, 3)
    patients = patients_of(patients_key, num_hospitals)["patients"]
    log_odds = -2.2 + 0.4 * random.normal(odds_key, (num_hospitals,))
    deaths = dist.Binomial(patients, logits=log_odds).sample(deaths_key)
    return {"patients": patients, "deaths": deaths}, log_odds


def nuts(rng_key: Array, data: dict[str, Array], fast: bool) -> MCMC:
    """The reference: NUTS on the non-centred model."""
    num_samples = 50 if fast else 1000
    model = reparam(mortality, config={"log_odds": LocScaleReparam(0)})
    mcmc = MCMC(
        NUTS(model, target_accept_prob=0.9, max_tree_depth=3 if fast else 10),
        num_warmup=num_samples,
        num_samples=num_samples,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(rng_key, len(data["patients"]), data["patients"], data["deaths"])
    return mcmc


def comparison(amortized: dict[str, Array], reference: dict[str, Array]) -> str:
    """A table of both posteriors; hospitals by the differences of their means."""
    rows = [f"{'':9s} {'amortized':>17s} {'NUTS':>17s} {'difference (in sd)':>19s}"]
    for name in ("mean", "spread"):
        ours, other = np.asarray(amortized[name]), np.asarray(reference[name])
        rows.append(
            f"{name:9s} {ours.mean():8.3f} {ours.std():8.3f} {other.mean():8.3f} "
            f"{other.std():8.3f} {(ours.mean() - other.mean()) / other.std():19.2f}"
        )
    ours, other = (np.asarray(x["log_odds"]) for x in (amortized, reference))
    means, sd = other.mean(0), other.std(0)
    gaps = np.abs(ours.mean(0) - means) / sd
    r2 = 1 - ((ours.mean(0) - means) ** 2).sum() / ((means - means.mean()) ** 2).sum()
    rows.append(
        f"log odds of {len(means)} hospitals: means differ by {gaps.mean():.2f} sd on average, at "
        f"most {gaps.max():.2f}; R2 of the means {r2:.4f}"
    )
    return "\n".join(rows)


def picture(amortized: np.ndarray, reference: np.ndarray, path: Path) -> None:
    """Hospitals in the order of their odds, with 90 % intervals of both posteriors."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    order = np.argsort(reference.mean(0))
    places = np.arange(len(order))
    for draws, offset, colour, label in (
        (amortized, -0.2, "C0", "amortized"),
        (reference, 0.2, "C1", "NUTS"),
    ):
        low, middle, high = np.quantile(draws[:, order], [0.05, 0.5, 0.95], axis=0)
        axes.vlines(places + offset, low, high, color=colour, linewidth=1)
        axes.plot(places + offset, middle, ".", color=colour, markersize=3, label=label)
    axes.set_xlabel("hospital, in the order of its odds")
    axes.set_ylabel("log odds of dying (median and 90 % interval)")
    axes.set_title("One trained network for any number of hospitals, and NUTS")
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Train, compare and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="train and sample briefly")
    parser.add_argument("--hospitals", type=int, default=150, help=f"from {FEWEST} to {MOST}")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    # brief runs take longer to compile than to compute
    jax.config.update("jax_disable_most_optimizations", options.fast)
    fit_key, data_key, sample_key, new_key, nuts_key = random.split(random.key(options.seed), 5)

    simulator = npa.ModelSimulator(
        mortality,
        observed=("deaths",),
        context=patients_of,
        sizes={"num_hospitals": (FEWEST, MOST)},
    )
    approximator = npa.ContinuousApproximator(simulator)
    print(approximator)
    steps = {"epochs": 1, "num_batches": 10, "validation": 0} if options.fast else {"epochs": 50}
    approximator.fit(fit_key, batch_size=64, **steps)

    data, _ = observed(data_key, options.hospitals)
    num_samples = 200 if options.fast else 2000
    approximator.sample(sample_key, num_samples, data)  # compiles
    start = time.perf_counter()
    draws = jax.block_until_ready(approximator.sample(sample_key, num_samples, data))
    seconds = time.perf_counter() - start
    print(f"{num_samples} draws for {options.hospitals} hospitals: {seconds:.2f} s")
    mcmc = nuts(nuts_key, data, options.fast)
    print(comparison(draws, mcmc.get_samples()))

    globals_ = {name: draws[name] for name in ("mean", "spread")}
    new = {"patients": jnp.array([20, 200, 1000]), "deaths": jnp.array([4, 40, 200])}
    later = approximator.ancestral_sample(new_key, num_samples, new, globals_)["log_odds"]
    for patients, x in zip(new["patients"], later, strict=True):
        share = jax.nn.sigmoid(x)
        print(f"a further hospital, 20 % of {patients:4.0f} died: {share.mean():.3f} expected")

    options.output.mkdir(parents=True, exist_ok=True)
    ours, other = (np.asarray(x["log_odds"]) for x in (draws, mcmc.get_samples()))
    picture(ours, other, options.output / "hierarchical.png")
    print(f"wrote hierarchical.png to {options.output}")


if __name__ == "__main__":
    main()
