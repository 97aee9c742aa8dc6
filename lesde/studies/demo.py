"""The demonstration study: from handwritten digits to a report, with networks and fitted models side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.lines import Line2D
from scipy.stats import norm

import lesde
from lesde import plot
from lesde.analysis.convergence import ENDS
from lesde.analysis.separation.predict import predict_from_law
from lesde.model.lesde import class_average
from lesde.plot.style import class_marker, palette
from lesde.studies.digits import network_cells, trained_networks
from lesde.studies.fitted_kernels import growth_per_time
from lesde.studies.folder import StudyFolder
from lesde.studies.panels import one_legend, panels
from lesde.studies.runner import Cell, Data, Page, Progress, Runner, Section, print_table, table_of
from lesde.studies.settings import MODELS, DemoConfig

CRITERIA = ("projection", "linear", "nearest_center")
HIDDEN = "network, last hidden layer"
SOURCES = ("network", *MODELS, HIDDEN)
METRICS = ["nc1", "nc2_etf"]


def run(config: DemoConfig, out: str | Path) -> Path:
    """Run the study and write data, figures and report.

    Parameters
    ----------
    config : DemoConfig
    out : path
        Folder for ``data`` (Zarr), ``figures`` (PNG and PDF) and ``report.md``. What an earlier run with the
        same settings stored is read back; training continues learning rate by learning rate.

    Returns
    -------
    Path
        Of the report.

    Raises
    ------
    ValueError
        For a folder with other settings or somebody else's files.
    """
    fits = tuple(f"fit_{transform}" for transform in MODELS.values())
    collapse = tuple(f"collapse_{slug(source)}" for source in SOURCES)
    cells = [
        *network_cells(config),
        Cell("frames", partial(from_start, config), ("network",), kept=False),
        Cell("hidden", partial(from_start, config), ("penultimate",), kept=False),
        *(
            Cell(name, partial(fit, config, transform), ("frames",), "fitting the kernel")
            for name, transform in zip(fits, MODELS.values(), strict=True)
        ),
    ]
    for name, title, compute in (
        ("simulated", "simulating the LE-SDE", simulated),
        ("law", "simulating the LE-SDE", exact),
        ("comparison", "comparing", compared),
        ("prediction", "analytic prediction", predicted),
    ):
        each = partial(for_each_model, compute, config)
        cells.append(Cell(name, each, ("frames", *fits), title))
    of_both = partial(separate, config)
    cells.append(Cell("separation", of_both, ("frames", "simulated"), "separation"))
    inputs = ("frames", "simulated", "hidden")
    cells.append(
        Cell((*collapse, "convergence"), partial(converge, config), inputs, "neural collapse")
    )

    sections = [
        Section("networks", networks, ("network",)),
        Section("fits", kernels, fits),
        Section("models", models, ("comparison", "frames", "simulated", "law")),
        Section("separation", separation, ("separation", "prediction")),
        Section("collapse", collapsed, ("convergence", *collapse)),
        Section("numbers", numbers, ("comparison", "separation", "convergence", *collapse)),
        Section("summary", lambda *_: None, ("comparison", "separation", "convergence")),
    ]
    template = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    folder = StudyFolder(out, "demo", config).begun()
    return Runner(folder, cells).report(template, sections, trained=trained_networks(config))


def slug(name: str) -> str:
    """A name for files."""
    return "".join(c if c.isalnum() else "_" for c in name.lower())


# The data: every function takes datasets and returns a dataset.


def from_start(config: DemoConfig, progress: Progress, paths: Data) -> Data:
    """The frames from the model's start on."""
    return paths.isel(time=slice(int(np.searchsorted(paths.time, config.model_start)), None))


def fit(config: DemoConfig, transform: str, progress: Progress, frames: Data) -> Data:
    """α(t), β(t) fitted for every learning rate."""
    # Longer intervals separate α and β where the noise of one is as large as its movement. The
    # last recording is kept, so that the kernel is known to the end.
    kept = np.arange(frames.sizes["time"] - 1, -1, -config.fit_every)[::-1]
    frames = frames.isel(time=np.union1d([0], kept))
    return lesde.fit_elasticity(
        frames, transform=transform, confidence=config.confidence, estimator="averages"
    )


def by_class(frames: Data) -> tuple[np.ndarray, np.ndarray]:
    """Features (replicate, time, sample, feature) in float64, sorted by class; samples of each class."""
    x = frames.sortby("label").features.transpose("replicate", "time", "sample", "feature")
    return x.values.astype(float), np.bincount(frames.label)


