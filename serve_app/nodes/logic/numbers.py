"""The nodes that calculate numbers, and those that hold what few of them make: a seed, a size, a colour, a box."""

from __future__ import annotations

import ast
import math
import string
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeAlias

from simpleeval import InvalidExpression, SimpleEval

from serve_app.errors import NodeError, short_repr
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import MAX_RESOLUTION, Autogrow, Combo, Float, InputType, Int, Text
from serve_app.nodes.sockets import BOOLEAN, BOUNDING_BOX, COLOR, FLOAT, INT

CATEGORY = "utilities"
EXPONENT_LIMIT = 4000
"""How large an exponent may be, as in ComfyUI."""
BITS_LIMIT = 100_000
"""How long a whole number may become: arithmetic on it cannot be interrupted, and keeps everything else waiting."""
DIGITS_LIMIT = 1000
"""How many digits, before or after the point, a number may be rounded to."""
EXPRESSION_LIMIT = 10_000
"""How many characters an expression may have."""

RATIOS: Mapping[str, tuple[int, int]] = {
    "1:1 (Square)": (1, 1),
    "2:3 (Portrait Photo)": (2, 3),
    "3:2 (Photo)": (3, 2),
    "3:4 (Portrait Standard)": (3, 4),
    "4:3 (Standard)": (4, 3),
    "9:16 (Portrait Widescreen)": (9, 16),
    "16:9 (Widescreen)": (16, 9),
    "21:9 (Ultrawide)": (21, 9),
}


def _short(number: Any) -> Any:
    if isinstance(number, int) and number.bit_length() > BITS_LIMIT:
        raise NodeError(f"it makes a whole number of more than {BITS_LIMIT} bits")
    return number


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > EXPONENT_LIMIT:
        raise NodeError(f"the exponent {short_repr(exponent)} is larger than {EXPONENT_LIMIT}")
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > BITS_LIMIT:
        raise NodeError(f"the power of {short_repr(exponent)} makes a whole number of more than {BITS_LIMIT} bits")
    return base**exponent


def _round(number: Any, digits: int | None = None) -> Any:
    if digits is not None and abs(digits) > DIGITS_LIMIT:
        raise NodeError(f"{short_repr(digits)} digits are more than {DIGITS_LIMIT}, which a number may be rounded to")
    return round(number, digits)


def _bounded(operator: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda left, right: _short(operator(left, right))


def _sum(*values: Any) -> Any:
    return sum(values[0] if len(values) == 1 and isinstance(values[0], list) else values)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "sum": _sum,
    "min": min,
    "max": max,
    "abs": abs,
    "round": _round,
    "pow": _power,
    "int": int,
    "float": float,
    "sqrt": math.sqrt,
    "ceil": math.ceil,
    "floor": math.floor,
    "log": math.log,
    "log2": math.log2,
    "log10": math.log10,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
}
"""What an expression may call."""


def _check_numbers_only(expression: str) -> None:
    """Refuse texts and methods: those of texts make more text than there is memory. Errors: ValueError, SyntaxError."""
    for part in ast.walk(ast.parse(expression.strip(), mode="eval")):
        text = isinstance(part, ast.Constant) and not isinstance(part.value, int | float)
        if text or isinstance(part, ast.Attribute | ast.JoinedStr):
            raise ValueError(f"{short_repr(ast.unparse(part))} is no number")


@node("ComfyMathExpression", "Math Expression", category=CATEGORY, return_names=("FLOAT", "INT", "BOOL"))
def comfy_math_expression(
    expression: Annotated[str, Text("a + b", multiline=True)],
    values: Annotated[
        Mapping[str, float], Autogrow(InputType("FLOAT,INT,BOOLEAN"), name="value", names=string.ascii_lowercase)
    ],
) -> tuple[FLOAT, INT, BOOLEAN]:
    """What an expression over linked numbers comes to.

    Evaluate, the numbers by their letters and all of them as `values`. Errors: NodeError.
    """
    if not expression.strip():
        raise NodeError("the expression is empty")
    if len(expression) > EXPRESSION_LIMIT:
        raise NodeError(f"the expression has {len(expression)} characters; {EXPRESSION_LIMIT} are allowed")
    where = f"the expression {short_repr(expression)}"
    for name, value in values.items():
        if not isinstance(value, int | float):
            raise NodeError(f"value {name} is a {type(value).__name__}; it must be a number")
    evaluator = SimpleEval(functions=dict(FUNCTIONS), names={**values, "values": list(values.values())})
    # Its own rules allow whole numbers of a gigabyte.
    for kind in (ast.Add, ast.Sub, ast.Mult, ast.LShift):
        evaluator.operators[kind] = _bounded(evaluator.operators[kind])
    evaluator.operators[ast.Pow] = _power
    number = math.nan
    try:
        _check_numbers_only(expression)
        result = evaluator.eval(expression)
        number = float(result) if isinstance(result, int | float) else math.nan
    except OverflowError as error:
        raise NodeError(f"{where} comes to a number too large for a FLOAT") from error
    except (InvalidExpression, ArithmeticError, SyntaxError, TypeError, ValueError, LookupError) as error:
        raise NodeError(f"{where} cannot be evaluated: {error}") from error
    except (RecursionError, MemoryError) as error:
        raise NodeError(f"{where} is nested too deep") from error
    if not math.isfinite(number):
        raise NodeError(f"{where} comes to {short_repr(result)}, which is no finite number")
    return (number, int(result), bool(result))


