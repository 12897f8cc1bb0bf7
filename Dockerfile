# lwc with the C compiler of ziglang, which makes code for every target: docs/ci.md says how to run it.
FROM python:3.12-slim AS install
COPY pyproject.toml README.md LICENSE /source/
COPY lwc_compiler /source/lwc_compiler
ARG EXTRAS=zig,images,plots
RUN python -m venv /opt/lwc && /opt/lwc/bin/pip install --no-cache-dir --disable-pip-version-check "/source[$EXTRAS]"

FROM python:3.12-slim
COPY --from=install /opt/lwc /opt/lwc
# Whatever user `docker run --user` names may write these, and has a home. Kubernetes tells by a number that it is not root.
RUN useradd --uid 1000 lwc && mkdir -m 1777 /work /cache
ENV PATH=/opt/lwc/bin:$PATH LWC_CACHE=/cache HOME=/tmp
USER 1000
WORKDIR /work
ENTRYPOINT ["lwc"]
CMD ["--help"]
