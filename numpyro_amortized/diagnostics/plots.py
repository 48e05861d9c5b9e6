# SPDX-License-Identifier: Apache-2.0
"""Pictures of the diagnostics, by ArviZ and in its conventions."""

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import ArrayLike

from numpyro_amortized.diagnostics.labelled import Dims, labelled
from numpyro_amortized.diagnostics.recovery import recovery
from numpyro_amortized.diagnostics.simulated import check_draws
from numpyro_amortized.diagnostics.uniformity import uniformity_test
from numpyro_amortized.training import History

if TYPE_CHECKING:
    import xarray
    from arviz_plots import PlotCollection

__all__ = [
    "loss",
    "plot_bayes_factors",
    "plot_calibration",
    "plot_classifier_calibration",
    "plot_confusion_matrix",
    "plot_contraction",
    "plot_coverage",
    "plot_misspecification",
    "plot_pareto_k",
    "plot_recovery",
]

ALPHA = 0.01  # the probability of a false alarm
_COLUMNS = 4


def loss(history: History, *, backend: str | None = None) -> "PlotCollection":
    """Training and validation loss of each epoch; a mark where the parameters were kept.

    :param history: what ``fit`` returned.
    :param backend: of ArviZ's plots.
    """
    from arviz_plots import visuals

    curves = {"training": history.loss}
    if np.isfinite(history.validation_loss).any():
        curves["validation"] = history.validation_loss
    losses = {"loss": np.stack(list(curves.values()))}
    ds = labelled(losses, ["curve", "epoch"], coords={"curve": list(curves)})
    collection = _panels(ds, ["epoch"], backend, aes={"color": ["curve"]}, over=["curve"])
    collection.map(visuals.line_xy, "lines", x=ds["epoch"])
    kept = ds.isel(epoch=[history.best_epoch], curve=[-1])
    collection.map(visuals.scatter_xy, "kept", data=kept, x=kept["epoch"])
    _axes(collection, "epoch", "loss")
    collection.add_legend("curve")
    return collection


def plot_calibration(
    pit: "xarray.DataTree | xarray.Dataset",
    *,
    coverage: bool = False,
    backend: str | None = None,
) -> "PlotCollection":
    """ArviZ's plot of the values' distribution, with a band that it leaves if a test fails.

    The band is that of the Kolmogorov-Smirnov test at the level of 1 %, divided by the number of
    tests of :func:`uniformity_test`: the line leaves a band, here or with ``coverage``, exactly
    where that function's least p-value is below .01.

    :param pit: the result of :func:`simulation_based_calibration` or :func:`tarp`.
    :param coverage: the distribution of central intervals' coverage instead. Above zero, intervals
        contain the latents too often: the draws are too wide; below zero they are too narrow.
    :param backend: of ArviZ's plots.
    """
    import xarray
    from arviz_plots import plot_ecdf_pit, visuals
    from scipy import stats

    if isinstance(pit, xarray.Dataset):
        pit = xarray.DataTree.from_dict({"prior_sbc": pit})
    group = pit["prior_sbc"].to_dataset()
    num_values = group.sizes["chain"] * group.sizes["draw"]
    num_tests = 2 * sum(group[name][0, 0].size for name in group)
    width = float(stats.kstwo.isf(ALPHA / num_tests, num_values))
    shown: Any = {"p_value_text": False, "suspicious_points": False}
    collection = plot_ecdf_pit(
        pit,
        coverage=coverage,
        visuals=shown,
        backend=backend,
        figure_kwargs=_size(group, {"chain", "draw"}),
    )
    test = "spread" if coverage else "location"
    p_values = uniformity_test(group)
    band = {"x": np.array([0.0, 1]), "y_bottom": -width, "y_top": width, "alpha": 0.1}
    collection.map(visuals.fill_between_y, "band", data=p_values.isel(p_value=0), **band)
    limit = max(1.3 * width, 1.1 * _largest_distance(group, coverage=coverage))
    collection.map(visuals.set_ylim, "ylim", limits=(-limit, limit), store_artist=False)
    collection.map(
        visuals.annotate_xy,
        "p_values",
        data=p_values.sel(p_value=test),
        text=lambda p: f"p = {p:.2g}",
        x=0.02,
        y=0.88 * limit,
        horizontal_align="left",
    )
    return collection


