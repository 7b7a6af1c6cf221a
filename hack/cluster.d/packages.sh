# Sourced: installs what is missing of a distribution's packages. Nothing that a package brings is started.
# shellcheck shell=bash

# need COMMAND=PACKAGE…: each command is there, else its package is installed.
need() {
  local pair packages=()
  for pair in "$@"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%=*}" >/dev/null || packages+=("${pair#*=}")
  done
  [ ${#packages[@]} -eq 0 ] || install_packages "${packages[@]}"
}

# install_packages PACKAGE…, named as in Debian; as root.
install_packages() {
  local policy=/usr/sbin/policy-rc.d
  command -v apt-get >/dev/null || die "install $* (named as in Debian) and try again"
  [ "$(id -u)" -eq 0 ] || die "as root: apt-get install $*"
  say "installing $*"
  (
    # Debian asks this file whether a service may start, and 101 is no.
    if [ ! -e "$policy" ]; then
      printf '#!/bin/sh\nexit 101\n' >"$policy"
      chmod +x "$policy"
      trap 'rm -f "$policy"' EXIT
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
  )
}
