"""The demonstration study: from handwritten digits to a report, with networks and fitted models side by side."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.lines import Line2D
from scipy.stats import norm

import lesde
from lesde import plot
from lesde.analysis.separation.predict import predict_from_law
from lesde.model.lesde import class_average
from lesde.plot.ticks import tidy_log
from lesde.studies.digits import network_cells, trained_networks
from lesde.studies.folder import StudyFolder
from lesde.studies.runner import Cell, Page, Progress, Runner, Section, print_table, with_error
from lesde.studies.settings import DemoConfig
from lesde.text import format_number

__all__ = ["DemoConfig", "run"]

MODELS = {"I-model": "identity", "L-model": "logits"}
CRITERIA = ("projection", "linear", "nearest_center")
HIDDEN = "network, last hidden layer"
SOURCES = ("network", *MODELS, HIDDEN)
METRICS = ["nc1", "nc2_etf"]
PAGE = 7.0  # inches: two columns of a journal


def run(config: DemoConfig, out: str | Path) -> Path:
    """Run the study and write data, figures and report.

    Parameters
    ----------
    config : DemoConfig
    out : path
        Folder; ``data`` (Zarr), ``figures`` (PNG and PDF), ``report.md``. What an earlier run with the same settings
        stored is read back; training continues learning rate by learning rate.

    Returns
    -------
    Path
        Of the report.

    Raises
    ------
    ValueError
        When ``out`` holds a study with other settings or somebody else's files under the study's names, or when another
        run is in it.
    """
    fits = tuple(f"fit_{transform}" for transform in MODELS.values())
    collapse = tuple(f"collapse_{slug(source)}" for source in SOURCES)

    cells = network_cells(config)
    for name, transform in zip(fits, MODELS.values(), strict=True):
        compute = partial(fit, config, transform)
        cells.append(Cell(name, compute, ("network",), "fitting the kernel"))
    fitted = ("network", *fits)
    cells += [
        Cell(("simulated", "law"), partial(simulate, config), fitted, "simulating the LE-SDE"),
        Cell("comparison", partial(compare, config), ("law", *fitted), "comparing"),
        Cell("separation", partial(separate, config), ("network", "simulated"), "separation"),
        Cell("prediction", partial(predict, config), fitted, "analytic prediction"),
    ]
    for name, source in zip(collapse, SOURCES, strict=True):
        paths = {"network": "network", HIDDEN: "penultimate"}.get(source, "simulated")
        compute = partial(collapse_of, config, source)
        cells.append(Cell(name, compute, (paths,), "neural collapse"))
    cells.append(Cell("convergence", partial(converge, config), collapse, "convergence"))

    sections = [
        Section("networks", networks, ("network",)),
        Section("fits", kernels, fits),
        Section("models", partial(models, config), ("comparison", "network", "simulated", "law")),
        Section("separation", separation, ("separation", "prediction")),
        Section("collapse", collapsed, ("convergence", *collapse)),
        Section("numbers", numbers, ("comparison", "separation", "convergence", *collapse)),
        Section("summary", summary, ("comparison", "separation", "convergence")),
    ]
    template = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    with StudyFolder(out, "demo", config).taken() as folder:
        return Runner(folder, cells).report(template, sections, trained=trained_networks(config))


def slug(name: str) -> str:
    """A name for files."""
    return "".join(c if c.isalnum() else "_" for c in name.lower())


# The data: every function takes datasets and returns a dataset.


def from_start(config: DemoConfig, paths: xr.Dataset) -> xr.Dataset:
    """The frames from the model's start on."""
    return paths.isel(time=slice(int(np.searchsorted(paths.time, config.model_start)), None))


def fit(config: DemoConfig, transform: str, progress: Progress, network: xr.Dataset) -> xr.Dataset:
    """α(t), β(t) fitted for every learning rate."""
    frames = from_start(config, network)
    # Longer intervals separate α and β where the noise of one is as large as its movement. The
    # last recording is kept, so that the kernel is known to the end.
    kept = np.arange(frames.sizes["time"] - 1, -1, -config.fit_every)[::-1]
    frames = frames.isel(time=np.union1d([0], kept))
    with warnings.catch_warnings():
        # Tail indices that cannot be given are NaN in the fit, and the report says so.
        warnings.filterwarnings("ignore", message="no (tail|log_slope)_index")
        return lesde.fit_elasticity(
            frames, transform=transform, confidence=config.confidence, estimator="averages"
        )


