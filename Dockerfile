# The service's image: the interpreter, the locked runtime dependencies and the packages that run. No compiler, no tests,
# no load test. Everything pip fetches is checked against a hash.

# TLS by rustls (docs/decisions/tls-engines.md): one wheel for Python 3.11 and newer, for this architecture. An older Debian
# than the other stages', so that they have the C library that it needs.
FROM rust:1-slim-bookworm AS native
WORKDIR /build
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv && python3 -m venv .venv
COPY requirements/native.txt ./requirements/
COPY native ./native
RUN mkdir wheels && cp "$(native/build.sh)" wheels/

FROM python:3.12-slim AS build
WORKDIR /build
RUN python -m venv /opt/typha && python -m venv /opt/build
COPY requirements/runtime.txt requirements/build.txt ./requirements/
RUN /opt/typha/bin/pip install --no-cache-dir --require-hashes -r requirements/runtime.txt \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY protocol ./protocol
COPY cache ./cache
COPY clients ./clients
COPY typha ./typha
COPY --from=native /build/wheels ./wheels
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir wheels . \
    && /opt/typha/bin/pip install --no-cache-dir --no-deps wheels/*.whl \
    && /opt/typha/bin/pip uninstall --yes --quiet pip

FROM python:3.12-slim
COPY --from=build /opt/typha /opt/typha
# What `typha version` tells: docker build --build-arg BUILD_DATE=... --build-arg GIT_COMMIT=...
ARG BUILD_DATE=unknown
ARG GIT_COMMIT=unknown
# The paths of the original's images: /usr/bin/calico-typha until 3.32, /usr/bin/calico from 3.33 on.
RUN ln -s /opt/typha/bin/typha /opt/typha/bin/calico /opt/typha/bin/calico-typha /usr/bin/
ENV PATH=/opt/typha/bin:$PATH PYTHONUNBUFFERED=1 BUILD_DATE=$BUILD_DATE GIT_COMMIT=$GIT_COMMIT
USER 999:999
# Agents, metrics, health.
EXPOSE 5473 9093 9098
# Serves unless told otherwise. `component typha`, `version`, and a whole command line that begins with one of the paths
# above are arguments it takes, too.
ENTRYPOINT ["/usr/bin/typha"]
CMD ["serve"]
