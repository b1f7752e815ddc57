"""What one plugin prints, changes, raises or leaves behind harms none of its neighbours."""

from __future__ import annotations

import asyncio
import decimal
import locale
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from rib_harness import Classifier, DataError, MethodSpec, MetricSpec, PartialFailureError, Task
from rib_harness import Matrix as Cells
from rib_harness.catalog import Catalog
from rib_harness.config import make_config
from rib_harness.engine.data import Pixels
from rib_harness.errors import InterruptedRun, PluginError
from rib_harness.guard import _switches, as_it_was, guarded
from rib_harness.images import Preprocess
from rib_harness.measure import measure
from rib_harness.runner import execute, open_session
from rib_harness.specs import Event
from rib_harness.store import Store
from rib_harness.testing import FakeSite, catalog_with, matrix_of, tiny_images


class OwnError(BaseException):
    """A plugin's, of no common kind."""


#: Errors that are no `Exception`.
RARE = [SystemExit(0), GeneratorExit("mine"), asyncio.CancelledError("mine"), OwnError("mine")]


def ignored(number: int, frame: object) -> None:
    """Handles no signal."""


#: What it is called in the message → something that changes it.
CHANGES: dict[str, Callable[[], object]] = {
    "the working directory": lambda: os.chdir("/"),
    "the environment variable RIB_TEST_GUARD": lambda: os.environ.update(RIB_TEST_GUARD="1"),
    "the environment variable PATH": lambda: os.environ.pop("PATH"),
    "the warnings filters": lambda: warnings.simplefilter("ignore"),
    "sys.path": lambda: sys.path.insert(0, "/nowhere"),
    "sys.stderr": lambda: setattr(sys, "stderr", sys.__stderr__),
    "the recursion limit": lambda: sys.setrecursionlimit(1234),
    "the umask": lambda: os.umask(0o123),
    "the locale": lambda: locale.setlocale(locale.LC_ALL, "C"),
    "handlers of signals": lambda: signal.signal(signal.SIGTERM, ignored),
    "the root logger": lambda: logging.disable(logging.CRITICAL),
    "decimal's context": lambda: setattr(decimal.getcontext(), "prec", 3),
    "PIL.Image.MAX_IMAGE_PIXELS": lambda: setattr(Image, "MAX_IMAGE_PIXELS", None),
    "PIL.ImageFile.LOAD_TRUNCATED_IMAGES": (
        lambda: setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    ),
    "numpy's errstate": lambda: np.seterr(all="ignore"),
    "numpy's print options": lambda: np.set_printoptions(precision=2),
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's default device": lambda: torch.set_default_device("meta"),
    "torch's threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "torch's grad mode": lambda: torch.set_grad_enabled(False),
    "torch's deterministic algorithms": lambda: torch.use_deterministic_algorithms(True),
    "torch's anomaly detection": lambda: torch.autograd.set_detect_anomaly(True),
    "torch's rounding of denormal numbers": lambda: torch.set_flush_denormal(True),
    "torch's autocast on cpu": lambda: torch.set_autocast_enabled("cpu", True),
    "torch's autocast dtype on cpu": lambda: torch.set_autocast_dtype("cpu", torch.float16),
    "torch's hooks of saved tensors": (
        lambda: torch.autograd.graph.saved_tensors_hooks(abs, abs).__enter__()
    ),
    "torch's hooks of all modules": (
        lambda: torch.nn.modules.module.register_module_forward_hook(lambda *given: given[2] * 0)
    ),
    "torch's hooks of all optimizers": (
        lambda: register_optimizer_step_post_hook(lambda *given: None)
    ),
    "torch's flash attention": lambda: torch.backends.cuda.enable_flash_sdp(False),
    "torch's float32 matmul precision": lambda: torch.set_float32_matmul_precision("medium"),
    "matmul": (lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True)),
    "torch.backends.cudnn.enabled": lambda: setattr(torch.backends.cudnn, "enabled", False),
    "torch.backends.cudnn.benchmark": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "torch.backends.mkldnn.enabled": lambda: setattr(torch.backends.mkldnn, "enabled", False),
}


def switches() -> dict[str, Any]:
    return {switch.name: switch.read() for switch in _switches()}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_changed_is_put_back_and_told_by_name(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    if name.endswith("denormal numbers") and not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot")
    before = switches()
    with as_it_was(f"method 'x/{name}'"):
        CHANGES[name]()
    assert switches() == before
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"method 'x/{name}' changed ")
    assert name in said.partition(" changed ")[2]
    with as_it_was(f"method 'x/{name}'"):  # of each dataset: once is enough
        CHANGES[name]()
    assert switches() == before
    assert len(caplog.records) == 1


