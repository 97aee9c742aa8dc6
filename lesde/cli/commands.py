"""The command line: parses, calls, prints. Each command imports what it needs when it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lesde.cli import options
from lesde.cli.errors import ending, in_options, say
from lesde.cli.options import opt
from lesde.text import can_hold, put_in_ascii

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Locally elastic SDEs for the feature dynamics of classifiers: derive, simulate, analyse.",
    epilog='Example: `lesde derive --alpha "2/(1+t)" --beta -0.5 --classes 4 --transform logits`',
)


def _on_terminal() -> bool:
    """True if a progress bar would be seen."""
    return sys.stderr.isatty()


def _open(path: Path) -> Any:
    from lesde.files import open_store, recover

    if not path.exists():
        recover(path.parent)  # a killed command may have set it aside
    if not path.exists():
        raise ValueError(f"PATHS must be a Zarr store; {path} does not exist.")
    return open_store(path)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, opt("Print the version and exit.", "--version")] = False) -> None:
    """Locally elastic SDEs for the feature dynamics of classifiers: derive, simulate, analyse."""
    if version:
        from lesde import __version__

        say(__version__)
        raise typer.Exit


@app.command(epilog='Example: `lesde derive --alpha "2/(1+t)" --beta -0.5 --classes 4 --latex`')
@ending()
@options.takes_model
def derive(
    model: Any, latex: Annotated[bool, opt("Print a LaTeX document.", "--latex")] = False
) -> None:
    """Derive drift, diffusion, modes, closed forms and rates."""
    import lesde

    derivation = lesde.derive(model)
    text = derivation.latex(document=True) if latex else derivation.text()
    if not latex and not can_hold(text):
        text = derivation.text(unicode=False)
    say(text.removesuffix("\n"))


@app.command(
    epilog="Example: `lesde simulate paths.zarr --alpha 4 --beta -1 --classes 3 --until 3`"
)
@ending()
@options.takes_model
def simulate(
    model: Any,
    out: Annotated[Path, typer.Argument(help="Zarr store to write.")],
    start: Annotated[float, opt("Time of the initial state.")] = 0.0,
    until: Annotated[float, opt("Last time.")] = 5.0,
    points: Annotated[int, opt("Saved times, the first included.")] = 51,
    replicates: Annotated[int, opt("Independent trajectories.")] = 64,
    learning_rate: Annotated[
        list[float] | None, opt("Learning rate h; repeat for several. Selects the sgd engine.")
    ] = None,
    engine: Annotated[str, opt("auto, exact, torchsde or sgd.")] = "auto",
    method: Annotated[str | None, opt("Of the torchsde engine: euler, milstein or srk.")] = None,
    dt: Annotated[float | None, opt("Step of the torchsde engine.")] = None,
    sde: Annotated[
        str | None,
        opt(
            "Of the torchsde engine: plain, or with SGD's sampling noise at the learning rate, sampling or modified."
        ),
    ] = None,
    keep: Annotated[str, opt("features, or statistics per class.")] = "features",
    dtype: Annotated[str, opt("float32 or float64.")] = "float32",
    memory_limit: Annotated[
        str | None, opt('Most memory that a run may take, such as "500 MB".')
    ] = None,
    seed: Annotated[int, opt("Seed of all randomness.")] = 0,
    device: options.Device = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Simulate trajectories and write them to a Zarr store.

    Every class starts at the same random means in all trajectories, drawn from the seed.
    """
    import numpy as np

    import lesde
    from lesde.checks import check_seed
    from lesde.files import target, write

    place = target(out, "OUT", overwrite)
    place.check()
    if until <= start:
        raise ValueError(f"--until must be later than --start = {start:g}; got {until:g}.")
    given: dict[str, Any] = {"method": method, "dt": dt, "noise": sde}
    settings = {name: value for name, value in given.items() if value is not None}
    if settings and engine not in ("auto", "torchsde"):
        raise ValueError(
            f"--method, --dt and --sde are for --engine torchsde; got --engine {engine}."
        )
    rng = np.random.default_rng(check_seed(seed))
    means = rng.normal(0, 1 / np.sqrt(model.n_features), (model.n_classes, model.n_features))
    rates: Any = learning_rate[0] if learning_rate and len(learning_rate) == 1 else learning_rate
    paths = lesde.simulate(
        model,
        np.linspace(start, until, points),
        initial=means,
        replicates=replicates,
        learning_rate=rates if learning_rate else None,
        engine=lesde.TorchSDE(**settings) if settings else engine,
        keep=keep,
        dtype=dtype,
        memory_limit=memory_limit,
        seed=seed,
        device=device,
        progress=_on_terminal(),
    )
    write(paths, place)
    sizes = ", ".join(f"{name} {size}" for name, size in paths.sizes.items())
    say(f"wrote {out} ({sizes}; engine {paths.attrs['engine']})")


