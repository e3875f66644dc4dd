"""The page itself, made of gradio's components. Texts of rows and answers are only ever shown as plain text."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from prompt_tuning.errors import PromptTuningError
from prompt_tuning.page.trial import Trial, TriedRun
from prompt_tuning.support.text import counted

ROWS_AT_ONCE = 8
NARROW, ANSWER = 300, 230  # The widths in pixels below which a column goes under the one before it.
MONO = ["ui-monospace", "Consolas", "monospace"]
SANS = ["system-ui", "sans-serif"]
# Gradio's own themes name fonts of Google, which a browser would ask for.
APPEARANCE: dict[str, Any] = {
    "theme": gr.themes.Default(font=SANS, font_mono=MONO),
    "css": "footer {display: none} .rows label {width: 100%} .prompt * {word-break: normal; line-height: 1.4}",
}
"""How the page looks, for `mount_gradio_app` and `launch`."""
PRIVATE: dict[str, Any] = {
    "footer_links": [],
    "run_history": False,
    "show_error": False,
    "ssr_mode": False,
    "max_file_size": 1,
}
"""The settings by which gradio offers only the page: no history, no API page, no upload, no traceback."""


Update = dict[Any, Any]
"""New values of the page, by its components."""


@dataclass(frozen=True)
class Column:
    """What the page shows of a system: its answer, the facts of the answer, and the prompt that the model read."""

    answer: gr.Textbox
    facts: gr.Textbox
    prompt: gr.HighlightedText


def build_page(trial: Trial) -> gr.Blocks:
    """Return the page for runs that were loaded.

    Args:
        trial: the runs. More than one get a menu.
    """
    with gr.Blocks(title="prompt-tuning try", analytics_enabled=False) as page:
        gr.Markdown("# What the prompt does")
        names = list(trial.runs)
        menu = gr.Dropdown(names, value=names[0], label="Run", visible=len(names) > 1, elem_id="run")
        panels = [_Panel(trial, run, is_shown=name == names[0]).column for name, run in trial.runs.items()]

        def show(chosen: str) -> list[Any]:
            return [gr.update(visible=name == chosen) for name in names]

        menu.input(show, menu, panels, api_visibility="private")
    page.queue(default_concurrency_limit=1, max_size=32)
    return page


class _Panel:
    """The part of the page that belongs to one run."""

    def __init__(self, trial: Trial, run: TriedRun, *, is_shown: bool) -> None:
        self.trial = trial
        self.run = run
        self.clicked = gr.State(None)
        self._asked: Counter[str | None] = Counter()  # How often each visitor has asked.
        with gr.Column(visible=is_shown) as self.column:
            with gr.Row():
                with gr.Column(scale=2, min_width=NARROW):
                    self._add_rows()
                with gr.Column(scale=3, min_width=NARROW):
                    self._add_boxes()
            with gr.Row():
                self.columns = {system: self._add_column(title) for system, title in run.systems.items()}
                with gr.Column(min_width=ANSWER):
                    self.reference = gr.Textbox(label="Reference (may stay empty)", lines=3, interactive=True)
            with gr.Accordion("The prompt as the model sees it", open=False), gr.Row():
                for column in self.columns.values():
                    with gr.Column(min_width=NARROW):
                        column.prompt.render()
        self._connect()

    def _add_rows(self) -> None:
        """Add the rows to click through, a few at once."""
        self.place = gr.State(0)
        self.rows = gr.Radio(visible=bool(self.run.rows), elem_classes="rows", **self._rows_at(0))
        with gr.Row(visible=len(self.run.rows) > ROWS_AT_ONCE):
            self.previous = gr.Button("Worse rows", size="sm")
            self.next = gr.Button("Better rows", size="sm")
        gr.Textbox(self.run.problem, label="No rows to click", visible=not self.run.rows, interactive=False, lines=2)

    def _rows_at(self, place: int) -> dict[str, Any]:
        """Return the choices and the label of the rows from a place on."""
        labels = self.run.labels[place : place + ROWS_AT_ONCE]
        of = counted(len(self.run.rows), "row")
        order = ", the worst first" if self.run.score else ""
        label = f"Evaluated rows{order}: {place + 1} to {place + len(labels)} of {of}"
        return {"choices": [(text, place + number) for number, text in enumerate(labels)], "label": label}

    def _add_boxes(self) -> None:
        """Add the fields of a row, which a click fills, and the button."""
        self.boxes = [gr.Textbox(label=box.label, lines=2, max_lines=8) for box in self.run.boxes]
        self.button = gr.Button("Answer", variant="primary")
        self.note = gr.Textbox(label="Note", visible=False, interactive=False)

    def _add_column(self, title: str) -> Column:
        """Add the column of a system, without its prompt, which stands further below."""
        label = f"{title}: tokens, seconds, score"
        with gr.Column(min_width=ANSWER):
            answer = gr.Textbox(label=title, lines=3, interactive=False, elem_classes="answer")
            facts = gr.Textbox(show_label=False, label=label, interactive=False, max_lines=3)
        prompt = gr.HighlightedText(
            label=title, render=False, elem_classes="prompt", show_inline_category=False, show_legend=True
        )
        return Column(answer, facts, prompt)

    def _connect(self) -> None:
        """Say what the events of the page do."""
        private: dict[str, Any] = {"api_visibility": "private"}
        fields = [self.clicked, self.reference, *self.boxes]
        outputs: list[gr.components.Component] = [self.note]
        for column in self.columns.values():
            outputs += [column.answer, column.facts, column.prompt]
        asks = [self.button.click, *(box.submit for box in self.boxes)]
        for asked in (
            gr.on(asks, self.stop_earlier, **private),
            self.rows.input(self.fill, self.rows, fields, **private),
        ):
            asked.then(self.answer, fields, outputs, **private)
        for button, step in ((self.previous, -ROWS_AT_ONCE), (self.next, ROWS_AT_ONCE)):
            turn = functools.partial(self.turn, step)
            button.click(turn, self.place, [self.place, self.rows], **private)

    def stop_earlier(self, request: gr.Request) -> None:
        """Let an answer that this visitor still waits for end, because another row is asked for."""
        self._asked[request.session_hash] += 1

    def turn(self, step: int, place: int) -> tuple[int, Any]:
        """Return the place of the first row that is shown after a step, and the rows from there on."""
        last = (len(self.run.rows) - 1) // ROWS_AT_ONCE * ROWS_AT_ONCE
        place = min(max(place + step, 0), last)
        return place, gr.update(value=None, **self._rows_at(place))

    def fill(self, number: int, request: gr.Request) -> list[Any]:
        """Return the number of the clicked row, its references and its texts."""
        self.stop_earlier(request)
        row = self.run.rows[number]
        return [number, "\n".join(row.references), *(box.shown(row.values) for box in self.run.boxes)]

    def answer(self, request: gr.Request, clicked: int | None, reference: str, *texts: str) -> Iterator[Update]:
        """Yield what the systems write, one after the other, as updates of the page."""
        number = self._asked[request.session_hash]
        yield {self.note: gr.update(visible=False)} | {
            part: None for column in self.columns.values() for part in (column.answer, column.facts, column.prompt)
        }
        try:
            for update in self._answers(clicked, reference, texts):
                yield update
                if self._asked[request.session_hash] != number:
                    return
        except PromptTuningError as error:
            yield {self.note: gr.update(value=str(error), visible=True)}

    def _answers(self, clicked: int | None, reference: str, texts: Sequence[str]) -> Iterator[Update]:
        run = self.run
        row, references = run.row(clicked, reference, texts)
        if clicked is not None and run.is_changed(run.rows[clicked]):
            message = "The data has changed since the run: this row was another one then."
            yield {self.note: gr.update(value=message, visible=True)}
        for system, column in self.columns.items():
            question = run.question(system, row)
            yield {column.prompt: run.segments(system, question)}
            for piece in self.trial.answer(run, system, question):
                facts = run.facts(system, question, piece, references)
                yield {column.answer: piece.text, column.facts: facts}