def plot_coverage(coverage: "xarray.Dataset", *, backend: str | None = None) -> "PlotCollection":
    """Share of intervals that contain the true latent, beside their probability.

    The band has 99 % of the shares of right intervals, at each level by itself.

    :param coverage: the result of :func:`coverage`.
    :param backend: of ArviZ's plots.
    """
    from arviz_plots import visuals
    from scipy import stats

    collection = _panels(coverage, ["level"], backend)
    levels, number = coverage["level"].values, coverage.attrs["num_datasets"]
    usual = stats.binom(number, levels)
    edges = {"y_bottom": usual.ppf(ALPHA / 2) / number, "y_top": usual.isf(ALPHA / 2) / number}
    collection.map(visuals.fill_between_y, "band", x=levels, alpha=0.1, **edges)
    collection.map(visuals.dline, "diagonal", x=np.array([0.0, 1]), color="gray", linestyle="--")
    collection.map(visuals.line_xy, "lines", x=coverage["level"])
    _axes(collection, "probability", "share")
    return collection


def plot_recovery(
    truth: Mapping[str, ArrayLike],
    draws: Mapping[str, ArrayLike],
    *,
    dims: Dims | None = None,
    backend: str | None = None,
) -> "PlotCollection":
    """Posterior means beside the true latents, with their correlation.

    :param truth: latents, values ``(num_datasets, *shape)``.
    :param draws: posterior draws, values ``(num_datasets, num_samples, *shape)``.
    :param dims: names of each site's own dimensions.
    :param backend: of ArviZ's plots.
    """
    from arviz_plots import visuals

    known, drawn = check_draws(truth, draws)
    pairs = {name: np.stack([known[name], drawn[name].mean(1)]) for name in known}
    ds = labelled(pairs, ["plot_axis", "dataset"], dims, {"plot_axis": ["x", "y"]})
    collection = _panels(ds, ["plot_axis", "dataset"], backend, share=False)
    collection.map(visuals.scatter_xy, "points", alpha=0.4)
    collection.map(_diagonal, "diagonal", color="gray", linestyle="--")
    metrics = recovery(truth, draws, dims=dims)
    text = ", r = {:.2f}".format
    _axes(collection, "true", "posterior mean", metrics.sel(metric="correlation"), text)
    return collection


def plot_contraction(
    contraction: "xarray.Dataset", *, backend: str | None = None
) -> "PlotCollection":
    """Z-score of each data set beside its posterior contraction.

    Most z-scores of a right posterior lie between the lines, at -2 and 2. Points to the right have
    learned much from the data.

    :param contraction: the result of :func:`contraction`.
    :param backend: of ArviZ's plots.
    """
    import xarray
    from arviz_plots import visuals

    ds = contraction.rename(metric="plot_axis").assign_coords(plot_axis=["x", "y"])
    collection = _panels(ds, ["plot_axis", "dataset"], backend, share=False)
    collection.map(visuals.scatter_xy, "points", alpha=0.4)
    panels = ds.isel(plot_axis=0, dataset=0, drop=True)
    for level in (-2.0, 2.0):
        lines = xarray.full_like(panels, level)
        collection.map(visuals.hline, f"line_{level}", data=lines, color="gray", linestyle="--")
    least = min(float(ds[name].isel(plot_axis=0).min()) for name in ds)
    limits = (min(0.0, 1.1 * np.nan_to_num(least)) - 0.02, 1.02)
    collection.map(visuals.set_xlim, "xlim", limits=limits, store_artist=False)
    _axes(collection, "contraction", "z-score")
    return collection


def plot_misspecification(
    result: "xarray.Dataset", *, backend: str | None = None
) -> "PlotCollection":
    """Mahalanobis distances of simulations, and lines at those of the data sets.

    :param result: that of :func:`mahalanobis` or :func:`misspecification`.
    :param backend: of ArviZ's plots.
    """
    import xarray
    from arviz_plots import plot_dist, visuals

    null = result["null"].rename("distance").to_dataset()
    names = ("point_estimate", "point_estimate_text", "credible_interval")
    options: dict[str, Any] = {"backend": backend, "visuals": dict.fromkeys(names, False)}
    tree = xarray.DataTree.from_dict({"posterior": null})
    collection = plot_dist(tree, kind="hist", sample_dims=["simulation"], **options)
    for index, distance in enumerate(result["distance"].values):
        line = xarray.Dataset({"distance": float(distance)})
        collection.map(visuals.vline, f"dataset_{index}", data=line, color="C1")
    _axes(collection, "distance of summaries", "simulations")
    return collection


