"""The documentation: the site builds without a warning, and the code on its pages runs.

A page's blocks are run in order, in one empty folder and one virtual environment, both its own:

- `console`: lines that begin with `$ ` are commands (`\\` continues a line) and must exit 0; the
  others are shown output. `<!-- test: fails -->` on the line before: they must exit 1.
  `<!-- test: dry -->`: they need data or hours; those of rib-harness are planned only.
- `python` is a script.
- `{code-block}` with a `:caption:` is written to that file.
"""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
import sysconfig
import textwrap
import venv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from filelock import FileLock

import rib_harness
import rib_harness.testing
from rib_harness.catalog import FIRST_PARTY, load_catalog
from rib_harness.cli import VERBS, cli

DOCS = Path(__file__).parents[1] / "docs"
FENCE = re.compile(
    r"(?P<indent> *)(?P<fence>[`:]{3,})(?P<directive>\{[\w-]+\})? *(?P<language>\S*)"
)
MARK = re.compile(r"<!-- test: (\S+) -->")


# Reading a page


@dataclass(frozen=True)
class Block:
    """One block of code: its first line in the page, and the mark on the line before it."""

    line: int
    language: str
    text: str
    caption: str = ""
    mark: str = ""

    @property
    def commands(self) -> list[tuple[int, str]]:
        """Line and text of each command that is run."""
        if self.language != "console" or self.caption:
            return []
        found = re.finditer(r"^\$ ((?:.*\\\n)*.*)", self.text, re.MULTILINE)
        return [(self.line + self.text[: one.start()].count("\n"), one[1]) for one in found]

    @property
    def runs(self) -> bool:
        """Whether there is anything to run."""
        return bool(self.commands) or (self.language == "python" and not self.caption)


def blocks_of(text: str) -> Iterator[Block]:
    """The blocks of a page's text. A mark that marks no console block is an error."""
    lines = [*text.splitlines(), ""]
    at, mark = 0, ""
    while at < len(lines):
        if marked := MARK.fullmatch(lines[at].strip()):
            if marked[1] not in ("fails", "dry") or "```console" not in lines[at + 1]:
                raise ValueError(f"line {at + 1}: expected 'fails' or 'dry', then a console block")
            mark = marked[1]
        elif fence := FENCE.fullmatch(lines[at].rstrip()):
            ends = (i for i in range(at + 1, len(lines)) if lines[i].strip() == fence["fence"])
            end = next(ends, len(lines))
            body = textwrap.dedent("\n".join(lines[at + 1 : end])) + "\n"
            options = re.match(r"((:[\w-]+:.*\n)*\n*)", body)[0] if fence["directive"] else ""
            caption = re.search(r"^:caption: *(.+)$", options, re.MULTILINE)
            if fence["directive"] in (None, "{code-block}"):
                line = at + 2 + options.count("\n")
                given = caption[1].strip() if caption else ""
                yield Block(line, fence["language"], body.removeprefix(options), given, mark)
            at, mark = end, ""
        at += 1


# Running it

#: What a command says that is right but for data, or a store, that a test has not.
ABSENT = re.compile(
    "no such folder|[Tt]here is no store|has no finished step|neither in|forbids to download|"
    "there is no file or folder"
)


def planned(command: str) -> str:
    """The command, so that it computes and downloads nothing; of other programs nothing."""
    bare = command.partition("  #")[0].strip()
    verb = re.sub(r"^(\w+=\S+ )*", "", bare)  # behind variables that are set for it
    if re.match(r"rib-harness (run|evaluate|study run)\b", verb):
        return f"{bare} --dry-run"
    if verb.startswith("rib-harness data prepare "):
        return f"{bare} --offline"
    return bare if verb.startswith("rib-harness ") else "true"


def environment(home: Path) -> dict[str, str]:
    """Variables of a virtual environment of its own, over the running one, without a network."""
    folder = home / "venv"
    venv.create(folder, with_pip=False)
    bin = folder / "bin"
    # `addsitedir` reads the .pth files there, where editable installs are; a plain path does not.
    layers = [f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()]
    own = next(folder.glob("lib/python*/site-packages"))
    (own / "layers.pth").write_text("".join(layers))
    programs = {
        "rib-harness": f"'{bin}/python' -P -c 'from rib_harness.cli import main; main()'",
        "pip": f"'{bin}/python' -P -m pip",
        "pytest": f"'{bin}/python' -P -m pytest",
        "ruff": f"'{sysconfig.get_path('scripts')}/ruff'",
    }
    for name, command in programs.items():
        (bin / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (bin / name).chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not re.match("(RIB|PIP|PYTHON|PYTEST)_?", k)}
    return {
        **kept,
        "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": str(folder),
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INDEX": "1",
        # pip sets `build_isolation` to this: 0 is none.
        "PIP_NO_BUILD_ISOLATION": "0",
        # Nobody listens there.
        **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9"),
    }


