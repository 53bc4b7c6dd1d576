from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.users.handlers import register
from features.users.schemas import UserCreate
from features.users.tables import User
from shared.demo import DEMO_EMAIL, DEMO_PASSWORD


async def add_demo_account(session: AsyncSession) -> bool:
    """Adds the demo account, unless there are accounts."""
    if (await session.exec(select(User.id).limit(1))).first():
        return False
    await register(session, UserCreate(email=DEMO_EMAIL, password=DEMO_PASSWORD, name="Demo"))
    return True
