# pgpool_proxy as a container: the compiled build on Debian's own Python, without root, writing nothing anywhere.
#
#   docker build -t pgpool-proxy .
#   docker run --read-only -p 6432:6432 -e DATABASE_URL=postgresql://user:password@db:5432/mydb pgpool-proxy
#
# docs/deployment.md has the rest.
ARG DEBIAN=trixie-slim

FROM debian:${DEBIAN} AS build
# The distribution's current versions are wanted, security updates included.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py README.md ./
COPY pgpool_proxy pgpool_proxy
# PGPOOL_PROXY_PURE=0: better no image than one that is not compiled.
RUN python3 -m venv /build \
    && PGPOOL_PROXY_PURE=0 /build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .
# Further libraries: --build-arg EXTRAS=[ldap]
ARG EXTRAS=
RUN python3 -m venv --without-pip /opt/pgpool_proxy \
    && /build/bin/pip --python /opt/pgpool_proxy install --no-cache-dir "$(echo /wheel/*.whl)${EXTRAS}" \
    && /opt/pgpool_proxy/bin/pgpool-proxy --version

FROM debian:${DEBIAN}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 6432 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin pgpool_proxy
COPY --from=build /opt/pgpool_proxy /opt/pgpool_proxy
# No unix socket: nothing has to be written, so that the root file system can be read-only.
ENV PATH=/opt/pgpool_proxy/bin:/usr/local/bin:/usr/bin:/bin \
    PGPOOL_PROXY_UNIX_SOCKET_DIR=
# By number, so that Kubernetes can see that it is not root.
USER 6432:6432
EXPOSE 6432 9127
# As PID 1 it handles its signals itself: TERM waits for the clients to leave, INT for their transactions to end.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s --retries=3 CMD ["pgpool-proxy", "ping"]
ENTRYPOINT ["pgpool-proxy"]
