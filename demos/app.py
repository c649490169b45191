"""The web demo: saved adapters in a browser.

    python demos/app.py                                        # shipped adapters, demo images and clips
    python demos/app.py --model runs/mine runs/other --images IMAGES

It listens on this machine only; --host 0.0.0.0 opens it to the network, --auth name:password requires a login.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vlkit.cli.config import run
from vlkit.cli.show import Console
from vlkit.errors import UserError, needs

if TYPE_CHECKING:
    import gradio
    from tabs.common import Studio

    from vlkit.serving import Models

log = logging.getLogger(__name__)


@dataclass
class Config:
    """Try saved adapters in a web page."""

    model: list[Path] = field(default_factory=list)
    """Run or adapter folders, of any tasks; tasks without one use the adapter shipped in the package."""
    images: Path | None = None
    """Folder of images to search, with its sub-folders; default: the demo images."""
    videos: Path | None = None
    """Folder of videos to search; default: the demo clips."""
    port: int = 7860
    """Port to listen on."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 = every network of this machine."""
    auth: str | None = None
    """User name and password for visitors, as name:password."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device for the models; auto = CUDA if there is a device."""
    train: bool = False
    """Let visitors train adapters on their own images; on an open --host it needs --auth."""
    train_dir: Path | None = None
    """Folder for the adapters that visitors train, with their images; default: a folder in the cache."""

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise UserError(f"--port {self.port}: must be from 1 to 65535")
        if self.auth is not None and not all(self.auth.partition(":")):
            raise UserError("--auth: must be name:password")
        if self.train and not self.trusted:
            raise UserError(
                f"--train: on --host {self.host} anybody could train on this machine; add --auth name:password, or "
                "leave out --host"
            )
        if self.train_dir is not None and not self.train:
            raise UserError(f"--train_dir {self.train_dir}: has no effect without --train; add it")
        for flag in ("images", "videos"):
            folder = getattr(self, flag)
            if folder is not None and not folder.is_dir():
                raise UserError(f"--{flag} {folder}: no such folder")

    @property
    def trusted(self) -> bool:
        """Whether all visitors are: they sit at this machine, or have the password. They may add adapters."""
        return self.auth is not None or is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main(config: Config) -> None:
    for talkative in ("httpx", "faiss"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    with folder_for_files():
        serve(config)


@contextlib.contextmanager
def folder_for_files() -> Iterator[None]:
    """Uploads and displayed files are stored in a folder that is deleted when the demo ends; also sets up Gradio."""
    with tempfile.TemporaryDirectory(prefix="vlkit-demo-") as folder:
        os.environ |= {
            **{"GRADIO_TEMP_DIR": folder, "GRADIO_EXAMPLES_CACHE": f"{folder}/examples"},
            **{"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"},
            "MPLBACKEND": "agg",  # else the first request waits while Gradio tries Matplotlib's GUI backends
        }
        yield


def prepare(config: Config) -> Studio:
    """Load the models and set up the folders to search."""
    # Imported here: flags are checked first, the album is drawn meanwhile, and Gradio reads its environment variables.
    from tabs.common import Studio

    from vlkit.drawn.album import demo_album
    from vlkit.serving import Library, images_in, load_models, videos_in

    models = load_models(config.model, config.device)
    album = demo_album()
    library = Library(images_in(config.images or album.images), models.retrieval)
    watchers = models.by_task.get("video_retrieval", {})
    clips = Library(videos_in(config.videos or album.clips), watchers) if watchers else None
    own = {"own_images": config.images is not None, "own_videos": config.videos is not None}
    studio = Studio(models, library, clips, album, **own, about=about(models))
    if config.trusted:
        let_visitors_add(studio, config)
    return studio


def let_visitors_add(studio: Studio, config: Config) -> None:
    """Accept adapters that visitors upload and, with ``--train``, train."""
    from vlkit.files import cache_folder
    from vlkit.serving.added_adapters import AddedAdapters
    from vlkit.serving.training import Trainer

    libraries = {"retrieval": studio.library, "video_retrieval": studio.clips}
    adapters = AddedAdapters(
        studio.models,
        {task: library for task, library in libraries.items() if library is not None},
        arrived=lambda: studio.about.update(about(studio.models)),
    )
    studio.adapters = adapters
    if config.train:
        folder = config.train_dir or cache_folder().absolute() / "trained"
        studio.trainer = Trainer(folder, adapters.open, adapters.check_room, config.device)


def build(config: Config) -> tuple[Studio, gradio.Blocks]:
    """The models and the page with them."""
    from tabs.start import no_early_app, no_stub_files

    from vlkit.drawn.album import drawing_ahead

    with drawing_ahead():
        with needs("demo", "the web demo"), no_stub_files():
            import gradio  # noqa: F401
        studio = prepare(config)
    from tabs.page import build_page

    with no_early_app():
        return studio, build_page(studio)


def serve(config: Config) -> None:
    """Listen, index in the background, and shut down cleanly on Ctrl-C or SIGTERM."""
    from tabs.start import collection_paused

    with collection_paused():
        studio, page = build(config)
    libraries = [each for each in (studio.library, studio.clips) if each is not None]
    for each in libraries:
        each.start()
    try:
        open_port(page, config)
        # In short waits: Python runs signal handlers between two of them, and that of a signal that arrives just before
        # a wait for good would never run.
        while True:
            time.sleep(0.5)
    except KeyboardInterrupt:
        log.info("stopping")
    finally:
        if studio.trainer is not None:
            studio.trainer.close()
        for each in libraries:
            each.stop()
        page.close(verbose=False)


def open_port(page: gradio.Blocks, config: Config) -> None:
    """Start the web server in its own threads, never with a public link.

    Raises:
        UserError: the address or port is not available.
    """
    from tabs.page import THREADS
    from tabs.theme import CSS, theme

    from vlkit.serving.limits import ARCHIVE_BYTES, UPLOAD_BYTES

    try:
        page.launch(
            server_name=config.host,
            server_port=config.port,
            auth=tuple(config.auth.split(":", 1)) if config.auth else None,
            share=False,
            prevent_thread_lock=True,
            show_error=False,
            quiet=True,
            max_file_size=ARCHIVE_BYTES if config.train else UPLOAD_BYTES,
            footer_links=["api"],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            max_threads=THREADS,
            theme=theme(),
            css=CSS,
        )
    except OSError:
        raise UserError(f"--port {config.port}: cannot listen on {config.host}; choose another --port") from None
    Console().print(f"the demo is at http://{config.host}:{config.port}")


def about(models: Models) -> dict[str, Any]:
    """Bases, adapters by task, device and precision."""
    fabric = next(iter(models.retrieval.values())).embedder.fabric
    return {
        "bases": models.bases,
        "adapters": {task: list(found) for task, found in models.by_task.items()},
        "trained_parameters": models.trained,
        "base_parameters": base_parameters(models),
        "searchable": list(models.retrieval),
        "device": str(fabric.device),
        "precision": fabric._precision.precision,
    }


def base_parameters(models: Models) -> int:
    """Number of parameters of the first retrieval model's base."""
    from vlkit.encoders.stored_weights import count_values

    base = next(iter(models.retrieval.values())).embedder.base
    return count_values(base.image) + count_values(base.text)


if __name__ == "__main__":
    run(main, Config)
