"""What ran, and what is already done."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from geoseg.errors import BusyError, GeosegError, OutputError, ResumeError
from geoseg.window import Window

Facts = dict[str, Any]
_LOCK, _NOTES = "lock", "run.json"


def identity(facts: Facts) -> str:
    """One name for everything that decides the result: sha256 of the facts as canonical JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def tags(facts: Facts, source: str) -> dict[str, str]:
    """What a file says of the run that made it.

    Args:
        facts: of the run.
        source: path of its scene.
    """
    model, scene = facts["model"], facts["scene"]
    return {
        "GEOSEG_VERSION": facts["geoseg"],
        "MODEL": f"{model['name']} {model['version']}",
        "MODEL_SHA256": model["weights_sha256"],
        "SOURCE": Path(source).name,
        "SOURCE_SHA256": scene["sha256"],
        "OPTIONS": ", ".join(f"{key}={value}" for key, value in facts["options"].items()),
    }


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write into an ``OutputError`` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(f"{target}: the disk is full; free some space or choose another --out") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG):
            raise OutputError(f"{target}: cannot be written ({error.strerror}); choose another --out") from error
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Write beside the target, make it durable, and put it in its place in one step.

    Raises:
        OutputError: if it cannot be written.
    """
    part = path.with_name(path.name + ".part")
    with writing(path):
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def write_json(path: Path, facts: Facts) -> None:
    """Write JSON, whole or not at all.

    Raises:
        OutputError: if it cannot be written.
    """
    write_whole(path, (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())


class Run:
    """One run's work on disk: a folder beside the target that holds finished blocks until the result is complete.

    Use as a context. A run that is killed leaves the folder; the same run goes on from its blocks. A run that fails
    before its first block is finished leaves nothing. Only one process at a time may hold the folder.

    Attributes:
        out: folder of the results.
        stem: name of the scene without suffix.
        work: the folder.
        facts: what decides the result.
    """

    def __init__(self, out: Path, stem: str, facts: Facts, *, force: bool = False, suffix: str = ".tif") -> None:
        """Describe a run; nothing is touched before the context is entered.

        Args:
            out: folder of the results, made if missing.
            stem: the results' names begin with it.
            facts: everything that decides the result, JSON-able.
            force: forget earlier work and replace earlier results.
            suffix: of the files of finished blocks.
        """
        self.out, self.stem, self.facts, self.force, self._suffix = out, stem, facts, force, suffix
        self.work = out / f".geoseg-{stem}"
        self.identity = identity(facts)
        self._made_out = False
        self._lock: int | None = None

    @property
    def target(self) -> Path:
        """Where the manifest of the finished run lies; it is written last."""
        return self.out / f"{self.stem}.manifest.json"

    def finished(self) -> Facts | None:
        """The manifest, if this very run was finished before and its results are still there.

        Raises:
            OutputError: if the results of another run are there, and ``force`` does not allow to replace them.
        """
        if self.force:
            return None
        try:
            manifest: Facts = json.loads(self.target.read_text(encoding="utf-8"))
            sizes = dict(manifest["outputs"].items())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(f"{self.target}: not a manifest of geoseg; move it away or use --force") from error
        if manifest.get("identity") != self.identity:
            changed = ", ".join(_differences(manifest.get("facts", {}), self.facts)) or "its facts"
            raise OutputError(f"{self.target}: results of another run are there (other {changed}); use --force or another --out")
        for name, size in sizes.items():
            path = self.out / name
            if not path.is_file() or path.stat().st_size != size:
                raise OutputError(f"{path}: missing or changed since the run finished; use --force to make it again")
        return manifest

    def __enter__(self) -> Run:
        """Make or take up the work folder.

        Raises:
            OutputError: if the folder cannot be written, or unknown files are in the way of the results.
            ResumeError: if the folder holds another run's work, or another process is at it.
        """
        with writing(self.out):
            self._made_out = not self.out.exists()
            self.out.mkdir(parents=True, exist_ok=True)
            self.work.mkdir(exist_ok=True)
            self._lock = self._held()
            try:
                self._take_up()
            except BaseException:
                if not (self.work / _NOTES).exists():
                    self._leave()
                os.close(self._lock)
                raise
        return self

    def _held(self) -> int:
        """Lock the folder.

        Raises:
            BusyError: if another process has it, or had it until now and removed it.
        """
        lock = os.open(self.work / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = os.fstat(lock).st_nlink > 0
        except BlockingIOError:
            free = False
        if not free:
            os.close(lock)
            raise BusyError(f"{self.work}: another geoseg process is working here; wait for it or choose another --out")
        return lock

    def _take_up(self) -> None:
        notes = self.work / _NOTES
        try:
            before = json.loads(notes.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            before = None
        if before and before.get("identity") == self.identity and not self.force:
            return
        if before and not self.force:
            changed = ", ".join(_differences(before.get("facts", {}), self.facts)) or "its facts"
            raise ResumeError(f"{self.work}: unfinished work of another run is here (other {changed}); use --force to start over")
        for path in self.work.iterdir():
            if path.name != _LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        write_json(notes, {"identity": self.identity, "facts": self.facts})

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Give the folder back: what is half-written goes, finished blocks stay, and a folder without any goes too."""
        finished = f"block-*[0-9]{self._suffix}"
        worth = kind is not None and any(self.work.glob(finished))
        if worth:
            for path in self.work.glob("*"):
                if not (path.name in (_LOCK, _NOTES) or path.match(finished)):
                    path.unlink(missing_ok=True) if not path.is_dir() else shutil.rmtree(path, ignore_errors=True)
        else:
            self._leave(failed=kind is not None)
        if self._lock is not None:
            os.close(self._lock)
        if worth and isinstance(error, GeosegError):
            raise type(error)(f"{error} (finished blocks are kept in {self.work}; the same command goes on from there)") from error

    def _leave(self, *, failed: bool = True) -> None:
        """Remove the work folder, and the folder of the results if nothing came of it."""
        shutil.rmtree(self.work, ignore_errors=True)
        if failed and self._made_out:
            with suppress(OSError):  # not empty: others work here, too
                self.out.rmdir()

    def block(self, core: Window) -> Path:
        """Where the finished block with this core is kept; the file exists only when the block is complete."""
        return self.work / f"block-{core.row}-{core.col}-{core.height}-{core.width}{self._suffix}"

    def check_clear(self, names: Iterable[str]) -> None:
        """Make sure that no result is about to replace a file of unknown origin.

        Raises:
            OutputError: if one would, and ``force`` does not allow it.
        """
        for name in names:
            if (self.out / name).exists() and not self.force:
                raise OutputError(f"{self.out / name}: exists already; use --force to replace it or choose another --out")

    def publish(self, names: Iterable[str], manifest: Facts) -> Facts:
        """Move results from the work folder to their places, the manifest last.

        Args:
            names: file names, in the work folder now.
            manifest: what else to remember.

        Returns:
            The manifest as written: with ``identity``, ``facts`` and ``outputs`` (file name to bytes).

        Raises:
            OutputError: if one cannot be moved.
        """
        names = list(names)
        with writing(self.out):
            sizes = {name: (self.work / name).stat().st_size for name in names}
            self.target.unlink(missing_ok=True)
            for name in names:
                (self.work / name).replace(self.out / name)
            folder = os.open(self.out, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        whole = {"identity": self.identity, **manifest, "facts": self.facts, "outputs": sizes}
        write_json(self.target, whole)
        return whole


def _differences(before: Facts, now: Facts) -> list[str]:
    """Names of the facts that differ, one level deep."""
    return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
