"""Random request bodies, generated from a feature's schemas."""

import random
from typing import Any

from polyfactory.factories.pydantic_factory import ModelFactory
from pydantic import MISSING, BaseModel

ModelFactory.add_provider(
    MISSING, lambda: MISSING
)  # optional fields of a PATCH are left out at random


def body(schema: type[BaseModel], **given: Any) -> dict[str, Any]:
    """Returns a valid JSON body for the schema: the given fields, and random values besides."""
    factory = ModelFactory.create_factory(schema, __random_seed__=random.getrandbits(32))
    return factory.build(**given).model_dump(mode="json")
