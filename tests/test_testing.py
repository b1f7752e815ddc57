"""The kit's frame: lists of checks, parameters of a test, the verb, and the pieces to test with."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import rib_harness.testing
from rib_harness import DatasetSpec, LabelSpace, MethodSpec, MetricSpec
from rib_harness.catalog import Catalog, load_catalog
from rib_harness.errors import ConfigError, PluginError
from rib_harness.testing import (
    Check,
    CheckError,
    FakeSite,
    catalog_with,
    checks_of,
    no_network,
    parametrize_with_checks,
    plugin_in_memory,
    run_cli,
)

SPEC = MethodSpec(name="mine", target="", summary="A method.", license="MIT")


class Plain:
    def finetune(self, task: Any) -> Any:
        return task.fit(task.pretrained.copy())


def test_importing_the_kit_imports_no_torch() -> None:
    """Source: a fresh process."""
    code = (
        "import sys, rib_harness.testing, rib_harness.testing.checks\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there() -> None:
    for name in rib_harness.testing.__all__:
        assert getattr(rib_harness.testing, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'tinny'"):
        _ = rib_harness.testing.tinny


def test_ids_are_unique_and_name_kind_component_and_check() -> None:
    ids = [check.id for check in checks_of("digits")]
    assert len(set(ids)) == len(ids)
    assert {"plugin/light", "backbone/digits-vit/shapes", "suite/digits-rib/recipe"} <= set(ids)


def test_two_components_of_one_name_are_both_checked() -> None:
    """Source: a method and a metric, both called mine."""
    metric = MetricSpec(name="mine", target="", summary="It.", license="MIT", level="scores")
    catalog = catalog_with((SPEC, Plain), (metric, len), base=Catalog())
    ids = {check.id for check in checks_of("testing", catalog, references=["mine"])}
    assert {"method/mine/spec", "method/mine/resumes", "metric/mine/spec"} <= ids


def test_an_id_holds_no_path() -> None:
    """Source: the file's name."""
    (one,) = {
        check.id.rpartition("/")[0]
        for check in checks_of("timm", references=["timm:x,weights=/some/where/file.safetensors"])
        if ":x" in check.id
    }
    assert one == "backbone/timm:x,weights=file.safetensors"


def test_a_distribution_is_found_too() -> None:
    assert checks_of("rib-plugin-digits")[0].component == "digits"


def test_an_unknown_plugin_is_told_with_the_nearest() -> None:
    with pytest.raises(PluginError, match=r"No plugin is called 'digit'\. Did you mean 'digits'"):
        checks_of("digit")


