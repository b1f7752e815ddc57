"""BibTeX of what runs used: the benchmark, the harness, suites, data, methods, backbones, metrics.

What a component's spec says of its origin is looked up in `references.bib`; what is not there
gets a small entry of its own, so that nothing that was used goes uncited in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import rib_harness
from rib_harness.catalog import Bound, Catalog
from rib_harness.composition import calls_of, needs_of
from rib_harness.errors import RibError
from rib_harness.results import Results, RunResult

#: The benchmark itself.
PAPER = "arXiv:2410.21582"

#: Pretraining, in the words of the field → where it comes from.
_PRETRAINING = {
    "IN-1K": "arXiv:1409.0575",
    "IN-1K + AugReg": "arXiv:2106.10270",
    "IN-1K + SAM": "arXiv:2106.01548",
    "IN-21K": "arXiv:2010.11929",
    "IN-21K-P": "arXiv:2104.10972",
    "IN-21K + AugReg": "arXiv:2106.10270",
    "OpenAI (CLIP)": "arXiv:2103.00020",
    "LAION-2B (CLIP)": "arXiv:2103.00020; arXiv:2210.08402",
    "DataComp-1B (CLIP)": "arXiv:2103.00020; arXiv:2304.14108",
}

_EL2N = "arXiv:2107.07075"

#: Braces by name: BibTeX counts them even behind a backslash.
_SPECIALS = {
    **{character: f"\\{character}" for character in "&%$#_"},
    "\\": r"\textbackslash{}",
    "{": r"\textbraceleft{}",
    "}": r"\textbraceright{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "→": r"$\rightarrow$",
    "…": r"\dots{}",
    "–": "--",
}

#: An arXiv id, a DOI or an address, in a citation.
_NAMED = re.compile(
    r"(?:arXiv:\s*|https?://(?:www\.)?arxiv\.org/(?:abs|pdf)/)"
    r"(?P<arxiv>\d{4}\.\d{4,5}|[a-z-]+(?:\.[a-z]{2})?/\d{7})(?:v\d+)?"
    r"|(?:doi:\s*|https?://(?:dx\.)?doi\.org/)(?P<doi>10\.\S+)"
    r"|(?P<url>https?://\S+)",
    re.IGNORECASE,
)

_ENTRY = re.compile(r"^@\w+\{.*?^\}", re.MULTILINE | re.DOTALL)
_KEY = re.compile(r"(@(?!comment|string|preamble)\w+\s*\{\s*)([^\s,{}]+)(?=\s*,)", re.IGNORECASE)


def latex_escaped(text: str) -> str:
    """The text on one line, with all that LaTeX and BibTeX would take for a command made harmless.

    >>> latex_escaped("50 % of a_b")
    '50 \\\\% of a\\\\_b'
    """
    return "".join(_SPECIALS.get(character, character) for character in " ".join(text.split()))


@dataclass(frozen=True)
class Use:
    """Something that was used and where it comes from.

    Args:
        what: e.g. `ewc (method)`.
        citation: as in `Spec.citation`: arXiv ids, DOIs, addresses or a text, several joined by
            `; `, or BibTeX; empty where none is known.
    """

    what: str
    citation: str


def cite(results: Results, catalog: Catalog, metrics: Sequence[str] | None = None) -> str:
    """A BibTeX file of all that these results were made with, each entry once.

    In front of an entry a line says what it was used as. A method brings what it is made of.
    What is not installed here, or gives no citation, is named at the end.

    Args:
        results: of one run or more.
        catalog: says what each component cites.
        metrics: names of those that were computed; None is those that every table shows.
    """
    uses = [Use("the benchmark", PAPER), Use("the software", _software())]
    for run in results:
        uses += _uses_of(run, catalog)
    if metrics is None:
        trained = any(run.method is not None for run in results)
        metrics = ("top-1", "ri", "mri") if trained else ("top-1",)
    uses += [_use("metric", name, catalog) for name in metrics]
    return bibtex_of(uses)


def bibtex_of(uses: Iterable[Use]) -> str:
    """BibTeX entries of what was used, each once, and a list of what has no citation.

    Args:
        uses: in the order in which their entries shall come.
    """
    entries: dict[str, list[str]] = {}
    without: list[str] = []
    for use in uses:
        # BibTeX takes an @ outside of entries for the start of one.
        what = " ".join(use.what.replace("@", " at ").split())
        for told in [entries.setdefault(e, []) for e in entries_of(use.citation)] or [without]:
            if what not in told:
                told.append(what)
    taken: set[str] = set()
    blocks = [
        f"% used as: {', '.join(what)}\n{_with_free_keys(entry, taken)}\n"
        for entry, what in entries.items()
    ]
    if without:
        blocks.append(f"% without a citation: {', '.join(without)}\n")
    return "\n".join(blocks)


def entries_of(citation: str) -> list[str]:
    """The BibTeX entries of one citation; none if it is empty.

    BibTeX is kept as it is. An arXiv id, DOI, address or text that `references.bib` does not know
    becomes a `@misc`.

    Args:
        citation: see `Use`.
    """
    text = citation.strip()
    if _is_bibtex(text):
        return [text]
    known = _known()
    if latex_escaped(text) in known:
        return [known[latex_escaped(text)]]
    entries = []
    for part in re.split(r";\s+", text):  # a DOI may hold a semicolon
        named = list(_NAMED.finditer(part))
        for match in named:
            kind = str(match.lastgroup)
            name = _trimmed(match[kind])
            entries.append(known.get(_identity(kind, name)) or _minimal(kind, name))
        if part.strip() and not named:
            plain = latex_escaped(part)
            entries.append(known.get(plain) or _misc(part, note=plain))
    return list(dict.fromkeys(entries))


def _uses_of(run: RunResult, catalog: Catalog) -> Iterator[Use]:
    """What one run used, in the order of its record."""
    record = run.record
    for component in record["components"]:
        yield _use(component["kind"], component["id"], catalog)
    if record["method_id"] is not None:
        yield from _made_of(record["method_id"], run, catalog)
    pretraining = record.get("pretraining", "")
    if pretraining in _PRETRAINING:
        yield Use(f"{pretraining} (pretraining)", _PRETRAINING[pretraining])
    recipe = record["recipe"] or {}
    if recipe.get("keep", 1) < 1 and str(recipe.get("keep_by")).startswith("el2n"):
        yield Use("EL2N (data pruning)", _EL2N)


def _use(kind: str, name: str, catalog: Catalog) -> Use:
    try:
        spec = catalog.get(kind, name).spec
    except RibError:
        return Use(f"{name} ({kind}; not installed here)", "")
    return Use(f"{spec.name} ({kind})", spec.citation)


def _made_of(method_id: str, run: RunResult, catalog: Catalog) -> Iterator[Use]:
    """The methods that a run's method starts from or runs itself."""
    preset = run.record["preset"]

    def inner(method: Bound) -> Iterator[Bound]:
        needs = [need.method for need in needs_of(catalog, method, preset)]
        for one in [*needs, *calls_of(catalog, method, preset).values()]:
            yield one
            yield from inner(one)

    try:
        whole = Bound(catalog.get("method", method_id), run.record["options"], {})
        for one in inner(whole):
            yield Use(f"{one.spec.name} (method)", one.spec.citation)
    except RibError:  # of another version, or from a plugin that is not here
        yield Use(f"what {method_id} starts from (not installed here)", "")


