"""Memory: what fits on a GPU, and what one training step of SHERL, LoRA and full fine-tuning needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import gradio as gr
import open_clip

from tabs.asking import on_page
from tabs.common import Studio, as_html, endpoint, lead
from vlkit.encoders.stored_weights import WeightFormat
from vlkit.serving import check_count
from vlkit.serving.memory import BASES, Need, is_known, memory_needs
from vlkit.serving.memory_table import FORMATS, KNOWN, METHODS, POINTS, methods_for

GIB, MOST_PAIRS = 2**30, 1024
GPUS = [4, 6, 8, 12, 16, 24, 32, 48, 80, 141]
PARTS = ["parameters and optimizer", "saved activations", "everything else at the peak"]
FIRST: tuple[str, int, int, WeightFormat] = (KNOWN[0], 64, 8, "fp32")
"""Base, pairs per step, GPU in GB and weight format that the tab opens with."""


def build(studio: Studio) -> None:
    """Lay out the tab; all it shows at first comes from the shipped table."""
    lead("What fits on my GPU? Predicted for contrastive training of both towers, with activations in float32.")
    others = sorted(set(open_clip.list_models()) - set(BASES))
    with gr.Row():
        gpu = gr.Dropdown([(f"{n} GB", n) for n in GPUS], value=FIRST[2], label="My GPU", elem_id="memory-gpu")
        weights = gr.Radio(list(FORMATS), value=FIRST[3], label="Stored weights of the base", elem_id="memory-weights")
    fits = gr.HTML(largest(FIRST[2], FIRST[3]), elem_id="memory-fits")
    with gr.Row():
        base = gr.Dropdown([*BASES, *others], value=FIRST[0], label="Base", elem_id="memory-base")
        size = gr.Slider(
            POINTS[0], MOST_PAIRS, value=FIRST[1], step=POINTS[0], label="Pairs per step", elem_id="memory-size"
        )
    button = gr.Button("Predict", variant="primary", elem_id="memory-button", visible=False)
    result = gr.HTML(known_chart(*FIRST), elem_id="memory-result")

    def predicted(base: str, size: float, gpu: float, weights: WeightFormat) -> Iterator[Need]:
        gigabytes = check_count(gpu, "GPU memory in GB", 1024)
        pairs = check_count(size, "number of pairs", MOST_PAIRS)
        return memory_needs(base, pairs, gigabytes * GIB, weights)

    def instant(base: str, size: float, gpu: float, weights: WeightFormat) -> tuple[str, str, Any]:
        """What the shipped table says; for other bases, how to get an answer."""
        known = is_known(base, weights)
        chart = known_chart(base, int(size), int(gpu), weights) if known else unknown(base, weights)
        return largest(int(gpu), weights), chart, gr.Button(visible=not known)

    def live(base: str, size: float, gpu: float, weights: WeightFormat) -> Iterator[str]:
        needs: list[Need] = []
        methods = methods_for(weights)
        yield f'<p role="status">Predicting {", ".join(methods)}: up to half a minute …</p>'
        for need in predicted(base, size, gpu, weights):
            needs.append(need)
            yield chart(needs, int(gpu), waiting=methods[len(needs) :])

    def memory(base: str, pairs: float, gpu_gb: float, base_weights: WeightFormat = "fp32") -> list[dict[str, Any]]:
        """What each method needs in bytes, the largest batch that fits, and whether this one does."""
        return [asdict(need) for need in predicted(base, pairs, gpu_gb, base_weights)]

    inputs = [base, size, gpu, weights]
    on_page(
        [base.input, size.release, gpu.input, weights.input],
        instant,
        inputs,
        [fits, result, button],
        show_progress="hidden",
    )
    # One prediction at a time, so that other visitors can search meanwhile.
    limits = {"concurrency_limit": 1, "concurrency_id": "memory"}
    on_page([button.click], live, inputs, [result], **limits)
    endpoint("memory", memory, inputs, **limits)


def largest(gpu: int, weights: WeightFormat) -> str:
    """HTML of the answer to "what fits": the largest batch of each base in the table with each method."""
    methods = methods_for(weights)
    head = "".join(f'<th scope="col">{method}</th>' for method in METHODS)
    rows = []
    for base in KNOWN:
        if not is_known(base, weights):
            continue
        needs = {n.method: n for n in memory_needs(base, POINTS[0], gpu * GIB, weights)}
        cells = "".join(f'<td class="number">{_cell(needs.get(method))}</td>' for method in METHODS)
        rows.append(f'<tr data-base="{base}"><th scope="row">{base}</th>{cells}</tr>')
    left_out = [method for method in METHODS if method not in methods]
    note = " Full fine-tuning trains the base itself, which needs fp32." if left_out else ""
    return (
        f'<table class="boxes"><caption>Largest batch on a GPU of {gpu} GB, base stored in {weights}</caption><thead>'
        f'<tr><th scope="col">Base</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f'<p class="lead">Pairs of image and text, rounded. Other bases: choose one below.{note}</p>'
    )


def _cell(need: Need | None) -> str:
    if need is None:
        return "not possible"
    return f"{_round(need.largest_batch)} pairs" if need.largest_batch else "does not fit"


def known_chart(base: str, size: int, gpu: int, weights: WeightFormat) -> str:
    """The chart of a base in the shipped table."""
    return chart(list(memory_needs(base, size, gpu * GIB, weights)), gpu, [])


def unknown(base: str, weights: WeightFormat) -> str:
    """HTML in place of a chart that takes seconds to compute."""
    return f'<p role="status">{as_html(base)} with {weights} weights: click Predict (up to half a minute).</p>'


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
