# Sourced by hack/cluster: the node: containerd, the kubelet and kube-proxy, and how each is taken away again.
# shellcheck shell=bash disable=SC2154,SC2317 # Its variables are the caller's.

start_containerd() {
  local snapshotter=overlayfs
  # An overlay cannot lie on an overlay.
  [ "$(stat --file-system --format %T "$run_folder")" != overlayfs ] || snapshotter=native
  # restrict_oom_score_adj: a machine that is itself a container may not lower it.
  cat >"$run_folder/containerd.toml" <<TOML
version = 2
root = "$run_folder/containerd/root"
state = "$run_folder/containerd/state"
[grpc]
  address = "$containerd_socket"
[plugins."io.containerd.internal.v1.opt"]
  path = "$run_folder/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "$snapshotter"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "$(cni_plugins)"
  conf_dir = "$run_folder/cni"
TOML
  start containerd containerd --config "$run_folder/containerd.toml"
  await 30 containerd ctr_ version
}

start_kubelet() {
  local pki=$run_folder/pki resolve=$run_folder/resolv.conf
  # A resolver on loopback is not there within a pod.
  { grep -h '^nameserver' /run/systemd/resolve/resolv.conf /etc/resolv.conf 2>/dev/null || true; } |
    { grep -vE 'nameserver +(127\.|::1)' || true; } | sort -u | head -n 3 >"$resolve"
  # It keeps its plugins' socket there, whatever its own folder.
  [ -e /var/lib/kubelet ] || touch "$run_folder/made-var-lib-kubelet"
  # enforceNodeAllocatable, oomScoreAdj, localStorageCapacityIsolation: what a machine may lack that is itself a container.
  cat >"$run_folder/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $address
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $pki/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: $pki/kubelet.crt
tlsPrivateKeyFile: $pki/kubelet.key
containerRuntimeEndpoint: unix://$containerd_socket
clusterDNS: [$dns_address]
clusterDomain: cluster.local
resolvConf: $resolve
cgroupDriver: cgroupfs
failSwapOn: false
enforceNodeAllocatable: []
oomScoreAdj: 0
localStorageCapacityIsolation: false
makeIPTablesUtilChains: false
evictionHard: {memory.available: 50Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
podLogsDir: $run_folder/pod-logs
volumePluginDir: $run_folder/volume-plugins
YAML
  start kubelet "$bin/kubelet" --config="$run_folder/kubelet.yaml" --kubeconfig="$pki/kubelet.kubeconfig" \
    --root-dir="$run_folder/kubelet" --hostname-override="$node" --node-ip="$address"
}

start_proxy() {
  # Connection tracking has limits of its own here, which not every machine may change.
  start kube-proxy "$bin/kube-proxy" --kubeconfig="$run_folder/pki/kube-proxy.kubeconfig" --hostname-override="$node" \
    --proxy-mode=iptables --cluster-cidr="$pod_cidr" --conntrack-max-per-core=0 --conntrack-tcp-timeout-established=0 \
    --conntrack-tcp-timeout-close-wait=0 --bind-address="$address" --healthz-bind-address=127.0.0.1:10256 \
    --metrics-bind-address=127.0.0.1:10249 --iptables-localhost-nodeports=false
}

# Tasks before containerd: their shims outlive it.
end_containers() {
  local task
  runs containerd || return 0
  for task in $(ctr_ tasks list --quiet); do ctr_ tasks kill --signal SIGKILL "$task" 2>/dev/null || true; done
  no_task_runs() { ! ctr_ tasks list | grep -q RUNNING; }
  wait_for 30 "the end of the containers" no_task_runs
  for task in $(ctr_ tasks list --quiet); do ctr_ tasks delete --force "$task" >/dev/null 2>&1 || true; done
}

node_down() {
  local pid process result space id mount group link
  # What containerd's shims left behind: theirs are those that name this socket.
  for process in /proc/[0-9]*; do
    pid=${process#/proc/}
    if tr '\0' ' ' 2>/dev/null <"$process/cmdline" | grep -q -- "containerd-shim.* -address $containerd_socket "; then
      kill -KILL "$pid" 2>/dev/null || true
    fi
  done
  # Each pod's network namespace, as the plugins noted it; its end of the cable goes with it.
  for result in /var/lib/cni/results/millrace-cluster-*-eth0; do
    [ -e "$result" ] || continue
    while read -r space; do
      umount --lazy "$space" 2>/dev/null || true
      rm -f "$space"
    done < <(grep -o '/[a-z/]*/netns/cni-[0-9a-f-]*' "$result" | sort -u)
    rm -f "$result"
    id=${result#*millrace-cluster-}
    rm -f "/var/lib/cni/results/cni-loopback-${id%-eth0}-lo"
  done
  while read -r mount; do
    umount --lazy "$mount" 2>/dev/null || true
  done < <(awk -v below="$run_folder/" 'index($2, below) == 1 { print $2 }' /proc/mounts | sort -r)
  for group in /sys/fs/cgroup/kubepods /sys/fs/cgroup/*/kubepods; do
    [ ! -d "$group" ] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
  done
  for link in /var/log/containers/*; do
    if [[ $(readlink "$link" || true) == "$run_folder"/* ]]; then rm -f "$link"; fi
  done
  # Folders that the kubelet, containerd and the plugins make at fixed places, where nobody else is using them.
  rmdir /run/netns /run/containerd/s /run/containerd/runc/k8s.io /run/containerd/runc /run/containerd \
    /var/lib/cni/results /var/lib/cni /var/log/containers 2>/dev/null || true
  [ ! -e "$run_folder/made-var-lib-kubelet" ] || rm -rf --one-file-system /var/lib/kubelet
}
