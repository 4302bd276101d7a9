"""The base of every description: frozen, strict about unknown fields, and quick to say what is wrong."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ramet.errors import UsageError


class Model(BaseModel):
    """A frozen, validated value. Change it with ``model_copy(update=…)`` or `changed`."""

    # what was given may be a password, and the text of an error may come to the log
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    def changed(self, **update: Any) -> Self:
        """A copy with some fields replaced, validated again (``model_copy`` does not validate). Raises UsageError."""
        try:
            return type(self).model_validate({**self.model_dump(), **update})
        except ValidationError as exc:
            raise UsageError(explain(exc)) from exc


def explain(error: ValidationError) -> str:
    """A validation error as one sentence a person can act on: the first field that is wrong, and why."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "the request"
    what = first["msg"].removeprefix("Value error, ")
    return f"{where}: {what}."


def parse(model: type[Model], data: dict[str, Any]) -> Any:
    """Validate at the edge: `UsageError` with one sentence instead of pydantic's list."""
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        raise UsageError(explain(exc)) from exc
