//! What both engines serve, and how it looks on the wire: the one table of routes, the request as
//! an engine hands it over, and the envelope of every response (contract §1, §2).

pub mod body;
pub mod call;
pub mod docs;
pub mod edge;
pub mod framing;
pub mod jwks;
pub mod log;
pub mod openapi;
pub mod reply;
pub mod routes;
pub mod views;

pub use call::{BodyError, Call};
pub use edge::Edge;
pub use reply::{Document, Handled, Reply, Success};
pub use routes::{Matched, Operation, Version};