@node("ComfyNumberConvert", "Convert Number", category=CATEGORY)
def comfy_number_convert(
    value: Annotated[Any, InputType("INT,FLOAT,STRING,BOOLEAN", {"display_name": "value"})],
) -> tuple[FLOAT, INT]:
    """A number from a text, a truth value or another number.

    Return it as both kinds, cut off towards 0 as INT. Errors: NodeError for what is no finite number.
    """
    if not isinstance(value, bool | int | float | str):
        raise NodeError(f"a {type(value).__name__} is no number")
    try:
        number = float(value)
        if not math.isfinite(number):
            raise ValueError("it is not finite")
        try:
            return (number, int(value))
        except ValueError:
            return (number, int(number))
    except (ValueError, OverflowError) as error:
        raise NodeError(f"{short_repr(value)} is no number: {error}") from error


@node(
    "ResolutionSelector",
    "Resolution Selector",
    category=CATEGORY,
    return_names=("width", "height"),
    description="Sides of an aspect ratio with about this many pixels, each a multiple of a number.",
)
def resolution_selector(
    aspect_ratio: Annotated[str, Combo(list(RATIOS), default="1:1 (Square)")],
    megapixels: Annotated[float, Float(1.0, min=0.1, max=16.0, step=0.1)],
    multiple: Annotated[int, Int(8, min=8, max=128, step=4, advanced=True)],
) -> tuple[INT, INT]:
    """Return the sides of an image by its aspect ratio and megapixels.

    Return width and height, a megapixel being 1024².
    """
    across, down = RATIOS[aspect_ratio]
    scale = math.sqrt(megapixels * 1024 * 1024 / (across * down))
    width, height = (round(side * scale / multiple) * multiple for side in (across, down))
    return (width, height)


@node("SeedNode", "Seed", category=CATEGORY, return_names=("seed",))
def seed_node(seed: Annotated[int, Int(min=0, max=sys.maxsize, control_after_generate="fixed")]) -> INT:
    """A seed for several nodes."""
    return seed


@node("ColorToRGBInt", "Color Picker", category=CATEGORY, return_names=("rgb_int", "hex", "alpha"))
def color_to_rgb_int(
    color: Annotated[str, InputType("COLOR", {"default": "#ffffff", "socketless": True})],
) -> tuple[INT, COLOR, FLOAT]:
    """A colour as a number.

    Return 0xRRGGBB, #RRGGBB and the opacity of #RRGGBB or #RRGGBBAA. Errors: NodeError for any other text.
    """
    digits = color[1:]
    if color[:1] != "#" or len(digits) not in (6, 8) or any(c not in string.hexdigits for c in digits):
        raise NodeError(f"the colour is {short_repr(color)}; it must be #RRGGBB or #RRGGBBAA")
    return (int(digits[:6], 16), color[:7], int(digits[6:] or "ff", 16) / 255.0)


Corner: TypeAlias = Annotated[int, Int(0, min=0, max=MAX_RESOLUTION)]
Side: TypeAlias = Annotated[int, Int(512, min=1, max=MAX_RESOLUTION)]


@node("PrimitiveBoundingBox", "Bounding Box", category="utilities/primitive")
def primitive_bounding_box(x: Corner, y: Corner, width: Side, height: Side) -> BOUNDING_BOX:
    """A box by its corner and size."""
    return {"x": x, "y": y, "width": width, "height": height}