def _software() -> str:
    return (
        "@software{rib-harness,\n"
        "  title   = {rib-harness: the {ImageNet-RIB} Protocol as a Plugin-Based Harness},\n"
        "  author  = {{The rib-harness contributors}},\n"
        f"  version = {{{rib_harness.__version__}}},\n"
        "}"
    )


@lru_cache(maxsize=1)
def _known() -> dict[str, str]:
    """Identity, or citation as a text → entry of `references.bib`."""
    text = files("rib_harness").joinpath("references.bib").read_text(encoding="utf-8")
    known = {}
    for written in _ENTRY.findall(text):
        entry = re.sub(r"^  citedas .*\n", "", written, flags=re.MULTILINE)
        for name, value in re.findall(r"^  (\w+) *= \{(.*)\},$", written, re.MULTILINE):
            if name in ("eprint", "doi", "url"):
                known[_identity("arxiv" if name == "eprint" else name, value)] = entry
            elif name == "citedas":
                known[value] = entry
    return known


def _identity(kind: str, name: str) -> str:
    return f"{kind}:{name.lower().rstrip('/')}"


def _trimmed(name: str) -> str:
    """Without the punctuation of the sentence around it."""
    name = name.rstrip(".,;")
    while name.endswith(")") and name.count(")") > name.count("("):
        name = name[:-1].rstrip(".,;")
    return name


def _is_bibtex(text: str) -> bool:
    """Whether it is an entry, with as many braces closed as opened."""
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0 and text.startswith("@") and _KEY.search(text) is not None


def _minimal(kind: str, name: str) -> str:
    """What can be said of an arXiv id, a DOI or an address alone."""
    if kind == "arxiv":
        url = f"https://arxiv.org/abs/{name}"
        more = {"eprint": name, "archivePrefix": "arXiv", "url": url}
        return _misc(f"arxiv {name}", note=f"arXiv:{name}", **more)
    for character, code in (("{", "%7B"), ("}", "%7D"), ("\\", "%5C")):
        name = name.replace(character, code)
    if kind == "doi":
        return _misc(f"doi {name}", note=latex_escaped(f"doi:{name}"), doi=name)
    return _misc(name.partition("//")[2], howpublished=f"\\url{{{name}}}")


def _misc(about: str, **fields: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", about.lower()).strip("-")[:40].rstrip("-") or "cited"
    width = max(map(len, fields))
    lines = [f"  {name:<{width}} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@misc{{{slug},", *lines, "}"])


def _with_free_keys(entry: str, taken: set[str]) -> str:
    """The entry, with a number behind a key that another entry has already."""

    def free(match: re.Match[str]) -> str:
        key, count = match[2], 1
        while key.lower() in taken:
            count += 1
            key = f"{match[2]}-{count}"
        taken.add(key.lower())
        return match[1] + key

    return _KEY.sub(free, entry)
