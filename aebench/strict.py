"""STRICT: how every table of a TOML file is checked; Strict: the class of such tables."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

STRICT = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
"""Every key is known, and no value is bent to fit its type."""


class Strict(BaseModel):
    """A table in which every key is known."""

    model_config = STRICT

    LATER: ClassVar[tuple[str, ...]] = ()
    """Keys that came when runs had been shipped. They are not written where they have their defaults, so the digests of
    points and the specs of runs from before stay as they are."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        fields = type(self).model_fields
        unsaid = {key for key in self.LATER if getattr(self, key) == fields[key].default}
        return {key: value for key, value in written.items() if key not in unsaid}
