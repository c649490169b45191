"""Two models side by side: their choice and what each took to train, the same for every task of the Compare tab."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import gradio as gr

from tabs.arrivals import arrivals
from tabs.asking import on_page
from tabs.common import ModelChoice, as_html
from vlkit.errors import UserError
from vlkit.serving.compared import HIDDEN, Compared

BATCH = 32
"""Images of the training step that is predicted, with a text each."""
SIDES = ("left", "right")
PREDICTING: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "predicted step"}


class Sides(NamedTuple):
    """The components of both sides: choices of model, results, facts."""

    choices: list[gr.Dropdown]
    results: list[Any]
    facts: list[gr.HTML]

    @property
    def changes(self) -> list[Any]:
        """Events: another model is chosen."""
        return [choice.change for choice in self.choices]


def sides(compared: Compared, task: str, name: str, result: Callable[[int, str], Any]) -> Sides:
    """Lay out two columns that begin with the newest adapter and what it is compared with.

    Args:
        compared: the models.
        task: their task.
        name: beginning of the ids of the elements.
        result: (0 or 1, id of the element) -> the component for an answer.
    """
    found = Sides([], [], [])
    with gr.Row():
        for number, side in enumerate(SIDES):
            with gr.Column(min_width=300):
                choice = ModelChoice(
                    list(compared[task]),
                    value=compared.default(task)[number],
                    label=f"Model on the {side}",
                    interactive=True,
                    elem_id=f"{name}-{side}",
                )
                found.choices.append(choice)
                found.results.append(result(number, f"{name}-{side}-results"))
                found.facts.append(gr.HTML(elem_id=f"{name}-{side}-facts"))
    for number, choice in enumerate(found.choices):
        arrivals().follow(
            choice,
            lambda number=number: gr.Dropdown(list(compared[task]), value=compared.default(task)[number]),
        )
    return found


def tell_facts(compared: Compared, task: str, found: Sides, opened: Iterable[Any]) -> None:
    """Set the facts of both sides, when ``opened`` happens and when another model is chosen."""

    def tell(*names: str) -> Iterator[list[str]]:
        models(compared, task, *names)
        told = [facts_html(name, compared.known(task, name)) for name in names]
        yield told
        for number, name in enumerate(names):
            told[number] = facts_html(name, compared.costs(task, name, BATCH))
            yield told

    events = [*opened, *found.changes]
    options = {"trigger_mode": "always_last", "show_progress": "hidden", **PREDICTING}
    on_page(events, tell, found.choices, found.facts, **options)


def models(compared: Compared, task: str, *names: str) -> list[Any]:
    """The models of these names.

    Raises:
        UserError: there is none of a name.
    """
    there = compared[task]
    for name in names:
        if name not in there:
            raise UserError(f"There is no model {name!r}; there are {', '.join(there)}.")
    return [there[name] for name in names]


def facts_html(name: str, costs: dict[str, Any]) -> str:
    """HTML of what a model took to train; without ``saved_bytes`` it says that they are being predicted."""
    base = f"<code>{as_html(costs['base'])}</code>"
    if costs["method"] is None:
        return f"<p>The base {base} as it is: nothing was trained.</p>"
    hidden = " It answers from the question alone, beside a blank image." if name.endswith(HIDDEN) else ""
    saved = "what a training step saves is being predicted …"
    if "saved_bytes" in costs:
        size = f"<b>{costs['saved_bytes'] / 2**20:,.1f} MiB</b>"
        saved = f"a step of {BATCH} pairs has {size} of saved activations (predicted)."
    return (
        f"<p><b>{costs['trained_parameters']:,}</b> parameters trained ({as_html(costs['method'])} on {base}); "
        f"{saved}{hidden}</p>"
    )
