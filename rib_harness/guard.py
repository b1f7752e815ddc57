"""Around a plugin's code: what it prints, changes or raises is not its neighbours' business.

Nothing here imports a heavy library: what is not loaded has not been changed.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial, reduce
from pathlib import Path
from typing import Any, cast

from rib_harness.errors import PluginError, RibError
from rib_harness.quiet import stdout_to_stderr

log = logging.getLogger("rib_harness")

#: Set by libraries as they are imported, for their own later use.
_OF_LIBRARIES = {"KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "TORCHINDUCTOR_CACHE_DIR",
                 "TRITON_CACHE_DIR"}  # fmt: skip

#: Ends a message of `guarded`, where nothing keeps the traceback.
SHOWN_BY = " (RIB_STRICT_PLUGINS=1 shows the traceback)"

_UNKNOWN: Any = object()
_told: set[str] = set()
_watched = False


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """A component that raises is a `PluginError` that names it; its own `RibError`s go through.

    So does Ctrl-C. What it prints goes to stderr, and what it changes is as in `as_it_was`.
    `RIB_STRICT_PLUGINS=1` keeps the traceback, for authors.
    """
    try:
        with as_it_was(what):
            yield
    except (RibError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a GeneratorExit, an asyncio.CancelledError, one of its own
        if os.environ.get("RIB_STRICT_PLUGINS") == "1":
            raise
        raise PluginError(f"{what} failed: {told(error)}{SHOWN_BY}") from error


def told(error: BaseException) -> str:
    """Type and message of whatever a plugin raised."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__}, whose message cannot be shown"
    if isinstance(error, ValueError) and "read-only" in text:
        text += ". What a component is given others are given too: work on a copy, array.copy()"
    return text


@contextmanager
def as_it_was(what: str) -> Iterator[None]:
    """Put back what the block changes for everybody, and say once what that was.

    That is the switches below and the state of global generators, which nobody is told of: to draw
    is no fault. Meanwhile stdout is stderr. What cannot be put back: functions of others that were
    replaced, threads, files.

    Args:
        what: whose code it is, for messages: `method 'cl-methods/lwf'`.
    """
    before, generators = _seen(), list(_generators())
    try:
        with stdout_to_stderr():
            yield
    finally:
        if not _watched:
            for put_back in generators:
                put_back()
            _put_back(before, what)


@contextmanager
def watched() -> Iterator[None]:
    """While the block runs, what plugins change stays: for checks that look at just that."""
    global _watched
    before, _watched = _watched, True
    try:
        yield
    finally:
        _watched = before


@dataclass(frozen=True)
class _Switch:
    """Something that one piece of code can change for all others.

    Args:
        name: for people.
        get, put: read and set it.
        initial: of a fresh process, where that is the same everywhere: a library that was loaded
            during a block was not there to be read before.
    """

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], object]
    initial: Any = _UNKNOWN

    def read(self) -> Any:
        """Its state, if it can be read: torch refuses where old and new switches disagree."""
        try:
            return self.get()
        except Exception:
            return _UNKNOWN


def _seen() -> dict[str, Any]:
    return {switch.name: switch.read() for switch in _switches()}


def _put_back(before: Mapping[str, Any], what: str) -> None:
    changed, stuck = [], []
    for switch in _switches():
        old, new = before.get(switch.name, switch.initial), switch.read()
        if old is _UNKNOWN or old == new:
            continue
        try:
            switch.put(old)
        except Exception:
            stuck.append(switch.name)
        else:
            changed += _named(switch.name, old, new)
    said = [f"changed {_joined(changed)}: put back"] if changed else []
    said += [f"changed {_joined(stuck)}, which cannot be put back"] if stuck else []
    text = f"{what} {'; it '.join(said)}"
    if said and text not in _told:  # a method is run for each dataset: once is enough
        _told.add(text)
        log.warning("%s", text)


