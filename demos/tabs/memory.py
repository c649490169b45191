"""Memory: how much SHERL, LoRA and full fine-tuning need for a base and a batch size, and whether it fits on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import gradio as gr

from tabs.common import Studio, as_html, endpoint, lead, on_example, on_page
from vlkit.errors import UserError
from vlkit.serving import check_count
from vlkit.serving.memory import BASES, METHODS, Need, memory_needs

GIB, MOST_PAIRS = 2**30, 1024
GPUS = [4, 6, 8, 12, 16, 24, 32, 48, 80, 141]
PARTS = ["parameters and optimizer", "saved activations", "everything else at the peak"]


def build(studio: Studio, tab: gr.Tab) -> None:
    """Lay out the tab; call it within ``tab``, which shows the prediction for the first base when it is opened."""
    lead("Memory of one training step, predicted without loading the model (contrastive loss, both towers, float32).")
    with gr.Row():
        base = gr.Dropdown(list(BASES), value=BASES[0], label="Base", elem_id="memory-base")
        size = gr.Slider(1, MOST_PAIRS, value=64, step=1, label="Pairs per step", elem_id="memory-size")
        gpu = gr.Dropdown([(f"{n} GB", n) for n in GPUS], value=8, label="My GPU", elem_id="memory-gpu")
    button = gr.Button("Predict", variant="primary", elem_id="memory-button")
    result = gr.HTML(elem_id="memory-result")
    examples = gr.Examples(
        [["tiny", 128, 4], ["ViT-B-32", 128, 8], ["ViT-L-14", 32, 24]],
        [base, size, gpu],
        api_visibility="private",
        label="Try",
    )

    def predicted(base: str, size: float, gpu: float) -> Iterator[Need]:
        if base not in BASES:
            raise UserError(f"The base must be one of {', '.join(BASES)}; tasks/memory.py --estimate accepts any.")
        gigabytes = check_count(gpu, "GPU memory in GB", 1024)
        return memory_needs(base, check_count(size, "number of pairs", MOST_PAIRS), gigabytes * GIB)

    def show(base: str, size: float, gpu: float) -> Iterator[str]:
        needs: list[Need] = []
        yield f'<p role="status">Predicting {", ".join(METHODS)}: up to half a minute for a new base …</p>'
        for need in predicted(base, size, gpu):
            needs.append(need)
            yield chart(needs, int(gpu), waiting=list(METHODS)[len(needs) :])

    def memory(base: str, pairs: float, gpu_gb: float) -> list[dict[str, Any]]:
        """What each method needs in bytes, the largest batch that fits, and whether this one does."""
        return [asdict(need) for need in predicted(base, pairs, gpu_gb)]

    # One prediction at a time, so that other visitors can search meanwhile.
    limits = {"concurrency_limit": 1, "concurrency_id": "memory"}
    on_page([button.click, tab.select], show, [base, size, gpu], [result], **limits)
    on_example(examples, show, [base, size, gpu], [result], **limits)
    endpoint("memory", memory, [base, size, gpu], **limits)


def chart(needs: list[Need], gpu: int, waiting: list[str]) -> str:
    """HTML of one stacked bar per method, the GPU's memory as a line, and the answer in words."""
    widest = max(*(need.total for need in needs), gpu * GIB) * 1.02
    fitting = [need.method for need in needs if need.fits]
    answer = f"On a GPU of {gpu} GB " + (f"this fits: {', '.join(fitting)}." if fitting else "none of these fits.")
    items = []
    for need in needs:
        parts = (need.parameters, need.kept, max(0, need.total - need.parameters - need.kept))
        fills = "".join(
            f'<span class="fill part-{i}" style="width:{100 * part / widest:.2f}%"></span>'
            for i, part in enumerate(parts)
        )
        verdict = f"fits, up to about {_round(need.largest_batch)} pairs" if need.fits else "does not fit"
        items.append(
            f'<li data-method="{need.method}"><span class="name"><b>{need.method}</b>: {verdict}</span>'
            f'<span class="value">{_size(need.total)}</span><span class="track" aria-hidden="true">{fills}'
            f'<span class="limit" style="left:{100 * gpu * GIB / widest:.2f}%"></span></span></li>'
        )
    more = f'<p class="lead">Still predicting: {as_html(", ".join(waiting))} …</p>' if waiting else ""
    key = "".join(f'<span><span class="swatch part-{i}"></span>{name}</span>' for i, name in enumerate(PARTS))
    return (
        f'<p role="status"><b>{answer}</b></p><ol class="bars stack" aria-label="Memory of a training step">'
        f'{"".join(items)}</ol><div class="key">{key}<span>the line: {gpu} GB</span></div>{more}'
    )


def _size(count: int) -> str:
    return f"{count / GIB:.2f} GB" if count >= GIB // 10 else f"{count / 2**20:.0f} MB"


def _round(count: int | None) -> str:
    """Round to two digits, the precision of the prediction."""
    return f"{float(f'{count or 0:.2g}'):,.0f}"
