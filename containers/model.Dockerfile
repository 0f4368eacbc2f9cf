FROM python:3.11-slim-bookworm
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY sources /opt/megavoxel
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --no-deps --require-hashes \
        --requirement /opt/megavoxel/requirements-hashed.lock \
    && /opt/venv/bin/pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" \
        --requirement /opt/megavoxel/requirements.lock \
    && /opt/venv/bin/pip install --no-cache-dir --no-deps /opt/megavoxel
ENV PATH=/opt/venv/bin:$PATH MPLCONFIGDIR=/tmp/matplotlib
COPY label /opt/label
COPY model /opt/model
ENTRYPOINT ["/opt/label"]
