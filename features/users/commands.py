"""`python -m app create-admin`, `rotate-keys` and `end-access`."""

import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, TypeAlias

import typer
from asyncpg import LockNotAvailableError
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import ColumnElement, delete
from sqlmodel import col, select

from features.users.access_tokens.signing_keys import rotate_signing_key
from features.users.accounts.email_addresses import EMAIL_ADAPTER
from features.users.accounts.handlers import (
    add_user,
    find_user_by_email,
    find_user_id,
    get_user,
)
from features.users.accounts.tables import Role
from features.users.administration.handlers import update_account
from features.users.administration.schemas import UserAdminUpdate
from features.users.api_keys.tables import ApiKey
from features.users.client_info import ClientInfo
from features.users.events.handlers import record
from features.users.events.tables import Event, EventKind
from features.users.passwords.handlers import claim_account, end_reset_tokens
from features.users.passwords.hashing import PasswordHasher
from features.users.passwords.schemas import NewPassword
from features.users.sessions.tables import Session
from shared.cli import run_with_database
from shared.crypto import cipher
from shared.db import Database, Row, WriteSession, write_session_of
from shared.problems import Conflict, Unprocessable, error_message
from shared.settings import Settings, load_settings

commands = typer.Typer()

PASSWORD_ADAPTER: TypeAdapter[str] = TypeAdapter(NewPassword)
COMMAND_LINE = ClientInfo(address="", user_agent="python -m app create-admin")
BATCH_SIZE = 1_000  # rows per transaction, so that none exceeds the statement timeout
LOCK_WAIT_SECONDS = 60.0  # an import locks the session of its request until it is committed

AccessTable: TypeAlias = Session | ApiKey


@commands.command("create-admin")
def create_admin(
    context: typer.Context, email: Annotated[str, typer.Argument(help="Of the account")]
) -> None:
    """Make an account an administrator's. If the account is new, or its address was never verified,
    ask for a password, and end every other way in."""
    address = _validated(EMAIL_ADAPTER, email)
    password = None
    if not run_with_database(context, lambda database: _is_verified(database, address)):
        typed = typer.prompt("New password", hide_input=True, confirmation_prompt=True)
        password = _validated(PASSWORD_ADAPTER, typed)
    run_with_database(context, lambda database: _make_admin(database, address, password))
    typer.echo(f"{address} is an administrator")


def _validated(adapter: TypeAdapter[str], value: str) -> str:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise Unprocessable(error_message(error.errors()[0])) from None


async def _is_verified(database: Database, email: str) -> bool:
    async with database.orm_transaction() as session:
        user = await find_user_by_email(session, email)
        return user is not None and user.email_verified


async def _make_admin(database: Database, email: str, password: str | None) -> None:
    password_hash = await PasswordHasher(cheap=False).hash(password) if password else None
    async with database.orm_transaction() as session:
        user_id = await find_user_id(write_session_of(session), email)
        if user_id is None:
            user = await add_user(session, email, None)
            await record(session, EventKind.REGISTERED, user.id, COMMAND_LINE)
        else:
            user = await get_user(session, user_id, lock=True)
        if not user.email_verified:
            if password_hash is None:
                raise Conflict("The account was changed in the meantime: try again")
            await claim_account(session, user, password_hash)
        changes = UserAdminUpdate(role=Role.ADMIN, is_active=True)
        await update_account(session, user.id, changes, user.id, COMMAND_LINE)


@commands.command("rotate-keys")
def rotate_keys(
    context: typer.Context,
    revoke: Annotated[
        bool,
        typer.Option(help="Drop the old keys and their tokens now: for a key that has leaked"),
    ] = False,
) -> None:
    """Sign access tokens with a new key. It is published now and used in five minutes; the old
    one verifies until the last token that it signed has expired."""
    key_id, active_at = run_with_database(context, lambda database: _rotate(database, revoke))
    typer.echo(f"key {key_id} signs from {active_at:%H:%M:%S} UTC")


