"""Rate limits per address, per account and per API key."""

from features.users.accounts.email_addresses import normalize_email
from features.users.settings import UsersSettings
from shared.web.client_address import networks_of
from shared.web.rate_limits import Limit, Limiter, new_limit

ALLOWANCES = (1, 4, 16)  # times the limit: for the /64, the /56 and the /48 of an IPv6 address


class RateLimits:
    """Each method counts one request, except `reset_sign_in`, which resets a counter.

    Raises:
        TooManyRequests: the limit is exceeded.
    """

    def __init__(self, limiter: Limiter, settings: UsersSettings) -> None:
        self._limiter = limiter
        self._sign_in_address = new_limit("sign-in-address", settings.rate_sign_in_per_address)
        self._sign_in_account = new_limit("sign-in-account", settings.rate_sign_in_per_account)
        self._refresh = new_limit("refresh", settings.rate_refresh_per_address)
        self._register = new_limit("register", settings.rate_register_per_address)
        self._mail_address = new_limit("reset-address", settings.rate_reset_per_address)
        self._mail_account = new_limit("reset-account", settings.rate_reset_per_account)
        self._api_key = new_limit("api-key", settings.rate_api_key)

    async def sign_in(self, address: str, email: str) -> None:
        await self._hit_networks(self._sign_in_address, address)
        await self._limiter.hit(self._sign_in_account, normalize_email(email))

    async def reset_sign_in(self, email: str) -> None:
        """Resets the account's counter after a successful sign-in."""
        await self._limiter.reset(self._sign_in_account, normalize_email(email))

    async def single_sign_on(self, address: str) -> None:
        await self._hit_networks(self._sign_in_address, address)

    async def refresh(self, address: str) -> None:
        await self._hit_networks(self._refresh, address)

    async def register(self, address: str) -> None:
        await self._hit_networks(self._register, address)

    async def mail_token(self, address: str, email: str | None = None) -> None:
        """Counts a request that uses a mailed token, or, with `email`, one that mails a token."""
        await self._hit_networks(self._mail_address, address)
        if email is not None:
            await self._limiter.hit(self._mail_account, normalize_email(email))

    async def api_key(self, key_id: str) -> None:
        await self._limiter.hit(self._api_key, key_id)

    async def _hit_networks(self, limit: Limit, address: str) -> None:
        """Counts the request for each network of the address; a refused one for no larger network,
        so that one client does not use up what its neighbours may."""
        for network, allowance in zip(networks_of(address), ALLOWANCES, strict=False):
            await self._limiter.hit(limit.times(allowance), network)
