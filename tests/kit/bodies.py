"""Random request bodies, generated from a feature's schemas."""

import random
from typing import Any

from pydantic import MISSING, BaseModel


def payload_for(schema: type[BaseModel], **given: Any) -> dict[str, Any]:
    """Returns a valid JSON body for the schema: the given fields, and random values besides.

    Fields that a PATCH may leave out are left out at random.
    """
    # Takes 0.1 s to import, and each process of the suite imports this module.
    from polyfactory.factories.pydantic_factory import ModelFactory

    ModelFactory.add_provider(MISSING, lambda: MISSING)
    factory = ModelFactory.create_factory(schema, __random_seed__=random.getrandbits(32))
    return factory.build(**given).model_dump(mode="json")
