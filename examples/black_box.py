# SPDX-License-Identifier: Apache-2.0
"""Influenza in the households of Tecumseh [1], by a simulator that is plain NumPy.

Nobody needs to know the likelihood: a Python function plays the epidemic in each household,
generation after generation, and a network is trained on its results. For this model the
probabilities of final sizes are known as well [2], which gives the exact posterior to compare with.

1. Addy, Longini and Haber, *A generalized stochastic model for the analysis of infectious disease
   final size data*, Biometrics (1991): households with 1 to 5 susceptible members, season 1977-78.
2. Longini and Koopman, *Household and community transmission parameters from final distributions of
   infections in households*, Biometrics (1982).
"""

import argparse
from math import comb
from pathlib import Path

import numpy as np
from jax import random

import numpyro_amortized as npa

# Number of households: a row for each number of susceptible members, a column for the infected.
HOUSEHOLDS = np.array(
    [
        [66, 13, 0, 0, 0, 0],
        [87, 14, 4, 0, 0, 0],
        [25, 15, 4, 4, 0, 0],
        [22, 9, 9, 3, 1, 0],
        [4, 4, 1, 1, 1, 0],
    ]
)
SIZES = np.arange(1, 6)
TOTALS = HOUSEHOLDS.sum(1)
POSSIBLE = np.arange(6) <= SIZES[:, None]
NAMES = ("community", "household")


def prior(rng: np.random.Generator) -> dict[str, float]:
    """Probabilities to escape infection: by the community all season, by an infected housemate."""
    return {name: rng.uniform() for name in NAMES}


def epidemic(rng: np.random.Generator, community: float, household: float) -> dict[str, np.ndarray]:
    """Play the season in all households; the square roots of the table that results."""
    susceptible = np.repeat(SIZES, TOTALS)
    sizes = susceptible.copy()
    infectious = rng.binomial(susceptible, 1 - community)
    while infectious.any():
        susceptible = susceptible - infectious
        infectious = rng.binomial(susceptible, 1 - household**infectious)
    table = np.zeros(HOUSEHOLDS.shape)
    np.add.at(table, (sizes - 1, sizes - susceptible), 1)
    return {"table": np.sqrt(table[POSSIBLE])}


def final_sizes(community: np.ndarray, household: np.ndarray) -> np.ndarray:
    """Probabilities of each number of infected members, shape ``(*shape, 5, 6)`` [2]."""
    p = np.zeros((*community.shape, 6, 6))  # of all members of j infected, on the diagonal
    for s in range(6):
        for j in range(s):
            escape = community ** (s - j) * household ** (j * (s - j))
            p[..., s, j] = comb(s, j) * p[..., j, j] * escape
        p[..., s, s] = 1 - p[..., s, :s].sum(-1)
    return p[..., 1:, :]


def exact(num_draws: int, rng: np.random.Generator, cells: int = 400) -> dict[str, np.ndarray]:
    """Draws of the exact posterior, by its density on a grid of the unit square."""
    middle = (np.arange(cells) + 0.5) / cells
    community, household = np.meshgrid(middle, middle, indexing="ij")
    probabilities = np.clip(final_sizes(community, household)[..., POSSIBLE], 1e-300, None)
    log_density = (HOUSEHOLDS[POSSIBLE] * np.log(probabilities)).sum(-1).ravel()
    weights = np.exp(log_density - log_density.max())
    chosen = rng.choice(cells**2, num_draws, p=weights / weights.sum())
    jitter = rng.uniform(-0.5, 0.5, (2, num_draws)) / cells
    grid = np.stack([community.ravel()[chosen], household.ravel()[chosen]]) + jitter
    return dict(zip(NAMES, grid, strict=True))


def picture(amortized: dict[str, np.ndarray], reference: dict[str, np.ndarray], path: Path) -> None:
    """Both posteriors in the plane."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5.5, 5), layout="constrained")
    for draws, colour, label in ((reference, "C1", "exact"), (amortized, "C0", "learned")):
        x, y = (draws[name][:2000] for name in NAMES)
        axis.plot(x, y, ".", color=colour, alpha=0.3, markersize=4, label=label)
    axis.set_xlabel("probability to escape the community")
    axis.set_ylabel("probability to escape an infected housemate")
    axis.set_title("Influenza in Tecumseh, 1977-78")
    axis.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> dict[str, dict[str, np.ndarray]]:
    """Simulate, train, compare and write.

    :return: ``learned`` and ``exact`` draws of both probabilities.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="simulate and train briefly")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="worker processes; by default this one alone")
    options = parser.parse_args(arguments)
    bank_key, fit_key, sample_key = random.split(random.key(options.seed), 3)

    simulator = npa.make_simulator([prior, epidemic])
    adapter = (
        npa.Adapter()
        .constrain(NAMES, lower=0, upper=1)
        .concatenate(NAMES, into="inference_variables")
        .rename("table", "inference_conditions")
        .standardize(["inference_variables", "inference_conditions"])
    )
    number = 500 if options.fast else 100_000
    bank = simulator.sample(bank_key, number, workers=options.workers)
    approximator = npa.ContinuousApproximator(simulator, adapter=adapter)
    approximator.fit(fit_key, epochs=2 if options.fast else 28, dataset=bank)

    num_draws = 1000 if options.fast else 20_000
    observed = {"table": np.sqrt(HOUSEHOLDS[POSSIBLE])}
    draws = approximator.sample(sample_key, num_draws, observed)
    learned = {name: np.asarray(draws[name]) for name in NAMES}
    reference = exact(num_draws, np.random.default_rng(options.seed))
    print(f"{'escape':10s} {'learned':>16s} {'exact':>16s}")
    for name in NAMES:
        columns = [f"{x[name].mean():8.3f} {x[name].std():7.3f}" for x in (learned, reference)]
        print(f"{name:10s} {columns[0]:>16s} {columns[1]:>16s}   (mean, sd)")

    options.output.mkdir(parents=True, exist_ok=True)
    picture(learned, reference, options.output / "black_box.png")
    print(f"wrote black_box.png to {options.output}")
    return {"learned": learned, "exact": reference}


if __name__ == "__main__":
    main()
