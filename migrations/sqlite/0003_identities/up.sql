-- Accounts elsewhere that sign a user in, by a keyed digest of issuer and subject (OpenID Connect Core 1.0, 5.7).
CREATE TABLE identities (
    subject_index BLOB PRIMARY KEY NOT NULL,
    user_id       BLOB NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    provider      TEXT NOT NULL,
    created_at    BIGINT NOT NULL,
    UNIQUE (user_id, provider)
);
