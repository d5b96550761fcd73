# fcnlab in a container, on a CPU or on NVIDIA GPUs: PyTorch's Linux packages contain CUDA, so one image serves both.
#   docker build -t fcnlab .
#   docker run --rm -v "$PWD/outputs:/work/outputs" fcnlab train trainer=smoke
#   docker run --rm --gpus all --shm-size 8g -v "$PWD/outputs:/work/outputs" -v FOLDER:/data fcnlab train data=voc data.root=/data
FROM python:3.13-slim

ENV PYTHONUNBUFFERED=1 \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_SYSTEM_PYTHON=1

RUN pip install --no-cache-dir uv==0.13.8

# The dependencies are a layer of their own, which is rebuilt only if these two files change.
WORKDIR /fcnlab
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/uv \
    uv pip install --constraints constraints.txt --requirements pyproject.toml --extra tensorboard --extra search --extra superpixels

COPY README.md LICENSE ./
COPY src src
COPY conf conf
COPY benchmarks benchmarks
COPY template template
RUN --mount=type=cache,target=/root/.cache/uv uv pip install --no-deps .

# With another user id, files in mounted folders would belong to somebody else: docker build --build-arg UID="$(id -u)" .
ARG UID=1000
RUN useradd --create-home --uid "$UID" fcnlab \
    && mkdir --parents /work/outputs /data \
    && chown --recursive fcnlab /work /data
USER $UID
WORKDIR /work
VOLUME ["/work/outputs", "/data"]

# fcnlab is the first process, so that docker stop interrupts a run, which then saves a checkpoint.
ENTRYPOINT ["fcnlab"]
CMD ["--help"]
