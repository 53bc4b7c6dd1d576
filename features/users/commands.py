"""`python -m app create-admin` and `rotate-keys`."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError
from sqlmodel import col, select

from features.users.access import Caller
from features.users.emails import ADDRESS
from features.users.handlers.accounts import add_user, find_user_id, get_user
from features.users.handlers.administration import update_account
from features.users.handlers.events import record
from features.users.handlers.passwords import hand_over
from features.users.keyring import PUBLISHED_BEFORE, add_key, remove_keys
from features.users.passwords import Passwords
from features.users.schemas import NewPassword, UserAdminUpdate
from features.users.tables import EventKind, Role, User
from shared.cli import exit_on_user_error, run_with_database
from shared.crypto import cipher
from shared.db import Database, write_session_of
from shared.problems import Conflict, Unprocessable, error_message
from shared.settings import Settings, load_settings

commands = typer.Typer()

PASSWORD: TypeAdapter[str] = TypeAdapter(NewPassword)
CONSOLE = Caller(address="", user_agent="python -m app create-admin")


@commands.command("create-admin")
def create_admin(
    context: typer.Context, email: Annotated[str, typer.Argument(help="Of the account")]
) -> None:
    """Make an account an administrator's. Where there is none, or whoever made it never proved
    that the address is theirs, ask for a password, and end every other way in."""
    with exit_on_user_error():
        address = _valid(ADDRESS, email)
    password = None
    if not run_with_database(context, lambda database: _is_proven(database, address)):
        typed = typer.prompt("New password", hide_input=True, confirmation_prompt=True)
        with exit_on_user_error():
            password = _valid(PASSWORD, typed)
    run_with_database(context, lambda database: _make_admin(database, address, password))
    typer.echo(f"{address} is an administrator")


def _valid(kind: TypeAdapter[str], value: str) -> str:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        raise Unprocessable(error_message(error.errors()[0])) from None


async def _is_proven(database: Database, email: str) -> bool:
    async with database.orm_transaction() as session:
        proven = select(User.id).where(User.email == email, col(User.email_verified))
        return (await session.exec(proven)).one_or_none() is not None


async def _make_admin(database: Database, email: str, password: str | None) -> None:
    password_hash = await Passwords(cheap=False).hash(password) if password else None
    async with database.orm_transaction() as session:
        user_id = await find_user_id(write_session_of(session), email)
        if user_id is None:
            user = await add_user(session, email, None)
            await record(session, EventKind.REGISTERED, user.id, CONSOLE)
        else:
            user = await get_user(session, user_id, lock=True)
        if not user.email_verified:
            if password_hash is None:
                raise Conflict("The account was changed in the meantime: try again")
            await hand_over(session, user, password_hash)
        changes = UserAdminUpdate(role=Role.ADMIN, is_active=True)
        await update_account(session, user.id, changes, user.id, CONSOLE)


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
    seal = cipher(load_settings(Settings).secret(), "signing keys")
    active_at = datetime.now(UTC) + (PUBLISHED_BEFORE * (not revoke))
    async with database.orm_transaction() as session:
        if revoke:
            await remove_keys(session)
        return await add_key(session, seal, active_at), active_at
