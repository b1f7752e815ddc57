"""What came of a run: matrices from the store, with provenance, in any form."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rib_harness.errors import RibError, StoreError
from rib_harness.escaping import in_csv, in_markdown
from rib_harness.known_answers import Expected
from rib_harness.matrix import Cell, IncompleteError, Matrix
from rib_harness.store import SCORES, Store

if TYPE_CHECKING:
    import pandas

    from rib_harness.arms import Arm
    from rib_harness.statistics import Interval
    from rib_harness.uncertainty import Uncertainty

log = logging.getLogger("rib_harness")

#: Version of the JSON form of a result.
FORMAT = "rib-harness.result/1"


@dataclass(frozen=True)
class RunResult:
    """One matrix: a backbone, a method and a seed on a suite.

    Args:
        record: what it is and which step is in which cell.
        matrix: the accuracies.
        provenance: of each finished step, by key: packages, hardware, seconds.
        facts: source → what the method reports of its fine-tuning on it.
    """

    record: Mapping[str, Any]
    matrix: Matrix
    provenance: Mapping[str, Any]
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def made(self) -> list[dict[str, Any]]:
        """What its steps say of who made them, as `provenance.changed_code` takes it."""
        return [{"provenance": said} for said in self.provenance.values()]

    @property
    def id(self) -> str:
        """Id of the run in its store."""
        return str(self.record["id"])

    @property
    def method(self) -> str | None:
        """Label of the method; None for an evaluation of the untouched backbone."""
        label: str | None = self.record["method"]
        return label

    @property
    def mri(self) -> float:
        """mRI in points.

        Raises:
            IncompleteError: a cell is missing, or nothing was fine-tuned.
        """
        return self.matrix.mri

    @property
    def ri(self) -> dict[str, float | None]:
        """RI_i of each source, in points; None where a cell is missing."""
        return {i: known(self.matrix.ri, i) for i in self.matrix.sources}

    @property
    def complete(self) -> bool:
        """Whether every cell is there."""
        return self.matrix.complete

    def describe_bounds(self) -> str:
        """What an incomplete matrix allows: `INCOMPLETE, -40.10 to +12.30`."""
        low, high = self.matrix.mri_bounds
        return f"INCOMPLETE, {low:+z.2f} to {high:+z.2f}"

    @property
    def known_answers(self) -> dict[str, dict[str, Any]]:
        """Dataset → what the untouched backbone is known to score, measured, and if they agree."""
        answers = {}
        for name, answer in self.record.get("expected", {}).items():
            expected, cell = Expected(**answer), self.matrix.pre.get(name)
            answers[name] = {
                "expected": expected.percent,
                "source": expected.source,
                "measured": cell.top1 if cell else None,
                "agrees": expected.agrees(cell) if cell else None,
            }
        return answers

    def describe_known_answers(self) -> list[str]:
        """A line for each source: what it says, and what the untouched backbone scored."""
        by_source: dict[str, list[str]] = {}
        for name, answer in self.known_answers.items():
            if answer["measured"] is not None:
                sign = "=" if answer["agrees"] else "≠"
                text = f"{name} {answer['measured']:.2f} {sign} {answer['expected']:.2f}"
                by_source.setdefault(answer["source"], []).append(text)
        return [f"known answers, {who}: {', '.join(texts)}" for who, texts in by_source.items()]

    @property
    def trial_of(self) -> str:
        """The method that chooses among this setting and others; empty if none does."""
        return str(self.record.get("trial_of", ""))

    def describe_ruined(self) -> str:
        """Which fine-tunings ruined the model, and why they may have; nothing where none did."""
        ruined = self.matrix.ruined
        if not ruined:
            return ""
        cells = ", ".join(f"{i} {a:.2f} → {b:.2f}" for i, (a, b) in ruined.items())
        known = dict.fromkeys(str(self.facts.get(i, {}).get("unsteady", "")) for i in ruined)
        why = " ".join(text for text in known if text) or (
            "a learning rate that is too high for this method, or a penalty that is too strong."
        )
        return (
            f"RUINED: {self.method}, seed {self.record['seed']}: accuracy on its own fine-tuning "
            f"set, before → after: {cells}. Such numbers are of the recipe, not of the method. "
            f"Likely: {why}"
        )

    def describe_choices(self) -> list[str]:
        """A line that says what the method chose on the held-out images of each source.

        With the accuracy in % of each that was tried there, or where there are many, the range.
        """

        def short(reference: str) -> str:
            plugin, slash, rest = reference.partition("/")
            return rest if slash and ":" not in plugin else reference

        texts = []
        for source, facts in self.facts.items():
            chosen = facts.get("chosen", [])
            listed = chosen if isinstance(chosen, list) else [chosen]
            tried = facts.get("tried", {})
            values = [s["accuracy"] for s in tried.values()]
            shown = ", ".join(f"{short(one)} {s['accuracy']:.1f}" for one, s in tried.items())
            if len(values) > FEW:
                shown = f"{len(values)}, from {min(values):.1f} to {max(values):.1f}"
            if listed:
                texts.append(f"{source} {'+'.join(map(short, listed))} (of {shown})")
        seed = self.record["seed"]
        return [f"{self.method}, seed {seed}, chose: {'; '.join(texts)}"] if texts else []

    def to_json(self) -> dict[str, Any]:
        """As `results --format json` prints it; accuracies in %, changes in points."""
        matrix, record = self.matrix, self.record

        def cells(row: Mapping[str, Cell]) -> dict[str, Any]:
            return {j: {"top1": c.top1, "correct": c.correct, "n": c.n} for j, c in row.items()}

        return {
            "format": FORMAT,
            "id": self.id,
            "suite": record["suite"],
            "backbone": record["backbone"],
            "backbone_id": record["backbone_id"],
            "weights": record["weights"],
            "pretraining": record.get("pretraining", ""),
            "pretraining_images": record.get("pretraining_images"),
            "data": record.get("data", {}),
            "accepted_licenses": record.get("accepted_licenses", []),
            "method": record["method"],
            "method_id": record["method_id"],
            "options": record["options"],
            "seed": record["seed"],
            "preset": record["preset"],
            "recipe": record["recipe"],
            "limit": record["limit"],
            "members": list(matrix.members),
            "references": list(matrix.references),
            "pre": cells(matrix.pre),
            "post": {i: cells(row) for i, row in matrix.post.items()},
            "ri": self.ri,
            "mri": known(lambda: matrix.mri),
            "sources": {"used": len(matrix.sources), "of": len(record["suite_members"])},
            "complete": matrix.complete,
            "missing": matrix.missing,
            "trial_of": self.trial_of or None,
            "ruined": {i: {"before": a, "after": b} for i, (a, b) in matrix.ruined.items()},
            "notes": record["notes"],
            "known_answers": self.known_answers,
            "facts": {i: dict(facts) for i, facts in self.facts.items()},
            "provenance": {
                "components": record["components"],
                "steps": dict(self.provenance),
                "created": record["created"],
            },
        }


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal columns as CSV; nothing where there are none."""
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: in_csv(cell) for name, cell in row.items()} for row in rows)
    return out.getvalue()


