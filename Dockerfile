# The root file system of the managed plugin; `make plugin` builds it and takes it out again.
#
# BASE is any Debian image with a python3 first on its PATH: what runs is that interpreter, and no
# more of the image than packaging/collect.py takes. Nothing here needs BuildKit.
ARG BASE=python:3.15-slim-trixie

FROM ${BASE} AS build
# What the driver opens by name: nftables, and Docker's chain where iptables is the legacy one;
# and /etc/protocols, in which nftables looks up ipv6-icmp.
COPY packaging/apt-get /source/packaging/
RUN /source/packaging/apt-get libnftables1 libip4tc2 libip6tc2 netbase
# Exactly the files of the lock, as they were published; pip comes from the interpreter itself.
COPY packaging/plugin.lock /source/packaging/
RUN python3 -m venv /build/tools && \
    /build/tools/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir \
        --require-hashes --no-deps --only-binary=:all: --no-compile \
        --target=/build/site --requirement=/source/packaging/plugin.lock
COPY pyproject.toml LICENSE /source/
COPY packaging/collect.py /source/packaging/
COPY driver /source/driver
COPY plugin /source/plugin
ARG REVISION=unknown
ARG SOURCE_DATE_EPOCH=0
RUN PYTHONHASHSEED=0 python3 -B /source/packaging/collect.py /source /build/site /rootfs \
        "$REVISION" "$SOURCE_DATE_EPOCH"

FROM scratch
COPY --from=build /rootfs /
ENTRYPOINT ["/usr/bin/pynet", "serve"]
