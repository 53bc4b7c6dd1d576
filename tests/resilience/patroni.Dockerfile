# A PostgreSQL that fails over: Patroni and etcd, HAProxy and pgbouncer in front.
FROM pgvector/pgvector:pg17
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
    etcd-client etcd-server haproxy iproute2 patroni pgbouncer procps python3-etcd \
 && rm -rf /var/lib/apt/lists/*
ENTRYPOINT []
CMD ["sleep", "infinity"]
