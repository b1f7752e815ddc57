"""Results and checkpoints by content key: plain files, atomic, no torch.

    STORE/
      store.json            the version of this layout
      steps/KEY/            one finished step: done.json (written last), step.json, and its files
      work/KEY/             a step under way: what a resumed fit needs
      locks/KEY.lock        held by the process that computes the step (KEY.lease: see `locks`)
      runs/ID.json          which steps make which matrix
      configs/ID.toml       what was asked, to be run again

A step's folder is written elsewhere, synced and renamed: a folder under `steps` with a
`done.json` is whole, whatever happened to the process that made it. What may happen to it later
is seen: `done.json` holds its own key and the digest of every file beside it, and what does not
verify is no result. It is named, and done again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rib_harness.errors import StoreError
from rib_harness.files.digest import file_digest
from rib_harness.locks import locked

#: The version of the layout above. Format 1 kept no digests; `Store.prepare` adds them.
FORMAT = 2

#: What a step of each kind is for. Weights may be large: they are hashed when they are loaded.
WEIGHTS, SCORES, FEATURES = "model.safetensors", "scores.parquet", "features.safetensors"

#: The version of a run's record.
RUN_FORMAT = "rib-harness.run/1"

#: What to do where a step does not verify.
AGAIN = "Give the command that made it again: it does this step again, and no other."

_State = tuple[int, int, int, int]

#: Its folders.
FOLDERS = ("steps", "work", "locks", "runs", "configs")


def key_of(inputs: Mapping[str, Any]) -> str:
    """The content key: a hash of everything that can change a step's result.

    >>> key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    True
    """
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def check_key(key: Any) -> str:
    """The key of a step or the id of a run, which becomes part of a path.

    Raises:
        StoreError: it is none, so the path might lead out of the store.
    """
    if not _is_key(key):
        raise StoreError(
            f"Expected the key of a step or the id of a run, which is hexadecimal, got {key!r}."
        )
    return str(key)


class Store:
    """A folder of steps.

    Args:
        path: the folder; made on the first write.

    Attributes:
        damaged: what was found not to verify: path → what is wrong and what to do.

    Raises:
        StoreError: it is from a newer version (it is left untouched), or no store at all.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.damaged: dict[Path, str] = {}
        self._verified: dict[Path, _State] = {}  # file → its state when it was hashed
        self._records: dict[str, tuple[_State, dict[str, Any]]] = {}
        if self.path.exists() and not self.path.is_dir():
            raise StoreError(f"The store {self.path} is a file; expected a folder.")
        self._format = FORMAT
        marker = self.path / "store.json"
        if os.path.lexists(marker):
            try:
                found = read_json(marker)["format"]
            except (DamagedFileError, KeyError) as error:
                raise StoreError(
                    f"{marker} is damaged ({_told(error)}); it holds nothing but the version of "
                    "the layout. Delete this one file: the next `rib-harness run` writes it anew, "
                    "and no step is touched."
                ) from None
            if found not in (1, FORMAT) or isinstance(found, bool):
                raise StoreError(
                    f"The store {self.path} has format {found!r}; this rib-harness reads format "
                    f"{FORMAT}. It was left untouched: use the version that made it, or another "
                    "--store."
                )
            self._format = int(found)
        elif self.path.exists():
            if any(map(_foreign, self.path.iterdir())):
                raise StoreError(
                    f"{self.path} holds files but no store.json, so it is no rib-harness store. "
                    "Choose another --store."
                )
            self._format = 1  # a damaged marker was deleted, maybe: what has no digests gets some

    def prepare(self) -> None:
        """Make the folders, and find out now whether they can be written.

        Raises:
            StoreError: they cannot.
        """
        try:
            for name in FOLDERS:
                (self.path / name).mkdir(parents=True, exist_ok=True)
            if self._format < FORMAT:
                self._seal()
            if self._format < FORMAT or not (self.path / "store.json").exists():
                write_atomically(self.path / "store.json", json.dumps({"format": FORMAT}) + "\n")
                self._format = FORMAT
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            where = f" ({error.filename})" if isinstance(error.filename, str | Path) else ""
            raise StoreError(
                f"The store {self.path} cannot be written: {error.strerror or error}{where}."
            ) from None

    def done(self, key: str) -> dict[str, Any] | None:
        """What a finished step says of itself; None where it is not there or does not verify.

        Its files are hashed once a process, but for weights: see `file`. A step that was made
        from a checkpoint which has been replaced since is none either.
        """
        record = self._record(key)
        if record is None:
            return None
        folder, whole = self.folder(key), True
        self.damaged.pop(folder, None)
        if "files" not in record and not self._agrees(key, record):
            return None
        for name, said in record.get("files", {}).items():
            whole &= self._whole(folder / name, said, hashed=name != WEIGHTS)
        for parent, digest in record.get("made_from", {}).items():
            made = self._record(parent)
            if made is not None and digest != artefact_digest(made):
                self._damage(folder, f"it was made from {made['id']}, which was made anew since")
                whole = False
        return record if whole else None

    def _agrees(self, key: str, record: Mapping[str, Any]) -> bool:
        """Whether a step of format 1 does not contradict itself; looked at once a process."""
        from rib_harness.format_1 import contradiction

        folder, state = self.folder(key), self._records[key][0]
        if self._verified.get(folder) != state:
            if wrong := contradiction(folder, record):
                self._damage(folder, wrong)
                return False
            self._verified[folder] = state
        return True

    def whole(self, key: str) -> bool:
        """Whether a step is done and all of its files verify, weights too."""
        record = self.done(key)
        return record is not None and all(
            self._whole(self.folder(key) / name, said)
            for name, said in record.get("files", {}).items()
        )

    def file(self, key: str, name: str) -> Path:
        """A file of a finished step, verified.

        Raises:
            StoreError: it is not there, or does not verify; names it, and what to do.
        """
        path, record = self.folder(key) / name, self._record(key)
        said = (record or {}).get("files", {})
        if record is None or not (self._whole(path, said[name]) if name in said else path.exists()):
            raise StoreError(
                self.damaged.get(path)
                or self.damaged.get(self.folder(key) / "done.json")
                or f"{path} is not there. {AGAIN}"
            )
        return path

    def history(self, key: str) -> list[dict[str, Any]]:
        """The training curve of a finished fine-tuning, a row a look; empty where it is not."""
        if self.done(key) is None:
            return []
        lines = self.file(key, "history.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def inputs(self, key: str) -> dict[str, Any] | None:
        """What a finished step's key is a hash of, or None."""
        if self._record(key) is None:
            return None
        try:
            return read_json(self.file(key, "step.json"))
        except (DamagedFileError, StoreError):
            return None

    def _record(self, key: str) -> dict[str, Any] | None:
        """What `done.json` says, if it is this step's and as it was written."""
        path = self.folder(key) / "done.json"
        if not os.path.lexists(path):
            return None
        try:
            state = _state(path)
            if key in self._records and self._records[key][0] == state:
                return self._records[key][1]
            record = read_json(path)
        except (DamagedFileError, OSError) as error:
            wrong = _told(error)
        else:
            wrong = ""
            if record.get("sha256") != digest_of(record) and not self._unsealed(record):
                wrong = "it is not as it was written"
            elif record.get("key", key) != key:
                wrong = f"it is of the step {record['key']}"
        if wrong:
            self._damage(path, wrong)
            return None
        self.damaged.pop(path, None)
        self._records[key] = (state, record)
        return record

    def _whole(self, path: Path, said: Mapping[str, Any], hashed: bool = True) -> bool:
        """Whether a file is as it was written; without `hashed` only whether it has its size."""
        hashed |= path in self.damaged
        wrong = ""
        try:
            state = _state(path)
            if not path.is_file():
                wrong = "it is no file"
            elif state[0] != said["bytes"]:
                wrong = f"it has {state[0]:,} bytes of {said['bytes']:,}"
            elif hashed and self._verified.get(path) != state:
                if file_digest(path) != said["sha256"]:
                    wrong = "its sha256 is not the one that it was written with"
                else:
                    self._verified[path] = state
        except PermissionError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}.") from None
        except OSError as error:
            wrong = _told(error)
        if wrong:
            self._damage(path, wrong)
        else:
            self.damaged.pop(path, None)
        return not wrong

    def _damage(self, path: Path, wrong: str) -> None:
        self.damaged[path] = f"{path} is damaged ({wrong}), so this step is no result. {AGAIN}"

    def folder(self, key: str) -> Path:
        """Where a finished step lies."""
        return self.path / "steps" / check_key(key)

    def work(self, key: str) -> Path:
        """Where a step under way keeps what it needs to go on."""
        return self.path / "work" / check_key(key)

    @contextmanager
    def lock(self, key: str, waiting: Any = None) -> Iterator[None]:
        """Hold the step: another process that wants it waits. A dead process holds nothing.

        Args:
            waiting: called once, if the lock is not free.
        """
        with locked(self.path / "locks" / f"{check_key(key)}.lock", waiting):
            yield

    @contextmanager
    def writing(self, key: str, inputs: Mapping[str, Any], done: dict[str, Any]) -> Iterator[Path]:
        """A folder to fill; when the block ends well it becomes the step, whole and at once.

        A step that was there before, whole or not, is there until then.

        Args:
            inputs: what the key was made of, kept in step.json for `why`.
            done: written last; the block may still add to it.
        """
        target = self.folder(key)
        for left in (self.path / "work").glob(f"{key}-*"):  # by a killed process: we hold the lock
            _remove(left)
        # Not `mkdtemp`, whose folders nobody else may read: a store may be a team's.
        scratch = self.path / "work" / f"{key}-{secrets.token_hex(6)}"
        scratch.mkdir()
        before = scratch.with_name(f"{scratch.name}-before")
        try:
            yield scratch
            (scratch / "step.json").write_text(_json(inputs), encoding="utf-8")
            sealed = _sealed({**done, "key": key}, scratch)
            (scratch / "done.json").write_text(_json(sealed), encoding="utf-8")
            for file in scratch.iterdir():
                _sync(file)
            _sync(scratch)
            if os.path.lexists(target):
                target.rename(before)
            scratch.rename(target)
            _sync(target.parent)
        except OSError as error:
            if is_full(error):
                raise full_disk(self.path) from error
            raise
        finally:
            _remove(scratch)
            if os.path.lexists(before) and not os.path.lexists(target):
                before.rename(target)
            _remove(before)
            for path in [path for path in self.damaged if target in (path, path.parent)]:
                del self.damaged[path]

    def discard_work(self, key: str) -> None:
        """Forget what a now finished step had kept."""
        _remove(self.work(key))

    def save_run(self, record: Mapping[str, Any], config: str, created: str) -> dict[str, Any]:
        """Keep which steps make a matrix; returns the record with its id.

        Args:
            record: what the run is; the same run again has the same id.
            config: what was asked, as TOML.
            created: the time, kept from the first save.
        """
        run_id = _run_id(record)
        path = self.path / "runs" / f"{run_id}.json"
        kept = {}
        before = self._run(path) if os.path.lexists(path) else None
        if before is not None:
            created = before["created"]
            # Features that an earlier command asked for stay known.
            kept = {k: before[k] for k in ("features",) if k in before}
        whole = {**kept, **record, "id": run_id, "created": created}
        whole["config_sha256"] = hashlib.sha256(config.encode()).hexdigest()
        whole["sha256"] = digest_of(whole)
        try:
            for file, text in ((self._config(run_id), config), (path, _json(whole))):
                if file.is_dir():
                    _remove(file)
                write_atomically(file, text)
        except OSError as error:
            if is_full(error):
                raise full_disk(self.path) from error
            raise
        self.damaged.pop(path, None)
        return whole

    def runs(self) -> list[dict[str, Any]]:
        """All runs of this store, oldest first; of one that does not verify, see `damaged`."""
        # Other names are of file managers and editors.
        files = [file for file in (self.path / "runs").glob("*.json") if _is_key(file.stem)]
        found = map(self._run, sorted(files))
        records = [record for record in found if record is not None]
        return sorted(records, key=lambda record: (record["created"], record["id"]))

    def _run(self, path: Path) -> dict[str, Any] | None:
        """A run's record, if it is as it was written."""
        try:
            record = read_json(path)
        except DamagedFileError as error:
            record, wrong = {}, _told(error)
        else:
            wrong = ""
            if record.get("format") != RUN_FORMAT:
                wrong = f"expected format {RUN_FORMAT!r}, got {record.get('format')!r}"
            elif not isinstance(record.get("created"), str):
                wrong = "it does not say when it was made"
            elif record.get("id") != _run_id(record):
                wrong = "its fields do not make its id"
            elif record["id"] != path.stem:
                own = path.with_name(f"{record['id']}.json")
                with suppress(DamagedFileError):
                    if own.exists() and read_json(own) == record:
                        return None  # a copy, which says nothing of its own
                wrong = f"it is the record of {record['id']}"
            elif record.get("sha256") != digest_of(record) and not self._unsealed(record):
                wrong = "it is not as it was written"
            elif not all(map(_is_key, _keys_in(record))):
                wrong = "it names a step by what is no key"
        if wrong:
            self.damaged[path] = (
                f"{path} is damaged or of another version ({wrong}), so this run is not shown; no "
                "step is touched. The command that made it writes it anew; or delete this one file."
            )
            return None
        return record

    def config(self, record: Mapping[str, Any]) -> str:
        """What was asked for a run, as TOML.

        Raises:
            StoreError: it is not there, or not as it was written.
        """
        path = self._config(record["id"])
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be read: {error}.") from None
        if record.get("config_sha256", "") not in ("", hashlib.sha256(text.encode()).hexdigest()):
            raise StoreError(
                f"{path} is not as it was written. The command that made the run writes it anew."
            )
        return text

    def _config(self, run_id: str) -> Path:
        return self.path / "configs" / f"{run_id}.toml"

    def step_keys(self) -> list[str]:
        """Of all steps, whole or not."""
        return sorted(p.name for p in (self.path / "steps").glob("*") if _is_key(p.name))

    def steps(self) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
        """Key, inputs and done record of every finished step."""
        for key in self.step_keys():
            record, inputs = self._record(key), self.inputs(key)
            if record is not None and inputs is not None:
                yield key, inputs, record

    def _unsealed(self, record: Mapping[str, Any]) -> bool:
        """Whether it was written when no digests were kept."""
        return self._format < FORMAT and not {"sha256", "files"} & set(record)

    def _seal(self) -> None:
        """Give steps and runs of a store of format 1 digests of what they are now."""
        from rib_harness.format_1 import made_from

        for run in self.runs():
            sealed = {**run, "sha256": digest_of(run)}
            write_atomically(self.path / "runs" / f"{run['id']}.json", _json(sealed))
        for key in self.step_keys():
            record = self.done(key)
            if record is not None and "sha256" not in record:
                folder = self.folder(key)
                sealed = {**record, "key": key, "made_from": made_from(folder)}
                write_atomically(folder / "done.json", _json(_sealed(sealed, folder)))


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
    """Whether the disk, or the user's share of it, is full, or a file may not grow (ulimit -f)."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def full_disk(path: Path) -> StoreError:
    """What to say then."""
    return StoreError(
        f"The disk of {path} is full, or files on it may not grow (quota, ulimit -f). Finished "
        "steps are whole: free some space and give the same command again."
    )


def _remove(path: Path) -> None:
    """A folder or a file, if it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def digest_of(record: Mapping[str, Any]) -> str:
    """The digest that a record holds of all its other fields."""
    text = json.dumps({k: v for k, v in record.items() if k != "sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def artefact_digest(done: Mapping[str, Any]) -> str:
    """The digest of what a step was done for; empty where none was kept."""
    files = done.get("files", {})
    return str(next((files[n]["sha256"] for n in (WEIGHTS, SCORES, FEATURES) if n in files), ""))


def _sealed(done: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What is written as done.json: with the digests of the folder's files, and its own."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": file_digest(file)}
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != "done.json"
    }
    sealed = json.loads(_json({**done, "files": files}))  # as it will be read
    return {**sealed, "sha256": digest_of(sealed)}


def _is_key(key: Any) -> bool:
    return isinstance(key, str) and re.fullmatch("[0-9a-f]+", key) is not None


def _keys_in(record: Mapping[str, Any]) -> Iterator[Any]:
    """Of the steps that a run's record names."""
    for part in (record.get("cells", {}), record.get("features", {})):
        for row in (part.get("pre", {}), *part.get("post", {}).values()):
            yield from row.values()
    yield from record.get("finetune", {}).values()


def _run_id(record: Mapping[str, Any]) -> str:
    """Which run it is: what may differ between two runs of the same steps is no part of it."""
    apart = ("components", "notes", "expected", "features", "versions",
             "id", "created", "sha256", "config_sha256")  # fmt: skip
    return key_of({k: v for k, v in record.items() if k not in apart})[:16]


class DamagedFileError(Exception):
    """A file that is not what was written; the text says how."""


def _told(error: Exception) -> str:
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return f"it has no {error}" if isinstance(error, KeyError) else str(error)


def _state(path: Path) -> _State:
    """Size first; changes whenever a file is written or another takes its place."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def read_json(path: Path) -> dict[str, Any]:
    """An object.

    Raises:
        DamagedFileError: it holds something else, or cannot be read at all.
        StoreError: this user may not read it.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}.") from None
    except OSError as error:
        raise DamagedFileError(_told(error)) from None
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(str(error)) from None
    if not isinstance(data, dict):
        raise DamagedFileError(f"expected an object, got {type(data).__name__}")
    return data


def _json(data: Any) -> str:
    return json.dumps(data, indent=1, sort_keys=True, allow_nan=False) + "\n"
