"""The same jobs by vlkit and by the libraries that people use today, side by side: time, memory, recall.

    python benchmarks/peers.py train --json peers.json --chart peers.png       # fine-tune a CLIP on image-text pairs
    python benchmarks/peers.py search --json peers.json                        # index vectors and search them

Each peer is installed by name into an environment of its own, made on first use, and runs its own training loop or
index builder in a process of its own. The peers take turns, ``--rounds`` times; a row is the median of its rounds. Base
and images are random or drawn: bytes and seconds do not depend on their values. Peers do different things and the table
says what each trains; the rows of vlkit show what the same method costs there.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from vlkit.cli.config import positional, run
from vlkit.cli.show import Console
from vlkit.data.manifest import write_dataset
from vlkit.data.shards import Shard
from vlkit.encoders.tokenizer_files import as_transformers
from vlkit.engine.hardware import machine
from vlkit.engine.report import versions
from vlkit.errors import UserError
from vlkit.extract import Parts
from vlkit.extract.parts import Row
from vlkit.files import cache_folder, read_json, whole_file, write_json
from vlkit.tasks.retrieval.task import TASK

JOBS = Path(__file__).parent / "peer_jobs"
MIB = 2**20


@dataclass(frozen=True)
class Peer:
    """A library, what is installed for it, and its script.

    Attributes:
        packages: names for pip; none = this environment.
        script: file of ``peer_jobs``.
        methods: what it trains or builds; a row each.
        alone: its dependencies exclude vlkit's, so that nothing of this environment is shared with it.
        probe: module whose version is recorded.
    """

    packages: tuple[str, ...]
    script: str
    methods: tuple[str, ...]
    alone: bool = False
    probe: str = ""


TRAIN = {
    "vlkit": Peer((), "train_vlkit.py", ("SHERL", "SHERL, int8 taps, chunks of 8", "linear", "LoRA", "full")),
    "sentence-transformers": Peer(
        ("sentence-transformers[train]>=5.4", "peft", "torchvision"),
        "train_sentence_transformers.py",
        ("LoRA", "full"),
        probe="sentence-transformers",
    ),
    "open_clip": Peer(
        ("open_clip_torch",), "train_open_clip.py", ("locked image tower", "full"), probe="open_clip_torch"
    ),
}
SEARCH = {
    "vlkit": Peer((), "search_vlkit.py", ("auto", "IVF{lists},RaBitQ")),
    "autofaiss": Peer(("autofaiss", "pyarrow<20"), "search_autofaiss.py", ("auto",), alone=True, probe="autofaiss"),
}


@dataclass
class Config:
    """Run the same job with each peer."""

    what: Literal["train", "search"] = positional()
    """The job."""
    json: Path = field(kw_only=True)
    """Output JSON file; jobs that it already holds are kept."""
    peers: list[str] = field(default_factory=list)
    """Peers that run; default: all."""
    size: Literal["ViT-B-32", "tiny"] = "ViT-B-32"
    """Sizes of the CLIP that is trained: those of CLIP ViT-B/32, or a tiny one for a trial."""
    batch_size: int = 16
    """Pairs per step."""
    steps: int = 4
    """Timed steps per round."""
    count: int = 200_000
    """Vectors that are searched."""
    dim: int = 512
    """Width of the vectors."""
    rounds: int = 3
    """Turns of each peer."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the training jobs."""
    environments: Path | None = None
    """Folder of the peers' environments; default: in vlkit's cache."""
    chart: Path | None = None
    """Also draw memory against time of the training job to this PNG file."""


