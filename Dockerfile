# The service's image: the interpreter, the locked runtime dependencies and the packages that run. No compiler, no shell, no
# tests, no load test. Everything pip fetches is checked against a hash; all else is Debian's (docs/decisions/image.md).

# The stage that has the wheel of native/, or an image that has it in /wheels (make image NATIVE=...).
ARG NATIVE=native

# TLS by rustls (docs/decisions/tls-engines.md): one wheel for Python 3.11 and newer, for this architecture. Debian's own
# rustc is older than native/ needs; its backports have a newer one.
FROM debian:trixie-slim AS native
WORKDIR /build
RUN cd /etc/apt && if [ -e sources.list.d/debian.sources ]; \
    then sed --in-place 's/trixie-updates/& trixie-backports/' sources.list.d/debian.sources; \
    else sed --quiet 's/trixie-updates/trixie-backports/p' sources.list >sources.list.d/backports.list; fi \
    && apt-get update && apt-get install --yes --no-install-recommends ca-certificates gcc libc6-dev python3-venv \
    && apt-get install --yes --no-install-recommends --target-release trixie-backports cargo && python3 -m venv .venv
COPY requirements/native.txt ./requirements/
COPY native ./native
RUN mkdir /wheels && cp "$(native/build.sh)" /wheels/

FROM ${NATIVE} AS wheels

FROM debian:trixie-slim AS build
WORKDIR /build
RUN apt-get update && apt-get upgrade --yes \
    && apt-get install --yes --no-install-recommends binutils ca-certificates libstdc++6 python3-venv && python3 -m venv /opt/build
COPY requirements/runtime.txt requirements/build.txt ./requirements/
RUN mkdir /image && python3 -m venv /opt/typha \
    && /opt/typha/bin/pip install --no-cache-dir --no-compile --require-hashes -r requirements/runtime.txt \
    && /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements/build.txt
COPY --from=wheels /wheels ./wheels
COPY tools/image/assemble.sh ./tools/image/
COPY pyproject.toml README.md LICENSE ./
COPY protocol ./protocol
COPY cache ./cache
COPY clients ./clients
COPY typha ./typha
# The newest date that a file of the image may have, for builds that can be repeated.
ARG SOURCE_DATE_EPOCH=0
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir wheels . \
    && /opt/typha/bin/pip install --no-cache-dir --no-compile --no-deps wheels/*.whl \
    && /opt/typha/bin/pip uninstall --yes --quiet pip \
    && mkdir -p /image/opt /image/usr/bin && cp -a /opt/typha /image/opt/ \
    && ln -s /opt/typha/bin/typha /opt/typha/bin/calico /opt/typha/bin/calico-typha /image/usr/bin/ \
    && tools/image/assemble.sh /image

FROM scratch
COPY --from=build /image /
# What `typha version` tells: docker build --build-arg BUILD_DATE=... --build-arg GIT_COMMIT=... (make image does it).
ARG BUILD_DATE=unknown
ARG GIT_COMMIT=unknown
ARG VERSION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title=typha \
    org.opencontainers.image.description="Fan-out proxy between the Kubernetes API and the agents on a cluster's nodes" \
    org.opencontainers.image.licenses=Apache-2.0 \
    org.opencontainers.image.source=$SOURCE \
    org.opencontainers.image.version=$VERSION \
    org.opencontainers.image.revision=$GIT_COMMIT \
    org.opencontainers.image.created=$BUILD_DATE
ENV PATH=/opt/typha/bin:/usr/bin PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 BUILD_DATE=$BUILD_DATE GIT_COMMIT=$GIT_COMMIT
USER 999:999
# Agents, metrics, health.
EXPOSE 5473 9093 9098
# Serves unless told otherwise. `component typha`, `version`, and a whole command line that begins with one of the original's
# paths, /usr/bin/calico-typha until 3.32 and /usr/bin/calico from 3.33 on, are arguments it takes, too.
ENTRYPOINT ["/usr/bin/typha"]
CMD ["serve"]