def within_noise(frames: Data) -> tuple[float, float]:
    """σ̂ from the growth of the within-class variance, and the share of its change that σ²t explains.

    Under an LE-SDE the variance of a sample about its class mean grows by σ²t whatever the kernel.
    """
    x, counts = by_class(frames)
    deviation = x - np.repeat(class_average(x, counts), counts, axis=-2)
    variance = (deviation**2).mean((0, 2, 3)) / (1 - len(counts) / counts.sum())
    times, growth = frames.time.values, variance - variance[0]
    slope = float(growth_per_time(variance, times))
    left = ((growth - slope * (times - times[0])) ** 2).sum()
    return np.sqrt(slope), float(1 - left / max((growth**2).sum(), 1e-300))


def for_each_model(
    compute: Callable[..., Data], config: DemoConfig, progress: Progress, frames: Data, *fits: Data
) -> Data:
    """Results for the LE-SDE with each fitted kernel and noise, along ``model`` and ``learning_rate``.

    ``compute`` takes the settings, the networks' frames (replicates at one learning rate), the model fitted to them, the fit, and
    a running number.
    """
    rows: list[Data] = []
    total = len(MODELS) * len(config.learning_rates)
    for transform, fit in zip(MODELS.values(), fits, strict=True):
        columns: list[Data] = []
        for rate in config.learning_rates:
            one, own = frames.sel(learning_rate=rate), fit.sel(learning_rate=rate, method="nearest")
            number = len(rows) * len(fit.learning_rate) + len(columns)
            model = lesde.LESDE(
                lesde.fitted_kernel(own),
                len(config.classes),
                one.sizes["feature"],
                config.probe_per_class,
                transform=transform,
                noise=within_noise(one)[0],
            )
            found = compute(config, one, model, own, number)
            columns.append(found.assign_coords(learning_rate=rate))
            progress(number + 1, total)
        rows.append(xr.concat(columns, "learning_rate", combine_attrs="drop_conflicts"))
    return along("model", MODELS, rows)


def along(dim: str, names: Iterable[str], datasets: Sequence[Data]) -> Data:
    """Datasets along a dimension with these names."""
    labels = xr.Variable(dim, list(names))
    return xr.concat(datasets, labels, combine_attrs="drop_conflicts", join="override")


def starts(frames: Data) -> np.ndarray:
    """The networks' states at the model's start, (replicate, sample, feature), sorted by class."""
    return by_class(frames.isel(time=[0]))[0][:, 0]


def simulated(config: DemoConfig, frames: Data, model: lesde.LESDE, fit: Data, number: int) -> Data:
    """The fitted LE-SDE simulated with torchsde from the networks' own starts."""
    initial = np.repeat(starts(frames), config.copies, axis=0)
    # Of weak order 2, so that these few steps are enough.
    options: dict[str, Any] = {"engine": lesde.TorchSDE(method="srk", dt=0.1)}
    options["seed"] = config.seed + 1000 + number
    paths = lesde.simulate(model, frames.time.values, initial, len(initial), **options)
    return paths.assign_coords(iteration=frames.iteration)


def exact(config: DemoConfig, frames: Data, model: lesde.LESDE, fit: Data, number: int) -> Data:
    """Its exact law for the networks' mean start."""
    initial = class_average(starts(frames), model.counts).mean(0)
    return lesde.law(model, frames.time.values, initial=initial)


def compared(config: DemoConfig, frames: Data, model: lesde.LESDE, fit: Data, number: int) -> Data:
    """Measures of how well the linear model describes the networks.

    - ``r_squared``: share of the class means' increments that the fitted rates explain in networks they were not fitted to;
      ``r_squared_common``, with ``_se``: the same for the movement that the networks have in common.
    - ``mean_error``: relative error (root mean square over time) of the law's class means against the networks' average.
    - ``inside``: share of the averaged class-mean coordinates within the law's interval at the given confidence (expected:
      the confidence).
    - ``noise_ratio``: noise of the class means over what the spread within classes implies (expected: 1).
    - ``within_r_squared``: share of the within-class variance's change that linear growth explains.
    """
    means = class_average(*by_class(frames)).mean(0)[1:]
    law = exact(config, frames, model, fit, number).isel(time=slice(1, None))
    gap = np.abs(means - law["mean"].transpose("time", "class", "feature").values)
    covariance = law["covariance"].transpose("class", "feature", "class_", "feature_", "time")
    variance = np.einsum("kakat->tka", covariance.values) / frames.sizes["replicate"]
    sigma, explained = within_noise(frames)
    fit = fit.reset_coords(drop=True).drop_attrs()
    return fit[["r_squared", "r_squared_common", "r_squared_common_se"]].assign(
        mean_error=np.sqrt((gap**2).sum() / (means**2).sum()),
        inside=(gap <= norm.ppf(0.5 + config.confidence / 2) * np.sqrt(variance)).mean(),
        noise_ratio=fit["residual_scale"] / sigma if sigma else np.nan,
        within_r_squared=explained,
    )


