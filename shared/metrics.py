"""The metrics of the kernel, by their names; those of the app are in app/ops/metrics.py.

Each name stands once, as dashboards and alerts ask for it. A feature declares its own.
"""

from prometheus_client import Counter

REQUESTS_SHED = Counter(
    "tessera_requests_shed_total", "Requests refused as too much was under way", ("reason",)
)
RATE_LIMITED = Counter("tessera_rate_limited_total", "Requests refused by a limit", ("limit",))
REPLICA_FALLBACKS = Counter(
    "tessera_replica_fallbacks_total", "Reads that went to the primary as the replica was away"
)
REDIS_FAILURES = Counter(
    "tessera_redis_failures_total",
    "Commands that Redis did not carry out, or answered with something that is not from here",
)
TASK_FAILURES = Counter(
    "tessera_task_failures_total", "Batches of a background task that failed", ("task",)
)