def test_the_data_root_is_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Source: what a dataset is opened with. One that is given wins; an empty variable is none."""
    roots = []

    class Mine:
        def open(self, root: Path | None) -> Any:
            roots.append(root)

    spec = DatasetSpec(
        name="mine", target="", summary="It.", license="MIT", label_space=LabelSpace("tens", 10)
    )
    catalog = catalog_with((spec, Mine), base=Catalog())
    for variable, given in ((str(tmp_path), None), (str(tmp_path), Path("given")), ("", None)):
        monkeypatch.setenv("RIB_DATA_ROOT", variable)
        checks = {c.id: c for c in checks_of("testing", catalog, data_root=given)}
        with pytest.raises(CheckError, match="open\\(\\) gave NoneType"):
            checks["dataset/mine/opens"].run()
    assert roots == [tmp_path, Path("given"), None]


def test_a_reference_to_another_plugins_component_is_refused() -> None:
    with pytest.raises(ConfigError, match="The plugin digits offers no 'lwf'"):
        checks_of("digits", references=["lwf:alpha=2"])


def test_a_check_says_of_what_it_speaks() -> None:
    def fail() -> None:
        raise ValueError("nothing there")

    check = Check("method/mine/works", "mine/mine", fail, fail)
    with pytest.raises(CheckError, match=r"^mine/mine: ValueError: nothing there$"):
        check()
    assert check.outcome() == {
        "component": "mine/mine", "result": "failed", "reason": "ValueError: nothing there",
    }  # fmt: skip


# As parameters of a test


def parameters(decorator: Any) -> dict[str, Any]:
    """Id → the marks of its parameter."""
    return {one.id: one.marks for one in decorator.args[1]}


def test_an_expected_failure_is_strict_and_only_of_the_check() -> None:
    marks = parameters(
        parametrize_with_checks(
            "digits", expected_failures={"plugin/light": "it is not light yet"}, slow=["suite/*"]
        )
    )
    (mark,) = marks["plugin/light"]
    assert mark.name == "xfail"
    assert mark.kwargs == {"reason": "it is not light yet", "raises": CheckError, "strict": True}
    assert [mark.name for mark in marks["suite/digits-rib/recipe"]] == ["slow"]
    assert marks["plugin/loads"] == []


def test_an_expected_failure_of_no_check_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no check 'plugin/ligth'\. Did you mean 'plugin/light'"):
        parametrize_with_checks("digits", expected_failures={"plugin/ligth": "a slip"})


@pytest.mark.slow
def test_in_pytest_it_passes_fails_skips_and_expects(tmp_path: Path) -> None:
    """Source: pytest's own counts."""
    (tmp_path / "test_it.py").write_text(
        "from rib_harness.testing import parametrize_with_checks\n"
        "@parametrize_with_checks('broken', expected_failures={\n"
        "    'plugin/offers': 'not yet', 'plugin/light': 'it is'})\n"
        "def test_it(check):\n    check()\n"
        "def test_skip():\n"
        "    from rib_harness.testing import CheckSkipped\n"
        "    raise CheckSkipped('not here')\n"
    )
    with FakeSite(tmp_path / "site") as site:
        site.add("broken", "RIB_PLUGIN_API = 1\nprint('hello')\n")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": ":".join(p for p in sys.path if p)},
        )
    # `offers` fails as expected, `light` passes against it, `silent` fails, and five others pass.
    assert "2 failed, 5 passed, 1 skipped, 1 xfailed" in done.stdout
    assert "[XPASS(strict)] it is" in done.stdout
    assert "broken: loading it prints 'hello'" in done.stdout


