#!/bin/bash
# Makes the database where there is none yet, then is Postgres. Root gives itself up.
set -euo pipefail
[[ ${1:-} != -* ]] || set -- postgres "$@"
[ "$1" = postgres ] || exec "$@"
if [ "$(id -u)" -eq 0 ]; then
  mkdir -p "$PGDATA" && chown postgres "$PGDATA" && chmod 700 "$PGDATA"
  exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
# from_file NAME: what the file says that NAME_FILE names.
from_file() {
  local file=$1_FILE
  if [ -n "${!file:-}" ]; then export "$1=$(<"${!file}")"; fi
}
from_file POSTGRES_PASSWORD
from_file POSTGRES_USER
from_file POSTGRES_DB
user=${POSTGRES_USER:-postgres}
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  method=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
  if [ -z "${POSTGRES_PASSWORD:-}" ] && [ "$method" != trust ]; then
    echo 'Database is uninitialized and superuser password is not specified: set POSTGRES_PASSWORD' >&2
    exit 1
  fi
  mkdir -p "$PGDATA"
  chmod 700 "$PGDATA" 2>/dev/null || true
  # shellcheck disable=SC2086 # Arguments, as people give them.
  initdb --username="$user" --auth-local=trust --auth-host="$method" \
    --pwfile=<(printf '%s\n' "${POSTGRES_PASSWORD:-unused}") ${POSTGRES_INITDB_ARGS:-}
  printf '\nhost all all all %s\n' "$method" >>"$PGDATA/pg_hba.conf"
  # Nobody from outside meets it before it is whole.
  pg_ctl start -w -o "-c listen_addresses=''"
  database=${POSTGRES_DB:-$user}
  sql() { psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "$user" "$@"; }
  if [ "$database" != postgres ]; then
    sql --dbname postgres --set name="$database" <<<'create database :"name";'
  fi
  for file in /docker-entrypoint-initdb.d/*; do
    case $file in
      *.sh) bash "$file" ;;
      *.sql) sql --dbname "$database" --file "$file" ;;
    esac
  done
  pg_ctl stop -w -m fast
fi
exec "$@"