def predicted(config: DemoConfig, frames: Data, model: lesde.LESDE, fit: Data, number: int) -> Data:
    """Analytic separation probabilities, averaged over the networks' starts."""
    times = frames.time.values
    # Evenly in log time, where the probability changes.
    wanted = np.geomspace(max(times[0], times[1] / 10), times[-1], config.predicted_times)
    chosen = np.unique(np.abs(times[:, None] - wanted).argmin(0))
    # The fitted kernel jumps at the saved times only, so the law is made for all of them.
    laws = (
        lesde.law(model, times, initial=initial).isel(time=chosen) for initial in starts(frames)
    )
    each = [predict_from_law(law)[["probability", "lower", "upper", "pairwise"]] for law in laws]
    # The replicates' starts differ: the probability is the mean over them.
    return xr.concat(each, "replicate", join="override").mean("replicate", skipna=False)


def separate(config: DemoConfig, progress: Progress, frames: Data, simulated: Data) -> Data:
    """Separation probabilities of networks and models by every criterion, along ``source`` and ``criterion``."""
    rows = []
    for number, source in enumerate(SOURCES[:-1]):
        paths = simulated.sel(model=source, drop=True) if source in MODELS else frames
        # Networks start, and so point, in different directions.
        options: dict[str, Any] = {"confidence": config.confidence, "direction": "own"}
        each = [lesde.separation_probability(paths, criterion=c, **options) for c in CRITERIA]
        rows.append(along("criterion", CRITERIA, each))
        progress(number + 1, len(SOURCES) - 1)
    return along("source", SOURCES[:-1], rows)


def converge(
    config: DemoConfig, progress: Progress, frames: Data, simulated: Data, hidden: Data
) -> dict[str, Data]:
    """Collapse metrics of each source, and their convergence against time and iterations, along ``source``."""
    paths = {"network": frames, HIDDEN: hidden}
    paths |= {name: simulated.sel(model=name, drop=True) for name in MODELS}
    metrics = {source: lesde.neural_collapse(paths[source]) for source in SOURCES}
    options: dict[str, Any] = {"threshold": 0.2, "confidence": config.confidence}
    rates = [lesde.convergence(each, metrics=METRICS, **options) for each in metrics.values()]
    found = {f"collapse_{slug(source)}": each for source, each in metrics.items()}
    return found | {"convergence": along("source", SOURCES, rates)}


# The report: every function draws the figures of a section, and returns what its text needs.


def networks(page: Page, network: Data) -> None:
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


def kernels(page: Page, *fits: Data) -> dict[str, Any]:
    """Â, B̂, α̂, β̂ and the tail index of both models."""
    for transform, fit in zip(MODELS.values(), fits, strict=True):
        page.figure(f"elasticity_{transform}", plot.elasticity(fit))
    both = along("model", MODELS, [fit.sel(level="alpha_minus_beta") for fit in fits])
    return {"tails": table_of(both, ["model", "learning_rate"], "tail_index")}


def models(page: Page, comparison: Data, frames: Data, simulated: Data, law: Data) -> None:
    """The exact law against the networks' class means; one simulated fan."""
    rates = frames.learning_rate.values
    for model in MODELS:
        for which, h in (("slow", float(rates[0])), ("fast", float(rates[-1]))):
            axes = plot.class_means(frames, law.sel(model=model, drop=True), learning_rate=h)
            page.figure(f"class_means_{model[0]}_{which}", axes)
    paths = simulated.sel(model="L-model", drop=True)
    page.figure("fan_model", plot.separation_fan(paths, learning_rate=float(rates[0])))


def separation(page: Page, separation: Data, prediction: Data) -> None:
    """Separation probabilities over time, by source and by criterion."""
    page.figure("separation", draw_separation(separation, prediction))
    page.figure("separation_criteria", draw_criteria(separation))


def collapsed(page: Page, rates: Data, *metrics: Data) -> dict[str, Any]:
    """NC1 and NC2 over time by source, and their rates against the learning rate."""
    page.figure("collapse", draw_collapse(dict(zip(SOURCES, metrics, strict=True))))
    page.figure("collapse_rate", draw_rates(rates))
    if "learning_rate_exponent" not in rates:
        return {"exponents": None}
    per_iteration = rates.sel(clock="iteration")
    return {"exponents": table_of(per_iteration, ["source", "metric"], "learning_rate_exponent")}


