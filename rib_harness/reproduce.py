"""Run a recorded result again: the same code? the same inputs? the same numbers?

A result says where its numbers come from (`RunResult.to_json`). From it come what must be
installed (`differences`), what to run (`Recorded.config`), and what to compare (`compare`).
"""

from __future__ import annotations

import json
import platform
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rib_harness.catalog import Catalog
from rib_harness.config import RunConfig, make_config
from rib_harness.errors import ConfigError, RibError
from rib_harness.given import user_path
from rib_harness.plan import Plan, Step
from rib_harness.results import FORMAT, collect
from rib_harness.runner import Session
from rib_harness.store import RUN_FORMAT, Store

#: What may be given beside `--reproduce`: where and how fast, not what.
MAY_DIFFER = ("store", "data", "data_root", "device", "workers", "threads", "eval_batch_size",
              "offline", "no_plugin", "save_every", "tracker", "allow_mismatch",
              "allow_full_disk", "requires")  # fmt: skip


class _Part(BaseModel):
    """Of a result: what is read here must be there; what else is there does not matter."""

    model_config = ConfigDict(strict=True)


class _Cell(_Part):
    top1: float
    correct: int = Field(ge=0)
    n: int = Field(ge=1)


class _Component(_Part):
    distribution: str
    version: str
    editable: bool
    commit: str


class _Step(_Part):
    python: str
    packages: dict[str, str]
    components: list[_Component]


class _Provenance(_Part):
    components: list[_Component] = Field(min_length=1)
    steps: dict[str, _Step] = Field(min_length=1)


