"""The structure of the package: which room may import which, no circles, few loose modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "vlkit"
FLOORS = (
    {"errors"},
    {"files", "number_formats", "byte_sizes"},
    {"cli", "metrics"},
    {"encoders"},
    {"data"},
    {"adapters"},
    {"memory"},
    {"engine"},
    {"tap_cache", "extract"},
    {"index", "drawn"},
    {"tasks"},
    {"serving", "export"},
)
"""From the ground up. A room imports itself and the floors below it, and of its own floor nothing but itself."""
ENTRANCE = {"__init__"}
"""``vlkit/__init__.py`` offers what users call: it may reach every room, but only when it is called."""


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path], deferred: bool) -> Iterator[str]:
    """The vlkit modules that a file imports; ``deferred``: also those inside functions and for type checkers."""

    def visit(node: ast.AST) -> Iterator[str]:
        if not deferred and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if not deferred and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from (name for name in visit(ast.parse(path.read_text())) if name.split(".")[0] == "vlkit")


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def floor_of(room: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    raise AssertionError(f"vlkit/{room}: no room of the plan; put it into FLOORS, on purpose")


def test_no_room_imports_a_room_above_it():
    known, wrong = modules(), []
    for name, path in known.items():
        room = room_of(name)
        if room in ENTRANCE:
            continue
        for other in imports(path, known, deferred=True):
            target = room_of(other)
            if target not in ENTRANCE and target != room and floor_of(target) >= floor_of(room):
                wrong.append(f"{name} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_in_a_circle():
    known = modules()
    graph = {name: set(imports(path, known, deferred=False)) - {name} for name, path in known.items()}
    done: set[str] = set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "circle: " + " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in graph.get(name, ()):
                walk(other, (*trail, name))
            done.add(name)

    for name in known:
        walk(name, ())


def test_the_package_has_few_loose_modules():
    assert len(list(PACKAGE.glob("*.py"))) <= 5


def test_every_module_is_found_by_name_not_by_string():
    called = [path for path in modules().values() if "import_module" in path.read_text()]
    assert not called
