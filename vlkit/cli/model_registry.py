"""Put off the import of transformers' registry of models until something asks for it.

When open_clip is imported it names three automatic classes, for text towers of transformers. That imports the package
of all models, which reads the source of each and costs every command a tenth of its start. Here open_clip gets
stand-ins that import the real class when they are used.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

USER = "open_clip.hf_model"
NAMES = ("AutoModel", "AutoConfig", "AutoTokenizer")


def defer_model_registry() -> None:
    """Defer it in this process, from now on; does nothing if open_clip is imported already."""
    if USER not in sys.modules:
        sys.meta_path.insert(0, _UserFinder())


class _UserFinder(MetaPathFinder):
    """Finds open_clip's module of such towers, once."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if fullname != USER:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _WithStandIns(spec.loader)
        return spec


class _WithStandIns(Loader):
    """Executes a module while transformers answers with stand-ins."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        import transformers

        names = transformers.__dict__
        own = [name for name in NAMES if name not in names]
        names.update({name: _Automatic(name, (), {}) for name in own})
        try:
            self.loader.exec_module(module)
        finally:
            for name in own:
                del names[name]


class _Automatic(type):
    """Type of the stand-ins: what is asked of one is asked of the class in transformers."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")
        import transformers

        return getattr(getattr(transformers, cls.__name__), name)
