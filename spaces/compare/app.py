"""Original and quantized model side by side on the same picture and question: the Space of one publication.

`python app.py` runs it; publication.json beside it names the models.
"""

import re
import sys
from collections.abc import Iterator

import fidelity
import gradio as gr
from comparison import Comparison
from model_process import Answer
from publication import HERE, Place, Publication

EXAMPLES = [
    ("circle.png", "what is at top left ?"),
    ("reds.png", "how many red shapes are there ?"),
    ("row.png", "what is in the bottom row ?"),
]
LONGEST_QUESTION = 2000
CSS = """
.gradio-container {max-width: 1080px !important; margin: 0 auto !important}
.status {min-height: 3em}
.status p {font-size: var(--text-sm); font-variant-numeric: tabular-nums}
.document {contain: inline-size}
.document :is(table, pre) {display: block; overflow-x: auto; border: 0}
.document :is(th, td) {white-space: nowrap; border-color: var(--border-color-primary)}
"""
"""One centred page; in the tabs it is the tables and the code that scroll on a phone, not the page."""

THEME = gr.themes.Default(
    primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)
"""The system's own fonts: nothing is fetched from a font server."""


def build(publication: Publication) -> gr.Blocks:
    """The page."""
    comparison = Comparison(publication)
    with gr.Blocks(title=publication.title) as page:
        gr.Markdown(introduction(publication))
        with gr.Row():
            with gr.Column():
                picture = gr.Image(type="filepath", label="Picture", height=360, sources=["upload", "clipboard"])
            with gr.Column():
                question = gr.Textbox(label="Question", lines=2, max_length=LONGEST_QUESTION, value=EXAMPLES[0][1])
                length = gr.Slider(1, 512, value=64, step=1, label="Most tokens in an answer")
                button = gr.Button("Ask", variant="primary")
                samples = [[str(HERE / "examples" / name), text] for name, text in EXAMPLES]
                gr.Examples(samples, [picture, question], example_labels=[text for _, text in EXAMPLES])
        with gr.Row():
            shown = [*answer_column("Original", publication.original), *answer_column("Quantized", publication.model)]

        def ask(picture: str | None, question: str, length: float) -> Iterator[tuple[str, str, str, str]]:
            """Ask both models: their answers as they grow, each with what it took."""
            for original, quantized in comparison.ask(picture, checked(question), int(length)):
                yield original.text, plain(original), quantized.text, plain(quantized)

        gr.on([button.click, question.submit], ask, [picture, question, length], shown, api_name="ask")
        with gr.Tab("Bit map"):
            bit_map_tab(publication)
        with gr.Tab("Fidelity"):
            fidelity_tab(publication)
        with gr.Tab("Card"):
            gr.Markdown(
                publication.card() or "This publication has no card that can be read now.", elem_classes="document"
            )
    return page


def introduction(publication: Publication) -> str:
    title = f"# {escaped(publication.title)}\n\n"
    if publication.original is None:
        return f"{title}Ask {named(publication.model)}, in which each expert has a bit width of its own."
    return title + (
        "Ask the original and the quantized model the same question about the same picture. In the quantized model "
        f"each expert has a bit width of its own. {named(publication.original)} → {named(publication.model)}"
    )


def named(place: Place) -> str:
    """A model's name, linked where it is on the Hub."""
    return f"[{escaped(place.label)}]({place.link})" if place.link else escaped(place.label)


def answer_column(name: str, place: Place | None) -> tuple[gr.Textbox, gr.Markdown]:
    """Where one model's answer appears, and below it what the answer took."""
    with gr.Column():
        info = place.label if place else None
        text = gr.Textbox(label=name, info=info, lines=4, max_lines=20, interactive=False, buttons=["copy"])
        status = gr.Markdown(label=f"{name} figures", elem_classes="status")
    return text, status


def bit_map_tab(publication: Publication) -> None:
    pictures = list(publication.pictures())
    if not pictures:
        gr.Markdown("This publication has no plots that can be read now.")
    for name, picture in pictures:
        gr.Image(picture, alt_text=name, format="png", interactive=False, show_label=False, buttons=["fullscreen"])


def fidelity_tab(publication: Publication) -> None:
    measured, manifest = publication.facts("fidelity.json"), publication.facts("mopeq.json")
    if measured is None or manifest is None:
        gr.Markdown("The fidelity of this publication was not measured, or cannot be read now.")
        return
    headers, rows = fidelity.table(measured, manifest["sizes"]["experts_bpw"])
    lines = [f"| {' | '.join(map(escaped, cells))} |" for cells in [headers, *rows]]
    lines.insert(1, f"| --- {'| ---: ' * (len(headers) - 1)}|")
    gr.Markdown(fidelity.inputs(measured) + "\n\n" + "\n".join(lines), elem_classes="document")


def checked(question: str) -> str:
    if not question.strip():
        raise gr.Error("Write a question first.", print_exception=False)
    if len(question) > LONGEST_QUESTION:
        raise gr.Error(f"The question is longer than {LONGEST_QUESTION} characters.", print_exception=False)
    return question.strip()


def plain(answer: Answer) -> str:
    return escaped(answer.status)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is: an error message may hold anything."""
    return re.sub(r"([\\`*_{}\[\]<>()#|~$])", r"\\\1", text)


def main() -> None:
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