def _joined(chosen: str | list[str]) -> str:
    return chosen if isinstance(chosen, str) else "+".join(chosen)


def known(compute: Callable[..., float], *arguments: Any) -> float | None:
    """The number, or None where a cell that it needs is missing."""
    try:
        return compute(*arguments)
    except IncompleteError:
        return None


def describe_recipe(recipe: Mapping[str, Any]) -> str:
    """One line: `sgd, lr 0.01, batch 32, 10 epochs, cosine, warmup 10`, and what is unusual."""
    parts = [
        recipe["optimizer"],
        f"lr {recipe['lr']:g}",
        f"batch {recipe['batch_size']}",
        f"{recipe['epochs']} epochs",
        recipe["schedule"],
        f"warmup {recipe['warmup_steps']}",
    ]
    usual = {"momentum": 0.9, "weight_decay": 0.0, "micro_batch": None, "max_steps": None,
             "clip_grad": None, "precision": "fp32", "augment": "none",
             "per_class": None, "held_out": 0.0}  # fmt: skip
    parts += [
        f"{name} {recipe[name]}"
        for name, value in usual.items()
        if recipe.get(name, value) != value
    ]
    if recipe["keep"] < 1:
        parts.append(f"keep {recipe['keep']:g} by {recipe['keep_by']}")
    return ", ".join(parts)


#: Of so many settings that were tried, each is listed.
FEW = 5

#: Letters of a digest that tell two files apart: `sha256:` and eight of its own.
WEIGHTS_SHOWN = 15