def run(page: str, text: str, folder: Path, variables: Mapping[str, str]) -> None:
    """Run a page's blocks.

    Raises:
        AssertionError: names the first command that did not end as it should, with its output.
    """

    def expect(code: int, line: int, shown: str, *command: str, absent: bool = False) -> None:
        done = subprocess.run(
            command, cwd=folder, env=variables, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        excused = absent and done.returncode == 1 and ABSENT.search(done.stdout)
        if done.returncode != code and not excused:
            raise AssertionError(
                f"{page}:{line}: expected exit code {code}, got {done.returncode}\n"
                f"$ {shown}\n{done.stdout[-6000:]}"
            )

    for block in blocks_of(text):
        for line, command in block.commands:
            dry, code = block.mark == "dry", int(block.mark == "fails")
            shown = planned(command) if dry else command
            expect(code, line, shown, "bash", "-o", "pipefail", "-c", shown, absent=dry)
        if block.caption:
            path = folder / block.caption
            assert path.resolve().is_relative_to(folder.resolve()), f"{page}:{block.line}: {path}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.runs and block.language == "python":
            script = folder / "block.py"
            # Tracebacks then name the page's lines.
            script.write_text("\n" * (block.line - 1) + block.text, encoding="utf-8")
            expect(0, block.line, f"python block.py\n{block.text}", "python", script.name)
            script.unlink()


PAGES = [
    page for page in sorted(DOCS.glob("*.md"))
    if any(block.runs for block in blocks_of(page.read_text(encoding="utf-8")))
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    folder, variables = tmp_path / "page", environment(tmp_path / "home")
    folder.mkdir()
    if page.stem == "start":
        variables["RIB_LIMIT"] = "2"  # its runs are of the whole suite
    run(f"docs/{page.name}", page.read_text(encoding="utf-8"), folder, variables)


# The runner itself

TEXT = """# A page

```console
$ rib-harness run \\
    --method lwf
mRI -15.48
$ echo done | cat
```

<!-- test: fails -->
```console
$ false
```

<!-- test: dry -->
```console
$ rib-harness data list
```

1. In a list:

   ```python
   if True:
       print(1)
   ```

```{code-block} toml
:caption: sub/file.toml
:emphasize-lines: 1

a = 1
```

```{note}
no code
```

```text
$ not run
```

```console
rib-harness of the old kind
```
"""


def test_blocks_are_read() -> None:
    """Source: the lines of the text above, counted by hand."""
    found = list(blocks_of(TEXT))
    assert [(b.line, b.language, b.mark) for b in found] == [
        (4, "console", ""), (12, "console", "fails"), (17, "console", "dry"), (23, "python", ""),
        (31, "toml", ""), (39, "text", ""), (43, "console", ""),
    ]  # fmt: skip
    assert found[0].commands == [
        (4, "rib-harness run \\\n    --method lwf"), (7, "echo done | cat")
    ]  # fmt: skip
    assert found[1].commands == [(12, "false")]
    assert found[2].commands == [(17, "rib-harness data list")]
    assert found[6].commands == []
    assert found[3].text == "if True:\n    print(1)\n"
    assert (found[4].caption, found[4].text) == ("sub/file.toml", "a = 1\n")
    assert [b.runs for b in found] == [True, True, True, True, False, False, False]


@pytest.mark.parametrize(
    "text",
    [
        "<!-- test: failes -->\n```console\n```",
        "<!-- test: fails -->\n```text\n```",
        "<!-- test: dry -->\n\n```console\n```",
        "<!-- test: dry -->",
    ],
)
def test_a_mark_that_marks_nothing_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="line 3: expected 'fails' or 'dry', then a console block"):
        list(blocks_of(f"# A page\n\n{text}"))


def page_of(*commands: str, mark: str = "") -> str:
    return "\n".join([f"<!-- test: {mark} -->" if mark else "", "```console", *commands, "```"])


def test_what_a_page_needs_is_kept_for_its_next_block(tmp_path: Path) -> None:
    page = (
        "```{code-block} text\n:caption: a/b.txt\n\nhello\n```\n"
        '```python\nfrom pathlib import Path\nPath("c").write_text(Path("a/b.txt").read_text())\n'
        "```\n" + page_of("$ grep \\", "  hello c", "this is output", "$ test ! -e block.py")
    )
    run("p.md", page, tmp_path, os.environ)


def test_a_dry_command_is_planned() -> None:
    assert planned("rib-harness run -m ft  # hours") == "rib-harness run -m ft --dry-run"
    assert planned("rib-harness data prepare x --data-root D").endswith(" --data-root D --offline")
    assert planned("rib-harness study list") == "rib-harness study list"
    assert planned("A=1 B=2 rib-harness run") == "A=1 B=2 rib-harness run --dry-run"
    assert planned("curl somewhere") == "true"


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (page_of("$ true", "$ echo oh; exit 3"), "p.md:4: expected exit code 0, got 3\n"
         "$ echo oh; exit 3\noh\n"),
        (page_of("$ false | true"), "expected exit code 0, got 1"),
        (page_of("$ true", mark="fails"), "p.md:3: expected exit code 1, got 0"),
        (page_of("$ exit 2", mark="fails"), "expected exit code 1, got 2"),
        (page_of("$ rib-harness run -m nothing", mark="dry"), "nothing --dry-run\nError: No"),
        ("```python\n\n1 / 0\n```", 'File "block.py", line 3'),
        ("```{code-block} text\n:caption: ../x\n\n```", "p.md:4"),
    ],
)  # fmt: skip
def test_what_does_not_end_as_it_should_is_told(page: str, said: str, tmp_path: Path) -> None:
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with pytest.raises(AssertionError) as error:
        run("p.md", page, tmp_path, variables)
    assert said in str(error.value).replace(f"{tmp_path}/", "")


