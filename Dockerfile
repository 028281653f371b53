# docker build --target fold -t bnfold .           everything, torch for the CPU
# docker build --target verify -t bnfold-verify .  golden bundles: neither torch nor an exporter

FROM python:3.12.11-slim-bookworm AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --create-home --uid 1000 bnfold
COPY . /opt/bnfold
ENTRYPOINT ["bnfold"]
CMD ["--help"]

FROM base AS verify
RUN pip install --constraint /opt/bnfold/constraints.txt numpy onnxruntime click rich \
    && pip install --no-deps /opt/bnfold
USER bnfold
WORKDIR /work

FROM base AS fold
RUN pip install --constraint /opt/bnfold/constraints.txt \
    --extra-index-url https://download.pytorch.org/whl/cpu /opt/bnfold
USER bnfold
WORKDIR /work
