"""`python -m app create-admin` and `rotate-keys`."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError
from sqlmodel import select

from features.users.handlers.accounts import add_user
from features.users.keyring import PUBLISHED_BEFORE, add_key, remove_keys
from features.users.passwords import Passwords
from features.users.schemas import Email, NewPassword
from features.users.sealing import sealer
from features.users.tables import Role, User
from shared.commands import plain_errors, run_with_database
from shared.database import Database, transaction
from shared.errors import Unprocessable, message_of
from shared.settings import Settings, load_settings

commands = typer.Typer()

EMAIL: TypeAdapter[str] = TypeAdapter(Email)
PASSWORD: TypeAdapter[str] = TypeAdapter(NewPassword)


@commands.command("create-admin")
def create_admin(email: Annotated[str, typer.Argument(help="Of the account")]) -> None:
    """Make an account an administrator's; where there is none, add it and ask for a password."""
    with plain_errors():
        address = _valid(EMAIL, email)
    if run_with_database(lambda database: _promote(database, address)):
        typer.echo(f"{address} is an administrator")
        return
    password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    with plain_errors():
        new = _valid(PASSWORD, password)
    run_with_database(lambda database: _add_admin(database, address, new))
    typer.echo(f"{address} is a new administrator")


def _valid(kind: TypeAdapter[str], value: str) -> str:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        raise Unprocessable(message_of(error.errors()[0])) from None


async def _promote(database: Database, email: str) -> bool:
    async with transaction(database) as session:
        known = select(User).where(User.email == email).with_for_update()
        user = (await session.exec(known)).one_or_none()
        if user:
            user.role, user.is_active = Role.ADMIN, True
        return user is not None


async def _add_admin(database: Database, email: str, password: str) -> None:
    password_hash = await Passwords(cheap=False).hash(password)
    async with transaction(database) as session:
        await add_user(session, email, password_hash, verified=True, role=Role.ADMIN)


@commands.command("rotate-keys")
def rotate_keys(
    revoke: Annotated[
        bool,
        typer.Option(help="Drop the old keys and their tokens now: for a key that has leaked"),
    ] = False,
) -> None:
    """Sign access tokens with a new key. It is published now and used in five minutes; the old
    one verifies until the last token that it signed has expired."""
    key_id, active_at = run_with_database(lambda database: _rotate(database, revoke))
    typer.echo(f"key {key_id} signs from {active_at:%H:%M:%S} UTC")


async def _rotate(database: Database, revoke: bool) -> tuple[str, datetime]:
    seal = sealer(load_settings(Settings).secret(), "signing keys")
    active_at = datetime.now(UTC) + (PUBLISHED_BEFORE * (not revoke))
    async with transaction(database) as session:
        if revoke:
            await remove_keys(session)
        return await add_key(session, seal, active_at), active_at
