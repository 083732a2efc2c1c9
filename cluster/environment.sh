# What each command on a node begins with (config.yaml, onprem.yaml, image.yaml).
export PATH=$HOME/venv/bin:$PATH

# Where packages and Python come from, if not from PyPI and astral.sh: a private index, a mirror, a proxy. Each line that
# you need, for uv (AWS) and pip (your own machines) alike:
# export UV_DEFAULT_INDEX=https://pypi.example.org/simple PIP_INDEX_URL=https://pypi.example.org/simple
# export UV_PYTHON_INSTALL_MIRROR=https://mirror.example.org/python-build-standalone
# export HTTPS_PROXY=http://proxy.example.org:3128 NO_PROXY=169.254.169.254,.amazonaws.com