def test_a_mode_that_was_left_on_is_left(caplog: pytest.LogCaptureFixture) -> None:
    with as_it_was("method 'x/inference'"):
        mode = torch.inference_mode()
        mode.__enter__()
    assert not torch.is_inference_mode_enabled()
    assert torch.ones(1, requires_grad=True).mul(2).requires_grad
    assert "torch's inference mode" in caplog.text


def test_who_changes_nothing_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with as_it_was("method 'x/quiet'"):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        with torch.inference_mode(), np.errstate(all="raise"):
            torch.ones(1)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state[:2]
    assert torch.equal(torch.get_rng_state(), state[2])
    assert not caplog.records


@pytest.mark.slow
def test_a_library_that_is_loaded_meanwhile_is_as_it_comes() -> None:
    """In a process of its own, where torch is not loaded yet."""
    code = (
        "import sys\nfrom rib_harness.guard import as_it_was\n"
        "with as_it_was('loading a plugin'):\n"
        "    import torch\n    torch.set_default_dtype(torch.float64)\n"
        "assert torch.get_default_dtype() is torch.float32\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "loading a plugin changed torch's default dtype: put back" in done.stderr


@pytest.mark.parametrize("error", RARE, ids=repr)
def test_an_error_of_whatever_kind_is_the_plugins(error: BaseException) -> None:
    said = f"dataset 'x/y' failed: {type(error).__name__}"
    with pytest.raises(PluginError, match=said), guarded("dataset 'x/y'"):
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, InterruptedRun])
def test_ctrl_c_is_nobodys_error(error: type[BaseException]) -> None:
    with pytest.raises(error), guarded("dataset 'x/y'"):
        raise error


LOUD = """
import os
from rib_harness import hookimpl

RIB_PLUGIN_API = 1
print("hello")
os.environ["RIB_TEST_LOUD"] = "1"
"""


def test_loading_a_plugin_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    site = FakeSite(tmp_path / "site")
    site.add("loud", LOUD)
    with site:
        site.load()
    assert "RIB_TEST_LOUD" not in os.environ
    assert capsys.readouterr() == ("", "hello\n")
    assert "plugin loud changed the environment variable RIB_TEST_LOUD: put back" in caplog.text


def test_options_are_a_components_own() -> None:
    class Appends:
        def __init__(self, sizes: list[int]):
            sizes.append(3)
            self.sizes = sizes

    spec = MethodSpec(name="appends", target="", summary="", arguments={"sizes": [1, 2]})
    bound = catalog_with((spec, Appends), base=Catalog()).bind("method", "appends")
    assert [bound.build().sizes, bound.build().sizes] == [[1, 2, 3], [1, 2, 3]]


# Image sets


def test_nothing_of_an_image_set_can_be_written_to() -> None:
    labels = np.array([0, 1, 0, 1])
    source = np.array(["a", "b", "c", "d"])
    whole = replace(
        tiny_images(4, classes=2), labels=labels, source=source, names=list("abcd"),
        contents=list("abcd"), class_map=((0,), [1]),
    )  # fmt: skip
    for images in (whole, whole.taken(np.array([0, 1])), whole.limited(1)):
        for column in ("labels", "source", "group"):
            with pytest.raises(ValueError, match="read-only"):
                getattr(images, column)[:] = getattr(images, column)[0]
        assert all(isinstance(one, tuple) for one in (images.names, images.contents))
        assert images.class_map == ((0,), (1,))
    labels[0], source[0] = 1, "z"  # whose arrays they were, may still write to them
    assert isinstance(Preprocess(size=8, mean=[0.5] * 3).mean, tuple)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", RARE, ids=repr)
def test_an_image_that_ends_the_process_is_one_that_cannot_be_read(error: BaseException) -> None:
    def read(index: int) -> Image.Image:
        raise error

    images = replace(tiny_images(4), read=read)
    with pytest.raises(DataError, match=rf"tiny\[0\]: .* \({type(error).__name__}"):
        Pixels(images, Preprocess(size=8), workers=2, pack=True)


# Runs

SMALL: dict[str, Any] = {
    "backbone": "digits-conv",
    "dataset": ["digits-a", "digits-r"],
    "limit": 1,
    "recipe": {"epochs": 1},
    "device": "cpu",
}


