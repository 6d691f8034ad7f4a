# Training in a box, for one GPU or many: docker build -f deploy/train.Dockerfile -t ghcr.io/OWNER/my-llm-train:latest .
# The server's image is the one of ./Dockerfile.  (docs/CLUSTERS.md)
ARG BASE_IMAGE=python:3.11-slim
FROM ${BASE_IMAGE}
# For machines without an NVIDIA GPU: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu130
# torch.compile wants a C compiler, on a GPU as well.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY requirements.txt ./
RUN grep '^torch==' requirements.txt > torch.txt \
    && pip install --no-cache-dir --no-deps --index-url "${TORCH_INDEX}" -r torch.txt \
    && pip install --no-cache-dir -r requirements.txt
COPY *.py ./
COPY corpora/ corpora/
COPY training/ training/
COPY inference/ inference/
COPY multimodal/ multimodal/
COPY server/ server/
COPY deploy/train.sh deploy/
RUN chmod -R a+rX . && python -m compileall -q .
# What is measured and compiled goes where any user may write.
ENV PYTHONUNBUFFERED=1 LLM_DATA_DIR=/tmp/data HOME=/tmp
USER 10001:10001
ENTRYPOINT []
CMD ["python", "train_cli.py", "--help"]