def numbers(
    page: Page, comparison: Data, separation: Data, rates: Data, *metrics: Data
) -> dict[str, Any]:
    """The table of all numbers, one row for each source and learning rate."""
    P = separation.sel(criterion="projection", drop=True).drop_attrs()
    last = P.isel(time=-1, drop=True)
    ends = [each[METRICS].isel(time=-1, drop=True).median("replicate") for each in metrics]
    at_end, rates = along("source", SOURCES, ends), rates.sel(clock="time", drop=True)
    sources = {"source": P.source.values}
    found = {
        "P": last.probability,
        "P_lower": last.lower,
        "P_upper": last.upper,
        "P ≥ ½ from t": lasting_time(P.probability),
    }
    for name, metric in zip(("NC1", "NC2"), METRICS, strict=True):
        own = rates.sel(sources | {"metric": metric}, drop=True)
        found[name] = at_end[metric].sel(sources)
        found |= {f"{name} rate{end}": own[f"rate{end}"] for end in ENDS}
    fit = comparison.rename(model="source").reindex(sources)
    found |= {"R² common": fit.r_squared_common, "its s.e.": fit.r_squared_common_se}
    found |= {"error of means": fit.mean_error, "inside": fit.inside}

    table, rows = xr.Dataset(found), ["source", "learning_rate"]
    # The terminal shows the table in parts, each of which fits 80 columns.
    print_table("Separation", table_of(table, rows, "P", "P ≥ ½ from t"))
    for name in ("NC1", "NC2"):
        title = f"{name} at the end, and its rate of decay per unit of time"
        print_table(title, table_of(table, rows, name, f"{name} rate"))
    quality = ("R² common", "its s.e.", "error of means", "inside")
    print_table("How well the LE-SDE fits", table_of(table, rows, *quality))
    names = [name for name in found if not name.endswith(ENDS[1:])]
    return {"numbers": table_of(table, rows, *names)}


def lasting_time(probability: xr.DataArray, level: float = 0.5) -> xr.DataArray:
    """The saved time from which a probability is at least the level to the end, NaN for none."""
    likely = (probability >= level).isel(time=slice(None, None, -1)).cumprod("time")
    return probability.time.where(likely == 1).min("time")


# The figures with panels for networks and models.


def draw_separation(separation: Data, prediction: Data) -> np.ndarray:
    """Axes (slowest and fastest learning rate, source): separation probability, and its prediction."""
    part = separation.sel(criterion="projection", drop=True)

    def draw(ax: Any, h: float, source: str) -> None:
        own = part.sel(learning_rate=h, source=source)
        model = prediction.sel(model=source, learning_rate=h) if source in MODELS else None
        plot.probability(own, model, ax=ax)
        ax.set_title(f"{source}, h = {h:g}")

    rates = separation.learning_rate.values[[0, -1]].tolist()
    return panels(rates, separation.source.values.tolist(), draw, 3.9, sharex=True, sharey=True)


def draw_criteria(separation: Data) -> np.ndarray:
    """Axes (1, criterion): separation probability of the networks."""

    def draw(ax: Any, source: str, criterion: str) -> None:
        plot.probability(separation.sel(source=source, criterion=criterion, drop=True), ax=ax)
        ax.set_title(criterion.replace("_", " "))

    return panels(["network"], CRITERIA, draw, 2.3, sharey=True)


def draw_collapse(metrics: Mapping[str, Data]) -> np.ndarray:
    """Axes (metric, source): NC1 and NC2 over time."""

    def draw(ax: Any, metric: str, source: str) -> None:
        plot.collapse(metrics[source], [metric], ax=ax)
        ax.set_title(source.replace(", ", ",\n") if metric == METRICS[0] else "")

    return panels(METRICS, list(metrics), draw, 3.9, sharex=True, sharey="row")


def draw_rates(rates: Data) -> np.ndarray:
    """Axes (1, source): rates of collapse per iteration against the learning rate, on one scale."""

    def draw(ax: Any, metrics: Sequence[str], source: str) -> None:
        part = rates.sel(source=source, drop=True)
        plot.collapse_rate(part, metrics, clock="iteration", ax=ax)
        ax.set_title(source.replace(", ", ",\n"))

    axes = panels([METRICS], SOURCES, draw, 2.4)
    ends = np.array([ax.get_ylim() for ax in axes.ravel()])
    plt.setp(axes.ravel(), ylim=(ends.min(), ends.max()))
    # Slopes are in the text of the report.
    handles = [
        Line2D([], [], color=palette(2)[i], marker=class_marker(i), linestyle="none", label=label)
        for i, label in enumerate(("NC1", "NC2 distance to ETF"))
    ]
    with plot.style():
        one_legend(axes[0, 0].figure, handles)
    return axes
