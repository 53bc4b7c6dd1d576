"""Settings of items: the bounds of an import, and what an account may have."""

from pydantic import Field

from shared.settings import FeatureSettings


class ItemsSettings(FeatureSettings):
    """Sizes and texts are bytes; the size of an import is that of the decompressed file."""

    max_import_size: int = Field(default=1_000_000_000, ge=1_000)
    max_import_rows: int = Field(default=1_000_000, ge=1)
    max_import_errors: int = Field(default=10_000, ge=1)
    max_items: int = Field(default=1_000_000, ge=1)
    max_items_text: int = Field(default=1_000_000_000, ge=1_000)
