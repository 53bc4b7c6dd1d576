"""Bodies of requests, made from a feature's own schemas."""

import random
from typing import Any

from polyfactory.factories.pydantic_factory import ModelFactory
from pydantic import MISSING, BaseModel

ModelFactory.add_provider(MISSING, lambda: MISSING)  # what a change may leave out, it does at times


def body(schema: type[BaseModel], **given: Any) -> dict[str, Any]:
    """A JSON body that is valid for a feature's own schema: what is given, the rest random."""
    factory = ModelFactory.create_factory(schema, __random_seed__=random.getrandbits(32))
    return factory.build(**given).model_dump(mode="json")
