"""Embeds with any endpoint that implements OpenAI's `POST /v1/embeddings`."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite

import httpx
import numpy as np
import stamina

from features.search.embedding.base import (
    EmbeddingModel,
    EmbeddingRefused,
    EmbeddingUnavailable,
    Vector,
    WrongDimension,
    normalize,
)
from shared.slots import Slots

TEXTS_PER_REQUEST = 96
DOCUMENT_ATTEMPTS = 5
QUERY_SLOTS = 32  # queries that the endpoint has at once, from this process
MAX_RETRY_AFTER_SECONDS = 30.0
TRANSIENT_STATUSES = {408, 409, 425, 429, 500, 502, 503, 504}
CONFIGURATION_STATUSES = {401, 403, 404}  # the key, the URL or the model is wrong, not the text


class RemoteEmbedder:
    """Embeds with one model over HTTP; both timeouts are in seconds.

    `timeout` applies to each network operation (httpx) and to all retries of a request together;
    `query_timeout` is the deadline of a query, and before that of its wait for a slot.
    """

    def __init__(
        self,
        model: EmbeddingModel,
        url: str,
        api_key: str | None,
        timeout: float,
        query_timeout: float,
    ) -> None:
        self.model, self._timeout, self._query_timeout = model, timeout, query_timeout
        self._query_slots = Slots("embedding", QUERY_SLOTS)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/") + "/", headers=headers, timeout=timeout
        )

    async def embed_query(self, text: str) -> Vector:
        holder = await self._query_slots.acquire(self._query_timeout)
        try:
            async with asyncio.timeout(self._query_timeout):  # a user is waiting: no retry
                return (await self._request([text], attempts=1))[0]
        except TimeoutError as error:
            raise EmbeddingUnavailable("The embedding endpoint did not answer in time") from error
        finally:
            self._query_slots.release(holder)

    async def embed_documents(self, texts: Sequence[str]) -> list[Vector]:
        chunks = [texts[i : i + TEXTS_PER_REQUEST] for i in range(0, len(texts), TEXTS_PER_REQUEST)]
        answers = await asyncio.gather(*(self._request(c, DOCUMENT_ATTEMPTS) for c in chunks))
        return [vector for answer in answers for vector in answer]

    async def close(self) -> None:
        await self._client.aclose()

    async def _request(self, texts: Sequence[str], attempts: int) -> list[Vector]:
        body = {"model": self.model.name, "input": list(texts), "encoding_format": "float"}
        retries = stamina.retry_context(on=_retry, attempts=attempts, timeout=self._timeout)
        try:
            async for attempt in retries:
                with attempt:
                    answer = await self._client.post("embeddings", json=body)
                    answer.raise_for_status()
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            reason = f"The embedding endpoint answered {status}: {error.response.text[:200]}"
            if status in TRANSIENT_STATUSES | CONFIGURATION_STATUSES:
                raise EmbeddingUnavailable(reason) from error
            raise EmbeddingRefused(reason) from error
        except httpx.HTTPError as error:
            message = f"The embedding endpoint cannot be reached: {type(error).__name__}"
            raise EmbeddingUnavailable(message) from error
        return self._vectors(answer, len(texts))

    def _vectors(self, answer: httpx.Response, expected: int) -> list[Vector]:
        try:
            data = sorted(answer.json()["data"], key=lambda entry: entry["index"])
            vectors = [np.array(entry["embedding"], np.float64) for entry in data]
        except (ValueError, KeyError, TypeError) as error:
            raise EmbeddingUnavailable("The embedding endpoint answered something else") from error
        if len(vectors) != expected:
            raise EmbeddingUnavailable(f"{expected} texts were sent, {len(vectors)} came back")
        for vector in vectors:
            if vector.shape != (self.model.dimension,):
                raise WrongDimension(
                    f"APP_EMBEDDING_DIM: {self.model.name} gives vectors of {vector.size} "
                    f"numbers, not {self.model.dimension}"
                )
        return [normalize(vector) for vector in vectors]


def _retry(error: Exception) -> bool | float:
    """Returns whether to retry, or the seconds to wait before the retry."""
    if isinstance(error, httpx.HTTPStatusError):
        if error.response.status_code not in TRANSIENT_STATUSES:
            return False
        return retry_after(error.response) or True
    return isinstance(error, httpx.TransportError)


def retry_after(response: httpx.Response) -> float | None:
    """Returns the seconds of the `Retry-After` header, a number or a date (RFC 9110, section
    10.2.3), between 0 and `MAX_RETRY_AFTER_SECONDS`; None if it is absent or not valid."""
    value = response.headers.get("Retry-After", "")
    try:
        seconds = float(value)  # the RFC says whole seconds, but servers also send fractions
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0), MAX_RETRY_AFTER_SECONDS) if isfinite(seconds) else None
