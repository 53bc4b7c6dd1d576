"""Query models, read by Pydantic alone.

For `Annotated[Model, Query()]` FastAPI looks for each field of the model on its own, in every
request: two of five functions that a request for a list called. It still documents the fields.
"""

from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


class QueryReader(Generic[Model]):
    """A dependency that reads a model from the query. `fields` is what FastAPI would read, and
    what shared/docs.py has it document."""

    def __init__(self, model: type[Model]) -> None:
        async def declared(query: Annotated[model, Query()]) -> None:  # type: ignore[valid-type]
            pass

        self.model, self.fields = model, APIRoute("/", declared).dependant.query_params

    async def __call__(self, request: Request) -> Model:
        """
        Raises:
            RequestValidationError: as FastAPI raises it.
        """
        try:
            return self.model.model_validate(dict(request.query_params))
        except ValidationError as error:
            errors = error.errors(include_url=False)
            located = [{**each, "loc": ("query", *each["loc"])} for each in errors]
            raise RequestValidationError(located) from None


def from_query(model: type[BaseModel]) -> Any:
    """A dependency that gives a model of the query: `Annotated[ItemQuery, from_query(ItemQuery)]`.

    Declare it behind the principal: whoever is nobody is told that first. And in a route itself, as
    what other dependencies read is not documented. Of a parameter sent twice, the last counts.
    """
    return Depends(QueryReader(model))
