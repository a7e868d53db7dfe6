#!/bin/sh
# Build llama.cpp for the CPU: its library with Python bindings, and its converter of models to GGUF.
# llama-cpp.sh REQUIREMENTS OUTPUT: the folder of llama-cpp.txt and llama-cpp-build.txt, and a new folder, which goes to
# share/llama.cpp of an environment that has requirements/trainer.txt. Needs a C++ compiler; takes 5 to 10 minutes.
set -eu
requirements=$1
output=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

python3 -m venv "$work/venv"
PATH=$work/venv/bin:$PATH
export PATH PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
pip install --quiet --require-hashes -r "$requirements/llama-cpp-build.txt"
# The converter is in the source distribution alone.
pip download --quiet --no-deps --no-build-isolation --no-binary llama-cpp-python --require-hashes \
  -r "$requirements/llama-cpp.txt" --dest "$work/packages"

# Not for this machine's processor alone: AVX2, which every server of the last ten years has. Threads of its own, because
# PyTorch brings another OpenMP.
mkdir "$work/installed"
CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DLLAVA_BUILD=OFF" \
  pip install --quiet --no-deps --no-build-isolation --no-index --target "$work/installed" "$work"/packages/*
tar -xzf "$work"/packages/llama_cpp_python-*.tar.gz -C "$work"
source=$(echo "$work"/llama_cpp_python-*/vendor/llama.cpp)

mkdir -p "$output/gguf-py"
rm -rf "$work/installed/lib" "$work/installed/include" "$work/installed/bin"
cp -R "$work"/installed/. "$source/conversion" "$source/convert_hf_to_gguf.py" "$output/"
cp -R "$source/gguf-py/gguf" "$output/gguf-py/"
cp "$source/LICENSE" "$output/LICENSE.llama.cpp"
# Each library is there three times, as a copy in place of a link.
find "$output/llama_cpp/lib" -name 'lib*.so.*.*' -delete
rm -f "$output/llama_cpp/lib"/libggml*.so "$output"/llama_cpp/lib/libllama.so.0
