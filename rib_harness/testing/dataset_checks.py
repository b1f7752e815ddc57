"""What a dataset promises."""

from __future__ import annotations

import pickle
import re
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rib_harness import images as images_module
from rib_harness.catalog import Bound
from rib_harness.errors import DataError
from rib_harness.images import ImageSet
from rib_harness.testing.network import no_network
from rib_harness.testing.outcome import CheckError, CheckSkipped, expect, expect_methods
from rib_harness.testing.traces import traced

#: Classes of which a picture is decoded.
CLASSES_DECODED = 20

#: Pictures that are compared from one opening to the next.
PICTURES_COMPARED = 5

#: Words that say how to get data.
_HOW = re.compile(r"https?://|rib-harness data|download|get it|obtain|fetch|ask for", re.IGNORECASE)


@dataclass
class DatasetTrial:
    """One dataset under test.

    Args:
        bound: it, with its options.
        data_root: the folder that holds datasets.
    """

    bound: Bound
    data_root: Path | None = None

    def open(self) -> ImageSet:
        """It, opened once more, without the network.

        Raises:
            CheckError: it does not open.
            CheckSkipped: its data are not on this machine.
        """
        dataset = self.bound.build()
        with no_network() as reached:
            locate = getattr(dataset, "locate", None)
            try:
                if locate is not None:
                    locate(self.data_root)
            except DataError as error:
                raise _absent(error) from error
            try:
                images = dataset.open(self.data_root)
            except DataError as error:
                if locate is None and not _about_columns(error):
                    raise _absent(error) from error
                raise CheckError(f"it does not open: {error}") from error
        expect(not reached, f"opening it reaches for {', '.join(reached)}: {_SILENT}")
        if not isinstance(images, ImageSet):
            raise CheckError(f"open() gave {type(images).__name__}: return a rib_harness.ImageSet.")
        return images

    @cached_property
    def images(self) -> ImageSet:
        """It, opened."""
        return self.open()


_SILENT = "never download in silence; raise a DataError that says how to get the data."


def _absent(error: DataError) -> CheckSkipped:
    return CheckSkipped(f"its data are not on this machine (--data-root): {error}")


def _about_columns(error: DataError) -> bool:
    """Whether an `ImageSet` refused its columns: the data are there, and wrong."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_code.co_filename == images_module.__file__


def check_dataset_protocol(trial: DatasetTrial) -> None:
    """It is built from its options, and has a dataset's method: open."""
    expect_methods(trial.bound.build(), open="root")


def check_dataset_missing_data(trial: DatasetTrial) -> None:
    """Without data it raises a DataError that names the folder and how to get them.

    One that reads files also has `locate`.
    """
    with tempfile.TemporaryDirectory() as empty, no_network() as reached:
        try:
            trial.bound.build().open(Path(empty))
        except DataError as error:
            said = str(error)
        except Exception as error:
            raise CheckError(
                f"without data it raises {type(error).__name__}: {error}. Raise a DataError that "
                "names the folder and says how to get the data."
            ) from error
        else:
            said = ""  # it is made, or lies elsewhere: nothing is missing
        expect(not reached, f"without data it reaches for {', '.join(reached)}: {_SILENT}")
        expect(
            not said or empty in said,
            f"without data it says {said!r}: name the folder where they were looked for.",
        )
    homepage = trial.bound.spec.homepage
    expect(
        not said or bool(_HOW.search(said)) or bool(homepage and homepage in said),
        f"without data it says {said!r}: say how to get them (an address, or a command).",
    )
    expect(
        not said or hasattr(trial.bound.build(), "locate"),
        "it reads files: give it locate(root), which gives the place or raises the same DataError, "
        "so that `rib-harness data list` can say where it is; it says 'made when used' now.",
    )


def check_dataset_opens(trial: DatasetTrial) -> None:
    """Where its data are, it opens as an ImageSet, without the network."""
    _ = trial.images


def check_dataset_stable(trial: DatasetTrial) -> None:
    """Opened twice, it has the same images in the same order, and the same fingerprint.

    A few pictures are read twice of one opening, and once of the other. The global random states
    are left alone.
    """
    one = trial.images
    with traced() as left:
        _compare(one, trial.open())
    expect(
        not left.random,
        f"opening or reading it changes the global random state of {', '.join(left.random)}, on "
        "which others rely: draw from a generator of your own, numpy.random.default_rng(0).",
    )


