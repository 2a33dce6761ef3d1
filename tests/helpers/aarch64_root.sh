#!/usr/bin/env bash
# aarch64_root.sh FOLDER: Python and what surge_runtime needs, for 64-bit ARM,
# to be run by qemu-aarch64-static on another machine. Needs Debian 12 or newer
# with Python 3.11 packages, pip, and 200 MB. tests/test_runtime/test_aarch64.py
# looks for the folder in SURGE_AARCH64_ROOT.
set -euo pipefail
mkdir -p "$1"
cd "$1"
mkdir -p apt/lists/partial apt/cache/archives/partial debs wheels root/proc site
touch apt/status
apt=(-o APT::Architecture=arm64 -o APT::Architectures=arm64
    -o "Dir::State=$PWD/apt" -o "Dir::State::status=$PWD/apt/status"
    -o "Dir::Cache=$PWD/apt/cache" -o APT::Sandbox::User=root)
apt-get "${apt[@]}" -q update
(cd debs && apt-get "${apt[@]}" -q download python3.11-minimal \
    libpython3.11-minimal libpython3.11-stdlib libc6 libstdc++6 libgcc-s1 \
    zlib1g libexpat1 libffi8 libssl3 libbz2-1.0 liblzma5)
for deb in debs/*.deb; do dpkg -x "$deb" root; done
python3 -m pip download -q --no-deps --only-binary=:all: -d wheels \
    --python-version 3.11 --platform manylinux_2_28_aarch64 \
    --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 \
    onnxruntime numpy pillow flatbuffers packaging
for wheel in wheels/*.whl; do python3 -m zipfile -e "$wheel" site; done
# ONNX Runtime reads what processor this is from a file that qemu before 8.1
# takes from the host. This is a Cortex-A72.
for cpu in 0 1; do
    printf '%s\t: %s\n' processor $cpu Features 'fp asimd evtstrm crc32 cpuid' \
        'CPU implementer' 0x41 'CPU architecture' 8 'CPU variant' 0x0 \
        'CPU part' 0xd08 'CPU revision' 3
    echo
done > root/proc/cpuinfo