@app.command(epilog="Example: `lesde separation paths.zarr --criterion linear`")
@ending()
def separation(
    paths: options.PathsArgument,
    criterion: Annotated[str, opt("projection, linear or nearest_center.")] = "projection",
    confidence: options.Confidence = 0.95,
    out: options.TableFile = None,
    overwrite: options.Overwrite = False,
    every: options.AllRows = False,
) -> None:
    """Estimate the probability that all classes are separated, over time."""
    import lesde
    from lesde.cli.tables import print_dataset, table_target, write_table

    place = table_target(out, overwrite, paths)
    result = lesde.separation_probability(_open(paths), criterion=criterion, confidence=confidence)
    names = ["probability", "lower", "upper"]
    print_dataset(result, names, f"Separation probability ({criterion})", every)
    write_table(result, names, place)


@app.command(epilog="Example: `lesde collapse paths.zarr`")
@ending()
def collapse(
    paths: options.PathsArgument,
    confidence: options.Confidence = 0.95,
    out: options.TableFile = None,
    overwrite: options.Overwrite = False,
    every: options.AllRows = False,
) -> None:
    """Print neural-collapse metrics over time, and how fast they converge.

    A .csv file of --out holds the medians over replicates, a .zarr store the metrics of each.
    """
    import lesde
    from lesde.cli.tables import print_dataset, table_target, write_table

    place = table_target(out, overwrite, paths)
    metrics = lesde.neural_collapse(_open(paths))
    middle = metrics.median("replicate") if "replicate" in metrics.dims else metrics
    names = ["nc1", "nc1_trace", "nc1_cdnv", "nc2_etf", "nc2_norm_cv", "nc2_angle_std"]
    print_dataset(middle, names, "Neural collapse, median over replicates", every)
    found = lesde.convergence(metrics, metrics=["nc1", "nc2_etf"], confidence=confidence)
    laws = ["law", "rate", "rate_lower", "rate_upper"]
    print_dataset(found, laws, "Convergence, per unit of the clock")
    write_table(metrics if place and place.folder else middle, names, place)


@app.command(epilog="Example: `lesde fit paths.zarr --out fit.zarr`")
@ending()
def fit(
    paths: options.PathsArgument,
    transform: options.FitTransform = None,
    out: Annotated[Path | None, opt("Also write the fit to this Zarr store.")] = None,
    overwrite: options.Overwrite = False,
    every: options.AllRows = False,
) -> None:
    """Fit the elasticity kernel α(t), β(t) to paths.

    Prints their integrals A and B, the rates, and the index r of a tail t^−r.
    """
    import lesde
    from lesde.cli.tables import print_dataset, table_target, write_table

    if out is not None and out.suffix == ".csv":
        raise ValueError(f"--out must be a Zarr store, a fit being several tables; got {out}.")
    place = table_target(out, overwrite, paths)
    result = lesde.fit_elasticity(_open(paths), transform=transform)
    kind, confidence = result.attrs["transform"], result.attrs["confidence"]
    first, last = result.attrs["tail"]
    tables = {
        f"Fitted elasticity ({kind})": ["A", "A_se", "B", "B_se"],
        "Rates at the middle of intervals": ["alpha", "alpha_se", "beta", "beta_se"],
        f"Tail index r from t = {first:.4g} to {last:.4g}, {confidence:.0%} intervals": [
            "tail_index", "tail_index_lower", "tail_index_upper",
        ],
    }  # fmt: skip
    for title, names in tables.items():
        print_dataset(result, names, title, every)
    write_table(result, [], place)


@app.command(epilog="Example: `lesde plot fan paths.zarr --out fan.pdf`")
@ending()
def plot(
    figure: Annotated[options.Figure, typer.Argument(help="Which figure.")],
    paths: options.PathsArgument,
    out: Annotated[Path, opt("PNG, PDF or SVG file; GIF for the animation.")] = Path("figure.png"),
    overwrite: options.Overwrite = False,
    transform: options.FitTransform = None,
) -> None:
    """Draw a figure of paths."""
    import lesde
    from lesde.files import Target

    wanted = (".gif",) if figure == "animation" else (".png", ".pdf", ".svg")
    if out.suffix not in wanted:
        raise ValueError(f"--out must end in {' or '.join(wanted)} for {figure}; got {out}.")
    place = Target(out, "--out", overwrite=overwrite, inputs=[paths])
    place.check()
    data, draw, shown = _open(paths), lesde.plot, _on_terminal()
    figures: dict[str, Any] = {
        "fan": lambda: draw.separation_fan(data),
        "simplex": lambda: draw.simplex(data),
        "simplex3d": lambda: draw.simplex3d(data),
        "collapse": lambda: draw.collapse(lesde.neural_collapse(data)),
        "probability": lambda: draw.probability(lesde.separation_probability(data)),
        "elasticity": lambda: draw.elasticity(lesde.fit_elasticity(data, transform=transform)),
    }
    if figure == "animation":
        place.put(lambda new: draw.animate(data, new, progress=shown))
    else:
        drawn = figures[figure]()
        place.put(lambda new: draw.save(drawn, new))
    say(f"wrote {out}")


