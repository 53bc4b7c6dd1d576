"""HTTP: pages, conditional requests, idempotency keys, uploads, rate limits, client addresses."""
