"""Random request bodies, generated from a feature's schemas."""

import random
from functools import cache
from typing import Any

from pydantic import MISSING, BaseModel

DRAWS = 8


def payload_for(schema: type[BaseModel], **given: Any) -> dict[str, Any]:
    """Returns a valid JSON body for the schema: the given fields, and random values besides.

    Fields that a PATCH may leave out are left out at random. The texts of two bodies differ, where
    the schema leaves room for that, so that both may go into a unique column.
    """
    factory = _body_factory().create_factory(schema, __random_seed__=random.getrandbits(32))
    body: dict[str, Any] = factory.build(**given).model_dump(mode="json")
    return body


@cache
def _body_factory() -> Any:
    # Takes 0.1 s to import, and each process of the suite imports this module.
    from polyfactory.factories.pydantic_factory import ModelFactory

    class BodyFactory(ModelFactory[Any]):
        __is_base_factory__ = True

        @classmethod
        def get_constrained_field_value(cls, *args: Any, **kwargs: Any) -> Any:
            """Returns the longest of some texts: polyfactory draws one of a single character as
            often as one of ten, and two of a single character are soon the same."""
            draw = super().get_constrained_field_value
            first = draw(*args, **kwargs)
            if not isinstance(first, str):
                return first
            return max(first, *(draw(*args, **kwargs) for _ in range(DRAWS)), key=len)

    BodyFactory.add_provider(MISSING, lambda: MISSING)
    return BodyFactory
