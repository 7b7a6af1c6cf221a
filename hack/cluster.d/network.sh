# Sourced by hack/cluster: the bridge, the rules beside kube-proxy's own, and the kernel's switches, which are rewound to what
# they were.
# shellcheck shell=bash disable=SC2154,SC2317 # Its variables are the caller's.

switches=(net/ipv4/ip_forward net/bridge/bridge-nf-call-iptables)
# The kubelet sets these.
others=(vm/overcommit_memory kernel/panic kernel/panic_on_oops)
chain=MILLRACE-CLUSTER

# Where a distribution puts the plugins.
cni_plugins() {
  local folder
  for folder in /usr/lib/cni /opt/cni/bin /usr/libexec/cni; do
    [ ! -x "$folder/bridge" ] || { printf '%s' "$folder"; return; }
  done
}

# Its rules and folders would be taken for ours.
no_other_kubernetes() {
  ! iptables-save 2>/dev/null | grep -q '^:KUBE-' || die "this machine has rules of a Kubernetes already (iptables-save | grep KUBE-): not beside another one"
  ! ip link show "$bridge" >/dev/null 2>&1 || die "a network device is called $bridge already"
}

network_up() {
  local switch
  [ -e /proc/sys/net/bridge ] || modprobe br_netfilter || die "the kernel has no br_netfilter"
  for switch in "${switches[@]}" "${others[@]}"; do
    printf '%s %s\n' "$switch" "$(cat "/proc/sys/$switch")" >>"$run_folder/switches"
  done
  for switch in "${switches[@]}"; do echo 1 >"/proc/sys/$switch"; done
  ip link add "$bridge" type bridge
  ip address add "$address/${pod_cidr#*/}" dev "$bridge"
  ip link set "$bridge" up
  # Pods reach what the machine reaches, and a firewall that forwards nothing lets them pass.
  iptables -w -t nat -N "$chain"
  iptables -w -t nat -A "$chain" -s "$pod_cidr" ! -d "$pod_cidr" -j MASQUERADE
  iptables -w -t nat -A POSTROUTING -j "$chain"
  iptables -w -N "$chain"
  iptables -w -A "$chain" -i "$bridge" -j ACCEPT
  iptables -w -A "$chain" -o "$bridge" -j ACCEPT
  iptables -w -I FORWARD -j "$chain"
  mkdir -p "$run_folder/cni"
  # No portmap: nothing here has host ports, and one rule masquerades for all.
  cat >"$run_folder/cni/10-millrace.conflist" <<JSON
{"cniVersion": "0.4.0", "name": "millrace-cluster", "plugins": [
  {"type": "bridge", "bridge": "$bridge", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "$pod_cidr", "gateway": "$address"}]],
            "routes": [{"dst": "0.0.0.0/0"}], "dataDir": "$run_folder/cni-addresses"}}]}
JSON
}

# Takes away the chains whose name begins so, with every rule that jumps there.
remove_chains() {
  local prefix=$1 tables=$2 table rule name names
  for table in raw mangle nat filter; do
    while read -r rule; do
      # shellcheck disable=SC2086 # The rule as iptables-save wrote it: words, and quotes only about comments.
      eval "$tables -w -t $table -D ${rule#-A }" || true
    done < <("$tables-save" -t "$table" 2>/dev/null | grep -E -- "^-A [A-Z]+ .*-j $prefix")
    mapfile -t names < <("$tables-save" -t "$table" 2>/dev/null | sed -n "s/^:\(${prefix}[^ ]*\) .*/\1/p")
    for name in "${names[@]}"; do "$tables" -w -t "$table" -F "$name"; done
    for name in "${names[@]}"; do "$tables" -w -t "$table" -X "$name"; done
  done
}

network_down() {
  local switch value tables
  for tables in iptables ip6tables; do
    remove_chains KUBE- "$tables"
    remove_chains "$chain" "$tables"
  done
  ip link delete "$bridge" 2>/dev/null || true
  [ -e "$run_folder/switches" ] || return 0
  while read -r switch value; do
    echo "$value" >"/proc/sys/$switch"
  done <"$run_folder/switches"
}
