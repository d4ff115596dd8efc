//! Runs a service on ports that answer at once.

use std::{
    pin::pin,
    task::{Context, Poll, Waker},
};

/// Runs a service to its end, on this thread, now.
///
/// A service only ever waits for its ports. Where these answer with [`std::future::Ready`], as
/// those of the sync engine do, the whole service is ready when it is first polled: there is no
/// runtime, no executor and nothing that waits.
pub fn run<T>(service: impl Future<Output = T>) -> T {
    match pin!(service).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => unreachable!("a service waited for something that is not a ready port"),
    }
}
