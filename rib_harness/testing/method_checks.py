"""What a method promises, on backbones and images that are tiny."""

from __future__ import annotations

import string
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rib_harness.composition import _PARTS, calls_of, check_composition, needs_of
from rib_harness.engine.classifier import Classifier
from rib_harness.errors import ConfigError, InterruptedRun, RibError, nearest
from rib_harness.options import Reference, spelled
from rib_harness.testing.method_trial import MethodTrial, watched
from rib_harness.testing.outcome import CheckError, CheckSkipped, expect, expect_methods
from rib_harness.testing.suite_checks import expect_presets


def check_method_declares(trial: MethodTrial) -> None:
    """What its spec names is there: presets and their options, parts, knobs, methods, datasets.

    A `{option}` in the spec is filled from the method's defaults.
    """
    spec, bound = trial.bound.spec, trial.bound
    expect_presets(spec.presets)
    for name, options in spec.presets.items():
        try:
            bound.component.signature.bind({**bound.explicit, **options}, bound.component.what)
        except ConfigError as error:
            raise CheckError(f"its preset {name!r}: {'; '.join(error.problems)}") from error
    for text in spec.requires:
        condition = Reference.parse(text)
        expect(
            condition.name in _PARTS,
            f"it requires {condition.name!r}, which is no part of a backbone."
            f"{nearest(condition.name, _PARTS)} Parts: {', '.join(_PARTS)}.",
        )
        for option in condition.options:
            expect(
                option in bound.options,
                f"it requires {text!r}, and has no option {option!r}."
                f"{nearest(option, bound.options)}",
            )
    for knob in spec.knobs:
        for value in knob.values or (knob.low, knob.high):
            _take(trial, knob.name, value)
    try:
        needs_of(trial.catalog, bound, "default")
        calls_of(trial.catalog, bound, "default")
        for kind, field in (("dataset", "reads"), ("backbone", "teachers")):
            for name in _own(trial, field):
                trial.catalog.bind(kind, name)
    except RibError as error:
        raise CheckError(f"its spec names what is not there: {error}") from error


def _take(trial: MethodTrial, name: str, value: object) -> None:
    """The method takes this value of its knob."""
    catalog, options = trial.catalog, {**trial.bound.explicit, name: value}
    try:
        bound = catalog.bind("method", f"{trial.bound.component.id}:{','.join(spelled(options))}")
        check_composition(catalog, bound, "default")
        bound.build()
    except RibError as error:
        raise CheckError(f"its knob {name!r} at {value}: {error}") from error


def _own(trial: MethodTrial, field: str) -> Iterator[str]:
    """What its spec or its defaults name in a field; what a reference names, its user knows."""
    for text in getattr(trial.bound.spec, field):
        filled = {name for _, name, _, _ in string.Formatter().parse(text) if name}
        if not filled & set(trial.bound.explicit):
            name = text.format_map(trial.bound.options)
            if name != "None":
                yield name


def check_method_protocol(trial: MethodTrial) -> None:
    """It is built from its options, and has a method finetune that ends, without the network.

    What it gives is a Classifier.
    """
    expect_methods(trial.bound.build(), finetune="task")
    _ = trial.result


def check_method_evaluates(trial: MethodTrial) -> None:
    """Its result is a classifier in eval mode, with finite logits, for the backbone's images."""
    result = trial.result
    given = trial.task().pretrained.preprocess
    expect(
        result.preprocess == given,
        f"its result says {result.preprocess}, the backbone {given}: images are prepared for the "
        "backbone, so change them in the encoder, where that is what the method does.",
    )
    expect(not result.training, "finetune gave a classifier in training mode: call .eval().")
    for module in (result.encoder, result.head):
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                expect(bool(torch.isfinite(tensor).all()), f"{name} is not finite afterwards.")
                expect(
                    tensor.dtype == torch.float32,
                    f"{name} is {tensor.dtype} afterwards: return the classifier in float32, in "
                    "which it is kept and evaluated.",
                )
    logits = _answers(result)
    expect(
        logits.shape == (4, 10) and bool(torch.isfinite(logits).all()),
        f"its result gives logits of shape {tuple(logits.shape)}, some not finite or not one for "
        "each id of the label space.",
    )


