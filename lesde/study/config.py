"""Settings of the demonstration study."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

__all__ = ["DemoConfig", "load_config"]


class DemoConfig(BaseModel):
    """What ``lesde demo`` does. The defaults take under four minutes on two cores."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: tuple[int, ...] = Field(
        (0, 1, 2, 3), min_length=4, max_length=10, description="digits to tell apart"
    )
    train_per_class: int = Field(100, ge=2, description="training images a class")
    probe_per_class: int = Field(40, ge=2, description="recorded training images a class")
    widths: tuple[int, ...] = Field((32, 32), min_length=1, description="hidden layers")
    learning_rates: tuple[float, ...] = Field(
        (0.005, 0.01, 0.02, 0.04), min_length=1, description="of plain SGD, batch size 1"
    )
    replicates: int = Field(16, ge=2, description="networks a learning rate")
    total_time: float = Field(50.0, gt=0, description="learning rate times iterations")
    saved_times: int = Field(50, ge=8, description="recordings, the initial state included")
    model_start: float = Field(
        2.0, ge=0, description="time from which the kernel is fitted and the model runs"
    )
    fit_every: int = Field(2, ge=1, description="recordings an interval of the fit spans")
    copies: int = Field(4, ge=1, description="simulated trajectories from each network's start")
    predicted_times: int = Field(12, ge=2, description="times of the analytic prediction")
    confidence: float = Field(0.95, gt=0, lt=1, description="level of all intervals")
    seed: int = Field(0, ge=0, description="of all randomness")

    @field_validator("classes")
    @classmethod
    def _digits(cls, classes: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(classes)) < len(classes) or not set(classes) <= set(range(10)):
            raise ValueError("must be different digits from 0 to 9")
        return classes

    @field_validator("learning_rates")
    @classmethod
    def _rates(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(rates)) < len(rates) or not all(0 < rate < float("inf") for rate in rates):
            raise ValueError("must be different positive numbers")
        return rates

    @model_validator(mode="after")
    def _long_enough(self) -> DemoConfig:
        if self.model_start >= self.total_time:
            raise ValueError("model_start must be before total_time")
        if self.total_time - self.model_start < 8 * max(self.learning_rates):
            raise ValueError(
                "total_time must leave at least 8 iterations of the largest learning rate after "
                "model_start"
            )
        return self


def load_config(path: Path | None = None, seed: int | None = None) -> DemoConfig:
    """Read settings from a JSON file; what it leaves out keeps its default.

    Raises
    ------
    ValueError
        Naming the setting, what was given and what is allowed.
    """
    given: dict[str, object] = {}
    if path is not None:
        try:
            given = json.loads(Path(path).read_text())
            if not isinstance(given, dict):
                raise ValueError(
                    f"--config must hold a JSON object of settings; {path} holds {type(given).__name__}."
                )
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(
                f"--config must be a JSON file with settings; {path}: {error}"
            ) from None
    if seed is not None:
        given["seed"] = seed
    try:
        return DemoConfig.model_validate(given)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            where = ".".join(map(str, item["loc"]))
            got = f", got {item['input']!r}" if where else ""
            lines.append(f"{where or 'together'}: {item['msg'].removeprefix('Value error, ')}{got}")
        allowed = ", ".join(DemoConfig.model_fields)
        raise ValueError(f"settings: {'; '.join(lines)}. Known settings: {allowed}.") from None
