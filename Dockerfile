# One image for all of a cluster: the API with its dispatcher, Ray's head, Ray's workers.
# docker-compose.yml says which of them a container is.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_ENABLE_UV_RUN_RUNTIME_ENV=0

# A user without a password; the folder is where the service keeps what is its own.
RUN useradd --create-home --uid 10001 deconvoy \
    && install -d -o deconvoy -g deconvoy /home/deconvoy/.deconvoy

WORKDIR /opt/deconvoy
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY deconvoy deconvoy
COPY workers workers
COPY service service
COPY dashboard dashboard
RUN pip install --constraint constraints.txt --build-constraint constraints.txt \
    '.[figures,cloud,workers,ray,service,dashboard]'

USER deconvoy
WORKDIR /home/deconvoy
EXPOSE 8000
CMD ["deconvoy", "--help"]
