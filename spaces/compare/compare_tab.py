"""The tab where both models are asked: side by side, or blind until the visitor has voted."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import difference
import gradio as gr
import votes
from answer import Answer, Settings
from blind import ORIGINAL_LEFT, Round, digest, in_step, shuffled
from comparison import Comparison, Way
from markup import escaped, linked
from publication import HERE, Publication
from zero_gpu import with_gpu

EXAMPLES = [
    ("circle.png", "what is at top left ?"),
    ("reds.png", "how many red shapes are there ?"),
    ("row.png", "what is in the bottom row ?"),
]
TEXTS = ["What is the capital of France?", "Count from one to ten.", "Name three fruits."]
"""Examples for a model that takes no pictures."""
LONGEST_QUESTION = 2000
LONGEST_ANSWER = 512
HOTTEST = 2.0
LARGEST_SEED = 2**31 - 1
HIDDEN = "Speed and memory are shown after the vote."
Shown = tuple[str, str, str, str, str, str, str, Round | None]
"""Name, answer and figures of the left and of the right side; where they differ; what can be voted on."""


class Asking:
    """What the buttons of the tab do."""

    def __init__(self, publication: Publication, comparison: Comparison, kept: votes.Votes) -> None:
        self.comparison = comparison
        self._publication = publication
        self._votes = kept

        def answers(picture: str | None, question: str, settings: Settings) -> Iterator[tuple[Answer, Answer]]:
            yield from comparison.ask(picture, question, settings)

        self.names = [self._named(side) for side in ORIGINAL_LEFT]
        self._answers: Callable[..., Iterator[tuple[Answer, Answer]]] = with_gpu(answers)

    def plan(self) -> str:
        """How the two models are asked on this machine, in words."""
        return escaped(self.comparison.plan().words)

    def begin(self) -> tuple[gr.Column, str, str]:
        """The page before a new question: no vote, no totals, and how the question will be asked."""
        return gr.Column(visible=False), "", self.plan()

    def ask(
        self,
        picture: str | None,
        question: str,
        length: float = 64,
        temperature: float = 0,
        seed: float = 0,
        blind: bool = False,
    ) -> Iterator[Shown]:
        """Ask both models: names, answers and figures of both sides as they grow, then where the answers differ.

        blind: names and figures stay hidden until /vote.
        """
        question, settings = checked(question), checked_settings(length, temperature, seed)
        if blind and self.comparison.plan().way is Way.ALONE:
            raise wrong("Blind mode needs both models, and here the quantized one answers alone.")
        sides = shuffled() if blind else ORIGINAL_LEFT
        left, right = Answer(), Answer()
        for original, quantized in self._answers(picture, question, settings):
            left, right = (original, quantized) if sides == ORIGINAL_LEFT else (quantized, original)
            yield self._blindly(left, right) if blind else self._openly(sides, left, right, "")
        if left.failed or right.failed:
            words = '<p class="verdict">There is no vote on this question.</p>' if blind else ""
            yield self._openly(sides, left, right, words)
        elif blind:
            asked = Round(digest(picture, question, settings), sides, (left.status, right.status))
            yield (*self._blindly(left, right)[:6], difference.shown(left.text, right.text), asked)
        else:
            yield self._openly(sides, left, right, difference.shown(left.text, right.text))

    def vote(self, choice: str, asked: Round | None) -> tuple[str, str, str, str, str, None]:
        """Vote on the question that was asked blind last: left, right, good or bad. Reveals names and figures."""
        if asked is None:
            raise wrong("There is nothing to vote on: ask a question in blind mode first.")
        if choice not in votes.CHOICES:
            raise wrong(f"A vote is one of {', '.join(votes.CHOICES)}.")
        name = self._publication.name
        try:
            self._votes.add(votes.Vote(name, asked.question, choice, asked.sides[0], votes.now()))
            totals = votes.in_words(self._votes.totals(name))
        except Exception as error:
            totals = escaped(f"The vote could not be kept: {error}")
        names = map(self._named, asked.sides)
        left, right = map(escaped, asked.figures)
        return (*names, left, right, f"You voted: **{votes.CHOICES[choice]}**. {totals}", None)  # type: ignore[return-value]

    def _openly(self, sides: tuple[str, str], left: Answer, right: Answer, verdict: str) -> Shown:
        names = [self._named(side) for side in sides]
        return (names[0], left.text, escaped(left.status), names[1], right.text, escaped(right.status), verdict, None)

    def _blindly(self, left: Answer, right: Answer) -> Shown:
        texts = in_step(left, right)
        status = HIDDEN if left.ended and right.ended else "Answering; loading a model takes a while…"
        return ("### Left", texts[0], status, "### Right", texts[1], status, "", None)

    def _named(self, side: str) -> str:
        place = self._publication.original if side == "original" else self._publication.model
        return f"### {side.capitalize()}\n{linked(place.label, place.link)}" if place else f"### {side.capitalize()}"


def compare_tab(publication: Publication, comparison: Comparison, kept: votes.Votes) -> None:
    """Put the tab's contents on the page."""
    asking = Asking(publication, comparison, kept)
    both = publication.original is not None
    inputs, button = controls(publication.takes_pictures, both)
    note = gr.Markdown(elem_classes="note")
    with gr.Row():
        left = answer_column("Left answer", asking.names[0], visible=both)
        sides = [*left, *answer_column("Right answer" if both else "Answer", asking.names[1])]
    verdict = gr.HTML(elem_id="verdict")
    asked = gr.State(None)
    ballot, buttons = voting(kept)
    totals = gr.Markdown(elem_id="totals")
    choice = gr.Radio(list(votes.CHOICES), visible=False, label="Choice")

    hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    gr.on(None, asking.plan, None, note, api_name="plan", show_progress="hidden")
    start = [button.click, inputs[1].submit]
    begun = gr.on(start, asking.begin, None, [ballot, totals, note], **hidden)
    outputs = [*sides, verdict, asked]
    ended = begun.then(asking.ask, inputs, outputs, api_name="ask", show_progress="minimal", show_progress_on=verdict)
    ended.then(shown_to_vote, asked, ballot, **hidden)
    revealed = [sides[0], sides[3], sides[2], sides[5], totals, asked]
    choice.input(asking.vote, [choice, asked], revealed, api_name="vote")
    for each, pressed in buttons.items():
        voted = pressed.click(partial(asking.vote, each), asked, revealed, **hidden)
        voted.then(shown_to_vote, asked, ballot, **hidden)


