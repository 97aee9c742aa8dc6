"""The folder of a study: one run at a time has it, and replaces only what the study itself wrote."""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xarray as xr
from pydantic import BaseModel

from lesde.study.store import difference, why_foreign, write
from lesde.writing import Target, about_lock, lock, make_parents, recover, replace_file

__all__ = ["StudyFolder", "claim", "held_settings", "settings_of"]

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
