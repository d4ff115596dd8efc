//! The sync engine's port: takes requests from the server, finds their operation, answers.

use std::{
    io,
    net::TcpListener,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use rouille::{Request, Response};

use super::{
    extract, handlers,
    ports::BlockingPorts,
    server::{self, BodyError, Limits, Server},
};
use crate::{
    api::{Edge, Handled, Matched, Reply, call::BODY_BYTES, framing, log},
    services::problem::Problem,
    settings::Settings,
};

/// Starts serving on an open listener.
///
/// # Errors
/// A thread cannot be started.
pub fn start(settings: &Settings, listener: TcpListener, ports: BlockingPorts, edge: Arc<Edge>) -> io::Result<Server> {
    let http = &settings.http;
    let limits = Limits {
        threads: settings.engines.v1.threads,
        connections: settings.engines.v1.connections,
        head_bytes: framing::HEAD_BYTES,
        headers: framing::HEADERS,
        body_bytes: BODY_BYTES,
        head_timeout: http.head_timeout,
        body_timeout: http.body_timeout,
        idle_timeout: http.idle_timeout,
        write_timeout: http.write_timeout,
        ..Limits::default()
    };
    server::start(listener, limits, move |request, body| answer(&ports, &edge, request, body))
}

fn answer(ports: &BlockingPorts, edge: &Edge, request: &Request, body: Result<(), BodyError>) -> Response {
    let began = Instant::now();
    let headers = request.headers().map(|(name, value)| (name, value.as_bytes()));
    if let Some(status) = framing::refuse_ambiguous(request.method(), request.raw_url(), headers) {
        return extract::response(Reply::bare(status));
    }
    let call = extract::call(edge, request, body);
    let matched = call.route();
    let span = log::span(&call, &matched);
    let _entered = span.enter();
    let reply = match matched {
        Ok(Matched::Operation { operation, is_legacy, parameters }) => {
            let handled = caught(|| handlers::handle(ports, edge, &call, operation, &parameters));
            Reply::new(edge, &call, is_legacy, handled)
        }
        Ok(Matched::Options) => Reply::options(edge, &call),
        Err(problem) => Reply::problem(edge, &call, &problem),
    };
    log::answered(&reply, began);
    extract::response(reply)
}

// A panic is a defect; its connection to the database is closed, which undoes what it had begun.
fn caught(handle: impl FnOnce() -> Handled) -> Handled {
    let handled = catch_unwind(AssertUnwindSafe(handle));
    handled.unwrap_or_else(|_panic| Handled::new(None, Err(Problem::server_error())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Success;

    #[test]
    fn a_panic_is_a_server_error() {
        assert_eq!(caught(|| panic!("on purpose")).outcome.err().unwrap().code, "server_error");
        assert!(caught(|| Handled::new(None, Ok(Success::live()))).outcome.is_ok());
    }
}
