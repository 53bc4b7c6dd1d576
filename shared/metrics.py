"""The metrics of the kernel and of the app, by their names; what counts them imports them.

Each name stands here once, as dashboards and alerts ask for it. A feature declares its own.
"""

from prometheus_client import Counter, Gauge, Histogram

REQUEST_SECONDS = Histogram(
    "http_request_duration_seconds",
    "Requests by the template of their route, and how long each took",
    ("method", "route", "status"),
)
REQUESTS_EXPIRED = Counter("tessera_requests_expired_total", "Requests given up at their deadline")
REQUESTS_SHED = Counter(
    "tessera_requests_shed_total", "Requests refused as too much was under way", ("reason",)
)
WEBSOCKETS = Gauge("tessera_websockets", "Websockets that are open", multiprocess_mode="livesum")
RATE_LIMITED = Counter("tessera_rate_limited_total", "Requests refused by a limit", ("limit",))
CONNECTIONS = Gauge(
    "tessera_database_connections",
    "Connections to PostgreSQL in use",
    ("pool",),
    multiprocess_mode="liveall",
)
CONNECTIONS_MAX = Gauge(
    "tessera_database_connections_max",
    "Connections that a pool may open",
    ("pool",),
    multiprocess_mode="liveall",
)
REPLICA_FALLBACKS = Counter(
    "tessera_replica_fallbacks_total", "Reads that went to the primary as the replica was away"
)
REDIS_FAILURES = Counter(
    "tessera_redis_failures_total",
    "Commands that Redis did not carry out, or answered with something that is not from here",
)
TASK_ROWS = Counter("tessera_task_rows_total", "Rows that a background task has done", ("task",))
TASK_SECONDS = Histogram(
    "tessera_task_batch_seconds",
    "How long a batch of a background task took that found something to do",
    ("task",),
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
TASK_FAILURES = Counter(
    "tessera_task_failures_total", "Batches of a background task that failed", ("task",)
)
BACKLOG_ROWS = Gauge(
    "tessera_backlog_rows",
    "Rows that wait for a background task",
    ("task", "state"),
    multiprocess_mode="mostrecent",
)
BACKLOG_AGE = Gauge(
    "tessera_backlog_age_seconds",
    "For how long the oldest of them has been due",
    ("task",),
    multiprocess_mode="mostrecent",
)
