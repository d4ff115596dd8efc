//! The tables, for both databases. Kept by hand beside `migrations/`; the store's contract test
//! reads and writes every column on both.
#![expect(missing_docs, reason = "`diesel::table!` takes no documentation for what it makes")]

diesel::table! {
    installation (name) {
        name -> Text,
        value -> Text,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    use crate::store::types::{Id, Moment};

    users (id) {
        id -> Id,
        email -> Nullable<Binary>,
        email_index -> Nullable<Binary>,
        phone -> Nullable<Binary>,
        phone_index -> Nullable<Binary>,
        password_hash -> Nullable<Text>,
        role -> Text,
        auth_provider -> Text,
        is_verified -> Bool,
        is_active -> Bool,
        is_contested -> Bool,
        first_name -> Text,
        last_name -> Text,
        bio -> Text,
        avatar -> Text,
        country -> Text,
        state -> Text,
        city -> Text,
        address -> Text,
        pid -> Text,
        created_at -> Moment,
        updated_at -> Moment,
        last_login_at -> Nullable<Moment>,
        deleted_at -> Nullable<Moment>,
        deleted_by -> Nullable<Id>,
        delete_reason -> Nullable<Text>,
        password_changed_at -> Nullable<Moment>,
        second_factor_at -> Nullable<Moment>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    use crate::store::types::{Id, Moment};

    sessions (id) {
        id -> Id,
        user_id -> Id,
        generation -> BigInt,
        rotated_at -> Moment,
        expires_at -> Moment,
        created_at -> Moment,
        last_used_at -> Moment,
        ended_at -> Nullable<Moment>,
        end_reason -> Nullable<Text>,
        ip -> Text,
        user_agent -> Text,
        browser -> Text,
        os -> Text,
        device -> Text,
        country -> Text,
        city -> Text,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    use crate::store::types::{Id, Moment};

    outbox (id) {
        id -> Id,
        channel -> Text,
        kind -> Text,
        payload -> Binary,
        state -> Text,
        attempts -> Integer,
        created_at -> Moment,
        available_at -> Moment,
        expires_at -> Nullable<Moment>,
        lease_owner -> Nullable<Id>,
        settled_at -> Nullable<Moment>,
        last_error -> Text,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    use crate::store::types::{Id, Moment};

    audit_events (id) {
        id -> Id,
        at -> Moment,
        action -> Text,
        outcome -> Text,
        reason -> Text,
        user_id -> Nullable<Id>,
        session_id -> Nullable<Id>,
        identifier_index -> Nullable<Binary>,
        ip -> Text,
        user_agent -> Text,
        browser -> Text,
        os -> Text,
        request_id -> Text,
        engine -> Text,
        device -> Text,
        country -> Text,
        city -> Text,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    use crate::store::types::Moment;

    ephemeral_entries (key) {
        key -> Text,
        value -> Binary,
        count -> BigInt,
        expires_at -> Moment,
    }
}

diesel::table! {
    imported_hashes (scheme) {
        scheme -> Text,
        work -> BigInt,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    use crate::store::types::{Id, Moment};

    totp_factors (user_id) {
        user_id -> Id,
        secret -> Binary,
        last_step -> BigInt,
        created_at -> Moment,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    use crate::store::types::{Id, Moment};

    recovery_codes (user_id, digest) {
        user_id -> Id,
        digest -> Binary,
        used_at -> Nullable<Moment>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    use crate::store::types::{Id, Moment};

    identities (subject_index) {
        subject_index -> Binary,
        user_id -> Id,
        provider -> Text,
        created_at -> Moment,
    }
}

diesel::joinable!(identities -> users (user_id));
diesel::joinable!(sessions -> users (user_id));
diesel::allow_tables_to_appear_in_same_query!(identities, sessions, users);
