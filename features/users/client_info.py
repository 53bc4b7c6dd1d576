"""The client of a request: its address and user agent, for sessions and the audit log."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from shared.web.client_address import client_address

MAX_ADDRESS_LENGTH = 64
MAX_USER_AGENT_LENGTH = 200


@dataclass(frozen=True)
class ClientInfo:
    address: str
    user_agent: str


async def _client_info(request: Request) -> ClientInfo:
    return ClientInfo(
        address=_printable(client_address(request), MAX_ADDRESS_LENGTH),
        user_agent=_printable(request.headers.get("user-agent", ""), MAX_USER_AGENT_LENGTH),
    )


def _printable(text: str, length: int) -> str:
    return "".join(c for c in text[:length] if c.isprintable())


CurrentClient = Annotated[ClientInfo, Depends(_client_info)]
