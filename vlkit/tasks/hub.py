"""Adapters on the Hugging Face hub: ``vlkit.load("org/name")`` and ``vlkit.push_to_hub(folder, "org/name")``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCardData, snapshot_download

from vlkit.adapters.adapter_files import READABLE
from vlkit.cli.show import one_line
from vlkit.encoders.hub import hub_access
from vlkit.engine.checkpoint import load_adapter
from vlkit.errors import UserError
from vlkit.files import read_json
from vlkit.tasks.registry import TASKS

_REPOSITORY = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
CARD, METRICS = "README.md", "metrics.json"
SHARED_FILES = (*READABLE, METRICS, "config.yaml", "curves.png", CARD)
"""Files of a run folder that are published: the adapter and what documents it, never the resume state."""
SHARED_FOLDER = "peft"
"""LoRA in peft's own form, published too: ``PeftModel.from_pretrained(model, "org/name", subfolder="peft")``."""


def is_repository(name: str | Path) -> bool:
    """Whether ``name`` has the form ``org/name`` or ``org/name@revision``, and is not a folder here."""
    return isinstance(name, str) and _REPOSITORY.fullmatch(name) is not None and not Path(name).exists()


def download(name: str) -> Path:
    """The folder of an adapter on the hub, downloaded or from the local cache.

    Args:
        name: ``org/name`` or ``org/name@revision``.

    Raises:
        UserError: neither the hub nor the local cache has it.
    """
    match = _REPOSITORY.fullmatch(name)
    assert match is not None  # is_repository
    try:
        with hub_access():
            found = snapshot_download(match["name"], revision=match["revision"], allow_patterns=[*READABLE, CARD])
    except Exception as error:  # the library raises errors of many types
        raise UserError(
            f"{name}: is neither a folder nor an adapter that can be had from the hub ({one_line(error)})"
        ) from error
    return Path(found)


def push_to_hub(
    folder: str | Path, repository: str, private: bool = False, token: str | None = None, endpoint: str | None = None
) -> str:
    """Publish an adapter folder: its files, and its card with metadata that the hub can search.

    Args:
        folder: a run folder, or any folder with an adapter.
        repository: ``org/name``; created if it does not exist.
        private: whether a new repository is private.
        token: access token; default: the one that ``hf auth login`` stored.
        endpoint: URL of the hub; default: the public one, or HF_ENDPOINT.

    Returns:
        The URL of the commit.

    Raises:
        UserError: the folder holds no adapter, the name is not ``org/name``, or the hub refuses.
    """
    folder = Path(folder)
    config, _ = load_adapter(folder)
    if _REPOSITORY.fullmatch(repository) is None or "@" in repository:
        raise UserError(f"repository {repository!r}: must be org/name")
    files = [name for name in SHARED_FILES if name != CARD and (folder / name).is_file()]
    try:
        api = HfApi(endpoint=endpoint, token=token)
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[*files, f"{SHARED_FOLDER}/*"],
            commit_message="Adapter",
        )
        done = api.upload_file(
            path_or_fileobj=card(folder, config, repository).encode(),
            path_in_repo=CARD,
            repo_id=repository,
            commit_message="Model card",
        )
    except Exception as error:  # the library raises errors of many types
        raise UserError(f"{repository}: the hub refuses the adapter ({one_line(error)})") from error
    return str(done.commit_url)


def card(folder: Path, config: Mapping[str, Any], repository: str) -> str:
    """The model card of a folder, with YAML front matter: library, task, base, and metrics as a model index."""
    report = read_json(folder / METRICS) if (folder / METRICS).is_file() else {}
    task = TASKS[config["task"]]
    known = {key: value for key, value in report.get("after", {}).items() if isinstance(value, int | float)}
    results = [
        EvalResult(
            task_type=task.pipeline_tag,
            task_name=task.name.replace("_", " "),
            dataset_type=report.get("split", "test"),
            dataset_name=report.get("split", "test"),
            metric_type=key,
            metric_value=round(float(known[key]), 2),
        )
        for key in dict.fromkeys(task.scores.values())
        if key in known
    ]
    kinds = sorted({str(options.get("kind")) for options in config["adapters"].values()})
    about = ModelCardData(
        library_name="vlkit",
        pipeline_tag=task.pipeline_tag,
        tags=["vlkit", task.name, *kinds],
        base_model=_hub_bases(config) or None,
        model_name=repository.split("/")[-1],
        eval_results=results or None,
    )
    path = folder / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else f"# {task.name}: {', '.join(kinds)} adapter\n"
    use = f'```python\nimport vlkit\n\nmodel = vlkit.load("{repository}")\n```\n'
    return f"---\n{about.to_yaml()}\n---\n\n{text}\n## Use\n\n{use}"


def _hub_bases(config: Mapping[str, Any]) -> list[str]:
    """Names of the bases that lie on the hub themselves."""
    names = [str(identity.get("name", "")) for identity in config["base"].values()]
    found = [name.split(":", 1)[1] for name in names if name.startswith(("hf-hub:", "hf:"))]
    return list(dict.fromkeys(name for name in found if is_repository(name)))