async def _rotate(database: Database, revoke: bool) -> tuple[str, datetime]:
    encryption = cipher(load_settings(Settings).secret(), "signing keys")
    async with database.orm_transaction() as session:
        return await rotate_signing_key(session, encryption, revoke=revoke)


@commands.command("end-access")
def end_access(
    context: typer.Context,
    api_keys: Annotated[bool, typer.Option("--api-keys", help="End the API keys too")] = False,
) -> None:
    """End all sessions of all accounts, so that all sign in again, and the mailed tokens that reset
    a password. For a database that was restored to an earlier time: what has ended since, or was
    used, is valid in it again. If it fails, run it again: it ends what is left."""
    tables: tuple[type[AccessTable], ...] = (Session, ApiKey) if api_keys else (Session,)
    ended = run_with_database(context, lambda database: _end_access(database, tables))
    typer.echo(f"ended {_amounts(ended)}")


async def _end_access(
    database: Database, tables: Sequence[type[AccessTable]]
) -> Counter[type[AccessTable]]:
    """Returns the number of rows of each table. Revokes the signing keys too: nothing else ends the
    access token of a session that this database does not have.

    Rows that others have locked come last, and one by one: they keep no other from its end.

    Raises:
        Conflict: rows are left, as others have locked them for too long.
    """
    await _rotate(database, revoke=True)
    async with database.orm_transaction() as session:
        await end_reset_tokens(session)
    ended = Counter({table: await _delete_unlocked(database, table) for table in tables})
    left = Counter[type[AccessTable]]()
    for table in tables:
        deleted, left[table] = await _delete_locked(database, table)
        ended[table] += deleted
    if left.total():
        raise Conflict(
            f"{_amounts(left)} are left, as other transactions have locked them for"
            f" {LOCK_WAIT_SECONDS:g} s, and all others have ended: run it again when these are done"
        )
    return ended


def _amounts(rows: Counter[type[AccessTable]]) -> str:
    keys = f" and {rows[ApiKey]} API keys" if ApiKey in rows else ""
    return f"{rows[Session]} sessions{keys}"


async def _delete_unlocked(database: Database, table: type[AccessTable]) -> int:
    """Deletes the rows that nobody has locked, in batches; returns their number."""
    batch = select(col(table.id)).limit(BATCH_SIZE).with_for_update(skip_locked=True)
    count = 0
    while True:
        async with database.transaction() as session:
            rows = await _delete(session, table, col(table.id).in_(batch))
        count += rows
        if rows < BATCH_SIZE:
            return count


async def _delete_locked(database: Database, table: type[AccessTable]) -> tuple[int, int]:
    """Deletes the other rows in turn, and waits for who has locked them. Returns the number of
    those, and of the ones that were locked until the end of that wait."""
    count = locked = 0
    until = time.monotonic() + LOCK_WAIT_SECONDS
    async with database.transaction() as session:
        rows = await session.fetch(select(table.id))
    for row in rows:
        wait = max(until - time.monotonic(), 0.1)
        try:
            async with database.transaction() as session:
                await session.allow(statement=wait + 10, lock=wait)
                count += await _delete(session, table, col(table.id) == row.id)
        except LockNotAvailableError:
            locked += 1
    return count, locked


async def _delete(
    session: WriteSession, table: type[AccessTable], condition: ColumnElement[bool]
) -> int:
    """Deletes the rows, with an event for each; returns their number."""
    rows = await session.fetch(delete(table).where(condition).returning(table))
    session.orm.add_all(_event(table, row) for row in rows)
    return len(rows)


def _event(table: type[AccessTable], row: Row) -> Event:
    return Event(
        user_id=row.user_id,
        kind=EventKind.API_KEY_DELETED if table is ApiKey else EventKind.SIGNED_OUT,
        address="",
        user_agent="python -m app end-access",
        detail=row.name if table is ApiKey else None,
    )
