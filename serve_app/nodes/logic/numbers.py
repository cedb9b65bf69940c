"""The nodes that calculate numbers, and those that hold what few of them make: a seed, a size, a colour, a box."""

from __future__ import annotations

import ast
import math
import string
import sys
from collections.abc import Callable, Mapping
from typing import Any

from simpleeval import InvalidExpression, SimpleEval

from serve_app.errors import NodeError, shown
from serve_app.nodes.dynamic_inputs import autogrow, combo
from serve_app.nodes.latent.latents import MAX_RESOLUTION

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
        raise NodeError(f"the exponent {shown(exponent)} is larger than {EXPONENT_LIMIT}")
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > BITS_LIMIT:
        raise NodeError(f"the power of {shown(exponent)} makes a whole number of more than {BITS_LIMIT} bits")
    return base**exponent


def _round(number: Any, digits: int | None = None) -> Any:
    if digits is not None and abs(digits) > DIGITS_LIMIT:
        raise NodeError(f"{shown(digits)} digits are more than {DIGITS_LIMIT}, which a number may be rounded to")
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
            raise ValueError(f"{shown(ast.unparse(part))} is no number")


class ComfyMathExpression:
    """What an expression over linked numbers comes to."""

    RETURN_TYPES = ("FLOAT", "INT", "BOOLEAN")
    RETURN_NAMES = ("FLOAT", "INT", "BOOL")
    FUNCTION = "execute"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "expression": ("STRING", {"default": "a + b", "multiline": True}),
                "values": autogrow(("FLOAT,INT,BOOLEAN", {}), name="value", names=string.ascii_lowercase),
            }
        }

    def execute(self, expression: str, values: Mapping[str, float]) -> tuple[float, int, bool]:
        """Evaluate, the numbers by their letters and all of them as `values`. Errors: NodeError."""
        if not expression.strip():
            raise NodeError("the expression is empty")
        if len(expression) > EXPRESSION_LIMIT:
            raise NodeError(f"the expression has {len(expression)} characters; {EXPRESSION_LIMIT} are allowed")
        where = f"the expression {shown(expression)}"
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
            raise NodeError(f"{where} comes to {shown(result)}, which is no finite number")
        return (number, int(result), bool(result))


class ComfyNumberConvert:
    """A number from a text, a truth value or another number."""

    RETURN_TYPES = ("FLOAT", "INT")
    FUNCTION = "execute"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": ("INT,FLOAT,STRING,BOOLEAN", {"display_name": "value"})}}

    def execute(self, value: Any) -> tuple[float, int]:
        """Return it as both kinds, cut off towards 0 as INT. Errors: NodeError for what is no finite number."""
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
            raise NodeError(f"{shown(value)} is no number: {error}") from error


class ResolutionSelector:
    """Sides of an aspect ratio that make about so many megapixels."""

    RETURN_TYPES = ("INT", "INT")
    RETURN_NAMES = ("width", "height")
    FUNCTION = "execute"
    CATEGORY = CATEGORY
    DESCRIPTION = "Sides of an aspect ratio with about this many pixels, each a multiple of a number."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "aspect_ratio": combo(list(RATIOS), default="1:1 (Square)"),
                "megapixels": ("FLOAT", {"default": 1.0, "min": 0.1, "max": 16.0, "step": 0.1}),
                "multiple": ("INT", {"default": 8, "min": 8, "max": 128, "step": 4, "advanced": True}),
            }
        }

    def execute(self, aspect_ratio: str, megapixels: float, multiple: int) -> tuple[int, int]:
        """Return width and height, a megapixel being 1024²."""
        across, down = RATIOS[aspect_ratio]
        scale = math.sqrt(megapixels * 1024 * 1024 / (across * down))
        width, height = (round(side * scale / multiple) * multiple for side in (across, down))
        return (width, height)


class SeedNode:
    """A seed for several nodes."""

    RETURN_TYPES = ("INT",)
    RETURN_NAMES = ("seed",)
    FUNCTION = "execute"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"seed": ("INT", {"min": 0, "max": sys.maxsize, "control_after_generate": "fixed"})}}

    def execute(self, seed: int) -> tuple[int]:
        """Return it."""
        return (seed,)


class ColorToRGBInt:
    """A colour as a number."""

    RETURN_TYPES = ("INT", "COLOR", "FLOAT")
    RETURN_NAMES = ("rgb_int", "hex", "alpha")
    FUNCTION = "execute"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"color": ("COLOR", {"default": "#ffffff", "socketless": True})}}

    def execute(self, color: str) -> tuple[int, str, float]:
        """Return 0xRRGGBB, #RRGGBB and the opacity of #RRGGBB or #RRGGBBAA. Errors: NodeError for any other text."""
        digits = color[1:]
        if color[:1] != "#" or len(digits) not in (6, 8) or any(c not in string.hexdigits for c in digits):
            raise NodeError(f"the colour is {shown(color)}; it must be #RRGGBB or #RRGGBBAA")
        return (int(digits[:6], 16), color[:7], int(digits[6:] or "ff", 16) / 255.0)


class PrimitiveBoundingBox:
    """A box by its corner and size."""

    RETURN_TYPES = ("BOUNDING_BOX",)
    FUNCTION = "execute"
    CATEGORY = "utilities/primitive"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        corner = ("INT", {"default": 0, "min": 0, "max": MAX_RESOLUTION})
        side = ("INT", {"default": 512, "min": 1, "max": MAX_RESOLUTION})
        return {"required": {"x": corner, "y": corner, "width": side, "height": side}}

    def execute(self, x: int, y: int, width: int, height: int) -> tuple[dict[str, int]]:
        """Return it."""
        return ({"x": x, "y": y, "width": width, "height": height},)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "ComfyMathExpression": ComfyMathExpression,
    "ComfyNumberConvert": ComfyNumberConvert,
    "ResolutionSelector": ResolutionSelector,
    "SeedNode": SeedNode,
    "ColorToRGBInt": ColorToRGBInt,
    "PrimitiveBoundingBox": PrimitiveBoundingBox,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "ComfyMathExpression": "Math Expression",
    "ComfyNumberConvert": "Convert Number",
    "ResolutionSelector": "Resolution Selector",
    "SeedNode": "Seed",
    "ColorToRGBInt": "Color Picker",
    "PrimitiveBoundingBox": "Bounding Box",
}
