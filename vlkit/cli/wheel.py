"""Put the scripts into the wheel: ``tasks/``, ``demos/`` and ``data_prep/`` become ``vlkit/scripts/`` in it.

In a checkout the scripts stay where they are read and run from; an editable installation uses them there. Setuptools
loads this module by its path when it builds vlkit (``tool.setuptools.cmdclass``), so it imports nothing else of vlkit.
"""

from __future__ import annotations

from pathlib import Path

from setuptools.command.build_py import build_py

FOLDERS = ("tasks", "demos", "data_prep")
"""Folders of scripts, beside the package in a checkout."""


class BuildWithScripts(build_py):
    """``build_py`` that also copies the scripts, and names them for the source distribution."""

    def run(self) -> None:
        """Build the package, then copy the scripts into it."""
        super().run()
        if not self.editable_mode:
            for source, target in self._copies().items():
                target.parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(str(source), str(target))

    def get_source_files(self) -> list[str]:
        """The files that belong into a source distribution."""
        return [*super().get_source_files(), *map(str, self._copies())]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """The files that an installation consists of."""
        copies = [] if self.editable_mode else map(str, self._copies().values())
        return [*super().get_outputs(include_bytecode), *copies]

    def _copies(self) -> dict[Path, Path]:
        """Script -> its place in the built package."""
        scripts = Path(self.build_lib, "vlkit", "scripts")
        return {file: scripts / file for folder in FOLDERS for file in sorted(Path(folder).rglob("*.py"))}
