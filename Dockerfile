# The two images: `--target service` and `--target operator`, for linux/amd64 and linux/arm64:
#   docker buildx build --platform linux/amd64,linux/arm64 --target service --tag millrace/service .
# Their final stages hold a binary on a base without a shell. Without a registry, or with binaries that are built already:
# hack/images.
ARG RUST_IMAGE=docker.io/library/rust:1.95.0-bookworm
# Of the same Debian as the image above, for its libc: the loader, libc, libgcc, certificates, the user 65532.
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot

# Compiles on the machine's own architecture for the target's: emulated, it would take hours.
FROM --platform=${BUILDPLATFORM} ${RUST_IMAGE} AS toolchain
ARG TARGETARCH=amd64
WORKDIR /src
# The name of the target, for the later steps, and a cross compiler where the machine has another architecture.
RUN set -eu; \
    case "$TARGETARCH" in \
      amd64) target=x86_64-unknown-linux-gnu; machine=x86_64 ;; \
      arm64) target=aarch64-unknown-linux-gnu; machine=aarch64 ;; \
      *) echo "no image for $TARGETARCH" >&2; exit 1 ;; \
    esac; \
    mkdir -p .cargo; \
    printf '[build]\ntarget = "%s"\n' "$target" >.cargo/config.toml; \
    if [ "$TARGETARCH" = arm64 ]; then \
      # Kernels there have pages of up to 64 KiB, and jemalloc must know it when it is compiled.
      printf '[env]\nJEMALLOC_SYS_WITH_LG_PAGE = "16"\n' >>.cargo/config.toml; \
    fi; \
    if [ "$(uname -m)" != "$machine" ]; then \
      apt-get update -qq; \
      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        "gcc-$(echo "$machine" | tr _ -)-linux-gnu" "libc6-dev-$TARGETARCH-cross"; \
      rm -rf /var/lib/apt/lists/*; \
      rustup target add "$target"; \
      printf '[target.%s]\nlinker = "%s-linux-gnu-gcc"\n' "$target" "$machine" >>.cargo/config.toml; \
    fi

# The dependencies alone, in a layer that stays while the manifests stay the same: every crate is empty here.
FROM toolchain AS dependencies
ARG PROFILE=dist
COPY Cargo.toml Cargo.lock ./
COPY crds/Cargo.toml crds/
COPY service/Cargo.toml service/
COPY operator/Cargo.toml operator/
# Members of the workspace that no image contains: cargo needs their manifests.
COPY hack/compare/Cargo.toml hack/compare/
COPY hack/faults/Cargo.toml hack/faults/
COPY hack/model/Cargo.toml hack/model/
# Whole: a dependency of dependencies.
COPY vendor vendor
RUN set -eu; \
    for crate in crds service operator hack/compare hack/faults hack/model; do \
      mkdir -p "$crate/src"; \
      touch "$crate/src/lib.rs"; \
      echo 'fn main() {}' >"$crate/src/main.rs"; \
      # The targets that its manifest names.
      awk -F '"' -v crate="$crate" ' \
        function put() { if (kind in folder) print crate "/" (path ? path : folder[kind] "/" name ".rs"); path = ""; kind = "" } \
        BEGIN { folder["bin"] = "src/bin"; folder["test"] = "tests"; folder["bench"] = "benches"; folder["example"] = "examples" } \
        /^\[/ { put(); if (/^\[\[/) { kind = $0; gsub(/[][]/, "", kind) } } \
        /^name *=/ { name = $2 } \
        /^path *=/ { path = $2 } \
        END { put() }' "$crate/Cargo.toml" | while read -r file; do \
          mkdir -p "$(dirname "$file")"; \
          echo 'fn main() {}' >"$file"; \
      done; \
    done; \
    rm crds/src/main.rs; \
    cargo build --locked --profile "$PROFILE" --package millrace --package millrace-operator; \
    rm -rf crds service operator

FROM dependencies AS build
ARG PROFILE=dist
COPY .sqlx .sqlx
COPY migrations migrations
COPY crds crds
COPY service service
COPY operator operator
# Queries are checked against .sqlx, not against a database. Cargo compares file times: these files may be older than the
# builds of the empty ones.
RUN set -eu; \
    find crds service operator -name '*.rs' -exec touch {} +; \
    SQLX_OFFLINE=true cargo build --locked --profile "$PROFILE" --package millrace --package millrace-operator; \
    mkdir /binaries; \
    cp target/*/"$PROFILE"/millrace target/*/"$PROFILE"/millrace-operator /binaries/

# A build context of this name with binaries in it replaces all steps above.
FROM scratch AS binaries
COPY --from=build /binaries/ /

FROM ${RUNTIME_IMAGE} AS service
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="millrace" \
      org.opencontainers.image.description="Streams of business records into exact totals, notifications and alerts" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=binaries --chmod=755 /millrace /usr/local/bin/millrace
USER 65532:65532
# The pipeline's API, and the health port.
EXPOSE 8080 8081
ENTRYPOINT ["millrace"]

FROM ${RUNTIME_IMAGE} AS operator
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="millrace-operator" \
      org.opencontainers.image.description="Reconciles RecordPipeline resources on Kubernetes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=binaries --chmod=755 /millrace-operator /usr/local/bin/millrace-operator
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["millrace-operator"]
