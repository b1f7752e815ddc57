"""Weights files: where they are, and what is in them. Code in a file is never run.

A file may hold more than one set of weights, as trained and averaged: which is meant is then asked
(`weights_key=`), and never guessed. Names are made to fit a model only where all of them do.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import pathlib
import re
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rib_harness.errors import DataError, nearest
from rib_harness.files.first_bytes import is_safetensors, no_weights

#: Parts of a checkpoint that hold tensors and never are a model's weights.
_NO_MODEL = re.compile(r"optim|sched|scaler|gradient|rng|random_state|loss", re.IGNORECASE)

#: What wrappers put between the names of a model's own modules, wherever they were applied.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")

#: A model's share of names from which on a set of tensors may be meant as its weights.
_ALIKE = 0.25


def _harmless() -> list[Any]:
    """Types that training scripts put beside the weights, none of which runs anything."""
    numpy: list[Any] = [np.ndarray, np.dtype, *{type(np.dtype(c)) for c in "?bhilqBHILQefdFDSUMm"}]
    for package in ("numpy.core", "numpy._core"):  # before NumPy 2, and since
        numpy.append((np.float64(0).__reduce__()[0], f"{package}.multiarray.scalar"))
        numpy.append((np.zeros(0).__reduce__()[0], f"{package}.multiarray._reconstruct"))
    times = [datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone]
    paths = [
        # Of any system, and of any Python: as pure paths, which look at no disk.
        (kind, f"{module}.{prefix}{name}Path")
        for kind, name in ((pathlib.PurePosixPath, "Posix"), (pathlib.PureWindowsPath, "Windows"))
        for module in ("pathlib", "pathlib._local")
        for prefix in ("", "Pure")
    ]
    lightning = [
        (dict, f"{module}.AttributeDict")
        for module in (
            "pytorch_lightning.utilities.parsing",
            "lightning.pytorch.utilities.parsing",
            "lightning.fabric.utilities.data",
            "lightning_fabric.utilities.data",
        )
    ]
    return [argparse.Namespace, *times, *paths, *lightning, *numpy]


def harmless_objects() -> AbstractContextManager[None]:
    """While it lasts, `torch.load` with `weights_only` takes plain values beside tensors, too."""
    made: AbstractContextManager[None] = torch.serialization.safe_globals(_harmless())
    return made


@dataclass(frozen=True)
class Candidate:
    """One set of tensors in a file.

    Args:
        path: its keys in the file, joined by dots; empty for the file's own.
        tensors: name → tensor.
        unnamed: whether it is a list of tensors, which no model can be loaded from.
    """

    path: str
    tensors: Mapping[str, Tensor]
    unnamed: bool = False

    def __str__(self) -> str:
        what = "tensors without names" if self.unnamed else "tensors"
        return f"{self.path or 'the file itself'!r} ({len(self.tensors)} {what})"


def read_weights(file: Path, key: str | None = None) -> dict[str, Tensor]:
    """Name → tensor, from safetensors or from a torch file, told apart by what is in them.

    Args:
        file: with the tensors themselves, or with one set of them among other things, as in
            `{"state_dict": …, "epoch": 3}`.
        key: which set, where there are several, as `state_dict_ema`.

    Raises:
        DataError: missing, damaged, or something else, which is said; several sets and no key;
            weights that are not finite.
    """
    chosen = _choose(file, _candidates(file), key, None)
    _check_finite(file, chosen.tensors)
    return cast(dict[str, Tensor], chosen.tensors)


def plain_weights(
    file: Path, key: str | None = None
) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """`read_weights` for a library with a loader of its own, and models of several towers.

    Returns:
        the tensors, without what all their names begin with; and what was chosen, in words.
    """
    chosen = _choose(file, _candidates(file), key, None)
    _check_finite(file, chosen.tensors)
    prefix = common_prefix(chosen.tensors)
    state = _renamed(chosen.tensors, partial(_from, len(prefix))) if prefix else chosen.tensors
    return state, _said(file, chosen, state)


def load_weights(
    module: nn.Module,
    path: Path,
    *,
    key: str | None = None,
    what: str = "the model",
    rename: Callable[[str], str] = str,
) -> tuple[str, ...]:
    """Load a weights file strictly; floats are cast to the module's own precision.

    Names that fit are taken as they are. Else what they all begin with (`module.`, `model.`,
    `backbone.` …) and what wrappers put between them is left out, if then all of them fit.

    Args:
        key: which set of tensors, where the file holds several that may be meant.
        what: the model, for messages.
        rename: name in the file → the model's, for files of older versions.

    Returns:
        What was chosen and left out, in words; nothing where the file is as the model is.

    Raises:
        DataError: as of `read_weights`, or not of this architecture: what differs.
    """
    own: dict[str, Tensor] = module.state_dict()
    found = [replace(one, tensors=_renamed(one.tensors, rename)) for one in _candidates(path)]
    chosen = _choose(path, found, key, set(own))
    state = _fitting(chosen.tensors, set(own))
    if differ := _differences(state, own):
        raise DataError(f"{path} does not fit {what}: {differ}{_parts_hint(chosen, set(own))}")
    _check_finite(path, chosen.tensors)
    try:
        module.load_state_dict(state)
    # A version of the architecture that the file does not say, or a tensor of another kind.
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise DataError(f"{path} does not fit {what}: {reason}") from None
    return _said(path, chosen, state)


def _candidates(file: Path) -> list[Candidate]:
    """Every set of tensors in a file that may be a model's weights."""
    try:
        if what := no_weights(file):
            raise DataError(f"{file} holds no weights: it is {what}.")
        if is_safetensors(file):
            return [Candidate("", load_file(file))]
        if file.suffix.lower() == ".safetensors" and not _is_torch(file):
            raise DataError(
                f"{file} cannot be read as safetensors: it does not begin as one; it is damaged, "
                "or something else."
            )
        with warnings.catch_warnings(), harmless_objects():
            warnings.simplefilter("ignore")  # other versions of pickle: what matters is an error
            with file.open("rb") as opened:  # of a name, torch goes by the suffix
                holds = torch.load(opened, map_location="cpu", weights_only=True)
    except DataError:
        raise
    except SafetensorError as error:
        raise DataError(f"{file} cannot be read as safetensors: {error}") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch's reader raises what comes
        raise DataError(_refused(file, error)) from None
    found = list(_walk(holds, ()))
    if not found:
        has = f" It has {', '.join(map(repr, list(holds)[:5]))}." if isinstance(holds, dict) else ""
        raise DataError(f"{file} holds no state dict: expected names and tensors.{has}")
    return found