class _Result(_Part):
    id: str
    suite: str
    backbone: str
    method: str | None
    seed: int | None
    members: list[str]
    data: dict[str, str]
    preset: str | None
    recipe: dict[str, Any] | None
    limit: int | None
    accepted_licenses: list[str]
    pre: dict[str, _Cell] = Field(min_length=1)
    post: dict[str, dict[str, _Cell]]
    mri: float | None
    provenance: _Provenance


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was."""

    what: str
    recorded: str
    now: str


@dataclass(frozen=True)
class Recorded:
    """A result to run again.

    Args:
        result: as `results --format json` prints it.
        settings: of `RunConfig`, that made it.
        store: where it lies; None for a file.
    """

    result: Mapping[str, Any]
    settings: Mapping[str, Any]
    store: Path | None = None

    @property
    def title(self) -> str:
        """For people: id, suite, backbone, method, seed."""
        r = self.result
        parts = [r["id"], r["suite"], r["backbone"], r["method"] or "untouched"]
        return " · ".join([*parts, *([f"seed {r['seed']}"] if r["seed"] is not None else [])])

    @property
    def keys(self) -> set[str]:
        """Keys of its steps: what they were made of."""
        return set(self.result["provenance"]["steps"])

    def config(self, given: RunConfig) -> RunConfig:
        """What to run: as it was, but in the place that is given.

        Never in the store that it lies in, where every step would be found done, but in
        STORE-reproduced then.

        Raises:
            ConfigError: something is given that would make it another run.
        """
        said = {
            name: value
            for name in given.model_fields_set
            if (value := getattr(given, name)) not in ((), {})
        }
        wrong = sorted(set(said) - set(MAY_DIFFER))
        if wrong:
            raise ConfigError(
                [
                    f"--{name.replace('_', '-')} does not go with --reproduce, which runs what was "
                    "run before. These may be given: "
                    + ", ".join(f"--{one.replace('_', '-')}" for one in MAY_DIFFER)
                    + "."
                    for name in wrong
                ]
            )
        settings = {k: v for k, v in self.settings.items() if k not in ("store", "tracker")}
        said["data"] = tuple(
            {text.partition(":")[0]: text
             for text in (*settings.get("data", ()), *said.get("data", ()))}.values()
        )  # fmt: skip
        store = given.store
        if self.store is not None and store.resolve() == self.store.resolve():
            store = store.with_name(f"{store.name}-reproduced")
        return make_config({**settings, **said, "store": store})


def find(text: str, store: Path) -> Recorded:
    """The result that RESULT names.

    Args:
        text: the beginning of a run's id in the store; a file of `results --format json` with one
            result; the record STORE/runs/ID.json of a run; or a store with one run.
        store: where ids are looked up.

    Raises:
        RibError: it is none of these, or several results.
    """
    path = user_path(text)
    if path.is_dir():
        return _of_store(path, "")
    if path.is_file():
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise RibError(f"{path} is no result: {error}") from None
        if isinstance(data, Mapping) and data.get("format") == RUN_FORMAT:
            return _of_store(path.absolute().parents[1], path.stem)
        return _of_file(path, data)
    if not store.exists():
        raise RibError(
            f"There is no file or folder {text}, and no store {store} to look {text!r} up."
        )
    return _of_store(store, text)


def _of_store(path: Path, prefix: str) -> Recorded:
    opened = Store(path)
    try:
        records = opened.runs()
        found = [record for record in records if record["id"].startswith(prefix)]
        if len(found) != 1:
            raise _not_one(path, prefix, len(found), found or records)
        (run,) = collect(opened, found)
        result = run.to_json()
        steps = result["provenance"]["steps"]
        steps |= _needed(opened, steps)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RibError(
            f"A record in {path / 'runs'} is damaged, or one of its steps: {error!r}. The command "
            "that made it writes it anew."
        ) from None
    try:
        settings = tomllib.loads(opened.config(run.record))
    except ValueError as error:
        raise RibError(f"The configuration of the run {run.id} is no TOML: {error}") from None
    _check(f"The run {run.id} of {path}", result)
    return Recorded(result, {k.replace("-", "_"): v for k, v in settings.items()}, path.absolute())


def _not_one(path: Path, prefix: str, found: int, listed: Iterable[Mapping[str, Any]]) -> RibError:
    lines = "\n".join(
        f"  {r['id']}  {r['backbone']} · {r['method'] or 'untouched'} · seed {r['seed']}"
        for r in listed
    )
    what = f"a run whose id begins with {prefix!r}" if prefix else "one run"
    return RibError(
        f"Expected {what} in the store {path}, found {found}."
        + (f" Its runs:\n{lines}\nName one by its id." if lines else "")
    )


def _check(where: str, result: Any) -> None:
    """Raise unless all that is compared is there: a check of nothing would pass.

    Raises:
        RibError: what is missing or malformed, all of it.
    """
    try:
        _Result.model_validate(result)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise RibError(
            f"{where} is no whole result, so there is nothing to compare with: "
            f"{'; '.join(problems[:5])}{more}."
        ) from None


def _needed(store: Store, keys: Iterable[str]) -> dict[str, Any]:
    """Provenance of the steps that these started from, which may be of other distributions."""
    found: dict[str, Any] = {}
    left = list(keys)
    while left:
        for key in (store.inputs(left.pop()) or {}).get("needs", {}).values():
            done = store.done(key)
            if done is not None and key not in found:
                found[key] = done["provenance"]
                left.append(key)
    return found


def _of_file(path: Path, data: Any) -> Recorded:
    results = data if isinstance(data, list) else [data]
    if not all(isinstance(one, Mapping) and one.get("format") == FORMAT for one in results):
        raise RibError(
            f"{path} is no result: expected what `rib-harness results --format json` prints, or "
            "STORE/runs/ID.json."
        )
    if len(results) != 1:
        listed = ", ".join(
            f"{r.get('backbone')} · {r.get('method')} · seed {r.get('seed')}" for r in results
        )
        raise RibError(
            f"{path} holds {len(results)} results ({listed}); expected one, as in "
            "`rib-harness results --format json --method M`, or the run's id."
        )
    (result,) = results
    _check(str(path), result)
    return Recorded(result, _settings(result))


def _settings(result: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that makes a result, as far as it says; places of files it does not say."""
    settings = {
        "suite": result["suite"],
        "backbone": (result["backbone"],),
        "method": (result["method"],) if result["method"] else (),
        "seed": (result["seed"],) if result["seed"] is not None else (0,),
        "dataset": tuple(result["members"]),
        "data": tuple(f"{name}:{options}" for name, options in result["data"].items()),
        "preset": result["preset"],
        "recipe": {k: "none" if v is None else v for k, v in (result["recipe"] or {}).items()},
        "limit": result["limit"],
        "accept_license": tuple(result["accepted_licenses"]),
    }
    return {k: v for k, v in settings.items() if v is not None}


def differences(recorded: Recorded, catalog: Catalog) -> list[Difference]:
    """What is not installed as it was: Python, packages, distributions with version and commit.

    Example:
        >>> [d.what for d in differences(recorded, load_catalog())]     # doctest: +SKIP
        ['torch', 'rib-plugin-mine']
    """
    steps = recorded.result["provenance"]["steps"].values()
    then: dict[str, set[str]] = {}
    for step in steps:
        then.setdefault("python", set()).add(step["python"])
        for name, version in step["packages"].items():
            then.setdefault(name, set()).add(version)
    now = {name: _version(name) for name in then if name != "python"}
    now["python"] = platform.python_version()
    plugins = {p.distribution: p for p in catalog.plugins}
    for component in _components(recorded):
        name = component["distribution"]
        then.setdefault(name, set()).add(_code(component))
        now[name] = _code(plugins[name].code) if name in plugins else "not installed"
    return [
        Difference(name, ", ".join(sorted(said)), now[name])
        for name, said in then.items()
        if said != {now[name]}
    ]


