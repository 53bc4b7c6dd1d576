# ruff: noqa: E501  # the lines of the files are indented here
"""`shipments`, a feature with the shapes of the recipes in CONTRIBUTING.md, which quotes it.

It has children in one statement, many rows at once, the ORM beside statements, a resource of the
process, subscriptions, calls of another service, a periodic task, a command and a demo.
"""

SHIPMENTS = {
    "features/shipments/__init__.py": '''
        """Shipments of an account, with the items that are in their parcels."""

        from features.shipments.tables import Shipment

        __all__ = ["Shipment"]
    ''',
    "features/shipments/feature.py": '''
        """The declaration of shipments, for the kernel."""

        from features.items import item_changes
        from features.shipments.commands import commands
        from features.shipments.demo import add_demo_shipment
        from features.shipments.handlers import delete_all_shipments
        from features.shipments.notices import send_notices
        from features.shipments.rates import lifespan
        from features.shipments.router import router
        from features.shipments.settings import ShipmentsSettings
        from features.shipments.subscribers import forget_items, mark_outdated
        from features.shipments.tasks import delete_old_shipments
        from features.users import account_changes
        from shared.db.changes import Subscription
        from shared.feature import Demo, Feature

        feature = Feature(
            name="shipments",
            router=router,
            depends_on=("users", "items"),
            scopes={"shipments:read": "Read your shipments", "shipments:write": "Add shipments"},
            settings=ShipmentsSettings,
            lifespan=lifespan,
            tasks=(send_notices,),
            periodic_tasks=(delete_old_shipments,),
            subscriptions=(
                Subscription(item_changes, forget_items),
                Subscription(item_changes, mark_outdated, outbox="shipments"),
                Subscription(account_changes, delete_all_shipments, outbox="shipments_accounts"),
            ),
            commands=commands,
            demo=Demo(load=add_demo_shipment, hint="curl -s {address}/shipments"),
        )
    ''',
    "features/shipments/settings.py": '''
        """Settings of shipments, in the environment: `APP_SHIPMENTS_KEPT_DAYS=30`."""

        from pydantic import Field

        from shared.settings import FeatureSettings


        class ShipmentsSettings(FeatureSettings):
            shipments_kept_days: int = Field(default=90, ge=1)
            shipments_cents_per_kilogram: int = Field(default=500, ge=0)
            shipments_carrier_url: str = ""
    ''',
    "features/shipments/.env.example": """
        # APP_SHIPMENTS_KEPT_DAYS=90
        # APP_SHIPMENTS_CENTS_PER_KILOGRAM=500
        # APP_SHIPMENTS_CARRIER_URL=https://carrier.example/shipments
    """,
    "features/shipments/tables.py": '''
        """The tables of shipments."""

        from datetime import datetime
        from uuid import UUID

        from sqlalchemy import ForeignKeyConstraint, Index, func
        from sqlmodel import Field, SQLModel

        from shared.db.tables import Timestamped, table_of, uuid7


        def of_shipment() -> ForeignKeyConstraint:
            key, other = ["owner_id", "shipment_id"], ["shipments.owner_id", "shipments.id"]
            return ForeignKeyConstraint(key, other, ondelete="CASCADE")


        class Shipment(Timestamped, table=True):
            __tablename__ = "shipments"

            owner_id: UUID = Field(primary_key=True)
            id: UUID = Field(default_factory=uuid7, primary_key=True)
            address: str


        class Parcel(SQLModel, table=True):
            """`outdated`: the item has changed since."""

            __tablename__ = "parcels"
            __table_args__ = (of_shipment(), Index("ix_parcels_item", "owner_id", "item_id"))

            owner_id: UUID = Field(primary_key=True)
            shipment_id: UUID = Field(primary_key=True)
            number: int = Field(primary_key=True)
            item_id: UUID | None = None
            grams: int
            outdated: bool = False


        class Notice(SQLModel, table=True):
            """What the carrier is to be told of a shipment; parked if it has no next attempt."""

            __tablename__ = "notices"
            __table_args__ = (
                of_shipment(),
                Index("ix_notices_shipment", "owner_id", "shipment_id", "id"),
                Index("ix_notices_next_attempt", "next_attempt_at"),
            )

            owner_id: UUID = Field(primary_key=True)
            id: UUID = Field(default_factory=uuid7, primary_key=True)
            shipment_id: UUID
            address: str
            attempts: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
            next_attempt_at: datetime | None = Field(
                default=None, sa_column_kwargs={"server_default": func.now()}
            )


        SHIPMENTS = table_of(Shipment)
        PARCELS = table_of(Parcel)
        NOTICES = table_of(Notice)
    ''',
    "features/shipments/schemas.py": '''
        """What shipments look like to clients."""

        from datetime import datetime
        from typing import Annotated
        from uuid import UUID

        from pydantic import BaseModel, ConfigDict, Field
        from pydantic.config import JsonDict

        from shared.types import JSON_NUMBER, DatabaseText

        Address = Annotated[DatabaseText, Field(min_length=1, max_length=500)]
        EXAMPLE: JsonDict = {"address": "1 Main Street", "parcels": [{"grams": 300}, {"grams": 700}]}


        class ParcelCreate(BaseModel):
            model_config = ConfigDict(extra="forbid")

            grams: Annotated[int, Field(ge=1, le=30_000), JSON_NUMBER]
            item_id: UUID | None = None


        class ShipmentCreate(BaseModel):
            model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [EXAMPLE]})

            address: Address
            parcels: Annotated[list[ParcelCreate], Field(min_length=1, max_length=1_000)]


        class ShipmentUpdate(BaseModel):
            model_config = ConfigDict(
                extra="forbid", json_schema_extra={"examples": [{"address": "2 Main Street"}]}
            )

            address: Address


        class ParcelPublic(BaseModel):
            number: int
            item_id: UUID | None
            grams: int
            outdated: bool


        class ShipmentPublic(BaseModel):
            id: UUID
            address: str
            parcels: list[ParcelPublic]
            created_at: datetime
            updated_at: datetime


        class ShipmentQuery(BaseModel):
            model_config = ConfigDict(extra="forbid")

            id: Annotated[list[UUID] | None, Field(max_length=100)] = None


        class ShipmentList(BaseModel):
            items: list[ShipmentPublic]


        class Price(BaseModel):
            cents: int
    ''',
    "features/shipments/handlers.py": '''
        """The use-cases of shipments."""

        from collections.abc import Sequence
        from datetime import datetime
        from uuid import UUID

        from sqlalchemy import ARRAY, Uuid, any_, bindparam, delete, func, insert, select, update
        from sqlalchemy.dialects.postgresql import JSONB
        from sqlmodel import col
        from sqlmodel import select as select_models
        from sqlmodel.ext.asyncio.session import AsyncSession

        from features.shipments.schemas import ShipmentCreate, ShipmentPublic
        from features.shipments.tables import NOTICES, PARCELS, SHIPMENTS, Shipment
        from shared.db import ReadSession, WriteSession, write_session_of
        from shared.db.changes import Change
        from shared.db.tables import delete_owned_rows, uuid7
        from shared.problems import NotFound

        IS_OWNERS_PARCEL = PARCELS.c.owner_id == bindparam("owner")
        PARCELS_AS_JSON = (
            select(func.jsonb_agg(func.to_jsonb(PARCELS.table_valued()), type_=JSONB))
            .where(IS_OWNERS_PARCEL, PARCELS.c.shipment_id == SHIPMENTS.c.id)
            .scalar_subquery()
        )
        IDS = bindparam("ids", type_=ARRAY(Uuid))
        SELECT_SHIPMENTS = (
            select(SHIPMENTS, PARCELS_AS_JSON.label("parcels"))
            .where(
                SHIPMENTS.c.owner_id == bindparam("owner"),
                IDS.is_(None) | (SHIPMENTS.c.id == any_(IDS)),
            )
            .order_by(SHIPMENTS.c.id.desc())
            .limit(100)
        )
        INSERT_SHIPMENT = insert(SHIPMENTS)
        INSERT_PARCEL = insert(PARCELS)
        HAS_ITEM = (IS_OWNERS_PARCEL, PARCELS.c.item_id == any_(IDS))
        FORGET_ITEMS = update(PARCELS).where(*HAS_ITEM).values(item_id=None)
        MARK_OUTDATED = update(PARCELS).where(*HAS_ITEM).values(outdated=True)
        MARK_CURRENT = (
            update(PARCELS)
            .where(IS_OWNERS_PARCEL, PARCELS.c.shipment_id == bindparam("shipment"))
            .values(outdated=False)
        )
        DELETE_OLD = delete(SHIPMENTS).where(SHIPMENTS.c.created_at < bindparam("before"))
        COUNT_SHIPMENTS = select(func.count()).select_from(SHIPMENTS)
        INSERT_NOTICE = insert(NOTICES)
        NOTICES_CHANNEL = "notices"


        async def create_shipment(
            session: WriteSession, owner_id: UUID, new: ShipmentCreate
        ) -> ShipmentPublic:
            """Adds a shipment with its parcels."""
            shipment_id = uuid7()
            values = {"id": shipment_id, "owner_id": owner_id, "address": new.address}
            await session.execute(INSERT_SHIPMENT, values)
            key = {"owner_id": owner_id, "shipment_id": shipment_id}
            parcels = [
                {**key, "number": number, **parcel.model_dump()}
                for number, parcel in enumerate(new.parcels, start=1)
            ]
            await session.execute(INSERT_PARCEL, parcels)
            return await get_shipment(session, owner_id, shipment_id)


        async def list_shipments(
            session: ReadSession, owner_id: UUID, ids: Sequence[UUID] | None
        ) -> list[ShipmentPublic]:
            """Returns these of the owner's shipments, or the newest, with their parcels."""
            values = {"owner": owner_id, "ids": ids}
            return await session.fetch_as(ShipmentPublic, SELECT_SHIPMENTS, values)


        async def get_shipment(session: ReadSession, owner_id: UUID, shipment_id: UUID) -> ShipmentPublic:
            """
            Raises:
                NotFound: there is no such shipment, or it is somebody else's.
            """
            found = await list_shipments(session, owner_id, [shipment_id])
            if not found:
                raise NotFound(f"Shipment {shipment_id} not found")
            return found[0]


        async def redirect_shipment(
            session: AsyncSession, owner_id: UUID, shipment_id: UUID, address: str
        ) -> ShipmentPublic:
            """Changes the address by the ORM, and the parcels by a statement, in one transaction.

            Raises:
                NotFound: there is no such shipment, or it is somebody else's.
            """
            own = (col(Shipment.owner_id) == owner_id, col(Shipment.id) == shipment_id)
            shipment = (await session.exec(select_models(Shipment).where(*own))).one_or_none()
            if shipment is None:
                raise NotFound(f"Shipment {shipment_id} not found")
            shipment.address = address
            writing = write_session_of(session)
            await writing.execute(MARK_CURRENT, {"owner": owner_id, "shipment": shipment_id})
            notice = {"id": uuid7(), "owner_id": owner_id, "shipment_id": shipment_id}
            await writing.execute(INSERT_NOTICE, notice | {"address": address})
            writing.notify(NOTICES_CHANNEL)
            return await get_shipment(writing, owner_id, shipment_id)


        async def delete_shipments(session: WriteSession, before: datetime) -> int:
            """Deletes the shipments of before that time, and returns their number."""
            return await session.execute(DELETE_OLD, {"before": before})


        async def count_shipments(session: ReadSession) -> int:
            return int(await session.fetch_value(COUNT_SHIPMENTS))


        async def delete_all_shipments(session: WriteSession, deleted: Change) -> int:
            """Deletes a batch of those of a deleted account, with their parcels and notices."""
            return await delete_owned_rows(session, SHIPMENTS, deleted.owner_id)
    ''',
    "features/shipments/subscribers.py": '''
        """What shipments do when items have changed."""

        from features.shipments.handlers import FORGET_ITEMS, MARK_OUTDATED
        from shared.db import WriteSession
        from shared.db.changes import Change, ChangeKind


        async def forget_items(session: WriteSession, change: Change) -> None:
            """Runs in the transaction that deletes the items: no parcel ever names a deleted one."""
            if change.kind is ChangeKind.DELETED:
                await session.execute(FORGET_ITEMS, {"owner": change.owner_id, "ids": change.ids})


        async def mark_outdated(session: WriteSession, change: Change) -> None:
            """Runs after the commit, from the outbox, until it succeeds."""
            if change.kind is ChangeKind.UPDATED:
                await session.execute(MARK_OUTDATED, {"owner": change.owner_id, "ids": change.ids})
    ''',
    "features/shipments/notices.py": '''
        """Tells the carrier of new addresses: the notices of a shipment in their order, each at
        least once."""

        import asyncio
        from datetime import timedelta
        from uuid import UUID

        import httpx
        import structlog
        from fastapi import FastAPI
        from sqlalchemy import Interval, bindparam, delete, exists, func, select, text, update

        from features.shipments.handlers import NOTICES_CHANNEL
        from features.shipments.settings import ShipmentsSettings
        from features.shipments.tables import NOTICES
        from shared.db import Row, WriteSession, database_of
        from shared.state import settings_of
        from shared.tasks import Task

        SEND_SECONDS = 10.0
        FIRST_RETRY = timedelta(seconds=15)  # doubles with each attempt
        MAX_ATTEMPTS = 9
        OWNERS_TRIED = 10

        EARLIER = NOTICES.alias()
        IS_DUE = (
            NOTICES.c.next_attempt_at <= func.statement_timestamp(),
            ~exists().where(
                EARLIER.c.owner_id == NOTICES.c.owner_id,
                EARLIER.c.shipment_id == NOTICES.c.shipment_id,
                EARLIER.c.id < NOTICES.c.id,
                EARLIER.c.next_attempt_at.is_not(None),
            ),
        )
        SELECT_OWNERS = (
            select(NOTICES.c.owner_id)
            .where(*IS_DUE)
            .group_by(NOTICES.c.owner_id)
            .order_by(func.random())
            .limit(OWNERS_TRIED)
        )
        IS_OWNERS = NOTICES.c.owner_id == bindparam("owner")
        SELECT_DUE = (
            select(NOTICES)
            .where(IS_OWNERS, *IS_DUE)
            .order_by(NOTICES.c.next_attempt_at)
            .limit(1)
            .with_for_update(of=NOTICES, skip_locked=True)
        )
        IS_THIS_NOTICE = (IS_OWNERS, NOTICES.c.id == bindparam("notice"))
        DELETE_NOTICE = delete(NOTICES).where(*IS_THIS_NOTICE)
        SCHEDULE_RETRY = (
            update(NOTICES)
            .where(*IS_THIS_NOTICE)
            .values(
                attempts=NOTICES.c.attempts + 1,
                next_attempt_at=func.statement_timestamp() + bindparam("pause", type_=Interval),
            )
        )
        BACKLOG = text("""
        SELECT count(next_attempt_at), count(*) - count(next_attempt_at),
            greatest(0, extract(epoch FROM statement_timestamp() - min(next_attempt_at)))
        FROM notices
        """)

        log = structlog.get_logger(__name__)


        async def _send_next(app: FastAPI) -> int:
            url = settings_of(app, ShipmentsSettings).shipments_carrier_url
            async with database_of(app).transaction() as session:
                notice = await _lock_due(session)
                if notice is None:
                    return 0
                this = {"owner": notice.owner_id, "notice": notice.id}
                try:
                    async with asyncio.timeout(SEND_SECONDS):
                        await _tell_carrier(url, notice.shipment_id, notice.address)
                except Exception as error:  # of any kind: the other shipments must not wait for it
                    parked = notice.attempts + 1 >= MAX_ATTEMPTS
                    pause = None if parked else FIRST_RETRY * 2**notice.attempts
                    await session.execute(SCHEDULE_RETRY, this | {"pause": pause})
                    log.warning("notice_failed", id=str(notice.id), parked=parked, error=repr(error))
                else:
                    await session.execute(DELETE_NOTICE, this)
                return 1


        async def _lock_due(session: WriteSession) -> Row | None:
            for row in await session.fetch(SELECT_OWNERS):
                if notice := await session.fetch_one(SELECT_DUE, {"owner": row.owner_id}):
                    return notice
            return None


        async def _tell_carrier(url: str, shipment_id: UUID, address: str) -> None:
            async with httpx.AsyncClient() as client:
                response = await client.put(f"{url}/{shipment_id}", json={"address": address})
                response.raise_for_status()


        send_notices = Task(
            name="send_notices", run=_send_next, every=5, channel=NOTICES_CHANNEL, backlog=BACKLOG
        )
    ''',
    "features/shipments/rates.py": '''
        """What a shipment costs: a resource of the process, opened at its start."""

        from collections.abc import AsyncIterator
        from contextlib import asynccontextmanager
        from dataclasses import dataclass
        from typing import Annotated

        from fastapi import FastAPI

        from features.shipments.schemas import ShipmentPublic
        from features.shipments.settings import ShipmentsSettings
        from shared.state import resource, settings_of


        @dataclass(frozen=True)
        class Rates:
            cents_per_kilogram: int

            def price(self, shipment: ShipmentPublic) -> int:
                """Returns the price in cents."""
                grams = sum(parcel.grams for parcel in shipment.parcels)
                return grams * self.cents_per_kilogram // 1_000


        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[Rates]:
            yield Rates(settings_of(app, ShipmentsSettings).shipments_cents_per_kilogram)


        RatesDep = Annotated[Rates, resource(Rates)]
    ''',
    "features/shipments/router.py": '''
        """The routes of shipments."""

        from typing import Annotated
        from uuid import UUID

        from fastapi import APIRouter, Query, Request, Response, status

        from features.shipments import handlers
        from features.shipments.rates import RatesDep
        from features.shipments.schemas import (
            Price,
            ShipmentCreate,
            ShipmentList,
            ShipmentPublic,
            ShipmentQuery,
            ShipmentUpdate,
        )
        from shared.auth import Principal, requires
        from shared.db import OrmSession, ReadSession, WriteSession
        from shared.web.conditional import CREATED_RESPONSE, created

        router = APIRouter(prefix="/shipments", tags=["shipments"])

        Reader = Annotated[Principal, requires("shipments:read")]
        Writer = Annotated[Principal, requires("shipments:write")]


        @router.post(
            "",
            status_code=status.HTTP_201_CREATED,
            response_model=ShipmentPublic,
            responses=CREATED_RESPONSE,
        )
        async def create(
            new: ShipmentCreate, request: Request, principal: Writer, session: WriteSession
        ) -> Response:
            """Adds a shipment with its parcels."""
            shipment = await handlers.create_shipment(session, principal.user_id, new)
            return created(request, shipment)


        @router.get("")
        async def list_(
            principal: Reader, query: Annotated[ShipmentQuery, Query()], session: ReadSession
        ) -> ShipmentList:
            """Your newest shipments, or those that are named: `?id=…&id=…`."""
            shipments = await handlers.list_shipments(session, principal.user_id, query.id)
            return ShipmentList(items=shipments)


        @router.get("/{shipment_id:uuid}")
        async def get(shipment_id: UUID, principal: Reader, session: ReadSession) -> ShipmentPublic:
            """One shipment, with its parcels."""
            return await handlers.get_shipment(session, principal.user_id, shipment_id)


        @router.patch("/{shipment_id:uuid}")
        async def redirect(
            shipment_id: UUID, changes: ShipmentUpdate, principal: Writer, session: OrmSession
        ) -> ShipmentPublic:
            """Changes the address."""
            return await handlers.redirect_shipment(
                session, principal.user_id, shipment_id, changes.address
            )


        @router.get("/{shipment_id:uuid}/price")
        async def price(
            shipment_id: UUID, principal: Reader, session: ReadSession, rates: RatesDep
        ) -> Price:
            """What the shipment costs."""
            shipment = await handlers.get_shipment(session, principal.user_id, shipment_id)
            return Price(cents=rates.price(shipment))
    ''',
    "features/shipments/tasks.py": '''
        """The background work of shipments."""

        from datetime import UTC, datetime, timedelta

        from fastapi import FastAPI

        from features.shipments.handlers import delete_shipments
        from features.shipments.settings import ShipmentsSettings
        from shared.db import database_of
        from shared.state import settings_of
        from shared.tasks import PeriodicTask


        async def _delete_old(app: FastAPI) -> None:
            kept = timedelta(days=settings_of(app, ShipmentsSettings).shipments_kept_days)
            async with database_of(app).transaction() as session:
                await delete_shipments(session, datetime.now(UTC) - kept)


        delete_old_shipments = PeriodicTask(name="delete_old_shipments", run=_delete_old, every=24 * 3600)
    ''',
    "features/shipments/commands.py": '''
        """`python -m app count-shipments`."""

        import typer

        from features.shipments.handlers import count_shipments
        from shared.cli import run_with_database
        from shared.db import Database

        commands = typer.Typer()


        @commands.command("count-shipments")
        def count_command(context: typer.Context) -> None:
            """Print how many shipments there are."""
            typer.echo(run_with_database(context, _count))


        async def _count(database: Database) -> int:
            return await count_shipments(database.read())
    ''',
    "features/shipments/demo.py": '''
        """The demo of shipments."""

        from sqlmodel.ext.asyncio.session import AsyncSession

        from features.shipments.handlers import count_shipments, create_shipment
        from features.shipments.schemas import EXAMPLE, ShipmentCreate
        from features.users import DEMO_EMAIL, find_user_id
        from shared.db import write_session_of


        async def add_demo_shipment(session: AsyncSession) -> None:
            """Adds a shipment for the demo account, unless there are shipments."""
            writing = write_session_of(session)
            owner_id = await find_user_id(writing, DEMO_EMAIL)
            if owner_id is None or await count_shipments(writing):
                return
            await create_shipment(writing, owner_id, ShipmentCreate.model_validate(EXAMPLE))
    ''',
    "features/shipments/tests/privacy.py": '''
        """What an account has, for tests/contract/test_privacy.py."""

        from httpx import AsyncClient


        async def shipment(client: AsyncClient, mark: str) -> str:
            body = {"address": mark, "parcels": [{"grams": 1}]}
            return str((await client.post("/shipments", json=body)).json()["id"])


        OWNED_PARAMETERS = {"shipment_id": shipment}
    ''',
    "features/shipments/tests/constraints.py": '''
        """Constraints that no request can violate, for tests/architecture/test_constraints.py."""

        NEVER_VIOLATED = {
            "fk_parcels_owner_id_shipment_id": "parcels are added in the transaction of their shipment",
            "fk_notices_owner_id_shipment_id": "notices are added by who has locked their shipment",
        }
    ''',
    "features/shipments/tests/test_shipments.py": '''
        """Shipments with their parcels, which follow the items."""

        import json
        import threading
        from collections.abc import Iterator
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
        from typing import Any

        import pytest
        from fastapi import FastAPI
        from httpx import AsyncClient

        from features.shipments.notices import send_notices
        from features.shipments.schemas import EXAMPLE
        from features.shipments.tasks import delete_old_shipments
        from tests.kit import Command, max_queries, run_outbox, run_until_idle
        from tests.kit.servers import execute


        async def add(client: AsyncClient, *parcels: dict[str, Any]) -> dict[str, Any]:
            body = EXAMPLE | ({"parcels": parcels} if parcels else {})
            created = await client.post("/shipments", json=body)
            assert created.status_code == 201, created.text
            data: dict[str, Any] = created.json()
            return data


        async def add_item(client: AsyncClient) -> str:
            return str((await client.post("/items", json={"title": "Mug", "price": 5})).json()["id"])


        async def test_shipments_come_with_their_parcels_in_one_statement(
            client: AsyncClient, other_client: AsyncClient
        ) -> None:
            first, second = await add(client), await add(client, {"grams": 5})
            query = {"id": [first["id"], second["id"], (await add(other_client))["id"]]}
            with max_queries(1):
                found = (await client.get("/shipments", params=query)).json()["items"]
            assert sorted(each["id"] for each in found) == [first["id"], second["id"]]
            assert [parcel["grams"] for parcel in first["parcels"]] == [300, 700]


        async def test_many_parcels_are_few_statements(client: AsyncClient) -> None:
            with max_queries(3):
                created = await add(client, *({"grams": n + 1} for n in range(500)))
            assert len(created["parcels"]) == 500


        async def test_a_deleted_item_is_in_no_parcel(client: AsyncClient) -> None:
            item = await add_item(client)
            path = f"/shipments/{(await add(client, {'grams': 5, 'item_id': item}))['id']}"
            assert (await client.get(path)).json()["parcels"][0]["item_id"] == item
            await client.delete(f"/items/{item}")
            assert (await client.get(path)).json()["parcels"][0]["item_id"] is None


        async def test_a_changed_item_outdates_its_parcels_until_they_are_redirected(
            app: FastAPI, client: AsyncClient
        ) -> None:
            item = await add_item(client)
            path = f"/shipments/{(await add(client, {'grams': 5, 'item_id': item}))['id']}"
            await client.patch(f"/items/{item}", json={"title": "Cup"})
            assert not (await client.get(path)).json()["parcels"][0]["outdated"]
            await run_outbox(app, "shipments")
            assert (await client.get(path)).json()["parcels"][0]["outdated"]
            changed = (await client.patch(path, json={"address": "2 Main Street"})).json()
            assert changed["address"] == "2 Main Street"
            assert not changed["parcels"][0]["outdated"]


        class Carrier(BaseHTTPRequestHandler):
            """Records each address it is told, and refuses those that are `unknown`."""

            unknown: set[str]
            told: list[str]

            def do_PUT(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.told.append(body["address"])
                self.send_response(422 if body["address"] in self.unknown else 204)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...


        @pytest.fixture
        def carrier(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Carrier]]:
            Carrier.unknown, Carrier.told = set(), []
            with ThreadingHTTPServer(("127.0.0.1", 0), Carrier) as server:
                threading.Thread(target=server.serve_forever, daemon=True).start()
                address = f"http://127.0.0.1:{server.server_port}"
                monkeypatch.setenv("APP_SHIPMENTS_CARRIER_URL", address)
                yield Carrier
                server.shutdown()


        async def test_the_carrier_is_told_in_order_until_it_answers(
            carrier: type[Carrier], app: FastAPI, client: AsyncClient, database_url: str
        ) -> None:
            first, second = [f"/shipments/{(await add(client))['id']}" for _ in range(2)]
            carrier.unknown = {"2 Side Street"}
            for path, address in ((first, "2 Side Street"), (first, "3 Side Street"), (second, "4 Way")):
                await client.patch(path, json={"address": address})
            await run_until_idle(app, send_notices)
            assert sorted(carrier.told) == ["2 Side Street", "4 Way"]
            carrier.told, carrier.unknown = [], set()
            await execute(database_url, "UPDATE notices SET next_attempt_at = now()")
            await run_until_idle(app, send_notices)
            assert carrier.told == ["2 Side Street", "3 Side Street"]


        async def test_a_notice_that_is_refused_for_long_is_parked(
            carrier: type[Carrier], app: FastAPI, client: AsyncClient, database_url: str
        ) -> None:
            path = f"/shipments/{(await add(client))['id']}"
            carrier.unknown = {"2 Side Street"}
            await client.patch(path, json={"address": "2 Side Street"})
            await execute(database_url, "UPDATE notices SET attempts = 8")
            await client.patch(path, json={"address": "3 Side Street"})
            await run_until_idle(app, send_notices)
            assert carrier.told == ["2 Side Street", "3 Side Street"]


        async def test_the_price_is_of_the_weight(client: AsyncClient) -> None:
            path = f"/shipments/{(await add(client))['id']}"
            assert (await client.get(f"{path}/price")).json() == {"cents": 500}


        async def test_old_shipments_go(
            app: FastAPI, client: AsyncClient, command: Command, database_url: str
        ) -> None:
            await add(client)
            await delete_old_shipments.run(app)
            assert (await command("count-shipments")).stdout == "1\\n"
            await execute(database_url, "UPDATE shipments SET created_at = now() - interval '91 days'")
            await delete_old_shipments.run(app)
            assert (await command("count-shipments")).stdout == "0\\n"


        @pytest.mark.parametrize("grams", [0, 30_001, "5", 1.5, None])
        async def test_a_wrong_weight_is_named(client: AsyncClient, grams: object) -> None:
            body = EXAMPLE | {"parcels": [{"grams": 1}, {"grams": grams}]}
            refused = await client.post("/shipments", json=body)
            assert [each["pointer"] for each in refused.json()["errors"]] == ["/parcels/1/grams"]
    ''',
}
"""The files of `shipments`, except its migration and its part of the API document."""
