"""Operation: logs, metrics, traces, error reports and health probes."""