def _joined(names: list[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _named(name: str, old: Any, new: Any) -> list[str]:
    if name != _ENVIRONMENT:
        return [name]
    differ = sorted({variable for variable, _ in old.items() ^ new.items()})
    return [f"the environment variable {variable}" for variable in differ]


def _switches() -> Iterator[_Switch]:
    """Those of what is loaded by now."""
    yield from _PYTHON
    for library, switches in (
        ("decimal", _of_decimal),
        ("PIL.Image", _of_pillow),
        ("PIL.ImageFile", _of_truncated),
        ("numpy", _of_numpy),
        ("torch", _of_torch),
    ):
        module = sys.modules.get(library)
        # One that is being imported by another thread is not whole yet.
        if module is not None and not getattr(module.__spec__, "_initializing", False):
            yield from switches()


def _generators() -> Iterator[Callable[[], None]]:
    yield partial(random.setstate, random.getstate())
    if (np := sys.modules.get("numpy")) is not None and hasattr(np, "random"):
        yield partial(np.random.set_state, np.random.get_state())
    if (torch := sys.modules.get("torch")) is not None and hasattr(torch, "get_rng_state"):
        yield partial(torch.set_rng_state, torch.get_rng_state())


# Python's

_ENVIRONMENT = "the environment"


def _folder() -> str:
    """The working directory; empty where it was deleted."""
    try:
        return str(Path.cwd())
    except OSError:
        return ""


def _enter(folder: str) -> None:
    if folder:
        os.chdir(folder)


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _OF_LIBRARIES}


def _set_variables(wanted: Mapping[str, str]) -> None:
    for name in _variables().keys() - wanted.keys():
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


@dataclass(frozen=True)
class _Filters:
    """Filters of warnings; libraries add some that are of their own warnings only."""

    general: list[Any]
    shown_by: Any = field(compare=False)  # the harness's own, while pictures are read
    all: list[Any] = field(compare=False)


def _filters() -> _Filters:
    filters: list[Any] = list(warnings.filters)
    general = [
        one
        for one in filters
        if one[1] is None and one[3] is None and one[2].__module__ == "builtins"
    ]
    return _Filters(general, warnings.showwarning, filters)


def _set_filters(state: _Filters) -> None:
    warnings.resetwarnings()  # which also forgets what was decided by them
    cast(list[Any], warnings.filters)[:] = state.all
    warnings.showwarning = state.shown_by


def _set_path(wanted: list[str]) -> None:
    sys.path[:] = wanted


def _umask() -> int:
    before = os.umask(0o077)  # there is no way to read it only
    os.umask(before)
    return before


def _logging() -> tuple[Any, ...]:
    return logging.root.level, list(logging.root.handlers), logging.root.manager.disable


def _set_logging(state: tuple[Any, ...]) -> None:
    level, logging.root.handlers[:], disabled = state
    logging.root.setLevel(level)
    logging.disable(disabled)


def _handlers() -> dict[int, Any]:
    import signal

    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    return {number: signal.getsignal(number) for number in numbers}


def _set_handlers(wanted: Mapping[int, Any]) -> None:
    import signal

    for number, handler in wanted.items():
        if handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)


def _locale() -> str:
    import locale

    return locale.setlocale(locale.LC_ALL)


def _set_locale(wanted: str) -> None:
    import locale

    locale.setlocale(locale.LC_ALL, wanted)


