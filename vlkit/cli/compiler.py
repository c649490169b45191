"""Put off the import of PyTorch's compiler until something asks for it.

Nothing here compiles, yet libraries import a name or two of ``torch._dynamo`` when they are imported themselves, which
costs every command two seconds and 150 MB. These names are answered here; any other name, and the first use of one of
these that needs the compiler, imports it.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE, UTILS = "torch._dynamo", "torch._dynamo.utils"
_LOADING = threading.RLock()


def defer_compiler() -> None:
    """Defer it in this process, from now on; does nothing if it is imported already.

    Call it before lightning_fabric, torchvision or timm are imported.
    """
    if PACKAGE not in sys.modules:
        compiler, utils = _Deferred(PACKAGE), _Deferred(UTILS)
        compiler.__dict__.update(OptimizedModule=_Compiled, disable=_disable, graph_break=_graph_break)
        utils.__dict__.update(is_compile_supported=lambda device: _real(UTILS).is_compile_supported(device))
        compiler.__path__ = []
        sys.modules |= {PACKAGE: compiler, UTILS: utils}
        sys.meta_path.insert(0, _PartFinder())


def runs_a_script() -> bool:
    """Whether this process runs one of vlkit's scripts, from a checkout or from the wheel."""
    package, file = Path(__file__).resolve().parents[1], getattr(sys.modules["__main__"], "__file__", None)
    homes = [home / name for home in (package.parent, package / "scripts") for name in ("tasks", "demos", "data_prep")]
    return file is not None and any(Path(file).resolve().is_relative_to(home) for home in homes)


class _Deferred(ModuleType):
    """Stands for a module of the compiler."""

    def __getattr__(self, name: str) -> Any:
        # Whoever walks through all modules asks for such marks, and must not import the compiler thereby.
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(_real(self.__name__), name)


class _PartFinder(MetaPathFinder):
    """Imports the compiler before a part of it."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if _loaded() or not fullname.startswith(f"{PACKAGE}."):
            return None
        package = _real(PACKAGE)
        part = sys.modules.get(fullname)
        if part is not None:  # the import system takes the module's own spec for the found one
            spec = ModuleSpec(fullname, _Imported(part))
            vars(part)["__spec__"] = spec  # not by assignment: modules of settings accept only their settings
            return spec
        return PathFinder.find_spec(fullname, package.__path__)


class _Imported(Loader):
    """Leaves a module that was imported meanwhile as it is."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self.spec


def _loaded() -> bool:
    return not isinstance(sys.modules.get(PACKAGE), _Deferred)


def _real(name: str) -> ModuleType:
    """Import a module of the compiler."""
    with _LOADING:
        for each in (UTILS, PACKAGE):
            if isinstance(sys.modules.get(each), _Deferred):
                del sys.modules[each]
    import torch._dynamo.utils

    return torch._dynamo.utils if name == UTILS else torch._dynamo


class _CompiledType(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return _loaded() and isinstance(instance, _real(PACKAGE).OptimizedModule)


class _Compiled(metaclass=_CompiledType):
    """Stands for the type of compiled modules, of which there are none before the compiler is imported."""


def _disable(fn: Any = None, *options: Any, **named: Any) -> Any:
    """Mark a function that is never to be compiled, as ``torch._dynamo.disable``."""
    if not inspect.isfunction(fn):
        return _real(PACKAGE).disable(fn, *options, **named)
    marked: list[Callable[..., Any]] = []

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not _loaded():
            return fn(*args, **kwargs)
        if not marked:
            marked.append(_real(PACKAGE).disable(fn, *options, **named))
        return marked[0](*args, **kwargs)

    return run


def _graph_break(msg: str = "") -> None:
    """Separate two compiled graphs, of which there are none before the compiler is imported."""
