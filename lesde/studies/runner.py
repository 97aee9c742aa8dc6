"""Settings of the studies on digits, and how settings are read."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lesde.checks import shown
from lesde.files import (
    Target,
    about_lock,
    difference,
    lock,
    make_parents,
    recover,
    replace_file,
    why_foreign,
    write,
)
from lesde.text import format_number

__all__ = [
    "DemoConfig",
    "DigitNetworks",
    "RateConfig",
    "Report",
    "StudyFolder",
    "claim",
    "held_settings",
    "load_config",
    "numbers",
    "read_settings",
    "settings_of",
    "summary",
    "validated",
    "verdict",
    "with_error",
]


# --------------------------------------------------------------------------------------------------
# The folder of a study: one run at a time has it, and replaces only what the study itself wrote.

_LOCK, _FILES = ".lesde-study.lock", ".lesde-study.json"


class StudyFolder:
    """A folder that a run of a study has for itself.

    Of every file that is written, ``.lesde-study.json`` notes a digest beforehand: a file of which it knows nothing, or which
    was changed since, is somebody else's, and is never replaced. Stores tell themselves whose they are.

    Parameters
    ----------
    path : path
    kind : str
        Which study, such as "demo".
    settings : str
        The file of settings by which the study takes the folder.
    study : str
        The settings that decide what is trained, of `settings_of`.
    writes : sequence of str
        Patterns of what the run will write, which are looked at before anything is trained.
    """

    def __init__(self, path: Path, kind: str, settings: str, study: str, writes: Sequence[str]):
        self.path, self.kind, self.study, self._writes = path, kind, study, writes
        self._settings = path / settings

    @contextmanager
    def taken(self) -> Iterator[StudyFolder]:
        """Have the folder for as long as this lasts.

        Raises
        ------
        ValueError
            Where another run has it, or what the study is to write stands there and is not its own.
        """
        self._check()
        made = make_parents(self.path / _LOCK)
        try:
            file = lock(self.path / _LOCK, {"kind": self.kind, "study": self.study})
        except OSError:
            for folder in made:
                folder.rmdir()
            raise
        if file is None:
            raise self._in_use(about_lock(self.path / _LOCK))
        with file:
            if not about_lock(self.path / _LOCK).get("locks"):
                warnings.warn(
                    f"--out: the file system of {self.path} has no locks, so that a second run there at the same time "
                    f"is not noticed. Run one at a time.",
                    stacklevel=3,
                )
            for folder in (self.path, self.path / "data", self.path / "figures"):
                recover(folder)
            self._check()
            claim(self._settings, self.study)
            yield self

    def put(self, path: Path, write: Callable[[Path], object]) -> None:
        """Write a file by a function that is given a name, in place of an older one of this study."""
        self._check_one(path)

        def noted(new: Path) -> None:
            write(new)
            kind, files = self._held()
            if kind != self.kind:
                files = {}
            # The older one still stands there if the process is killed now.
            files[self._name(path)] = [_digest(one) for one in (path, new) if one.exists()]
            held = {"kind": self.kind, "files": files}
            replace_file(self.path / _FILES, lambda file: _write_json(file, held))

        replace_file(path, noted)

    def put_text(self, path: Path, text: str) -> None:
        """Write a text file."""
        self.put(path, lambda new: new.write_text(text, encoding="utf-8"))

    def put_figure(self, path: Path, figure: Any, dpi: float = 200) -> None:
        """Write a figure as PNG and PDF; the name has no ending."""
        from lesde import plot

        for ending in ("png", "pdf"):
            self.put(
                path.with_name(f"{path.name}.{ending}"),
                lambda new: plot.save(figure, new, dpi=dpi),
            )

    def put_store(self, dataset: xr.Dataset, path: Path) -> None:
        """Write a Zarr store."""
        write(dataset, path, self.study)

    def _check(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--out = {self.path} cannot be used: it is no folder. Give another.")
        for part in (self.path, self.path / "data", self.path / "figures"):
            Target(part / _LOCK, "--out", overwrite=True).check()
        if self._settings.exists():
            claim(self._settings, self.study)
        for pattern in self._writes:
            for path in sorted(self.path.glob(pattern)):
                self._check_one(path)

    def _check_one(self, path: Path) -> None:
        """Refuse to replace what is not this study's."""
        if not path.exists():
            return
        kind, files = self._held()
        if path.is_dir():
            why = why_foreign(path, self.study)
        elif self._name(path) in files and kind != self.kind:
            why = f"is of lesde {kind}"
        elif _digest(path) in files.get(self._name(path), []):
            why = None
        else:
            why = "was not written by this study, or was changed since"
        if why is not None:
            raise ValueError(
                f"--out: {path} {why}. Move it elsewhere, or give another folder, and run the command again."
            )

    def _held(self) -> tuple[str, dict[str, list[str]]]:
        """Which study noted its files, and the digests of each."""
        try:
            held = json.loads((self.path / _FILES).read_text(encoding="utf-8"))
            return str(held["kind"]), dict(held["files"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return self.kind, {}

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    def _in_use(self, about: dict[str, Any]) -> ValueError:
        who = f"process {about.get('process')} on {about.get('host')}" if about else "another run"
        different = "with these settings"
        with contextlib.suppress(KeyError, TypeError, ValueError):
            found = difference(json.loads(about["study"]), json.loads(self.study))
            different = f"with other settings ({found})" if found else different
        return ValueError(
            f"--out = {self.path} is in use: {who} runs lesde {about.get('kind', 'something')} there, {different}. "
            f"Wait until it ends, or give another folder."
        )


def settings_of(settings: BaseModel, without: Sequence[str] = ()) -> str:
    """The settings that decide what is trained, as they stand in every store of a study."""
    return settings.model_dump_json(exclude=set(without))


def claim(file: Path, study: str) -> None:
    """Take a folder for a study with these settings, which its file of settings then says; or say whose it is."""
    held = held_settings(file)
    if held is None:
        # Where the file system has no locks: of two runs at once that both find none, one fails here.
        Target(file, "--out").put(lambda new: _write_json(new, json.loads(study)))
        return
    different = difference(held, json.loads(study))
    if different:
        raise ValueError(
            f"--out: {file.parent} holds a study with other settings ({different}; see {file.name}); give another folder "
            f"or remove it."
        )


def held_settings(file: Path) -> dict[str, Any] | None:
    """The settings that a folder was taken with, None for a new one."""
    if not file.exists():
        return None
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        held = None
    if not isinstance(held, dict):
        raise ValueError(
            f"--out: {file} is damaged, so that the settings of what lies beside it are not known; give another "
            f"folder or remove it."
        )
    return held


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --------------------------------------------------------------------------------------------------

Settings = TypeVar("Settings", bound=BaseModel)


class DigitNetworks(BaseModel):
    """Networks on handwritten digits at several learning rates, all for the same time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: tuple[int, ...] = Field(
        (0, 1, 2, 3), min_length=4, max_length=10, description="digits to tell apart"
    )
    train_per_class: int = Field(100, ge=2, le=10**5, description="training images a class")
    probe_per_class: int = Field(40, ge=2, le=10**5, description="recorded training images a class")
    widths: tuple[int, ...] = Field((32, 32), min_length=1, description="hidden layers")
    learning_rates: tuple[float, ...] = Field(
        (0.005, 0.01, 0.02, 0.04), min_length=1, description="of plain SGD, batch size 1"
    )
    replicates: int = Field(16, ge=2, le=10**4, description="networks a learning rate")
    total_time: float = Field(50.0, gt=0, description="learning rate times iterations")
    saved_times: int = Field(
        50, ge=8, le=10**4, description="recordings, the initial state included"
    )
    model_start: float = Field(
        2.0, ge=0, description="time from which the kernel is fitted and the model runs"
    )
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
    def _long_enough(self) -> DigitNetworks:
        if self.model_start >= self.total_time:
            raise ValueError("model_start must be before total_time")
        if self.total_time - self.model_start < 8 * max(self.learning_rates):
            raise ValueError(
                "total_time must leave at least 8 iterations of the largest learning rate after "
                "model_start"
            )
        return self


class DemoConfig(DigitNetworks):
    """What ``lesde demo`` does. The defaults take under four minutes on two cores."""

    fit_every: int = Field(2, ge=1, le=10**4, description="recordings an interval of the fit spans")
    copies: int = Field(
        4, ge=1, le=10**4, description="simulated trajectories from each network's start"
    )
    predicted_times: int = Field(12, ge=2, le=10**4, description="times of the analytic prediction")


class RateConfig(DigitNetworks):
    """What ``lesde rates`` does. The defaults take about two minutes."""

    widths: tuple[int, ...] = Field((32,), min_length=1, description="hidden layers")
    learning_rates: tuple[float, ...] = Field(
        (0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128),
        min_length=2,
        description="of plain SGD, batch size 1",
    )
    replicates: int = Field(
        32, ge=8, le=10**4, description="networks a learning rate: half are fitted, half predicted"
    )
    total_time: float = Field(32.0, gt=0, description="learning rate times iterations")
    saved_times: int = Field(
        24, ge=8, le=10**4, description="recordings, the initial state included"
    )
    draws: int = Field(
        40, ge=4, le=10**5, description="kernels fitted to resamples of the networks"
    )
    spread: str = Field("covariance", description="noise of a sample: covariance or constant")

    @field_validator("spread")
    @classmethod
    def _known(cls, spread: str) -> str:
        if spread not in ("covariance", "constant"):
            raise ValueError("must be covariance or constant")
        return spread


def load_config(
    kind: type[Settings], path: Path | None = None, given: Mapping[str, Any] | None = None
) -> Settings:
    """Read settings from a JSON file; what it leaves out keeps its default.

    Parameters
    ----------
    kind : type
        Such as :class:`DemoConfig`.
    path : Path, optional
    given : mapping, optional
        Settings in place of those of the file; those that are None are left out.

    Raises
    ------
    ValueError
        Naming the setting, what was given and what is allowed.
    """
    return validated(kind, read_settings(path, given))


def read_settings(path: Path | None, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Settings of a JSON file, and in their place those ``given`` that are not None."""
    settings: Any = {}
    if path is not None:
        try:
            settings = json.loads(Path(path).read_text(encoding="utf-8"))
        except RecursionError:
            raise ValueError(
                f"--config must be a JSON file with settings; {path} is nested too deep to be one."
            ) from None
        except (OSError, ValueError) as error:
            raise ValueError(
                f"--config must be a JSON file with settings; {path}: {error}"
            ) from None
        if not isinstance(settings, dict):
            raise ValueError(
                f"--config must hold a JSON object of settings; {path} holds {type(settings).__name__}."
            )
    return settings | {name: value for name, value in (given or {}).items() if value is not None}


def validated(kind: type[Settings], settings: Mapping[str, Any]) -> Settings:
    """Settings of a kind; an error names each that is wrong, and all that there are."""
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


# --------------------------------------------------------------------------------------------------
# The report of the demonstration study: Markdown with figures and one table of numbers.


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


@dataclass
class Report:
    """Markdown that is written anew after every step, so that an interrupt leaves what is done.

    The paragraphs ``top``, known last, stand below the title. ``put`` writes a text file.
    """

    path: Path
    title: str
    top: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    hold: bool = False
    put: Callable[[Path, str], object] = _put

    def add(self, *paragraphs: str) -> None:
        """Append paragraphs and write the file, unless it is on hold."""
        self.parts += paragraphs
        if self.hold:
            return
        self.put(self.path, "\n\n".join([f"# {self.title}", *self.top, *self.parts]) + "\n")

    def summarise(self, *paragraphs: str) -> None:
        """Put paragraphs below the title and write the file."""
        self.top += paragraphs
        self.add()

    def figure(self, name: str, caption: str) -> None:
        """Append a figure of the folder ``figures``."""
        self.add(
            f"![{caption}](figures/{name})\n\n*{caption}* ([PDF](figures/{Path(name).stem}.pdf))"
        )

    def table(self, header: list[str], rows: list[list[str]]) -> None:
        """Append a table."""
        lines = [" | ".join(header), " | ".join("---" for _ in header)]
        lines += [" | ".join(row) for row in rows]
        self.add("\n".join(f"| {line} |" for line in lines))


def with_error(value: float, error: float) -> str:
    """A number with its error, both to the last digit the error tells: two digits of it if it begins with 1."""
    if not math.isfinite(value):
        return "–"
    if not (math.isfinite(error) and error > 0):
        return f"{value:.3g}"
    power = math.floor(math.log10(error))
    # Rounding may carry: 0.0997 is 0.10.
    decimals = 1 - power if float(f"{error:.1e}") < 2 * 10.0**power else -power
    if float(f"{error:.0e}") >= 10.0 ** (power + 1):
        decimals = -power
    size = max(abs(value), error)
    if (decimals > 7 and size < 1e-3) or decimals < -3:
        power = math.floor(math.log10(size))
        return f"({with_error(value / 10.0**power, error / 10.0**power)})e{power}"
    kept = max(decimals, 0)
    rounded = (round(value, decimals), round(error, decimals))
    return f"{rounded[0] + 0.0:.{kept}f} ± {rounded[1]:.{kept}f}"


def plus_minus(dataset: xr.Dataset, name: str) -> str:
    """A number with half the width of its interval, which is symmetric."""
    value, upper = float(dataset[name]), float(dataset[f"{name}_upper"])
    return with_error(value, upper - value)


def lasting_time(probability: xr.DataArray, level: float = 0.5) -> str:
    """The saved time from which a probability is at least the level to the end, or "never"."""
    below = np.flatnonzero(~(probability.values >= level))  # NaN is not at least anything
    if len(below) == 0:
        return format_number(float(probability.time.values[0]))
    if below[-1] == probability.sizes["time"] - 1:
        return "never"
    return format_number(float(probability.time.values[below[-1] + 1]))


def numbers(
    config: DemoConfig,
    comparison: xr.Dataset,
    separation: xr.Dataset,
    rates: xr.Dataset,
    metrics: dict[str, xr.Dataset],
) -> tuple[list[str], list[list[str]]]:
    """The table of the report: one row for each source and learning rate."""
    level = f"{config.confidence:.0%}"
    header = ["features of", "h", f"P(separated) at end [{level}]", "P stays ≥ ½ from t"]
    header += ["NC1 at end", f"NC1 rate ± {level}", "NC2 at end", f"NC2 rate ± {level}"]
    header += ["R² common ± s.e.", "error of means", "inside"]
    rows = []
    for source in [str(name) for name in separation.source.values]:
        for h in config.learning_rates:
            P = separation.sel(source=source, criterion="projection", learning_rate=h)
            last = metrics[source].sel(learning_rate=h).isel(time=-1).median("replicate")
            rate = rates.sel(source=source, learning_rate=h, clock="time")
            row = [source, format_number(h), interval_last(P), lasting_time(P.probability)]
            row += [format_number(float(last.nc1)), plus_minus(rate.sel(metric="nc1"), "rate")]
            row += [
                format_number(float(last.nc2_etf)),
                plus_minus(rate.sel(metric="nc2_etf"), "rate"),
            ]
            if source in comparison.model.values:
                fit = comparison.sel(model=source, learning_rate=h)
                row += [_with_error(fit)]
                row += [format_number(float(fit[name])) for name in ("mean_error", "inside")]
            else:
                row += ["", "", ""]
            rows.append(row)
    return header, rows


def _with_error(one: xr.Dataset) -> str:
    """R² of the common movement, with its standard error."""
    return with_error(float(one.r_squared_common), float(one.r_squared_common_se))


def _percent(values: xr.DataArray) -> tuple[str, str]:
    """Least and greatest of some shares."""
    return f"{float(values.min()):.0%}", f"{float(values.max()):.0%}"


def interval_last(P: xr.Dataset) -> str:
    """The probability at the last time with its interval."""
    end = P.isel(time=-1)
    text = [format_number(round(float(end[name]), 3)) for name in ("probability", "lower", "upper")]
    return f"{text[0]} [{text[1]}, {text[2]}]"


def verdict(config: DemoConfig, comparison: xr.Dataset) -> list[str]:
    """Where the linear model fits and where not, in numbers."""
    lines = []
    for model in comparison.model.values:
        part = comparison.sel(model=model)
        worst, best = _percent(part.r_squared)
        common = ", ".join(_with_error(part.sel(learning_rate=h)) for h in config.learning_rates)
        lines.append(
            f"**{model}.** Of the increments of a network's class means, the rates fitted to the other "
            f"networks explain {worst} to {best}, noise counted against them. R² common, the same for the "
            f"movement that the networks have in common, is {common} in the order of the learning rates, "
            f"± one standard error. It is an estimate with the noise taken off, which is 1 on average for a "
            f"right model and by chance can be above 1. The law's class means miss the "
            f"networks' average by {float(part.mean_error.min()):.1%} to "
            f"{float(part.mean_error.max()):.1%} (relative root mean square over time), and "
            f"{float(part.inside.min()):.0%} to {float(part.inside.max()):.0%} of its coordinates lie "
            f"inside the law's {config.confidence:.0%} interval, where a right model has "
            f"{config.confidence:.0%}."
        )
    part = comparison.isel(model=0)
    low, high = float(part.noise_ratio.min()), float(part.noise_ratio.max())
    spread = part.within_r_squared.values
    lines.append(
        f"**Noise.** An LE-SDE has one σ for the spread within classes and for the class means. Here "
        f"the class means' noise is {low:.1f} to {high:.1f} times what the spread implies: the "
        f"sampling noise of SGD, which all samples of a class share, is that much larger. Linear "
        f"growth σ²t explains {spread.min():.0%} to {spread.max():.0%} of the change of the "
        f"within-class variance (0% is no better than no change)."
    )
    return lines


def summary(
    config: DemoConfig, comparison: xr.Dataset, separation: xr.Dataset, rates: xr.Dataset
) -> list[str]:
    """What came out, in a few lines."""
    h = config.learning_rates
    span = f"at h = {h[0]:g}" if len(h) == 1 else f"over h = {min(h):g} to {max(h):g}"
    lines = [
        f"Ranges are {span}; P is the probability that all classes are separated at the end.",
        "",
    ]
    for source in [str(name) for name in separation.source.values]:
        P = separation.probability.sel(source=source, criterion="projection").isel(time=-1)
        text = f"- **{source}**: P {_range(P)}"
        if source in comparison.model.values:
            part = comparison.sel(model=source)
            low, high = _percent(part.mean_error)
            text += (
                f"; class means off by {low} to {high}; R² common {_range(part.r_squared_common)}"
            )
        one = rates.sel(source=source, clock="time").rate
        decay = [f"{m.upper()[:3]} {_range(one.sel(metric=m))}" for m in ("nc1", "nc2_etf")]
        lines.append(f"{text}; decay per unit of time: {', '.join(decay)}.")
    errors = comparison.mean_error.mean("learning_rate").values
    best = str(comparison.model.values[int(errors.argmin())])
    closer = "" if comparison.sizes["model"] == 1 else f" The {best} is closer to the class means."
    low, high = _range_ends(comparison.isel(model=0).noise_ratio)
    lines += [
        "",
        f"A negative decay is growth.{closer} The class means' noise is {low} to {high} times what "
        f"one σ for all of the LE-SDE gives.",
    ]
    return ["## Summary", "\n".join(lines)]


def _range_ends(values: xr.DataArray) -> tuple[str, str]:
    return f"{float(values.min()):.2g}", f"{float(values.max()):.2g}"


def _range(values: xr.DataArray) -> str:
    low, high = _range_ends(values)
    return low if low == high else f"{low} to {high}"
