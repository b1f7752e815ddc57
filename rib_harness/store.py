"""Results and checkpoints by content key: plain files, atomic, no torch.

    STORE/
      store.json            the version of this layout
      steps/KEY/            one finished step: done.json (written last), step.json, and its files
      work/KEY/             a step under way: what a resumed fit needs
      locks/KEY.lock        held by the process that computes the step
      runs/ID.json          which steps make which matrix
      configs/ID.toml       what was asked, to be run again

A step's folder is written elsewhere, synced and renamed: a folder under `steps` with a
`done.json` is whole, whatever happened to the process that made it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rib_harness.errors import StoreError

#: The version of the layout above.
FORMAT = 1


#: The version of a run's record.
RUN_FORMAT = "rib-harness.run/1"

#: Its folders.
FOLDERS = ("steps", "work", "locks", "runs", "configs")


def key_of(inputs: Mapping[str, Any]) -> str:
    """The content key: a hash of everything that can change a step's result.

    >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """A folder of steps.

    Args:
        path: the folder; made on the first write.

    Raises:
        StoreError: it is from a newer version (it is left untouched), or no store at all.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise StoreError(f"The store {self.path} is a file; expected a folder.")
        marker = self.path / "store.json"
        if marker.exists():
            found = _read_json(marker).get("format")
            if found != FORMAT:
                raise StoreError(
                    f"The store {self.path} has format {found!r}; this rib-harness reads format "
                    f"{FORMAT}. It was left untouched: use the version that made it, or another "
                    "--store."
                )
        elif self.path.exists() and any(map(_foreign, self.path.iterdir())):
            raise StoreError(
                f"{self.path} holds files but no store.json, so it is no rib-harness store. "
                "Choose another --store."
            )

    def prepare(self) -> None:
        """Make the folders, and find out now whether they can be written.

        Raises:
            StoreError: they cannot.
        """
        try:
            if not (self.path / "store.json").exists():
                write_atomically(self.path / "store.json", json.dumps({"format": FORMAT}) + "\n")
            for name in FOLDERS:
                (self.path / name).mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise StoreError(
                f"The store {self.path} cannot be written: {error.strerror or error}."
            ) from None

    def done(self, key: str) -> dict[str, Any] | None:
        """What a finished step says of itself, or None."""
        path = self.folder(key) / "done.json"
        return _read_json(path) if path.exists() else None

    def inputs(self, key: str) -> dict[str, Any] | None:
        """What a finished step's key is a hash of, or None."""
        path = self.folder(key) / "step.json"
        return _read_json(path) if path.exists() else None

    def folder(self, key: str) -> Path:
        """Where a finished step lies."""
        return self.path / "steps" / key

    def work(self, key: str) -> Path:
        """Where a step under way keeps what it needs to go on."""
        return self.path / "work" / key

    @contextmanager
    def lock(self, key: str, waiting: Any = None) -> Iterator[None]:
        """Hold the step: another process that wants it waits. A dead process holds nothing.

        Args:
            waiting: called once, if the lock is not free.
        """
        lock = FileLock(self.path / "locks" / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting is not None:
                waiting()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def writing(self, key: str, inputs: Mapping[str, Any], done: dict[str, Any]) -> Iterator[Path]:
        """A folder to fill; when the block ends well it becomes the step, whole and at once.

        Args:
            inputs: what the key was made of, kept in step.json for `why`.
            done: written last; the block may still add to it.
        """
        target = self.folder(key)
        for left in (self.path / "work").glob(f"{key}-*"):  # by a killed process: we hold the lock
            shutil.rmtree(left, ignore_errors=True)
        # Not `mkdtemp`, whose folders nobody else may read: a store may be a team's.
        scratch = self.path / "work" / f"{key}-{secrets.token_hex(6)}"
        scratch.mkdir()
        try:
            yield scratch
            (scratch / "step.json").write_text(_json(inputs), encoding="utf-8")
            (scratch / "done.json").write_text(_json(done), encoding="utf-8")
            for file in scratch.iterdir():
                _sync(file)
            _sync(scratch)
            if target.exists():  # half of a copied or damaged store: never a result
                shutil.rmtree(target)
            scratch.rename(target)
            _sync(target.parent)
        except OSError as error:
            if is_full(error):
                raise full_disk(self.path) from error
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def discard_work(self, key: str) -> None:
        """Forget what a now finished step had kept."""
        shutil.rmtree(self.work(key), ignore_errors=True)

    def save_run(self, record: Mapping[str, Any], config: str, created: str) -> dict[str, Any]:
        """Keep which steps make a matrix; returns the record with its id.

        Args:
            record: what the run is; the same run again has the same id.
            config: what was asked, as TOML.
            created: the time, kept from the first save.
        """
        # These may differ between two runs of the same steps.
        apart = ("components", "notes", "expected", "features", "versions")
        identity = {k: v for k, v in record.items() if k not in apart}
        run_id = key_of(identity)[:16]
        path = self.path / "runs" / f"{run_id}.json"
        kept = {}
        if path.exists():
            before = _read_json(path)
            created = before["created"]
            # Features that an earlier command asked for stay known.
            kept = {k: before[k] for k in ("features",) if k in before}
        whole = {**kept, **record, "id": run_id, "created": created}
        try:
            write_atomically(self.path / "configs" / f"{run_id}.toml", config)
            write_atomically(path, _json(whole))
        except OSError as error:
            if is_full(error):
                raise full_disk(self.path) from error
            raise
        return whole

    def runs(self) -> list[dict[str, Any]]:
        """All runs of this store, oldest first."""
        records = []
        for path in sorted((self.path / "runs").glob("*.json")):
            record = _read_json(path)
            if record.get("format") != RUN_FORMAT:
                raise StoreError(
                    f"{path} is damaged or of another version: expected format {RUN_FORMAT!r}, got "
                    f"{record.get('format')!r}. Delete it; the command that made it writes it anew."
                )
            records.append(record)
        return sorted(records, key=lambda record: (record.get("created", ""), record["id"]))

    def steps(self) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """Key, inputs and done record of every finished step."""
        for path in sorted((self.path / "steps").glob("*/done.json")):
            yield path.parent.name, _read_json(path.parent / "step.json"), _read_json(path)


def _foreign(path: Path) -> bool:
    """Whether a store never has this at its top; a process killed at its start leaves the rest."""
    return path.name not in FOLDERS and not path.name.startswith(".store.json-")


def write_atomically(path: Path, data: str | bytes) -> None:
    """Write elsewhere, sync, rename: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.parent / f".{path.name}-{secrets.token_hex(6)}"
    handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less the umask
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        name.replace(path)
        _sync(path.parent)
    except BaseException:
        name.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    """Have the disk hold what was written; folders cannot be synced everywhere."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if is_full(error) or error.errno == errno.EIO:
            raise
    finally:
        os.close(handle)


def is_full(error: OSError) -> bool:
    """Whether the disk, or the user's share of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def full_disk(path: Path) -> StoreError:
    """What to say then."""
    return StoreError(
        f"The disk of {path} is full. Finished steps are whole: free some space and give the same "
        "command again."
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}). Delete {path.parent} to redo it.") from None
    if not isinstance(data, dict):
        raise StoreError(f"{path} is damaged: expected an object.")
    return data


def _json(data: Any) -> str:
    return json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n"
