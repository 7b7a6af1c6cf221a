//! HEAD, which is GET without the body.

use poem::{Request, http::Method};

/// The GET that a HEAD is answered as. The connection leaves the body out and keeps its length among the headers; the
/// framework would answer without a length.
pub(super) fn as_get(mut request: Request) -> Request {
    if request.method() == Method::HEAD {
        request.set_method(Method::GET);
    }
    request
}