_PYTHON = (
    _Switch("the working directory", _folder, _enter),
    _Switch(_ENVIRONMENT, _variables, _set_variables),
    _Switch("the warnings filters", _filters, _set_filters),
    _Switch("sys.path", lambda: list(sys.path), _set_path),
    _Switch("sys.stderr", lambda: sys.stderr, lambda stream: setattr(sys, "stderr", stream)),
    _Switch("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    _Switch("the umask", _umask, os.umask),
    _Switch("the locale", _locale, _set_locale),
    _Switch("handlers of signals", _handlers, _set_handlers),
    _Switch("the root logger", _logging, _set_logging),
)  # fmt: skip


# Of libraries, once they are loaded


def _attribute(path: str, initial: Any = _UNKNOWN) -> _Switch:
    """A setting that is an attribute, e.g. `torch.backends.cudnn.enabled`."""
    module, *parts, name = path.split(".")

    def owner() -> Any:
        return reduce(getattr, parts, sys.modules[module])

    return _Switch(
        path, lambda: getattr(owner(), name), lambda value: setattr(owner(), name, value), initial
    )


@lru_cache
def _of_decimal() -> list[_Switch]:
    import decimal

    names = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")

    def get() -> tuple[dict[str, Any], dict[Any, bool]]:
        context = decimal.getcontext()  # its flags say what has happened, and decide nothing
        return {name: getattr(context, name) for name in names}, dict(context.traps)

    def put(state: tuple[dict[str, Any], dict[Any, bool]]) -> None:
        decimal.setcontext(decimal.Context(**state[0], traps=dict(state[1])))

    return [_Switch("decimal's context", get, put)]


@lru_cache
def _of_pillow() -> list[_Switch]:
    return [_attribute("PIL.Image.MAX_IMAGE_PIXELS", 1024 * 1024 * 1024 // 4 // 3)]


@lru_cache
def _of_truncated() -> list[_Switch]:
    return [_attribute("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", False)]


@lru_cache
def _of_numpy() -> list[_Switch]:
    import numpy as np

    return [
        _Switch("numpy's errstate", np.geterr, lambda state: np.seterr(**state)),
        _Switch("numpy's print options", np.get_printoptions,
                lambda options: np.set_printoptions(**options)),
    ]  # fmt: skip


@lru_cache
def _of_torch() -> list[_Switch]:
    import torch

    def set_device(device: Any) -> None:
        torch.set_default_device(None)  # leaves no mode behind, as naming the CPU would
        if torch.get_default_device() != device:
            torch.set_default_device(device)

    def deterministic() -> tuple[bool, bool]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )

    found = [
        _Switch("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype,
                torch.float32),
        _Switch("torch's default device", torch.get_default_device, set_device,
                torch.device("cpu")),
        _Switch("torch's threads", torch.get_num_threads, torch.set_num_threads),
        _Switch("torch's threads between operations", torch.get_num_interop_threads,
                torch.set_num_interop_threads),
        _Switch("torch's grad mode", torch.is_grad_enabled, torch.set_grad_enabled, True),
        _Switch("torch's inference mode", torch.is_inference_mode_enabled, _set_inference, False),
        _Switch("torch's hooks of saved tensors", _saved_hooks, _leave_saved_hooks, None),
        _Switch("torch's deterministic algorithms", deterministic,
                lambda state: torch.use_deterministic_algorithms(state[0], warn_only=state[1]),
                (False, False)),
        _Switch("torch's anomaly detection", torch.is_anomaly_enabled,
                torch.autograd.set_detect_anomaly, False),
        _Switch("torch's rounding of denormal numbers", lambda: sys.float_info.min / 2 == 0.0,
                torch.set_flush_denormal, False),
        _Switch("torch's float32 matmul precision", torch.get_float32_matmul_precision,
                torch.set_float32_matmul_precision, "highest"),
        _Switch("torch's autocast cache", torch.is_autocast_cache_enabled,
                torch.set_autocast_cache_enabled, True),
    ]  # fmt: skip
    for kind in ("cpu", "cuda"):
        found += [
            _Switch(f"torch's autocast on {kind}", partial(torch.is_autocast_enabled, kind),
                    partial(torch.set_autocast_enabled, kind), False),
            _Switch(f"torch's autocast dtype on {kind}", partial(torch.get_autocast_dtype, kind),
                    partial(torch.set_autocast_dtype, kind)),
        ]  # fmt: skip
    for name in ("flash", "mem_efficient", "math", "cudnn"):
        enabled = getattr(torch.backends.cuda, f"{name}_sdp_enabled", None)
        if enabled is not None:
            enable = getattr(torch.backends.cuda, f"enable_{name}_sdp")
            found.append(_Switch(f"torch's {name} attention", enabled, enable))
    settings = (
        "backends.fp32_precision",  # the whole first, its parts after it
        "backends.cuda.matmul.fp32_precision",
        "backends.cudnn.fp32_precision",
        "backends.cudnn.conv.fp32_precision",
        "backends.cudnn.rnn.fp32_precision",
        "backends.mkldnn.fp32_precision",
        "backends.mkldnn.matmul.fp32_precision",
        "backends.mkldnn.conv.fp32_precision",
        "backends.mkldnn.rnn.fp32_precision",
        "backends.cuda.matmul.allow_tf32",
        "backends.cudnn.allow_tf32",
        "backends.cuda.matmul.allow_fp16_reduced_precision_reduction",
        "backends.cuda.matmul.allow_bf16_reduced_precision_reduction",
        "backends.cudnn.enabled",
        "backends.cudnn.benchmark",
        "backends.cudnn.deterministic",
        "backends.mkldnn.enabled",
        "backends.mkldnn.deterministic",
        "utils.deterministic.fill_uninitialized_memory",
    )
    found += _hooks("modules", sys.modules["torch.nn.modules.module"])
    found += _hooks("optimizers", sys.modules["torch.optim.optimizer"])
    # Which of them there are depends on torch's version.
    attributes = [_attribute(f"torch.{setting}") for setting in settings]
    return found + [one for one in attributes if one.read() is not _UNKNOWN]


def _saved_hooks() -> Any:
    """The pair that was entered last, `torch.autograd.graph.saved_tensors_hooks`, or None."""
    import torch

    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def _leave_saved_hooks(wanted: Any) -> None:
    import torch

    while _saved_hooks() not in (wanted, None):
        torch._C._autograd._pop_saved_tensors_default_hooks()


def _hooks(of: str, module: Any) -> list[_Switch]:
    """What is called for every module, or optimizer, of every method."""
    tables = [
        table
        for name, table in vars(module).items()
        if name.startswith("_global_") and isinstance(table, dict)
    ]

    def put(wanted: list[dict[Any, Any]]) -> None:
        for table, before in zip(tables, wanted, strict=True):
            table.clear()
            table.update(before)

    empty: list[dict[Any, Any]] = [{} for _ in tables]
    return [
        _Switch(f"torch's hooks of all {of}", lambda: [dict(table) for table in tables], put, empty)
    ]


#: Modes that were entered to undo a mode that somebody left on: they end with the process.
_entered: list[Any] = []


def _set_inference(on: bool) -> None:
    import torch

    with suppress(AttributeError):  # of versions in which it cannot be entered like this
        mode = torch.inference_mode(on)
        mode.__enter__()
        _entered.append(mode)