def plot_classifier_calibration(
    calibration: "xarray.Dataset", *, backend: str | None = None
) -> "PlotCollection":
    """How often each model is the true one, beside its probability.

    :param calibration: the result of :func:`classifier_calibration`.
    :param backend: of ArviZ's plots.
    """
    import xarray
    from arviz_plots import visuals

    pairs = xarray.concat([calibration["predicted"], calibration["observed"]], dim="plot_axis")
    models = pairs.assign_coords(plot_axis=["x", "y"], model=_names(pairs))
    ds = models.to_dataset("model")
    collection = _panels(ds, ["plot_axis", "bin"], backend)
    collection.map(visuals.dline, "diagonal", x=np.array([0.0, 1]), color="gray", linestyle="--")
    collection.map(visuals.line_xy, "lines")
    collection.map(visuals.scatter_xy, "points")
    errors = calibration["expected_calibration_error"].assign_coords(model=_names(pairs))
    _axes(collection, "predicted", "share", errors.to_dataset("model"), ", error = {:.2f}".format)
    return collection


def plot_confusion_matrix(
    confusion: "xarray.Dataset", *, backend: str | None = None
) -> "PlotCollection":
    """How often each model is the most probable one, in a row for each true model.

    Rows add up to one. The darker a cell, the greater its share. A title such as "a as b" says that
    data of a are taken for those of b.

    :param confusion: the result of :func:`confusion_matrix`.
    :param backend: of ArviZ's plots.
    """
    from arviz_base import rcParams
    from arviz_plots import PlotCollection, visuals

    shares = confusion[["share"]].fillna(0.0)
    size = 1.5 * shares.sizes["true_model"] + 1
    collection = PlotCollection.grid(
        shares,
        rows=["true_model"],
        cols=["predicted_model"],
        backend=backend or rcParams["plot.backend"],
        figure_kwargs={"figsize": (size + 0.5, size), "figsize_units": "inches"},
    )

    def cell(da: "xarray.DataArray", target: Any, **kwargs: Any) -> Any:
        edges = {"x": np.array([0.0, 1]), "y_bottom": 0.0, "y_top": 1.0}
        return visuals.fill_between_y(da, target, alpha=float(da), **edges, **kwargs)

    collection.map(cell, "cell", color="C0")
    options: Any = {"x": 0.5, "y": 0.5, "horizontal_align": "center", "vertical_align": "center"}
    collection.map(visuals.annotate_xy, "number", text=lambda share: f"{share:.2f}", **options)
    for set_limits in (visuals.set_xlim, visuals.set_ylim):
        collection.map(set_limits, "limits", limits=(0.0, 1.0), store_artist=False)
    for axis in ("x", "y"):
        collection.map(visuals.remove_ticks, "ticks", axis=axis, store_artist=False)

    def title(da: "xarray.DataArray", target: Any, sel: Any, **_: Any) -> Any:
        text = f"{sel['true_model']} as {sel['predicted_model']}"
        return visuals.labelled_title(da, target, text=text, size=8)

    collection.map(title, "title", subset_info=True)
    return collection


def plot_bayes_factors(
    factors: "xarray.Dataset", *, backend: str | None = None
) -> "PlotCollection":
    """Log Bayes factors of each model against the first, beside the exact ones.

    :param factors: the result of :func:`bayes_factors`. Data sets in which a model is impossible
        have no finite ones and are left out.
    :param backend: of ArviZ's plots.
    """
    import xarray
    from arviz_plots import visuals

    pairs = xarray.concat([factors["exact"], factors["estimated"]], dim="plot_axis")
    others = pairs.where(np.isfinite(pairs)).isel(model=slice(1, None))
    models = others.assign_coords(plot_axis=["x", "y"], model=_names(others))
    ds = models.to_dataset("model")
    collection = _panels(ds, ["plot_axis", "dataset"], backend, share=False)
    collection.map(visuals.scatter_xy, "points", alpha=0.4)
    collection.map(_diagonal, "diagonal", color="gray", linestyle="--")
    errors = factors["rmse"].isel(model=slice(1, None)).assign_coords(model=_names(others))
    _axes(collection, "exact", "estimated", errors.to_dataset("model"), ", rmse = {:.2f}".format)
    return collection


