"""The demo account."""

from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.accounts.handlers import add_user
from features.users.accounts.tables import User
from features.users.passwords.hashing import PasswordHasher
from shared.feature import Demo

DEMO_EMAIL = "demo@example.com"
DEMO_PASSWORD = "demo-password"
HINT = f"""Demo account: {DEMO_EMAIL} with the password {DEMO_PASSWORD}

Try it:
TOKEN=$(curl -s {{address}}/auth/token -d grant_type=password -d username={DEMO_EMAIL} \
-d password={DEMO_PASSWORD} | sed 's/.*"access_token":"\\([^"]*\\)".*/\\1/')"""


async def add_demo_account(session: AsyncSession) -> None:
    """Adds the demo account, unless there are accounts."""
    if (await session.exec(select(User.id).limit(1))).first():
        return
    password_hash = await PasswordHasher(cheap=False).hash(DEMO_PASSWORD)
    await add_user(session, DEMO_EMAIL, password_hash, "Demo", verified=True)


demo = Demo(load=add_demo_account, hint=HINT)