def _is_torch(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(2) in (b"PK", b"\x80\x02")


def _refused(file: Path, error: Exception) -> str:
    """Torch's own words advise to let the file run its code."""
    text = str(error)
    found = re.search(r"GLOBAL ([\w.]+)|call reduce for unrecognized function (\S+)", text)
    if found:
        what = found.group(1) or found.group(2)
        return (
            f"{file} holds more than tensors and plain values ({what}), perhaps a whole model; "
            "code in it is not run. Where it was made, save the weights alone: "
            "torch.save(model.state_dict(), FILE)."
        )
    if _is_torch(file):
        return (
            f"{file} is a damaged torch file, or was not made by torch.save; code in it is not "
            f"run ({type(error).__name__})."
        )
    with file.open("rb") as opened:
        return f"{file} is neither safetensors nor a torch file: it begins with {opened.read(8)!r}."


def _walk(node: Any, path: tuple[str, ...]) -> Iterator[Candidate]:
    """The tensors of a mapping are one candidate; mappings in it are looked at in turn."""
    if isinstance(node, list | tuple) and node and all(isinstance(one, Tensor) for one in node):
        yield Candidate(".".join(path), {str(i): one for i, one in enumerate(node)}, unnamed=True)
    if not isinstance(node, Mapping):
        return
    if tensors := {k: v for k, v in node.items() if isinstance(k, str) and isinstance(v, Tensor)}:
        whole = len(tensors) == len(node)  # with `_metadata`, which says versions of modules
        yield Candidate(".".join(path), node if whole else tensors)
    for key, value in node.items():
        if isinstance(key, str) and not _NO_MODEL.search(key):
            yield from _walk(value, (*path, key))


def _choose(
    file: Path, found: Sequence[Candidate], key: str | None, names: set[str] | None
) -> Candidate:
    """The one that is meant.

    Args:
        names: of the model; without them all that has names may be meant.

    Raises:
        DataError: several may be meant, or the key names none.
    """
    listed = ", ".join(map(str, found))
    if key is not None:
        return _by_key(file, found, key, listed)
    named = [one for one in found if not one.unnamed]
    if not named:
        raise DataError(f"{file} holds tensors without names only: {listed}.")
    largest = max(named, key=lambda one: len(one.tensors))
    if names is None:
        meant = [
            one for one in named
            if one is largest or one.path or _share(one.tensors, set(largest.tensors)) > _ALIKE
        ]  # fmt: skip
    else:
        alike = [one for one in named if _share(one.tensors, names) > _ALIKE]
        meant = alike or named
        if not alike and len(named) > 1:
            raise DataError(
                f"{file}: none of its sets of tensors has the model's names: {listed}. "
                f"Names of the model: {_some(sorted(names))}; of {largest.path!r}: "
                f"{_some(list(largest.tensors))}."
            )
    # Averages are also kept as lists, in the order of the parameters.
    shapes = Counter(tuple(one.shape) for one in meant[0].tensors.values())
    meant += [
        one for one in found
        if one.unnamed and not Counter(tuple(t.shape) for t in one.tensors.values()) - shapes
    ]  # fmt: skip
    if len(meant) > 1:
        raise DataError(
            f"{file} holds several sets of weights, and which is meant is not guessed: "
            f"{', '.join(map(str, meant))}. Name one with weights_key=, e.g. "
            f"weights_key={next(one.path for one in meant if one.path)}."
        )
    return meant[0]


def _by_key(file: Path, found: Sequence[Candidate], key: str, listed: str) -> Candidate:
    for one in found:
        if one.path == key and one.unnamed:
            raise DataError(f"{file}: {one} cannot be loaded: expected names and tensors.")
        if one.path == key:
            return one
    for one in found:  # a part of a model, as a student beside its teacher
        inside = f"{one.path}." if one.path else ""
        if not key.startswith(inside):
            continue
        start = f"{key.removeprefix(inside)}."
        part = {k.removeprefix(start): v for k, v in one.tensors.items() if k.startswith(start)}
        if part:
            return Candidate(key, part)
    known = [one.path for one in found if one.path]
    raise DataError(
        f"{file} has no weights_key={key}.{nearest(key, known)} It holds {listed}."
        + ("" if known else " Leave weights_key out.")
    )


def _share(tensors: Mapping[str, Tensor], names: set[str]) -> float:
    """The share of a model's names that are among these, under the names that fit best."""
    return max(len(names & set(way)) for way in _ways(tensors)) / max(len(names), 1)


def _fitting(tensors: Mapping[str, Tensor], names: set[str]) -> Mapping[str, Tensor]:
    """The tensors under the model's names; where not all fit, under those that fit best."""
    ways = list(_ways(tensors))
    for way in ways:
        # Batch-norm had no counter before torch 0.4.1, and torch makes one where it is missing.
        missing = {name for name in names - set(way) if not name.endswith("num_batches_tracked")}
        if not missing and names >= set(way):
            return way
    return max(ways, key=lambda way: len(names & set(way)))


def _ways(tensors: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """The tensors under names that may be meant: as they are, then shorter and shorter."""
    yield tensors
    # The counter of torch's `AveragedModel`, whose other names begin with `module.`.
    counted = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}
    for these in (tensors if len(counted) == len(tensors) else counted, _unwrapped(counted)):
        yield these
        prefix = common_prefix(these)
        for dot in re.finditer(r"\.", prefix):
            yield _renamed(these, partial(_from, dot.end()))


def _from(start: int, name: str) -> str:
    return name[start:]


def common_prefix(names: Iterable[str]) -> str:
    """What all the names begin with, up to and with a dot; each keeps its last part.

    >>> common_prefix(["module.net.a.weight", "module.net.b"])
    'module.net.'
    """
    parts = [name.split(".")[:-1] for name in names]
    shared = itertools.takewhile(lambda at: len(set(at)) == 1, zip(*parts, strict=False))
    return "".join(f"{at[0]}." for at in shared)


def _unwrapped(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Without the names that wrappers have, wherever they stand; not if two become one."""

    def name_of(name: str) -> str:
        return ".".join(part for part in name.split(".") if part not in _WRAPPERS)

    short = _renamed(tensors, name_of)
    return short if len(short) == len(tensors) else tensors


def _renamed(tensors: Mapping[str, Tensor], name_of: Callable[[str], str]) -> Mapping[str, Tensor]:
    """The tensors under other names, with what torch keeps of the modules' versions."""
    renamed = OrderedDict((name_of(name), tensor) for name, tensor in tensors.items())
    if list(renamed) == list(tensors):
        return tensors
    if versions := getattr(tensors, "_metadata", None):
        short = {name_of(f"{name}.").removesuffix("."): said for name, said in versions.items()}
        renamed._metadata = short  # type: ignore[attr-defined]
    return renamed


def _said(file: Path, chosen: Candidate, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """What a user should know of the choice, in one sentence; nothing where there was none."""
    said = [f"its {chosen.path!r} is what was loaded"] if chosen.path else []
    came_as = [name for name in chosen.tensors if name in state or name != "n_averaged"]
    pairs = list(zip(came_as[::-1], list(state)[::-1], strict=False))
    if other := next(((came, own) for came, own in pairs if came != own), None):
        said.append(f"its names fit in short: {other[0]!r} is {other[1]!r}")
    return (f"{file.name}: {'; '.join(said)}.",) if said else ()


def _differences(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What of a file does not fit a model, with the nearest names; empty if all fits."""
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    extra = [name for name in state if name not in own]
    other = [n for n, t in state.items() if n in own and tuple(t.shape) != tuple(own[n].shape)]
    # torch would cast them without a word: quantised weights without their scale, say.
    kinds = [
        f"{n} is {t.dtype}, expected {own[n].dtype}"
        for n, t in state.items()
        if n in own and own[n].is_floating_point() and not t.is_floating_point()
    ]
    said = [f"{_some(kinds)}."] if kinds else []
    if missing:
        close = nearest(missing[0], extra)
        said.append(f"missing {_some(missing)}.{close}")
    if extra:
        said.append(f"unexpected {_some(extra)}.")
    if other:
        shapes = [f"{n} is {tuple(state[n].shape)}, expected {tuple(own[n].shape)}" for n in other]
        said.append(f"{_some(shapes)}.")
        sizes = {(tuple(state[n].shape), tuple(own[n].shape)) for n in other}
        if len(other) <= 2 and all(a[1:] == b[1:] for a, b in sizes):
            came, expected = next(iter(sizes))
            said.append(
                f"Its head seems to be of {came[0]} classes, and the model's of {expected[0]}."
            )
    return " ".join(said)


def _parts_hint(chosen: Candidate, names: set[str]) -> str:
    """Where the model is one part of what the file holds, as a student beside its teacher."""
    starts = {name[: dot.start()] for name in chosen.tensors for dot in re.finditer(r"\.", name)}
    path = f"{chosen.path}." if chosen.path else ""
    keys = [
        f"weights_key={path}{start}" for start in sorted(starts)
        if all(f"{start}.{name}" in chosen.tensors for name in names)
    ]  # fmt: skip
    return f" A part of it has the model's names: {' or '.join(keys)}." if keys else ""


def _some(names: Sequence[str]) -> str:
    """The first three of several."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _check_finite(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise for NaN and infinities; those of an attention mask are meant.

    Raises:
        DataError: with the tensor's name.
    """
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() or tensor.is_complex()) or "mask" in name:
            continue
        values = tensor if tensor.element_size() > 1 else tensor.float()
        wrong = int((~torch.isfinite(values)).sum())
        if wrong:
            kind = "NaN" if torch.isnan(values).any() else "infinite"
            raise DataError(
                f"{file}: {wrong} of {tensor.numel()} values of {name} are {kind}: the training "
                "that made it diverged, or the file is damaged."
            )


def hub_file(repository: str, names: Sequence[str], what: str) -> Path:
    """A file of a Hugging Face repository: from the local hub cache, else downloaded.

    Args:
        names: file names in the order to try; safetensors come first.
        what: for the message, e.g. `timm:resnet50.a1_in1k`.

    Raises:
        DataError: it is neither in the cache nor could it be downloaded.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    problem: Exception | None = None
    for name in names:
        try:
            return Path(hf_hub_download(repository, name))
        except LocalEntryNotFoundError as error:  # no network, or told to be offline
            problem = error
        except (EntryNotFoundError, OSError) as error:  # no such file
            problem = error
    raise DataError(
        f"{what}: its weights ({repository}) are neither in the local hub cache nor could "
        f"they be downloaded ({type(problem).__name__}). Download them where there is a network, "
        "or give weights=FILE."
    ) from problem
