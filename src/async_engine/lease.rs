//! A connection on loan from its pool.

use std::{
    ops::{Deref, DerefMut},
    time::Duration,
};

use deadpool::managed::{Manager, Object};
use diesel::result::QueryResult;
use tokio::time::error::Elapsed;

use crate::{services::error::Unavailable, store::sql};

/// Goes back to its pool when dropped; unless a statement or a unit of work was given up on it, or
/// its server may be gone: then it is closed, so that the database undoes the work and lets go of
/// every lock.
pub struct Lease<M: Manager> {
    object: Option<Object<M>>,
    /// A unit of work has begun and not ended.
    pub in_unit: bool,
    /// A statement of the unit of work has failed.
    pub has_failed: bool,
    in_statement: bool,
    is_spoilt: bool,
    limit: Duration,
    linger: fn(Object<M>),
}

// The server's own limit ends a statement first; this one is for a server that says nothing.
const MARGIN: Duration = Duration::from_secs(1);

impl<M: Manager> Lease<M> {
    /// Takes an object of the pool; a statement on it may take `timeout`. When one was given up,
    /// `linger` closes the connection, giving its place in the pool back no sooner than it is free.
    pub fn new(object: Object<M>, timeout: Duration, linger: fn(Object<M>)) -> Self {
        let (in_unit, has_failed, in_statement, is_spoilt) = (false, false, false, false);
        Self { object: Some(object), in_unit, has_failed, in_statement, is_spoilt, limit: timeout + MARGIN, linger }
    }

    /// To be called before a statement is sent; returns how long it may take.
    pub fn begin_statement(&mut self) -> Duration {
        self.in_statement = true;
        self.limit
    }

    /// Passes a statement's answer on; after one that may have lost its server, or is late, the
    /// connection is closed instead of pooled.
    pub fn end_statement<T>(&mut self, answer: Result<QueryResult<T>, Elapsed>) -> Result<T, Unavailable> {
        let answer = answer.map_err(Unavailable::database)?;
        self.in_statement = false;
        answer.map_err(|error| {
            self.is_spoilt |= !sql::spares_connection(&error);
            self.has_failed = true;
            Unavailable::database(error)
        })
    }
}

#[expect(clippy::expect_used, reason = "only `drop` takes the object")]
impl<M: Manager> Deref for Lease<M> {
    type Target = M::Type;

    fn deref(&self) -> &M::Type {
        self.object.as_ref().expect("only `drop` takes it")
    }
}

#[expect(clippy::expect_used, reason = "only `drop` takes the object")]
impl<M: Manager> DerefMut for Lease<M> {
    fn deref_mut(&mut self) -> &mut M::Type {
        self.object.as_mut().expect("only `drop` takes it")
    }
}

impl<M: Manager> Drop for Lease<M> {
    fn drop(&mut self) {
        let Some(object) = self.object.take() else { return };
        if self.in_statement {
            (self.linger)(object);
        } else if self.in_unit || self.is_spoilt {
            drop(Object::take(object));
        }
    }
}
