//! From actix's request to a call, and from a reply to actix's response.

use std::{
    borrow::Cow,
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use actix_web::{
    HttpResponse,
    body::{BodySize, MessageBody},
    dev::{Payload, ServiceRequest},
    http::{
        StatusCode,
        header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING},
    },
    web::{Bytes, BytesMut},
};
use tokio::time::timeout;

use crate::api::{
    BodyError, Call, Edge, Reply, Version,
    call::{BODY_BYTES, Parts},
};

/// Reads a request and its body.
pub async fn call(
    edge: &Edge,
    request: &ServiceRequest,
    target: &str,
    payload: &mut Payload,
    deadline: Duration,
) -> Call {
    let body = timeout(deadline, body(request, payload)).await.unwrap_or(Err(BodyError::TimedOut));
    let headers = request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let parts = Parts {
        method: request.method().as_str(),
        target,
        headers,
        peer: request.peer_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip()),
        body,
    };
    Call::new(Version::V2, edge, parts)
}

async fn body(request: &ServiceRequest, payload: &mut Payload) -> Result<Vec<u8>, BodyError> {
    let headers = request.headers();
    let declared = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    // Without either there is no body, and waiting for one would wait for the end of the connection.
    if declared.is_none() && !headers.contains_key(TRANSFER_ENCODING) {
        return Ok(Vec::new());
    }
    if declared.is_some_and(|length| usize::try_from(length).map_or(true, |length| length > BODY_BYTES)) {
        return Err(BodyError::TooLarge);
    }
    let mut read = BytesMut::new();
    while let Some(chunk) = std::future::poll_fn(|context| next(payload, context)).await {
        let chunk = chunk.or(Err(BodyError::Malformed))?;
        if read.len() + chunk.len() > BODY_BYTES {
            return Err(BodyError::TooLarge);
        }
        read.extend_from_slice(&chunk);
    }
    Ok(read.to_vec())
}

fn next(
    payload: &mut Payload,
    context: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, actix_web::error::PayloadError>>> {
    futures_core::Stream::poll_next(Pin::new(payload), context)
}

/// Makes a response. One that refuses an unread body takes the payload along: dropped earlier,
/// actix would read the rest of it, however much that is.
pub fn response(reply: Reply, payload: Payload) -> HttpResponse {
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut builder = HttpResponse::build(status);
    for (name, value) in reply.headers {
        // What no header may hold would be a defect; it is left out rather than sent.
        let value = match value {
            Cow::Borrowed(text) => Ok(HeaderValue::from_static(text)),
            Cow::Owned(text) => HeaderValue::from_maybe_shared(Bytes::from(text)),
        };
        if let Ok(value) = value {
            builder.append_header((name, value));
        }
    }
    let body = bytes(reply.body);
    if reply.closes {
        return builder.force_close().body(InParts { body, _unread: Some(payload) });
    }
    match body.len() {
        0..=PART_BYTES => builder.body(body),
        _ => builder.body(InParts { body, _unread: None }),
    }
}

// actix copies a whole part for its connection, and asks for the next when most of that was taken.
const PART_BYTES: usize = 16 << 10;

fn bytes(body: Cow<'static, [u8]>) -> Bytes {
    match body {
        Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        Cow::Owned(bytes) => Bytes::from(bytes),
    }
}

struct InParts {
    body: Bytes,
    _unread: Option<Payload>,
}

impl MessageBody for InParts {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(u64::try_from(self.body.len()).unwrap_or(u64::MAX))
    }

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        let length = self.body.len().min(PART_BYTES);
        let part = self.body.split_to(length);
        Poll::Ready((length > 0).then_some(Ok(part)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_body_goes_out_in_parts() {
        for length in [0, 1, PART_BYTES, PART_BYTES + 1, 5 * PART_BYTES] {
            let bytes: Vec<u8> = (0..=u8::MAX).cycle().take(length).collect();
            let mut body = InParts { body: Bytes::from(bytes.clone()), _unread: None };
            assert_eq!(body.size(), BodySize::Sized(length.try_into().unwrap()));
            let mut sent = Vec::new();
            let mut context = Context::from_waker(std::task::Waker::noop());
            while let Poll::Ready(Some(Ok(part))) = Pin::new(&mut body).poll_next(&mut context) {
                assert!((1..=PART_BYTES).contains(&part.len()));
                sent.extend(part);
            }
            assert_eq!(sent, bytes);
        }
    }
}