class Fine:
    """Plain fine-tuning."""

    def finetune(self, task: Task) -> Classifier:
        return task.fit(task.pretrained.copy())


class Writes(Fine):
    """All images become zeros."""

    def finetune(self, task: Task) -> Classifier:
        task.images.labels[:] = 0
        return super().finetune(task)


class WritesByTorch(Fine):
    """Likewise; torch writes to arrays that are read-only."""

    def finetune(self, task: Task) -> Classifier:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.from_numpy(task.images.labels).zero_()
        return super().finetune(task)


class Untidy(Fine):
    """Fine-tunes, and leaves everything otherwise than it was."""

    def finetune(self, task: Task) -> Classifier:
        model = super().finetune(task)
        sys.stdout.write("done\n")
        os.write(1, b"below Python\n")
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.set_grad_enabled(False)
        os.environ["RIB_TEST_UNTIDY"] = "1"
        os.chdir("/")
        np.seterr(all="raise")
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return model


class Meddles(Fine):
    """Changes what it was given."""

    def finetune(self, task: Task) -> Classifier:
        task.accelerator.gradient_accumulation_steps = 4
        task.pretrained.train()
        task.pretrained.encoder.register_forward_hook(lambda *given: given[2] * 0)
        return super().finetune(task)


class Grafts(Fine):
    """Makes its architecture in place, of the pretrained classifier itself."""

    def rebuild(self, pretrained: Classifier) -> Classifier:
        pretrained.head = nn.Sequential(pretrained.head, nn.Linear(11, 11))
        return pretrained

    def finetune(self, task: Task) -> Classifier:
        return task.fit(self.rebuild(task.pretrained.copy()))


BAD: dict[str, type[Fine]] = {
    "writes": Writes, "writes-by-torch": WritesByTorch, "untidy": Untidy, "meddles": Meddles,
    "grafts": Grafts,
}  # fmt: skip


