"""How the page looks. Nothing of it is loaded from another machine: the fonts are those of the system."""

import gradio as gr

FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "Liberation Sans", "Arial", "sans-serif")
MONOSPACE = ("ui-monospace", "Consolas", "Liberation Mono", "monospace")
PLAIN = {
    "body_background_fill": "*neutral_50",
    "body_background_fill_dark": "*neutral_950",
    "block_title_text_color": "*body_text_color",
    "block_title_text_weight": "600",
    "block_title_background_fill": "transparent",
    "block_title_padding": "0",
    "block_shadow": "none",
    "block_border_width": "1px",
    "button_primary_shadow": "none",
    "button_secondary_shadow": "none",
    "button_secondary_border_color": "*border_color_primary",
    "button_border_width": "1px",
    "input_shadow": "none",
    "input_border_width": "1px",
    "input_border_color": "*border_color_primary",
    "checkbox_border_color": "*neutral_400",
    "checkbox_border_color_dark": "*neutral_500",
    "shadow_drop": "none",
}

CSS = """
.gradio-container {width: 100%; max-width: 1480px !important; margin: 0 auto !important}
.gradio-container > .main {width: 100%; padding: 14px 20px}
.gradio-container .html-container {padding: 0}
.column {gap: 12px}
h1 {font-size: 1.2rem; font-weight: 650}
h2 {font-size: .9rem; font-weight: 600}
#head p, .quiet {color: var(--body-text-color-subdued); font-size: .8rem}
#head p {overflow-wrap: anywhere}
#hint ol {margin: 2rem 0; padding-left: 1.4rem; line-height: 2; color: var(--body-text-color-subdued)}
#hint li {list-style: decimal}

/* The query */
#reference .icon-button-wrapper {display: none}
#reference-name {margin-top: -6px; font-size: .85rem; overflow-wrap: anywhere}
#go {align-items: stretch; flex-wrap: nowrap}
#go > .form {flex: 0 0 132px !important; border: 0; background: none}
#count {padding: 0; border: 0; background: none}
#count label {display: flex; align-items: center; gap: 8px}
#count label > span {margin: 0}
#count input {width: 66px; height: 40px}
#go #search {height: 42px}

/* Galleries: a caption stands below its picture, and a row has as many cells as fit */
.cells, .cells .grid-wrap {border: 0; padding: 2px; background: none; height: auto; min-height: 0;
  max-height: none; overflow: visible !important}
.cells .grid-container {grid-template: none / repeat(auto-fill, minmax(108px, 1fr)); grid-auto-rows: auto; gap: 8px}
.cells .thumbnail-item {aspect-ratio: auto; height: 100%; background: var(--block-background-fill); overflow: hidden}
.cells .thumbnail-item:hover {filter: none}
#results .selected, #history .selected {box-shadow: 0 0 0 2px var(--color-accent)}
.cells .thumbnail-item > img {aspect-ratio: 1; width: 100%; height: auto; padding: 3px}
.cells .caption-label {position: static; max-width: 100%; border: 0; background: none; padding: 0 6px 5px;
  font-size: .72rem; line-height: 1.35; white-space: pre-line; overflow-wrap: anywhere; opacity: 1 !important;
  color: var(--body-text-color)}
#index .grid-container {grid-template-columns: repeat(auto-fill, minmax(82px, 1fr)); gap: 6px}
#index .thumbnail-item.selected:not(:hover) {--ring-color: transparent; border-color: var(--border-color-primary)}
#index .caption-label {white-space: nowrap; direction: rtl; text-align: center; padding: 0 3px 3px; font-size: .66rem}
#steps {align-items: center; flex-wrap: nowrap}
#line {text-align: center; white-space: nowrap; font-size: .8rem}

/* The turns: a line of small cards */
#history .grid-container {display: flex; overflow-x: auto; gap: 8px; padding: 2px}
#history .gallery-item {flex: 0 0 230px}
#history .thumbnail-item {display: flex; align-items: center; height: 62px}
#history .thumbnail-item > img {flex: 0 0 62px; width: 62px; height: 62px}
#history .caption-label {display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3;
  padding: 0 8px 0 4px}

/* The answer */
#turns-head, #switches {align-items: center; gap: 14px; min-height: 30px}
#turns-head > *, #switches > * {flex: 0 0 auto !important; width: auto; min-width: 0 !important}
#turns-head > :first-child, #switches > :first-child {flex: 1 1 auto !important}
#switches .block {border: 0; background: none}
#text {font-size: .85rem; overflow-wrap: anywhere}
"""


def theme() -> gr.themes.Base:
    """Gradio's soft theme, with less on it."""
    soft = gr.themes.Soft(primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=MONOSPACE, radius_size="md")
    return soft.set(**PLAIN)
