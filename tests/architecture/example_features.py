# ruff: noqa: E501  # the lines of the files are indented here
"""Two features that are written by hand.

`notes` has routes, tables, migrations, settings, a task and a command; `probes` has one route.
"""

NOTES = {
    "features/notes/__init__.py": '''
        """Notes, private to their owner."""

        from features.notes.tables import Note

        __all__ = ["Note"]
    ''',
    "features/notes/feature.py": '''
        """The declaration of notes, for the kernel."""

        from features.notes.commands import commands
        from features.notes.handlers import delete_all_notes
        from features.notes.router import router
        from features.notes.settings import NotesSettings
        from features.notes.tasks import old_notes
        from features.users import account_changes
        from shared.db.changes import Subscription
        from shared.feature import Feature
        from shared.problems import Conflict

        feature = Feature(
            name="notes",
            router=router,
            depends_on=("users",),
            scopes={"notes:read": "Read your notes", "notes:write": "Add notes"},
            constraints={
                "uq_notes_owner_id_title": Conflict("You already have a note with this title"),
            },
            settings=NotesSettings,
            tasks=(old_notes,),
            subscriptions=(Subscription(account_changes, delete_all_notes, outbox="notes_accounts"),),
            commands=commands,
        )
    ''',
    "features/notes/settings.py": '''
        """How long notes are kept."""

        from pydantic import Field

        from shared.settings import FeatureSettings


        class NotesSettings(FeatureSettings):
            notes_kept_days: int = Field(default=30, ge=1)
    ''',
    "features/notes/tables.py": '''
        """The table of notes."""

        from uuid import UUID

        from sqlalchemy import CheckConstraint, UniqueConstraint
        from sqlmodel import Field

        from shared.db.tables import Timestamped, uuid7


        class Note(Timestamped, table=True):
            __tablename__ = "notes"
            __table_args__ = (
                UniqueConstraint("owner_id", "title"),
                CheckConstraint("title <> ''", name="title_not_empty"),
            )

            owner_id: UUID = Field(primary_key=True)
            id: UUID = Field(default_factory=uuid7, primary_key=True)
            title: str
    ''',
    "features/notes/schemas.py": '''
        """What notes look like to clients."""

        from typing import Annotated
        from uuid import UUID

        from pydantic import BaseModel, ConfigDict, Field

        from shared.types import DatabaseText


        class NoteCreate(BaseModel):
            model_config = ConfigDict(
                extra="forbid", json_schema_extra={"examples": [{"title": "Buy milk"}]}
            )

            title: Annotated[DatabaseText, Field(min_length=1, max_length=200)]


        class NotePublic(BaseModel):
            model_config = ConfigDict(from_attributes=True)

            id: UUID
            title: str


        class NoteList(BaseModel):
            items: list[NotePublic]
    ''',
    "features/notes/handlers.py": '''
        """The use-cases of notes."""

        from collections.abc import Sequence
        from datetime import datetime
        from uuid import UUID

        from sqlalchemy import delete, func
        from sqlmodel import col, select
        from sqlmodel.ext.asyncio.session import AsyncSession

        from features.notes.tables import Note
        from shared.db import WriteSession
        from shared.db.changes import Change
        from shared.db.tables import delete_owned_rows, table_of
        from shared.problems import NotFound


        async def create_note(session: AsyncSession, owner_id: UUID, title: str) -> Note:
            """Adds a note. A taken title violates `uq_notes_owner_id_title`."""
            note = Note(owner_id=owner_id, title=title)
            session.add(note)
            await session.flush()
            return note


        async def list_notes(session: AsyncSession, owner_id: UUID) -> Sequence[Note]:
            return (await session.exec(select(Note).where(Note.owner_id == owner_id))).all()


        async def get_note(session: AsyncSession, owner_id: UUID, note_id: UUID) -> Note:
            """
            Raises:
                NotFound: there is no such note, or it is somebody else's.
            """
            found = select(Note).where(Note.owner_id == owner_id, Note.id == note_id)
            note = (await session.exec(found)).one_or_none()
            if note is None:
                raise NotFound(f"Note {note_id} not found")
            return note


        async def count_notes(session: AsyncSession) -> int:
            return (await session.exec(select(func.count()).select_from(Note))).one()


        async def delete_notes(session: AsyncSession, before: datetime) -> int:
            return (await session.exec(delete(Note).where(col(Note.created_at) < before))).rowcount


        async def delete_all_notes(session: WriteSession, deleted: Change) -> int:
            return await delete_owned_rows(session, table_of(Note), deleted.owner_id)
    ''',
    "features/notes/router.py": '''
        """The routes of notes."""

        from typing import Annotated
        from uuid import UUID

        from fastapi import APIRouter, status

        from features.notes import handlers
        from features.notes.schemas import NoteCreate, NoteList, NotePublic
        from shared.auth import Principal, requires
        from shared.db.dependencies import OrmSession
        from shared.problems import Conflict, NotFound, responses

        router = APIRouter(prefix="/notes", tags=["notes"])

        Reader = Annotated[Principal, requires("notes:read")]
        Writer = Annotated[Principal, requires("notes:write")]


        @router.post("", status_code=status.HTTP_201_CREATED, responses=responses(Conflict))
        async def create(new: NoteCreate, principal: Writer, session: OrmSession) -> NotePublic:
            """Adds a note."""
            note = await handlers.create_note(session, principal.user_id, new.title)
            return NotePublic.model_validate(note)


        @router.get("")
        async def list_(principal: Reader, session: OrmSession) -> NoteList:
            """Your notes."""
            notes = await handlers.list_notes(session, principal.user_id)
            return NoteList(items=[NotePublic.model_validate(note) for note in notes])


        @router.get("/{note_id:uuid}", responses=responses(NotFound))
        async def get(note_id: UUID, principal: Reader, session: OrmSession) -> NotePublic:
            """One note."""
            note = await handlers.get_note(session, principal.user_id, note_id)
            return NotePublic.model_validate(note)
    ''',
    "features/notes/tasks.py": '''
        """The background work of notes."""

        from datetime import UTC, datetime, timedelta

        from fastapi import FastAPI

        from features.notes.handlers import delete_notes
        from features.notes.settings import NotesSettings
        from shared.db.database import database_of
        from shared.state import settings_of
        from shared.tasks import Task


        async def _delete_old_notes(app: FastAPI) -> int:
            kept = timedelta(days=settings_of(app, NotesSettings).notes_kept_days)
            async with database_of(app).orm_transaction() as session:
                return await delete_notes(session, datetime.now(UTC) - kept)


        old_notes = Task(name="old_notes", run=_delete_old_notes, every=600)
    ''',
    "features/notes/commands.py": '''
        """`python -m app count-notes`."""

        import typer

        from features.notes.handlers import count_notes
        from features.notes.settings import NotesSettings
        from shared.cli import exit_on_user_error, run_with_database
        from shared.db.database import Database
        from shared.settings import load_settings

        commands = typer.Typer()


        @commands.command("count-notes")
        def count_command(context: typer.Context) -> None:
            """Print how many notes there are, and how long they are kept."""
            with exit_on_user_error():
                days = load_settings(NotesSettings).notes_kept_days
            notes = run_with_database(context, _count)
            typer.echo(f"{notes} notes, kept for {days} days")


        async def _count(database: Database) -> int:
            async with database.orm_transaction() as session:
                return await count_notes(session)
    ''',
    "features/notes/tests/privacy.py": '''
        """How an account comes to have a note, for tests/contract/test_privacy.py."""

        from httpx import AsyncClient


        async def note(client: AsyncClient, mark: str) -> str:
            return str((await client.post("/notes", json={"title": mark})).json()["id"])


        OWNED_PARAMETERS = {"note_id": note}
    ''',
    "features/notes/tests/constraints.py": '''
        """Constraints that no request can violate, for tests/architecture/test_constraints.py."""

        NEVER_VIOLATED = {"ck_notes_title_not_empty": "the schemas refuse such a title"}
        """Each with the reason."""
    ''',
    "features/notes/tests/test_notes.py": '''
        """Notes are added, read and deleted when they are old."""

        from fastapi import FastAPI
        from httpx import AsyncClient

        from features.notes.tasks import old_notes
        from tests.kit import run_until_idle
        from tests.kit.servers import execute


        async def test_a_title_is_unique(client: AsyncClient, other_client: AsyncClient) -> None:
            assert (await client.post("/notes", json={"title": "Milk"})).status_code == 201
            again = await client.post("/notes", json={"title": "Milk"})
            assert again.status_code == 409
            assert again.json()["detail"] == "You already have a note with this title"
            assert (await other_client.get("/notes")).json() == {"items": []}


        async def test_a_key_reads_notes(api_key_client: AsyncClient) -> None:
            assert (await api_key_client.get("/notes")).json() == {"items": []}


        async def test_old_notes_go(client: AsyncClient, app: FastAPI, database_url: str) -> None:
            await client.post("/notes", json={"title": "Milk"})
            await execute(database_url, "UPDATE notes SET created_at = now() - interval '29 days'")
            assert await run_until_idle(app, old_notes) == 0
            await execute(database_url, "UPDATE notes SET created_at = now() - interval '31 days'")
            assert await run_until_idle(app, old_notes) == 1
            assert (await client.get("/notes")).json() == {"items": []}
    ''',
    "migrations/notes/0001_notes.py": '''
        """Notes, private to their owner."""

        import sqlalchemy as sa
        import sqlmodel
        from alembic import op

        revision = "notes_0001"
        down_revision = None
        branch_labels = ("notes",)
        depends_on = ("users",)


        def upgrade() -> None:
            op.execute("SET LOCAL lock_timeout = '5s'")
            op.create_table(
                "notes",
                sa.Column("owner_id", sa.Uuid(), nullable=False),
                sa.Column("id", sa.Uuid(), nullable=False),
                sa.Column("title", sa.String(), nullable=False),
                sa.Column(
                    "created_at",
                    sqlmodel.UTCDateTime(),
                    server_default=sa.func.clock_timestamp(),
                    nullable=False,
                ),
                sa.Column(
                    "updated_at",
                    sqlmodel.UTCDateTime(),
                    server_default=sa.func.clock_timestamp(),
                    nullable=False,
                ),
                sa.PrimaryKeyConstraint("owner_id", "id", name="pk_notes"),
                sa.UniqueConstraint("owner_id", "title", name="uq_notes_owner_id_title"),
                sa.CheckConstraint("title <> ''", name=op.f("ck_notes_title_not_empty")),
            )


        def downgrade() -> None:
            op.execute("SET LOCAL lock_timeout = '5s'")
            op.drop_table("notes")
    ''',
}
"""The files of `notes`, except its part of the API document, which is generated."""

PROBES = {
    "features/probes/__init__.py": "",
    "features/probes/feature.py": '''
        """Says that the API is there, to those who have signed in."""

        from features.probes.router import router
        from shared.feature import Feature

        feature = Feature(
            name="probes",
            router=router,
            depends_on=("users",),
            scopes={"probes:read": "Ask whether the API is there"},
        )
    ''',
    "features/probes/router.py": '''
        """The route of probes."""

        from typing import Annotated

        from fastapi import APIRouter

        from shared.auth import Principal, requires

        router = APIRouter(prefix="/probes", tags=["probes"])


        @router.get("")
        async def get(principal: Annotated[Principal, requires("probes:read")]) -> dict[str, bool]:
            """Whether the API is there."""
            return {"present": True}
    ''',
    "features/probes/tests/test_probes.py": '''
        """The API is there."""

        from httpx import AsyncClient


        async def test_the_api_is_there(client: AsyncClient) -> None:
            assert (await client.get("/probes")).json() == {"present": True}
    ''',
}
"""The files of `probes`, except its part of the API document, which is generated."""
