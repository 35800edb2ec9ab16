# Segments scans in a container: what requirements.txt installs, the code, and the starter weights (docs/containers.md).
#
#   docker build --tag vertebrae:cpu .
#   docker build --tag vertebrae:cuda --build-arg REQUIREMENTS=requirements-gpu.txt .
FROM python:3.12-slim-bookworm

# For CUDA requirements-gpu.txt, whose wheels bring its libraries. MORE takes "-r requirements-train.txt" or another extra.
ARG REQUIREMENTS=requirements.txt
ARG MORE=""

WORKDIR /vertebrae
COPY requirements*.txt ./
# hadolint ignore=SC2086
RUN pip install --no-cache-dir --disable-pip-version-check -r "$REQUIREMENTS" $MORE

COPY *.py CITATION.cff LICENSE ./
COPY ML_3D_Unet ML_3D_Unet
COPY utils utils
COPY models models
RUN python -m compileall -q . && mkdir /data && chown 1000:1000 /data

# Any other user may run it too: nothing is written but below the folder it is started in, and temporary files.
ENV HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["python", "/vertebrae/infer.py"]
CMD ["--help"]
