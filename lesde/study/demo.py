"""The demonstration study: from handwritten digits to a report, in resumable steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xarray as xr

from lesde.study import demo_figures as figures
from lesde.study import demo_steps as steps
from lesde.study.config import DemoConfig
from lesde.study.digit_networks import bar, digits_folder, trained
from lesde.study.folder import StudyFolder
from lesde.study.report import Report, numbers, summary, verdict
from lesde.study.tables import format_number, print_rows

__all__ = ["run"]


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
    draw = figures.Drawer(folder)
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
        fits = steps.fit_models(config, network)
        progress(1, 1)
    for name, fit in fits.items():
        write(fit, data / f"fit_{name}.zarr")
    report.add("## The fitted kernel", _FIT_WORDS)
    draw.fits(report, fits)
    report.add(_tail_words(fits))

    with bar("simulating the LE-SDE") as progress:
        simulated, law = steps.simulate_models(config, network, fits, progress)
    write(simulated, data / "simulated.zarr")
    write(law, data / "law.zarr")
    comparison = steps.compare(config, network, law, fits)
    write(comparison, data / "comparison.zarr")
    report.add("## Where the linear model fits, and where not", *verdict(config, comparison))
    draw.models(report, steps.from_start(config, network), simulated, law)

    with bar("separation probabilities") as progress:
        separation = steps.separate(config, network, simulated, progress)
    with bar("analytic prediction") as progress:
        prediction = steps.predict(config, network, fits, progress)
    write(separation, data / "separation.zarr")
    write(prediction, data / "prediction.zarr")
    report.add("## Separation", _SEPARATION_WORDS)
    draw.separation(report, separation, prediction)

    with bar("neural collapse") as progress:
        metrics, rates = steps.analyse_collapse(config, network, penultimate, simulated)
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
            lines.append(f"- {steps.MODELS[transform]}, h = {float(h):g}: {text}")
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