def by_class(frames: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Features (replicate, time, sample, feature) in float64, sorted by class; samples of each class."""
    labels = frames.label.values
    x = frames.features.transpose("replicate", "time", "sample", "feature").values
    return x[:, :, np.argsort(labels, kind="stable")].astype(float), np.bincount(labels)


def within_noise(frames: xr.Dataset) -> tuple[float, float]:
    """σ̂ from the growth of the within-class variance, and the share of its change that σ²t explains.

    Under an LE-SDE the variance of a sample about its class mean grows by σ²t whatever the kernel.
    """
    x, counts = by_class(frames)
    deviation = x - np.repeat(class_average(x, counts), counts, axis=-2)
    variance = (deviation**2).mean((0, 2, 3)) / (1 - len(counts) / counts.sum())
    elapsed = frames.time.values - frames.time.values[0]
    growth = variance - variance[0]
    slope = max((elapsed @ growth) / (elapsed @ elapsed), 0.0)
    left = ((growth - slope * elapsed) ** 2).sum()
    return float(np.sqrt(slope)), float(1 - left / max((growth**2).sum(), 1e-300))


def for_each_model(
    config: DemoConfig,
    network: xr.Dataset,
    fits: Sequence[xr.Dataset],
    compute: Callable[[lesde.LESDE, xr.Dataset, int], xr.Dataset],
    progress: Progress,
) -> xr.Dataset:
    """Results for the LE-SDE with each fitted kernel and noise, along ``model`` and ``learning_rate``.

    ``compute`` takes the model, the networks' frames (replicates at one learning rate) and a running number.
    """
    frames = from_start(config, network)
    K, p = len(config.classes), frames.sizes["feature"]
    rows, number, total = [], 0, len(MODELS) * len(config.learning_rates)
    for transform, fit in zip(MODELS.values(), fits, strict=True):
        columns = []
        for index, rate in enumerate(config.learning_rates):
            one = frames.isel(learning_rate=index)
            model = lesde.LESDE(
                lesde.fitted_kernel(fit.sel(learning_rate=rate, method="nearest")),
                K,
                p,
                config.probe_per_class,
                transform=transform,
                noise=within_noise(one)[0],
            )
            columns.append(compute(model, one, number).assign_coords(learning_rate=rate))
            number += 1
            progress(number, total)
        rows.append(xr.concat(columns, "learning_rate", combine_attrs="drop_conflicts"))
    return along("model", tuple(MODELS), rows)


def starts(frames: xr.Dataset) -> np.ndarray:
    """The networks' states at the model's start, (replicate, sample, feature), sorted by class."""
    return by_class(frames.isel(time=[0]))[0][:, 0]


def simulate(
    config: DemoConfig, progress: Progress, network: xr.Dataset, *fits: xr.Dataset
) -> dict[str, xr.Dataset]:
    """The fitted LE-SDEs simulated with torchsde from the networks' own starts; and their exact law for the mean start."""

    def paths_of(model: lesde.LESDE, frames: xr.Dataset, number: int) -> xr.Dataset:
        initial = starts(frames)
        return lesde.simulate(
            model,
            frames.time.values,
            initial=np.repeat(initial, config.copies, axis=0),
            replicates=config.copies * len(initial),
            # Of weak order 2, so that these few steps are enough.
            engine=lesde.TorchSDE(method="srk", dt=0.1),
            seed=config.seed + 1000 + number,
        )

    def law_of(model: lesde.LESDE, frames: xr.Dataset, number: int) -> xr.Dataset:
        initial = class_average(starts(frames), model.counts).mean(0)
        return lesde.law(model, frames.time.values, initial=initial)

    paths = for_each_model(config, network, fits, paths_of, progress)
    law = for_each_model(config, network, fits, law_of, lambda done, total: None)
    iteration = from_start(config, network).iteration
    return {"simulated": paths.assign_coords(iteration=iteration), "law": law}


def compare(
    config: DemoConfig, progress: Progress, law: xr.Dataset, network: xr.Dataset, *fits: xr.Dataset
) -> xr.Dataset:
    """Measures of how well the linear model describes the networks, over ``model`` and ``learning_rate``.

    - ``r_squared``: share of the class means' increments that the fitted rates explain in networks they were not fitted to;
      ``r_squared_common``, with ``_se``: the same for the movement that the networks have in common.
    - ``mean_error``: relative error (root mean square over time) of the law's class means against the networks' average.
    - ``inside``: share of the averaged class-mean coordinates within the law's interval at the given confidence (expected:
      the confidence).
    - ``noise_ratio``: noise of the class means over what the spread within classes implies (expected: 1).
    - ``within_r_squared``: share of the within-class variance's change that linear growth explains.
    """
    z = norm.ppf(0.5 + config.confidence / 2)

    def numbers_of(model: lesde.LESDE, frames: xr.Dataset, number: int) -> xr.Dataset:
        which, index = divmod(number, len(config.learning_rates))
        means = class_average(*by_class(frames)).mean(0)[1:]
        exact = law.isel(model=which, learning_rate=index, time=slice(1, None))
        expected = exact["mean"].transpose("time", "class", "feature").values
        covariance = exact["covariance"].values.reshape(len(expected), expected[0].size, -1)
        variance = np.diagonal(covariance, axis1=1, axis2=2) / frames.sizes["replicate"]
        gap = np.abs(means - expected).reshape(len(expected), -1)
        sigma, explained = within_noise(frames)
        fit = fits[which].isel(learning_rate=index)
        found = fit[["r_squared", "r_squared_common", "r_squared_common_se"]].drop_attrs()
        return found.reset_coords(drop=True).assign(
            mean_error=float(np.sqrt((gap**2).sum() / (means**2).sum())),
            inside=float((gap <= z * np.sqrt(variance)).mean()),
            noise_ratio=float(fit["residual_scale"]) / sigma if sigma else np.nan,
            within_r_squared=explained,
        )

    return for_each_model(config, network, fits, numbers_of, progress)


def separate(
    config: DemoConfig, progress: Progress, network: xr.Dataset, simulated: xr.Dataset
) -> xr.Dataset:
    """Separation probabilities of networks and models by every criterion, along ``source`` and ``criterion``."""
    parts = {"network": from_start(config, network)}
    parts |= {name: simulated.sel(model=name, drop=True) for name in MODELS}
    rows = []
    for number, paths in enumerate(parts.values(), start=1):
        rows.append(
            [
                lesde.separation_probability(
                    paths,
                    criterion=criterion,
                    confidence=config.confidence,
                    direction="own",  # networks start, and so point, in different directions
                )
                for criterion in CRITERIA
            ]
        )
        progress(number, len(parts))
    return along("source", tuple(parts), [along("criterion", CRITERIA, row) for row in rows])


def predict(
    config: DemoConfig, progress: Progress, network: xr.Dataset, *fits: xr.Dataset
) -> xr.Dataset:
    """Analytic separation probabilities of the models, averaged over the networks' starts."""
    times = from_start(config, network).time.values
    # Evenly in log time, where the probability changes.
    wanted = np.geomspace(max(times[0], times[1] / 10), times[-1], config.predicted_times)
    chosen = np.unique(np.abs(times[:, None] - wanted).argmin(0))

    def predicted(model: lesde.LESDE, frames: xr.Dataset, number: int) -> xr.Dataset:
        each = []
        for initial in starts(frames):
            # The fitted kernel jumps at the saved times only, so the law is made for all of them.
            law = lesde.law(model, times, initial=initial).isel(time=chosen)
            each.append(predict_from_law(law)[["probability", "lower", "upper", "pairwise"]])
        # The replicates' starts differ: the probability is the mean over them.
        return xr.concat(each, "replicate", join="override").mean("replicate", skipna=False)

    return for_each_model(config, network, fits, predicted, progress)


def collapse_of(
    config: DemoConfig, source: str, progress: Progress, paths: xr.Dataset
) -> xr.Dataset:
    """Collapse metrics of a source, from the model's start on."""
    if source in MODELS:
        return lesde.neural_collapse(paths.sel(model=source, drop=True))
    return lesde.neural_collapse(from_start(config, paths))


def converge(config: DemoConfig, progress: Progress, *metrics: xr.Dataset) -> xr.Dataset:
    """Convergence of the collapse metrics against time and iterations, along ``source``."""
    rates = [
        lesde.convergence(each, metrics=METRICS, threshold=0.2, confidence=config.confidence)
        for each in metrics
    ]
    return along("source", SOURCES, rates)


def along(dim: str, names: Sequence[str], datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    """Datasets along a dimension with these names."""
    labels = xr.DataArray(list(names), dims=dim, name=dim)
    return xr.concat(datasets, labels, combine_attrs="drop_conflicts", join="override")


# The report: every function draws the figures of a section, and returns what its text needs.


def networks(page: Page, network: xr.Dataset) -> None:
    """Fan, snapshots, 3-D view and animation of one network's features."""
    h, last = float(network.learning_rate[0]), float(network.time[-1])
    page.figure("fan", plot.separation_fan(network, learning_rate=h))
    shots = [float(network.time[0]), last / 16, last / 4, last]
    page.figure("simplex", plot.simplex(network, times=shots, learning_rate=h))
    page.figure("simplex3d", plot.simplex3d(network, learning_rate=h))

    def film(new: Path) -> None:
        made = plot.animate(network, new, learning_rate=h, frames=40, dpi=100)
        plt.close(made._fig)  # type: ignore[attr-defined]

    page.folder.put(page.folder.figures / "collapse.gif", film)


def kernels(page: Page, *fits: xr.Dataset) -> dict[str, Any]:
    """Â, B̂, α̂, β̂ and the tail index of both models."""
    tails = []
    for (model, transform), fit in zip(MODELS.items(), fits, strict=True):
        page.figure(f"elasticity_{transform}", plot.elasticity(fit))
        level = fit.sel(level="alpha_minus_beta")
        for h in fit.learning_rate.values:
            tails.append((model, h, bracketed(level.sel(learning_rate=h), "tail_index")))
    return {"tails": tails}


def models(
    config: DemoConfig,
    page: Page,
    comparison: xr.Dataset,
    network: xr.Dataset,
    simulated: xr.Dataset,
    law: xr.Dataset,
) -> None:
    """The exact law against the networks' class means; one simulated fan."""
    frames = from_start(config, network)
    rates = frames.learning_rate.values
    axes: Any
    for model in MODELS:
        for which, h in (("slow", float(rates[0])), ("fast", float(rates[-1]))):
            axes = plot.class_means(frames, law.sel(model=model, drop=True), learning_rate=h)
            page.figure(f"class_means_{model[0]}_{which}", axes)
    paths = simulated.sel(model="L-model", drop=True)
    page.figure("fan_model", plot.separation_fan(paths, learning_rate=float(rates[0])))


def separation(page: Page, separation: xr.Dataset, prediction: xr.Dataset) -> None:
    """Separation probabilities over time, by source and by criterion."""
    page.figure("separation", draw_separation(separation, prediction))
    page.figure("separation_criteria", draw_criteria(separation))


def collapsed(page: Page, rates: xr.Dataset, *metrics: xr.Dataset) -> dict[str, Any]:
    """NC1 and NC2 over time by source, and their rates against the learning rate."""
    page.figure("collapse", draw_collapse(dict(zip(SOURCES, metrics, strict=True))))
    page.figure("collapse_rate", draw_rates(rates))
    exponents = []
    if "learning_rate_exponent" in rates:
        for source in SOURCES:
            for metric in rates.metric.values:
                one = rates.sel(source=source, metric=metric, clock="iteration")
                exponents.append((source, metric, bracketed(one, "learning_rate_exponent")))
    return {"exponents": exponents}


def numbers(
    page: Page,
    comparison: xr.Dataset,
    separation: xr.Dataset,
    rates: xr.Dataset,
    *metrics: xr.Dataset,
) -> dict[str, Any]:
    """The table of all numbers, one row for each source and learning rate."""
    level = f"{rates.attrs['confidence']:.0%}"
    rows = []
    for source in map(str, separation.source.values):
        collapse = metrics[SOURCES.index(source)]
        for h in separation.learning_rate.values:
            P = separation.sel(source=source, criterion="projection", learning_rate=h)
            last = collapse.sel(learning_rate=h).isel(time=-1).median("replicate")
            rate = rates.sel(source=source, learning_rate=h, clock="time")
            row = {"features of": source, "h": format_number(h)}
            row[f"P(separated) at end [{level}]"] = last_probability(P)
            row["P stays ≥ ½ from t"] = lasting_time(P.probability)
            for name, metric in zip(("NC1", "NC2"), METRICS, strict=True):
                one = rate.sel(metric=metric)
                value, upper = float(one.rate), float(one.rate_upper)
                row[f"{name} at end"] = format_number(float(last[metric]))
                row[f"{name} rate ± {level}"] = with_error(value, upper - value)
            row |= {"R² common ± s.e.": "", "error of means": "", "inside": ""}
            if source in MODELS:
                fit = comparison.sel(model=source, learning_rate=h)
                shares = float(fit.r_squared_common), float(fit.r_squared_common_se)
                row["R² common ± s.e."] = with_error(*shares)
                row["error of means"] = format_number(float(fit.mean_error))
                row["inside"] = format_number(float(fit.inside))
            rows.append(row)
    table = pd.DataFrame(rows)
    # The terminal shows the table in parts, each of which fits 80 columns.
    print_table("Separation", table.iloc[:, [0, 1, 2, 3]])
    print_table("NC1, and its rate of decay per unit of time", table.iloc[:, [0, 1, 4, 5]])
    print_table("NC2, and its rate of decay per unit of time", table.iloc[:, [0, 1, 6, 7]])
    print_table("How well the LE-SDE fits", table.iloc[:, [0, 1, 8, 9, 10]])
    return {"numbers": table}


def summary(page: Page, comparison: xr.Dataset, *_: xr.Dataset) -> dict[str, Any]:
    """The model that is nearer to the networks' class means."""
    errors = comparison.mean_error.mean("learning_rate")
    return {"best": str(errors.idxmin("model").values)}


# Numbers as the report prints them.


def bracketed(dataset: xr.Dataset, name: str) -> str:
    """A number with its interval, nothing where it is not defined."""
    value, low, high = (float(dataset[f"{name}{end}"]) for end in ("", "_lower", "_upper"))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]" if np.isfinite(value) else ""


def last_probability(P: xr.Dataset) -> str:
    """The probability at the last time with its interval."""
    end = P.isel(time=-1)
    value, low, high = (
        format_number(round(float(end[name]), 3)) for name in ("probability", "lower", "upper")
    )
    return f"{value} [{low}, {high}]"


def lasting_time(probability: xr.DataArray, level: float = 0.5) -> str:
    """The saved time from which a probability is at least the level to the end, or "never"."""
    below = np.flatnonzero(~(probability.values >= level))  # NaN is not at least anything
    first = below[-1] + 1 if len(below) else 0
    if first == probability.sizes["time"]:
        return "never"
    return format_number(float(probability.time.values[first]))


# The figures with panels for networks and models.


def draw_separation(separation: xr.Dataset, prediction: xr.Dataset) -> np.ndarray:
    """Axes (slowest and fastest learning rate, source): separation probability, and its prediction."""
    part = separation.sel(criterion="projection", drop=True)

    def draw(ax: Any, h: float, source: str) -> None:
        which = {"learning_rate": h, "source": source}
        model = prediction.sel(model=source, learning_rate=h) if source in MODELS else None
        plot.probability(part.sel(which), model, ax=ax)
        ax.set_title(f"{source}, h = {h:g}")

    rates = separation.learning_rate.values[[0, -1]].tolist()
    return _panels(rates, separation.source.values.tolist(), draw, 3.9, sharex=True, sharey=True)


def draw_criteria(separation: xr.Dataset) -> np.ndarray:
    """Axes (1, criterion): separation probability of the networks."""

    def draw(ax: Any, source: str, criterion: str) -> None:
        plot.probability(separation.sel(source=source, criterion=criterion, drop=True), ax=ax)
        ax.set_title(criterion.replace("_", " "))

    return _panels(["network"], CRITERIA, draw, 2.3, sharey=True)


def draw_collapse(metrics: Mapping[str, xr.Dataset]) -> np.ndarray:
    """Axes (metric, source): NC1 and NC2 over time."""

    def draw(ax: Any, metric: str, source: str) -> None:
        plot.collapse(metrics[source], [metric], ax=ax)
        ax.set_title(source.replace(", ", ",\n") if metric == METRICS[0] else "")

    return _panels(METRICS, list(metrics), draw, 3.9, sharex=True, sharey="row")


def draw_rates(rates: xr.Dataset) -> np.ndarray:
    """Axes (1, source): rates of collapse per iteration against the learning rate, on one scale."""
    with plot.style():
        figure, axes = plt.subplots(
            1, len(SOURCES), figsize=(PAGE, 2.4), layout="constrained", squeeze=False
        )
        for ax, source in zip(axes[0], SOURCES, strict=True):
            part = rates.sel(source=source, drop=True)
            plot.collapse_rate(part, METRICS, clock="iteration", ax=ax)
            ax.set_title(source.replace(", ", ",\n"))
        ends = np.array([ax.get_ylim() for ax in axes[0]])
        for ax in axes[0]:
            ax.set_ylim(ends[:, 0].min(), ends[:, 1].max())
        for ax in axes[0, 1:]:
            ax.set_ylabel("")
            ax.tick_params(labelleft=False)
        # One legend for the metrics; slopes are in the text of the report.
        for legend in _legends(figure, axes):
            legend.remove()
        lines = [container.lines[0] for ax in axes[0] for container in ax.containers]
        by_colour = {str(line.get_color()): line.get_marker() for line in lines}
        handles = [
            Line2D([], [], color=colour, marker=marker, linestyle="none", label=label)
            for (colour, marker), label in zip(
                by_colour.items(), ("NC1", "NC2 distance to ETF"), strict=False
            )
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return axes


def _panels(
    rows: Sequence[Any],
    columns: Sequence[Any],
    draw: Callable[[Any, Any, Any], None],
    height: float,
    **shared: Any,
) -> np.ndarray:
    """Axes (row, column) of a figure of the page's width, with logarithmic time axes and one legend for all."""
    with plot.style():
        figure, axes = plt.subplots(
            len(rows), len(columns), figsize=(PAGE, height), layout="constrained", squeeze=False, **shared
        )  # fmt: skip
        for (row, column), ax in np.ndenumerate(axes):
            draw(ax, rows[row], columns[column])
            ax.set_xscale("log")
            tidy_log(ax, "x")
            ax.set_ylabel("" if column else ax.get_ylabel())
            ax.set_xlabel("" if row + 1 < len(rows) else ax.get_xlabel())
        legends = _legends(figure, axes)
        if legends:
            fullest = max(legends, key=lambda legend: len(legend.legend_handles))
            handles, title = list(fullest.legend_handles), fullest.get_title().get_text()
            labels, length = [text.get_text() for text in fullest.get_texts()], fullest.handlelength
            for legend in legends:
                legend.remove()
            figure.legend(
                handles, labels, title=title or None, loc="outside upper center", ncols=len(labels),
                handlelength=length,
            )  # fmt: skip
    return axes


def _legends(figure: Any, axes: np.ndarray) -> list[Any]:
    return [ax.get_legend() for ax in axes.ravel() if ax.get_legend()] + figure.legends
