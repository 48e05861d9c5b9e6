# SPDX-License-Identifier: Apache-2.0
"""Posteriors by the derived summary networks beside numeric integrals, run by ``make verify``."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import random
from scipy import stats

import numpyro_amortized as npa
from tests import models

pytestmark = pytest.mark.verify
NUM_EPOCHS, NUM_DATASETS, NUM_DRAWS = 60, 50, 2000


def moments(log_density, axes):
    """Means and standard deviations on a grid, each ``(len(axes),)``."""
    weights = np.exp(log_density - log_density.max())
    weights /= weights.sum()
    margins = [
        weights.sum(tuple(k for k in range(len(axes)) if k != axis)) for axis in range(len(axes))
    ]
    means = np.array([margin @ x for margin, x in zip(margins, axes, strict=True)])
    squares = np.array([margin @ x**2 for margin, x in zip(margins, axes, strict=True)])
    return means, np.sqrt(squares - means**2)


def squares_of_series(y, rho, drift):
    """Sums of squared errors of an AR(1) process."""
    before = np.concatenate([[0.0], y[:-1]])
    n, x, z = len(y), before, y
    return (
        z @ z
        + rho**2 * (x @ x)
        + n * drift**2
        - 2 * rho * (x @ z)
        - 2 * drift * z.sum()
        + 2 * rho * drift * x.sum()
    )


def markov_moments(data):
    rho = np.linspace(-1, 1, 801)[1:-1]
    log_scale = np.linspace(-3, 2.5, 600)
    scale = np.exp(log_scale)
    y = data["y"].astype(float)
    error = squares_of_series(y, rho[:, None], 0.0)
    log_density = -error / (2 * scale**2) - len(y) * log_scale
    log_density = log_density + stats.norm.logpdf(log_scale, -0.5, 0.5)
    return moments(log_density, (rho, scale))


def picture_moments(data):
    place = np.linspace(-2, 9, 177)
    log_height = np.linspace(-0.5, 2.5, 120)
    height = np.exp(log_height)
    y = data["y"].astype(float)
    bump = np.exp(-(((np.arange(len(y)) - place[:, None]) / 1.5) ** 2) / 2)
    product = bump @ y @ bump.T
    norm = np.outer((bump**2).sum(1), (bump**2).sum(1))
    error = height**2 * norm[..., None] - 2 * height * product[..., None]
    prior = stats.norm.logpdf(place, 3.5, 1.2)
    log_density = -error / (2 * models.NOISE**2) + stats.norm.logpdf(log_height, 1.0, 0.3)
    log_density = log_density + prior[:, None, None] + prior[:, None]
    return moments(log_density, (place, place, height))


def three_sites_moments(data):
    mu, rho = np.linspace(-4, 4, 201), np.linspace(-1, 1, 203)[1:-1]
    place = np.linspace(-2, 9, 177)
    survey, series, image = (data[n].astype(float) for n in ("survey", "series", "image"))
    cells = np.arange(len(image))
    bump = np.exp(-(((cells - place[:, None]) / 1.5) ** 2) / 2)
    across = np.exp(-(((cells - cells.mean()) / 1.5) ** 2) / 2)
    height = 2 * np.exp(mu / 2)[:, None]
    error = height**2 * (bump**2).sum(1) * (across**2).sum() - 2 * height * (bump @ image @ across)
    of_mu = stats.norm.logpdf(mu) + stats.norm.logpdf(survey[:, None], mu, 2).sum(0)
    of_rho = -squares_of_series(series, rho, 0.3 * mu[:, None]) / 2
    of_place = stats.norm.logpdf(place, 3.5, 1.2) - error / 2
    log_density = of_mu[:, None, None] + of_rho[:, :, None] + of_place[:, None]
    return moments(log_density, (mu, rho, place))


CASES = {
    "time_series": (models.markov, (np.zeros(100),), markov_moments),
    "image": (models.picture, (np.zeros((8, 8)),), picture_moments),
    "three_sites": (
        models.three_sites,
        (np.zeros(15), np.zeros(60), np.zeros((8, 8))),
        three_sites_moments,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_default_network_agrees_with_the_integral(name):
    model, args, exact = CASES[name]
    approximator = npa.amortize(model, *args)
    start = time.process_time()
    approximator.fit(random.key(0), epochs=NUM_EPOCHS, progress_bar=False)
    seconds = time.process_time() - start
    simulator = approximator.source
    data = jax.device_get(simulator.sample(random.key(1), NUM_DATASETS))
    conditions = {n: x for n, x in data.items() if simulator.sites[n].is_given}
    draws = approximator.sample(random.key(2), NUM_DRAWS, conditions)
    columns = [draws[n].reshape(NUM_DATASETS, NUM_DRAWS, -1) for n in approximator.inferred_sites]
    columns = np.asarray(jnp.concatenate(columns, -1))
    rows = [{n: x[i] for n, x in conditions.items()} for i in range(NUM_DATASETS)]
    mean, sd = (np.stack(each) for each in zip(*map(exact, rows), strict=True))
    errors, ratios = (columns.mean(1) - mean) / sd, columns.std(1) / sd
    print(approximator)
    print(name, f"{seconds:.0f} s", np.sqrt((errors**2).mean(0)), np.abs(errors).max(0))
    print(ratios.mean(0), np.quantile(ratios, [0.05, 0.95], axis=0))
    # 2,000 draws add 0.02 in quadrature to the errors, and 0.016 to each ratio
    assert (np.sqrt((errors**2).mean(0)) < 0.2).all()
    assert (np.abs(ratios - 1).mean(0) < 0.15).all()
