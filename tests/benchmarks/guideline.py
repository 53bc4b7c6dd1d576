"""The textbook layering, implemented fairly: a service class, one ORM session per request, the user
loaded in each request, `response_model` from ORM objects.

Started by `tests.benchmarks.endpoints`.
"""

import os
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import UUID

from fastapi import Depends, FastAPI, HTTPException, Response
from fastapi.security import OAuth2PasswordBearer
from joserfc.jwk import OKPKey
from pydantic import BaseModel
from sqlalchemy import func
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from features.items.schemas import ItemCreate, ItemPublic, ItemUpdate
from features.items.tables import Item
from features.users.access_tokens.jwt import TokenReader
from features.users.access_tokens.tables import SigningKey
from features.users.accounts.tables import User
from tests.benchmarks.bare import publish

url = os.environ["APP_DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://")
engine = create_async_engine(url, pool_size=10)
reader: TokenReader


class ItemList(BaseModel):
    items: list[ItemPublic]
    total: int | None


class ItemService:
    def __init__(self, session: AsyncSession) -> None:
        self.session = session

    async def get(self, owner: User, item_id: UUID) -> Item:
        statement = select(Item).where(Item.id == item_id, Item.owner_id == owner.id)
        item = (await self.session.exec(statement)).first()
        if item is None:
            raise HTTPException(404, "Item not found")
        return item

    async def list(self, owner: User, skip: int, limit: int) -> tuple[list[Item], int]:
        count = select(func.count()).select_from(Item).where(Item.owner_id == owner.id)
        total = (await self.session.exec(count)).one()
        statement = select(Item).where(Item.owner_id == owner.id)
        statement = statement.order_by(col(Item.created_at).desc(), col(Item.id).desc())
        found = await self.session.exec(statement.offset(skip).limit(limit))
        return list(found.all()), total

    async def create(self, owner: User, new: ItemCreate) -> Item:
        item = Item.model_validate(new, update={"owner_id": owner.id})
        self.session.add(item)
        await self._publish_and_commit(item)
        return item

    async def update(self, owner: User, item_id: UUID, changes: ItemUpdate) -> Item:
        item = await self.get(owner, item_id)
        item.sqlmodel_update(changes.model_dump(exclude_unset=True))
        self.session.add(item)
        await self._publish_and_commit(item, changes.model_fields_set)
        return item

    async def _publish_and_commit(self, item: Item, fields: Collection[str] | None = None) -> None:
        """Runs the subscribers of items in the transaction, as the application does."""
        await self.session.flush()
        pooled = await (await self.session.connection()).get_raw_connection()
        await publish(pooled.driver_connection, item.owner_id, [item.id], fields)
        await self.session.commit()
        await self.session.refresh(item)


async def get_session() -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine) as session:
        yield session


async def get_current_user(
    session: Annotated[AsyncSession, Depends(get_session)],
    token: Annotated[str, Depends(OAuth2PasswordBearer(tokenUrl="token"))],
) -> User:
    user = await session.get(User, reader.read(token).user_id)
    if user is None:
        raise HTTPException(401, "User not found")
    return user


def get_service(session: Annotated[AsyncSession, Depends(get_session)]) -> ItemService:
    return ItemService(session)


CurrentUser = Annotated[User, Depends(get_current_user)]
Service = Annotated[ItemService, Depends(get_service)]


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    global reader  # where it is stored does not affect the measurement
    async with AsyncSession(engine) as session:
        keys = (await session.exec(select(SigningKey))).all()
        public = {key.id: OKPKey.import_key(key.public_jwk) for key in keys}
        reader = TokenReader("http://127.0.0.1:8000", public)
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/healthz")
async def alive() -> dict[str, str]:
    return {"status": "ok"}


@app.get("/items", response_model=ItemList)
async def list_items(user: CurrentUser, service: Service, skip: int = 0, limit: int = 20) -> object:
    items, total = await service.list(user, skip, limit)
    return {"items": items, "total": total}


@app.post("/items", response_model=ItemPublic, status_code=201)
async def create_item(user: CurrentUser, service: Service, new: ItemCreate) -> Item:
    return await service.create(user, new)


@app.get("/items/{item_id}", response_model=ItemPublic)
async def get_item(user: CurrentUser, service: Service, item_id: UUID, response: Response) -> Item:
    return await service.get(user, item_id)


@app.patch("/items/{item_id}", response_model=ItemPublic)
async def update_item(
    user: CurrentUser, service: Service, item_id: UUID, changes: ItemUpdate
) -> Item:
    return await service.update(user, item_id, changes)
