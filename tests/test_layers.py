"""Is the house built as the design says? Read from the source with `ast`; nothing is run."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hsmkme"

LAYERS: Mapping[int, frozenset[str]] = {
    7: frozenset({"wsgi", "__main__", "cli", "demo", "bench"}),
    6: frozenset({"applications", "bootstrap", "server", "diagnosis", "keeping"}),
    5: frozenset({"api", "drivers", "peers", "ceremony"}),
    4: frozenset({"kme", "agreement", "peering", "liaison", "relay", "intake", "upkeep", "revocation", "receipts"})
    | {"approvals"},
    3: frozenset({"custody", "admission", "burning", "officers", "epochs", "rotation", "spreading", "logbook"})
    | {"restoring"},
    2: frozenset({"hsm", "store", "audit"}),
    1: frozenset({"config", "values", "fitting", "policy", "fairuse", "identifiers", "messages", "secrecy"}),
    0: frozenset({"errors", "states", "words", "model", "sshsig", "waiting", "batches", "__init__"}),
}
LAYER_OF = {unit: layer for layer, units in LAYERS.items() for unit in units}
STRANGERS = (5, 2)
"""Layers whose units never import each other."""

STANDS_ALONE = "verify"
VERIFIERS = (STANDS_ALONE, "ceremony.verifying")
"""Files that an auditor copies; they are programs too."""
NOT_THE_CLOCK = frozenset({"applications", "bootstrap", "cli", "demo"})
"""Where the clock comes from; everywhere else it is an argument."""

COMPOSING = frozenset({"bootstrap", "diagnosis", "keeping"})
"""What puts the parts together."""

ONLY_IN = {
    "pkcs11": {"hsm"},
    "sqlite3": {"store"},
    "sqlite_utils": {"store"},
    "psycopg": {"store"},
    "flask": {"api", "applications", "wsgi", "bench"},
    "werkzeug": {"api"},
    "gunicorn": {"server"},
    "click": {"cli"},
    "rich": {"cli", "demo"},
    "matplotlib": {"bench"},
}

MODULES = sorted(path for path in (*PACKAGE.rglob("*.py"), ROOT / "wsgi.py"))


def name_of(path: Path) -> str:
    """``store.keys`` for ``hsmkme/store/keys.py``; ``wsgi`` for ``wsgi.py``."""
    if path.parent == ROOT:
        return path.stem
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def unit_of(module: str) -> str:
    """The package or single module that a module is part of: the thing that has a layer."""
    return module.partition(".")[0]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(path: Path) -> Iterator[str]:
    """Full names of everything a module imports, wherever in it."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which layer is meant"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def units_imported(path: Path) -> set[str]:
    """The units of ours that a module imports, without its own."""
    ours = {name.removeprefix("hsmkme.") for name in imports_of(path) if name.partition(".")[0] == "hsmkme"}
    known = {unit_of(name) for name in ours}
    # ``from hsmkme import __version__`` is an import of the package itself
    return {unit if unit in {*LAYER_OF, STANDS_ALONE} else "__init__" for unit in known} - {unit_of(name_of(path))}


parametrized = pytest.mark.parametrize("path", MODULES, ids=name_of)


@parametrized
def test_every_module_has_a_layer(path: Path) -> None:
    assert unit_of(name_of(path)) in {*LAYER_OF, STANDS_ALONE}


@parametrized
def test_modules_import_downward_only(path: Path) -> None:
    unit = unit_of(name_of(path))
    if unit == STANDS_ALONE:
        assert units_imported(path) == set()
        return
    own = LAYER_OF[unit]
    for other in units_imported(path) - {STANDS_ALONE}:
        assert LAYER_OF[other] <= own, f"{name_of(path)} (layer {own}) imports {other} (layer {LAYER_OF[other]})"
        if own in STRANGERS:
            assert LAYER_OF[other] < own, f"{unit} and {other} shall not know each other"


def test_no_unit_imports_itself_by_a_detour() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for path in MODULES:
        graph[unit_of(name_of(path))] |= units_imported(path)

    def reach(unit: str, seen: frozenset[str]) -> frozenset[str]:
        for other in graph[unit] - seen:
            seen = reach(other, seen | {other})
        return seen

    circles = {unit for unit in graph if unit in reach(unit, frozenset())}
    assert circles == set()


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_a_verifier_stands_alone(verifier: str) -> None:
    path = PACKAGE.joinpath(*verifier.split(".")).with_suffix(".py")
    imported = {name.partition(".")[0] for name in imports_of(path)}
    assert imported <= {"__future__", "cryptography", *sys.stdlib_module_names}


