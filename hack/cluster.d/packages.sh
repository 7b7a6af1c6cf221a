# Sourced: installs what is missing of a distribution's packages. Nothing that a package brings is started.
# shellcheck shell=bash

# need COMMAND=PACKAGE…: each command is there, else its package (named as in Debian) is installed, as root.
need() {
  local pair packages=() policy=/usr/sbin/policy-rc.d
  for pair in "$@"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%=*}" >/dev/null || packages+=("${pair#*=}")
  done
  [ ${#packages[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "install ${packages[*]} (named as in Debian) and try again"
  [ "$(id -u)" -eq 0 ] || die "as root: apt-get install ${packages[*]}"
  say "installing ${packages[*]}"
  (
    # Debian asks this file whether a service may start, and 101 is no.
    if [ ! -e "$policy" ]; then
      printf '#!/bin/sh\nexit 101\n' >"$policy"
      chmod +x "$policy"
      trap 'rm -f "$policy"' EXIT
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >&2
  )
}
