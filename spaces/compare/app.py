"""Original and quantized model side by side on the same picture and question: the Space of one publication.

`python app.py` runs it; publication.json beside it names the models.
"""

import signal
import sys

import fidelity
import gradio as gr
from compare_tab import compare_tab
from comparison import Comparison
from expert_numbers import Experts
from expert_tab import bit_map, expert_tab, sensitivities
from markup import escaped, is_https, linked
from publication import HERE, Publication
from tensors import Tensors
from votes import open_votes

CSS = (HERE / "page.css").read_text(encoding="utf-8")

THEME = gr.themes.Default(
    primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(body_text_color_subdued="*neutral_500", block_info_text_color="*neutral_500")
"""The system's own fonts: nothing is fetched from a font server. Small print dark enough to read."""

UNREADABLE = "This publication's {} cannot be read now."


def build(publication: Publication) -> gr.Blocks:
    """The page."""
    with gr.Blocks(title=publication.title, analytics_enabled=False) as page:
        gr.Markdown(introduction(publication))
        with gr.Tab("Compare"):
            compare_tab(publication, Comparison(publication), open_votes())
        expert_tabs(publication)
        with gr.Tab("Fidelity"):
            fidelity_tab(publication)
        with gr.Tab("Card"):
            gr.Markdown(publication.card() or UNREADABLE.format("card"), elem_classes="document")
    return page


def introduction(publication: Publication) -> str:
    """What this page shows, with links to the model, to the source at its commit, and to the run that made it."""
    model, original = publication.model, publication.original
    shown = linked(model.label, model.link)
    title = f"# {escaped(publication.title)}\n\n"
    if original is None:
        said = f"Ask {shown}, a model in which each expert has a bit width of its own."
    else:
        at = f" at commit {linked(original.revision[:12], original.files_link)}" if original.revision else ""
        what = "question about the same picture" if publication.takes_pictures else "question"
        said = (
            "Ask the original and the quantized model, in which each expert has a bit width of its own, the same "
            f"{what}: {linked(original.label, original.link)}{at} → {shown}."
        )
    made = f" It was made by [this workflow run]({publication.run})." if is_https(publication.run) else ""
    return title + said + made


def expert_tabs(publication: Publication) -> None:
    manifest = publication.facts("mopeq.json")
    experts = None
    if manifest is not None:
        try:
            experts = Experts(manifest, Tensors(publication.model))
        except (KeyError, TypeError, ValueError) as error:
            print(f"mopeq.json: {error!r}", file=sys.stderr, flush=True)
    for name, drawn, api_name in (("Bit map", bit_map, "expert"), ("Sensitivity", sensitivities, None)):
        with gr.Tab(name):
            if experts is None:
                gr.Markdown(UNREADABLE.format("bit map"))
            else:
                expert_tab(name, experts, *drawn(experts), api_name)


def fidelity_tab(publication: Publication) -> None:
    measured, manifest = publication.facts("fidelity.json"), publication.facts("mopeq.json")
    if measured is None or manifest is None:
        gr.Markdown("The fidelity of this publication was not measured, or cannot be read now.")
        return
    headers, rows = fidelity.table(measured, manifest["sizes"]["experts_bpw"])
    lines = [f"| {' | '.join(map(escaped, cells))} |" for cells in [headers, *rows]]
    lines.insert(1, f"| --- {'| ---: ' * (len(headers) - 1)}|")
    gr.Markdown(fidelity.inputs(measured) + "\n\n" + "\n".join(lines), elem_classes="document")


def main() -> None:
    # A Space is stopped by SIGTERM; votes that wait for their commit are sent when Python ends by itself.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        publication = Publication.read()
    except (OSError, KeyError, ValueError) as error:
        sys.exit(f"publication.json beside app.py cannot be read: {error!r}; mopeq-hub writes it")
    try:
        build(publication).launch(css=CSS, theme=THEME, max_file_size="20mb")
    except OSError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
