"""The demonstration study: from handwritten digits to a report, in resumable steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import lesde
from lesde.analysis.separation.predict import predict_from_law
from lesde.model.lesde import class_average
from lesde.studies.digits import bar, digits_folder, trained
from lesde.studies.runner import DemoConfig, Report, StudyFolder, numbers, summary, verdict
from lesde.text import format_number, print_rows

__all__ = [
    "MODELS",
    "Drawer",
    "analyse_collapse",
    "compare",
    "fit_models",
    "predict",
    "run",
    "separate",
    "simulate_models",
]


# --------------------------------------------------------------------------------------------------
# The steps of the demonstration study: each takes datasets and returns datasets.

MODELS = {"identity": "I-model", "logits": "L-model"}
STEP = 0.1
CRITERIA = ("projection", "linear", "nearest_center")
PREDICTED = ["probability", "lower", "upper", "pairwise"]
Progress = Callable[[int, int], None]


def from_start(config: DemoConfig, paths: xr.Dataset) -> xr.Dataset:
    """The frames from the model's start on."""
    return paths.isel(time=slice(int(np.searchsorted(paths.time, config.model_start)), None))


def fit_models(config: DemoConfig, network: xr.Dataset) -> dict[str, xr.Dataset]:
    """Fit α(t), β(t) for every learning rate, in the I-model and the L-model."""
    frames = from_start(config, network)
    # Longer intervals tell α and β apart where the noise of one is as large as its movement. The
    # last recording is kept, so that the kernel is known to the end.
    kept = np.arange(frames.sizes["time"] - 1, -1, -config.fit_every)[::-1]
    frames = frames.isel(time=np.union1d([0], kept))
    with warnings.catch_warnings():
        # Tail indices that cannot be given are NaN in the fit, and the report says so.
        warnings.filterwarnings("ignore", message="no (tail|log_slope)_index")
        return {
            transform: lesde.fit_elasticity(
                frames, transform=transform, confidence=config.confidence, estimator="averages"
            )
            for transform in MODELS
        }