# The verb


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plugin `testing`, with one method that is plain fine-tuning, and no other plugin."""
    catalog = catalog_with((SPEC, Plain), base=Catalog())
    monkeypatch.setattr("rib_harness.testing.checks.load_catalog", lambda: catalog)


@pytest.mark.usefixtures("offered")
def test_the_verb_shows_what_passes() -> None:
    done = run_cli("check-plugin", "testing", "--neutral", "mine=ft")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"^ method/mine +13 +$", done.out, re.MULTILINE)
    assert "skipped: plugin: light, fast, " in done.out
    assert done.out.endswith("\n15 ok, 6 skipped\n")  # it is in no package


@pytest.mark.usefixtures("offered")
def test_the_verb_shows_what_fails() -> None:
    done = run_cli("check-plugin", "testing", "--neutral", "mine=pretrained")
    assert done.code == 1
    assert "mine should give what pretrained gives" in " ".join(done.out.split())
    assert done.out.endswith("\n14 ok, 1 failed, 6 skipped\n")


@pytest.mark.usefixtures("offered")
def test_the_verb_in_json() -> None:
    done = run_cli("check-plugin", "testing", "--json", "--reference", "mine")
    answer = json.loads(done.out)
    assert (done.code, answer["plugin"]) == (0, "testing")
    by_id = {one["check"]: one for one in answer["checks"]}
    assert by_id["method/mine/resumes"] == {
        "check": "method/mine/resumes", "component": "testing/mine", "result": "ok", "reason": "",
    }  # fmt: skip
    assert by_id["plugin/light"]["result"] == "skipped"
    assert sum(answer[name] for name in ("ok", "failed", "skipped")) == len(by_id)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["digit"], 1, "Error: No plugin is called 'digit'. Did you mean 'digits'"),
        (["digits", "--neutral", "lwf"], 2, "--neutral: expected REF=METHOD, got 'lwf'."),
        (["digits", "--neutral", "a=ft", "--neutral", "a=lp"], 2, "a setting is given twice"),
        (["digits", "--reference", "lwf"], 1, "Error: The plugin digits offers no 'lwf'."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_message(arguments: list[str], code: int, said: str) -> None:
    done = run_cli("check-plugin", *arguments)
    assert (done.code, done.out) == (code, "")
    assert said in done.err and "Traceback" not in done.err


# Pieces to test with


def test_the_guard_lets_this_machine_through_and_nobody_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, no_network() as reached:
        socket.create_connection(server.getsockname()).close()
        assert reached == []
        for address in (("example.org", 80), ("93.184.216.34", 80)):
            with pytest.raises(CheckError, match="on the network"):
                socket.create_connection(address)
        assert reached == ["example.org", "93.184.216.34"]


#: How one may reach for a host, and whether it is this machine's.
WAYS: list[tuple[Any, bool]] = [
    (lambda s: s.connect(("93.184.216.34", 80)), False),
    (lambda s: s.connect_ex(("93.184.216.34", 80)), False),
    (lambda s: s.sendto(b"x", ("93.184.216.34", 9)), False),
    (lambda s: s.sendto(b"x", 0, ("93.184.216.34", 9)), False),
    (lambda s: socket.gethostbyname("example.org"), False),
    (lambda s: socket.gethostbyname_ex("example.org"), False),
    (lambda s: socket.getaddrinfo(b"example.org", 80), False),
    (lambda s: socket.getaddrinfo("localhost.example.org", 80), False),
    (lambda s: socket.getaddrinfo("127.example.org", 80), False),
    (lambda s: socket.getaddrinfo("localhost", 80), True),
    (lambda s: socket.getaddrinfo("::1", 80), True),
    (lambda s: s.sendto(b"x", ("127.0.0.2", 9)), True),
]


@pytest.mark.parametrize(("way", "local"), WAYS)
def test_every_way_to_a_host_is_guarded(way: Any, local: bool) -> None:
    """Source: the calls of Python's `socket` module."""
    before = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex", "sendto")}
    look_up = socket.getaddrinfo, socket.gethostbyname, socket.gethostbyname_ex
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, no_network() as reached:
        if local:
            way(one)
        else:
            with pytest.raises(CheckError, match="on the network"):
                way(one)
    assert len(reached) == (not local)
    assert {name: getattr(socket.socket, name) for name in before} == before
    assert (socket.getaddrinfo, socket.gethostbyname, socket.gethostbyname_ex) == look_up


def test_a_plugin_in_memory_loads() -> None:
    point = plugin_in_memory("mine", register_methods=lambda: [SPEC.__class__(
        name="one", target="a.b:C", summary="It.")])  # fmt: skip
    catalog = load_catalog(entry_points=[point], environ={})
    assert [component.id for component in catalog.list("method")] == ["mine/one"]


def test_a_catalog_without_discovery_has_only_what_it_is_given() -> None:
    catalog = catalog_with((SPEC, Plain), base=Catalog())
    assert [component.id for component in catalog.list("method")] == ["testing/mine"]
    assert [plugin.name for plugin in catalog.plugins] == ["testing"]


def test_a_fake_site_is_found_and_forgotten(tmp_path: Path) -> None:
    with FakeSite(tmp_path / "site") as site:
        module = site.add("fake-site", "RIB_PLUGIN_API = 1\n", version="3.2")
        assert [plugin.version for plugin in site.load().plugins] == ["3.2"]
        assert "fake-site" in {p.name for p in metadata.entry_points(group="rib_harness")}
        assert module in sys.modules
    assert module not in sys.modules
    assert "fake-site" not in {p.name for p in metadata.entry_points(group="rib_harness")}


def test_the_command_line_in_a_test() -> None:
    done = run_cli("list", "metrics", "--json")
    assert done.code == 0 and json.loads(done.out)
    assert run_cli("rnu").code == 2 and "Did you mean 'run'" in run_cli("rnu").err
