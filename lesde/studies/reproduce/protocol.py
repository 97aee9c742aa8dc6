"""The protocol of the published experiments, and how much of it a preset runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lesde.studies.settings import (
    Confidence,
    Count,
    Images,
    Positive,
    Seed,
    StudySettings,
    read_settings,
    validated,
)

__all__ = ["FREE", "LEVELS", "PRESETS", "Protocol", "levels_for", "load_protocol"]

LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 2 / 3, 0.7, 0.8)
"""Published, for three classes."""

FREE = ("trials", "clean_trials", "batch", "windows", "confidence", "noise_levels")
"""Settings that may differ between two runs in one folder: more trials are added, the rest is analysis."""


class Protocol(StudySettings):
    """Settings of ``lesde reproduce``; the defaults are the published protocol.

    Source: the experiments of Zhang, Wang and Su, NeurIPS 2021 (arXiv 2110.05960). Numbers of
    recordings and of windows are of this package.
    """

    data: Literal["geomnist", "cifar10"] = "geomnist"
    # The first so many of CIFAR-10; GeoMNIST has 3.
    classes: Annotated[int, Field(ge=2, le=10)] = 3
    train_per_class: Images = 500
    validation_per_class: Images = 500
    # Plain SGD with batch size 1.
    learning_rate: Positive = 0.005
    iterations: Annotated[int, Field(ge=100, le=10**8)] = 10_000
    # Shares of wrong training labels; 0 among them, and some on both sides of (K−1)/K for figure 4.
    noise_levels: Annotated[tuple[float, ...], Field(min_length=1)] = LEVELS
    # Independent networks at each noise level, and at level 0, behind figures 1, 3 and 5, if others.
    trials: Annotated[int, Field(ge=3, le=10**5)] = 100
    clean_trials: Annotated[int | None, Field(ge=3, le=10**5)] = None
    # Networks trained and stored together; validations after the first; windows of class means.
    batch: Count = 10
    recordings: Annotated[int, Field(ge=4, le=10**4)] = 10
    windows: Annotated[int, Field(ge=8, le=10**5)] = 50
    confidence: Confidence = 0.95
    seed: Seed = 0

    @field_validator("noise_levels")
    @classmethod
    def _levels(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if 0.0 not in levels or list(levels) != sorted(set(levels)) or not 0 <= levels[-1] < 1:
            raise ValueError("must be increasing shares from 0, itself among them, to below 1")
        if any(b - a < 0.001 for a, b in pairwise(levels)):
            raise ValueError("must differ by at least 0.001")
        return levels

    @model_validator(mode="after")
    def _fitting(self) -> Protocol:
        if self.data == "geomnist" and self.classes != 3:
            raise ValueError("classes must be 3 for geomnist")
        if self.recordings > self.iterations or self.windows > self.iterations:
            raise ValueError("iterations must be at least as many as recordings and windows")
        if self.iterations // self.windows < self._draws_in(self.windows):
            most = next(
                (
                    n
                    for n in range(self.windows, 7, -1)
                    if self.iterations // n >= self._draws_in(n)
                ),
                None,
            )
            if most is None:
                raise ValueError(
                    f"iterations must be at least {8 * self._draws_in(8)} with {self.classes} classes and so many trials: in "
                    f"8 windows, the fewest there may be, some trial would draw no sample of some class"
                )
            raise ValueError(
                f"windows must be at most {most} with {self.iterations} iterations, {self.classes} classes and so many "
                f"trials: in more, some trial would draw no sample of some class"
            )
        if self.clean_trials is not None and self.clean_trials < self.trials:
            raise ValueError(
                "clean_trials must be at least trials: levels are compared trial by trial"
            )
        return self

    def _draws_in(self, windows: int) -> int:
        """Draws per window, so that under one in a hundred such studies should have a window without some class."""
        every = windows * self.classes * sum(self.trials_at(p) for p in self.noise_levels)
        return math.ceil(math.log(0.01 / every) / math.log1p(-1 / self.classes))

    def trials_at(self, level: float) -> int:
        """Trials at a noise level."""
        return self.clean_trials or self.trials if level == 0 else self.trials

    @property
    def critical(self) -> float:
        """(K−1)/K, the share of wrong labels at which labels carry no information."""
        return (self.classes - 1) / self.classes


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "quick": {"trials": 12, "batch": 12, "windows": 40},
}
"""Differences from the published protocol: ``quick`` has fewer trials, and class means over fewer windows."""

CIFAR = {"train_per_class": 2000, "learning_rate": 0.001, "iterations": 30_000}
"""The protocol on CIFAR-10."""


def levels_for(classes: Any) -> tuple[float, ...]:
    """Noise levels that lie about the critical one of so many classes as the published ones do for three."""
    if not isinstance(classes, int) or classes < 2 or classes == 3:
        return LEVELS
    critical = (classes - 1) / classes
    return tuple(
        p * 1.5 * critical if p <= 2 / 3 else critical + (p - 2 / 3) * 3 * (1 - critical)
        for p in LEVELS
    )


def load_protocol(
    preset: str = "quick", given: Mapping[str, Any] | None = None, config: Path | None = None
) -> Protocol:
    """A preset with some of its settings changed.

    Parameters
    ----------
    preset : {"quick", "paper"}
    given : mapping, optional
        Settings in place of the preset's; those that are None are left out.
    config : path, optional
        A JSON file with settings in place of the preset's; ``given`` goes before it.

    Raises
    ------
    ValueError
        Naming the setting, what was given and what is allowed.
    """
    if preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}; got {preset!r}.")
    changes = read_settings(config, given)
    if "classes" in changes and "noise_levels" not in changes:
        changes["noise_levels"] = levels_for(changes["classes"])
    base = CIFAR if changes.get("data") == "cifar10" else {}
    return validated(Protocol, base | PRESETS[preset] | changes)