def _study(settings: Any, show_config: bool, run: Callable[[], object]) -> None:
    """Run a study, or print its settings."""
    if show_config:
        say(settings.model_dump_json(indent=2))
    else:
        run()


@app.command(epilog="Example: `lesde demo --out runs/demo`")
def demo(
    out: options.StudyFolder = Path("runs/demo"),
    config: options.Config = None,
    seed: options.Seed = None,
    show_config: options.ShowConfig = False,
) -> None:
    """Train networks on handwritten digits, fit and simulate their LE-SDE, compare, report.

    Takes a few minutes on two cores. What is done stays readable after Ctrl-C, and a second run
    continues from it.
    """
    from lesde.studies import DemoConfig, load_config
    from lesde.studies.demo import run

    with ending(out):
        settings = load_config(DemoConfig, config, {"seed": seed})
        _study(settings, show_config, lambda: run(settings, out))


@app.command(epilog="Example: `lesde rates --out runs/rates`")
def rates(
    out: options.StudyFolder = Path("runs/rates"),
    replicates: Annotated[
        int | None, opt("Networks per learning rate: half are fitted, half are predicted.")
    ] = None,
    config: options.Config = None,
    seed: options.Seed = None,
    show_config: options.ShowConfig = False,
) -> None:
    """Compare NC1 and NC2 of networks on digits with the LE-SDE fitted to other networks, over learning rates.

    Seven learning rates over almost two decades; the report says over which of them the networks lie in the
    model's interval. Takes a few minutes on two cores. What is done stays readable after Ctrl-C, and a second
    run continues from it.
    """
    from lesde.studies import RateConfig, load_config
    from lesde.studies.rates import run

    with ending(out):
        settings = load_config(RateConfig, config, {"replicates": replicates, "seed": seed})
        _study(settings, show_config, lambda: run(settings, out))


@app.command(epilog="Example: `lesde reproduce fig4 --out runs/geomnist`")
def reproduce(
    figure: Annotated[
        Literal["fig1", "fig3", "fig4", "fig5", "all"],
        typer.Argument(help="Which figure, by its number in the paper."),
    ],
    preset: Annotated[
        Literal["quick", "paper"],
        opt(
            "quick: 12 trials, about ten minutes on two cores for all; paper: the full protocol, 100 trials, about an hour."
        ),
    ] = "quick",
    out: Annotated[
        Path | None, opt("Folder for data, figures and report; by default runs/reproduce-DATA.")
    ] = None,
    data: Annotated[Literal["geomnist", "cifar10"] | None, opt("Which images.")] = None,
    cifar: Annotated[Path | None, opt("A local copy of CIFAR-10: its archive or folder.")] = None,
    trials: Annotated[
        int | None, opt("Independent networks at each noise level, 3 or more.")
    ] = None,
    seed: options.Seed = None,
    device: options.Device = None,
    config: options.Config = None,
    show_config: options.ShowConfig = False,
) -> None:
    """Reproduce figures of Zhang, Wang and Su (NeurIPS 2021): train, estimate, draw, report.

    Figures share trainings. What is trained stays readable after Ctrl-C, and a second run, also of another
    figure or with more trials, continues from it.
    """
    from lesde.studies import load_protocol
    from lesde.studies.reproduce import FIGURES, run

    with ending(out or Path("runs")):
        settings = load_protocol(preset, {"data": data, "trials": trials, "seed": seed}, config)
        if cifar is not None and settings.data != "cifar10":
            raise ValueError("--cifar is for --data cifar10; give both, or neither for GeoMNIST.")
        folder = out or Path(f"runs/reproduce-{settings.data}")
        wanted = FIGURES if figure == "all" else (figure,)
        _study(settings, show_config, lambda: run(wanted, settings, folder, cifar, device))


def main() -> None:
    """The entry point ``lesde``."""
    import warnings

    def one_line(message: Any, category: Any, *rest: Any, **keywords: Any) -> None:
        say(f"warning: {in_options(str(message))}", fg="yellow", err=True)

    warnings.showwarning = one_line
    put_in_ascii()
    app()