def main(config: Config) -> None:
    console, peers = Console(stderr=True), TRAIN if config.what == "train" else SEARCH
    if unknown := sorted(set(config.peers) - set(peers)):
        raise UserError(f"--peers {unknown[0]}: not in the job {config.what}; choose from {', '.join(peers)}")
    names = config.peers or list(peers)
    home = cache_folder().absolute() / "peers"
    pythons = {name: environment(config.environments or home, name, peers[name], console) for name in names}
    data = training_data(config, home) if config.what == "train" else vectors(config, home)
    rounds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for turn in range(config.rounds):
        for name in names:
            for method in peers[name].methods:
                console.print(f"round {turn + 1}/{config.rounds}: {name}, {method}", highlight=False)
                measure = train if config.what == "train" else search
                rounds.setdefault((name, method), []).append(measure(config, pythons[name], peers[name], method, data))
    rows = [{"peer": peer, "method": method, **median(found)} for (peer, method), found in rounds.items()]
    table = read_json(config.json) if config.json.exists() else {}
    settings = ("size", "batch_size", "device") if config.what == "train" else ("count", "dim")
    about = {"rounds": config.rounds, **{key: getattr(config, key) for key in settings}}
    libraries = versions() | {
        p.probe: version_of(pythons[n], p.probe) for n, p in peers.items() if p.probe and n in names
    }
    table[config.what] = {"machine": machine(torch.device(config.device)), "versions": libraries, **about, "rows": rows}
    write_json(config.json, table)
    if config.chart and config.what == "train":
        draw(config.chart, rows)
    print(markdown(rows))


def environment(folder: Path, name: str, peer: Peer, console: Console) -> Path:
    """The Python of a peer's environment; what this one has already is shared unless the peer excludes it."""
    if not peer.packages:
        return Path(sys.executable)
    place = folder.absolute() / name
    python, done = place / "bin" / "python", place / "installed"
    if not done.exists():
        console.print(f"installing {' '.join(peer.packages)} in {place}", highlight=False)
        venv.create(place, clear=True, with_pip=True)
        if not peer.alone:
            sites = [path for path in sys.path if path.endswith("site-packages")]
            lines = "".join(f"import site; site.addsitedir({site!r})\n" for site in sites)
            (next(place.glob("lib/python*/site-packages")) / "shared.pth").write_text(lines, encoding="utf-8")
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.packages]
        environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        if subprocess.run(command, env=environ).returncode:
            raise UserError(f"{name}: pip could not install {' '.join(peer.packages)}; see its message above")
        done.touch()
    return python


def version_of(python: Path, package: str) -> str:
    code = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
    return subprocess.run([python, "-c", code, package], check=True, capture_output=True, text=True).stdout.strip()


def training_data(config: Config, home: Path) -> Path:
    """A CLIP with random weights, and photographs' sizes of drawn scenes with their captions."""
    place = home / f"train-{config.size}"
    if (place / "data" / "dataset.json").exists():
        return place
    tokenizer = as_transformers(SimpleTokenizer())
    sizes: Any = CLIPConfig()
    if config.size == "tiny":
        small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
        sizes = CLIPConfig(vision_config={**small, "image_size": 64}, text_config=small, projection_dim=32)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(sizes.text_config, key, getattr(tokenizer, key))
    torch.manual_seed(0)
    CLIPModel(sizes).save_pretrained(place / "base")
    side = sizes.vision_config.image_size
    tokenizer.model_max_length = sizes.text_config.max_position_embeddings
    tokenizer.save_pretrained(place / "base")
    CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        place / "base"
    )
    drawn, records = TASK.dataset(None), []
    (place / "data" / "images").mkdir(parents=True, exist_ok=True)
    for record in list(drawn.records("train"))[:256]:
        name = f"{len(records):05d}.jpg"
        with Image.open(drawn.path(record["image"])) as image:
            image.convert("RGB").resize((640, 480)).save(place / "data" / "images" / name, quality=90)
        records.append({"id": name, "image": name, "texts": record["texts"]})
    source = "drawn scenes as JPEG files of 640 x 480"
    splits = {"train": records}
    write_dataset(place / "data", name="pairs", task="retrieval", splits=splits, media_root="images", source=source)
    return place


