# SPDX-License-Identifier: Apache-2.0
"""Rubin's eight schools [1]: train once, compare with NUTS, write the results.

1. Rubin, *Estimation in parallel randomized experiments*, Journal of Educational Statistics (1981).
"""

import argparse
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

SCHOOLS = list("ABCDEFGH")
EFFECTS = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
STANDARD_ERRORS = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(sigma: Array, y: Array | None = None) -> None:
    """Effects of coaching in eight schools, partially pooled."""
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("school", len(sigma)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def nuts(rng_key: Array, num_samples: int, num_chains: int = 4) -> MCMC:
    """The reference: NUTS on the non-centred model."""
    model = reparam(eight_schools, config={"theta": LocScaleReparam(0)})
    kernel = NUTS(model, target_accept_prob=0.99)
    mcmc = MCMC(
        kernel,
        num_warmup=1000,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(rng_key, STANDARD_ERRORS, y=EFFECTS, extra_fields=("diverging",))
    return mcmc


def columns(samples: dict[str, Array]) -> dict[str, np.ndarray]:
    """Draws of each scalar, by its label."""
    theta = np.asarray(samples["theta"])
    schools = {f"theta[{name}]": theta[:, i] for i, name in enumerate(SCHOOLS)}
    return {"mu": np.asarray(samples["mu"]), "tau": np.asarray(samples["tau"])} | schools


def comparison(amortized: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> str:
    """A table of means and standard deviations, and how far apart they are."""
    rows = [
        f"{'':9s} {'amortized':>17s} {'NUTS':>17s} {'difference of':>15s} {'ratio of':>8s}",
        f"{'':9s}" + f" {'mean':>8s} {'sd':>8s}" * 2 + f" {'means (in sd)':>15s} {'sds':>8s}",
    ]
    for name, draws in amortized.items():
        mean, sd = draws.mean(), draws.std()
        true_mean, true_sd = reference[name].mean(), reference[name].std()
        rows.append(
            f"{name:9s} {mean:8.2f} {sd:8.2f} {true_mean:8.2f} {true_sd:8.2f} "
            f"{(mean - true_mean) / true_sd:15.2f} {sd / true_sd:8.2f}"
        )
    return "\n".join(rows)


def picture(amortized: dict[str, np.ndarray], reference: dict[str, np.ndarray], path: Path) -> None:
    """Medians with 50 % and 90 % intervals of both posteriors, over the observed effects."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    rows = np.arange(len(amortized))
    for draws, offset, colour, label in (
        (amortized, -0.13, "C0", "amortized"),
        (reference, 0.13, "C1", "NUTS"),
    ):
        q = np.array([np.quantile(x, [0.05, 0.25, 0.5, 0.75, 0.95]) for x in draws.values()]).T
        axes.hlines(rows + offset, q[0], q[4], color=colour, linewidth=1.5)
        axes.hlines(rows + offset, q[1], q[3], color=colour, linewidth=4)
        axes.plot(q[2], rows + offset, "o", color=colour, label=label)
    axes.plot(EFFECTS, rows[2:], "kx", label="observed effect")
    axes.set_yticks(rows, list(amortized))
    axes.invert_yaxis()
    axes.set_xlabel("points of the test score (median, 50 % and 90 % interval)")
    axes.set_title("Eight schools: one trained network and NUTS")
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Train, compare and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="train and sample briefly")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    # brief runs take longer to compile than to compute
    jax.config.update("jax_disable_most_optimizations", options.fast)
    fit_key, sample_key, data_key, nuts_key = random.split(random.key(options.seed), 4)
    num_samples = 1000 if options.fast else 20_000

    approximator = npa.amortize(eight_schools, sigma=STANDARD_ERRORS, y=EFFECTS)
    print(approximator)
    epochs, num_batches = (1, 20) if options.fast else (75, 100)
    approximator.fit(fit_key, epochs=epochs, num_batches=num_batches)
    samples = approximator.sample(sample_key, num_samples, {"y": EFFECTS})
    mcmc = nuts(nuts_key, 1000, num_chains=1) if options.fast else nuts(nuts_key, 5000)

    amortized, reference = columns(samples), columns(mcmc.get_samples())
    print(comparison(amortized, reference))
    print(f"divergences of NUTS: {int(mcmc.get_extra_fields()['diverging'].sum())}")

    options.output.mkdir(parents=True, exist_ok=True)
    idata = approximator.to_inference_data(data_key, {"y": EFFECTS})
    idata.to_netcdf(options.output / "eight_schools.nc")
    picture(amortized, reference, options.output / "eight_schools.png")
    print(f"wrote eight_schools.nc and eight_schools.png to {options.output}")


if __name__ == "__main__":
    main()
