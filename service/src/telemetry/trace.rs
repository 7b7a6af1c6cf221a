//! W3C trace context: what came with a request continues with its record, through the stream to the notification.
//!
//! Must never refuse a request for its trace context: what is malformed is left out.

use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState},
};
use tracing::{Span, field::DisplayValue};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Length of `00-<32 hex>-<16 hex>-<2 hex>`.
const LENGTH: usize = 55;

/// Reads a `traceparent` header: gives its version 00 form, `None` when it is malformed.
#[must_use]
pub fn parse(header: &str) -> Option<String> {
    context(header).map(|context| render(&context))
}

/// The `traceparent` that is to continue: of the current span where traces are exported, else the one that came.
#[must_use]
pub fn carry(incoming: Option<&str>) -> Option<String> {
    let current = Span::current().context();
    let current = current.span().span_context().clone();
    if current.is_valid() { Some(render(&current)) } else { incoming.and_then(parse) }
}

tokio::task_local! {
    /// The trace of the request that this task answers.
    static REQUEST: Option<TraceId>;
}

/// Answers a request, whose log lines name its trace: that of its span where traces are exported, else the one that came.
pub async fn of_request<F: Future>(span: &Span, traceparent: Option<&str>, answer: F) -> F::Output {
    let own = span.context().span().span_context().clone();
    let id = if own.is_valid() { Some(own.trace_id()) } else { traceparent.and_then(id) };
    REQUEST.scope(id, answer).await
}

/// The trace of the request that this task answers, for log lines.
#[must_use]
pub fn current_id() -> Option<DisplayValue<TraceId>> {
    REQUEST.try_with(|id| *id).ok().flatten().map(tracing::field::display)
}

/// The id of a `traceparent`, for log lines.
#[must_use]
pub fn id(traceparent: &str) -> Option<TraceId> {
    context(traceparent).map(|context| context.trace_id())
}

/// Makes a span the child of a `traceparent`. Without export, or for a malformed one, it stays as it is.
pub fn continue_from(span: &Span, traceparent: Option<&str>) {
    if span.is_disabled() {
        return;
    }
    if let Some(parent) = traceparent.and_then(context) {
        // Refused only for a span that started already or that is not exported: then there is nothing to do.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// Most records whose traces get a span of their own in one step, and most requests that a span is linked to.
pub const MOST_TRACED: usize = 32;

/// A span for each of the first [`MOST_TRACED`] traces, which ends when it is dropped. None without export.
pub fn children<'a>(make: impl Fn() -> Span, traceparents: impl Iterator<Item = &'a str>) -> Vec<Span> {
    let child = |traceparent| {
        let span = make();
        continue_from(&span, Some(traceparent));
        (!span.is_disabled()).then_some(span)
    };
    traceparents.take(MOST_TRACED).map_while(child).collect()
}

/// Links a span to the requests that its work came from. Without export it does nothing.
pub fn link<'a>(span: &Span, traceparents: impl Iterator<Item = &'a str>) {
    for context in traceparents.filter_map(context) {
        span.add_link(context);
    }
}

fn context(header: &str) -> Option<SpanContext> {
    let header = header.trim();
    let bytes = header.as_bytes();
    let lower_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !header.is_ascii() || bytes.len() < LENGTH || [2, 35, 52].iter().any(|&at| bytes[at] != b'-') {
        return None;
    }
    let (version, trace, span, flags) = (&header[..2], &header[3..35], &header[36..52], &header[53..LENGTH]);
    let known_length = bytes.len() == LENGTH || (version != "00" && bytes[LENGTH] == b'-');
    if !known_length || version == "ff" || ![version, trace, span, flags].into_iter().all(lower_hex) {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

fn render(context: &SpanContext) -> String {
    format!("00-{}-{}-{:02x}", context.trace_id(), context.span_id(), context.trace_flags().to_u8())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn headers_are_read_as_the_standard_says() {
        assert_eq!(parse(GOOD).as_deref(), Some(GOOD));
        // A later version may say more: what is known of it continues.
        assert_eq!(parse(&format!("cc{}-more", &GOOD[2..])).as_deref(), Some(GOOD));
        for bad in [
            "",
            "00",
            &GOOD[..54],
            &format!("{GOOD}-more"),
            &format!("cc{}more", &GOOD[2..]),
            &format!("ff{}", &GOOD[2..]),
            &GOOD.to_uppercase(),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319g-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319é-b7ad6b7169203331-0",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn without_export_what_came_continues() {
        assert_eq!(carry(Some(GOOD)).as_deref(), Some(GOOD));
        assert_eq!(carry(Some("nonsense")), None);
        assert_eq!(carry(None), None);
    }

    #[tokio::test]
    async fn log_lines_of_a_request_name_the_trace_that_came() {
        let named = async || current_id().map(|id| format!("{id:?}"));
        assert_eq!(of_request(&Span::none(), Some(GOOD), named()).await.as_deref(), Some(&GOOD[3..35]));
        assert_eq!(of_request(&Span::none(), Some("nonsense"), named()).await, None);
        assert_eq!(named().await, None, "outside of a request");
    }
}
