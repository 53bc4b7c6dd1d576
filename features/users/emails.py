"""Email addresses: one spelling for each, by which its account is found."""

from typing import Annotated

from email_validator import SPECIAL_USE_DOMAIN_NAMES
from pydantic import AfterValidator, EmailStr, TypeAdapter, ValidationError, WithJsonSchema

MAX_LOCAL_PART = 64  # characters before the @ (RFC 5321, section 4.5.3.1.1)


def _in_any_case(word: str) -> str:
    return "".join(f"[{letter}{letter.upper()}]" for letter in word)


def _short_enough(address: str) -> str:
    """Refuses what `format: email` does not allow, and EmailStr does."""
    if address.rindex("@") > MAX_LOCAL_PART:
        raise ValueError(
            "value is not a valid email address: there should be at most"
            f" {MAX_LOCAL_PART} characters before the @-sign"
        )
    return address


CHARACTERS = r"^[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z0-9-]*[A-Za-z]$"
"""Of what `format: email` (RFC 5321) allows, neither quotes nor IP addresses, and only top-level
domains that may exist."""

PUNYCODE = r"@(?:.*\.)?..--"
RESERVED = rf"\.(?:{'|'.join(map(_in_any_case, SPECIAL_USE_DOMAIN_NAMES))})$"
REFUSED = f"{PUNYCODE}|{RESERVED}"
"""A label that is, or looks like, Punycode (RFC 5890, section 2.3.1); a domain that has a special
use (RFC 6761)."""

SCHEMA = {
    "type": "string",
    "format": "email",
    "maxLength": 254,
    "pattern": CHARACTERS,
    "not": {"pattern": REFUSED},
    "description": (
        "In ASCII, and of a domain that is not reserved, as `.test` and `.localhost` are."
        " Addresses in other scripts are accepted, too, if their domain is valid in IDNA 2008"
    ),
}
"""Every string that it allows is accepted. More is: no pattern can tell what is valid in IDNA.

The patterns have no lookahead, because the regular expressions of many clients have none.
"""

Email = Annotated[
    EmailStr, AfterValidator(_short_enough), AfterValidator(str.lower), WithJsonSchema(SCHEMA)
]
ADDRESS: TypeAdapter[str] = TypeAdapter(Email)


def normal_email(text: str) -> str:
    """The address as registration keeps it: without a name and spaces around it, in lower case,
    its domain in Unicode. What is no address is no account's."""
    try:
        return ADDRESS.validate_python(text)
    except ValidationError:
        return text.lower()
