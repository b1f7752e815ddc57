"""Training curves for TensorBoard, Weights & Biases, MLflow and trackio, through Accelerate.

One run of the tracker a fine-tuning step. A tracker that fails is dropped with a word: no fit is
lost to it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from rib_harness.errors import ConfigError

log = logging.getLogger("rib_harness")

#: (numbers, update) → nothing.
Log = Callable[[Mapping[str, float], int], None]

#: Where all steps are kept together, in trackers that have projects.
PROJECT = "rib-harness"


class Trackers:
    """The trackers of a run.

    Args:
        names: of Accelerate's trackers.
        folder: for those that write files.

    Raises:
        ConfigError: the package of one is not installed.
    """

    def __init__(self, names: Sequence[str], folder: Path):
        self.names, self.folder = tuple(names), folder
        available = {str(getattr(name, "value", name)) for name in get_available_trackers()}
        problems = [
            f"--tracker {name}: its package is not installed: pip install {name}"
            for name in self.names
            if name not in available
        ]
        if problems:
            raise ConfigError(problems)

    @contextmanager
    def step(self, label: str, key: str, settings: Mapping[str, Any]) -> Iterator[Log]:
        """One fine-tuning step.

        Args:
            label: its name in the tracker.
            key: goes on with the step's run where the tracker can.
            settings: of the step, as numbers and texts.
        """
        alive = [t for name in self.names if (t := self._start(name, label, key, settings))]

        def write(numbers: Mapping[str, float], update: int) -> None:
            for tracker in list(alive):
                try:
                    tracker.log(dict(numbers), step=update)
                except Exception as error:
                    alive.remove(tracker)
                    log.warning("tracker %s is dropped for %s: %s", tracker.name, label, error)

        try:
            yield write
        finally:
            for tracker in alive:
                try:
                    tracker.finish()
                except Exception as error:
                    log.warning("tracker %s did not end well: %s", tracker.name, error)

    def _start(self, name: str, label: str, key: str, settings: Mapping[str, Any]) -> Any:
        kind = LOGGER_TYPE_TO_CLASS[name]
        self.folder.mkdir(parents=True, exist_ok=True)
        options: dict[str, dict[str, Any]] = {
            "wandb": {"name": label, "id": key, "resume": "allow", "dir": str(self.folder)},
            "trackio": {"name": label},
            "mlflow": {"run_name": label},
        }
        try:
            if kind.requires_logging_directory:
                # With the key: two recipes of one method are no one curve.
                tracker = kind(f"{label}/{key[:12]}", str(self.folder), **options.get(name, {}))
            else:
                tracker = kind(PROJECT, **options.get(name, {}))
            tracker.start()
            plain = {k: v if isinstance(v, int | float) else str(v) for k, v in settings.items()}
            tracker.store_init_configuration(plain)
        except Exception as error:
            log.warning("tracker %s does not start for %s: %s", name, label, error)
            return None
        return tracker
