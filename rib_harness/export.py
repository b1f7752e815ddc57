"""Results for elsewhere: Parquet for data frames, LaTeX for papers, a model card for the Hub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import rib_harness
from rib_harness.arms import Arm, arms_of
from rib_harness.citations import latex_escaped
from rib_harness.errors import RibError
from rib_harness.escaping import in_markdown
from rib_harness.matrix import Matrix
from rib_harness.results import Results, RunResult, describe_recipe, known
from rib_harness.statistics import Interval

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

#: Columns of `Results.rows` that hold numbers, also where a run has none.
_INTEGERS = ("seed", "limit", "pretraining_images", "correct", "n")
_REALS = ("top1", "change", "known_answer")

#: What the arms of one table share; within it a method and a backbone name one arm.
_TABLE = ("suite", "preset", "recipe", "limit", "data", "members", "references", "sources",
          "suite_members", "shares")  # fmt: skip

#: A number whose sign is one, and no hyphen.
_SIGNED = re.compile(r"(?<![\w.)-])[+-]\d+(?:\.\d+)?")

_PAPER = "https://arxiv.org/abs/2410.21582"


def to_parquet(results: Results) -> bytes:
    """One row a cell, as `Results.rows`, with a type for each column.

    The schema's metadata has under `rib_harness` a JSON text: the version and of each run all that
    its rows do not say, e.g. recipe, notes, missing cells, components and packages.

    Args:
        results: of one run or more; none give a file without rows and columns.

    Example:
        >>> import io, pyarrow.parquet as pq
        >>> table = pq.read_table(io.BytesIO(to_parquet(results)))     # doctest: +SKIP
        >>> json.loads(table.schema.metadata[b"rib_harness"])          # doctest: +SKIP
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = results.rows()
    names = list(rows[0]) if rows else []
    known_types = {**dict.fromkeys(_INTEGERS, pa.int64()), **dict.fromkeys(_REALS, pa.float64())}

    def type_of(name: str) -> Any:
        inferred = known_types.get(name) or pa.array([row[name] for row in rows]).type
        return pa.string() if pa.types.is_null(inferred) else inferred

    schema = pa.schema(
        [(name, type_of(name)) for name in names],
        metadata={
            "rib_harness": json.dumps(
                {"version": rib_harness.__version__, "runs": [_facts(run) for run in results]}
            )
        },
    )
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), out)
    written: bytes = out.getvalue().to_pybytes()
    return written


def to_latex(results: Results, intervals: Mapping[int, Interval] | None = None) -> str:
    """Tables of mRI in points, methods × backbones, for the package `booktabs`.

    What cannot stand side by side (other suite, recipe, preset, limit, datasets or sources) is in
    a table of its own. Seeds are taken together. `--` is an incomplete mRI, with the bounds
    that the missing cells leave below the table; an empty cell was not asked for.

    Args:
        results: of one run or more.
        intervals: position in `arms_of(results)` → interval of its mRI; shown as ± half its width.
    """
    tables: dict[str, list[tuple[Arm, Interval | None]]] = {}
    for position, arm in enumerate(arms_of(results)):
        if arm.method is not None:
            key = json.dumps([arm.record.get(part) for part in _TABLE], sort_keys=True)
            tables.setdefault(key, []).append((arm, (intervals or {}).get(position)))
    head = f"% rib-harness {rib_harness.__version__}; in the preamble: \\usepackage{{booktabs}}\n"
    if not tables:
        return f"{head}% No mRI: nothing was fine-tuned in these results.\n"
    return "\n".join([head, *(_table(arms) for arms in tables.values())])


