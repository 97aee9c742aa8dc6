"""Settings of the studies: read from a JSON file, checked by pydantic, with every wrong one named."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lesde.checks import shown

MODELS = {"I-model": "identity", "L-model": "logits"}
"""The published models that studies fit, by their transforms."""

Confidence = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10**4)]
Images = Annotated[int, Field(ge=2, le=10**5)]
Positive = Annotated[float, Field(gt=0, lt=float("inf"))]
Seed = Annotated[int, Field(ge=0)]
Several = Annotated[int, Field(ge=8, le=10**4)]
Widths = Annotated[tuple[int, ...], Field(min_length=1)]

Settings = TypeVar("Settings", bound=BaseModel)


class StudySettings(BaseModel):
    """Settings that cannot be changed, or have other names."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DigitNetworks(StudySettings):
    """Networks on handwritten digits at several learning rates, all for the same time."""

    # Digits to distinguish, training images and recorded training images per class, hidden layers.
    classes: Annotated[tuple[int, ...], Field(min_length=4, max_length=10)] = (0, 1, 2, 3)
    train_per_class: Images = 100
    probe_per_class: Images = 40
    widths: Widths = (32, 32)
    # Plain SGD with batch size 1; networks per learning rate; learning rate times iterations.
    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.005, 0.01, 0.02, 0.04)
    replicates: Annotated[int, Field(ge=2, le=10**4)] = 16
    total_time: Positive = 50.0
    # Recordings, the initial state included; time from which the kernel is fitted and the model runs.
    saved_times: Several = 50
    model_start: Annotated[float, Field(ge=0)] = 2.0
    confidence: Confidence = 0.95
    seed: Seed = 0

    @model_validator(mode="after")
    def _fitting(self) -> DigitNetworks:
        for name, values in (("classes", self.classes), ("learning_rates", self.learning_rates)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must be different from one another")
        if not set(self.classes) <= set(range(10)):
            raise ValueError("classes must be digits from 0 to 9")
        if self.total_time - self.model_start < 8 * max(self.learning_rates):
            raise ValueError(
                "total_time must leave at least 8 iterations of the largest learning rate after model_start"
            )
        return self


class DemoConfig(DigitNetworks):
    """Settings of ``lesde demo``. The defaults take under four minutes on two cores."""

    # Recordings that an interval of the fit spans; simulated trajectories from each network's start;
    # times of the analytic prediction.
    fit_every: Count = 2
    copies: Count = 4
    predicted_times: Annotated[int, Field(ge=2, le=10**4)] = 12


RATES = (0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128)


class RateConfig(DigitNetworks):
    """Settings of ``lesde rates``. The defaults take about two minutes."""

    widths: Widths = (32,)
    learning_rates: Annotated[tuple[Positive, ...], Field(min_length=2)] = RATES
    # Half of the networks are fitted, half predicted.
    replicates: Several = 32
    total_time: Positive = 32.0
    saved_times: Several = 24
    # Kernels fitted to resamples of the networks; noise of a sample.
    draws: Annotated[int, Field(ge=4, le=10**5)] = 40
    spread: Literal["covariance", "constant"] = "covariance"


LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 2 / 3, 0.7, 0.8)
"""Published shares of wrong labels, for three classes."""