def check_method_same_seed(trial: MethodTrial) -> None:
    """With the same seed it makes the same weights, after a run with another seed, too."""
    expected, reads = trial.result, trial.reads
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        with watched() as other:
            trial.run(replace(trial.task(), seed=trial.seed + 1))
        again = trial.run()
    expect(
        bool(other.reads) or not reads,
        "with another seed it looks at no image, where its first run did: it gives again what it "
        "made for another run. Keep nothing between runs.",
    )
    name = _difference(again, expected)
    expect(
        not name,
        f"a second run with the same seed gives another {name}: draw from task.generator(name) "
        "or inside task.seeded(name), and keep nothing between runs.",
    )


def check_method_leaves_pretrained(trial: MethodTrial) -> None:
    """It changes nothing that it is given, and its result shares no weights with it."""
    task = trial.task()
    given: dict[str, nn.Module] = {"task.pretrained": task.pretrained}
    given |= {f"the checkpoint {name}": one for name, one in task.checkpoints.items()}
    if task.text is not None:
        given["the text tower"] = task.text()
    before = {name: _clone(one.state_dict()) for name, one in given.items()}
    result = trial.run(task)
    own = {t.data_ptr() for t in result.state_dict().values() if t.numel()}
    for name, one in given.items():
        after = one.state_dict()
        same = all(torch.equal(after[key], value) for key, value in before[name].items())
        copy = "task.pretrained.copy(), task.checkpoint(reference), or a deepcopy"
        expect(same, f"it changes {name}: work on a copy, {copy}.")
        shared = own & {t.data_ptr() for t in after.values() if t.numel()}
        expect(not shared, f"its result shares weights with {name}: return a copy, {copy}.")


def check_method_trains(trial: MethodTrial) -> None:
    """What trains is what its spec says, and frozen parameters keep their values."""
    trains = trial.bound.spec.trains
    pretrained, result = trial.task().pretrained, trial.result
    moved = next((name for name in trial.updates if name), "")
    expect(
        not moved,
        f"an update changed {moved}, which does not require gradients: change only what trains "
        "in after_step.",
    )
    if trains == "nothing":
        expect(
            not trial.updates,
            f"its spec says trains='nothing', and it made {len(trial.updates)} updates: say what "
            "trains in the spec.",
        )
        return
    stray = _changed_though_frozen(trial)
    expect(
        not stray,
        f"in its result {stray} does not require gradients, as if it were frozen, and is neither "
        "the pretrained one nor that of a checkpoint: leave alone what is frozen, or "
        "requires_grad_(True) where something was merged into it.",
    )
    if trains == "head":
        name = _difference(result.encoder, pretrained.encoder)
        expect(
            not name,
            f"its spec says trains='head', and encoder.{name} is not the pretrained one: freeze "
            "the encoder (task.fit_head does), or say what trains.",
        )
    expect(
        bool(_difference(result, pretrained)),
        f"its spec says trains={trains!r}, and nothing has changed after 4 updates: call "
        "task.fit, or say trains='nothing'.",
    )


def _changed_though_frozen(trial: MethodTrial) -> str:
    """A parameter that is frozen among others that are not, with values of its own; "" if none."""
    named = dict(trial.result.named_parameters())
    if not any(one.requires_grad for one in named.values()):
        return ""  # the result is frozen as a whole: that says nothing of the training
    task = trial.task()
    starts = [dict(one.named_parameters()) for one in (task.pretrained, *task.checkpoints.values())]
    for name, one in named.items():
        values = [start[name] for start in starts if name in start]
        values = [value for value in values if value.shape == one.shape]
        if not one.requires_grad and values and not any(torch.equal(one, v) for v in values):
            return name
    return ""


