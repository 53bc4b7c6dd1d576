"""Routes of accounts."""

from features.users.router import (
    accounts,
    administration,
    api_keys,
    events,
    passwords,
    sessions,
    single_sign_on,
    tokens,
)
from features.users.state import CatchUp
from shared.web.routing import Router

router = Router(dependencies=[CatchUp])
for part in (
    accounts,
    passwords,
    api_keys,
    events,
    administration,
    tokens,
    sessions,
    single_sign_on,
):
    router.include_router(part.router)
