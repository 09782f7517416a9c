#!/bin/sh
# Makes a peer's virtual environment: benchmarks/peers/install.sh PEER DIR (from the root of the
# repository, with Python 3.11). The dependencies of the peer and of din_jax conflict, so din_jax is
# installed without its own: only its metrics and schema, which need only NumPy, can be imported.
set -eu

usage() {
    echo "usage: $0 PEER DIR; peers: deepctr, deepctr_torch, fuxictr" >&2
    exit 2
}

[ $# -eq 2 ] || usage
case $1 in
    deepctr) packages="deepctr==0.9.4 tensorflow-cpu==2.21.0 tf_keras==2.21.0" ;;
    deepctr_torch) packages="torch==2.13.0 deepctr-torch==0.3.0 requests" ;;
    fuxictr) packages="torch==2.13.0 fuxictr==2.3.10 pandas pyarrow" ;;
    *) usage ;;
esac
if [ -e "$2" ]; then
    echo "$2 exists already; delete it or choose another path" >&2
    exit 1
fi

"${PYTHON:-python3.11}" -m venv "$2"
# shellcheck disable=SC2086  # $packages is a list of words
"$2/bin/pip" install $packages
"$2/bin/pip" install --no-deps --editable "$(dirname "$0")/../.."
