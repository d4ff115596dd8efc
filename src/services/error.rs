//! What a port may answer instead of a value.

/// Something outside did not answer: a pool ran dry, a server went away, a statement failed.
///
/// It is always a 503 `service_unavailable` to the client; the cause goes to the log.
#[derive(Debug, thiserror::Error)]
#[error("{what} is unavailable: {source}")]
pub struct Unavailable {
    /// The component, as an operator knows it: "the database", "the store".
    pub what: &'static str,
    /// What the driver said.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl Unavailable {
    /// The durable database did not do what it was asked.
    pub fn database(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { what: "the database", source: source.into() }
    }

    /// The look-up of breached passwords did not do what it was asked.
    pub fn breaches(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { what: "the look-up of breached passwords", source: source.into() }
    }

    /// Google did not give the keys of its ID tokens.
    pub fn google(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { what: "Google's key service", source: source.into() }
    }

    /// Whoever asked for several at once has not told what came of it: after a panic, or because a worker ends.
    pub fn unanswered() -> Self {
        Self { what: "the database or the store", source: "a question for several was not answered".into() }
    }

    /// The same failure for one more of those who waited for it.
    pub fn again(&self) -> Self {
        Self { what: self.what, source: self.source.to_string().into() }
    }

    /// The ephemeral store did not do what it was asked.
    pub fn store(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { what: "the store", source: source.into() }
    }
}

/// Every hash slot is busy and the queue in front of them is full (503 `overloaded`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("every password hasher is busy and the queue is full")]
pub struct Overloaded;
