"""JSON as the tool writes it: one key a line in a stable order, one line for each row of a list."""

import json
from collections.abc import Mapping


def encode(facts: Mapping[str, object]) -> str:
    """`facts` as JSON, ending in a newline.

    Example:
        >>> print(encode({"schema": 1, "tensors": [{"name": "a"}, {"name": "b"}]}), end="")
        {
          "schema": 1,
          "tensors": [
            {"name": "a"},
            {"name": "b"}
          ]
        }
    """
    lines = (f"  {json.dumps(key)}: {_value(value)}" for key, value in facts.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _value(value: object) -> str:
    if not isinstance(value, list) or not value:
        return json.dumps(value, ensure_ascii=False)
    rows = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in value)
    return f"[\n{rows}\n  ]"
