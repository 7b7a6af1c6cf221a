//! The Redis for tests.

/// Its URL. `hack/with-servers` starts a Redis and sets the variable.
pub(crate) fn url() -> String {
    std::env::var("MILLRACE_TEST_REDIS_URL")
        .expect("MILLRACE_TEST_REDIS_URL names a Redis; hack/with-servers starts one")
}
