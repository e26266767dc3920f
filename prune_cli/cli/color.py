"""When colours are used: the option, and what it does to the environment that Rich obeys."""

import os
from enum import StrEnum


class Color(StrEnum):
    """When colours are used."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


def choose_color(when: Color) -> Color:
    """Have it so in all that is imported from here on; the consoles are, by each command."""
    if when is Color.ALWAYS:
        os.environ.pop("NO_COLOR", None)
        os.environ["FORCE_COLOR"] = "1"
    elif when is Color.NEVER:
        os.environ.pop("FORCE_COLOR", None)
        os.environ["NO_COLOR"] = "1"
    return when
