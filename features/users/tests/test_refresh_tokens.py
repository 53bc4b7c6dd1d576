"""Refresh tokens: rotation, replay and concurrent refreshes."""

import asyncio
from datetime import timedelta

import time_machine
from httpx import AsyncClient

from features.users.tests.conftest import (
    Execute,
    Tokens,
    by_password,
    by_refresh,
    status_with,
    tokens_of,
)

BEYOND_GRACE = timedelta(seconds=11)


async def test_a_refresh_brings_new_tokens_of_the_same_session(
    anonymous: AsyncClient, signed_in: Tokens, execute: Execute
) -> None:
    again = tokens_of(await by_refresh(anonymous, signed_in.refresh))
    assert again.refresh != signed_in.refresh
    assert again.access != signed_in.access
    assert await status_with(anonymous, again.header) == 200
    assert len(await execute("SELECT 1 FROM sessions")) == 1


async def test_a_replay_ends_the_family_and_the_end_is_committed(
    anonymous: AsyncClient, signed_in: Tokens, execute: Execute
) -> None:
    successor = tokens_of(await by_refresh(anonymous, signed_in.refresh))
    with time_machine.travel(BEYOND_GRACE, tick=True):
        replayed = await by_refresh(anonymous, signed_in.refresh)
        assert replayed.status_code == 400
        assert replayed.json()["error"] == "invalid_grant"

        assert (await by_refresh(anonymous, successor.refresh)).status_code == 400
        assert await status_with(anonymous, successor.header) == 401
    assert await execute("SELECT 1 FROM sessions") == []
    kinds = await execute("SELECT kind FROM account_events ORDER BY created_at DESC LIMIT 1")
    assert kinds[0]["kind"] == "refresh_replayed"


async def test_a_session_keeps_few_tokens_and_finds_a_replay_of_any(
    anonymous: AsyncClient, signed_in: Tokens, execute: Execute
) -> None:
    """However often it is refreshed: that of the first token is found without its row."""
    latest = signed_in
    for number in range(1, 10):
        with time_machine.travel(number * BEYOND_GRACE, tick=True):
            latest = tokens_of(await by_refresh(anonymous, latest.refresh))
            assert len(await execute("SELECT FROM refresh_tokens")) == 2
    with time_machine.travel(9 * BEYOND_GRACE, tick=True):
        assert (await by_refresh(anonymous, signed_in.refresh)).status_code == 400
        assert (await by_refresh(anonymous, latest.refresh)).status_code == 400
    replays = await execute("SELECT FROM account_events WHERE kind = 'refresh_replayed'")
    assert len(replays) == 1


async def test_a_replay_leaves_other_sessions_alone(
    anonymous: AsyncClient, signed_in: Tokens
) -> None:
    elsewhere = tokens_of(await by_password(anonymous))
    await by_refresh(anonymous, signed_in.refresh)
    with time_machine.travel(BEYOND_GRACE, tick=True):
        assert (await by_refresh(anonymous, signed_in.refresh)).status_code == 400
        assert await status_with(anonymous, elsewhere.header) == 200
        tokens_of(await by_refresh(anonymous, elsewhere.refresh))


async def test_a_second_tab_gets_a_successor_that_can_be_used(
    anonymous: AsyncClient, signed_in: Tokens
) -> None:
    first = tokens_of(await by_refresh(anonymous, signed_in.refresh))
    second = tokens_of(await by_refresh(anonymous, signed_in.refresh))
    assert second.refresh == first.refresh
    with time_machine.travel(BEYOND_GRACE, tick=True):
        tokens_of(await by_refresh(anonymous, second.refresh))


async def test_a_tab_that_is_two_behind_gets_the_newest(
    anonymous: AsyncClient, signed_in: Tokens
) -> None:
    first = tokens_of(await by_refresh(anonymous, signed_in.refresh))
    second = tokens_of(await by_refresh(anonymous, first.refresh))
    late = tokens_of(await by_refresh(anonymous, signed_in.refresh))
    assert late.refresh == second.refresh


async def test_twenty_parallel_refreshes_make_one_family(
    anonymous: AsyncClient, signed_in: Tokens, execute: Execute
) -> None:
    answers = await asyncio.gather(*(by_refresh(anonymous, signed_in.refresh) for _ in range(20)))
    successors = {tokens_of(answer).refresh for answer in answers}
    assert len(successors) == 1
    assert len(await execute("SELECT 1 FROM sessions")) == 1
    unused = await execute("SELECT 1 FROM refresh_tokens WHERE used_at IS NULL")
    assert len(unused) == 1
    for answer in answers:
        assert await status_with(anonymous, tokens_of(answer).header) == 200
    tokens_of(await by_refresh(anonymous, successors.pop()))


async def test_parallel_replays_end_the_family_once(
    anonymous: AsyncClient, signed_in: Tokens, execute: Execute
) -> None:
    await by_refresh(anonymous, signed_in.refresh)
    with time_machine.travel(BEYOND_GRACE, tick=True):
        answers = await asyncio.gather(
            *(by_refresh(anonymous, signed_in.refresh) for _ in range(5))
        )
    assert {answer.status_code for answer in answers} == {400}
    replays = await execute("SELECT 1 FROM account_events WHERE kind = 'refresh_replayed'")
    assert len(replays) == 1


async def test_tokens_are_hashed_at_rest(
    anonymous: AsyncClient, signed_in: Tokens, execute: Execute
) -> None:
    again = tokens_of(await by_refresh(anonymous, signed_in.refresh))
    rows = await execute("SELECT hash, sealed_successor FROM refresh_tokens")
    stored = b"".join(value for row in rows for value in row.values() if value)
    for token in (signed_in.refresh, again.refresh):
        assert token.encode() not in stored


async def test_a_session_ends_when_it_is_not_used(
    anonymous: AsyncClient, signed_in: Tokens
) -> None:
    with time_machine.travel(timedelta(days=29), tick=True):
        again = tokens_of(await by_refresh(anonymous, signed_in.refresh))
    with time_machine.travel(timedelta(days=58), tick=True):
        again = tokens_of(await by_refresh(anonymous, again.refresh))
    with time_machine.travel(timedelta(days=89), tick=True):
        assert (await by_refresh(anonymous, again.refresh)).status_code == 400