def vectors(config: Config, home: Path) -> Path:
    """Clustered unit vectors as each peer reads them, queries, and the queries' true neighbours."""
    place = home / f"search-{config.count}-{config.dim}"
    if (place / "truth.npy").exists():
        return place
    (place / "vectors").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    centres = random.normal(size=(max(16, config.count // 500), config.dim)).astype(np.float32)

    def draw_vectors(count: int) -> np.ndarray:
        drawn = centres[random.integers(len(centres), size=count)]
        drawn = drawn + 0.8 * random.normal(size=drawn.shape).astype(np.float32)
        return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)

    queries = draw_vectors(200)
    best, truth = np.full((200, 0), 0.0, np.float32), np.zeros((200, 0), np.int64)
    parts = Parts.open(place / "parts", "vectors", config.dim)
    for start in range(0, config.count, 20_000):
        some = draw_vectors(min(20_000, config.count - start))
        np.save(place / "vectors" / f"{start:09d}.npy", some)
        parts.write(Shard(f"{start:09d}", Path("none")), [Row(f"{start + n}") for n in range(len(some))], some)
        rows = np.broadcast_to(np.arange(start, start + len(some)), (200, len(some)))
        best, truth = np.concatenate([best, queries @ some.T], 1), np.concatenate([truth, rows], 1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :10]
        best, truth = (np.take_along_axis(array, order, axis=1) for array in (best, truth))
    np.save(place / "queries.npy", queries)
    with whole_file(place / "truth.npy") as path, path.open("wb") as file:  # last: its presence means completeness
        np.save(file, truth)
    return place


def train(config: Config, python: Path, peer: Peer, method: str, data: Path) -> dict[str, Any]:
    words = ["--base", data / "base", "--data", data / "data", "--method", method, "--device", config.device]
    return call(python, peer.script, data, [*words, "--batch_size", config.batch_size, "--steps", config.steps])


def search(config: Config, python: Path, peer: Peer, method: str, data: Path) -> dict[str, Any]:
    lists = 2 ** round(float(np.log2(4 * config.count**0.5)))
    index, factory = data / f"index-{peer.script}-{method}", {"FACTORY": method.format(lists=lists)}
    row: dict[str, Any] = {}
    for what in ("build", "search"):
        row |= call(python, peer.script, data, ["--what", what, "--data", data, "--index", index], factory)
    return row


def call(
    python: Path, script: str, folder: Path, words: list[Any], more: dict[str, str] | None = None
) -> dict[str, Any]:
    """Run a peer's script and read its figures."""
    output = folder / "figures.json"
    output.unlink(missing_ok=True)
    command = [str(word) for word in (python, JOBS / script, *words, "--output", output)]
    environ = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **(more or {})}
    ended = subprocess.run(command, capture_output=True, text=True, env=environ)
    if ended.returncode or not output.exists():
        raise UserError(f"{script} failed:\n{ended.stderr[-3000:]}")
    return json.loads(output.read_text(encoding="utf-8"))


def median(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table; bytes in MiB."""
    keys = [key for key in rows[0] if key not in ("peer", "method")]
    heads = [key.replace("_bytes", " MiB").replace("_", " ") for key in keys]
    lines = ["| " + " | ".join(["peer", "method", *heads]) + " |", "|---|---|" + "---:|" * len(keys)]
    for row in rows:
        cells = [number(key, row[key]) for key in keys]
        lines.append("| " + " | ".join([row["peer"], row["method"], *cells]) + " |")
    return "\n".join(lines)


def number(key: str, value: float) -> str:
    if key.endswith("_bytes"):
        return f"{value / MIB:,.1f}"
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}"


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Memory against time of a step, a mark per row."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="seconds per step", ylabel="MiB beyond the weights", yscale="log")
    for peer, mark in zip(dict.fromkeys(row["peer"] for row in rows), "osD^", strict=False):
        own = [row for row in rows if row["peer"] == peer]
        axes.scatter([r["step_s"] for r in own], [r["peak_bytes"] / MIB for r in own], marker=mark, label=peer)
        for row in own:
            place = (row["step_s"], row["peak_bytes"] / MIB)
            axes.annotate(row["method"], place, xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.margins(x=0.25)
    axes.legend()
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=120)


if __name__ == "__main__":
    run(main, Config)
