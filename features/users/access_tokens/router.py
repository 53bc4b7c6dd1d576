from fastapi import APIRouter, Response

from features.users.access_tokens.signing_keys import JWKS_MAX_AGE
from features.users.dependencies import StateDep

router = APIRouter(tags=["auth"])


@router.get("/.well-known/jwks.json")
async def jwks(state: StateDep, response: Response) -> dict[str, list[dict[str, str]]]:
    """The public keys that verify access tokens (RFC 7517)."""
    if not state.keyring.ids:
        await state.keyring.load()
    seconds = int(JWKS_MAX_AGE.total_seconds())
    response.headers["Cache-Control"] = f"public, max-age={seconds}"
    return state.keyring.published()
