"""JSON schemas at random, and a check of values against them that knows nothing of grammars."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]


def random_schema(seed: int, depth: int = 2) -> Schema:
    """A schema whose values are of bounded length; objects at the top."""
    return _object(random.Random(seed), depth)


def _object(dice: random.Random, depth: int) -> Schema:
    names = dice.sample(["name", "age", "kind", "tags", "size", "is_open", "owner"], 3)
    return {
        "type": "object",
        "properties": {name: _value(dice, depth - 1) for name in names},
        "required": names[: dice.randint(1, 3)],
        "additionalProperties": False,
    }


def _value(dice: random.Random, depth: int) -> Schema:
    kinds = ["string", "integer", "boolean", "enum", "null"] + ["array", "object"] * (depth > 0)
    kind = dice.choice(kinds)
    if kind == "object":
        return _object(dice, depth)
    if kind == "array":
        items = _value(dice, depth - 1)
        return {"type": "array", "items": items, "minItems": dice.randint(0, 1), "maxItems": 2}
    if kind == "string":
        return {"type": "string", "maxLength": dice.randint(1, 8)}
    if kind == "integer":
        return {"type": "integer", "minimum": dice.randint(-5, 5), "maximum": 5 * 10**3}
    if kind == "enum":
        return {"enum": dice.sample(["red", "green", 'a "quoted" word', "ü", 7, None], 3)}
    return {"type": kind}


def fits(value: Any, schema: Schema) -> bool:
    """Whether a value is valid by the keywords that `random_schema` uses."""
    if "enum" in schema:
        return any(value == each and type(value) is type(each) for each in schema["enum"])
    kinds: dict[str, type[Any]] = {
        "string": str,
        "boolean": bool,
        "null": type(None),
        "array": list,
        "object": dict,
    }
    kind = schema["type"]
    if kind == "integer":
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and schema["minimum"] <= value <= schema["maximum"]
    if not isinstance(value, kinds[kind]):
        return False
    if isinstance(value, str):
        return len(value) <= schema["maxLength"]
    if isinstance(value, list):
        count = schema["minItems"] <= len(value) <= schema["maxItems"]
        return count and all(fits(each, schema["items"]) for each in value)
    if isinstance(value, dict):
        known = schema["properties"]
        return set(schema["required"]) <= set(value) <= set(known) and all(
            fits(each, known[name]) for name, each in value.items()
        )
    return True
