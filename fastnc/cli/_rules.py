"""Update rules from text: `adam`, `adam:1e-2`, `Momentum(2, nesterov=True)`."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any

from fastnc.cli._typed import typed

_SHORT = {
    "gd": "GradientDescent",
    "momentum": "Momentum",
    "adam": "Adam",
    "adamw": "AdamW",
    "sign": "SignDescent",
    "normalized": "NormalizedDescent",
    "spectral": "SpectralDescent",
    "sam": "SharpnessAware",
}
HELP = (
    "gd, momentum, adam, adamw, sign, normalized, spectral or sam, with a step size as adam:1e-2; "
    'or a rule of fastnc.rules as "Momentum(Cosine(5, 1000), nesterov=True)".'
)


SCHEDULE = (
    "Of the step size, in the place of --lr or of the rule's: loss-scaled, or a schedule of "
    'fastnc.rules as "Cosine(5, 1000)".'
)


def lr_and_rule(rule: str | None, schedule: str | None, lr: Any) -> dict[str, Any]:
    """The arguments `lr` and `rule` of `descend`.

    Raises
    ------
    ValueError
        A text is no rule or no schedule, or `lr` was given beside one of them.
    """
    given = lr != 5.0 or typed("lr")
    if rule is not None and given:
        raise ValueError("`--lr` and `--rule` do not go together; write --rule adam:1e-2.")
    if schedule is None:
        return {"lr": lr} if rule is None else {"lr": lr, "rule": rule_of(rule)}
    if given:
        raise ValueError("`--lr` and `--schedule` do not go together; leave out one of them.")
    rate = schedule_of(schedule)
    if rule is None:
        return {"lr": rate}
    return {"rule": dataclasses.replace(rule_of(rule), lr=rate)}


def schedule_of(text: str) -> Any:
    """The schedule of a text.

    Raises
    ------
    ValueError
        The text is no schedule, or its numbers make no sense.
    """
    from fastnc.dynamics.rules import LossScaled, Schedule

    if text == "loss-scaled":
        return LossScaled()
    try:
        made = _made(ast.parse(text, mode="eval").body)
    except (SyntaxError, _NoRule):
        made = None
    except TypeError as error:
        raise ValueError(f"{text!r} is no schedule: {error}.") from None
    if not isinstance(made, Schedule):
        raise ValueError(
            "`--schedule` must be loss-scaled or a schedule of fastnc.rules as "
            f'"Cosine(5, 1000)"; got {text!r}.'
        )
    return made


def rule_of(text: str) -> Any:
    """The rule of a text.

    Raises
    ------
    ValueError
        The text is no rule, or its numbers make no sense.
    """
    name, colon, lr = text.partition(":")
    written = text
    if name.isidentifier():
        kind = _SHORT.get(name.lower(), name)
        written = f"{kind}({lr})" if colon else f"{kind}()"
    try:
        return _made(ast.parse(written, mode="eval").body)
    except (SyntaxError, _NoRule):
        raise ValueError(f"a rule must be {HELP[:-1]}; got {text!r}.") from None
    except TypeError as error:
        raise ValueError(f"{text!r} is no rule: {error}.") from None


class _NoRule(Exception):
    """The text is neither a literal nor a rule or schedule."""


def _made(node: ast.expr) -> Any:
    """Literals, tuples of them, and calls of names of `fastnc.rules`; nothing else is evaluated."""
    from fastnc.dynamics import rules

    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_made(operand)
        case ast.Tuple(elts=elements):
            return tuple(_made(element) for element in elements)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            kind = getattr(rules, name, None) if name in rules.__all__ else None
            words = [word.arg for word in keywords]
            # Python's own compiler refuses a word that stands there twice, its parser does not.
            if kind is None or None in words or len(set(words)) < len(words):
                raise _NoRule
            named = {str(word.arg): _made(word.value) for word in keywords}
            return kind(*(_made(arg) for arg in args), **named)
    raise _NoRule