def latex_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str] = (),
    caption: str = "",
) -> str:
    """A table for `booktabs`; all texts are plain and made harmless here.

    Args:
        heads: of the columns; the first is left-aligned, the others hold numbers.
        rows: as long as `heads` each.
        notes: lines below it.
        caption: above it; empty for none.
    """

    def row(cells: Sequence[str]) -> str:
        first, *others = map(latex_escaped, cells)
        if first.startswith(("[", "*")):
            first = "{}" + first  # else it would be an argument of the line break before it
        numbers = [_SIGNED.sub(r"$\g<0>$", cell) for cell in others]
        return rf"    {' & '.join([first, *numbers])} \\"

    lines = [
        r"\begin{table}",
        r"  \centering",
        *([rf"  \caption{{{latex_escaped(caption)}}}"] if caption else []),
        rf"  \begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        r"    \toprule",
        row(heads),
        r"    \midrule",
        *map(row, rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        *(rf"  \par\smallskip{{\footnotesize {latex_escaped(note)}}}" for note in notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def to_model_card(results: RunResult | Results, citations: str = "") -> str:
    """A Hugging Face model card of one run: a backbone, a method and a seed.

    Its `model-index` has mRI and of each dataset the accuracy before and, averaged over the
    sources other than itself, after fine-tuning. A number that misses a cell is left out.

    Args:
        results: of one run that fine-tuned.
        citations: BibTeX to put at the end, see `citations.cite`.

    Raises:
        RibError: several runs, none, or one that only evaluates.
    """
    from huggingface_hub import ModelCard, ModelCardData

    run = results if isinstance(results, RunResult) else _only(results)
    if run.method is None:
        raise RibError(
            f"A model card is of a fine-tuned model; this run only evaluates "
            f"{run.record['backbone']}. Give the result of a run with a method."
        )
    data = ModelCardData(
        model_name=f"{run.record['backbone']} + {run.method}",
        eval_results=_eval_results(run) or None,
        pipeline_tag="image-classification",
        tags=["image-classification", "robustness", "fine-tuning", "rib-harness"],
        metrics=["accuracy"],
    )
    text = "\n".join(_card_lines(run, citations))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def _facts(run: RunResult) -> dict[str, Any]:
    """A run's JSON form without its cells, and each environment of its steps once."""
    facts = {k: v for k, v in run.to_json().items() if k not in ("pre", "post")}
    facts["provenance"] = {
        "components": run.record["components"],
        "created": run.record["created"],
        "environments": _environments(run),
    }
    return facts


def _environments(run: RunResult) -> list[dict[str, Any]]:
    """Where its steps were computed, each once."""
    parts = ("python", "platform", "packages", "device", "device_name")
    found: dict[str, dict[str, Any]] = {}
    for step in run.provenance.values():
        one = {part: step[part] for part in parts if part in step}
        found[json.dumps(one, sort_keys=True)] = one
    return list(found.values())


# LaTeX


def _table(arms: Sequence[tuple[Arm, Interval | None]]) -> str:
    """One table, of arms that differ in backbone and method only."""
    rows: dict[str, tuple[str, str]] = {}
    columns: dict[str, tuple[str, str]] = {}
    cells: dict[tuple[str, str], str] = {}
    for arm, interval in arms:
        record = arm.record
        options = json.dumps(record["options"], sort_keys=True)
        row = f"{record['method_id']} {options}"
        column = f"{record['backbone_id']} {record['weights']}"
        rows[row] = (str(arm.method), row)
        columns[column] = (arm.backbone, column)
        cells[row, column] = _mri(arm, interval)
    told = dict.fromkeys(
        note for arm, _ in arms for run in arm.runs for note in run.record["notes"]
    )
    table = latex_table(
        ["Method", *_told_apart(columns.values())],
        [
            [label, *(cells.get((row, column), "") for column in columns)]
            for row, label in zip(rows, _told_apart(rows.values()), strict=True)
        ],
        _table_notes(arms),
        _caption(arms),
    )
    return "".join(f"% note: {' '.join(note.split())}\n" for note in told) + table


def _told_apart(labels: Iterable[tuple[str, str]]) -> list[str]:
    """Labels; where two are alike, with what tells them apart."""
    listed = list(labels)
    plain = [label for label, _ in listed]
    return [label if plain.count(label) == 1 else f"{label} ({what})" for label, what in listed]


def _mri(arm: Arm, interval: Interval | None) -> str:
    mri = known(lambda: arm.mri)
    if mri is None:
        return "--"
    return f"{mri:+z.2f}" if interval is None else f"{mri:+z.2f} ± {interval.half:.2f}"


def _caption(arms: Sequence[tuple[Arm, Interval | None]]) -> str:
    """What the numbers are and over what; the same for all arms of the table."""
    first = arms[0][0]
    record = first.record
    parts = [f"mRI in points on {record['suite']}, over {_which_sources(record)}"]
    parts.append(f"preset {record['preset']}, {describe_recipe(record['recipe'])}")
    if record["limit"] is not None:
        parts.append(f"limit {record['limit']} images a class")
    parts += [f"{name} with {options}" for name, options in record.get("data", {}).items()]
    if len({arm.seeds for arm, _ in arms}) == 1:
        parts.append(_seeds(first))
    shown = sorted(
        {(i.level, i.covers) for arm, i in arms if i is not None and _mri(arm, i) != "--"}
    )
    if shown:
        told = {"images": "images of these trainings, which says nothing of other seeds"}
        kinds = " or ".join(f"{level:g} % interval over {told.get(c, c)}" for level, c in shown)
        parts.append(f"± is half the {kinds}")
    return f"{'; '.join(parts)}."


def _which_sources(record: Mapping[str, Any]) -> str:
    """`7 of 8 sources (without objectnet)`, or with the names of those that are there."""
    used, every = record["sources"], record["suite_members"]
    text = f"{len(used)} of {len(every)} sources"
    absent = [name for name in every if name not in used]
    if not absent:
        return text
    named = f"without {', '.join(absent)}" if len(absent) < len(used) else ", ".join(used)
    return f"{text} ({named})"


def _seeds(arm: Arm) -> str:
    listed = ", ".join(map(str, arm.seeds))
    return f"mean over seeds {listed}" if len(arm.seeds) > 1 else f"seed {listed}"


def _table_notes(arms: Sequence[tuple[Arm, Interval | None]]) -> list[str]:
    """What holds for single arms: other seeds, and how incomplete they are."""
    notes = []
    same = len({arm.seeds for arm, _ in arms}) == 1
    for arm, _ in arms:
        name = f"{arm.method} on {arm.backbone}"
        if not same:
            notes.append(f"{name}: {_seeds(arm)}.")
        if arm.ruined:
            notes.append(f"{name} is RUINED on its own fine-tuning set: {', '.join(arm.ruined)}.")
        if known(lambda arm=arm: arm.mri) is None:
            notes.append(f"-- {name}: {_why_incomplete(arm)}.")
    return notes


def _why_incomplete(arm: Arm) -> str:
    if not any(others for matrix in arm.matrices for others in matrix.pairs.values()):
        return "mRI compares datasets, and there is only one"
    low, high = (f"{bound:+z.2f}".replace("-", "−") for bound in arm.mri_bounds)
    return f"incomplete, from {low} to {high} whatever the missing cells hold"


# The model card


def _only(results: Results) -> RunResult:
    if len(results) == 1:
        run: RunResult = results[0]
        return run
    listed = "; ".join(
        f"{r.record['backbone']} · {r.method or 'untouched'} · seed {r.record['seed']}"
        for r in results
    )
    raise RibError(
        f"A model card is of one run; these are {len(results)}{f' ({listed})' if listed else ''}. "
        "Choose one: a backbone, a method and a seed."
    )


def _eval_results(run: RunResult) -> list[EvalResult]:
    """mRI, and accuracy before and after on each dataset, where no cell is missing."""
    from huggingface_hub import EvalResult

    record, matrix = run.record, run.matrix
    limit = {} if record["limit"] is None else {"limit": record["limit"]}

    def result(dataset: str, metric: str, name: str, value: float) -> EvalResult:
        return EvalResult(
            task_type="image-classification",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_config=record.get("data", {}).get(dataset),
            dataset_args=limit or None,
            metric_type=metric,
            metric_name=name,
            metric_value=round(value, 4),
            source_name="rib-harness, the ImageNet-RIB protocol",
            source_url=_PAPER,
        )

    found = []
    mri = known(lambda: matrix.mri)
    if mri is not None:
        found.append(result(record["suite"], "mri", f"mRI, points, {_used(run)}", mri))
    for dataset in (*matrix.members, *matrix.references):
        before, after = matrix.pre.get(dataset), _after(matrix, dataset)
        if before is not None:
            found.append(result(dataset, "accuracy", "top-1 before, %", before.top1))
        if after is not None:
            name = "top-1 after fine-tuning on another set, %, mean over sources"
            found.append(result(dataset, "accuracy", name, after))
    return found


def _after(matrix: Matrix, dataset: str) -> float | None:
    """Mean accuracy on a dataset after fine-tuning on each source but itself, in %."""
    cells = [matrix.post.get(i, {}).get(dataset) for i in matrix.sources if i != dataset]
    top1 = [cell.top1 for cell in cells if cell is not None]
    return sum(top1) / len(top1) if top1 and len(top1) == len(cells) else None


def _used(run: RunResult) -> str:
    return f"{len(run.matrix.sources)} of {len(run.record['suite_members'])} sources"


def _card_lines(run: RunResult, citations: str) -> list[str]:
    """The Markdown below the metadata."""
    record, matrix = run.record, run.matrix
    mri = known(lambda: matrix.mri)
    shown = f"{mri:+z.2f} points" if mri is not None else _why_incomplete(Arm((run,)))
    name = in_markdown(f"{record['backbone']} + {run.method}")
    lines = [
        f"# {name}: is robustness kept?",
        "",
        f"**mRI: {shown}**, on {in_markdown(record['suite'])}, {_used(run)}: the mean change of "
        "top-1 accuracy on the other shifted datasets after fine-tuning on one "
        f"([ImageNet-RIB]({_PAPER})).",
        "",
        f"These numbers are diagnostic of this checkpoint's family: {len(matrix.sources)} "
        "checkpoints, one fine-tuned on each source, of one backbone, method and recipe. They are "
        "not the accuracy of any one of them.",
        "",
        "| dataset | n | before | after | RI as source |",
        "|---|---:|---:|---:|---:|",
    ]
    for dataset in (*matrix.members, *matrix.references):
        cell = matrix.pre.get(dataset)
        n, before = (str(cell.n), _number(cell.top1)) if cell else ("–", "–")
        after, ri = _number(_after(matrix, dataset)), _number(run.ri.get(dataset), "+.2f")
        lines.append(f"| {in_markdown(dataset)} | {n} | {before} | {after} | {ri} |")
    lines += ["", "Before and after: top-1 in %; after: the mean over the sources but itself.", ""]
    lines += ["## Run", "", *_run_lines(run), ""]
    if notes := _note_lines(run):
        lines += ["## Notes", "", *notes, ""]
    lines += ["## Versions", "", *_version_lines(run), ""]
    if citations:
        fence = "```"
        while fence in citations:
            fence += "`"
        lines += ["## Citation", "", f"{fence}bibtex", citations.strip(), fence, ""]
    return lines


def _number(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else format(value, form)


def _run_lines(run: RunResult) -> list[str]:
    record = run.record
    said = {
        "suite": f"{record['suite']}, sources {', '.join(record['sources'])} ({_used(run)})",
        "backbone": f"{record['backbone']} ({record['backbone_id']}, weights {record['weights']})",
        "pretraining": record.get("pretraining", ""),
        "method": f"{run.method} ({record['method_id']})",
        "recipe": f"preset {record['preset']}, {describe_recipe(record['recipe'])}",
        "seed": str(record["seed"]),
        "limit": "" if record["limit"] is None else f"{record['limit']} images a class",
        "data": ", ".join(f"{name}: {o}" for name, o in record.get("data", {}).items()),
        "licences accepted for fine-tuning": ", ".join(record.get("accepted_licenses", ())),
    }
    return [f"- {name}: {in_markdown(text)}" for name, text in said.items() if text]


def _note_lines(run: RunResult) -> list[str]:
    told = [*run.record["notes"], *run.describe_known_answers(), *run.describe_choices()]
    if run.matrix.missing:
        told.append(f"missing cells: {', '.join(run.matrix.missing)}")
    return [f"- {in_markdown(line)}" for line in told]


def _version_lines(run: RunResult) -> list[str]:
    """Of the harness, of the plugins, and of the packages that each step ran with."""
    lines = [f"exported by rib-harness {rib_harness.__version__}"]
    plugins = dict.fromkeys(
        f"{c['distribution']} {c['version']}" + (f", commit {c['commit']}" if c["commit"] else "")
        for c in run.record["components"]
    )
    environments = [
        f"Python {one['python']}, {', '.join(f'{k} {v}' for k, v in one['packages'].items())}, "
        f"on {one.get('device_name') or one.get('device', 'an unknown device')}"
        for one in _environments(run)
    ]
    return [f"- {in_markdown(line)}" for line in (*lines, *plugins, *environments)]
