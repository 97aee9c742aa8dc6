"""The commands that run a whole study: ``lesde demo``, ``lesde rates`` and ``lesde reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lesde.cli.errors import ending, say
from lesde.cli.options import Device, opt

__all__ = ["demo", "rates", "reproduce"]

Out = Annotated[Path, opt("Folder for data, figures and report.")]
Config = Annotated[
    Path | None, opt("JSON file with settings in place of those that --show-config prints.")
]
Seed = Annotated[int | None, opt("Seed of all randomness.")]
ShowConfig = Annotated[bool, opt("Print the settings and exit.", "--show-config")]


def demo(
    out: Out = Path("runs/demo"),
    config: Config = None,
    seed: Seed = None,
    show_config: ShowConfig = False,
) -> None:
    """Train networks on handwritten digits, fit and simulate their LE-SDE, compare, report.

    Takes a few minutes on two cores. What is done stays readable after Ctrl-C, and a second run
    continues from it.
    """
    from lesde.studies import DemoConfig, load_config
    from lesde.studies.demo import run

    with ending(out):
        settings = load_config(DemoConfig, config, {"seed": seed})
        if show_config:
            say(settings.model_dump_json(indent=2))
        else:
            run(settings, out)


def rates(
    out: Out = Path("runs/rates"),
    replicates: Annotated[
        int | None, opt("Networks per learning rate: half are fitted, half are predicted.")
    ] = None,
    config: Config = None,
    seed: Seed = None,
    show_config: ShowConfig = False,
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
        if show_config:
            say(settings.model_dump_json(indent=2))
        else:
            run(settings, out)


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
    seed: Seed = None,
    device: Device = None,
    config: Config = None,
    show_config: ShowConfig = False,
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
        if show_config:
            say(settings.model_dump_json(indent=2))
        else:
            folder = out or Path(f"runs/reproduce-{settings.data}")
            run(FIGURES if figure == "all" else (figure,), settings, folder, cifar, device)