def test_only_people_use_the_verifier_of_the_log() -> None:
    users = {unit_of(name_of(path)) for path in MODULES if STANDS_ALONE in units_imported(path)}
    assert users <= {"cli"}


@parametrized
def test_libraries_are_used_where_they_belong(path: Path) -> None:
    unit = unit_of(name_of(path))
    for name in imports_of(path):
        library = name.partition(".")[0]
        assert unit in ONLY_IN.get(library, {unit}), f"{name_of(path)} imports {name}"


@parametrized
def test_only_custody_and_the_root_hold_both_token_and_store(path: Path) -> None:
    """The working modules are custody and what changes master keys under it; above, what puts the parts together."""
    if {"hsm", "store"} <= units_imported(path):
        working = {"custody", "admission", "epochs", "rotation", "spreading", "logbook", "restoring"}
        assert name_of(path) in working | COMPOSING


# The clock ------------------------------------------------------------------------------------------------

CLOCKS = {
    "time": {"time", "time_ns", "clock_gettime", "localtime", "gmtime"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}


def clock_readings(path: Path) -> Iterator[int]:
    """Lines on which the time of day is read, or passed on to be read."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if node.attr in CLOCKS.get(owner, ()):
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            yield from (node.lineno for alias in node.names if alias.name in CLOCKS["time"])


@parametrized
def test_the_clock_is_injected(path: Path) -> None:
    if unit_of(name_of(path)) not in NOT_THE_CLOCK:
        assert list(clock_readings(path)) == [], f"{name_of(path)} reads the time of day"


def test_monotonic_time_is_read_through_a_parameter_below_the_composition_root() -> None:
    """As a default of an argument, so that tests can move it; drivers may pause the same way."""
    for path in MODULES:
        if LAYER_OF.get(unit_of(name_of(path)), 0) >= 6:
            continue
        called = [
            node.lineno
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "time"
        ]
        assert called == [], name_of(path)


# Key material ---------------------------------------------------------------------------------------------


@parametrized
def test_key_material_is_revealed_in_hsm_and_api_alone(path: Path) -> None:
    """And where a backup key becomes the shares of custodians, and is put together from them."""
    lines = [n.lineno for n in ast.walk(tree_of(path)) if isinstance(n, ast.Attribute) and n.attr == "reveal"]
    if unit_of(name_of(path)) not in {"hsm", "api"} and name_of(path) != "ceremony.shares":
        assert lines == [], f"{name_of(path)} reveals key material"


@parametrized
def test_nothing_is_printed_but_by_commands(path: Path) -> None:
    calls = [
        n.lineno
        for n in ast.walk(tree_of(path))
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "print"
    ]
    if unit_of(name_of(path)) not in {"cli", "demo"} and name_of(path) not in VERIFIERS:
        assert calls == []


# Size and habits ------------------------------------------------------------------------------------------


@parametrized
def test_a_module_is_short_enough_to_be_read(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@parametrized
def test_a_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree_of(path))


def broad(handler: ast.ExceptHandler) -> bool:
    caught: Iterable[ast.expr] = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]  # type: ignore[list-item]
    names = {node.id for node in caught if isinstance(node, ast.Name)}
    return handler.type is None or bool(names & {"Exception", "BaseException"})


def test_at_most_three_places_catch_everything() -> None:
    places = [
        f"{name_of(path)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler) and broad(node)
    ]
    assert len(places) <= 3, places


@parametrized
def test_a_name_says_what_a_thing_is(path: Path) -> None:
    """design: no manager, handler, helper, util, common, misc, base, core."""
    empty = {"manager", "handler", "helper", "helpers", "util", "utils", "common", "misc", "base", "core", "token"}
    words = set(name_of(path).replace(".", "_").split("_"))
    assert words & (empty - {"token"}) == set()
    assert unit_of(name_of(path)) != "token"  # it would shadow the standard library
    classes = [node.name for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)]
    assert not any(name.endswith(("Manager", "Handler", "Helper", "Util", "Base")) for name in classes)


def test_the_rules_see_what_they_forbid(tmp_path: Path) -> None:
    """A rule that finds nothing anywhere would be no rule."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import time, datetime\nfrom time import time as now\n"
        "def f(clock=time.time): return datetime.datetime.now()\n"
        "try: pass\nexcept (ValueError, Exception): pass\n"
    )
    assert sorted(clock_readings(wrong)) == [2, 3, 3]
    assert [broad(node) for node in ast.walk(tree_of(wrong)) if isinstance(node, ast.ExceptHandler)] == [True]
    assert set(imports_of(wrong)) == {"time", "datetime", "time.time"}
