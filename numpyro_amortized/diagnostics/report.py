# SPDX-License-Identifier: Apache-2.0
"""All checks of an approximator on one page."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from jax import Array, random
from jax.typing import ArrayLike
from tqdm.auto import tqdm

from numpyro_amortized.approximators.density import DensityApproximator
from numpyro_amortized.diagnostics.calibration import Quantity, simulation_based_calibration
from numpyro_amortized.diagnostics.misspecification import SummarizingApproximator, misspecification
from numpyro_amortized.diagnostics.page import Check, page
from numpyro_amortized.diagnostics.simulated import posterior_draws
from numpyro_amortized.diagnostics.verdicts import (
    calibration_check,
    contraction_check,
    coverage_check,
    misspecification_check,
    recovery_check,
    tarp_check,
    training_check,
    weights_check,
)
from numpyro_amortized.diagnostics.weights import importance_weights
from numpyro_amortized.simulators.base import typed_key
from numpyro_amortized.training import History

__all__ = ["Report", "report"]


class Report(NamedTuple):
    """The checks of an approximator, and the page that shows them."""

    path: Path
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)


def report(
    rng_key: Array,
    approximator: SummarizingApproximator,
    conditions: Mapping[str, ArrayLike] | None = None,
    *,
    path: str | PathLike[str] = "report.html",
    history: History | None = None,
    num_datasets: int = 500,
    num_samples: int = 1000,
    quantities: Mapping[str, Quantity] | None = None,
    simulations: Mapping[str, ArrayLike] | None = None,
    batch_size: int | None = None,
    progress_bar: bool = True,
) -> Report:
    """Run the checks of an approximator and write a page with pictures and verdicts.

    Tests have a probability of a false alarm of 1 % each. Pictures show the first elements of sites
    that have many; verdicts are about all of them. The page is one file that needs no other.

    :param rng_key: a key.
    :param approximator: a trained approximator.
    :param conditions: your data, one data set or a leading axis of them, to be compared with the
        simulations.
    :param path: of the page, which is overwritten.
    :param history: what ``fit`` returned, for the losses.
    :param num_datasets: number of data sets to simulate for each check.
    :param num_samples: posterior draws for each of them; those of the calibration are a fifth.
    :param quantities: further functions for :func:`simulation_based_calibration`.
    :param simulations: held-out simulations to use instead of new ones, site values with a
        leading axis; needed where the source is no simulator.
    :param batch_size: data sets at a time, which bounds memory.
    :param progress_bar: whether to show one.
    :return: the path and the checks.
    """
    sbc_key, draw_key, tarp_key, data_key, weight_key = random.split(typed_key(rng_key), 5)

    def calibrated() -> list[Check]:
        tree = simulation_based_calibration(
            sbc_key,
            approximator,
            num_datasets=num_datasets,
            num_samples=max(1, num_samples // 5),
            quantities=quantities,
            simulations=simulations,
            batch_size=batch_size,
        )
        return [calibration_check(tree)]

    def from_draws() -> list[Check]:
        drawn = posterior_draws(
            draw_key,
            approximator,
            num_datasets=num_datasets,
            num_samples=num_samples,
            simulations=simulations,
            batch_size=batch_size,
        )
        return [
            coverage_check(drawn),
            tarp_check(tarp_key, drawn),
            recovery_check(drawn),
            contraction_check(drawn),
        ]

    def compared(conditions: Mapping[str, ArrayLike]) -> list[Check]:
        result = misspecification(
            data_key,
            approximator,
            conditions,
            num_datasets=max(num_datasets, 1000),
            simulations=simulations,
        )
        return [misspecification_check(result)]

    def weighed() -> list[Check]:
        return _weights_checks(
            weight_key,
            approximator,
            {"simulations": None} | ({} if conditions is None else {"your data sets": conditions}),
            num_datasets=num_datasets,
            num_samples=num_samples,
            simulations=simulations,
            batch_size=batch_size,
        )

    steps: dict[str, Callable[[], list[Check]]] = {"calibration": calibrated, "draws": from_draws}
    if conditions is not None:
        steps["data"] = partial(compared, conditions)
    steps["weights"] = weighed
    if history is not None:
        steps["training"] = lambda: [training_check(history)]
    checks: list[Check] = []
    with tqdm(total=len(steps), disable=not progress_bar, unit="check") as bar, _quiet():
        for name, step in steps.items():
            bar.set_postfix_str(name)
            checks += step()
            bar.update()
    path = Path(path)
    path.write_text(page("Diagnostics", repr(approximator), checks), encoding="utf-8")
    return Report(path, tuple(checks))


def _weights_checks(
    rng_key: Array,
    approximator: SummarizingApproximator,
    datasets: Mapping[str, Mapping[str, ArrayLike] | None],
    **options: Any,
) -> list[Check]:
    """Of simulations and of data, or the reason why there are none."""
    if not isinstance(approximator, DensityApproximator):
        return [Check("Importance weights", None, "Not available: there is no density.")]
    try:
        found = {
            of: importance_weights(rng_key, approximator, conditions, **options)
            for of, conditions in datasets.items()
        }
    except (TypeError, ValueError) as error:  # the model's own density is not known
        return [Check("Importance weights", None, f"Not available: {error}")]
    return [weights_check(weights, of=of) for of, weights in found.items()]


@contextmanager
def _quiet() -> Iterator[None]:
    """Figures are saved, and must not be shown as well."""
    import matplotlib.pyplot as plt

    with plt.ioff():
        yield
