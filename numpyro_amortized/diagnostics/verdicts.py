# SPDX-License-Identifier: Apache-2.0
"""Checks with a verdict in words and pictures, from the results of the diagnostics."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jax import Array

from numpyro_amortized.diagnostics import plots
from numpyro_amortized.diagnostics.coverage import coverage, tarp
from numpyro_amortized.diagnostics.page import Check, picture
from numpyro_amortized.diagnostics.recovery import contraction, recovery
from numpyro_amortized.diagnostics.simulated import PosteriorDraws
from numpyro_amortized.diagnostics.uniformity import holm, uniformity_test
from numpyro_amortized.training import History

if TYPE_CHECKING:
    import xarray

__all__ = [
    "calibration_check",
    "contraction_check",
    "coverage_check",
    "misspecification_check",
    "recovery_check",
    "tarp_check",
    "training_check",
    "weights_check",
]

_MOST_ELEMENTS, _MOST_PANELS = 12, 36  # in a picture; verdicts are about all elements
_LEVELS = (0.5, 0.8, 0.95)


def calibration_check(tree: "xarray.DataTree") -> Check:
    """Of the ranks of simulation-based calibration."""
    pit, p_values = tree["prior_sbc"].to_dataset(), tree["uniformity"].to_dataset()
    faults = _faults(pit, p_values)
    numbers = f"{pit.sizes['draw']} data sets, {pit.attrs['num_samples']} draws of each"
    least = _least(p_values)
    verdict = (
        f"Wrong: {_listed(faults)} ({numbers})."
        if faults
        else f"Ranks of {_listed(list(pit))} are uniform; the least corrected p-value is "
        f"{least:.2g} ({numbers})."
    )
    if skipped := int(pit.attrs["skipped_simulations"]):
        verdict += f" {skipped} simulations were not finite and are left out."
    shown = _part(pit, ("chain", "draw"))
    captions = {
        False: "The distribution of ranks minus a uniform one, with the band of the test. A line "
        "below zero: draws are below the true values. The p-values are not corrected.",
        True: "The share of central intervals that contain the true value, minus their "
        "probability, with the band of the test. Below zero: the draws are too narrow. The "
        "p-values are not corrected.",
    }
    pictures = tuple(
        picture(plots.plot_calibration(shown, coverage=folded, backend="matplotlib"), caption)
        for folded, caption in captions.items()
    )
    return Check("Simulation-based calibration", not faults, verdict, pictures)


def coverage_check(drawn: PosteriorDraws) -> Check:
    """Of the coverage of central intervals."""
    from scipy import stats

    shares = coverage(drawn.truth, drawn.draws, levels=_LEVELS, dims=drawn.dims)
    number = shares.attrs["num_datasets"]
    tests = [
        (name, level, share, stats.binomtest(round(share * number), number, level).pvalue)
        for name in shares
        for level in _LEVELS
        for share in shares[name].sel(level=level).values.ravel()
    ]
    corrected = holm(np.array([p_value for *_, p_value in tests]))
    wrong = [test for test, p_value in zip(tests, corrected, strict=True) if p_value < plots.ALPHA]
    name, level, share, _ = max(tests, key=lambda test: abs(test[2] - test[1]))
    verdict = (
        f"{len(wrong)} of {len(tests)} shares are off. The worst: intervals of {level:.0%} for "
        f"{name} contain the true value in {share:.1%} of {number} data sets."
        if wrong
        else f"Intervals of {_listed([f'{x:.0%}' for x in _LEVELS])} contain the true values as "
        f"often as they should in {number} data sets; the share farthest off is {share:.1%} "
        f"instead of {level:.0%}, of {name}."
    )
    curves = coverage(drawn.truth, drawn.draws, dims=drawn.dims)
    shown = plots.plot_coverage(_part(curves, ("level",)), backend="matplotlib")
    caption = "Share of central intervals that contain the true value, with the band of 99 %."
    return Check("Coverage of intervals", not wrong, verdict, (picture(shown, caption),))


def tarp_check(rng_key: Array, drawn: PosteriorDraws) -> Check:
    """Of balls around the latents of other data sets."""
    pit = tarp(rng_key, drawn.truth, drawn.draws)
    p_values = uniformity_test(pit)
    least = _least(p_values)
    passed = least >= plots.ALPHA
    verdict = (
        "Balls around other true values contain the true values "
        + ("as often as they should" if passed else "too often or too rarely")
        + f", p = {least:.2g}: the joint posterior of all latents."
    )
    captions = {
        False: "Expected coverage of balls minus their probability, with the band of the test.",
        True: "The same, folded at one half: the second part of the test.",
    }
    pictures = tuple(
        picture(plots.plot_calibration(pit, coverage=folded, backend="matplotlib"), caption)
        for folded, caption in captions.items()
    )
    return Check("TARP", passed, verdict, pictures)


def recovery_check(drawn: PosteriorDraws) -> Check:
    """How well posterior means recover the latents; it cannot fail."""
    metrics = recovery(drawn.truth, drawn.draws, dims=drawn.dims)
    verdict = "Correlation of posterior means with the true values: " + _by_site(
        metrics.sel(metric="correlation")
    )
    verdict += "; error in prior standard deviations: " + _by_site(metrics.sel(metric="nrmse"))
    shown = plots.plot_recovery(*_shown_draws(drawn), dims=drawn.dims, backend="matplotlib")
    caption = "Posterior mean and true value of each data set."
    return Check("Recovery", None, verdict + ".", (picture(shown, caption),))


def contraction_check(drawn: PosteriorDraws) -> Check:
    """What the data tell; it cannot fail."""
    scores = contraction(drawn.truth, drawn.draws, dims=drawn.dims)
    mean = scores.sel(metric="contraction").mean("dataset")
    outside = (abs(scores.sel(metric="z_score")) > 2).mean("dataset")
    verdict = f"Mean contraction: {_by_site(mean)}; share of z-scores beyond 2: "
    verdict += f"{_by_site(outside)}."
    shown = plots.plot_contraction(_part(scores, ("metric", "dataset")), backend="matplotlib")
    caption = (
        "Each point is a data set. Contraction 1: the data tell everything; 0: they tell nothing."
    )
    return Check("Contraction and z-scores", None, verdict, (picture(shown, caption),))


def misspecification_check(result: "xarray.Dataset") -> Check:
    """Whether data sets are like simulations."""
    corrected = holm(np.append(result["p_value"], result["mmd_p_value"]))
    passed = bool((corrected >= plots.ALPHA).all())
    outside = np.flatnonzero(corrected[:-1] < plots.ALPHA).tolist()
    number = result.sizes["dataset"]
    if passed:
        verdict = "The summaries of the data are like those of simulations"
    elif outside:
        verdict = f"Unlike all simulations: data sets {outside} of {number} (counted from 0)"
    else:
        verdict = "The data sets together are unlike simulations"
    verdict += (
        f"; least p-value {float(result['p_value'].min()):.2g} by Mahalanobis distance, "
        f"{float(result['mmd_p_value']):.2g} by maximum mean discrepancy."
    )
    if not passed:
        verdict += " Posteriors of such data must not be trusted: revise the model or its priors."
    shown = plots.plot_misspecification(result, backend="matplotlib")
    caption = "Distances of simulations from their mean; lines: the data."
    return Check("Your data", passed, verdict, (picture(shown, caption),))


def training_check(history: History) -> Check:
    """The losses; it cannot fail."""
    verdict = (
        f"{len(history.loss)} epochs, {history.num_simulations} simulations; the parameters are "
        f"those of epoch {history.best_epoch}. Skipped: {history.skipped_simulations} simulations, "
        f"{history.skipped_steps} steps."
    )
    shown = plots.loss(history, backend="matplotlib")
    caption = "Losses of the epochs; the mark: where the parameters were kept."
    return Check("Training", None, verdict, (picture(shown, caption),))


def weights_check(weights: "xarray.Dataset", *, of: str) -> Check:
    """How far posteriors are from the exact ones; it cannot fail, since weights correct them.

    :param of: whose data sets they are, such as "simulations".
    """
    k, threshold = weights["pareto_k"].values, weights.attrs["threshold"]
    outside = np.flatnonzero(~weights["is_reliable"].values)
    verdict = (
        f"Importance weights correct what is left of errors for {len(k) - len(outside)} of "
        f"{len(k)} {of}, where Pareto k-hat is at most {threshold:.2f} or weights are nearly "
        f"equal; median k-hat {np.median(k):.2f}; median efficiency "
        f"{float(weights['efficiency'].median()):.0%} of "
        f"{int(weights.attrs['num_samples'])} draws."
    )
    if len(outside):
        listed = f" The others, counted from 0: {outside[:10].tolist()}"
        verdict += listed + (" and more." if len(outside) > 10 else ".")
        verdict += " `npa.refine` ends at the exact posterior, or says that it could not."
    shown = plots.plot_pareto_k(weights, backend="matplotlib")
    caption = "k-hat of each data set, where finite; the line: the threshold."
    return Check(f"Importance weights of {of}", None, verdict, (picture(shown, caption),))


def _faults(pit: "xarray.Dataset", p_values: "xarray.Dataset") -> list[str]:
    """What is wrong with each quantity that fails, of its worst element."""
    faults = []
    for name in pit:
        tests = p_values[name].transpose(..., "p_value").values.reshape(-1, 3)
        worst = int(tests[:, 2].argmin())
        if tests[worst, 2] >= plots.ALPHA:
            continue
        values = pit[name].values.reshape(pit.sizes["draw"], -1)[:, worst]
        if tests[worst, 0] < tests[worst, 1]:
            fault = "too low" if values.mean() > 0.5 else "too high"
        else:
            fault = "too narrow" if np.abs(2 * values - 1).mean() > 0.5 else "too wide"
        faults.append(f"draws of {name} are {fault} (p = {tests[worst, 2]:.2g})")
    return faults


def _part(ds: "xarray.Dataset", leading: Sequence[str]) -> "xarray.Dataset":
    """The first elements of the first variables: as many as a picture can show."""
    own = {name: [str(dim) for dim in ds[name].dims if dim not in leading] for name in ds}
    first = _first({str(name): dims for name, dims in own.items()})
    part = ds.isel({dim: slice(number) for dim, number in first.items()})
    sizes = np.cumsum([part[name].isel(dict.fromkeys(leading, 0)).size for name in part])
    kept = [name for name, size in zip(part, sizes, strict=True) if size <= _MOST_PANELS]
    return part[kept]


def _shown_draws(drawn: PosteriorDraws) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Latents and draws of the elements that a picture can show."""
    first = _first(drawn.dims)
    truth, draws, panels = {}, {}, 0
    for name, dims in drawn.dims.items():
        rows = tuple(slice(first[dim]) for dim in dims)
        part = drawn.truth[name][:, *rows]
        panels += part[0].size
        if panels <= _MOST_PANELS:
            truth[name], draws[name] = part, drawn.draws[name][:, :, *rows]
    return truth, draws


def _first(dims: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """How many indices of each dimension are shown."""
    shown: dict[str, int] = {}
    for own in dims.values():
        for dim in own:
            most = max(1, int(_MOST_ELEMENTS ** (1 / len(own)) + 1e-9))
            shown[dim] = min(most, shown.get(dim, most))
    return shown


def _least(p_values: "xarray.Dataset") -> float:
    corrected = p_values.sel(p_value="corrected")
    return min(float(corrected[name].min()) for name in corrected)


def _by_site(values: "xarray.Dataset") -> str:
    """The value of each site, or their range over its elements."""
    parts = []
    for name in values:
        finite = values[name].values[np.isfinite(values[name].values)]
        if not finite.size:
            parts.append(f"{name} does not vary")
        elif finite.size == 1:
            parts.append(f"{name} {finite.item():.2f}")
        else:
            parts.append(f"{name} {finite.min():.2f} to {finite.max():.2f}")
    return ", ".join(parts)


def _listed(words: list) -> str:
    words = [str(word) for word in words]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
