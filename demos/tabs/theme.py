"""The demo's theme. It uses system fonts and no external files, so it works offline."""

from __future__ import annotations

import gradio as gr

SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

CSS = """
.gradio-container { max-width: 1120px !important; width: 100% !important; margin: 0 auto !important; }
.gallery-item, .gallery-item * { white-space: normal !important; text-align: left; }
#title h1 { font-size: 1.7rem; font-weight: 650; margin: 0.4rem 0 0; letter-spacing: -0.01em; }
#title p { color: var(--body-text-color-subdued); margin: 0.1rem 0 0; }
#about { font-size: 0.85rem; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.lead p { color: var(--body-text-color-subdued); margin: 0; }
.said { min-height: 1.4rem; }
.bars { list-style: none; margin: 0; padding: 0; display: grid; gap: 0.55rem; }
.bars li { display: grid; grid-template-columns: minmax(5rem, 1fr) minmax(3.6rem, auto); gap: 0 0.8rem;
  align-items: baseline; }
.bars .name { overflow-wrap: anywhere; }
.bars .value { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums;
  color: var(--body-text-color-subdued); }
.bars .track { grid-column: 1 / -1; height: 0.6rem; border-radius: 0.3rem; background: var(--border-color-primary);
  overflow: hidden; display: flex; position: relative; }
.bars .fill { background: var(--primary-500); height: 100%; border-radius: 0.3rem; }
.bars .swatch, .key .swatch, .boxes .swatch { display: inline-block; width: 0.8rem; height: 0.8rem;
  border-radius: 0.2rem; margin-right: 0.45rem; }
.stack .track { height: 1.1rem; }
.stack .fill { border-radius: 0; }
.stack .limit { position: absolute; top: 0; bottom: 0; width: 2px; background: var(--body-text-color); }
.stack li { grid-template-columns: minmax(5rem, 1fr) auto; }
.key { display: flex; flex-wrap: wrap; gap: 0.3rem 1.1rem; margin-top: 0.8rem; font-size: 0.85rem;
  color: var(--body-text-color-subdued); }
.boxes { border: 0 !important; width: 100%; border-collapse: collapse;
  font-variant-numeric: tabular-nums; font-size: 0.9rem; }
.boxes caption { text-align: left; font-weight: 600; padding-bottom: 0.3rem; }
.boxes thead, .boxes tbody, .boxes tr { border: 0 !important; }
.boxes th, .boxes td { text-align: left; padding: 0.3rem 0.5rem 0.3rem 0; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important; }
.boxes .number, .boxes [scope=row] { white-space: nowrap; }
.block > .table-wrap td { text-align: left; padding: 0.3rem 0.6rem; }
.block > .table-wrap td:first-child { width: 5rem; }
.block > .table-wrap td .container { width: 3.6rem; height: 3.6rem; }
#ground-result .image-container { padding-top: 2.2rem; }
.part-0 { background: var(--primary-700) !important; } .part-1 { background: var(--primary-400) !important; }
.part-2 { background: var(--neutral-400) !important; }
#train-meter h3, #train-meter p, #train-status .progress ~ p { margin: 0.8rem 0 0.3rem; }
.axis { display: flex; justify-content: space-between; font-size: 0.8rem; color: var(--body-text-color-subdued); }
.prose pre { white-space: pre-wrap; overflow-wrap: anywhere; overflow: visible; }
.prose pre code { white-space: inherit; }
.save { align-self: flex-start; width: auto !important; }
.progress { height: 0.45rem; border-radius: 0.25rem; background: var(--border-color-primary); overflow: hidden; }
.progress div { height: 100%; background: var(--primary-500); }
.shots .grid-wrap, .library .grid-wrap { max-height: none !important; min-height: 0 !important;
  padding-top: 2.2rem !important; }
.shots .thumbnail-lg, .library .thumbnail-lg { display: flex; flex-direction: column; aspect-ratio: auto;
  height: auto; }
.shots .thumbnail-lg img, .library .thumbnail-lg img { aspect-ratio: 1; height: auto; }
.shots .caption-label, .library .caption-label { position: static; width: 100%; max-width: none; border: 0;
  border-radius: 0; font-size: 0.75rem; text-align: left; }
[role=tab][aria-selected=true] { color: var(--primary-700) !important; }
.dark [role=tab][aria-selected=true] { color: var(--primary-400) !important; }
#search-button, #video-button, #compare-button, #train-add { align-self: end; }
.status { font-size: 0.85rem; } .status p { margin: 0; color: var(--body-text-color-subdued); }
button:focus-visible, input:focus-visible, textarea:focus-visible, [role=tab]:focus-visible {
  outline: 2px solid var(--primary-500) !important; outline-offset: 2px; }
input[type=range]::-webkit-slider-thumb { border: 2px solid var(--primary-600) !important; }
input[type=range]::-moz-range-thumb { border: 2px solid var(--primary-600) !important; }
.wrap:has(> .error) { display: none !important; }
footer .show-api { color: var(--body-text-color-subdued) !important; opacity: 1; } footer .divider { display: none; }
@media (max-width: 640px) {
  .library .grid-container, .shots .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important; }
  .gradio-container .app { padding: 0.8rem !important; }
  .gradio-container [role=tab], .tab-container button { font-size: 0.8rem; padding: 0 0.4rem; }
  #title h1 { font-size: 1.35rem; }
  #search-button, #video-button, #compare-button { align-self: stretch; flex: 1 1 100% !important; }
  .block > .gallery { flex-wrap: nowrap; overflow-x: auto; padding-bottom: 0.4rem; }
  .block > .gallery > .gallery-item { flex: 0 0 auto; max-width: 16rem; }
  .block > .table-wrap .tr-body:nth-child(n+4), .block > .table-wrap .tr-head { display: none; }
  .boxes { font-size: 0.8rem; }
  .boxes th, .boxes td { padding-right: 0.3rem; }
}
"""


def theme() -> gr.themes.Base:
    """Slate and teal, one accent, little shadow."""
    return gr.themes.Default(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate", font=SANS, font_mono=MONO, radius_size="md"
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_shadow="none",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_text_color="white",
        checkbox_background_color_selected="*primary_700",
        checkbox_border_color_selected="*primary_700",
    )
