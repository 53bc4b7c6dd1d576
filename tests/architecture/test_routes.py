"""What no route of any feature may do."""

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from app import routing
from shared.db import dependencies
from shared.web import uploads


def test_no_transaction_is_open_while_an_upload_comes(app: FastAPI) -> None:
    """A client may take an hour, and PostgreSQL keeps each row that is deleted after its begin."""
    upload = 0
    for route in iter_route_contexts(app.routes):
        dependant = getattr(route, "dependant", None)
        calls = {each.call for each in routing._flatten(dependant)} if dependant else set()
        if uploads._upload in calls:
            upload += 1
            assert dependencies._write_session not in calls, f"{route.path}: Upload, WriteSession"
    assert upload
