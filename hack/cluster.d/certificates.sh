# Sourced: certificates of a cluster for development and tests, made with openssl. They live as long as the cluster.
# shellcheck shell=bash

make_key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1"; }

# make_authority FOLDER: ca.key and ca.crt.
make_authority() {
  mkdir -p "$1"
  make_key "$1/ca.key"
  openssl req -x509 -new -key "$1/ca.key" -subj /CN=millrace-cluster -days 365 -sha256 -out "$1/ca.crt" \
    -addext 'basicConstraints=critical,CA:TRUE' -addext 'keyUsage=critical,keyCertSign,cRLSign,digitalSignature'
}

# make_certificate FOLDER NAME SUBJECT [NAMES]: NAME.key and NAME.crt of the authority in the folder, for a client, and
# for a server too where it is given its names as IP:… and DNS:…, separated by commas.
make_certificate() {
  local folder=$1 name=$2 subject=$3 names=${4:-} extensions='extendedKeyUsage=clientAuth'
  [ -z "$names" ] || extensions=$'extendedKeyUsage=clientAuth,serverAuth\nsubjectAltName='$names
  make_key "$folder/$name.key"
  openssl req -new -key "$folder/$name.key" -subj "$subject" -out "$folder/$name.csr"
  openssl x509 -req -in "$folder/$name.csr" -CA "$folder/ca.crt" -CAkey "$folder/ca.key" -CAcreateserial -days 365 -sha256 \
    -extfile <(printf 'basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\n%s\n' "$extensions") -out "$folder/$name.crt" 2>/dev/null
  rm "$folder/$name.csr"
}

# make_kubeconfig FOLDER NAME SERVER FILE: a kubeconfig of the client NAME that stands alone, for its data is within.
make_kubeconfig() {
  local folder=$1 name=$2 server=$3 file=$4
  (
    umask 077
    cat >"$file" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: millrace, cluster: {server: "$server", certificate-authority-data: $(base64 -w 0 "$folder/ca.crt")}}]
users: [{name: $name, user: {client-certificate-data: $(base64 -w 0 "$folder/$name.crt"), client-key-data: $(base64 -w 0 "$folder/$name.key")}}]
contexts: [{name: $name, context: {cluster: millrace, user: $name}}]
current-context: $name
YAML
  )
}