def _compare(one: ImageSet, two: ImageSet) -> None:
    """Two openings."""
    expect(len(one) == len(two), f"opened twice, it has {len(one)} and {len(two)} images.")
    same = np.array_equal(one.labels, two.labels) and list(one.names) == list(two.names)
    expect(
        same,
        "opened twice, its images come in another order: sort the files, draw from a generator "
        "with a seed.",
    )
    expect(bool(one.fingerprint), "it has no fingerprint: use fingerprint_of.")
    expect(
        one.fingerprint == two.fingerprint,
        "opened twice, it has another fingerprint: hash the contents (fingerprint_of), not "
        "times or paths.",
    )
    for index in np.linspace(0, len(one) - 1, PICTURES_COMPARED).astype(int):
        first = _pixels(one, index)
        expect(
            np.array_equal(first, _pixels(one, index)),
            f"{one.names[index]}, read twice, is two pictures: `read` must depend on the index "
            "alone, draw nothing and count nothing.",
        )
        expect(
            np.array_equal(first, _pixels(two, index)),
            f"opened twice, {one.names[index]} is another picture under the same fingerprint: "
            "make the same pictures each time (from a seed), and hash them.",
        )


def _pixels(images: ImageSet, index: int) -> NDArray[np.uint8]:
    try:
        return np.asarray(images.image(index))
    except DataError as error:
        raise CheckSkipped(f"a picture cannot be decoded, see `decodes`: {error}") from error


def check_dataset_labels(trial: DatasetTrial) -> None:
    """Its labels are whole numbers within its classes."""
    images = trial.images
    expect(
        images.labels.dtype == np.int64 and images.labels.ndim == 1,
        f"its labels are {images.labels.dtype} of shape {images.labels.shape}: expected int64, "
        "(N,).",
    )


def check_dataset_counts(trial: DatasetTrial) -> None:
    """With its default options it has as many classes and images as its spec says.

    A partial copy has fewer images, and says so: in `expected` or `notes` of its ImageSet. What it
    expects there is what the spec says.
    """
    spec, images = trial.bound.spec, trial.images
    if trial.bound.explicit:
        raise CheckSkipped("its spec speaks of the default options")
    expect(
        spec.classes in (None, len(images.classes)),
        f"its spec says {spec.classes} classes, it has {len(images.classes)}.",
    )
    expect(
        None in (spec.images, images.expected) or spec.images == images.expected,
        f"its spec says {spec.images} images, its ImageSet expected={images.expected}: both are "
        "how many the published set holds, so correct one of them.",
    )
    told = images.limit is not None or images.expected is not None or images.notes
    expect(
        bool(told) or spec.images in (None, len(images)),
        f"its spec says {spec.images} images, it has {len(images)}: correct the spec, or say in "
        "the ImageSet how many there should be (expected=…), where this may be a partial copy.",
    )


def check_dataset_class_map(trial: DatasetTrial) -> None:
    """Its class map points into the label space."""
    space = trial.bound.spec.label_space
    ids = [i for one in trial.images.class_map for i in one]
    outside = [i for i in ids if not 0 <= i < space.size]
    expect(
        not outside,
        f"its class map has the id {''.join(map(str, outside[:1]))}; {space.name} has the ids "
        f"0 … {space.size - 1}.",
    )


def check_dataset_decodes(trial: DatasetTrial) -> None:
    """The first, the last and one picture of each of the first classes can be decoded."""
    images = trial.images
    _, firsts = np.unique(images.labels, return_index=True)
    for index in sorted({0, len(images) - 1, *map(int, firsts[:CLASSES_DECODED])}):
        try:
            picture = images.image(index)
        except DataError as error:
            raise CheckError(str(error)) from error
        if images.cropped is not None:
            expect(
                picture.size == (images.cropped, images.cropped),
                f"{images.names[index]} is {picture.size}, but it says cropped={images.cropped}.",
            )


def check_dataset_picklable(trial: DatasetTrial) -> None:
    """It can be sent to another process, and reads the same picture there."""
    images = trial.images
    before = _pixels(images, 0)
    if not np.array_equal(before, _pixels(images, 0)):
        raise CheckSkipped("a picture that is read twice is another one: see `stable`")
    try:
        again = pickle.loads(pickle.dumps(images))
    except Exception as error:
        raise CheckError(
            f"it cannot be pickled ({error}): make `read` an object of a class at the top of a "
            "module, no lambda or inner function, and hold no open file."
        ) from error
    same = np.array_equal(_pixels(again, 0), before)
    expect(same, "pickled and back, it reads another picture.")


DATASET_CHECKS = (
    check_dataset_protocol,
    check_dataset_missing_data,
    check_dataset_opens,
    check_dataset_stable,
    check_dataset_labels,
    check_dataset_counts,
    check_dataset_class_map,
    check_dataset_decodes,
    check_dataset_picklable,
)
