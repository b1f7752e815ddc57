"""Walk the plan: evaluate the untouched backbone, fine-tune, evaluate what came of it.

Every step ends in the store before the next begins, so a run that stops goes on where it was.
One step that fails takes only those that need it; at the end the run says so and fails.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tomli_w

from rib_harness.catalog import Bound, Catalog, load_catalog
from rib_harness.config import RunConfig, check_requirements, make_config
from rib_harness.disk import check_disk, needed
from rib_harness.errors import (
    ConfigError,
    DivergedError,
    PluginError,
    RibError,
    StoreError,
    nearest,
)
from rib_harness.files.download import go_offline
from rib_harness.guard import SHOWN_BY, as_it_was, guarded
from rib_harness.identify import identity_of
from rib_harness.images import Preprocess
from rib_harness.known_answers import Miss, misses
from rib_harness.matrix import Cell
from rib_harness.plan import Plan, PlannedBackbone, PlannedDataset, Step, make_plan
from rib_harness.progress import Progress, Silence
from rib_harness.provenance import changed_code, code_of, cost, environment
from rib_harness.pruning import held_out, is_pruned, kept, needs_scores
from rib_harness.results import Results, collect
from rib_harness.scores import Scores
from rib_harness.signals import TerminateAsInterrupt
from rib_harness.specs import Event
from rib_harness.store import (
    AGAIN,
    FEATURES,
    SCORES,
    WEIGHTS,
    Store,
    artefact_digest,
    full_disk,
    is_full,
)
from rib_harness.threads import number_for, working
from rib_harness.workable import check_work

if TYPE_CHECKING:
    import pyarrow as pa

    from rib_harness.engine.classifier import Classifier
    from rib_harness.engine.data import Pixels
    from rib_harness.engine.probe import Probe
    from rib_harness.engine.track import Log, Trackers

log = logging.getLogger("rib_harness")

#: Misses whose causes are tried: they often have one in common.
MISSES_TRIED = 3

#: Checkpoints that share one pass over the data; more are done in several passes.
CHECKPOINTS_A_PASS = 16


class PartialFailureError(RibError):
    """Some steps failed; the others are done and in the store.

    Args:
        results: what there is.
        failures: id of the step → what went wrong.
    """

    def __init__(self, results: Results, failures: dict[str, str]):
        self.results, self.failures = results, failures
        lines = "\n".join(f"  - {step}: {message}" for step, message in failures.items())
        super().__init__(f"{len(failures)} step(s) failed; all others are done.\n{lines}")


class MismatchError(RibError):
    """An untouched backbone does not score what it is known to.

    Args:
        results: what there is.
        misses: on which sets, with likely causes.
        failures: id of the step → what went wrong, where steps failed too.
    """

    def __init__(
        self, results: Results, misses: Sequence[Miss], failures: Mapping[str, str] | None = None
    ):
        self.results, self.misses, self.failures = results, tuple(misses), dict(failures or {})
        text = (
            "An untouched backbone does not score what it is known to; nothing more is fine-tuned "
            "on such a base.\n"
            + "\n".join(f"  - {miss}" for miss in misses)
            + "\nMend it, or go on as it is with --allow-mismatch."
        )
        if self.failures:
            lines = "\n".join(f"  - {step}: {said}" for step, said in self.failures.items())
            text += f"\n{len(self.failures)} step(s) failed, too:\n{lines}"
        super().__init__(text)


def run(config: str | Path | None = None, **settings: Any) -> Results:
    """Fine-tune on each member of a suite, measure on all the others: what the verb `run` does.

    Args:
        config: a TOML file.
        settings: any field of `RunConfig`, e.g. `suite`, `backbone`, `method`, `dataset`, `seed`,
            `recipe` (a dict), `limit`, `store`, `data_root`; they win over the file.

    Returns:
        One result for each backbone, method and seed.

    Raises:
        RibError: a mistake in what was asked.
        PartialFailureError: some steps failed; it carries what there is.
        MismatchError: the untouched backbone misses a known answer; nothing was fine-tuned.

    Example:
        >>> import rib_harness
        >>> results = rib_harness.run(method="lwf", store="my-store")   # doctest: +SKIP
        >>> results.mri                                                  # doctest: +SKIP
        >>> results.to_pandas().query("source == 'digits-r'")            # doctest: +SKIP
    """
    known = list(RunConfig.model_fields)
    for name in settings:
        if name not in known:
            raise TypeError(f"run() has no argument {name!r}.{nearest(name, known)}")
    made = make_config(settings, Path(config) if config is not None else None)
    return execute(open_session(made))


def evaluate(config: str | Path | None = None, **settings: Any) -> Results:
    """Measure the untouched backbone only (A_pre): what the verb `evaluate` does.

    Args, returns and errors: as of `run`, without `method`.

    Example:
        >>> rib_harness.evaluate(backbone="digits-vit").matrix.pre      # doctest: +SKIP
    """
    if "method" in settings:
        raise TypeError(
            "evaluate() takes no method: it measures the untouched backbone. See run()."
        )
    return run(config, **{**settings, "method": ()})


@dataclass(frozen=True)
class Session:
    """What was asked, and what it needs: nothing is computed or written yet."""

    config: RunConfig
    catalog: Catalog
    store: Store
    plan: Plan
    progress: Progress


def open_session(
    config: RunConfig, progress: Progress | None = None, catalog: Catalog | None = None
) -> Session:
    """Catalog, store and plan of a configuration.

    Raises:
        RibError: a mistake in what was asked, found before any work.
    """
    check_requirements(config.requires)
    if config.offline:
        go_offline()
    catalog = catalog or load_catalog(block=config.no_plugin)
    names = {name for p in catalog.plugins for name in (p.name, p.distribution)}
    unknown = [name for name in config.no_plugin if name not in names]
    if unknown:
        raise ConfigError(
            [f"--no-plugin: no plugin is called {one!r}.{nearest(one, names)}" for one in unknown]
        )
    store, progress = Store(config.store), progress or Silence()
    plan = make_plan(config, catalog, store)
    for message in store.damaged.values():
        log.warning("%s", message)
    for line in changed_code([store.done(s.key) for s in plan.steps if s.done], catalog):
        log.warning("%s", line)
    check_work(config, plan)
    return Session(config, catalog, store, plan, progress)


def execute(session: Session) -> Results:
    """Do the steps that are missing, and read the results.

    Raises:
        PartialFailureError: some steps failed; all others are done.
        MismatchError: an untouched backbone misses a known answer; it was not fine-tuned.
        KeyboardInterrupt: stopped; finished steps are kept, and a fit under way goes on later.
    """
    store, plan = session.store, session.plan
    # It may refuse options and recipe: before anything is written.
    walk = _Walk(session) if plan.missing or _missed(session) else None
    store.prepare()
    for step in plan.steps:
        if step.done:  # a kill may have come between the result and the end of its work
            store.discard_work(step.key)
    config_toml = tomli_w.dumps(session.config.model_copy(update=plan.resolved).resolved())

    def save_runs() -> list[dict[str, Any]]:
        # Each with its own time, so that a store lists them in the order of the command.
        return [
            store.save_run(one, config_toml, datetime.now(UTC).isoformat(timespec="microseconds"))
            for one in plan.records
        ]

    save_runs()  # a run that is stopped is listed, too
    failures: dict[str, str] = {}
    missed: list[Miss] = []
    session.catalog.notify(Event("run_started", str(store.path)), log)
    try:
        if walk is not None:
            with TerminateAsInterrupt():
                missed = walk.all()
                failures = walk.failures
    finally:
        session.catalog.notify(
            Event("run_finished", str(store.path), error="; ".join(failures.values())), log
        )
    # What was there, or was made, may have gone since.
    results = collect(store, save_runs())
    for one in results:
        if one.matrix.ruined and not one.trial_of:
            log.warning("%s", one.describe_ruined())
    if missed:
        raise MismatchError(results, missed, failures)
    # A trial that diverged has no scores.
    without = plan.trials if walk is not None and walk.diverged else frozenset()
    gone = [s for s in plan.steps if s.key not in without and store.done(s.key) is None]
    failures = failures or {
        step.id: next(
            (said for path, said in store.damaged.items() if step.key in path.parts),
            f"its result has gone from {store.folder(step.key)}. {AGAIN}",
        )
        for step in gone
    }
    if failures:
        raise PartialFailureError(results, failures)
    return results


def _missed(session: Session) -> list[tuple[Step, Miss]]:
    """Known answers that the untouched backbones were measured on and do not give."""
    if session.config.allow_mismatch:
        return []
    found = []
    for step in session.plan.steps:
        done = session.store.done(step.key) if step.is_baseline else None
        if done is not None:
            cell = Cell(**{k: done["summary"][k] for k in ("top1", "correct", "n")})
            name = step.dataset.name
            bound = step.backbone.bound
            expected = session.plan.expected[bound.id]
            found += [(step, miss) for miss in misses(bound.label, expected, {name: cell})]
    return found


class _Walk:
    """Does the missing steps of a plan, in this process."""

    def __init__(self, session: Session):
        from rib_harness.engine.device import make_accelerator
        from rib_harness.engine.fit import check_recipe

        self.session = session
        self.store, self.plan, self.progress = session.store, session.plan, session.progress
        self.failures: dict[str, str] = {}
        self.diverged: set[str] = set()  # keys of fine-tunings: a choice goes on without them
        self.again = set(self.plan.again)  # keys, until they are done again
        self._built: dict[str, Classifier] = {}
        self._pixels: dict[tuple[str, Any], Pixels] = {}
        for recipe in {step.recipe for step in self.plan.steps if step.recipe}:
            check_recipe(recipe)
        methods = [m for s in self.plan.steps for m in (s.method, *s.calls.values()) if m]
        for method in {method.id: method for method in methods}.values():
            code_of(method.spec)  # before it is imported
            method.build()  # it may refuse its options
        precisions = {step.recipe.precision for step in self.plan.steps if step.recipe}
        precision = precisions.pop() if precisions else "fp32"
        self.accelerator = make_accelerator(session.config.device, precision)
        self.device = self.accelerator.device
        self.trackers: Trackers | None = None
        if session.config.tracker:
            from rib_harness.engine.track import Trackers

            self.trackers = Trackers(session.config.tracker, self.store.path / "trackers")

    def all(self) -> list[Miss]:
        """Every missing step; none is trained on a base that misses a known answer.

        Returns:
            the known answers that were missed; what failed is in `failures`.
        """
        missing = self.plan.missing
        for step in missing:
            for backbone in (step.backbone, *(teacher for teacher, _ in step.teachers.values())):
                self.pretrained(backbone)
        self.check_disk(missing)
        baselines = [step for step in missing if step.is_baseline]
        answers = self.plan.expected
        told = [s for s in baselines if s.dataset.name in answers[s.backbone.bound.id]]
        # A base that is wrong is found on the smallest sets, before the large ones are decoded.
        self.evaluate(sorted(told, key=lambda step: step.images))
        missed = _missed(self.session)
        wrong = {step.backbone.bound.id for step, _ in missed}
        # An answer that could not be measured is none.
        wrong |= {s.backbone.bound.id for s in told if not self.finished(s)}
        if self.session.config.allow_mismatch:
            wrong = set()
        missing = [s for s in missing if s.is_baseline or s.backbone.bound.id not in wrong]
        # Every picture is decoded before any training starts: a broken one is told now.
        for step in missing:
            self.pixels(step)
        self.check_disk(missing)  # again: packs may have taken what the store needs
        self.evaluate([step for step in missing if step.is_baseline and step not in told])
        for step in missing:
            if step.kind == "finetune":
                self.attempt([step], lambda step=step: self.finetune(step))
        # Of all steps: what was scored of a checkpoint that is another one now is scored again.
        left = [
            step
            for step in self.plan.steps
            if step.backbone.bound.id not in wrong
            and not step.is_baseline
            and not self.finished(step)
        ]
        self.evaluate([step for step in left if step.kind == "evaluate"])
        for step in left:
            if step.kind == "features" and self.has_model(step):
                self.attempt([step], lambda step=step: self.describe(step))
        return [self.explain(*one, tried=i < MISSES_TRIED) for i, one in enumerate(missed)]

    def check_disk(self, steps: Sequence[Step]) -> None:
        """Raise where the disk has no room for what is still missing."""
        if self.session.config.allow_full_disk:
            return

        def weights(backbone: PlannedBackbone) -> int:
            return sum(one.nbytes for one in self.pretrained(backbone).state_dict().values())

        left = (step for step in steps if self.store.done(step.key) is None)
        check_disk(self.store.path, needed(left, weights))

    def explain(self, step: Step, miss: Miss, *, tried: bool) -> Miss:
        """Try the usual causes; what goes wrong in that hides no miss."""
        from rib_harness.engine.diagnose import SAMPLE, explain

        if not tried:
            return replace(miss, causes=("not tried; mend the first ones first",))
        self.progress.say(f"{str(miss).splitlines()[0]}: trying the usual causes …")
        bar = self.progress.bar("try causes", 7 * min(len(step.dataset.images), SAMPLE))
        try:
            with as_it_was(f"trying the causes of a miss on {step.dataset.name}"):
                return explain(
                    miss,
                    self.pretrained(step.backbone),
                    step.dataset.images,
                    step.preprocess,
                    device=self.device,
                    batch_size=self.batch_size(step),
                    workers=self.session.config.workers,
                    advance=bar.advance,
                )
        except Exception as error:
            log.warning("the causes could not be tried", exc_info=error)
            return replace(miss, causes=(f"not known: they could not be tried ({error!r})",))
        finally:
            bar.close()

    def batch_size(self, step: Step) -> int:
        """Images a forward pass in scoring."""
        given = self.session.config.eval_batch_size
        return given or _eval_batch(self.device.type, step.preprocess.size)

    def threads(self, step: Step) -> int:
        """Threads of torch that work on it, on a CPU."""
        return number_for(self.pretrained(step.backbone), self.session.config.threads)

    def pixels_to_train_on(self, step: Step) -> tuple[Pixels, Pixels | None]:
        """The fine-tuning set without the images that the recipe leaves out, and the held-out."""
        pixels, held = self.pixels(step), None
        if step.recipe is None:
            raise TypeError(step)
        rest = np.arange(len(pixels))
        if step.recipe.held_out:
            images = pixels.images
            apart = held_out(images.labels, images.source, step.recipe.held_out, step.split)
            if not len(apart):
                raise RibError("nothing can be held out of a set of one photograph.")
            rest = np.delete(rest, apart)
            pixels, held = pixels.taken(rest), pixels.taken(apart)
        if not is_pruned(step.recipe):
            return pixels, held
        scores = None
        if needs_scores(step.recipe):
            if step.pre is None or not self.finished(step.pre):
                raise RibError("keep_by needs the pretrained backbone's scores, which failed.")
            table = Scores.read(self.store.file(step.pre.key, SCORES))
            scores = {n: table.column(n)[rest].astype("float64") for n in ("nll", "brier")}
        return pixels.taken(kept(pixels.images.labels, step.recipe, step.split, scores)), held

    def attempt(self, steps: Sequence[Step], work: Any) -> None:
        """Do the work; if it fails, its steps failed and the others go on."""
        begun = time.monotonic()
        try:
            with working(self.threads(steps[0])):
                work()
        except BaseException as problem:
            for step in steps:
                self.fail(step, problem)
        for step in steps:
            error = self.failures.get(step.id, "")  # of all, or of this one only
            event = Event(
                "step_finished",
                str(self.store.path),
                step=step.id,
                key=step.key,
                seconds=time.monotonic() - begun,
                error=error,
            )
            self.session.catalog.notify(event, log)

    def fail(self, step: Step, problem: BaseException) -> None:
        """Keep why a step failed, unless that is known already.

        Raises:
            BaseException: what is no failure of a step: Ctrl-C, or a store that keeps nothing.
        """
        if isinstance(problem, KeyboardInterrupt | StoreError):
            raise problem
        cause = problem.__cause__ if isinstance(problem, PluginError) else problem
        if isinstance(cause, OSError) and is_full(cause):
            raise full_disk(self.store.path) from problem
        if step.id in self.failures:
            return
        if isinstance(problem, DivergedError):
            self.diverged.add(step.key)
            if step.key in self.plan.trials:
                self.progress.say(f"{problem} It is a trial, and is not chosen.")
                return
        error = str(problem) if isinstance(problem, RibError) else repr(problem)
        if cause is not None and not isinstance(cause, RibError):
            kept = self.write_traceback(step, problem)
            error = f"{error.removesuffix(SHOWN_BY)} (traceback in {kept})"
        self.failures[step.id] = error
        self.progress.say(f"failed: {step.id}: {error}")

    def write_traceback(self, step: Step, problem: BaseException) -> Path:
        work = self.store.work(step.key)
        work.mkdir(parents=True, exist_ok=True)
        text = "".join(traceback.format_exception(problem))
        (work / "error.log").write_text(text, encoding="utf-8")
        return work / "error.log"

    def pixels(self, step: Step) -> Pixels:
        """The step's dataset under its preprocessing, packed once."""
        return self.pixels_of(step.dataset, step.preprocess)

    def pixels_of(self, dataset: PlannedDataset, preprocess: Preprocess) -> Pixels:
        """A dataset under a preprocessing, packed once."""
        from rib_harness.engine.data import Pixels

        key = (dataset.name, tuple(preprocess.pixel_fields().items()))
        if key not in self._pixels:
            bar = self.progress.bar(f"decode {dataset.name}", len(dataset.images))
            repacked = (
                f"{dataset.name}: its pictures are read otherwise than when they were last "
                "decoded, so they are decoded again. Numbers that this store has already "
                "are of the earlier ones: raise the dataset's version. If this comes each "
                "time, `read` gives another picture each time."
            )
            try:
                with as_it_was(dataset.bound.component.what):
                    self._pixels[key] = Pixels(
                        dataset.images,
                        preprocess,
                        origin=dataset.bound.key_fields(),
                        workers=self.session.config.workers,
                        advance=bar.advance,
                        repacked=lambda: self.progress.say(repacked),
                    )
            finally:
                bar.close()
        return self._pixels[key].of(preprocess)  # with arrays of its own

    def pretrained(self, backbone: PlannedBackbone) -> Classifier:
        """The untouched classifier, built once."""
        from rib_harness.engine.classifier import misfit

        key = backbone.bound.id
        if key not in self._built:
            builder = backbone.bound.build()
            with guarded(backbone.bound.component.what):
                classifier: Classifier = builder.build()
                wrong = misfit(classifier, backbone.identity.classes)
            if wrong:
                raise PluginError(f"{backbone.bound.component.what}: {wrong}")
            if classifier.preprocess != backbone.identity.preprocess:
                raise PluginError(
                    f"{backbone.bound.component.what}: its classifier's preprocessing is not that "
                    "of its identity()."
                )
            with guarded(backbone.bound.component.what):
                weights = identity_of(backbone.bound, again=True).weights
            if weights != backbone.identity.weights:
                raise RibError(
                    f"The weights of {backbone.bound.label} are others than when this run was "
                    f"planned, {weights} instead of {backbone.identity.weights}. The same command "
                    "again plans with these; if this comes each time, its identity() is not "
                    "repeatable."
                )
            self._built[key] = classifier.requires_grad_(False)
        return self._built[key]

    def load(self, step: Step | None, backbone: PlannedBackbone) -> Classifier:
        """The checkpoint that a step made; None is the untouched backbone."""
        pretrained = self.pretrained(backbone)
        if step is None or step.method is None:
            return pretrained
        same = (self.store.done(step.key) or {}).get("facts", {}).get("same_as")
        if step.method.spec.chooses and same in step.needs:  # of whatever architecture
            return self.load(step.needs[same], backbone)
        try:
            weights = self.store.file(step.key, WEIGHTS)
        except StoreError as error:  # of this checkpoint, not of the store
            raise RibError(str(error)) from None
        return self.empty(step.method, backbone).load(weights)

    def own(self, backbone: PlannedBackbone) -> Classifier:
        """A copy of the untouched classifier, for a plugin: of that all steps need there is one."""
        return copy.deepcopy(self.pretrained(backbone))

    def empty(self, method: Bound, backbone: PlannedBackbone) -> Classifier:
        """What a checkpoint of a method is loaded into."""
        made, empty = method.build(), self.own(backbone)
        if not hasattr(made, "rebuild"):
            return empty.requires_grad_(True)
        with guarded(method.component.what):
            rebuilt: Classifier = made.rebuild(empty)
        return rebuilt

    def finetune(self, step: Step) -> None:
        """Make a checkpoint."""
        from rib_harness.engine.device import make_accelerator, seeded
        from rib_harness.engine.task import Task

        if step.method is None or step.recipe is None:
            raise TypeError(step)
        store = self.store
        with store.lock(step.key, lambda: self.progress.say(f"waits for {step.id}")):
            if self.finished(step):
                return
            needs = {r: s for r, s in step.needs.items() if s.key not in self.diverged}
            if not (step.method.spec.chooses and needs):
                needs = dict(step.needs)
            for reference, needed in needs.items():
                if needed.key in self.diverged:
                    raise DivergedError(f"{step.id}: it needs {reference}, which diverged.")
                if not self.finished(needed):
                    raise RibError(f"it needs {reference}, which failed.")
            made_from = self.made_from(step)
            pretrained = self.own(step.backbone)
            before = pretrained.fingerprint()
            pixels, held = self.pixels_to_train_on(step)
            datasets = {name: self.pixels_of(*one) for name, one in step.reads.items()}
            teachers = {
                text: (self.own(one), self.pixels_of(step.dataset, preprocess))
                for text, (one, preprocess) in step.teachers.items()
            }
            given = {"": pixels, **({"held_out": held} if held else {}), **datasets}
            labels = {name: one.images.labels.copy() for name, one in given.items()}
            task = Task(
                pretrained=pretrained,
                probe=self.probe(step),
                pixels=pixels,
                held=held,
                recipe=step.recipe,
                seed=step.seed,
                # Its own: what a method changes of it, no other step sees.
                accelerator=make_accelerator(self.session.config.device, step.recipe.precision),
                checkpoints={r: self.load(s, step.backbone) for r, s in needs.items()},
                methods={reference: one.build() for reference, one in step.calls.items()},
                datasets=datasets,
                teachers=teachers,
                text=getattr(step.backbone.bound.build(), "text_tower", None),
                work=self.work_of(step),
                save_every=self.session.config.save_every,
                progress=self.progress,
                label=step.id.removeprefix("finetune/"),
            )
            method = step.method.build()
            self.check_method(method, step.method)
            begun = time.monotonic()
            # A method may draw before its first fit, or between two: from (seed, key) only.
            what = step.method.component.what
            with self.tracked(step) as task.log, seeded(step.key), guarded(what):
                classifier = method.finetune(task)
            seconds = time.monotonic() - begun
            if pretrained.fingerprint() != before:
                raise PluginError(
                    f"{what} changed the pretrained classifier; it must work on "
                    "task.pretrained.copy()."
                )
            for name, one in given.items():  # torch writes to arrays that are read-only
                if not np.array_equal(one.images.labels, labels[name]):
                    raise PluginError(
                        f"{what} changed the labels of {name or 'the fine-tuning set'}; it must "
                        "work on a copy, images.labels.copy() or torch.tensor(images.labels)."
                    )
            self.check_result(classifier, step, task.facts)
            done = {**self.done(step, seconds, made_from), "facts": task.facts}
            with self.writing(step, done) as folder:
                classifier.save(folder / WEIGHTS)
                histories = sorted(self.work_of(step).glob("history-*.jsonl"))
                (folder / "history.jsonl").write_text("".join(h.read_text() for h in histories))
        store.discard_work(step.key)

    def work_of(self, step: Step) -> Path:
        """Where the state of its fits is kept, apart for each code of the method.

        Keys hold versions, not code; but a fit that some code began, no other may go on with.
        """
        work = self.store.work(step.key)
        methods = [one for one in (step.method, *step.calls.values()) if one is not None]
        sources = "".join(code_of(one.spec) for one in methods)
        code = hashlib.sha256(sources.encode()).hexdigest()[:12]
        if not (work / code).exists() and list(work.glob("*/st*.safetensors")):
            self.progress.say(
                f"{step.id}: the code of {step.method and step.method.component.id} has changed "
                "since its fit was begun, which starts again."
            )
        (work / code).mkdir(parents=True, exist_ok=True)
        return work / code

    def probe(self, step: Step) -> Probe | None:
        """What measures its models while they train, if that is asked for."""
        from rib_harness.engine.probe import Probe, slice_of

        every, images = self.session.config.probe_every, self.session.config.probe_images
        if every is None:
            return None
        slices = {}
        for name, (dataset, preprocess) in step.probes.items():
            pixels = self.pixels_of(dataset, preprocess)
            slices[name] = pixels.taken(slice_of(len(pixels), images))
        return Probe(slices, every, self.device, self.batch_size(step))

    @contextmanager
    def tracked(self, step: Step) -> Iterator[Log | None]:
        """Where its training curves go, if that is asked for."""
        if self.trackers is None or step.recipe is None:
            yield None
            return
        settings = {**step.recipe.model_dump(), "step": step.id, "key": step.key}
        with self.trackers.step(step.id.removeprefix("finetune/"), step.key, settings) as log_to:
            yield log_to

    def check_method(self, method: object, bound: Bound) -> None:
        """Raise where a checkpoint of it could not be loaded, before it trains for hours.

        Raises:
            PluginError: it says one thing of its architecture, and does another.
        """
        what, mergeable = bound.component.what, bound.spec.mergeable
        if bound.spec.chooses or mergeable == (getattr(method, "rebuild", None) is None):
            return
        if mergeable:
            raise PluginError(
                f"{what} has a `rebuild`, so its result is not of the backbone's architecture: say "
                "mergeable=False in its spec."
            )
        raise PluginError(
            f"{what} says mergeable=False, and {type(method).__name__} has no "
            "`rebuild(self, pretrained) -> Classifier`: add it. It makes what `finetune` returns, "
            "untrained, to load a checkpoint into."
        )

    def check_result(self, classifier: object, step: Step, facts: Mapping[str, Any]) -> None:
        """Raise for what cannot be stored, or not be loaded again.

        Raises:
            PluginError: no classifier, or one of an architecture that nobody can rebuild.
            DivergedError: weights that are not finite.
        """
        import torch

        from rib_harness.engine.classifier import Classifier

        if step.method is None:
            raise TypeError(step)
        what = step.method.component.what
        if not isinstance(classifier, Classifier):
            raise PluginError(f"{what}: finetune gave {type(classifier).__name__}, no Classifier.")
        rebuild = hasattr(step.method.build(), "rebuild")
        plain = self.pretrained(step.backbone)
        empty = self.empty(step.method, step.backbone) if rebuild else plain
        own, came = ({k: v.shape for k, v in m.state_dict().items()} for m in (empty, classifier))
        # What chooses gives the architecture of its choice, which `load` then asks.
        same = step.method.spec.chooses and facts.get("same_as") in step.needs
        if own != came and not same:
            differ = sorted(k for k in {**own, **came} if own.get(k) != came.get(k))
            raise PluginError(
                f"{what}: its result has another architecture ({differ[0]} and {len(differ) - 1} "
                "more tensors differ) than what a checkpoint of it is loaded into: "
                + ("" if rebuild else "say mergeable=False in its spec and give it a `rebuild` ")
                + ("make that one in its `rebuild`." if rebuild else "that makes that one.")
            )
        for name, tensor in classifier.state_dict().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise DivergedError(f"{step.id}: DIVERGED, {name} is not finite.")

    def evaluate(self, steps: Sequence[Step]) -> None:
        """Score models: one pass over a dataset for all that share preprocessing and threads."""
        passes: dict[tuple[str, Any, int], list[Step]] = defaultdict(list)
        for step in steps:
            if not self.has_model(step):
                continue
            passes[step.dataset.name, step.preprocess, self.threads(step)].append(step)
        for together in passes.values():
            for start in range(0, len(together), CHECKPOINTS_A_PASS):
                chunk = together[start : start + CHECKPOINTS_A_PASS]
                self.attempt(chunk, lambda chunk=chunk: self.score(chunk))

    def has_model(self, step: Step) -> bool:
        """Whether its checkpoint is there; if not, it failed, and that is said already."""
        return step.model is None or self.finished(step.model)

    def describe(self, step: Step) -> None:
        """Keep the features of a sample."""
        from rib_harness.engine.describe import describe
        from rib_harness.engine.probe import slice_of

        store = self.store
        with store.lock(step.key, lambda: self.progress.say(f"waits for {step.id}")):
            if self.finished(step):
                return
            begun, made_from = time.monotonic(), self.made_from(step)
            bar = self.progress.bar(step.id, step.images)
            try:
                with as_it_was(step.id):
                    made = describe(
                        self.load(step.model, step.backbone),
                        self.pixels(step),
                        slice_of(len(step.dataset.images), step.images),
                        untouched=None if step.model is None else self.pretrained(step.backbone),
                        device=self.device,
                        batch_size=self.batch_size(step),
                        advance=bar.advance,
                    )
            finally:
                bar.close()
            done = self.done(step, time.monotonic() - begun, made_from)
            with self.writing(step, done) as folder:
                made.write(folder / FEATURES)

    def score(self, steps: Sequence[Step]) -> None:
        """One pass over one dataset."""
        store, dataset = self.store, steps[0].dataset
        with ExitStack() as locks:
            # In one order for every process, so that two of them cannot wait for each other.
            for key in sorted(step.key for step in steps):
                locks.enter_context(
                    store.lock(key, lambda: self.progress.say(f"waits for {dataset.name}"))
                )
            steps = [step for step in steps if not self.finished(step)]
            if not steps:
                return
            begun = time.monotonic()
            made_from = {step.key: self.made_from(step) for step in steps}
            tables = self.tables(steps)
            seconds = (time.monotonic() - begun) / len(steps)
            for step in steps:
                if step.key in tables:
                    scores = Scores(tables[step.key])
                    done = self.done(step, seconds, made_from[step.key])
                    done["summary"] = scores.summary()
                    with self.writing(step, done) as folder:
                        scores.write(folder / SCORES)

    def tables(self, steps: Sequence[Step]) -> dict[str, pa.Table]:
        """The scores of models on one dataset, by key; one that fails takes no other with it."""
        from rib_harness.engine.evaluate import evaluate as score_all

        models: dict[str, Classifier] = {}
        for step in steps:
            try:
                models[step.key] = self.load(step.model, step.backbone)
            except BaseException as problem:
                self.fail(step, problem)
        if not models:
            return {}
        pixels = self.pixels(steps[0])
        these = f"{len(models)} models" if len(models) > 1 else "1 model"
        label = f"evaluate {these} on {steps[0].dataset.name}"
        bar = self.progress.bar(label, len(pixels))

        def scored(models: Mapping[str, Classifier]) -> dict[str, pa.Table]:
            with as_it_was(label):
                tables, diverged = score_all(
                    models,
                    pixels,
                    device=self.device,
                    batch_size=self.batch_size(steps[0]),
                    advance=bar.advance,
                )
            for step in steps:
                if step.key in diverged:
                    text = str(diverged[step.key]).replace(step.key, step.id)
                    self.fail(step, DivergedError(text))
            return tables

        try:
            return scored(models)
        except (RibError, KeyboardInterrupt):  # of the dataset, or of nobody's making
            raise
        except BaseException:
            if len(models) == 1:
                raise
            tables: dict[str, pa.Table] = {}
            for step in steps:  # one of them it was: each alone
                try:
                    if step.key in models:
                        tables |= scored({step.key: models[step.key]})
                except BaseException as problem:
                    self.fail(step, problem)
            return tables
        finally:
            bar.close()

    def finished(self, step: Step) -> bool:
        """Whether it need not be done, or another process has done it."""
        return step.key not in self.again and self.store.done(step.key) is not None

    @contextmanager
    def writing(self, step: Step, done: dict[str, Any]) -> Iterator[Path]:
        """The step's folder, to fill; see `Store.writing`."""
        with self.store.writing(step.key, step.inputs, done) as folder:
            yield folder
        self.again.discard(step.key)

    def made_from(self, step: Step) -> dict[str, str]:
        """Key of each step that it rests on → the digest of what that one made.

        Asked for before that is read: what is made anew meanwhile leaves this step to be done
        again, and is never taken for what it rests on.
        """
        made = {one.key: self.store.done(one.key) for one in step.rests_on}
        return {key: artefact_digest(done) for key, done in made.items() if done is not None}

    def done(self, step: Step, seconds: float, made_from: Mapping[str, str]) -> dict[str, Any]:
        """What a finished step says of itself."""
        bound = [
            step.backbone.bound,
            step.dataset.bound,
            *([step.method] if step.method is not None else []),
            *step.calls.values(),
            *(dataset.bound for dataset, _ in step.reads.values()),
            *(teacher.bound for teacher, _ in step.teachers.values()),
        ]
        components = {one.component.what: one.component for one in bound}.values()
        return {
            "id": step.id,
            "kind": step.kind,
            "key": step.key,
            # A checkpoint that is made again may be another one: what was scored is told by this.
            "made_from": dict(made_from),
            "provenance": {
                "components": [component.provenance() for component in components],
                **environment(),
                **cost(seconds, self.device),
            },
        }


def _eval_batch(device: str, size: int) -> int:
    """Images a forward pass, where the user does not say; no number depends on it.

    On a CPU the activations of a large batch cost more than it saves: 224-pixel images are
    evaluated in batches of 8 (`benchmarks/cpu_batch.py`).
    """
    return 256 if device != "cpu" else min(max(8 * 224**2 // size**2, 4), 256)
