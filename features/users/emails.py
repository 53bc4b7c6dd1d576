"""Email addresses: one spelling for each, by which its account is found."""

from typing import Annotated

from pydantic import AfterValidator, EmailStr, TypeAdapter, ValidationError

Email = Annotated[EmailStr, AfterValidator(str.lower)]
ADDRESS: TypeAdapter[str] = TypeAdapter(Email)


def normal_email(text: str) -> str:
    """The address as registration keeps it: without a name and spaces around it, in lower case,
    its domain in Unicode. What is no address is no account's."""
    try:
        return ADDRESS.validate_python(text)
    except ValidationError:
        return text.lower()
