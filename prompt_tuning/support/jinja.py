"""Name the errors that Jinja text of others raises."""

import jinja2

# `items|dictsort` of a text and a macro that calls itself are examples of those that are not jinja2's.
JINJA_ERRORS = (
    jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, AssertionError,
    RecursionError, MemoryError,
)  # fmt: skip
