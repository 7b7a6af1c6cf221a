# Sourced by hack/cluster: etcd, the API server, the controllers and the scheduler, and who is who to them.
# shellcheck shell=bash disable=SC2154,SC2317 # Its variables are the caller's.

api() { printf 'https://%s:6443' "$address"; }

certificates() {
  local pki=$run_folder/pki who
  make_authority "$pki"
  make_certificate "$pki" apiserver /CN=kube-apiserver \
    "IP:$address,IP:${service_cidr%.0/*}.1,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
  make_certificate "$pki" apiserver-to-kubelet /O=system:masters/CN=kube-apiserver
  make_certificate "$pki" kubelet "/O=system:nodes/CN=system:node:$node" "IP:$address,DNS:$node"
  make_certificate "$pki" admin /O=system:masters/CN=admin
  for who in kube-controller-manager kube-scheduler kube-proxy; do
    make_certificate "$pki" "$who" "/CN=system:$who"
    make_kubeconfig "$pki" "$who" "$(api)" "$pki/$who.kubeconfig"
  done
  make_kubeconfig "$pki" kubelet "$(api)" "$pki/kubelet.kubeconfig"
  make_kubeconfig "$pki" admin "$(api)" "$run_folder/kubeconfig"
  make_key "$pki/service-accounts.key"
}

start_etcd() {
  local client peer
  # On loopback, for it asks nobody who they are; ports that are free.
  read -r client peer < <(python3 -c '
import socket
sockets = [socket.socket() for _ in range(2)]
for s in sockets: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))')
  etcd_url=http://127.0.0.1:$client
  start etcd "$bin/etcd" --data-dir="$run_folder/etcd" --unsafe-no-fsync --log-level=warn \
    --listen-client-urls="$etcd_url" --advertise-client-urls="$etcd_url" --listen-peer-urls="http://127.0.0.1:$peer" \
    --initial-advertise-peer-urls="http://127.0.0.1:$peer" --initial-cluster="default=http://127.0.0.1:$peer"
}

start_api_server() {
  local pki=$run_folder/pki
  # The kubelet is asked at its address: the node's name need not resolve.
  start kube-apiserver "$bin/kube-apiserver" --etcd-servers="$etcd_url" --bind-address="$address" --advertise-address="$address" \
    --secure-port=6443 --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" \
    --client-ca-file="$pki/ca.crt" --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --service-cluster-ip-range="$service_cidr" --service-account-issuer=https://kubernetes.default.svc \
    --service-account-key-file="$pki/service-accounts.key" --service-account-signing-key-file="$pki/service-accounts.key" \
    --kubelet-preferred-address-types=InternalIP --kubelet-certificate-authority="$pki/ca.crt" \
    --kubelet-client-certificate="$pki/apiserver-to-kubelet.crt" --kubelet-client-key="$pki/apiserver-to-kubelet.key" \
    --allow-privileged=true --profiling=false
  await 60 kube-apiserver kubectl_ get --raw /readyz
}

start_controllers() {
  local pki=$run_folder/pki
  start kube-controller-manager "$bin/kube-controller-manager" --kubeconfig="$pki/kube-controller-manager.kubeconfig" \
    --bind-address=127.0.0.1 --leader-elect=false --use-service-account-credentials --root-ca-file="$pki/ca.crt" \
    --service-account-private-key-file="$pki/service-accounts.key" --profiling=false
  start kube-scheduler "$bin/kube-scheduler" --kubeconfig="$pki/kube-scheduler.kubeconfig" --bind-address=127.0.0.1 \
    --leader-elect=false --profiling=false
}
