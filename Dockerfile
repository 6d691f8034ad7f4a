# The server in a box: docker build -t my-llm:latest .  (docs/DEPLOYMENT.md)
ARG BASE_IMAGE=python:3.11-slim

# ---- what is installed; pip and its leftovers stay behind in this stage
FROM ${BASE_IMAGE} AS packages
# For an NVIDIA GPU: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /build
# wheels/ may hold packages for a machine without a network; [s] lets it be absent.
COPY requirements.txt wheel[s]/ wheels/
# What serving imports, in the versions of requirements.txt. torch comes alone and from its own index first, as in setup.sh.
# Its tests and C++ headers, a quarter of it, are for those who build on it.
RUN python -m venv --without-pip /opt/venv \
    && grep -E '^(torch|numpy|tiktoken|filelock|fastapi|uvicorn|pydantic|python-jose|passlib|limits|jinja2|prometheus-client|pillow|soundfile|scipy)==' \
        wheels/requirements.txt > serving.txt \
    && grep '^torch==' serving.txt > torch.txt \
    && pip="python -m pip --python /opt/venv/bin/python install --no-cache-dir --disable-pip-version-check --find-links wheels" \
    && $pip --no-deps --index-url "${TORCH_INDEX}" -r torch.txt \
    && $pip -r serving.txt \
    && torch=$(echo /opt/venv/lib/python*/site-packages/torch) \
    && rm -rf "$torch/test" "$torch/include" \
    && find "$torch/bin" -type f ! -name torch_shm_manager -delete

# ---- the model, if there is one: best_model.pt is often a link into the folder of a run
FROM ${BASE_IMAGE} AS model
WORKDIR /model
COPY requirements.txt checkpoint[s]/ /found/
RUN if [ -e /found/best_model.pt ]; then install -m 644 /found/best_model.pt best_model.pt; \
    else echo "No checkpoints/best_model.pt: mount one, or the server will say that it has none."; fi

# ---- the image
FROM ${BASE_IMAGE}
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
COPY --from=packages /opt/venv /opt/venv
WORKDIR /app
COPY config.py model.py tokenizer.py checkpoint.py serve.py ./
COPY training/ training/
COPY inference/ inference/
COPY multimodal/ multimodal/
COPY server/ server/
COPY --from=model /model/ checkpoints/
# Files that only their owner could read where they come from; and whoever --user names can write sessions, and nothing else.
RUN chmod -R a+rX . && python -m compileall -q . && install -d -m 1777 /var/lib/llm
ENV LLM_SESSION_DB=/var/lib/llm/sessions.db LLM_RANDOM_KEY=yes
VOLUME /var/lib/llm
USER 10001:10001
EXPOSE 8000
# Alive, not ready: a server without a model, or one that is stopping, says so at /readyz, and nobody should kill it for that.
# http.client, as it knows no proxies.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/healthz'); exit(c.getresponse().status != 200)"]
ENTRYPOINT ["python", "serve.py"]
CMD ["--host", "0.0.0.0", "--port", "8000"]
ARG VERSION=unknown
LABEL org.opencontainers.image.title="my-llm" org.opencontainers.image.version="${VERSION}"
