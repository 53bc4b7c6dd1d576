"""Settings of search: the embedding model, and the language of full-text search."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, HttpUrl, SecretStr, model_validator

from shared.settings import FeatureSettings

MAX_DIMENSION = 4_000  # the limit of pgvector's HNSW index on halfvec


class SearchSettings(FeatureSettings):
    """The settings of search. `embedding_dim` is the length of a vector; timeouts are seconds."""

    embedding_provider: Literal["local", "openai"] = "local"
    embedding_url: HttpUrl | None = None
    embedding_api_key: SecretStr | None = None
    embedding_model: str | None = Field(default=None, min_length=1)
    embedding_dim: int | None = Field(default=None, ge=1, le=MAX_DIMENSION)
    embedding_model_path: Path | None = None
    embedding_threads: int = Field(default=min(4, os.cpu_count() or 1), ge=1, le=64)
    embedding_timeout: float = Field(default=10.0, gt=0, le=60)
    embedding_query_timeout: float = Field(default=2.0, gt=0, le=30)
    search_language: str = Field(default="english", pattern=r"^[a-z_]{1,63}$")

    @model_validator(mode="after")
    def complete(self) -> "SearchSettings":
        if self.embedding_provider == "openai":
            for name in ("embedding_url", "embedding_model", "embedding_dim"):
                if getattr(self, name) is None:
                    raise ValueError(
                        f"APP_{name.upper()} is required by APP_EMBEDDING_PROVIDER=openai"
                    )
        return self
