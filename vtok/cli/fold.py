"""Options that commands share: a parameter that is a dataclass stands for all of its fields."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints


def unfolded(command: Callable[..., None]) -> Callable[..., None]:
    """A command as Typer takes it: fields in place of each parameter that is a dataclass.

    They have the dataclass's own defaults, or those of the instance that is the parameter's
    default. The command is called with the dataclass made of what was asked for.
    """
    hints = get_type_hints(command, include_extras=True)
    flat: dict[str, Parameter] = {}
    folds: dict[str, tuple[Any, list[str]]] = {}
    for name, parameter in signature(command).parameters.items():
        kind: Callable[..., Any] = hints[name]
        if not is_dataclass(kind):
            flat[name] = parameter.replace(annotation=kind)
            continue
        usual = kind() if parameter.default is Parameter.empty else parameter.default
        folds[name] = (kind, [field.name for field in fields(kind)])
        for field, hint in get_type_hints(kind, include_extras=True).items():
            default = getattr(usual, field)
            flat[field] = Parameter(field, Parameter.KEYWORD_ONLY, default=default, annotation=hint)

    @wraps(command)
    def run(**values: Any) -> None:
        for name, (kind, names) in folds.items():
            values[name] = kind(**{field: values.pop(field) for field in names})
        command(**values)

    run.__signature__ = Signature(list(flat.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in flat.items()}
    return run
