//! The Redis that tests use.

/// Its URL: `hack/with-servers` starts one and names it.
pub(crate) fn url() -> String {
    std::env::var("MILLRACE_TEST_REDIS_URL")
        .expect("MILLRACE_TEST_REDIS_URL names a Redis; hack/with-servers starts one")
}
