"""Email addresses: validation, and the normal form by which accounts are found."""

from typing import Annotated

from email_validator import SPECIAL_USE_DOMAIN_NAMES
from pydantic import AfterValidator, EmailStr, TypeAdapter, ValidationError, WithJsonSchema

MAX_LOCAL_PART = 64  # characters before the @ (RFC 5321, section 4.5.3.1.1)


def _any_case(word: str) -> str:
    return "".join(f"[{letter}{letter.upper()}]" for letter in word)


def _check_local_part(address: str) -> str:
    """Refuses a local part that is too long for `format: email`, which EmailStr accepts."""
    if address.rindex("@") > MAX_LOCAL_PART:
        raise ValueError(
            "value is not a valid email address: there should be at most"
            f" {MAX_LOCAL_PART} characters before the @-sign"
        )
    return address


ACCEPTED_PATTERN = r"^[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z0-9-]*[A-Za-z]$"
"""The part of `format: email` (RFC 5321) that is accepted: no quoted local parts, no IP addresses,
and only top-level domains that can exist."""

PUNYCODE_PATTERN = r"@(?:.*\.)?..--"
RESERVED_PATTERN = rf"\.(?:{'|'.join(map(_any_case, SPECIAL_USE_DOMAIN_NAMES))})$"
REFUSED_PATTERN = f"{PUNYCODE_PATTERN}|{RESERVED_PATTERN}"
"""Matches a label that is, or looks like, Punycode (RFC 5890, section 2.3.1), or a special-use
domain (RFC 6761)."""

EMAIL_SCHEMA = {
    "type": "string",
    "format": "email",
    "maxLength": 254,
    "pattern": ACCEPTED_PATTERN,
    "not": {"pattern": REFUSED_PATTERN},
    "description": (
        "In ASCII, and of a domain that is not reserved, as `.test` and `.localhost` are."
        " Addresses in other scripts are accepted, too, if their domain is valid in IDNA 2008"
    ),
}
"""Describes a subset of the addresses that are accepted: a pattern cannot express which domains
are valid in IDNA.

The patterns use no lookahead, because the regular expressions of many clients do not support it.
"""

Email = Annotated[
    EmailStr,
    AfterValidator(_check_local_part),
    AfterValidator(str.lower),
    WithJsonSchema(EMAIL_SCHEMA),
]
EMAIL_ADAPTER: TypeAdapter[str] = TypeAdapter(Email)


def normalize_email(text: str) -> str:
    """Returns the address as registration stores it: without a display name and surrounding
    spaces, in lower case, with its domain in Unicode.

    Text that is not an address is only lower-cased: it matches no account.
    """
    try:
        return EMAIL_ADAPTER.validate_python(text)
    except ValidationError:
        return text.lower()
