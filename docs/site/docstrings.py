"""Docstrings for the reference: griffe wants an empty line before a section, the code has none."""

import re
from typing import Any

import griffe

SECTION = re.compile(r"(?<!\n)\n(?=(?:Args|Returns|Raises|Attributes|Yields):\n)")


class Sections(griffe.Extension):
    """Puts the empty line in."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = SECTION.sub("\n\n", obj.docstring.value)
