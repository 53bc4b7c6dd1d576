"""All routes of users, in the order of the API document."""

from fastapi import APIRouter

from features.users.access_tokens.router import router as access_tokens
from features.users.accounts.router import router as accounts
from features.users.administration.router import router as administration
from features.users.api_keys.router import router as api_keys
from features.users.dependencies import SyncRevocations
from features.users.events.router import router as events
from features.users.passwords.router import router as passwords
from features.users.sessions.router import router as sessions
from features.users.sign_in.router import router as sign_in
from features.users.single_sign_on.router import router as single_sign_on

router = APIRouter(dependencies=[SyncRevocations])
router.include_router(accounts)
router.include_router(passwords)
router.include_router(api_keys)
router.include_router(events)
router.include_router(administration)
router.include_router(sign_in)
router.include_router(access_tokens)
router.include_router(sessions)
router.include_router(single_sign_on)