class Protocol(StudySettings):
    """Settings of ``lesde reproduce``; the defaults are the published protocol.

    Source: the experiments of Zhang, Wang and Su, NeurIPS 2021 (arXiv 2110.05960). Numbers of
    recordings and of windows are of this package.
    """

    data: Literal["geomnist", "cifar10"] = "geomnist"
    # The first so many of CIFAR-10; GeoMNIST has 3.
    classes: Annotated[int, Field(ge=3, le=10)] = 3
    train_per_class: Images = 500
    validation_per_class: Images = 500
    # Plain SGD with batch size 1.
    learning_rate: Positive = 0.005
    iterations: Annotated[int, Field(ge=100, le=10**8)] = 10_000
    # Shares of wrong training labels; 0 among them, and some on both sides of (K−1)/K for figure 4.
    noise_levels: Annotated[tuple[float, ...], Field(min_length=1)] = LEVELS
    # Independent networks at each noise level; networks trained and stored together.
    trials: Annotated[int, Field(ge=3, le=10**5)] = 100
    batch: Count = 10
    # Validations after the first; windows of class means.
    recordings: Annotated[int, Field(ge=4, le=10**4)] = 10
    windows: Annotated[int, Field(ge=8, le=10**5)] = 50
    confidence: Confidence = 0.95
    seed: Seed = 0

    @model_validator(mode="after")
    def _fitting(self) -> Protocol:
        levels = self.noise_levels
        if levels[0] != 0 or not levels[-1] < 1 or any(a >= b for a, b in pairwise(levels)):
            raise ValueError(
                "noise_levels must be increasing shares from 0, itself among them, to below 1"
            )
        if self.data == "geomnist" and self.classes != 3:
            raise ValueError("classes must be 3 for geomnist")
        # Under one in a hundred such studies should have a window without some class.
        means = self.windows * self.classes * self.trials * len(levels)
        draws = math.ceil(math.log(0.01 / means) / math.log1p(-1 / self.classes))
        if self.iterations < draws * self.windows:
            raise ValueError(
                f"iterations must be at least {draws} in each of {self.windows} windows, so that with so many trials "
                f"each class is drawn in each window"
            )
        return self

    @property
    def critical(self) -> float:
        """(K−1)/K, the share of wrong labels at which labels carry no information."""
        return (self.classes - 1) / self.classes


FREE = ("trials", "batch", "windows", "confidence", "noise_levels")
"""Settings that may differ between two runs in one folder: more trials are added, the rest is analysis."""

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "quick": {"trials": 12, "batch": 12, "windows": 40},
}
"""Differences from the published protocol: ``quick`` has fewer trials, and class means over fewer windows."""

CIFAR = {"train_per_class": 2000, "learning_rate": 0.001, "iterations": 30_000}
"""The protocol on CIFAR-10."""


def load_config(
    kind: type[Settings], path: Path | None = None, given: Mapping[str, Any] | None = None
) -> Settings:
    """Read settings from a JSON file; what it leaves out keeps its default.

    Parameters
    ----------
    kind : type
        Such as :class:`lesde.studies.DemoConfig`.
    path : Path, optional
    given : mapping, optional
        Settings in place of those of the file; those that are None are left out.
    """
    return _validated(kind, _read(path, given))


def load_protocol(
    preset: str = "quick", given: Mapping[str, Any] | None = None, config: Path | None = None
) -> Protocol:
    """Read a protocol: a preset with some of its settings changed.

    Parameters
    ----------
    preset : {"quick", "paper"}
    given : mapping, optional
        Settings in place of the preset's; those that are None are left out.
    config : path, optional
        A JSON file with settings in place of the preset's; ``given`` goes before it.
    """
    if preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}; got {preset!r}.")
    changes = _read(config, given)
    base = CIFAR if changes.get("data") == "cifar10" else {}
    protocol = _validated(Protocol, base | PRESETS[preset] | changes)
    K = protocol.classes
    if K == 3 or "noise_levels" in changes:
        return protocol
    # About the critical level as the published ones are for three classes.
    levels = np.interp(LEVELS, (0, 2 / 3, 1), (0, (K - 1) / K, 1)).tolist()
    return protocol.model_copy(update={"noise_levels": tuple(levels)})


def _read(path: Path | None, given: Mapping[str, Any] | None) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if path is not None:
        try:
            settings = dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            message = f"--config must be a JSON file with settings; {path}: {error}"
            raise ValueError(message) from None
    return settings | {name: value for name, value in (given or {}).items() if value is not None}


def _validated(kind: type[Settings], settings: Mapping[str, Any]) -> Settings:
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            where = ".".join(map(str, item["loc"]))
            got = f", got {shown(item['input'])}" if where else ""
            lines.append(f"{where or 'together'}: {item['msg'].removeprefix('Value error, ')}{got}")
        known = ", ".join(kind.model_fields)
        raise ValueError(f"settings: {'; '.join(lines)}. Known settings: {known}.") from None
