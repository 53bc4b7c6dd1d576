"""`python -m app create-admin`, `rotate-keys` and `end-access`."""

from datetime import datetime
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import delete
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
from features.users.passwords.handlers import claim_account
from features.users.passwords.hashing import PasswordHasher
from features.users.passwords.schemas import NewPassword
from features.users.sessions.tables import Session
from shared.cli import run_with_database
from shared.crypto import cipher
from shared.db import Database, write_session_of
from shared.problems import Conflict, Unprocessable, error_message
from shared.settings import Settings, load_settings

commands = typer.Typer()

PASSWORD_ADAPTER: TypeAdapter[str] = TypeAdapter(NewPassword)
COMMAND_LINE = ClientInfo(address="", user_agent="python -m app create-admin")
BATCH_SIZE = 1_000  # rows per transaction, so that none exceeds the statement timeout


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
    """End all sessions of all accounts, so that all sign in again. For a database that was restored
    to an earlier time: sessions that have ended since are valid in it again."""
    sessions, keys = run_with_database(context, lambda database: _end_access(database, api_keys))
    typer.echo(f"ended {sessions} sessions" + (f" and {keys} API keys" if api_keys else ""))


async def _end_access(database: Database, api_keys: bool) -> tuple[int, int]:
    """Returns the number of sessions and of API keys. Revokes the signing keys too: nothing else
    ends the access token of a session that this database does not have."""
    await _rotate(database, revoke=True)
    sessions = await _delete_all(database, Session, EventKind.SIGNED_OUT)
    keys = await _delete_all(database, ApiKey, EventKind.API_KEY_DELETED) if api_keys else 0
    return sessions, keys


async def _delete_all(database: Database, table: type[Session | ApiKey], kind: EventKind) -> int:
    """Deletes the rows in batches, with an event for each; returns their number."""
    batch = select(col(table.id)).limit(BATCH_SIZE)
    deleting = delete(table).where(col(table.id).in_(batch)).returning(table)
    count = 0
    while True:
        async with database.orm_transaction() as session:
            rows = (await session.exec(deleting)).scalars().all()
            session.add_all(_event(row, kind) for row in rows)
        count += len(rows)
        if len(rows) < BATCH_SIZE:
            return count


def _event(row: Session | ApiKey, kind: EventKind) -> Event:
    return Event(
        user_id=row.user_id,
        kind=kind,
        address="",
        user_agent="python -m app end-access",
        detail=row.name if isinstance(row, ApiKey) else None,
    )