class Results(Sequence[RunResult]):
    """The results of one run or of a whole store.

    Example:
        >>> import rib_harness
        >>> results = rib_harness.run(method="lwf")        # doctest: +SKIP
        >>> results.mri, results.matrix.change("digits-r", "digits-c")  # doctest: +SKIP
    """

    def __init__(self, runs: Sequence[RunResult], store: Store | None = None):
        self._runs = tuple(runs)
        self.store = store
        self.damaged: set[str] = set()  # what was found to be, when intervals were made

    def __len__(self) -> int:
        return len(self._runs)

    def __getitem__(self, index: Any) -> Any:
        return self._runs[index]

    def __iter__(self) -> Iterator[RunResult]:
        return iter(self._runs)

    def _only(self, what: str) -> RunResult:
        if len(self._runs) != 1:
            listed = ", ".join(f"{r.record['backbone']} · {r.method}" for r in self._runs)
            raise RibError(
                f"{what} is of one run; these are {len(self._runs)} ({listed}). "
                f"Ask one of them: results[0].{what}"
            )
        return self._runs[0]

    @property
    def matrix(self) -> Matrix:
        """The matrix, if this is one run."""
        return self._only("matrix").matrix

    @property
    def mri(self) -> float:
        """mRI in points, if this is one run."""
        return self._only("mri").mri

    @property
    def complete(self) -> bool:
        """Whether every cell of every run is there; a trial may have diverged, and has none."""
        return all(run.complete or run.trial_of for run in self._runs)

    @cached_property
    def uncertainty(self) -> Uncertainty:
        """Intervals of these results, with the scores of all of them read in one go.

        Raises:
            RibError: they were not read from a store.
        """
        from rib_harness.arms import arms_of
        from rib_harness.uncertainty import Uncertainty

        if self.store is None:
            raise RibError("These results have no store, so their images are not known.")
        made = Uncertainty(self.store)
        with suppress(StoreError):  # said of the arm that has the damaged file
            made.prepare(arm for arm in arms_of(self._runs) if arm.method is not None)
        return made

    def interval(self, run: RunResult) -> Interval | None:
        """The 95 % interval of a run's mRI; None where there is no mRI, or no store."""
        from rib_harness.arms import Arm

        return self.interval_of(Arm((run,)))

    def interval_of(self, arm: Arm) -> Interval | None:
        """The 95 % interval of an arm's mRI; None also where scores are damaged, see `damaged`."""
        if self.store is None or arm.method is None:
            return None
        try:
            return self.uncertainty.mri(arm)
        except IncompleteError:
            return None
        except StoreError as error:
            self.damaged |= {str(error)}
            return None

    def backbone_of(self, run: RunResult) -> str:
        """A run's backbone, with its weights where another run's of that name has others."""
        name, weights = run.record["backbone"], str(run.record.get("weights"))
        named = {r.record.get("weights") for r in self._runs if r.record["backbone"] == name}
        return f"{name} · weights {weights[:WEIGHTS_SHOWN]}" if len(named) > 1 else str(name)

    def rows(self) -> list[dict[str, Any]]:
        """One row a cell: the long form, for data frames and CSV."""
        rows = []
        for run in self._runs:
            record, matrix = run.record, run.matrix
            head = {
                "run": run.id,
                "suite": record["suite"],
                "backbone": record["backbone"],
                "weights": record.get("weights"),
                "method": record["method"],
                "seed": record["seed"],
                "preset": record["preset"],
                "limit": record["limit"],
                "recipe": describe_recipe(record["recipe"]) if record["recipe"] else None,
                "pretraining": record.get("pretraining", ""),
                "pretraining_images": record.get("pretraining_images"),
                "accepted_licenses": "+".join(record.get("accepted_licenses", ())),
            }
            answers = run.known_answers
            sources: list[tuple[str | None, Mapping[str, Cell]]] = [(None, matrix.pre)]
            for source, row in [*sources, *matrix.post.items()]:
                for dataset, cell in row.items():
                    change = None
                    if source is not None and dataset in matrix.pre:
                        change = cell.top1 - matrix.pre[dataset].top1
                    rows.append(
                        {
                            **head,
                            "source": source,
                            "dataset": dataset,
                            "role": "member" if dataset in matrix.members else "reference",
                            "top1": cell.top1,
                            "correct": cell.correct,
                            "n": cell.n,
                            "change": change,
                            "options": record.get("data", {}).get(dataset, ""),
                            "known_answer": answers.get(dataset, {}).get("expected"),
                            "chosen": _joined(run.facts.get(source or "", {}).get("chosen", "")),
                        }
                    )
        return rows

    def to_json(self) -> list[dict[str, Any]]:
        """A list of runs, see `RunResult.to_json`, each with the interval of its mRI."""
        listed = []
        for run in self._runs:
            interval = self.interval(run)
            listed.append(
                {**run.to_json(), "interval": None if interval is None else asdict(interval)}
            )
        return listed

    def to_csv(self) -> str:
        """One row a cell; `source` is empty for the untouched backbone."""
        return csv_of(self.rows())

    def to_markdown(self) -> str:
        """One table a run: rows are sources, the last one mRI."""
        parts = []
        for run in self._runs:
            m, record = run.matrix, run.record
            title = f"**{in_markdown(record['suite'])}** · {in_markdown(self.backbone_of(run))}"
            title += f" · {in_markdown(run.method or 'untouched')}"
            if record["seed"] is not None:
                title += f" · seed {record['seed']}"
            if record["limit"] is not None:
                title += f" · limit {record['limit']} a class"
            if record["recipe"] is not None:
                recipe = f"preset {record['preset']} · {describe_recipe(record['recipe'])}"
                title += f" · {in_markdown(recipe)}"
            lines = [title, "", "| dataset | n | before | RI |", "|---|---:|---:|---:|"]
            for name in (*m.members, *m.references):
                cell = m.pre.get(name)
                before = f"{cell.n} | {cell.top1:.2f}" if cell else "– | –"
                ri = run.ri.get(name)
                change = "–" if ri is None else f"{ri:+z.2f}"
                lines.append(f"| {in_markdown(name)} | {before} | {change} |")
            if m.sources:
                mri = known(getattr, m, "mri")
                used = f"{len(m.sources)} of {len(record['suite_members'])} sources"
                interval = self.interval(run)
                shown = run.describe_bounds() if mri is None else f"{mri:+z.2f}"
                if interval is not None:
                    shown = str(interval)
                lines.append(f"| **mRI** ({used}) |  |  | **{shown}** |")
            told = [*run.describe_known_answers(), *run.describe_choices()]
            told += [f"note: {n}" for n in record["notes"]]
            lines += ["", *(f"- {in_markdown(line)}" for line in told)] if told else []
            parts.append("\n".join(lines) + "\n")
        return "\n".join(parts)

    def dumps(self, form: str) -> str:
        """As text: `"json"`, `"csv"` (a row a cell), `"md"` or `"latex"` (methods × backbones)."""
        if form == "latex":
            from rib_harness.arms import arms_of
            from rib_harness.export import to_latex

            arms = list(enumerate(arms_of(self._runs)))
            found = {i: self.interval_of(arm) for i, arm in arms}
            intervals = {i: interval for i, interval in found.items() if interval is not None}
            return to_latex(self, intervals)
        if form == "json":
            return json.dumps(self.to_json(), indent=1) + "\n"
        return self.to_csv() if form == "csv" else self.to_markdown()

    def to_pandas(self) -> pandas.DataFrame:
        """One row a cell, as a data frame. Needs pandas: `pip install "rib-harness[pandas]"`."""
        import pandas

        return pandas.DataFrame(self.rows())


