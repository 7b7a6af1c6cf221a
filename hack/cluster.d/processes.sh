# Sourced by hack/cluster: the processes of the cluster. Each is noted by its id and the moment of its start, so that
# nothing else is ever stopped: not after a reboot either, when the ids belong to others.
# shellcheck shell=bash disable=SC2154,SC2317 # Its variables are the caller's.

# Ticks after the boot at which a process started; fails when there is none, or only its remains.
started_at() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  stat=${stat##*) }
  # shellcheck disable=SC2086 # Fields, one a word; the first is the state, the twentieth the start.
  set -- $stat
  [ "$1" != Z ] && printf '%s' "${20}"
}

# start NAME COMMAND…: in the background, for good; what it says is in log/NAME.log.
start() {
  local name=$1 pid
  shift
  setsid "$@" >>"$run_folder/log/$name.log" 2>&1 </dev/null 8>&- &
  pid=$!
  # The boot's id too: ticks begin again.
  printf '%s %s %s\n' "$pid" "$(started_at "$pid")" "$(cat /proc/sys/kernel/random/boot_id)" >"$run_folder/pids/$name"
}

runs() {
  local pid ticks boot
  [ -e "$run_folder/pids/$1" ] || return 1
  read -r pid ticks boot <"$run_folder/pids/$1"
  [ "$boot" = "$(cat /proc/sys/kernel/random/boot_id)" ] && [ "$(started_at "$pid")" = "$ticks" ]
}

ended() { ! runs "$1"; }

# end NAME: at once, for nothing of it is kept.
end() {
  local pid
  runs "$1" || return 0
  read -r pid _ <"$run_folder/pids/$1"
  kill -KILL "$pid" 2>/dev/null || true
  wait_for 10 "the end of $1" ended "$1"
}

# must_run NAME: with the last lines of its log where it does not.
must_run() {
  runs "$1" || { tail -n 20 "$run_folder/log/$1.log" >&2; die "$1 ended; $run_folder/log/$1.log"; }
}

# await SECONDS NAME COMMAND…: as wait_for, but over at once when the process has ended.
await() {
  local seconds=$1 name=$2
  shift 2
  up_or_over() { must_run "$name" && "$@"; }
  wait_for "$seconds" "$name" up_or_over "$@"
}
