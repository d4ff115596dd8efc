//! Users who are looked for by what they sign in with.

use diesel::{
    BoolExpressionMethods as _, ExpressionMethods as _, OptionalExtension as _, QueryDsl as _, QueryResult,
    RunQueryDsl as _, SelectableHelper as _, SqliteConnection,
};

use super::{rows::UserRow, schema::users};
use crate::services::{identifier::Identifier, keys::Keys};

/// Whom to look for: by the keyed digest of what they sign in with.
#[derive(Debug, Clone)]
pub enum Sought {
    /// Of an e-mail address.
    Email(Vec<u8>),
    /// Of a number.
    Phone(Vec<u8>),
}

impl Sought {
    /// The owner of this.
    pub fn of(identifier: &Identifier, keys: &Keys) -> Self {
        let index = keys.blind_index(identifier).to_vec();
        match identifier {
            Identifier::Email(_) => Self::Email(index),
            Identifier::Phone(_) => Self::Phone(index),
        }
    }

    /// Asks SQLite.
    ///
    /// # Errors
    /// The database's.
    pub fn in_sqlite(&self, conn: &mut SqliteConnection) -> QueryResult<Option<UserRow>> {
        match self {
            Self::Email(index) => users::table
                .filter(users::email_index.eq(index).and(users::deleted_at.is_null()))
                .select(UserRow::as_select())
                .first(conn),
            Self::Phone(index) => users::table
                .filter(users::phone_index.eq(index).and(users::deleted_at.is_null()))
                .select(UserRow::as_select())
                .first(conn),
        }
        .optional()
    }
}
