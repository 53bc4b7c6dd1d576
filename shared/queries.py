"""Query models, validated by Pydantic in one call.

For `Annotated[Model, Query()]` FastAPI extracts each field of the model separately in every
request: two of five function calls of a request for a list. FastAPI still documents the fields.
"""

from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


class QueryReader(Generic[Model]):
    """A dependency that reads a model from the query string.

    `fields` has the parameters that FastAPI would read; shared/docs.py documents them.
    """

    def __init__(self, model: type[Model]) -> None:
        async def declared(query: Annotated[model, Query()]) -> None:  # type: ignore[valid-type]
            pass

        self.model, self.fields = model, APIRoute("/", declared).dependant.query_params

    async def __call__(self, request: Request) -> Model:
        """Returns the validated model.

        Raises:
            RequestValidationError: a parameter is invalid; the error is the same as FastAPI's.
        """
        try:
            return self.model.model_validate(dict(request.query_params))
        except ValidationError as error:
            errors = error.errors(include_url=False)
            located = [{**each, "loc": ("query", *each["loc"])} for each in errors]
            raise RequestValidationError(located) from None


def from_query(model: type[BaseModel]) -> Any:
    """Returns a dependency that reads a query model, such as `from_query(ItemQuery)`.

    Use it as `Annotated[ItemQuery, from_query(ItemQuery)]`. Declare it after the principal, so that
    an unauthenticated request gets 401, not 422. Declare it in the route itself, as the parameters
    of nested dependencies are not documented. Of a parameter sent twice, the last value counts.
    """
    return Depends(QueryReader(model))
