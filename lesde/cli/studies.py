"""The commands that run a whole study: ``lesde demo``, ``lesde reproduce`` and ``lesde rates``."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr

import lesde
from lesde.cli.errors import fail, failed, interrupted, say
from lesde.files import Target

__all__ = ["demo", "draw", "figure_target", "rates", "reproduce"]


# --------------------------------------------------------------------------------------------------
# What ``lesde plot`` does: a figure of paths, by name.


def figure_target(figure: str, path: Path, overwrite: bool, paths: Path) -> Target:
    """Where the named figure of ``paths`` goes; refused before anything is computed."""
    wanted = (".gif",) if figure == "animation" else (".png", ".pdf", ".svg")
    if path.suffix not in wanted:
        raise ValueError(f"--out must end in {' or '.join(wanted)} for {figure}; got {path}.")
    place = Target(path, "--out", overwrite=overwrite, inputs=[paths])
    place.check()
    return place


def draw(
    figure: str,
    paths: xr.Dataset,
    out: Path,
    transform: str | None = None,
    progress: bool = False,
) -> None:
    """Draw the named figure of paths and save it.

    Parameters
    ----------
    figure : {"fan", "simplex", "simplex3d", "collapse", "probability", "elasticity", "animation"}
    paths : xarray.Dataset
        As :func:`lesde.simulate` returns.
    out : Path
        PNG, PDF or SVG; GIF for the animation.
    transform : str, optional
        Of the fit behind the figure "elasticity"; by default that of the recorded model.
    progress : bool, default False
        Whether to show how far an animation is.
    """
    import matplotlib.pyplot as plt

    from lesde import plot

    if figure == "animation":
        plot.animate(paths, out, progress=progress)
        return
    drawn: Any
    if figure == "fan":
        drawn = plot.separation_fan(paths)
    elif figure == "simplex":
        drawn = plot.simplex(paths)
    elif figure == "simplex3d":
        drawn = plot.simplex3d(paths)
    elif figure == "collapse":
        drawn = plot.collapse(lesde.neural_collapse(paths))
    elif figure == "probability":
        drawn = plot.probability(lesde.separation_probability(paths))
    else:
        drawn = plot.elasticity(lesde.fit_elasticity(paths, transform=transform))
    plot.save(drawn, out)
    plt.close(np.ravel(drawn)[0].figure)


# --------------------------------------------------------------------------------------------------

Seed = Annotated[int | None, typer.Option(help="Seed of all randomness.")]
ShowConfig = Annotated[bool, typer.Option("--show-config", help="Print the settings and exit.")]


def _as_it_is(error: Exception) -> typer.Exit:
    """Settings keep the names that they have in the file."""
    return failed(str(error))


@contextmanager
def _ending(
    done: str,
    folder: Callable[[], Path | None],
    say: Callable[[Exception], typer.Exit] = _as_it_is,
) -> Iterator[None]:
    """How a study ends early: with one line on what was wrong, or on where what is ``done`` lies.

    ``folder`` is asked at the end, as it may depend on the settings.
    """
    try:
        yield
    except (ValueError, TypeError, ArithmeticError) as error:
        raise say(error) from None
    except OSError as error:
        if error.errno == errno.EPIPE:  # nobody reads on
            raise
        out = folder()
        why = f"{error.strerror or error}: {error.filename or out}"
        raise failed(f"--out: {out} cannot be used ({why}); give another folder.") from None
    except KeyboardInterrupt:
        raise interrupted(done, folder()) from None


def demo(
    out: Annotated[Path, typer.Option(help="Folder for data, figures and report.")] = Path(
        "runs/demo"
    ),
    config: Annotated[
        Path | None, typer.Option(help="JSON file with settings; see `lesde demo --show-config`.")
    ] = None,
    seed: Seed = None,
    show_config: ShowConfig = False,
) -> None:
    """Train networks on handwritten digits, fit and simulate their LE-SDE, compare, report.

    Takes a few minutes on two cores. What is done stays readable after Ctrl-C, and a second run
    continues from it.
    """
    from lesde.studies import DemoConfig, load_config

    with _ending("what was done is", lambda: out, fail):
        settings = load_config(DemoConfig, config, {"seed": seed})
        if show_config:
            say(settings.model_dump_json(indent=2))
            raise typer.Exit
        from lesde.studies.demo import run

        run(settings, out)


def rates(
    out: Annotated[Path, typer.Option(help="Folder for data, figures and report.")] = Path(
        "runs/rates"
    ),
    replicates: Annotated[
        int | None,
        typer.Option(help="Networks a learning rate: half are fitted, half are predicted."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON file with settings; see `lesde rates --show-config`.")
    ] = None,
    seed: Seed = None,
    show_config: ShowConfig = False,
) -> None:
    """NC1 and NC2 of networks on digits against the learning rate, beside the LE-SDE fitted to other networks.

    Seven learning rates over almost two decades; says in which range the networks lie in the model's interval.
    Takes a few minutes on two cores. What is done stays readable after Ctrl-C, and a second run continues from it.
    """
    from lesde.studies import RateConfig, load_config

    with _ending("what was done is", lambda: out):
        settings = load_config(RateConfig, config, {"replicates": replicates, "seed": seed})
        if show_config:
            say(settings.model_dump_json(indent=2))
            raise typer.Exit
        from lesde.studies.rates import run

        run(settings, out)


class Reproduced(StrEnum):
    """Figures of the published experiments."""

    fig1 = "fig1"
    fig3 = "fig3"
    fig4 = "fig4"
    fig5 = "fig5"
    all = "all"


class Preset(StrEnum):
    """How much of the published protocol is run."""

    quick = "quick"
    paper = "paper"


class Images(StrEnum):
    """Data sets of the published experiments."""

    geomnist = "geomnist"
    cifar10 = "cifar10"


def reproduce(
    figure: Annotated[Reproduced, typer.Argument(help="Which figure, by its number in the paper.")],
    preset: Annotated[
        Preset,
        typer.Option(
            help="quick: 12 trials, about ten minutes on two cores for all; paper: the full protocol, 100 trials, about an hour."
        ),
    ] = Preset.quick,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for data, figures and report; by default runs/reproduce-DATA."),
    ] = None,
    data: Annotated[Images | None, typer.Option(help="Which images.")] = None,
    cifar: Annotated[
        Path | None, typer.Option(help="A local copy of CIFAR-10: its archive or folder.")
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Independent networks at each noise level, 3 or more.")
    ] = None,
    seed: Seed = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON file with settings in place of the preset's.")
    ] = None,
    show_config: ShowConfig = False,
) -> None:
    """Reproduce figures of Zhang, Wang and Su (NeurIPS 2021): train, estimate, draw, report.

    Figures share trainings. What is trained stays readable after Ctrl-C, and a second run, also of another
    figure or with more trials, continues from it.
    """
    from lesde.studies import load_protocol

    folder = out
    with _ending("the trials that were done are", lambda: folder):
        given = {"data": data and data.value, "trials": trials, "seed": seed}
        settings = load_protocol(preset.value, given, config)
        if cifar is not None and settings.data != "cifar10":
            raise ValueError("--cifar is for --data cifar10; give both, or neither for GeoMNIST.")
        if show_config:
            say(settings.model_dump_json(indent=2))
            raise typer.Exit
        from lesde.studies.reproduce import FIGURES, run

        folder = out or Path(f"runs/reproduce-{settings.data}")
        run(FIGURES if figure.value == "all" else (figure.value,), settings, folder, cifar, device)
