//! From rouille's request to a call, and from a reply to rouille's response.

use std::{borrow::Cow, io::Read as _};

use rouille::{Request, Response, ResponseBody};

use super::server::BodyError as Trouble;
use crate::api::{BodyError, Call, Edge, Reply, Version, call::Parts};

/// Reads a request; the server has read its body already.
pub fn call(edge: &Edge, request: &Request, body: Result<(), Trouble>) -> Call {
    let body = body.map_err(|trouble| match trouble {
        Trouble::TooLarge => BodyError::TooLarge,
        Trouble::TimedOut => BodyError::TimedOut,
        Trouble::Malformed => BodyError::Malformed,
    });
    let body = body.and_then(|()| {
        let mut bytes = Vec::new();
        let read = request.data().map_or(Ok(0), |mut data| data.read_to_end(&mut bytes));
        read.map(|_| bytes).or(Err(BodyError::Malformed))
    });
    let parts = Parts {
        method: request.method(),
        target: request.raw_url(),
        headers: request.headers().map(|(name, value)| (name, value.as_bytes())),
        peer: request.remote_addr().ip(),
        body,
    };
    Call::new(Version::V1, edge, parts)
}

/// Makes a response.
pub fn response(reply: Reply) -> Response {
    let close = reply.closes.then(|| ("Connection".into(), "close".into()));
    Response {
        status_code: reply.status,
        headers: reply.headers.into_iter().map(|(name, value)| (name.into(), value)).chain(close).collect(),
        data: body(reply.body),
        upgrade: None,
    }
}

fn body(bytes: Cow<'static, [u8]>) -> ResponseBody {
    match bytes {
        Cow::Borrowed(bytes) => ResponseBody::from_reader_and_size(bytes, bytes.len()),
        Cow::Owned(bytes) => ResponseBody::from_data(bytes),
    }
}