def numbers_of(store: str, methods: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Rows of plain fine-tuning, with its weights; and what failed."""
    offers = [
        (MethodSpec(name=name, target="", summary="", mergeable=name != "grafts"), method)
        for name, method in {"fine": Fine, **BAD}.items()
    ]
    config = make_config({**SMALL, "method": methods, "store": Path(store)})
    failures: dict[str, str] = {}
    try:
        results = execute(open_session(config, catalog=catalog_with(*offers)))
    except PartialFailureError as error:
        results, failures = error.results, error.failures
    (run,) = [run for run in results if run.method == "fine"]
    weights = [
        (Path(store) / "steps" / key / "model.safetensors").read_bytes()
        for key in run.record["finetune"].values()
    ]
    document = run.to_json()
    return {**{part: document[part] for part in ("pre", "post", "mri")}, "w": weights}, failures


@pytest.mark.slow
def test_neighbours_have_the_numbers_that_they_have_alone(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """In both orders, to the bit."""
    alone, _ = numbers_of("alone", ["fine"])
    before = switches()
    orders = ([*BAD, "fine"], ["fine", *reversed(BAD)])
    for place, order in enumerate(orders):
        numbers, failures = numbers_of(f"store-{place}", order)
        assert numbers == alone
        assert switches() == before
        said = {step.split("/")[2]: text for step, text in failures.items()}
        assert set(said) == {"writes", "writes-by-torch"}, said
        assert "method 'testing/writes' failed: ValueError: assignment" in said["writes"]
        assert "work on a copy" in said["writes"]
        assert "'testing/writes-by-torch' changed the labels" in said["writes-by-torch"]
    out, err = capfd.readouterr()
    assert out == ""
    assert "done\nbelow Python" in err
    (told,) = [r.getMessage() for r in caplog.records if "testing/untidy" in r.getMessage()]
    for name in ("default dtype", "threads", "grad mode", "RIB_TEST_UNTIDY", "working directory",
                 "errstate", "warnings filters"):  # fmt: skip
        assert name in told


@pytest.mark.parametrize("error", [SystemExit(0), ValueError("mine")], ids=repr)
def test_a_checkpoint_that_fails_fails_alone(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One where it is loaded, one in the pass itself, one whose numbers are not finite."""
    events: list[Event] = []
    monkeypatch.setattr(Catalog, "notify", lambda self, event, log: events.append(event))
    loaded: list[str] = []

    class Loads(Grafts):
        def rebuild(self, pretrained: Classifier) -> Classifier:
            loaded.append("")
            if len(loaded) > 2:  # in its fine-tuning, and when that is checked
                raise error
            return super().rebuild(pretrained)

    class Head(nn.Module):
        def __init__(self, head: nn.Module, what: BaseException | float):
            super().__init__()
            self.head, self.what = head, what

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            if self.training:
                return self.head(features)
            if isinstance(self.what, BaseException):
                raise self.what
            return self.head(features) * self.what

    class Runs(Fine):
        what: BaseException | float = error

        def rebuild(self, pretrained: Classifier) -> Classifier:
            pretrained.head = Head(pretrained.head, self.what)
            return pretrained

        def finetune(self, task: Task) -> Classifier:
            return task.fit(self.rebuild(task.pretrained.copy()))

    class Diverges(Runs):
        what = float("nan")

    bad = {"loads": Loads, "runs": Runs, "diverges": Diverges}
    catalog = catalog_with(
        *((MethodSpec(name=n, target="", summary="", mergeable=False), m) for n, m in bad.items()),
        (MethodSpec(name="fine", target="", summary=""), Fine),
    )
    settings = {**SMALL, "dataset": ["digits-a", "digits-r"], "store": Path("store")}
    config = make_config({**settings, "method": [*bad, "fine"]})
    with pytest.raises(PartialFailureError) as caught:
        execute(open_session(config, catalog=catalog))
    assert [run.complete for run in caught.value.results] == [False, False, False, True]
    failures = caught.value.failures
    assert {step.split("/")[2] for step in failures} == set(bad)
    told = {event.step: event.error for event in events if event.name == "step_finished"}
    assert {step: text for step, text in told.items() if text} == failures


# Metrics


def test_a_metric_prints_no_result_and_spoils_no_matrix(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def loud(matrix: Cells) -> float:
        sys.stdout.write("a metric at work\n")
        os.environ["RIB_TEST_METRIC"] = "1"
        matrix.post.clear()  # type: ignore[attr-defined]
        return 1.0

    class Run:
        matrix = matrix_of({"a": 50, "b": 60}, {"a": {"a": 60, "b": 55}, "b": {"a": 60, "b": 65}})

    before = Run.matrix.mri
    spec = MetricSpec(name="loud", target="", summary="", level="matrix", unit="", range=(0, 2))
    metric = catalog_with((spec, loud), base=Catalog()).get("metric", "loud")
    (value,) = measure(Run(), Store("store"), metric)  # type: ignore[arg-type]
    assert (value.value, Run.matrix.mri) == (1.0, before)
    assert capfd.readouterr() == ("", "a metric at work\n")
    assert "metric 'testing/loud' changed the environment variable RIB_TEST_METRIC" in caplog.text


# Ends of the process

PROGRAM = """
import sys, threading, time
{before}
from rib_harness.cli import main
sys.argv = ["rib-harness", *{arguments!r}]
main()
"""


def program(before: str, *arguments: str) -> subprocess.Popen[str]:
    code = PROGRAM.format(before=before, arguments=arguments)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_thread_that_was_left_behind_does_not_keep_a_finished_run() -> None:
    thread = "threading.Thread(target=time.sleep, args=(10_000,), name='uploader').start()"
    process = program(thread, "list", "methods", "--json")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert out.startswith("[")
    assert err == "Ended without waiting for the end of the thread uploader.\n"


HANGS = """
from rib_harness.images import ImageSet
read, reads = ImageSet.image, []

def hang(self, index):
    reads.append(index)
    if len(reads) > {after}:
        open("hangs", "w").close()
        time.sleep(10_000)
    return read(self, index)

ImageSet.image = hang
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "after"), [(signal.SIGINT, 0), (signal.SIGTERM, 100)], ids=["packing", "fit"]
)
def test_a_read_that_hangs_can_be_stopped(number: int, after: int) -> None:
    process = program(
        HANGS.format(after=after), "run", "-b", "digits-conv", "-d", "digits-a", "-d", "digits-r",
        "-m", "ft", "--limit", "2", "--set", "recipe.augment=flip", "--set", "recipe.epochs=20",
        "--store", "store",
    )  # fmt: skip
    wait = threading.Event()
    while not Path("hangs").exists() and process.poll() is None:
        wait.wait(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "the same command goes on from here" in err
    assert ("digits-conv/ft/digits-a/seed0: stopped" in err) == bool(after)