def _components(recorded: Recorded) -> Iterator[Mapping[str, Any]]:
    """Those of the run and of its steps: a soup's members, a method's checkpoints."""
    provenance = recorded.result["provenance"]
    yield from provenance["components"]
    for step in provenance["steps"].values():
        yield from step["components"]


def _code(said: Mapping[str, Any]) -> str:
    """`0.1.0`, `0.1.0 (editable, 5e1f0ab77c21+)`: which code a distribution was."""
    commit = said["commit"]
    short = commit.rstrip("+")[:12] + "+" * commit.endswith("+")
    marks = (["editable"] if said["editable"] else []) + ([short] if short else [])
    return f"{said['version']} ({', '.join(marks)})" if marks else str(said["version"])


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def unknowable(recorded: Recorded) -> list[str]:
    """Distributions that had changes which no commit holds, so nobody can say what they were."""
    return sorted({c["distribution"] for c in _components(recorded) if c["commit"].endswith("+")})


def untold(recorded: Recorded) -> list[str]:
    """Distributions installed editable without a commit: their version says nothing of their code.

    A plugin under development keeps its version while its code changes.
    """
    components = _components(recorded)
    return sorted({c["distribution"] for c in components if c["editable"] and not c["commit"]})


def narrowed(session: Session, recorded: Recorded) -> Session:
    """Only the recorded run and the steps that it needs, of all that its configuration makes.

    Raises:
        RibError: the configuration does not make it.
    """
    result, plan = recorded.result, session.plan
    same = [
        record
        for record in plan.records
        if all(record[name] == result[name] for name in ("backbone", "method", "seed"))
    ]
    if len(same) != 1:
        raise RibError(
            f"The configuration of {recorded.title} does not make this run: it is damaged, or one "
            "of its names now means another component."
        )
    (record,) = same
    wanted = _with_needs(plan, _keys_of(record))
    steps = tuple(step for step in plan.steps if step.key in wanted)
    return replace(session, plan=replace(plan, steps=steps, records=(record,)))


def _keys_of(record: Mapping[str, Any]) -> set[str]:
    """Keys of the steps whose results are in a run's matrix, or made what is measured there."""
    rows = [record["cells"]["pre"], record["finetune"], *record["cells"]["post"].values()]
    features = record.get("features")
    rows += [features["pre"], *features["post"].values()] if features else []
    return {key for row in rows for key in row.values()}


def _with_needs(plan: Plan, keys: Iterable[str]) -> set[str]:
    """These steps and all that they start from."""
    steps: dict[str, Step] = {step.key: step for step in plan.steps}
    found: set[str] = set()
    left = list(keys)
    while left:
        key = left.pop()
        if key not in found:
            found.add(key)
            step = steps[key]
            needs = [*step.needs.values(), step.pre, step.model]
            left += [one.key for one in needs if one is not None]
    return found


def compare(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Where the numbers are others than they were, cell by cell and both ways, and mRI.

    Args:
        recorded: a result as `results --format json` prints it.
        now: the same run, again.

    Returns:
        Nothing where there are the same cells with the same counts of right answers, and mRI is
        the same to .01. Top-1 is in %, mRI in points.
    """
    then, here = _cells(recorded), _cells(now)
    found = []
    for source, dataset in then | here:
        was, cell = then.get((source, dataset)), here.get((source, dataset))
        if was is None or cell is None or any(was[k] != cell[k] for k in ("correct", "n")):
            what = f"{source} → {dataset}" if source else f"untouched, {dataset}"
            found.append(Difference(what, _spell(was), _spell(cell)))
    mri, again = (_points(result["mri"]) for result in (recorded, now))
    if mri != again:
        found.append(Difference("mRI", mri, again))
    return found


def _cells(result: Mapping[str, Any]) -> dict[tuple[str, str], Mapping[str, Any]]:
    rows = {"": result["pre"], **result["post"]}
    return {(i, j): cell for i, row in rows.items() for j, cell in row.items()}


def _spell(cell: Mapping[str, Any] | None) -> str:
    return "missing" if cell is None else f"{cell['top1']:.2f} ({cell['correct']}/{cell['n']})"


def _points(value: float | None) -> str:
    return "missing" if value is None else f"{value:+z.2f}"
