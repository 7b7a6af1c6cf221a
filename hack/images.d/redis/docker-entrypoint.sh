#!/bin/sh
# Arguments alone, or a file, are redis-server's. Root gives itself up.
set -eu
case "${1:-}" in
  -* | *.conf) set -- redis-server "$@" ;;
esac
if [ "$1" = redis-server ] && [ "$(id -u)" = 0 ]; then
  find . ! -user redis -exec chown redis {} +
  exec setpriv --reuid=redis --regid=redis --clear-groups "$0" "$@"
fi
umask 0077
# Within a pod's network only: reached from elsewhere, and without a password where none is asked for.
if [ "$1" = redis-server ]; then set -- "$@" --protected-mode no; fi
exec "$@"
