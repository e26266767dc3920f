# A small image for pipelines: CPU, no torch, a user without rights.
#
#     docker build -t prune-cli .
#     docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" prune-cli inspect model.pt
FROM python:3.12-slim AS build
COPY . /source
RUN pip wheel --no-deps --wheel-dir /wheels /source \
 && pip wheel --wheel-dir /wheels -c /source/constraints.txt numpy typer rich jinja2

FROM python:3.12-slim
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps /wheels/*.whl \
 && useradd --uid 1000 --create-home prune
USER 1000
WORKDIR /work
ENTRYPOINT ["prune-cli"]
CMD ["--help"]
