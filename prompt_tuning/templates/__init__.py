"""Hard prompts: Jinja templates that turn a row into a source and a target."""

from typing import TYPE_CHECKING

from prompt_tuning.support.lazy import lazy_names

if TYPE_CHECKING:
    from prompt_tuning.templates.rendered import Rendered
    from prompt_tuning.templates.template import Template, load_templates

__all__ = ["Rendered", "Template", "load_templates"]

__getattr__, __dir__ = lazy_names(
    __name__, {"Rendered": "rendered", "Template": "template", "load_templates": "template"}
)
