"""Which class each of the validation set's flat files is of: their names, Kaggle, the kit."""

from __future__ import annotations

import csv
import io
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

from rib_harness import DataError
from rib_harness.files.packed import DAMAGE
from rib_plugin_imagenet_ood.published import DEVKIT, SOLUTION

_TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
_META = "ILSVRC2012_devkit_t12/data/meta.mat"


def wnids_of_names(files: Sequence[str]) -> list[str]:
    """The WNID that each file's name holds, as `ILSVRC2012_val_00000001_n01440764.JPEG`.

    Returns:
        One a file; none at all where any name holds none, or two.
    """
    found = [set(re.findall(r"(?<![a-z])n\d{8}(?!\d)", Path(file).stem.lower())) for file in files]
    return [wnid for one in found for wnid in one] if all(len(one) == 1 for one in found) else []


def is_flat_val(files: Sequence[str]) -> bool:
    """Whether these are ImageNet's validation files by their names."""
    return all(re.fullmatch(r"ILSVRC2012_val_\d{8}\.\w+", file) for file in files)


def wnids_of_val(files: Sequence[str], near: Path, tables: Sequence[bytes]) -> list[str]:
    """The WNID of each file of the validation set, by Kaggle's table or the development kit.

    Args:
        near: the images' folder or archive; the table or the kit lies beside it or further up.
        tables: those that lie among the images.

    Raises:
        DataError: neither, a damaged one, both and they differ, or a file that they do not know.
    """
    answers = [(SOLUTION, _kaggle(inside, SOLUTION)) for inside in tables]
    for folder in list(near.absolute().parents)[:5]:
        if (table := folder / SOLUTION).is_file():
            answers.append((str(table), _kaggle(table.read_bytes(), str(table))))
    if _kit(near) is not None or not answers:
        known = enumerate(ground_truth(near), start=1)
        answers.append(("the development kit", {f"ILSVRC2012_val_{i:08d}": w for i, w in known}))
    wnids = []
    for file in files:
        said = {table.get(Path(file).stem): what for what, table in answers}
        if None in said:
            raise DataError(f"{near}: {said[None]} has no class for {file}.")
        if len(said) > 1:
            listed = ", ".join(f"{wnid} by {what}" for wnid, what in said.items())
            raise DataError(f"{near}: {file} has two classes: {listed}. Move one away.")
        wnids.append(next(iter(said)) or "")
    return wnids


def _kaggle(table: bytes, where: str) -> dict[str, str]:
    """File → WNID. A prediction holds a WNID and a box, and may hold several."""
    try:
        rows = list(csv.DictReader(io.StringIO(table.decode("utf-8-sig"))))
        named = [(row["ImageId"].strip(), row["PredictionString"]) for row in rows]
        classes = [set(text.split()[::5]) for _, text in named]
    except (KeyError, AttributeError, csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{where} is damaged: expected the columns ImageId and PredictionString "
            f"({type(error).__name__}: {error})."
        ) from None
    answers: dict[str, str] = {}
    for (name, _), of in zip(named, classes, strict=True):
        of |= {answers[name]} if name in answers else set()
        if len(of) != 1:
            raise DataError(f"{where}: {name}: expected one class, got {sorted(of)}.")
        answers[name] = next(iter(of))
    return answers


def _kit(near: Path) -> Path | None:
    """The kit beside the images, or up to two folders up."""
    places = [folder / name for folder in (near, near.parent, near.parent.parent)
              for name in (DEVKIT.name, "ILSVRC2012_devkit_t12")]  # fmt: skip
    return next((place for place in places if place.exists()), None)


def ground_truth(near: Path) -> list[str]:
    """WNIDs of the 50,000 validation photographs, in the order of their numbers.

    The kit counts classes in an order of its own (`ILSVRC2012_ID`), which is neither that of the
    WNIDs nor that of any model's logits.

    Args:
        near: the images' folder or archive; the kit lies beside it, or one folder up.

    Raises:
        DataError: no kit, or a damaged one.
    """
    kit = _kit(near)
    if kit is None:
        raise DataError(
            f"{near}: these files are not sorted into classes. Put {DEVKIT.name} beside them, "
            f"which says their classes; or Kaggle's {SOLUTION}. {DEVKIT.get}"
        )
    from scipy.io.matlab import MatReadError

    try:
        wnid_of = _wnids(_read(kit, _META))
        numbers = _read(kit, _TRUTH).decode("ascii").split()
        return [wnid_of[int(number)] for number in numbers]
    except (OSError, KeyError, TypeError, MatReadError, *DAMAGE) as error:
        raise DataError(f"{kit} is damaged: {type(error).__name__}: {error}.") from error


def _read(kit: Path, name: str) -> bytes:
    if kit.is_dir():
        return (kit.parent / name).read_bytes()
    with tarfile.open(kit) as tar:
        member = tar.extractfile(name)
        if member is None:
            raise KeyError(name)
        return member.read()


def _wnids(mat: bytes) -> dict[int, str]:
    """ILSVRC2012_ID → WNID, of the synsets without children."""
    from scipy.io import loadmat

    synsets = loadmat(io.BytesIO(mat), squeeze_me=True)["synsets"]
    return {
        int(one["ILSVRC2012_ID"]): str(one["WNID"])
        for one in synsets
        if int(one["num_children"]) == 0
    }
