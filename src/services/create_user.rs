//! An account made by an operator: verified from the start, in any role.

use super::{
    audit,
    error::{Overloaded, Unavailable},
    events::Event,
    identifier::{Identifier, InvalidIdentifier},
    imported_hashes::{self, Refused},
    judge_password::{JudgeError, judge_password},
    model::{AuthProvider, Caller, Role, User, UserId},
    outbox,
    passwords::{HashAs, Password},
    ports::{Audit as _, Inserted, Outbox as _, Ports, Users as _},
    register::public_id,
};

/// What the operator gives.
#[derive(Debug)]
pub struct CreateUser {
    /// An e-mail address, a phone number, or both.
    pub email: Option<String>,
    /// See `email`.
    pub phone: Option<String>,
    /// Any role.
    pub role: Role,
    /// What they sign in with.
    pub password: Credential,
    /// Given name, `""` when unknown.
    pub first_name: String,
    /// Family name, `""` when unknown.
    pub last_name: String,
}

/// What a new account's owner signs in with.
#[derive(Debug)]
pub enum Credential {
    /// Under the same rules as everybody's.
    Password(Password),
    /// A hash as Django stores it; it is replaced at the first sign-in.
    Imported(String),
}

/// Why there is no new account; `Display` is the sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum CreateUserError {
    /// Neither address nor number.
    #[error("an e-mail address or a phone number is needed")]
    NoIdentifier,
    /// The address or number is malformed.
    #[error(transparent)]
    Identifier(#[from] InvalidIdentifier),
    /// Every rule that the password breaks.
    #[error("the password is refused: {0}")]
    Password(String),
    /// The hash is none of Django's, or asks for too much.
    #[error("the password hash is refused: {0}")]
    Hash(#[from] Refused),
    /// The address or number has an account.
    #[error("a user with this e-mail address or phone number exists already")]
    Taken,
    /// Too many hashes are being made.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// Something outside did not answer.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<JudgeError> for CreateUserError {
    fn from(error: JudgeError) -> Self {
        match error {
            JudgeError::Overloaded(error) => Self::Overloaded(error),
            JudgeError::Unavailable(error) => Self::Unavailable(error),
        }
    }
}

/// Makes the account.
///
/// # Errors
/// [`CreateUserError`].
pub async fn create_user<P: Ports>(ports: &P, caller: &Caller, request: CreateUser) -> Result<UserId, CreateUserError> {
    let region = &ports.policy().default_region;
    let email = request.email.as_deref().map(Identifier::email).transpose()?;
    let phone = request.phone.as_deref().map(|typed| Identifier::phone(typed, region)).transpose()?;
    if email.is_none() && phone.is_none() {
        return Err(CreateUserError::NoIdentifier);
    }
    let mut personal = vec![request.first_name.as_str(), request.last_name.as_str()];
    personal.extend([&email, &phone].into_iter().flatten().map(Identifier::as_str));
    let (hash, cost) = match request.password {
        Credential::Password(password) => {
            let broken = judge_password(ports, &password, &personal).await?;
            if !broken.is_empty() {
                return Err(CreateUserError::Password(broken.join(" ")));
            }
            (Some(ports.hash_password(password, HashAs::New(ports.random())).await?), None)
        }
        Credential::Imported(hash) => {
            let cost = imported_hashes::parse(&hash)?.cost();
            // Without a cost no password fits it, which is what no hash says too.
            (cost.map(|_| hash), cost)
        }
    };
    let now = ports.now();
    let user = User {
        auth_provider: if email.is_some() { AuthProvider::Email } else { AuthProvider::Phone },
        email: email.map(|email| email.as_str().to_owned()),
        phone: phone.map(|phone| phone.as_str().to_owned()),
        password_hash: hash,
        role: request.role,
        is_verified: true,
        first_name: request.first_name,
        last_name: request.last_name,
        ..User::new(UserId(ports.new_id()), public_id(ports), now)
    };
    ports
        .transaction(async |store| {
            if store.insert_user(&user).await? == Inserted::Taken {
                return Err(CreateUserError::Taken);
            }
            if let Some(cost) = cost {
                let work = i64::try_from(cost.work).unwrap_or(i64::MAX);
                store.note_imported_hash(&cost.scheme.to_string(), work).await?;
            }
            store.record(&audit::event(ports, "create_user", caller).of_user(user.id)).await?;
            store.enqueue(&outbox::event(ports, &Event::UserRegistered { user_id: user.id })).await?;
            Ok(user.id)
        })
        .await
}
