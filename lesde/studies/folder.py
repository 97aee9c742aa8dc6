"""The folder of a study: used by one run at a time, which replaces only what the study itself wrote."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xarray as xr
from pydantic import BaseModel

from lesde import __version__
from lesde.files import (
    REMEDY,
    STUDY,
    Target,
    about_lock,
    difference,
    lock,
    make_parents,
    read,
    recover,
    replace_file,
    why_foreign,
    why_other,
    write,
)

__all__ = ["EVERYTHING", "StudyFolder", "damaged_result", "read_whole"]

_LOCK, _FILES = ".lesde-study.lock", ".lesde-study.json"

EVERYTHING = ("report.md", "data/*", "figures/*")
"""What a study writes, as patterns."""


class StudyFolder:
    """A folder for the data, figures and report of one study, such as ``kind="demo"``.

    A digest of every file is noted in ``.lesde-study.json`` before it is written: a file that is not listed there, or
    has changed since, belongs to somebody else and is never replaced. Stores record their own study. The settings are
    kept in ``file``, except those in ``free``, which may differ between runs as they do not affect what is trained.
    ``writes`` are patterns of the files to be written, which are checked before anything is computed.
    """

    def __init__(
        self,
        path: str | Path,
        kind: str,
        settings: BaseModel,
        free: Sequence[str] = (),
        file: str = "config.json",
        writes: Sequence[str] = EVERYTHING,
    ):
        self.path, self.kind, self._writes, self.chosen = Path(path), kind, writes, settings
        self.data, self.figures = self.path / "data", self.path / "figures"
        self.study = settings.model_dump_json(exclude=set(free))
        """The settings that decide what is trained, as every store holds them."""
        self.settings = json.dumps(settings.model_dump(mode="json") | {"lesde": __version__})
        """All of them, and the version: results with these need not be computed again."""
        self._settings_file = self.path / file

    @contextmanager
    def taken(self) -> Iterator[StudyFolder]:
        """Hold the folder for as long as the block runs.

        Raises
        ------
        ValueError
            Where another run holds it, or foreign files stand where the study is to write.
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
            for folder in (self.path, self.data, self.figures):
                recover(folder)
            self._check()
            if not self._settings_file.exists():
                # Without locks: if two runs at once both find none, one of them fails here.
                held = json.loads(self.study)
                Target(self._settings_file, "--out").put(lambda new: _write_json(new, held))
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

    def put_store(self, dataset: xr.Dataset, path: Path) -> None:
        """Write a Zarr store."""
        write(dataset.assign_attrs(lesde_settings=self.settings), path, self.study)

    def _check(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"--out = {self.path} cannot be used: it is no folder. Give another.")
        for part in (self.path, self.data, self.figures):
            Target(part / _LOCK, "--out", overwrite=True).check()
        if self._settings_file.exists():
            self._check_settings()
        for pattern in self._writes:
            for path in sorted(self.path.glob(pattern)):
                # Scratch folders of a process that was killed are nobody's.
                if not path.name.startswith("."):
                    self._check_one(path)

    def _check_settings(self) -> None:
        file = self._settings_file
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            held = None
        if not isinstance(held, dict):
            raise ValueError(
                f"--out: {file} is damaged, so that the settings of what lies beside it are not known; give another "
                f"folder or remove it."
            )
        different = difference(held, json.loads(self.study))
        if different:
            raise ValueError(
                f"--out: {file.parent} holds a study with other settings ({different}; see {file.name}); give another folder "
                f"or remove it."
            )

    def _check_one(self, path: Path) -> None:
        """Refuse to replace files that are not this study's."""
        if not path.exists() or path == self._settings_file:
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
        """The study that recorded its files, and the digests of each."""
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


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_whole(path: str | os.PathLike[str], study: str) -> xr.Dataset:
    """Read a store of a study with these settings, none of whose numbers may be missing."""
    try:
        dataset = read(path)
    except ValueError as error:
        raise damaged_result(path, str(error).removesuffix(f" {REMEDY}")) from None
    if any(v.dtype.kind == "f" and bool(v.isnull().any()) for v in dataset.values()):
        raise damaged_result(path)
    why = why_other(dataset.attrs.get(STUDY), study)
    if why is not None:
        raise ValueError(
            f"--out: {os.fspath(path)} {why}. Give another folder, or remove it and run the command again."
        )
    return dataset


def damaged_result(path: str | os.PathLike[str], found: str = "") -> ValueError:
    """The error for a store of a study that is not whole."""
    return ValueError(
        f"--out: {os.fspath(path)} is damaged. Remove it and run the command again: what it held is then trained anew."
        f"{' Found: ' if found else ''}{found}"
    )
