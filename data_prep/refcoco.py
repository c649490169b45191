"""RefCOCO, RefCOCO+ or RefCOCOg -> a prepared dataset for grounding."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.data.sources import refcoco
from vlkit.data.sources.prepare import prepare
from vlkit.errors import UserError


@dataclass
class Config:
    """Prepare RefCOCO, RefCOCO+ or RefCOCOg for grounding."""

    images: Path
    """Folder that holds train2014/ (or the images themselves)."""
    output: Path
    """Folder to write the prepared dataset to."""
    refs: Path | None = None
    """refs(unc).p, refs(umd).p or refs(google).p (or the same list as JSON), or the folder that holds it."""
    instances: Path | None = None
    """instances.json; default: beside the refs file."""
    split_by: str | None = None
    """Author of the split, if a folder holds several: unc, umd or google."""
    mdetr: list[Path] = field(default_factory=list)
    """MDETR's finetune_refcoco*_*.json, one file per split; instead of --refs."""
    partial: bool = False
    """Skip expressions whose image is missing (listed in missing.txt) or whose box is impossible (listed in wrong.txt),
    instead of stopping."""


def main(config: Config) -> None:
    if (config.refs is None) == (not config.mdetr):
        raise UserError("give either --refs (with --instances) or --mdetr FILE...")
    with Console(stderr=True).status(f"reading {config.refs or 'expressions'}"):
        if config.mdetr:
            source = refcoco.read_mdetr(config.mdetr)
        else:
            source = refcoco.read_refs(config.refs, config.instances, config.split_by)
        prepared = prepare(source, config.output, config.images, partial=config.partial)
    print(prepared.summary())


if __name__ == "__main__":
    run(main, Config)
