from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.handlers.accounts import add_user
from features.users.passwords import Passwords
from features.users.tables import User
from shared.demo import DEMO_EMAIL, DEMO_PASSWORD


async def add_demo_account(session: AsyncSession) -> bool:
    """Adds the demo account, unless there are accounts."""
    if (await session.exec(select(User.id).limit(1))).first():
        return False
    password_hash = await Passwords(cheap=False).hash(DEMO_PASSWORD)
    await add_user(session, DEMO_EMAIL, password_hash, "Demo", verified=True)
    return True