def collect(store: Store, records: Sequence[Mapping[str, Any]] | None = None) -> Results:
    """Read results from a store. What does not verify is no result, and is named in the log.

    Args:
        store: where the steps are.
        records: which runs; None is all of the store.
    """
    # Intervals are made when they are asked for, perhaps from another folder.
    store = Store(store.path.absolute())
    runs = []
    for record in store.runs() if records is None else records:
        done: dict[str, dict[str, Any]] = {}

        def cell(key: str, done: dict[str, dict[str, Any]] = done) -> Cell | None:
            found = store.done(key)
            if found is None:
                return None
            done[key] = found["provenance"]
            summary = found["summary"]
            return Cell(summary["top1"], summary["correct"], summary["n"], summary["groups"])

        def row(keys: Mapping[str, str]) -> dict[str, Cell]:
            cells = {name: cell(key) for name, key in keys.items()}
            return {name: c for name, c in cells.items() if c is not None}

        matrix = Matrix(
            members=tuple(record["members"]),
            references=tuple(record["references"]),
            sources=tuple(record["sources"]),
            pre=row(record["cells"]["pre"]),
            post={i: row(keys) for i, keys in record["cells"]["post"].items()},
            shares=tuple(tuple(group) for group in record["shares"]),
            held_out=_on_held_out(store, record),
        )
        facts = {}
        for source, key in record["finetune"].items():
            found = store.done(key)
            if found is not None:
                done[key] = found["provenance"]
                if found.get("facts"):
                    facts[source] = found["facts"]
        runs.append(RunResult(record, matrix, done, facts))
    for message in store.damaged.values():
        log.warning("%s", message)
    return Results(runs, store)


def _on_held_out(store: Store, record: Mapping[str, Any]) -> dict[str, tuple[Cell, Cell]]:
    """Each source before and after, on its images that were not trained on."""
    share = (record["recipe"] or {}).get("held_out", 0.0)
    if not share:
        return {}
    from rib_harness.pruning import held_out
    from rib_harness.scores import Scores, summarise

    found = {}
    for source in record["sources"]:
        cells = record["cells"]
        keys = (cells["pre"][source], cells["post"][source][source])
        if any(store.done(key) is None for key in keys):
            continue
        pair = []
        for key in keys:
            scores = Scores.read(store.file(key, SCORES))
            labels, photographs = scores.column("label"), scores.column("source")
            rows = held_out(labels, photographs, share, record["seed"])
            told = summarise(scores.correct[rows], scores.column("group")[rows])
            pair.append(Cell(told["top1"], told["correct"], told["n"], told["groups"]))
        found[source] = (pair[0], pair[1])
    return found
