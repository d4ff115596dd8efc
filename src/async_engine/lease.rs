//! A connection on loan from its pool.

use std::ops::{Deref, DerefMut};

use deadpool::managed::{Manager, Object};
use diesel::result::QueryResult;

use crate::{services::error::Unavailable, store::sql};

/// Goes back to its pool when dropped; unless a unit of work was given up on it, or its server may
/// be gone: then it is closed, so that the database undoes the work and lets go of every lock.
pub struct Lease<M: Manager> {
    object: Option<Object<M>>,
    /// A unit of work has begun and not ended.
    pub in_unit: bool,
    is_spoilt: bool,
}

impl<M: Manager> Lease<M> {
    /// Passes a statement's answer on; after one that may have lost its server, the connection is
    /// closed instead of pooled.
    pub fn note<T>(&mut self, answer: QueryResult<T>) -> Result<T, Unavailable> {
        answer.map_err(|error| {
            self.is_spoilt |= !sql::spares_connection(&error);
            Unavailable::database(error)
        })
    }
}

impl<M: Manager> From<Object<M>> for Lease<M> {
    fn from(object: Object<M>) -> Self {
        Self { object: Some(object), in_unit: false, is_spoilt: false }
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
        if let Some(object) = self.object.take().filter(|_| self.in_unit || self.is_spoilt) {
            drop(Object::take(object));
        }
    }
}