def controls(takes_pictures: bool, both: bool) -> tuple[list[gr.components.Component], gr.Button]:
    """What a question is made of, in the order of `Asking.ask`, and the button that asks it. both: whether there are
    two models, of which one can be hidden."""
    texts = [text for _, text in EXAMPLES] if takes_pictures else TEXTS
    with gr.Row():
        with gr.Column(visible=takes_pictures):
            picture = gr.Image(type="filepath", label="Picture", height=320, sources=["upload", "clipboard"])
        with gr.Column():
            question = gr.Textbox(label="Question", lines=2, max_length=LONGEST_QUESTION, value=texts[0])
            with gr.Row():
                tokens = {"label": "Longest answer", "info": "in tokens", "step": 1, "min_width": 200}
                length = gr.Slider(1, LONGEST_ANSWER, value=64, **tokens)
                heat = {"label": "Temperature", "info": "0 is greedy", "step": 0.1, "min_width": 200}
                temperature = gr.Slider(0, HOTTEST, value=0, **heat)
            with gr.Row():
                whole = {"precision": 0, "minimum": 0, "maximum": LARGEST_SEED}
                seed = gr.Number(0, label="Seed", info="above temperature 0", min_width=120, **whole)
                why = "Which is which stays hidden until you vote"
                blind = gr.Checkbox(label="Blind", info=why, min_width=200, container=True, visible=both)
            button = gr.Button("Ask", variant="primary")
    pictures = [str(HERE / "examples" / name) for name, _ in EXAMPLES]
    samples = [list(sample) for sample in zip(pictures, texts, strict=True)] if takes_pictures else [[t] for t in texts]
    shown = [picture, question] if takes_pictures else [question]
    gr.Examples(samples, shown, example_labels=texts, label="Examples")
    return [picture, question, length, temperature, seed, blind], button


def voting(kept: votes.Votes) -> tuple[gr.Column, dict[str, gr.Button]]:
    """Four buttons to vote with, and what is kept of a vote; hidden until there is something to vote on."""
    with gr.Column(visible=False, elem_id="ballot") as ballot:
        with gr.Row():
            buttons = {choice: gr.Button(words, min_width=140) for choice, words in votes.CHOICES.items()}
        gr.Markdown(f"{votes.PRIVACY} Votes are kept {escaped(kept.where)}.", elem_classes="note")
    return ballot, buttons


def shown_to_vote(asked: Round | None) -> gr.Column:
    return gr.Column(visible=asked is not None)


def answer_column(label: str, name: str, visible: bool = True) -> tuple[gr.Markdown, gr.Textbox, gr.Markdown]:
    """Where one side's name, answer and figures appear."""
    with gr.Column(visible=visible):
        heading = gr.Markdown(name, elem_classes="side")
        text = gr.Textbox(label=label, lines=4, max_lines=20, interactive=False)
        status = gr.Markdown(elem_classes="status")
    return heading, text, status


def checked(question: str) -> str:
    if not question or not question.strip():
        raise wrong("Write a question first.")
    if len(question) > LONGEST_QUESTION:
        raise wrong(f"The question is longer than {LONGEST_QUESTION} characters.")
    return question.strip()


def checked_settings(length: float, temperature: float, seed: float) -> Settings:
    """The settings as asked for. An API's caller can send anything."""
    for name, value, least, most in (
        ("length", length, 1, LONGEST_ANSWER),
        ("temperature", temperature, 0, HOTTEST),
        ("seed", seed, 0, LARGEST_SEED),
    ):
        if not isinstance(value, int | float) or not math.isfinite(value) or not least <= value <= most:
            raise wrong(f"The {name} must be a number from {least:g} to {most:g}.")
    return Settings(int(length), float(temperature), int(seed))


def wrong(words: str) -> gr.Error:
    """An error that the visitor can mend; the log needs no traceback of it."""
    return gr.Error(words, print_exception=False)
