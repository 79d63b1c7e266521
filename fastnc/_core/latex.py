"""A table of text as LaTeX: a tabular with the rules of booktabs, as papers have them."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}  # fmt: skip
_NUMBER = re.compile(r"(-?[0-9.]+)(?:e([-+]?[0-9]+))?")


def tabular(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Heads and rows; columns of numbers are right-aligned. Needs booktabs."""
    numbers = [all(_is_number(cell) for cell in column) for column in zip(*rows, strict=True)]
    columns = "".join("r" if number else "l" for number in numbers)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", _line(heads), r"\midrule"]
    return "\n".join([*lines, *map(_line, rows), r"\bottomrule", r"\end{tabular}", ""])


def _line(cells: Sequence[str]) -> str:
    return " & ".join(map(_cell, cells)) + r" \\"


def _is_number(cell: str) -> bool:
    return cell in ("", "-", "nan", "inf", "-inf") or _NUMBER.fullmatch(cell) is not None


def _cell(text: str) -> str:
    number = _NUMBER.fullmatch(text)
    if number is None:
        return "".join(_SPECIAL.get(sign, sign) for sign in text)
    mantissa, power = number.groups()
    if power is None:
        return f"${mantissa}$"
    times = "" if mantissa == "1" else f"{mantissa} \\times "
    return f"${times}10^{{{int(power)}}}$"