def check_method_resumes(trial: MethodTrial) -> None:
    """Interrupted and started again, it ends in the same weights."""
    if not trial.updates:
        raise CheckSkipped("it makes no update with task.fit, so nothing can be interrupted")
    for stop in sorted({1, len(trial.updates) - 1}):
        with tempfile.TemporaryDirectory() as folder:
            task = trial.task(Path(folder))
            with watched(stop_after=stop), suppress(InterruptedRun):
                trial.run(task)
            with watched() as again:
                resumed = trial.run(trial.task(Path(folder)))
        name = _difference(resumed, trial.result)
        expect(
            not name,
            f"stopped after update {stop} of {len(trial.updates)} and started again, it ends with "
            f"another {name}: what changes from update to update must be given to task.fit as "
            "state={'name': object} with state_dict and load_state_dict.",
        )
        left = len(trial.updates) - stop
        expect(
            len(again.updates) == left,
            f"stopped after update {stop} of {len(trial.updates)} and started again, it makes "
            f"{len(again.updates)} updates where {left} are left: make the same fits in the same "
            "order in every run, all of them with the task that it is given.",
        )


def check_method_saves_and_loads(trial: MethodTrial) -> None:
    """A checkpoint of its result loads into what is rebuilt, to the bit."""
    method, pretrained = trial.bound.build(), trial.task().pretrained
    rebuild = getattr(method, "rebuild", None)
    if trial.bound.spec.chooses:
        has, said = ["pretrained", *trial.task().checkpoints], trial.facts.get("same_as")
        expect(
            said in has,
            f"its spec says chooses=True, and it reported same_as={said!r}: call task.report("
            f"same_as=…) with the one that it returns, of {', '.join(has)}.",
        )
    else:
        mergeable = trial.bound.spec.mergeable
        expect(
            mergeable == (rebuild is None),
            f"its spec says mergeable={mergeable}, and it has {'a' if rebuild else 'no'} method "
            "`rebuild`: one of another architecture than the backbone has one, and no other.",
        )
    drawn = torch.get_rng_state()
    empty = rebuild(pretrained) if rebuild else pretrained.copy()
    expect(
        torch.equal(torch.get_rng_state(), drawn),
        "its rebuild draws random numbers, which changes what others draw: make the net inside "
        "torch.random.fork_rng(devices=[]).",
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        trial.result.save(file)
        try:
            loaded = empty.load(file).eval()
        except Exception as error:
            raise CheckError(
                f"its result does not load again ({error}): return the backbone's architecture, "
                "or say mergeable=False and make yours in `rebuild`."
            ) from error
    expect(
        torch.equal(_answers(loaded), _answers(trial.result)),
        "saved and loaded, its result gives other logits: what decides them must be a parameter "
        "or a buffer.",
    )


def check_method_neutral(trial: MethodTrial, same_as: str) -> None:
    """A setting in which it should be another method, is.

    Args:
        trial: with the neutral options.
        same_as: `"pretrained"`, `"ft"` (plain fine-tuning, whatever plugins there are), or a
            reference of a method.
    """
    task = trial.task()
    if same_as == "pretrained":
        expected = task.pretrained
    elif same_as == "ft":
        expected = task.fit(task.pretrained.copy())
    else:
        expected = trial.of(trial.catalog.bind("method", same_as)).result
    name = _difference(trial.result, expected, rtol=1e-4, atol=1e-6)
    expect(
        not name,
        f"{trial.bound.label} should give what {same_as} gives, and {name} differs: the term "
        "that the option weighs must vanish there, draw nothing, and pass no image through the "
        "model in training mode (which moves batch-norm's statistics).",
    )


def _answers(model: Classifier) -> Tensor:
    probe = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits: Tensor = model(probe)
    return logits


def _clone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def _difference(one: nn.Module, two: nn.Module, rtol: float = 0.0, atol: float = 0.0) -> str:
    """The first tensor in which two modules differ; empty if none."""
    left, right = one.state_dict(), two.state_dict()
    for name in {**left, **right}:
        if name not in left or name not in right or left[name].shape != right[name].shape:
            return name
        if not torch.allclose(left[name].double(), right[name].double(), rtol=rtol, atol=atol):
            return name
    return ""


METHOD_CHECKS = (
    check_method_declares,
    check_method_protocol,
    check_method_evaluates,
    check_method_same_seed,
    check_method_leaves_pretrained,
    check_method_trains,
    check_method_resumes,
    check_method_saves_and_loads,
)