def by_class(frames: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Features (replicate, time, sample, feature), float64, sorted by class; samples a class."""
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


def make_model(
    config: DemoConfig, transform: str, fit: xr.Dataset, frames: xr.Dataset, rate: float
) -> lesde.LESDE:
    """The LE-SDE with the fitted kernel and noise of one learning rate."""
    sigma, _ = within_noise(frames)
    K, p = len(config.classes), frames.sizes["feature"]
    kernel = lesde.fitted_kernel(fit, rate)
    return lesde.LESDE(kernel, K, p, config.probe_per_class, transform=transform, noise=sigma)


def starts(frames: xr.Dataset) -> np.ndarray:
    """The networks' states at the model's start, (replicate, sample, feature), sorted by class."""
    return by_class(frames.isel(time=[0]))[0][:, 0]


def simulate_models(
    config: DemoConfig,
    network: xr.Dataset,
    fits: dict[str, xr.Dataset],
    progress: Progress,
) -> tuple[xr.Dataset, xr.Dataset]:
    """Simulate the fitted LE-SDEs with torchsde from the networks' own starts; and their exact law.

    Returns
    -------
    paths, law : xarray.Dataset
        With dimensions ``model`` and ``learning_rate``; the law for the mean start of the networks.
    """
    frames = from_start(config, network)
    times = frames.time.values
    total, done = len(MODELS) * len(config.learning_rates), 0
    all_paths, all_laws = [], []
    for transform in MODELS:
        paths_of, law_of = [], []
        for index, rate in enumerate(config.learning_rates):
            one = frames.isel(learning_rate=index)
            model = make_model(config, transform, fits[transform], one, rate)
            initial = starts(one)
            paths = lesde.simulate(
                model,
                times,
                initial=np.repeat(initial, config.copies, axis=0),
                replicates=config.copies * len(initial),
                # Of weak order 2, so that these few steps are enough.
                engine=lesde.TorchSDE(method="srk", dt=STEP),
                seed=config.seed + 1000 + done,
            )
            law = lesde.law(model, times, initial=class_average(initial, model.counts).mean(0))
            paths_of.append(paths.assign_coords(learning_rate=rate))
            law_of.append(law.assign_coords(learning_rate=rate))
            done += 1
            progress(done, total)
        all_paths.append(xr.concat(paths_of, "learning_rate", combine_attrs="drop_conflicts"))
        all_laws.append(xr.concat(law_of, "learning_rate", combine_attrs="drop_conflicts"))
    names = xr.DataArray(list(MODELS.values()), dims="model", name="model")
    paths = xr.concat(all_paths, names, combine_attrs="drop_conflicts", join="override")
    law = xr.concat(all_laws, names, combine_attrs="drop_conflicts", join="override")
    iteration = frames.iteration if "iteration" in frames.coords else None
    return (paths if iteration is None else paths.assign_coords(iteration=iteration)), law


def sources(network: xr.Dataset, simulated: xr.Dataset) -> dict[str, xr.Dataset]:
    """The features to compare, by name: the networks' and each model's."""
    models = {str(name): simulated.sel(model=name, drop=True) for name in simulated.model.values}
    return {"network": network, **models}


def separate(
    config: DemoConfig, network: xr.Dataset, simulated: xr.Dataset, progress: Progress
) -> xr.Dataset:
    """Separation probabilities of networks and models by every criterion, dims source, criterion, …"""
    parts = sources(from_start(config, network), simulated)
    total, done, rows = len(parts) * len(CRITERIA), 0, []
    for paths in parts.values():
        columns = []
        for criterion in CRITERIA:
            columns.append(
                lesde.separation_probability(
                    paths,
                    criterion=criterion,
                    confidence=config.confidence,
                    direction="own",  # networks start, and so point, in different directions
                )
            )
            done += 1
            progress(done, total)
        names = xr.DataArray(list(CRITERIA), dims="criterion", name="criterion")
        rows.append(xr.concat(columns, names, combine_attrs="drop_conflicts", join="override"))
    labels = xr.DataArray(list(parts), dims="source", name="source")
    return xr.concat(rows, labels, combine_attrs="drop_conflicts", join="override")


def predict(
    config: DemoConfig, network: xr.Dataset, fits: dict[str, xr.Dataset], progress: Progress
) -> xr.Dataset:
    """Analytic separation probabilities of the models, averaged over the networks' starts."""
    frames = from_start(config, network)
    # Evenly in log time, where the probability changes.
    wanted = np.geomspace(
        max(frames.time.values[0], frames.time.values[1] / 10),
        frames.time.values[-1],
        config.predicted_times,
    )
    chosen = np.unique(np.abs(frames.time.values[:, None] - wanted).argmin(0))
    total = len(MODELS) * len(config.learning_rates) * frames.sizes["replicate"]
    done, by_model = 0, []
    for transform in MODELS:
        by_rate = []
        for index, rate in enumerate(config.learning_rates):
            one = frames.isel(learning_rate=index)
            model = make_model(config, transform, fits[transform], one, rate)
            each = []
            for initial in starts(one):
                # The fitted kernel jumps at the saved times only, so the law is made for all of them.
                law = lesde.law(model, frames.time.values, initial=initial).isel(time=chosen)
                each.append(predict_from_law(law))
                done += 1
                progress(done, total)
            # The replicates' starts differ: the probability is the mean over them.
            joined = xr.concat([part[PREDICTED] for part in each], "replicate", join="override")
            by_rate.append(joined.mean("replicate", skipna=False).assign_coords(learning_rate=rate))
        by_model.append(xr.concat(by_rate, "learning_rate"))
    names = xr.DataArray(list(MODELS.values()), dims="model", name="model")
    return xr.concat(by_model, names, join="override")


def analyse_collapse(
    config: DemoConfig, network: xr.Dataset, penultimate: xr.Dataset, simulated: xr.Dataset
) -> tuple[dict[str, xr.Dataset], xr.Dataset]:
    """Collapse metrics by source, and their convergence against time and iterations."""
    parts = sources(from_start(config, network), simulated)
    metrics = {name: lesde.neural_collapse(paths) for name, paths in parts.items()}
    metrics["network, last hidden layer"] = lesde.neural_collapse(from_start(config, penultimate))
    rates = [
        lesde.convergence(
            values, metrics=["nc1", "nc2_etf"], threshold=0.2, confidence=config.confidence
        )
        for values in metrics.values()
    ]
    labels = xr.DataArray(list(metrics), dims="source", name="source")
    return metrics, xr.concat(rates, labels, combine_attrs="drop_conflicts", join="override")


def compare(
    config: DemoConfig, network: xr.Dataset, law: xr.Dataset, fits: dict[str, xr.Dataset]
) -> xr.Dataset:
    """How well the linear model describes the networks, as numbers.

    Returns
    -------
    xarray.Dataset
        Over ``model`` and ``learning_rate``: ``r_squared``, share of the class means' increments that
        the fitted rates explain in networks they were not fitted to; ``mean_error``, relative error
        (root mean square over time) of the law's class means against the networks' average;
        ``inside``, share of the averaged class-mean coordinates within the law's interval at the
        given confidence (expected: the confidence); ``noise_ratio``, noise of the class means over
        what the spread within classes implies (expected: 1); ``within_r_squared``, share of the
        within-class variance's change that linear growth explains.
    """
    from scipy.stats import norm

    frames = from_start(config, network)
    z = norm.ppf(0.5 + config.confidence / 2)
    shape = (len(MODELS), len(config.learning_rates))
    names = (
        "r_squared",
        "r_squared_common",
        "r_squared_common_se",
        "mean_error",
        "inside",
        "noise_ratio",
        "within_r_squared",
    )
    out: dict[str, np.ndarray] = {name: np.full(shape, np.nan) for name in names}
    for i, (transform, label) in enumerate(MODELS.items()):
        for j in range(shape[1]):
            one = frames.isel(learning_rate=j)
            means = class_average(*by_class(one)).mean(0)[1:]
            exact = law.sel(model=label).isel(learning_rate=j, time=slice(1, None))
            expected = exact["mean"].transpose("time", "class", "feature").values
            C = exact["covariance"].values.reshape(len(expected), expected[0].size, -1)
            variance = np.diagonal(C, axis1=1, axis2=2) / one.sizes["replicate"]
            gap = np.abs(means - expected).reshape(len(expected), -1)
            sigma, explained = within_noise(one)
            fit = fits[transform].isel(learning_rate=j)
            out["r_squared"][i, j] = float(fit["r_squared"])
            for name in ("r_squared_common", "r_squared_common_se"):
                out[name][i, j] = float(fit[name])
            out["mean_error"][i, j] = np.sqrt((gap**2).sum() / (means**2).sum())
            out["inside"][i, j] = (gap <= z * np.sqrt(variance)).mean()
            out["noise_ratio"][i, j] = float(fit["residual_scale"]) / sigma if sigma else np.nan
            out["within_r_squared"][i, j] = explained
    coords: dict[str, Any] = {
        "model": list(MODELS.values()),
        "learning_rate": list(config.learning_rates),
    }
    return xr.Dataset({n: (("model", "learning_rate"), v) for n, v in out.items()}, coords)


# --------------------------------------------------------------------------------------------------
# The figures of the demonstration study: network and model side by side.

Progress_of_demo_figures = Callable[[int, int], None]
PAGE = 7.0  # inches: two columns of a journal


def _columns(count: int, rows: int, height: float, **keywords: Any) -> Any:
    """A figure of the page's width, and its axes (rows, count)."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        rows, count, figsize=(PAGE, height), squeeze=False, layout="constrained", **keywords
    )
    return figure, axes


def _log_time(ax: Any) -> None:
    """A logarithmic time axis with labels that have room."""
    from lesde.plot.style import tidy_log

    ax.set_xscale("log")
    tidy_log(ax, "x")


def _same_limits(axes: Any) -> None:
    """Vertical limits that hold those of all axes, so that they can be compared, in one notation."""
    ends = np.array([ax.get_ylim() for ax in axes])
    for ax in axes:
        ax.set_ylim(ends[:, 0].min(), ends[:, 1].max())


def _one_legend(figure: Any, axes: Any) -> None:
    """Replace the legends of the axes, which say the same, by one above all."""
    legends = [ax.get_legend() for ax in axes.ravel() if ax.get_legend() is not None]
    legends += figure.legends
    if not legends:
        return
    fullest = max(legends, key=lambda legend: len(legend.legend_handles))
    handles = list(fullest.legend_handles)
    labels = [text.get_text() for text in fullest.get_texts()]
    title = fullest.get_title().get_text()
    for legend in legends:
        legend.remove()
    figure.legend(
        handles,
        labels,
        title=title or None,
        loc="outside upper center",
        ncols=len(labels),
        handlelength=fullest.handlelength,
    )


def _metric_legend(figure: Any, axes: Any) -> None:
    """One legend for the metrics; slopes are in the text of the report."""
    from matplotlib.lines import Line2D

    entries: dict[str, Any] = {}
    for container in (c for ax in axes for c in ax.containers):
        line = container.lines[0]
        entries.setdefault(str(line.get_color()), line)
    handles = [
        Line2D([], [], color=colour, marker=line.get_marker(), linestyle="none")
        for colour, line in entries.items()
    ]
    labels = ["NC1", "NC2 distance to ETF"][: len(handles)]
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def _snapshots(paths: xr.Dataset) -> list[float]:
    """Times that show the collapse: the start, and evenly in log time to the end."""
    end = float(paths.time[-1])
    return [float(paths.time[0]), end / 16, end / 4, end]


class Drawer:
    """Draws figures into a folder and puts them into the report.

    Parameters
    ----------
    folder : StudyFolder
        Figures go into its folder ``figures``.
    """

    def __init__(self, folder: StudyFolder):
        self.folder = folder

    def _save(self, report: Report, drawn: Any, name: str, caption: str) -> None:
        import matplotlib.pyplot as plt

        self.folder.put_figure(self.folder.path / "figures" / name, drawn)
        plt.close(np.asarray(drawn, dtype=object).ravel()[0].get_figure(root=True))
        report.figure(f"{name}.png", caption)

    def networks(
        self, report: Report, network: xr.Dataset, progress: Progress_of_demo_figures
    ) -> None:
        """Fan, snapshots, 3-D view and animation of one network's features."""
        from lesde import plot

        axes: Any
        h = float(network.learning_rate[0])
        named = f"One network at h = {h:g}"
        axes = plot.separation_fan(network, learning_rate=h)
        self._save(report, axes, "fan", f"{named}: logits of the probe images, projected.")
        progress(1, 4)
        axes = plot.simplex(network, times=_snapshots(network), learning_rate=h)
        self._save(report, axes, "simplex", f"{named}: snapshots in the plane of the class means.")
        progress(2, 4)
        axes = plot.simplex3d(network, learning_rate=h)
        self._save(report, axes, "simplex3d", f"{named}: the logits in three dimensions.")
        progress(3, 4)
        import matplotlib.pyplot as plt

        def film(new: Path) -> None:
            made = plot.animate(network, new, learning_rate=h, frames=40, dpi=100)
            plt.close(made._fig)  # type: ignore[attr-defined]

        self.folder.put(self.folder.path / "figures" / "collapse.gif", film)
        report.add("[Animation of the collapse](figures/collapse.gif)")
        progress(4, 4)

    def fits(self, report: Report, fits: dict[str, xr.Dataset]) -> None:
        """Â, B̂, α̂, β̂ of both models."""
        from lesde import plot

        for transform, fit in fits.items():
            axes = plot.elasticity(fit)
            label = MODELS[transform]
            self._save(report, axes, f"elasticity_{transform}", f"Fitted elasticity, {label}.")

    def models(self, report: Report, network: xr.Dataset, simulated: xr.Dataset, law: Any) -> None:
        """Exact law against the networks' class means; one simulated fan."""
        from lesde import plot

        axes: Any
        for model in map(str, law.model.values):
            short = model.split("-")[0]
            for which, h in (
                ("slow", network.learning_rate[0]),
                ("fast", network.learning_rate[-1]),
            ):
                axes = plot.class_means(
                    network, law.sel(model=model, drop=True), learning_rate=float(h)
                )
                self._save(
                    report,
                    axes,
                    f"class_means_{short}_{which}",
                    f"{model}, h = {float(h):g}: exact law (lines) and networks' class means.",
                )
        last = str(law.model.values[-1])
        axes = plot.separation_fan(
            simulated.sel(model=last, drop=True), learning_rate=float(network.learning_rate[0])
        )
        self._save(
            report, axes, "fan_model", f"The fitted {last}, simulated from a network's start."
        )

    def separation(self, report: Report, separation: xr.Dataset, prediction: xr.Dataset) -> None:
        """Probability over time, by source; and by criterion for the networks."""
        from lesde import plot

        sources = [str(name) for name in separation.source.values]
        rates = separation.learning_rate.values[[0, -1]]
        with plot.style():
            figure, axes = _columns(len(sources), len(rates), 3.9, sharex=True, sharey=True)
            for row, h in enumerate(rates):
                for column, source in enumerate(sources):
                    ax = axes[row, column]
                    predicted = None
                    if source in prediction.model.values:
                        predicted = prediction.sel(model=source, drop=True).sel(learning_rate=h)
                    part = separation.sel(source=source, criterion="projection", drop=True)
                    plot.probability(part.sel(learning_rate=h), predicted, ax=ax)
                    ax.set_title(f"{source}, h = {float(h):g}")
                    _log_time(ax)
                    if column:
                        ax.set_ylabel("")
                    if row + 1 < len(rates):
                        ax.set_xlabel("")
            _one_legend(figure, axes)
        caption = (
            "Probability that all classes are separated: networks, and models with prediction."
        )
        self._save(report, axes, "separation", caption)
        criteria = [str(name) for name in separation.criterion.values]
        with plot.style():
            figure, axes = _columns(len(criteria), 1, 2.3, sharey=True)
            for ax, criterion in zip(axes[0], criteria, strict=True):
                plot.probability(
                    separation.sel(source="network", criterion=criterion, drop=True), ax=ax
                )
                ax.set_title(criterion.replace("_", " "))
                _log_time(ax)
                if criterion != criteria[0]:
                    ax.set_ylabel("")
            _one_legend(figure, axes)
        self._save(report, axes, "separation_criteria", "The networks by three criteria.")

    def collapse(self, report: Report, metrics: dict[str, xr.Dataset], rates: xr.Dataset) -> None:
        """NC1 and NC2 over time, a column for each source; rates against the learning rate."""
        from lesde import plot

        names = ["nc1", "nc2_etf"]
        with plot.style():
            figure, axes = _columns(len(metrics), len(names), 3.9, sharex=True, sharey="row")
            for column, (source, values) in enumerate(metrics.items()):
                plot.collapse(values, names, ax=axes[:, column])
                axes[0, column].set_title(source.replace(", ", ",\n"))
                for ax in axes[:, column]:
                    _log_time(ax)
                    if column:
                        ax.set_ylabel("")
                    if ax is not axes[-1, column]:
                        ax.set_xlabel("")
            _one_legend(figure, axes)
        self._save(report, axes, "collapse", "NC1 and NC2 over time: networks and models.")
        shown = [str(name) for name in rates.source.values]
        with plot.style():
            figure, axes = _columns(len(shown), 1, 2.4)
            for ax, source in zip(axes[0], shown, strict=True):
                plot.collapse_rate(
                    rates.sel(source=source, drop=True), names, clock="iteration", ax=ax
                )
                ax.set_title(source.replace(", ", ",\n"))
                if source != shown[0]:
                    ax.set_ylabel("")
                if ax.get_legend() is not None:
                    ax.get_legend().remove()
                for legend in list(figure.legends):
                    legend.remove()
            _same_limits(axes[0])
            for ax in axes[0, 1:]:
                ax.tick_params(labelleft=False)
            _metric_legend(figure, axes[0])
        self._save(report, axes, "collapse_rate", "Collapse rate per iteration against h.")


# --------------------------------------------------------------------------------------------------


def run(config: DemoConfig, out: str | Path) -> Path:
    """Run the study and write data, figures and report.

    Parameters
    ----------
    config : DemoConfig
    out : path
        Folder; ``data`` (Zarr), ``figures`` (PNG and PDF), ``report.md``. Training that an earlier run
        with the same settings finished is read back, learning rate by learning rate.

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
    with digits_folder(out, "demo", config) as folder:
        return _run(config, folder)


def _run(config: DemoConfig, folder: StudyFolder) -> Path:
    data, write = folder.path / "data", folder.put_store
    draw = Drawer(folder)
    report = Report(
        folder.path / "report.md",
        "Neural networks on digits, and their locally elastic SDE",
        put=folder.put_text,
    )
    report.add("## What was run", _introduction(config))

    network, penultimate = trained(config, data)
    report.add("## The networks", _training_words(network))
    with bar("figures of the networks") as progress:
        draw.networks(report, network, progress)

    with bar("fitting the kernel") as progress:
        fits = fit_models(config, network)
        progress(1, 1)
    for name, fit in fits.items():
        write(fit, data / f"fit_{name}.zarr")
    report.add("## The fitted kernel", _FIT_WORDS)
    draw.fits(report, fits)
    report.add(_tail_words(fits))

    with bar("simulating the LE-SDE") as progress:
        simulated, law = simulate_models(config, network, fits, progress)
    write(simulated, data / "simulated.zarr")
    write(law, data / "law.zarr")
    comparison = compare(config, network, law, fits)
    write(comparison, data / "comparison.zarr")
    report.add("## Where the linear model fits, and where not", *verdict(config, comparison))
    draw.models(report, from_start(config, network), simulated, law)

    with bar("separation probabilities") as progress:
        separation = separate(config, network, simulated, progress)
    with bar("analytic prediction") as progress:
        prediction = predict(config, network, fits, progress)
    write(separation, data / "separation.zarr")
    write(prediction, data / "prediction.zarr")
    report.add("## Separation", _SEPARATION_WORDS)
    draw.separation(report, separation, prediction)

    with bar("neural collapse") as progress:
        metrics, rates = analyse_collapse(config, network, penultimate, simulated)
        progress(1, 1)
    for name, values in metrics.items():
        write(values, data / f"collapse_{_slug(name)}.zarr")
    write(rates, data / "convergence.zarr")
    report.add("## Neural collapse", _COLLAPSE_WORDS)
    draw.collapse(report, metrics, rates)
    report.add(_learning_rate_words(rates))

    header, rows = numbers(config, comparison, separation, rates, metrics)
    report.add("## Numbers", _TABLE_WORDS.format(level=f"{config.confidence:.0%}"))
    report.table(header, rows)
    report.summarise(*summary(config, comparison, separation, rates))
    for title, columns in _TERMINAL.items():
        print_rows(title, [header[i] for i in columns], [[row[i] for i in columns] for row in rows])
    print(f"report: {report.path}")
    return report.path


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower())


def _introduction(config: DemoConfig) -> str:
    rates = ", ".join(f"{h:g}" for h in config.learning_rates)
    widths = "-".join(map(str, (64, *config.widths, len(config.classes))))
    return (
        f"{config.replicates} networks ({widths}, ReLU) at each of the learning rates {rates}, trained by "
        f"plain SGD with batch size 1 and cross-entropy on {config.train_per_class} images of each of the "
        f"digits {', '.join(map(str, config.classes))} from scikit-learn. Time is t = learning rate × "
        f"iteration, up to {config.total_time:g}. The features are the logits of "
        f"{config.probe_per_class} fixed training images a class. The LE-SDE is fitted and runs from "
        f"t = {config.model_start:g}, started at the networks' own features."
    )


def _training_words(network: xr.Dataset) -> str:
    end = network.isel(time=-1)
    cells = [
        f"h = {float(h):g}: loss {format_number(float(part.loss.median()))}, accuracy "
        f"{float(part.accuracy.mean()):.1%}"
        for h, part in ((h, end.sel(learning_rate=h)) for h in network.learning_rate.values)
    ]
    return (
        "At the end, median loss and mean accuracy on the probe images: " + "; ".join(cells) + "."
    )


def _tail_words(fits: dict[str, xr.Dataset]) -> str:
    """The tail index of α − β for each model and learning rate."""
    lines = ["Tail index r of α − β ~ t^(−r) (r < 1 separates, r > 1 does not):", ""]
    for transform, fit in fits.items():
        level = fit.sel(level="alpha_minus_beta")
        for h in fit.learning_rate.values:
            r = level.sel(learning_rate=h)
            value, low, high = (float(r[f"tail_index{end}"]) for end in ("", "_lower", "_upper"))
            text = f"{value:.2f} [{low:.2f}, {high:.2f}]" if value == value else "not defined"
            lines.append(f"- {MODELS[transform]}, h = {float(h):g}: {text}")
    return "\n".join(lines)


def _learning_rate_words(rates: xr.Dataset) -> str:
    """How the decay rates depend on the learning rate, for every source."""
    if "learning_rate_exponent" not in rates:
        return ""
    lines = ["Rate of decay per iteration ~ h^c, with the exponent c:", ""]
    for source in rates.source.values:
        for metric in rates.metric.values:
            one: Any = rates.sel(source=source, metric=metric, clock="iteration")
            c = float(one.learning_rate_exponent)
            low, high = (float(one[f"learning_rate_exponent_{s}"]) for s in ("lower", "upper"))
            text = f"{c:.2f} [{low:.2f}, {high:.2f}]" if c == c else "not defined (a rate ≤ 0)"
            lines.append(f"- {source}, {metric}: {text}")
    return "\n".join(lines)


# The terminal shows the report's table in parts, each of which fits 80 columns.
_TERMINAL = {
    "Separation": (0, 1, 2, 3),
    "NC1, and its rate of decay per unit of time": (0, 1, 4, 5),
    "NC2, and its rate of decay per unit of time": (0, 1, 6, 7),
    "How well the LE-SDE fits": (0, 1, 8, 9, 10),
}
_FIT_WORDS = (
    "α̂ is the strength with which a step on a sample moves its own class, β̂ that for the others; Â "
    "and B̂ are their integrals from the model's start. Bands are confidence intervals from the "
    "scatter between networks."
)
_SEPARATION_WORDS = (
    "All pairs of classes at once, by projection on each network's own gaps of class means. The shaded "
    "bracket is the analytic prediction for the fitted model: Bonferroni and Fréchet bounds, averaged "
    "over the networks' starts."
)
_COLLAPSE_WORDS = (
    "NC1 and the NC2 error of the logits, network beside model, and of the last hidden layer. Rates are "
    "fits of exponential decay from the model's start on."
)
_TABLE_WORDS = (
    "Rates are per unit of time; ± and brackets of rates and P are {level} intervals, ± of R² common is one "
    "standard error. P stays ≥ ½ from t: the first recording after the last one at which P was below ½; "
    "never: it is below ½ at the end. R² common: share of the class means' movement common to the networks "
    "that the model explains, noise taken off, so that it can exceed 1 by chance. Error of means: relative, of the law's class means. Inside: share of "
    "class-mean coordinates inside the law's interval."
)
