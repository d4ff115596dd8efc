//! One span and one log line a request.

use std::time::Instant;

use tracing::{Span, field::Empty};

use super::{Call, Matched, Reply};
use crate::services::problem::Problem;

/// The span of a request; what is logged within it carries its fields.
pub fn span(call: &Call, matched: &Result<Matched, Problem>) -> Span {
    let operation = match matched {
        Ok(Matched::Operation { operation, .. }) => operation.word(),
        Ok(Matched::Options) => "options",
        Err(_) => "none",
    };
    tracing::info_span!(
        "request",
        engine = call.caller.engine,
        operation,
        request_id = call.caller.request_id,
        client = %call.caller.ip,
        status = Empty,
        duration_us = Empty,
    )
}

/// The line that tells how a request was answered; to be called within its span.
pub fn answered(reply: &Reply, began: Instant) {
    let duration = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let span = Span::current();
    span.record("status", reply.status).record("duration_us", duration);
    tracing::info!("answered");
}
