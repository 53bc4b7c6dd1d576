"""Shared types accept exactly what the API document says they accept."""

from datetime import UTC, datetime, timedelta, timezone

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from shared.types import UtcDatetime

INSTANT: TypeAdapter[datetime] = TypeAdapter(UtcDatetime)
document = jsonschema_rs.validator_for(INSTANT.json_schema(), validate_formats=True)
offsets = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@settings(max_examples=300, deadline=None, database=None)
@given(st.datetimes(timezones=offsets))
def test_every_instant_that_the_document_allows_is_accepted(instant: datetime) -> None:
    assert document.is_valid(instant.isoformat())
    assert INSTANT.validate_python(instant.isoformat()).tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("0001-01-01T00:00:00+23:59", datetime.min.replace(tzinfo=UTC)),
        ("9999-12-31T23:59:59-23:59", datetime.max.replace(tzinfo=UTC)),
        ("2026-01-31T13:00:00+01:00", datetime(2026, 1, 31, 12, tzinfo=UTC)),
    ],
)
def test_an_instant_is_told_in_utc_as_far_as_that_goes(text: str, instant: datetime) -> None:
    assert document.is_valid(text)
    assert INSTANT.validate_python(text) == instant


@pytest.mark.parametrize(
    "text", ["0000-01-01T00:00:00Z", "2016-12-31T23:59:60Z", "2026-01-31", "2026-01-31T12:00:00"]
)
def test_an_instant_that_is_refused_is_not_in_the_document(text: str) -> None:
    assert not document.is_valid(text)
    with pytest.raises(ValidationError):
        INSTANT.validate_python(text)
