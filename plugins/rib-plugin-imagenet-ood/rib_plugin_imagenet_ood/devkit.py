"""ImageNet's development kit: which class each of the validation set's flat files is of."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from rib_harness import DataError
from rib_harness.files.packed import DAMAGE
from rib_plugin_imagenet_ood.published import DEVKIT

_TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
_META = "ILSVRC2012_devkit_t12/data/meta.mat"


def ground_truth(near: Path) -> list[str]:
    """WNIDs of the 50,000 validation photographs, in the order of their numbers.

    The kit counts classes in an order of its own (`ILSVRC2012_ID`), which is neither that of the
    WNIDs nor that of any model's logits.

    Args:
        near: the images' folder or archive; the kit lies beside it, or one folder up.

    Raises:
        DataError: no kit, or a damaged one.
    """
    places = [folder / name for folder in (near, near.parent, near.parent.parent)
              for name in (DEVKIT.name, "ILSVRC2012_devkit_t12")]  # fmt: skip
    kit = next((place for place in places if place.exists()), None)
    if kit is None:
        raise DataError(
            f"{near}: these files are not sorted into classes. Put {DEVKIT.name} beside them, "
            f"which says their classes. {DEVKIT.get}"
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