@pytest.mark.slow
def test_what_a_page_installs_stays_there(tmp_path: Path) -> None:
    """A page installs packages of its own over those of the running environment, offline."""
    install = page_of(
        '$ pip install "rib-harness[standard]"',
        "$ rib-harness new-plugin of-a-page --kind metric",
        "$ pip install -e 'rib-plugin-of-a-page[test]' && rib-harness show of-a-page",
        "$ cd rib-plugin-of-a-page && ruff check . && pytest -q --collect-only",
        '$ python -c "import rib_plugin_of_a_page, rib_harness"',
    )
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    run("p.md", install, tmp_path / "one", environment(tmp_path / "home-one"))
    gone = page_of("$ rib-harness show of-a-page", mark="fails")
    run("p.md", gone, tmp_path / "two", environment(tmp_path / "home-two"))
    away = page_of("$ pip install no-such-package-of-a-page", mark="fails")
    run("p.md", away, tmp_path / "two", environment(tmp_path / "home-three"))


# The site


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; one at a time, since the components' pages are written into the sources."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    with FileLock(tmp_path_factory.getbasetemp().parent / "site.lock"):  # workers share this folder
        done = subprocess.run([*command, str(DOCS), str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.slow
def test_the_site_builds_without_a_warning(html: Path) -> None:
    assert (html / "index.html").is_file()


@pytest.mark.slow
def test_every_component_has_a_section(html: Path) -> None:
    for kind in ("backbone", "dataset", "metric", "suite"):
        page = (html / "components" / f"{kind}s.html").read_text(encoding="utf-8")
        for component in load_catalog().list(kind):
            if component.plugin.distribution in FIRST_PARTY:
                assert f'<section id="{component.spec.name}">' in page, component.id
                for option in component.signature.options if kind != "metric" else ():
                    assert f">{option.name}</span>" in page, (component.id, option.name)


@pytest.mark.slow
def test_every_verb_has_a_section(html: Path) -> None:
    page = (html / "cli.html").read_text(encoding="utf-8")
    places = [page.index(f'<section id="rib-harness-{verb}">') for verb in VERBS]
    assert places == sorted(places)


@pytest.mark.slow
def test_every_check_is_described(html: Path) -> None:
    page = (html / "conformance.html").read_text(encoding="utf-8")
    for module in Path(rib_harness.testing.__file__).parent.glob("*_checks.py"):
        checks = re.findall(r"^def check_[a-z]+_(\w+)", module.read_text(), re.MULTILINE)
        assert checks
        for name in checks:
            assert f"/{name.replace('_', '-')}</span>" in page, (module.name, name)


@pytest.mark.slow
@pytest.mark.parametrize("module", [rib_harness, rib_harness.testing])
def test_every_public_name_is_described(module: object, html: Path) -> None:
    page = (html / "api.html").read_text(encoding="utf-8")
    for name in module.__all__:
        assert f'id="{module.__name__}.{name}"' in page, name


def test_every_option_has_the_variable_that_the_page_says() -> None:
    """Source: docs/cli.md."""

    def options(group: click.Command, context: click.Context) -> Iterator[click.Option]:
        yield from (p for p in group.params if isinstance(p, click.Option))
        for name in group.list_commands(context) if isinstance(group, click.Group) else ():
            command = group.get_command(context, name)
            assert command is not None
            yield from options(command, context)

    without = set()
    for option in options(cli, click.Context(cli)):
        (long,) = (name for name in option.opts if name.startswith("--"))
        if option.envvar is None:
            without.add(long)
        else:
            assert option.envvar == "RIB_" + long[2:].replace("-", "_").upper()
    assert without == {"--version", "--yes", "--all"}


def test_every_test_that_a_promise_names_is_there() -> None:
    named = re.findall(r"`([\w/-]+\.py)::(\w+)`", (DOCS / "promises.md").read_text())
    assert len(named) > 16
    for file, test in named:
        text = (DOCS.parent / file).read_text(encoding="utf-8")
        assert f"def {test}(" in text, f"{file}::{test}"