def plot_pareto_k(weights: "xarray.Dataset", *, backend: str | None = None) -> "PlotCollection":
    """Pareto k-hat of each data set, and the threshold of those whose weights can be trusted.

    :param weights: the result of :func:`importance_weights`.
    :param backend: of ArviZ's plots.
    """
    import xarray
    from arviz_plots import visuals

    k = weights[["pareto_k"]]
    finite = k.where(np.isfinite(k))
    collection = _panels(finite, ["dataset"], backend)
    collection.map(visuals.scatter_xy, "points", x=finite["dataset"], alpha=0.6)
    threshold = xarray.Dataset({"pareto_k": weights.attrs["threshold"]})
    collection.map(visuals.hline, "threshold", data=threshold, color="gray", linestyle="--")
    _axes(collection, "data set", "k-hat")
    return collection


def _panels(
    ds: "xarray.Dataset",
    drawn: list[str],
    backend: str | None,
    *,
    share: bool = True,
    aes: dict[str, list[str]] | None = None,
    over: list[str] | None = None,
) -> "PlotCollection":
    """A panel for every element of every variable.

    :param ds: the variables.
    :param drawn: dimensions that are drawn within a panel.
    :param backend: of ArviZ's plots.
    :param share: whether panels have common axes.
    :param aes: what distinguishes lines within a panel.
    :param over: further dimensions within a panel.
    """
    from arviz_base import rcParams
    from arviz_plots import PlotCollection

    within: set[Hashable] = {*drawn, *(over or [])}
    return PlotCollection.wrap(
        ds,
        cols=["__variable__", *(dim for dim in ds.dims if dim not in within)],
        col_wrap=_COLUMNS,
        aes=aes or {},
        backend=backend or rcParams["plot.backend"],
        figure_kwargs={"sharex": share, "sharey": share, **_size(ds, within)},
    )


def _size(ds: "xarray.Dataset", within: set[Hashable]) -> dict[str, Any]:
    """That of a figure with a panel for every element, but for dimensions within a panel."""
    number = sum(ds[name].isel(dict.fromkeys(within & {*ds[name].dims}, 0)).size for name in ds)
    columns = min(number, _COLUMNS)
    inches = (max(3.2 * columns, 5.0), 3.0 * -(-number // columns) + 0.5)
    return {"figsize": inches, "figsize_units": "inches"}


def _axes(
    collection: "PlotCollection",
    x: str,
    y: str,
    values: "xarray.Dataset | None" = None,
    text: Any = None,
) -> None:
    """Labels of the axes, and titles, which may end with a number."""
    from arviz_base.labels import BaseLabeller
    from arviz_plots import visuals

    options = {"ignore_aes": "all", "subset_info": True}
    collection.map(visuals.labelled_x, "xlabel", text=x, **options)
    collection.map(visuals.labelled_y, "ylabel", text=y, **options)
    labeller = BaseLabeller()

    def title(da: "xarray.DataArray", target: Any, **where: Any) -> Any:
        names: Any = (where.get("var_name"), where.get("sel"), where.get("isel"))
        ending = "" if values is None else text(da.item())
        label = labeller.make_label_flat(*names) + ending
        return visuals.labelled_title(da, target, text=label)

    collection.map(title, "title", data=values, **options)


def _names(values: "xarray.DataArray") -> list[str]:
    return [str(name) for name in values["model"].values]


def _diagonal(da: "xarray.DataArray", target: Any, **kwargs: Any) -> Any:
    from arviz_plots import visuals

    return visuals.dline(da, target, x=da.values, **kwargs)


def _largest_distance(group: "xarray.Dataset", *, coverage: bool) -> float:
    """Of the empirical distribution function from the diagonal, over all elements."""
    values = [group[name].stack(value=("chain", "draw"), create_index=False) for name in group]
    arrays = [np.abs(2 * v.values - 1) if coverage else v.values for v in values]
    steps = np.arange(1, arrays[0].shape[-1] + 1) / arrays[0].shape[-1]
    return max(float(np.abs(steps - np.sort(array, axis=-1)).max()) for array in arrays)
