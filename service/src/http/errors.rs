//! The framework's own errors as problems with stable codes.

use poem::{
    Error, Response,
    error::{MethodNotAllowedError, NotFoundError, ParsePathError, ReadBodyError},
};
use poem_openapi::error::{
    ContentTypeError, ParseParamError, ParsePathError as ParseOpenApiPathError, ParseRequestPayloadError,
};

use super::{guard, problem::Failure};

/// The answer to an error: a failure of a handler as it is, one of the framework as a problem.
pub(crate) fn render(error: Error) -> Response {
    if error.is_from_response() {
        return error.into_response();
    }
    Error::from(failure(&error)).into_response()
}

/// The answer after a panic in a handler.
pub(crate) fn panicked(_: Box<dyn std::any::Any + Send + 'static>) -> Response {
    // The panic hook has logged where and why.
    Error::from(Failure::new(500, "internal", "the service failed; the log says why")).into_response()
}

/// The answer to an `Idempotency-Key` that breaks the rule.
pub(crate) fn invalid_idempotency_key() -> Failure {
    Failure::new(
        400,
        "invalid_idempotency_key",
        "the Idempotency-Key header must be given once, as 1 to 200 visible ASCII characters without spaces",
    )
}

/// The fault of a parameter's value, without the framework's name of its type.
fn rule(reason: &str) -> &str {
    let reason = reason.split_once(" (occurred while parsing").map_or(reason, |(reason, _)| reason);
    let rest = reason.strip_prefix("failed to parse \"").and_then(|rest| rest.split_once("\": "));
    rest.map_or(reason, |(_, rule)| rule)
}

fn failure(error: &Error) -> Failure {
    if error.is::<NotFoundError>() {
        return Failure::new(404, "not_found", "there is nothing at this path; /docs shows what there is");
    }
    if error.is::<MethodNotAllowedError>() {
        return Failure::new(405, "method_not_allowed", "this path does not take this method; see the header Allow");
    }
    if let Some(error) = error.downcast_ref::<ReadBodyError>() {
        return guard::read_failure(error);
    }
    if let Some(error) = error.downcast_ref::<ContentTypeError>() {
        let detail = match error {
            ContentTypeError::NotSupported { .. } => "the Content-Type is not taken here; send application/json",
            ContentTypeError::ExpectContentType => "the Content-Type is missing; send application/json",
        };
        return Failure::new(415, "unsupported_media_type", detail);
    }
    if let Some(ParseParamError { name, reason }) = error.downcast_ref() {
        if *name == "Idempotency-Key" {
            return invalid_idempotency_key();
        }
        return Failure::new(400, "invalid_parameter", format!("{name}: {}", rule(reason)));
    }
    // Its name for the part is `param0`.
    if let Some(ParseOpenApiPathError { reason, .. }) = error.downcast_ref() {
        return Failure::new(400, "invalid_parameter", format!("the id in the path {}", rule(reason)));
    }
    if error.is::<ParsePathError>() {
        return Failure::new(400, "invalid_parameter", "a part of the path cannot be read; percent-encode it as UTF-8");
    }
    if let Some(ParseRequestPayloadError { reason }) = error.downcast_ref() {
        return Failure::new(400, "invalid_body", format!("the body is not what this path takes: {reason}"));
    }
    let status = error.status();
    if status.is_client_error() {
        return Failure::new(400, "invalid_request", "the request is not understood");
    }
    Failure::internal(error)
}
